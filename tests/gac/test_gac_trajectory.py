"""The steps drawn of a trajectory: unbiased, with all the past that their outputs depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mage_agent.gac.trajectory import draw_steps
from tests.gac.tiny import tiny_trajectories


def every_offset(
    length: int, longest: int, window: int | None, reach: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What is drawn of one trajectory from each of its steps on; one row for each."""
    share = (torch.arange(length) + 0.5) / length
    return draw_steps(
        torch.full((length,), length), longest=longest, window=window, reach=reach, share=share
    )


sizes = st.integers(1, 40)


@settings(deadline=None)
@given(length=sizes, extra=st.integers(0, 20), window=st.none() | sizes, reach=st.integers(1, 6))
def test_every_step_counts_once_on_average(
    length: int, extra: int, window: int | None, reach: int
) -> None:
    index, _, weight = every_offset(length, length + extra, window, reach)
    values = torch.randn(length, generator=torch.Generator().manual_seed(0)).double()
    estimates = (weight * values[index]).sum((1, 2))
    torch.testing.assert_close(estimates.mean(), values.sum())
    times = torch.zeros(length).double().index_add_(0, index.flatten(), weight.double().flatten())
    torch.testing.assert_close(times / length, torch.ones(length).double())


@settings(deadline=None)
@given(length=sizes, extra=st.integers(0, 20), window=st.none() | sizes, reach=st.integers(1, 6))
def test_the_past_that_a_step_looks_back_on_is_its_own(
    length: int, extra: int, window: int | None, reach: int
) -> None:
    index, history, weight = every_offset(length, length + extra, window, reach)
    rows, pieces, places = weight.nonzero(as_tuple=True)
    for row, piece, place in zip(rows.tolist(), pieces.tolist(), places.tolist(), strict=True):
        step, back = int(index[row, piece, place]), int(history[row, piece, place])
        assert back >= min(step, reach - 1), "as far back as its outputs depend on"
        assert back <= step, "not beyond the episode's beginning"
        seen = index[row, piece, place - back : place + 1].tolist()
        assert seen == list(range(step - back, step + 1))


@pytest.mark.parametrize("window", [None, 20, 30])
def test_a_short_trajectory_is_taken_whole(window: int | None) -> None:
    share = torch.tensor([0.7, 0.1])
    index, _, weight = draw_steps(
        torch.tensor([13, 1]), longest=30, window=window, reach=1, share=share
    )
    for row, length in ((0, 13), (1, 1)):
        assert index[row][weight[row] > 0].tolist() == list(range(length))
        assert set(weight[row].unique().tolist()) <= {0.0, 1.0}


def test_one_step_pieces_spread_over_the_whole_trajectory() -> None:
    index, _, weight = draw_steps(
        torch.tensor([100]), longest=100, window=10, reach=1, share=torch.tensor([0.034])
    )
    assert sorted(index.flatten().tolist()) == [3, 13, 23, 33, 43, 53, 63, 73, 83, 93]
    assert weight.flatten().tolist() == [10.0] * 10


def test_padding_never_reaches_a_sum() -> None:
    trajectories = tiny_trajectories()
    index, history, weight = draw_steps(
        trajectories.length, longest=12, window=None, reach=3, share=torch.zeros(1)
    )
    steps = trajectories.take(index, history, weight)
    total = steps.total(steps.action.sum(-1))
    slow = [trajectories.action[row, :length].sum() for row, length in enumerate((12, 5, 1, 9))]
    torch.testing.assert_close(total, torch.stack(slow))
