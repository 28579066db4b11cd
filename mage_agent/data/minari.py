"""Minari datasets -> one TED TensorDict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict

from mage_agent.data.ted import Bounds, action_bounds, assemble

Observations = NDArray[Any] | Mapping[str, Any]


def open_minari(dataset_id: str, *, download: bool = True) -> minari.MinariDataset:
    """Open a Minari dataset by its id: the local copy, or else the one Minari downloads.

    Args:
        dataset_id: For instance ``"D4RL/pen/human-v2"``.
        download: Whether Minari may fetch a dataset that is not on this machine.

    Raises:
        FileNotFoundError: The dataset is not on this machine and was not or could not be downloaded.
    """
    try:
        return minari.load_dataset(dataset_id)
    except FileNotFoundError as error:
        if not download:
            raise FileNotFoundError(_missing(dataset_id, "and download=False was given")) from error
    try:
        return minari.load_dataset(dataset_id, download=True)
    except Exception as error:  # Minari lets every error of its storage providers through
        reason = f"and the download failed ({type(error).__name__}: {error})"
        raise FileNotFoundError(_missing(dataset_id, reason)) from error


def _missing(dataset_id: str, reason: str) -> str:
    known = sorted(minari.list_local_datasets())
    return (
        f"the Minari dataset {dataset_id!r} is not on this machine, {reason}. "
        f"Get it with `minari download {dataset_id}` (ids: `minari list remote`), or point the "
        f"environment variable MINARI_DATASETS_PATH at a folder that holds it. "
        f"Datasets on this machine: {known or 'none'}."
    )


def read_minari(
    dataset: minari.MinariDataset,
    *,
    discount: float,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Read all episodes of a Minari dataset.

    Args:
        dataset: Any Minari dataset with flat float observations, or a dictionary of them, and
            continuous actions. Filtered datasets give the filtered episodes.
        discount: Discount factor per step of ``return_to_go``.
        action_low: Lower action bound, if not that of the dataset's action space.
        action_high: Upper action bound, likewise.

    Returns:
        The dataset in the layout of `mage_agent.data.ted`. Infos are not read.

    Raises:
        TypeError: The actions are not continuous.
        ValueError: There is no episode, or the parts of an episode do not fit together.
    """
    space = dataset.action_space
    if not isinstance(space, gym.spaces.Box):
        raise TypeError(
            f"the actions of {dataset.id!r} are {space}; only continuous actions "
            f"(gymnasium.spaces.Box) are supported"
        )
    episodes = list(dataset.iterate_episodes())
    if not sum(len(episode) for episode in episodes):
        raise ValueError(f"the dataset {dataset.id!r} holds no steps; at least one is needed")
    lengths = torch.tensor([len(episode) for episode in episodes])
    for number, episode in enumerate(episodes):
        _check_lengths(episode, f"episode {number} of {dataset.id!r}")

    # Every episode has one observation more than steps. Of all observations in a row, those that
    # are not an episode's last are seen, those that are not its first are what came next.
    ends = (lengths + 1).cumsum(0) - 1
    seen = torch.ones(int(ends[-1]) + 1, dtype=torch.bool)
    followed = seen.clone()
    seen[ends] = False
    followed[ends - lengths] = False
    observations = _stack([episode.observations for episode in episodes])

    action = torch.from_numpy(np.concatenate([episode.actions for episode in episodes]))
    reward = torch.from_numpy(np.concatenate([episode.rewards for episode in episodes]))
    terminated = torch.from_numpy(np.concatenate([e.terminations for e in episodes])).bool()
    last = torch.zeros(len(action), dtype=torch.bool)
    last[lengths.cumsum(0)[lengths > 0] - 1] = True
    return assemble(
        _select(observations, seen),
        _select(observations, followed),
        action,
        reward,
        terminated,
        last,
        discount=discount,
        facts=_facts(dataset)
        | action_bounds(
            action,
            space.low if action_low is None else action_low,
            space.high if action_high is None else action_high,
        ),
    )


def _check_lengths(episode: minari.EpisodeData, name: str) -> None:
    steps = len(episode)
    for part in ("actions", "terminations", "truncations"):
        if len(getattr(episode, part)) != steps:
            raise ValueError(
                f"{name} has {steps} rewards but {len(getattr(episode, part))} {part}; "
                f"the file is damaged or was not written by Minari"
            )
    for key, leaf in _leaves(episode.observations):
        if len(leaf) != steps + 1:
            raise ValueError(
                f"{name} has {steps} steps but {len(leaf)} values of {key}; {steps + 1} are "
                f"needed, the last being the observation after the last action"
            )


def _leaves(observations: Observations, key: str = "observations") -> list[tuple[str, Any]]:
    if not isinstance(observations, Mapping):
        return [(key, observations)]
    return [leaf for name, part in observations.items() for leaf in _leaves(part, name)]


def _stack(observations: list[Any]) -> dict[str, Any]:
    """Concatenate the observations of all episodes; keys as `torchrl.envs.GymEnv` names them."""
    if not isinstance(observations[0], Mapping):
        return {"observation": _float(observations)}
    return {
        name: _stack(parts) if isinstance(parts[0], Mapping) else _float(parts)
        for name in observations[0]
        for parts in [[episode[name] for episode in observations]]
    }


def _float(parts: list[Any]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts)).float()


def _select(observations: Mapping[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    return {
        key: _select(value, rows) if isinstance(value, Mapping) else value[rows]
        for key, value in observations.items()
    }


def _facts(dataset: minari.MinariDataset) -> dict[str, Any]:
    facts: dict[str, Any] = {"dataset_id": dataset.id}
    if dataset.env_spec is not None:
        facts["env_spec"] = dataset.env_spec.to_json()
    if dataset._eval_env_spec is not None:  # Minari offers no public way to ask for it
        facts["eval_env_spec"] = dataset._eval_env_spec.to_json()
    stored = dataset.storage.metadata
    return facts | {
        key: float(stored[key]) for key in ("ref_min_score", "ref_max_score") if key in stored
    }
