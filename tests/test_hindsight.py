"""Hindsight goals: every copy is a whole, successful episode to a place on the original's way."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mage_agent.data import dataset_from_arrays, metadata
from mage_agent.data.hindsight import add_hindsight_goals

LENGTHS = (1, 5, 12)
DISCOUNT = 0.9


@pytest.fixture
def goal_dataset() -> TensorDict:
    """Episodes on a line; step t of an episode achieves 100 * episode + t."""
    place = np.concatenate([100.0 * e + np.arange(n) for e, n in enumerate(LENGTHS)])[:, None]
    last = np.concatenate([np.arange(n) == n - 1 for n in LENGTHS])
    goal = np.full_like(place, -1)
    return dataset_from_arrays(
        {"observation": place, "achieved_goal": place, "desired_goal": goal},
        0.5 * np.sin(place),
        np.zeros(len(place)),
        np.zeros_like(last),
        last,
        next_observations={
            "observation": place + 1,
            "achieved_goal": place + 1,
            "desired_goal": goal,
        },
        discount=DISCOUNT,
    )


def test_copies_are_prefixes_that_end_at_their_goal(goal_dataset: TensorDict) -> None:
    whole = add_hindsight_goals(goal_dataset, copies=3, discount=DISCOUNT)
    count = len(goal_dataset)
    keys = goal_dataset.exclude("metadata").keys(include_nested=True, leaves_only=True)
    for key in keys:
        assert torch.equal(whole[key][:count], goal_dataset[key])
    assert metadata(whole) == metadata(goal_dataset)
    assert len(whole["episode"].unique()) == len(LENGTHS) * (1 + 3)
    for number in whole["episode"].unique()[len(LENGTHS) :]:
        copy = whole[whole["episode"] == number]
        origin = goal_dataset[goal_dataset["episode"] == (int(number)) % len(LENGTHS)]
        length = len(copy)
        assert 1 <= length <= len(origin)
        for key in ("observation", "action", "step_count", ("next", "achieved_goal")):
            assert torch.equal(copy[key], origin[key][:length])
        reached = copy["next", "achieved_goal"][-1]
        assert (copy["desired_goal"] == reached).all()
        assert (copy["next", "desired_goal"] == reached).all()
        last = torch.arange(length)[:, None] == length - 1
        assert torch.equal(copy["next", "reward"], last.float())
        for flag in ("terminated", "done"):
            assert torch.equal(copy["next", flag], last)
        assert not copy["next", "truncated"].any()
        steps_left = torch.arange(length - 1, -1, -1)[:, None]
        torch.testing.assert_close(copy["return_to_go"], DISCOUNT**steps_left)


def test_goals_are_drawn_from_the_whole_way_by_the_seed(goal_dataset: TensorDict) -> None:
    def kept(seed: int) -> list[int]:
        whole = add_hindsight_goals(goal_dataset, copies=200, discount=DISCOUNT, seed=seed)
        copies = whole["episode"][len(goal_dataset) :]
        return copies.unique(return_counts=True)[1][2 :: len(LENGTHS)].tolist()

    assert kept(0) == kept(0) != kept(1)
    assert set(kept(0)) == set(range(1, LENGTHS[2] + 1))


def test_what_has_no_goals_or_dense_rewards_is_refused(
    goal_dataset: TensorDict, toy_dataset: TensorDict
) -> None:
    with pytest.raises(ValueError, match="lacks \\['achieved_goal', 'desired_goal'\\]"):
        add_hindsight_goals(toy_dataset, copies=1, discount=DISCOUNT)
    goal_dataset["next", "reward"][3] = -2.0
    with pytest.raises(ValueError, match=r"rewards of 0 and 1.*\[-2.0, 0.0\]"):
        add_hindsight_goals(goal_dataset, copies=1, discount=DISCOUNT)
