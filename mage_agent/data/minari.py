"""Minari datasets -> one TED TensorDict."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import torch
from minari.dataset.minari_dataset import parse_dataset_id
from minari.storage import get_dataset_path, hosting
from tensordict import TensorDict
from torch import Tensor

from mage_agent.data.columns import as_flags, as_float, as_goals, as_single_column
from mage_agent.data.d4rl_tasks import ALL_TASKS
from mage_agent.data.hdf5 import check_hdf5
from mage_agent.data.ted import Bounds, assemble

LARGEST_SPACE = 10**7
"""Numbers in one observation or action."""


def refuse_folder(path: str | os.PathLike[str]) -> None:
    """Say what to do with a folder of logs, if it is one."""
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"{str(path)!r} is a folder; read its files with numpy.load, join them with "
            f"numpy.concatenate, and use dataset_from_arrays"
        )


def open_minari(dataset_id: str, *, download: bool = True) -> minari.MinariDataset:
    """Open a Minari dataset by its id: the local copy, or else the one Minari downloads.

    Args:
        dataset_id: For instance ``"D4RL/pen/human-v2"``.
        download: Whether Minari may fetch a dataset that is not on this machine.

    Raises:
        FileNotFoundError: The dataset is not on this machine and was not or could not be fetched.
        ValueError: It is damaged, or opening it would run code that it names.
    """
    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # TypeError if there is no version
        refuse_folder(dataset_id)
        raise FileNotFoundError(
            f"{dataset_id!r} is neither the id of a Minari dataset, such as D4RL/pen/human-v2 with "
            f"its version, nor the path of an .hdf5 or .npz file"
        ) from error
    data = get_dataset_path(dataset_id) / "data"
    if not data.exists():
        if dataset_id in ALL_TASKS:
            its = ALL_TASKS[dataset_id].minari_id
            raise FileNotFoundError(
                f"{dataset_id!r} is D4RL's name; "
                f"{f'on Minari it is {its!r}' if its else 'Minari does not hold it'}"
            )
        if dataset_id.startswith("local/"):
            raise FileNotFoundError(
                f"the Minari dataset {dataset_id!r} is not on this machine, and what begins with "
                f"local/ is made, not downloaded: collect it, or set the environment variable "
                f"MINARI_DATASETS_PATH to the folder that holds it. {_known()}"
            )
        if not download:
            raise FileNotFoundError(_missing(dataset_id, "and was not to be downloaded"))
        try:
            hosting.download_dataset(dataset_id)
        except Exception as error:  # Minari lets every error of its storage providers through
            reason = f"and downloading it failed ({type(error).__name__}: {error})"
            raise FileNotFoundError(_missing(dataset_id, reason)) from error
    check_minari(data)
    return minari.load_dataset(dataset_id)


def check_minari(data: Path) -> None:
    """Refuse a dataset that Minari should not even open.

    Args:
        data: Its folder ``data``.

    Raises:
        OSError: A file is missing or truncated.
        ValueError: Opening the dataset would run code that it names, or exhaust memory.
    """
    stored = json.loads((data / "metadata.json").read_text())
    for name in ("observation_space", "action_space"):
        if not isinstance(stored.get(name), str):
            raise ValueError(
                f"it does not say its {name}, so that Minari would make the environment it names, "
                f"with whatever code that names; if you trust it, open it with "
                f"minari.load_dataset and pass the MinariDataset"
            )
        _check_space(json.loads(stored[name]))
    present = sum(1 for _ in data.iterdir())
    if (data / "main_data.hdf5").exists():
        check_hdf5(data / "main_data.hdf5")
        with h5py.File(data / "main_data.hdf5", "r") as file:
            present = len(file)
    if not 0 <= int(stored["total_episodes"]) <= present:
        raise ValueError(f"it counts {stored['total_episodes']} episodes and holds {present}")


def _check_space(space: Mapping[str, Any]) -> None:
    """Refuse a space whose bounds would not fit into memory."""
    if math.prod(space.get("shape", ())) > LARGEST_SPACE:
        raise ValueError(f"it has a space of the shape {space['shape']}")
    parts = space.get("subspaces", ())
    for part in parts.values() if isinstance(parts, Mapping) else parts:
        _check_space(part)


def _missing(dataset_id: str, reason: str) -> str:
    return (
        f"the Minari dataset {dataset_id!r} is not on this machine, {reason}. "
        f"Get it with `minari download {dataset_id}` (`minari list remote` shows all ids), or set "
        f"the environment variable MINARI_DATASETS_PATH to the folder that holds it. {_known()}"
    )


def _known() -> str:
    known = sorted(minari.list_local_datasets())
    return f"Datasets on this machine: {', '.join(known) or 'none'}."


def read_minari(
    dataset: minari.MinariDataset,
    *,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Read all episodes of a Minari dataset.

    Args:
        dataset: Any dataset with flat observations, or a dictionary of them, and continuous
            actions. A filtered dataset gives its filtered episodes. Of the infos, ``goal`` is read,
            one row per step or per observation, where every episode has it.
        action_low: Lower action bound, if not that of the dataset's action space.
        action_high: Upper action bound, likewise.

    Returns:
        The dataset in the layout of `mage_agent.data.ted`. Dictionary observations keep their
        names, nested ones their nesting, as `torchrl.envs.GymEnv` has them.

    Raises:
        TypeError: The actions are not continuous, or an observation is no array of numbers.
        ValueError: There are no steps, or the parts of an episode do not fit together.
    """
    space = dataset.action_space
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise TypeError(
            f"the actions of {dataset.id!r} are {space}; only continuous actions (a float "
            f"gymnasium.spaces.Box) are supported, not discrete ones"
        )
    _check_readable(dataset.observation_space, f"the observation of {dataset.id!r}")
    episodes = [episode for episode in dataset.iterate_episodes() if len(episode)]
    if not episodes:
        raise ValueError(f"the dataset {dataset.id!r} holds no steps; at least one is needed")
    for episode in episodes:
        _check_lengths(episode, f"episode {episode.id} of {dataset.id!r}")

    # An episode has one observation more than steps. Of all observations in a row, those that are
    # not the last of their episode are seen, and those that are not the first are what came next.
    lengths = torch.tensor([len(episode) for episode in episodes])
    ends = (lengths + 1).cumsum(0) - 1
    seen = torch.ones(int(ends[-1]) + 1, dtype=torch.bool)
    followed = seen.clone()
    seen[ends] = False
    followed[ends - lengths] = False
    observations = _join([episode.observations for episode in episodes], "observations")

    action = as_float([episode.actions for episode in episodes], "actions")
    reward = as_float([np.asarray(episode.rewards) for episode in episodes], "rewards")
    # Where an episode ends within what Minari keeps as one, it ends.
    terminated, last = (
        torch.from_numpy(as_flags(np.concatenate([getattr(e, part) for e in episodes]), part))
        for part in ("terminations", "truncations")
    )
    last[lengths.cumsum(0) - 1] = True
    return assemble(
        _rows(observations, seen),
        _rows(observations, followed),
        action,
        as_single_column(reward, len(action), "rewards"),
        terminated,
        last,
        action_low=space.low if action_low is None else action_low,
        action_high=space.high if action_high is None else action_high,
        facts=_facts(dataset),
        goal=_goals(episodes),
    )


def _goals(episodes: Sequence[minari.EpisodeData]) -> Tensor | None:
    """What each step headed for, if all episodes say so."""
    goals: list[Tensor] = []
    for episode in episodes:
        goal = as_goals((episode.infos or {}).get("goal"))
        if goal is None or (goals and goal.shape[1:] != goals[0].shape[1:]):
            return None
        if len(goal) not in (len(episode), len(episode) + 1):
            raise ValueError(
                f"episode {episode.id} has {len(episode)} steps but {len(goal)} rows of infos/goal"
            )
        goals.append(goal[: len(episode)])
    return torch.cat(goals)


def _check_lengths(episode: minari.EpisodeData, name: str) -> None:
    steps = len(episode)
    for part in ("actions", "terminations", "truncations"):
        if len(getattr(episode, part)) != steps:
            raise ValueError(
                f"{name} has {steps} rewards but {len(getattr(episode, part))} {part}; "
                f"the dataset is damaged or was not written by Minari"
            )
    for key, leaf in _leaves(episode.observations, "observations"):
        if len(leaf) != steps + 1:
            raise ValueError(
                f"{name} has {steps} steps but {len(leaf)} rows of {key}; {steps + 1} are needed, "
                f"the last being what was observed after the last action"
            )


def _check_readable(space: gym.Space[Any], name: str) -> None:
    """Refuse observations that are no arrays of numbers, by the name of the part that is none."""
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.spaces.items():
            _check_readable(part, f"{name}, entry {key!r},")
    elif not isinstance(space, (gym.spaces.Box, gym.spaces.MultiBinary, gym.spaces.MultiDiscrete)):
        raise TypeError(
            f"{name} is a {type(space).__name__}; read are a Box, or a Dict of them. Record with "
            f"gymnasium.wrappers.FlattenObservation, or pass the arrays, each with a name, to "
            f"dataset_from_arrays"
        )


def _leaves(observations: Any, key: str) -> list[tuple[str, Any]]:
    if not isinstance(observations, Mapping):
        return [(key, observations)]
    return [leaf for name, part in observations.items() for leaf in _leaves(part, name)]


def _join(observations: Sequence[Any], name: str) -> dict[str, Any]:
    """Concatenate what each episode observed, by name."""
    if not isinstance(observations[0], Mapping):
        return {"observation": as_float(observations, name)}
    joined: dict[str, Any] = {}
    for key, part in observations[0].items():
        parts = [episode[key] for episode in observations]
        joined[key] = _join(parts, key) if isinstance(part, Mapping) else as_float(parts, key)
    return joined


def _rows(observations: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    return {
        name: _rows(part, rows) if isinstance(part, Mapping) else part[rows]
        for name, part in observations.items()
    }


def _facts(dataset: minari.MinariDataset) -> dict[str, Any]:
    stored = dataset.storage.metadata
    facts: dict[str, Any] = {"dataset_id": dataset.id}
    facts |= {key: stored[key] for key in ("env_spec", "eval_env_spec") if stored.get(key)}
    return facts | {
        key: float(stored[key]) for key in ("ref_min_score", "ref_max_score") if key in stored
    }
