"""Transformer: no scale sees a finer one, a cache changes nothing, the condition gets through."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mage_agent import MAGEModel
from tests.tiny import SCALES, STATE, tiny_model

V, C = 8, 4
Inputs = tuple[list[Tensor], Tensor, Tensor]


def exact_model(**changes: Any) -> MAGEModel:
    """In float64, where two ways to the same number agree to many digits."""
    return tiny_model(num_blocks=2, **changes).double()


def inputs(batch: int = 5) -> Inputs:
    """Codes of every scale, state and return."""
    codes = [torch.randn(batch, length, C).double() for length in SCALES]
    state, target = torch.randn(batch, STATE).double(), torch.randn(batch, 1).double()
    return codes, state, target


class TestScaleCausality:
    @pytest.mark.parametrize("moved", range(3))
    def test_no_scale_hears_of_itself_or_a_finer_one(self, moved: int) -> None:
        model, (codes, *condition) = exact_model(), inputs()
        before = model.logits(codes, *condition)
        codes[moved] = codes[moved] + torch.randn_like(codes[moved])
        after = model.logits(codes, *condition)
        for k in range(3):
            assert torch.equal(before[k], after[k]) == (k <= moved)

    @pytest.mark.parametrize("scale", range(3))
    def test_the_networks_inputs_are_seen_up_to_the_own_scale(self, scale: int) -> None:
        transformer = exact_model().transformer
        x = torch.randn(2, sum(SCALES), C, dtype=torch.float64, requires_grad=True)
        condition = transformer.condition(*(torch.randn(2, n).double() for n in (STATE, 1, 1)))
        logits, _ = transformer(x, condition)
        here = slice(transformer.starts[scale], transformer.ends[scale])
        logits[:, here].square().sum().backward()
        seen = x.grad.abs().sum((0, 2)) > 0
        assert seen[: transformer.ends[scale]].all()  # its own scale too, all tokens at once
        assert not seen[transformer.ends[scale] :].any()


class TestGeneration:
    @pytest.mark.parametrize("changes", [{}, {"code_temperature": 1.0}])
    def test_cached_equals_uncached(self, changes: dict[str, Any]) -> None:
        model, (_, state, target) = exact_model(**changes), inputs()
        chosen: list[Tensor] = []

        def choose(logits: Tensor) -> Tensor:
            chosen.append(model.choose(logits))
            return chosen[-1]

        scores, sums = model.generate(state, target, choose)
        torch.testing.assert_close(scores, list(model.logits(chosen, state, target)))
        torch.testing.assert_close(sums, model.quantizer.partial_sums(chosen))

    def test_permuting_the_batch_permutes_the_result(self) -> None:
        model, (codes, state, target), order = exact_model(), inputs(), torch.randperm(5)
        logits = model.logits(codes, state, target)
        shuffled = model.logits([c[order] for c in codes], state[order], target[order])
        torch.testing.assert_close(shuffled, tuple(part[order] for part in logits))
        scores, sums = model.generate(state, target, model.choose)
        scores2, sums2 = model.generate(state[order], target[order], model.choose)
        torch.testing.assert_close(scores2, [part[order] for part in scores])
        torch.testing.assert_close(sums2, [part[order] for part in sums])

    def test_greedy_is_deterministic_and_keeps_no_state(self) -> None:
        model, (_, state, target) = exact_model(), inputs()
        first, _ = model.generate(state, target, model.choose)
        model.generate(-state, target, model.choose)
        again, _ = model.generate(state, target, model.choose)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_shapes(self) -> None:
        model, (codes, state, target) = exact_model(), inputs()
        logits = model.logits(codes, state, target)
        assert [part.shape for part in logits] == [(5, length, V) for length in SCALES]
        scores, sums = model.generate(state, target, model.choose)
        assert [part.shape for part in scores] == [(5, length, V) for length in SCALES]
        assert [part.shape for part in sums] == [(5, SCALES[-1], C)] * 3


class TestCondition:
    def test_state_and_return_reach_every_scale(self) -> None:
        model, (codes, state, target) = exact_model(), inputs()
        before = model.logits(codes, state, target)
        for changed in ((-state, target), (state, -target)):
            after = model.logits(codes, *changed)
            assert all((a != b).any() for a, b in zip(before, after, strict=True))

    def test_a_withheld_return_does_not_matter_and_is_not_a_return_of_zero(self) -> None:
        transformer, (codes, state, target) = exact_model().transformer, inputs()
        x = torch.cat(codes, dim=1)

        def logits(target: Tensor, known: float) -> Tensor:
            told = torch.full_like(target, known)
            scores: Tensor = transformer(x, transformer.condition(state, target, told))[0]
            return scores

        untold = logits(target, 0.0)
        assert torch.equal(untold, logits(-5 * target, 0.0))
        assert (untold != logits(torch.zeros_like(target), 1.0)).any(-1).all()

    @pytest.mark.parametrize(
        ("sites", "depends"),
        [
            (("first_scale", "finer_scales"), [True, True, True]),
            (("first_scale",), [True, False, False]),
            (("finer_scales",), [False, True, True]),
            ((), [False, False, False]),
        ],
    )
    def test_the_return_conditions_where_it_is_told_to(
        self, sites: tuple[str, ...], depends: list[bool]
    ) -> None:
        model, (codes, state, target) = exact_model(return_conditioning=sites), inputs()
        if sites == ("first_scale",):  # finer scales attend to the first, so ask them alone
            model.transformer.blocks = torch.nn.ModuleList()
        before = model.logits(codes, state, target)
        after = model.logits(codes, state, -target)
        assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == depends

    def test_dropout_acts_in_training_only(self) -> None:
        model, (codes, *condition) = exact_model(dropout=0.5), inputs()
        assert torch.equal(model.logits(codes, *condition)[2], model.logits(codes, *condition)[2])
        model.train()
        assert (model.logits(codes, *condition)[2] != model.logits(codes, *condition)[2]).any()
