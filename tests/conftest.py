"""Shared fixtures: tiny datasets with known contents, seeded generators, real datasets if there."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray
from tensordict import TensorDict

from mage_agent.data import dataset_from_arrays

# Minari would ask the Hugging Face hub six times, with pauses between, before it gives up.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Read before any test changes it.
REAL_DATASETS = Path(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")).expanduser()

# A one-step episode, one shorter, one as long and some longer than a window of 24 steps.
LENGTHS = (1, 7, 30, 2, 24, 25, 60)
TERMINATED = (True, False, True, True, False, False, True)
OBSERVATION_SIZE, ACTION_SIZE = 3, 2
MAZE = "local/pointmaze/tiny-v0"

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(autouse=True)
def _own_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the datasets of this machine, or leaves its own there."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))


@pytest.fixture
def real_dataset(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], minari.MinariDataset]:
    """Return a function that loads a Minari dataset of this machine, or skips the test."""

    def load(dataset_id: str) -> minari.MinariDataset:
        if not (REAL_DATASETS / dataset_id / "data").is_dir():
            pytest.skip(f"the Minari dataset {dataset_id} is not in {REAL_DATASETS}")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(REAL_DATASETS))
        return minari.load_dataset(dataset_id)

    return load


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def toy_episodes(rng: np.random.Generator) -> list[Arrays]:
    """Seven episodes of a point pulled about; observations have one row more than actions."""
    episodes = []
    for length, terminated in zip(LENGTHS, TERMINATED, strict=True):
        action = rng.uniform(-1, 1, size=(length, ACTION_SIZE))
        drift = np.concatenate([action, action.sum(1, keepdims=True)], axis=1)
        observation = np.cumsum(np.concatenate([rng.normal(size=(1, 3)), 0.1 * drift]), axis=0)
        last = np.arange(length) == length - 1
        episodes.append(
            {
                "observations": observation.astype(np.float32),  # (T + 1, 3)
                "actions": action.astype(np.float32),  # (T, 2)
                "rewards": -np.abs(observation[1:]).sum(1),  # (T,)
                "terminations": last & terminated,
                "truncations": last & (not terminated),
            }
        )
    return episodes


@pytest.fixture
def toy_dataset(toy_episodes: list[Arrays]) -> TensorDict:
    """The same episodes as `load_dataset` would return them."""

    def rows(name: str, part: slice = slice(None)) -> NDArray[Any]:
        return np.concatenate([episode[name][part] for episode in toy_episodes])

    return dataset_from_arrays(
        rows("observations", slice(-1)),
        rows("actions"),
        rows("rewards"),
        rows("terminations"),
        rows("truncations"),
        next_observations=rows("observations", slice(1, None)),
    )


@pytest.fixture
def make_minari() -> Callable[..., minari.MinariDataset]:
    """Return a function that writes a Minari dataset into the test's own folder."""

    def make(
        episodes: list[dict[str, Any]],
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any] | None = None,
        dataset_id: str = "toy/point-v0",
        **kwargs: Any,
    ) -> minari.MinariDataset:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about authorship that is not told
            return minari.create_dataset_from_buffers(
                dataset_id,
                [EpisodeBuffer(**episode) for episode in episodes],
                observation_space=observation_space,
                action_space=action_space or gym.spaces.Box(-1, 1, (ACTION_SIZE,)),
                **kwargs,
            )

    return make


@pytest.fixture
def minari_dataset(
    toy_episodes: list[Arrays], make_minari: Callable[..., minari.MinariDataset]
) -> minari.MinariDataset:
    """The same episodes as a Minari dataset, ``toy/point-v0``, of the environment Pendulum-v1."""
    return make_minari(
        toy_episodes,
        gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,)),
        env="Pendulum-v1",
        eval_env=gym.make("Pendulum-v1", max_episode_steps=33),
        ref_min_score=-10.0,
        ref_max_score=5.0,
    )


@pytest.fixture
def goal_minari_dataset(
    toy_episodes: list[Arrays], make_minari: Callable[..., minari.MinariDataset]
) -> minari.MinariDataset:
    """The same episodes with goals, ``toy/goal-v0``."""
    episodes: list[dict[str, Any]] = []
    for number, episode in enumerate(toy_episodes):
        whole = episode["observations"]
        goal = np.full((len(whole), 2), number + 1.0, dtype=np.float32)
        named = {"observation": whole, "achieved_goal": whole[:, :2], "desired_goal": goal}
        episodes.append({**episode, "observations": named})
    sizes = {"observation": 3, "achieved_goal": 2, "desired_goal": 2}
    space = gym.spaces.Dict(
        {name: gym.spaces.Box(-np.inf, np.inf, (size,)) for name, size in sizes.items()}
    )
    return make_minari(episodes, space, dataset_id="toy/goal-v0")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test meets the same random numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _maze_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small dataset of a point maze."""
    pytest.importorskip("gymnasium_robotics")
    from benchmarks.collect.pointmaze import PointMazeRecipe, collect

    root = tmp_path_factory.mktemp("maze")
    recipe = PointMazeRecipe(
        dataset_id=MAZE, maze="umaze", steps=240, max_episode_steps=40, reference_episodes=5
    )
    collect(recipe, root, progress_bar=False)
    return root


@pytest.fixture
def maze_dataset(_maze_root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a small dataset that the benchmarks know the domain of."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(_maze_root))
    return MAZE
