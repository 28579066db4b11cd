"""Layers: attention equals a loop, a cache changes nothing, padding is what it repeats."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mage_agent.nn.layers import MLP, Attention, Block, Dropout, edge_pad
from tests.references import attend_slowly


class TestEdgePad:
    @given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4))
    @settings(deadline=None, max_examples=20)
    def test_equals_the_loop(self, lengths: list[int]) -> None:
        values = torch.arange(len(lengths) * 6 * 2.0).view(len(lengths), 6, 2)
        padded = edge_pad(values, torch.arange(6) < torch.tensor(lengths)[:, None])
        for row, length in enumerate(lengths):
            for step in range(6):
                assert torch.equal(padded[row, step], values[row, min(step, length - 1)])

    def test_nan_in_the_padding_reaches_neither_values_nor_gradients(self) -> None:
        mask = torch.arange(4) < torch.tensor([[2], [4]])
        values = torch.where(mask[..., None], torch.randn(2, 4, 3), torch.nan).requires_grad_()
        padded = edge_pad(values, mask)
        padded.square().sum().backward()
        assert torch.isfinite(padded).all()
        assert torch.isfinite(values.grad).all()
        assert (values.grad[~mask] == 0).all()


class TestMLP:
    def test_no_activation_follows_the_last_layer(self) -> None:
        mlp = MLP(3, 8, 8, 2)
        assert [type(layer) for layer in mlp] == [nn.Linear, nn.GELU] * 2 + [nn.Linear]
        assert mlp(torch.randn(5, 3)).shape == (5, 2)


class TestDropout:
    @pytest.mark.parametrize("rate", [0.1, 0.9])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_drops_at_its_rate_and_keeps_the_mean(self, rate: float, dtype: torch.dtype) -> None:
        x = torch.ones(301, 333, dtype=dtype, requires_grad=True)
        out = Dropout(rate)(x)
        kept = out != 0
        assert kept.float().mean().item() == pytest.approx(1 - rate, abs=5e-3)
        scale = torch.tensor(1 / (1 - rate), dtype=dtype)
        assert (out[kept] == scale).all()
        out.sum().backward()
        assert torch.equal(x.grad, out)  # forwards and backwards drop the same

    def test_elements_are_dropped_independently(self) -> None:
        kept = (Dropout(0.5)(torch.ones(4, 4, 10_000)) != 0).float().flatten(0, 1)
        assert (kept.corrcoef() - torch.eye(16)).abs().max() < 0.05

    def test_does_nothing_in_evaluation_or_at_rate_zero(self) -> None:
        x = torch.randn(5)
        assert Dropout(0.5).eval()(x) is x
        assert Dropout(0.0)(x) is x


class TestAttention:
    def test_without_gradients_it_is_the_same(self) -> None:
        attention, x = Attention(8, 2).double(), torch.randn(3, 5, 8, dtype=torch.float64)
        mask = torch.ones(5, 5).tril().bool()
        out, _ = attention(x, mask)
        with torch.no_grad():
            torch.testing.assert_close(attention(x, mask)[0], out.detach())

    def test_equals_the_loop(self) -> None:
        attention, x = Attention(8, 2).double(), torch.randn(3, 5, 8, dtype=torch.float64)
        mask = torch.ones(5, 5).tril().bool()
        out, _ = attention(x, mask)
        for row in range(3):
            torch.testing.assert_close(out[row], attend_slowly(attention, x[row], mask))

    def test_a_cache_gives_what_one_pass_gives(self) -> None:
        attention, x = Attention(8, 2), torch.randn(3, 6, 8)
        group = torch.tensor([0, 1, 1, 2, 2, 2])
        whole, (keys, values) = attention(x, group[:, None] >= group[None])
        parts, past = [], None
        for part in x.split([1, 2, 3], dim=1):
            out, past = attention(part, past=past)
            parts.append(out)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)
        torch.testing.assert_close(past, (keys, values))

    def test_without_a_mask_order_does_not_matter(self) -> None:
        attention, x, order = Attention(8, 2), torch.randn(2, 5, 8), torch.randperm(5)
        torch.testing.assert_close(attention(x[:, order])[0], attention(x)[0][:, order])


class TestBlock:
    def test_without_modulation_it_is_an_ordinary_pre_norm_block(self) -> None:
        block, x = Block(8, 2), torch.randn(3, 4, 8)
        norm = nn.functional.layer_norm
        expected = x + block.attention(norm(x, (8,)))[0]
        expected = expected + block.mlp(norm(expected, (8,)))
        torch.testing.assert_close(block(x)[0], expected)

    def test_modulation_scales_shifts_and_gates(self) -> None:
        block, x = Block(8, 2), torch.randn(3, 4, 8)
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation = torch.randn(6, 8)
        norm = nn.functional.layer_norm
        attended, _ = block.attention(norm(x, (8,)) * (1 + scale1) + shift1)
        expected = x + (1 + gate1) * attended
        hidden = block.mlp(norm(expected, (8,)) * (1 + scale2) + shift2)
        expected = expected + (1 + gate2) * hidden
        torch.testing.assert_close(block(x, block.modulate(modulation))[0], expected)

    def test_the_blocks_own_offset_adds_to_the_modulation(self) -> None:
        block, x, modulation = Block(8, 2), torch.randn(3, 4, 8), torch.randn(3, 1, 6, 8)
        expected = block(x, block.modulate(modulation + 0.5))[0]
        with torch.no_grad():
            block.offset.fill_(0.5)
        torch.testing.assert_close(block(x, block.modulate(modulation))[0], expected)

    def test_dropout_acts_in_training_only(self) -> None:
        block, x = Block(8, 2, dropout=0.5), torch.randn(3, 4, 8)
        assert not torch.equal(block(x)[0], block(x)[0])
        block.eval()
        assert torch.equal(block(x)[0], block(x)[0])
