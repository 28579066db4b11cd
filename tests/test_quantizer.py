"""Quantiser: three views of one loop agree with a slow one, and the codebook follows its data."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from mage_agent.mage.quantizer import MultiScaleQuantizer
from tests.references import (
    area_mean,
    interpolate,
    moving_average_step,
    nearest_code,
    quantize_slowly,
)

SCALES = ((1,), (4,), (1, 2, 4), (1, 3, 4, 7), (2, 6))


def make_quantizer(
    scales: tuple[int, ...] = (1, 2, 4),
    codebook_size: int = 8,
    code_dim: int = 3,
    decay: float = 0.9,
) -> MultiScaleQuantizer:
    """A quantiser with random codes and bent resampling, whose codebook counts as started."""
    quantizer = MultiScaleQuantizer(scales, codebook_size, code_dim, decay)
    codebook = quantizer.codebook._codebook
    with torch.no_grad():
        for matrix in quantizer.parameters():
            matrix.add_(0.1 * torch.randn_like(matrix))
        codebook.embed.copy_(torch.randn_like(codebook.embed))
        codebook.embed_avg.copy_(codebook.embed)
        codebook.initted.fill_(True)
    return quantizer


def matrices(quantizer: MultiScaleQuantizer) -> tuple[list[Tensor], list[Tensor]]:
    downs = [down.detach() for down in quantizer.scale_down]
    return downs, [up.detach() for up in quantizer.scale_up]


class TestAgainstTheLoop:
    @given(
        scales=st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True).map(sorted),
        seed=st.integers(0, 100),
    )
    @settings(deadline=None, max_examples=15)
    def test_every_view_agrees(self, scales: list[int], seed: int) -> None:
        torch.manual_seed(seed)
        quantizer = make_quantizer(tuple(scales)).double()
        latent = torch.randn(3, scales[-1], 3, dtype=torch.float64)
        encoding = quantizer.encode(latent)
        codes = [quantizer.lookup(ids) for ids in encoding.token_ids]
        sums, inputs = quantizer.partial_sums(codes), quantizer.scale_inputs(codes)
        for row in range(3):
            slow = quantize_slowly(latent[row], quantizer.codes, *matrices(quantizer))
            assert [ids[row].tolist() for ids in encoding.token_ids] == slow.token_ids
            torch.testing.assert_close([total[row] for total in sums], slow.sums)
            torch.testing.assert_close([part[row] for part in inputs], slow.inputs)
            torch.testing.assert_close(encoding.latent[row], slow.sums[-1])
            assert encoding.commitment[row].item() == pytest.approx(slow.commitment)

    def test_nearest_is_the_smallest_distance(self) -> None:
        quantizer, vectors = make_quantizer(codebook_size=30), torch.randn(50, 3)
        expected = [nearest_code(vector, quantizer.codes) for vector in vectors]
        assert quantizer.nearest(vectors).tolist() == expected

    @pytest.mark.parametrize("scales", SCALES)
    def test_resampling_starts_at_mean_and_interpolation(self, scales: tuple[int, ...]) -> None:
        quantizer, longest = MultiScaleQuantizer(scales, 8, 3), scales[-1]
        for length, down, up in zip(scales, quantizer.scale_down, quantizer.scale_up, strict=True):
            fine, coarse = torch.randn(longest), torch.randn(length)
            means = torch.tensor(area_mean(length, fine.tolist()))
            torch.testing.assert_close(down @ fine, means)
            torch.testing.assert_close(
                up @ coarse, torch.tensor(interpolate(longest, coarse.tolist()))
            )


class TestEncode:
    @pytest.mark.parametrize("scales", SCALES)
    def test_shapes(self, scales: tuple[int, ...]) -> None:
        encoding = make_quantizer(scales).encode(torch.randn(5, scales[-1], 3))
        assert [ids.shape for ids in encoding.token_ids] == [(5, length) for length in scales]
        assert encoding.latent.shape == (5, scales[-1], 3)
        assert encoding.commitment.shape == (5,)

    def test_tokens_decode_to_what_encoding_gave(self) -> None:
        quantizer = make_quantizer()
        encoding = quantizer.encode(torch.randn(5, 4, 3))
        codes = [quantizer.lookup(ids) for ids in encoding.token_ids]
        torch.testing.assert_close(quantizer.partial_sums(codes)[-1], encoding.latent)

    def test_the_first_scale_sees_nothing(self) -> None:
        quantizer = make_quantizer()
        inputs = quantizer.scale_inputs([torch.randn(5, length, 3) for length in (1, 2, 4)])
        assert (inputs[0] == 0).all()
        assert [part.shape for part in inputs] == [(5, 1, 3), (5, 2, 3), (5, 4, 3)]

    def test_rows_do_not_touch_each_other(self) -> None:
        quantizer, latent, order = make_quantizer(), torch.randn(5, 4, 3), torch.randperm(5)
        whole, shuffled = quantizer.encode(latent), quantizer.encode(latent[order])
        torch.testing.assert_close(shuffled.latent, whole.latent[order])
        for ids, shuffled_ids in zip(whole.token_ids, shuffled.token_ids, strict=True):
            assert torch.equal(shuffled_ids, ids[order])

    def test_one_scale_is_plain_vector_quantisation(self) -> None:
        quantizer = MultiScaleQuantizer((4,), 8, 3)
        quantizer.codes.copy_(torch.randn(8, 3))
        latent = torch.randn(5, 4, 3)
        encoding = quantizer.encode(latent)
        assert torch.equal(encoding.token_ids[0], torch.cdist(latent, quantizer.codes).argmin(-1))
        torch.testing.assert_close(encoding.latent, quantizer.lookup(encoding.token_ids[0]))


class TestGradients:
    def test_with_one_scale_it_is_the_identity(self) -> None:
        quantizer = MultiScaleQuantizer((4,), 8, 3)
        latent = torch.randn(5, 4, 3, requires_grad=True)
        weight = torch.randn(5, 4, 3)
        (quantizer.encode(latent).latent * weight).sum().backward()
        torch.testing.assert_close(latent.grad, weight)

    def test_with_more_it_is_that_of_the_loop_without_rounding(self) -> None:
        quantizer, weight = make_quantizer(), torch.randn(5, 4, 3)
        latent = torch.randn(5, 4, 3, requires_grad=True)
        (quantizer.encode(latent).latent * weight).sum().backward()
        smooth = latent.detach().clone().requires_grad_()
        total = torch.zeros_like(smooth)
        for down, up in zip(*matrices(quantizer), strict=True):
            total = total + up @ (down @ (smooth - total))
        (total * weight).sum().backward()
        torch.testing.assert_close(latent.grad, smooth.grad)

    def test_resampling_learns_and_codes_do_not(self) -> None:
        quantizer = make_quantizer()
        encoding = quantizer.encode(torch.randn(5, 4, 3))
        (encoding.latent.square().sum() + encoding.commitment.sum()).backward()
        assert all(matrix.grad.norm() > 0 for matrix in quantizer.parameters())
        assert len(list(quantizer.parameters())) == 2 * 3
        assert not quantizer.codes.requires_grad

    def test_commitment_pulls_the_latent_towards_its_codes(self) -> None:
        quantizer = MultiScaleQuantizer((4,), 8, 3)
        quantizer.codes.copy_(torch.randn(8, 3))
        latent = torch.randn(1, 4, 3, requires_grad=True)
        encoding = quantizer.encode(latent)
        encoding.commitment.sum().backward()
        expected = 2 * (latent - encoding.latent).detach() / latent.numel()
        torch.testing.assert_close(latent.grad, expected)


class TestCodebook:
    def test_equals_vector_quantize_pytorch_with_one_scale(self) -> None:
        quantizer = MultiScaleQuantizer((4,), 8, 3, codebook_decay=0.8)
        theirs = VectorQuantize(dim=3, codebook_size=8, decay=0.8, rotation_trick=False)
        start = torch.randn(1, 8, 3)
        for codebook in (quantizer.codebook._codebook, theirs._codebook):
            codebook.embed.copy_(start)
            codebook.embed_avg.copy_(10 * start)
            codebook.cluster_size.fill_(10.0)
            codebook.initted.fill_(True)
        for _ in range(5):
            latent, weight = torch.randn(6, 4, 3), torch.randn(6, 4, 3)
            ours, their = (latent.clone().requires_grad_() for _ in range(2))
            quantised, ids, commitment = theirs(their)
            encoding = quantizer.encode(ours, update_codebook=True)
            assert encoding.commitment.mean().item() == pytest.approx(commitment.item())
            ((quantised * weight).sum() + commitment.sum()).backward()
            ((encoding.latent * weight).sum() + encoding.commitment.mean()).backward()
            torch.testing.assert_close(ours.grad, their.grad)  # straight through
            assert torch.equal(encoding.token_ids[0], ids)
            torch.testing.assert_close(encoding.latent, quantised)
            torch.testing.assert_close(quantizer.codes, theirs.codebook)

    def test_all_scales_make_one_step_of_the_moving_average(self) -> None:
        quantizer = make_quantizer(decay=0.9)
        codebook = quantizer.codebook._codebook
        codebook.cluster_size.fill_(10.0)
        codebook.embed_avg.copy_(10 * codebook.embed)
        latent = torch.randn(20, 4, 3)
        before, downs = quantizer.codes.clone(), matrices(quantizer)[0]
        ids = quantizer.encode(latent).token_ids
        sums = quantizer.partial_sums([before[part] for part in ids])
        previous = [torch.zeros_like(latent), *sums[:-1]]
        vectors = [
            (down @ (latent - total)).flatten(0, 1)
            for down, total in zip(downs, previous, strict=True)
        ]
        codes_sum, counts, codes = moving_average_step(
            10 * before,
            torch.full((8,), 10.0),
            torch.cat(vectors),
            torch.cat([part.flatten() for part in ids]),
            decay=0.9,
        )
        quantizer.encode(latent, update_codebook=True)
        torch.testing.assert_close(quantizer.codes, codes)
        torch.testing.assert_close(codebook.embed_avg[0], codes_sum)
        torch.testing.assert_close(codebook.cluster_size[0], counts)

    def test_moves_only_when_asked_and_in_place(self) -> None:
        quantizer, latent = make_quantizer(), torch.randn(20, 4, 3)
        state = {key: value.clone() for key, value in quantizer.state_dict().items()}
        quantizer.encode(latent)
        assert all(torch.equal(value, state[key]) for key, value in quantizer.state_dict().items())
        places = {key: value.data_ptr() for key, value in quantizer.state_dict().items()}
        quantizer.encode(latent, update_codebook=True)
        assert not torch.equal(quantizer.codes, state["codebook._codebook.embed"][0])
        assert {key: value.data_ptr() for key, value in quantizer.state_dict().items()} == places

    @pytest.mark.parametrize("started", [True, False])
    def test_what_is_not_finite_moves_nothing(self, started: bool) -> None:
        quantizer, latent = make_quantizer(), torch.randn(20, 4, 3)
        quantizer.codebook._codebook.initted.fill_(started)
        state = {key: value.clone() for key, value in quantizer.state_dict().items()}
        latent[3, 0, 0] = torch.nan
        quantizer.encode(latent, update_codebook=True)
        assert all(torch.equal(value, state[key]) for key, value in quantizer.state_dict().items())
        with torch.no_grad():
            quantizer.scale_down[0].fill_(torch.nan)
        quantizer.encode(torch.randn(20, 4, 3), update_codebook=True)
        assert torch.equal(quantizer.codes, state["codebook._codebook.embed"][0])

    def test_a_dead_code_comes_back_among_the_data(self) -> None:
        quantizer = make_quantizer()
        codebook = quantizer.codebook._codebook
        codebook.cluster_size.fill_(10.0)
        codebook.embed_avg.copy_(10 * codebook.embed)
        codebook.embed[0, 5] = codebook.embed_avg[0, 5] = 1e3  # far from everything
        codebook.cluster_size[0, 5] = 1.0
        latent = torch.randn(20, 4, 3)
        assert not any((ids == 5).any() for ids in quantizer.encode(latent).token_ids)
        quantizer.encode(latent, update_codebook=True)
        assert quantizer.codes[5].norm() < 10
        quantizer.eval()
        codebook.cluster_size[0, 5] = 0.0
        codebook.embed_avg[0, 5] = 1e6
        quantizer.encode(latent, update_codebook=True)
        assert quantizer.codes[5].norm() > 1e3  # revival is part of training

    def test_starts_at_the_means_of_its_first_batch(self) -> None:
        quantizer = MultiScaleQuantizer((1, 2, 4), 2, 3)
        centre = torch.tensor([[5.0, 5.0, 5.0], [-5.0, -5.0, -5.0]])
        latent = centre.repeat(10, 1)[:, None] + 0.01 * torch.randn(20, 4, 3)
        assert not quantizer.codes.any()
        quantizer.encode(latent, update_codebook=True)
        found = quantizer.codes[quantizer.codes[:, 0].argsort(descending=True)]
        assert found[0].mean() > 1
        assert found[1].mean() < -1

    def test_what_is_left_over_never_grows_on_data_it_was_fitted_to(self) -> None:
        quantizer = MultiScaleQuantizer((1, 2, 3, 6), 16, 3, codebook_decay=0.8)
        latent = torch.randn(64, 6, 3).cumsum(1)
        for _ in range(50):
            quantizer.encode(latent, update_codebook=True)
        ids = quantizer.encode(latent).token_ids
        sums = quantizer.partial_sums([quantizer.lookup(part) for part in ids])
        energy = [latent.square().mean(), *((latent - total).square().mean() for total in sums)]
        assert all(finer <= coarser for coarser, finer in pairwise(energy))
        assert energy[-1] < 0.2 * energy[0]


def test_lookup_takes_any_shape() -> None:
    quantizer, ids = make_quantizer(), torch.randint(8, (2, 3, 5))
    assert torch.equal(quantizer.lookup(ids), F.embedding(ids, quantizer.codes))
