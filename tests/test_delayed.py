"""Only whole trajectories have a return."""

import pytest
import torch
from tensordict import TensorDict

from mage_agent.data import returns_to_go
from mage_agent.data.delayed import delayed_rewards


def test_returns_stay_and_step_rewards_go(toy_dataset: TensorDict) -> None:
    before = toy_dataset.clone()
    delayed = delayed_rewards(toy_dataset)
    last = delayed["next", "done"].flatten()
    assert delayed["next", "reward"][~last].abs().sum() == 0
    for number in range(int(toy_dataset["episode"].max()) + 1):
        rows = toy_dataset["episode"] == number
        total = toy_dataset["next", "reward"][rows].double().sum()
        torch.testing.assert_close(delayed["next", "reward"][rows & last].double().sum(), total)
    starts = toy_dataset["step_count"].flatten() == 0
    for data in (toy_dataset, delayed):
        found = returns_to_go(data["next", "reward"], data["episode"], 1.0)[starts]
        expected = returns_to_go(before["next", "reward"], before["episode"], 1.0)[starts]
        torch.testing.assert_close(found, expected)
    assert torch.equal(toy_dataset["next", "reward"], before["next", "reward"])
    assert delayed.get_non_tensor("metadata") == before.get_non_tensor("metadata")


def test_what_is_no_dataset_is_refused() -> None:
    with pytest.raises(TypeError, match=r"the dataset is a int, needed is the TensorDict"):
        delayed_rewards(3)


def test_a_part_of_an_episode_keeps_its_own_return(toy_dataset: TensorDict) -> None:
    part = toy_dataset[1:-1]
    late = delayed_rewards(part)["next", "reward"]
    for number in part["episode"].unique():
        rows = part["episode"] == number
        torch.testing.assert_close(late[rows].sum(), part["next", "reward"][rows].sum())
        torch.testing.assert_close(late[rows][-1].sum(), late[rows].sum())
