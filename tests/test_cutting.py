"""Episodes that are cut to the length of an evaluation's, or by what they head for."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from mage_agent.data import (
    check_dataset,
    cut_episodes,
    dataset_from_arrays,
    first_steps,
    returns_to_go,
    split_goals,
    step_limit,
)
from tests.gac.tiny import tiny_config


def endless(*lengths: int, limit: int | None = None) -> TensorDict:
    """Episodes of a number that counts up; the reward of every step is 1."""
    last = np.concatenate([np.arange(n) == n - 1 for n in lengths])
    count = np.concatenate([np.arange(n + 1, dtype=np.float32)[:-1] for n in lengths])
    terminated = last & (np.arange(len(last)) == len(last) - 1)
    dataset = dataset_from_arrays(
        count[:, None],
        np.linspace(-1, 1, len(last), dtype=np.float32)[:, None],
        np.ones(len(last), np.float32),
        terminated,
        last & ~terminated,
        next_observations=count[:, None] + 1,
    )
    facts = dict(dataset.get_non_tensor("metadata"))
    if limit is not None:
        facts["env_spec"] = json.dumps({"id": "a", "max_episode_steps": limit})
    dataset.set_non_tensor("metadata", facts)
    return dataset


def test_long_episodes_become_whole_pieces() -> None:
    dataset = endless(25, 3, 10, 21)
    cut = cut_episodes(dataset, 10)
    check_dataset(cut)
    assert cut["episode"].bincount().tolist() == [10, 10, 3, 10, 10, 10]
    assert cut["observation"].flatten().tolist() == [
        *range(20),
        *range(3),
        *range(10),
        *range(20),
    ]
    starts = (cut["step_count"].flatten() == 0).nonzero().flatten()
    assert starts.tolist() == [0, 10, 20, 23, 33, 43]
    assert cut["next", "done"].flatten().nonzero().flatten().tolist() == [9, 19, 22, 32, 42, 52]
    assert cut["next", "terminated"].sum() == 0, "the last step was left over"
    assert torch.equal(cut["next", "done"], cut["next", "truncated"])
    assert dataset["episode"].bincount().tolist() == [25, 3, 10, 21], "it stays as it is"
    assert cut_episodes(cut, 10) is cut


def test_an_end_that_a_piece_meets_stays_what_it_was() -> None:
    cut = cut_episodes(endless(20), 10)
    assert cut["next", "terminated"].flatten().nonzero().flatten().tolist() == [19]
    assert cut["next", "truncated"].flatten().nonzero().flatten().tolist() == [9]


def test_a_part_of_a_run_is_cut_from_where_it_begins() -> None:
    part = endless(40)[13:]
    cut = cut_episodes(part, 10)
    assert cut["observation"].flatten().tolist() == list(range(13, 33))
    assert (cut["step_count"].flatten() == 0).nonzero().flatten().tolist() == [0, 10]


def heading(goals: list[int], *lengths: int) -> TensorDict:
    """Episodes whose steps head for goals of these numbers."""
    dataset = endless(*lengths)
    goal = torch.tensor(goals, dtype=torch.float32)
    dataset["infos", "goal"] = torch.stack([torch.zeros_like(goal), goal], dim=1)
    return dataset


def test_episodes_end_where_the_goal_changes() -> None:
    dataset = heading([1, 1, 2, 2, 2, 1, 1, 3, 3], 6, 3)
    split = split_goals(dataset)
    check_dataset(split)
    assert split["episode"].tolist() == [0, 0, 1, 1, 1, 2, 3, 4, 4]
    assert split["step_count"].flatten().tolist() == [0, 1, 0, 1, 2, 0, 0, 0, 1]
    ends = torch.tensor([0, 1, 0, 0, 1, 1, 1, 0, 1], dtype=torch.bool)
    assert torch.equal(split["next", "done"].flatten(), ends)
    assert split["next", "terminated"].flatten().tolist() == [False] * 8 + [True]
    assert torch.equal(
        split["next", "truncated"], split["next", "done"] & ~split["next", "terminated"]
    )
    assert torch.equal(split["next", "observation"], dataset["next", "observation"])
    assert dataset["episode"].max() == 1, "the dataset stays as it is"
    assert split_goals(split) is split


def test_who_has_arrived_stays_for_the_rest_of_an_evaluation() -> None:
    dataset = heading([1, 1, 2, 2, 2, 3, 3, 3, 3], 9)
    dataset["next", "reward"] = torch.tensor([0, 2, 0, 0, -1, 1, 1, 1, 1.0])[:, None]
    kept = dataset["next", "reward"].clone()
    split = split_goals(dataset, 4)
    # Of 4 steps, the first part's last one stands for 3, the second's for 2, the run's for itself.
    assert split["next", "reward"].flatten().tolist() == [0, 6, 0, 0, -2, 1, 1, 1, 1]
    assert torch.equal(dataset["next", "reward"], kept), "the dataset stays as it is"
    assert torch.equal(split_goals(dataset)["next", "reward"], kept), "it names no limit"
    facts = dataset.get_non_tensor("metadata") | {"env_spec": json.dumps({"max_episode_steps": 4})}
    named = dataset.exclude("metadata").set_non_tensor("metadata", facts)
    assert torch.equal(split_goals(named)["next", "reward"], split["next", "reward"])
    assert torch.equal(split_goals(dataset, 2)["next", "reward"], kept), "nothing is left"
    with pytest.raises(ValueError, match="steps is 0"):
        split_goals(dataset, 0)
    assert torch.equal(split_goals(dataset, 1)["next", "reward"], kept)


def test_all_parts_of_an_episode_are_on_one_scale() -> None:
    dataset = heading([1, 1, 2, 2, 3, 1, 1, 2, 2, 5, 5], 5, 4, 2)
    dataset["next", "reward"] = -torch.ones(11, 1)
    split = split_goals(dataset, 10)
    count = split["episode"].unique(return_counts=True)[1]
    returns = returns_to_go(split["next", "reward"], split["episode"], 1.0)
    firsts = returns[split["step_count"].flatten() == 0].flatten().tolist()
    assert count.tolist() == [2, 2, 1, 2, 2, 2]
    assert firsts == [-10, -10, -10, -10, -10, -2], "the last one terminates"


def test_a_part_of_a_run_is_split_from_where_it_begins_to_its_last_goal() -> None:
    split = split_goals(heading([1, 1, 1, 2, 2, 3, 3, 4], 8)[1:7])
    assert split["episode"].tolist() == [0, 0, 1, 1]
    assert split["step_count"].flatten().tolist() == [0, 1, 0, 1]
    assert split["next", "done"].flatten().tolist() == [False, True, False, True]
    kept = first_steps(heading([1, 1, 1, 2, 2, 3, 3, 4], 8), 7)  # says that it is cut off
    assert split_goals(kept)["episode"].tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_episodes_that_are_not_split_keep_their_counts() -> None:
    part = heading([1, 1, 1, 1, 2, 2, 3, 3], 4, 4)[1:]
    split = split_goals(part)
    assert split["episode"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert split["step_count"].flatten().tolist() == [1, 2, 3, 0, 1, 0, 1]


def test_episodes_of_slices_stay_apart() -> None:
    whole = heading([1, 1, 2, 2, 5, 6, 7, 7, 8, 8], 6, 4)
    joined = torch.cat([whole[:4].exclude("metadata"), whole[6:].exclude("metadata")])
    split = split_goals(joined)
    assert split["episode"].tolist() == [0, 0, 2, 2, 3, 3], "the cut-off second part is dropped"
    assert split["step_count"].flatten().tolist() == [0, 1] * 3


def test_without_goals_nothing_is_split() -> None:
    dataset = endless(5, 3)
    assert split_goals(dataset) is dataset
    constant = heading([1] * 5 + [2] * 3, 5, 3)
    assert split_goals(constant) is constant


@pytest.mark.parametrize(("split", "episodes"), [(True, 4), (False, 2)])
def test_gac_plans_for_one_goal_at_a_time(split: bool, episodes: int) -> None:
    from mage_agent.gac.model import GACModel

    dataset = heading([1, 1, 2, 2, 2, 1, 1, 1, 1], 6, 3)
    model = GACModel.from_dataset(dataset, tiny_config(split_goals=split), seed=0)
    assert int(model.trajectories(dataset)["episode"][-1]) + 1 == episodes
    assert int(model.longest) == (3 if split else 6)


def test_the_first_steps_end_their_episode_by_truncation() -> None:
    part = first_steps(endless(5, 4), 7)
    check_dataset(part)
    assert part["next", "truncated"].flatten().nonzero().flatten().tolist() == [4, 6]


@pytest.mark.parametrize("cut", [cut_episodes, first_steps])
def test_what_cannot_be_cut_is_refused(cut: Callable[[Any, int], TensorDictBase]) -> None:
    dataset = endless(5)
    for steps in (0, -3):
        with pytest.raises(ValueError, match=rf"steps is {steps}; it must be at least 1\."):
            cut(dataset, steps)
    with pytest.raises(TypeError, match=r"the dataset is a int, needed is the TensorDict"):
        cut(3, 5)
    with pytest.raises(KeyError, match=r"the dataset lacks episode"):
        cut(dataset.exclude("episode"), 5)


def test_episodes_are_cut_to_the_environments_limit_by_default() -> None:
    dataset = endless(25, limit=10)
    assert torch.equal(cut_episodes(dataset)["episode"], cut_episodes(dataset, 10)["episode"])
    unlimited = endless(25, limit=None)
    assert cut_episodes(unlimited) is unlimited


@pytest.mark.parametrize("limit", [None, 10])
def test_the_step_limit_is_the_environments(limit: int | None) -> None:
    assert step_limit(endless(5, limit=limit)) == limit


def test_gac_learns_from_the_pieces_of_a_run() -> None:
    from mage_agent.gac.model import GACModel

    dataset = endless(45, limit=10)
    model = GACModel.from_dataset(dataset, tiny_config())
    assert int(model.longest) == 10
    assert model.returns.unique().tolist() == [10.0], "of a piece, not of the run"
    assert model.units.default_target == 10.0
    with pytest.warns(UserWarning, match="all 4 episodes"):
        (stage,) = model.stages(dataset)
    batch = next(stage.batches())
    assert batch["collector", "mask"].sum(1).tolist() == [10] * 4
    model = GACModel.from_dataset(dataset, tiny_config(trajectory_steps=15))
    assert int(model.longest) == 15
    with pytest.warns(UserWarning, match="all 3 episodes"):
        model.stages(dataset)
    assert np.isfinite(list(model.describe(dataset[3:]).values())).all()
