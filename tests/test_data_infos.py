"""What whoever collected data headed for: infos/goal, read from every kind of source."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict

from mage_agent.data import check_dataset, dataset_from_arrays, load_dataset, split_goals
from tests.conftest import OBSERVATION_SIZE

Arrays = dict[str, NDArray[Any]]
GOAL = ("infos", "goal")


@pytest.fixture
def goals(toy_dataset: TensorDict) -> NDArray[np.float32]:
    return np.arange(2 * len(toy_dataset), dtype=np.float32).reshape(-1, 2)


def arrays(dataset: TensorDict) -> list[NDArray[Any]]:
    keys: list[Any] = ["observation", "action", ("next", "reward"), ("next", "terminated")]
    return [dataset[key].numpy() for key in (*keys, ("next", "truncated"))]


def test_of_arrays(toy_dataset: TensorDict, goals: NDArray[np.float32]) -> None:
    dataset = dataset_from_arrays(*arrays(toy_dataset), goals=goals)
    assert torch.equal(dataset[GOAL], torch.from_numpy(goals))
    assert GOAL not in toy_dataset.keys(include_nested=True)
    with pytest.raises(ValueError, match=rf"'goals': {len(goals) - 1}"):
        dataset_from_arrays(*arrays(toy_dataset), goals=goals[1:])
    goals[3, 1] = np.nan
    with pytest.raises(ValueError, match="infos/goal holds 1 values that are not finite"):
        dataset_from_arrays(*arrays(toy_dataset), goals=goals)


def test_of_a_tensordict(toy_dataset: TensorDict, goals: NDArray[np.float32]) -> None:
    toy_dataset[GOAL] = torch.from_numpy(goals).double()
    dataset = load_dataset(toy_dataset)
    assert dataset[GOAL].dtype == torch.float32
    assert dataset[GOAL].tolist() == goals.tolist()
    assert load_dataset(dataset[:10])[GOAL].tolist() == goals[:10].tolist()
    toy_dataset["infos"] = torch.zeros(len(toy_dataset), 2)  # somebody else's
    assert GOAL not in load_dataset(toy_dataset).keys(include_nested=True)
    assert split_goals(toy_dataset) is toy_dataset


def test_of_d4rls_files(
    toy_dataset: TensorDict, goals: NDArray[np.float32], tmp_path: Path
) -> None:
    columns = ("observations", "actions", "rewards", "terminals", "timeouts")
    with h5py.File(tmp_path / "toy.hdf5", "w") as file:
        for name, column in zip(columns, arrays(toy_dataset), strict=True):
            file[name] = column.squeeze(-1) if name in columns[2:] else column
        file["infos/goal"] = goals
    assert load_dataset(tmp_path / "toy.hdf5")[GOAL].tolist() == goals.tolist()
    missing = goals.copy()
    missing[3, 1] = np.nan
    for other in (missing, goals[:, 0], np.array([b"red"] * len(goals))):  # no goals of ours
        with h5py.File(tmp_path / "toy.hdf5", "a") as file:
            del file["infos/goal"]
            file["infos/goal"] = other
        assert GOAL not in load_dataset(tmp_path / "toy.hdf5").keys(include_nested=True)
    with h5py.File(tmp_path / "toy.hdf5", "a") as file:
        del file["infos/goal"]
        file["infos/goal"] = goals[:-1]
    with pytest.raises(ValueError, match="infos/goal"):
        load_dataset(tmp_path / "toy.hdf5")


@pytest.mark.parametrize("more", [0, 1])  # with and without what reset returned
def test_of_minari(
    more: int,
    toy_episodes: list[Arrays],
    make_minari: Callable[..., minari.MinariDataset],
) -> None:
    space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,))
    goals = []
    for number, episode in enumerate(toy_episodes):
        steps = len(episode["rewards"])
        goal = number + np.arange(2.0 * (steps + more)).reshape(-1, 2)
        episode["infos"] = {"goal": goal, "other": np.zeros(steps)}  # type: ignore[assignment]
        goals.append(goal[:steps])
    dataset = load_dataset(make_minari(toy_episodes, space))
    check_dataset(dataset)
    assert dataset[GOAL].tolist() == np.concatenate(goals).tolist()
    toy_episodes[1]["infos"] = {"goal": goals[1][:-1]}  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"episode 1 has \d+ steps but \d+ rows of infos/goal"):
        load_dataset(make_minari(toy_episodes, space, dataset_id="toy/short-v0"))
    del toy_episodes[1]["infos"]
    dataset = load_dataset(make_minari(toy_episodes, space, dataset_id="toy/without-v0"))
    assert GOAL not in dataset.keys(include_nested=True)
