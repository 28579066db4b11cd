"""Goals in hindsight: what a copy keeps, what it is rewarded for, and where it ends."""

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from mage_agent.data import check_dataset, relabel_goals, split_goals

RADIUS = 1.5


def line(lengths: tuple[int, ...], *, before: bool = False, ends: bool = False) -> TensorDict:
    """Points that move one metre a step along a line, past a goal or up to it."""
    rows = []
    for number, length in enumerate(lengths):
        place = torch.arange(length + 1.0)[:, None] + 10 * number
        goal = torch.full((length, 1), 10.0 * number + length - (0 if ends else 3))
        achieved = place[:-1] if before else place[1:]
        near = (achieved - goal).abs() <= RADIUS
        if ends:  # at the first step that arrives
            length = int(near.flatten().nonzero()[0]) + 1
        last = torch.arange(length)[:, None] == length - 1
        seen = {"observation": place[:-1], "achieved_goal": place[:-1], "desired_goal": goal}
        then = {"observation": place[1:], "achieved_goal": place[1:], "desired_goal": goal}
        outcome = {
            "reward": near[:length].float() - 1,
            "terminated": last & ends,
            "truncated": last & (not ends),
            "done": last,
        }
        rows.append(
            {
                **{key: value[:length] for key, value in seen.items()},
                "action": torch.ones(length, 1),
                "episode": torch.full((length,), number),
                "step_count": torch.arange(length)[:, None],
                "next": {**{key: value[:length] for key, value in then.items()}, **outcome},
            }
        )
    data = torch.cat([TensorDict(row, [len(row["action"])]) for row in rows])
    facts = {"dataset_id": "line", "action_low": [-1.0], "action_high": [1.0]}
    return data.set_non_tensor("metadata", facts)


def distance(achieved: Tensor, desired: Tensor) -> Tensor:
    return (achieved - desired).norm(dim=-1)


@pytest.mark.parametrize("before", [False, True])
def test_copies_are_rewarded_for_a_place_of_their_own(before: bool) -> None:
    data = line((8, 12), before=before)
    told = relabel_goals(data, 3, seed=1)
    check_dataset(told)
    assert len(told) == 4 * len(data)
    assert told["episode"].unique().tolist() == list(range(8))
    assert told.get_non_tensor("metadata") == data.get_non_tensor("metadata")
    goals = set()
    for copy in range(4):
        part = told[copy * 20 : copy * 20 + 20]
        for key in ("observation", "achieved_goal", "action", "step_count", ("next", "done")):
            assert torch.equal(part[key], data[key])
        assert torch.equal(part["desired_goal"], part["next", "desired_goal"])
        side = part if before else part["next"]
        near = distance(side["achieved_goal"], part["desired_goal"]) <= RADIUS
        assert torch.equal(part["next", "reward"].flatten(), near.float() - 1)
        for episode in part["episode"].unique():
            own = part[part["episode"] == episode]
            (goal,) = own["desired_goal"].unique()
            assert copy == 0 or goal in own["next", "achieved_goal"]
            goals.add(float(goal))
    assert len(goals) > 4


@pytest.mark.parametrize("width", [1, 2])
def test_a_copy_heads_for_its_goal_and_no_other(width: int) -> None:
    data = line((8, 12))
    heading = torch.arange(20.0)[:, None].expand(-1, width)  # a collector that changed its mind
    data["infos"] = TensorDict({"goal": heading.clone()}, [20])
    told = relabel_goals(data, 2)
    copies = split_goals(told[20:])
    assert copies["episode"].unique().numel() == 4
    if width == 1:
        assert torch.equal(copies["infos", "goal"], copies["desired_goal"])
    assert torch.equal(data["infos", "goal"], heading), "the dataset stays as it is"


def test_a_copy_ends_where_reaching_the_goal_ends_episodes() -> None:
    data = line((8, 12, 5), ends=True)
    told = relabel_goals(data, 20)
    check_dataset(told)
    assert len(told) < 21 * len(data)
    for episode in told["episode"].unique():
        own = told[told["episode"] == episode]
        assert own["next", "terminated"].flatten().tolist() == [False] * (len(own) - 1) + [True]
        near = distance(own["next", "achieved_goal"], own["desired_goal"]) <= RADIUS
        assert near.tolist() == [False] * (len(own) - 1) + [True]


@pytest.mark.parametrize("high", [1.0, 0.0])
def test_another_rewards_numbers_end_copies_where_they_reach_the_goal(high: float) -> None:
    """Data of -1 and 0, told by a reward of 0 and 1, or the other way round."""
    data = line((8, 12, 5), ends=True)
    if high == 0:
        data["next", "reward"] += 1

    def reward(achieved: Tensor, goal: Tensor) -> Tensor:
        return (distance(achieved, goal) <= RADIUS).float() - 1 + high

    own, by_distance = relabel_goals(data, 5, reward=reward), relabel_goals(data, 5)
    assert torch.equal(own["next", "terminated"], by_distance["next", "terminated"])
    assert torch.equal(own["episode"], by_distance["episode"])
    copies = own[len(data) :]["next"]
    assert torch.equal(copies["reward"] == high, copies["terminated"])


@pytest.mark.parametrize("dense", [False, True])
def test_a_dense_reward_ends_copies_as_near_to_their_goals_as_the_data_end(dense: bool) -> None:
    """Whether the rewards of the data, too, are dense, or say where a goal was reached."""
    data = line((8, 12, 5), ends=True)
    by_distance = relabel_goals(data, 20)
    if dense:
        following = data["next"]
        following["reward"] = -distance(following["achieved_goal"], data["desired_goal"])[:, None]
    told = relabel_goals(data, 20, reward=lambda *goals: -distance(*goals))
    check_dataset(told)
    assert torch.equal(told["next", "terminated"], by_distance["next", "terminated"])
    assert torch.equal(told["episode"], by_distance["episode"])


@pytest.mark.parametrize("fell", [False, True])
def test_a_reward_that_does_not_say_where_copies_end_is_refused(fell: bool) -> None:
    data = line((8, 12, 5), ends=True)
    following = data["next"]
    following["reward"] = -distance(following["achieved_goal"], data["desired_goal"])[:, None]
    if fell:  # one episode ends far from its goal
        data = data[torch.arange(len(data)) != 6]
        data["next", "terminated"][5] = data["next", "done"][5] = True
    else:  # one goes on where the others end
        following["terminated"][6] = False
        following["truncated"][6] = True
    check_dataset(data)
    with pytest.raises(ValueError, match=rf"by reward= \d+ others, too, have -{1 + fell}"):
        relabel_goals(data, 1, reward=lambda *goals: -distance(*goals))


def test_failures_stay_failures_and_goals_still_end_copies() -> None:
    data = line((8, 12, 5), ends=True)
    last = (data["episode"] == 0).nonzero().max()
    failed = data[torch.arange(len(data)) != last]  # the first episode ends before its goal
    failed["next", "terminated"][last - 1] = failed["next", "done"][last - 1] = True
    told = relabel_goals(failed, 20)
    check_dataset(told)
    ends = 0
    for episode in told["episode"].unique()[3:]:
        own = told[told["episode"] == episode]
        near = distance(own["next", "achieved_goal"], own["desired_goal"]) <= RADIUS
        whole = len(own) == int(last) and episode % 3 == 0
        assert own["next", "terminated"].flatten().tolist() == [False] * (len(own) - 1) + [True]
        assert near[:-1].sum() == 0
        assert near[-1] or whole
        ends += bool(near[-1])
    assert ends > 50


def test_the_seed_decides_and_the_data_stay() -> None:
    data = line((8, 12))
    before = data.clone()
    runs = [relabel_goals(data, 2, seed=seed)["desired_goal"] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert (data == before).all()
    assert torch.equal(relabel_goals(data, 0)["desired_goal"], before["desired_goal"])


def test_a_reward_of_ones_own() -> None:
    data = line((8, 12))
    data["next", "reward"] -= data["next", "achieved_goal"] - data["desired_goal"]  # no two numbers
    with pytest.raises(ValueError, match=r"different ones from .* give reward="):
        relabel_goals(data)
    told = relabel_goals(data, 1, reward=lambda *goals: -distance(*goals).numpy())[20:]
    expected = -distance(told["next", "achieved_goal"], told["desired_goal"])
    assert torch.equal(told["next", "reward"].flatten(), expected)


def test_bad_input_is_named(toy_dataset: TensorDict) -> None:
    with pytest.raises(ValueError, match=r"has no \['achieved_goal', 'desired_goal'\] to relabel"):
        relabel_goals(toy_dataset)
    with pytest.raises(ValueError, match=r"copies is -1; it must be at least 0"):
        relabel_goals(line((8,)), -1)
    data = line((8, 12))
    data["next", "reward"][0] = 0.0  # rewarded beyond the radius
    with pytest.raises(
        ValueError,
        match=r"2 different ones from -1 to 0, are not one within a distance .* give reward=",
    ):
        relabel_goals(data)
    with pytest.raises(TypeError, match=r"the dataset is a int"):
        relabel_goals(3)
