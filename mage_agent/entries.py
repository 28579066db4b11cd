"""Observation entries by name: what environments give, and what an agent needs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["check_actions", "check_observes", "check_spaces", "named", "read_entries"]


def read_entries(
    observation: Any, sizes: Mapping[str, int], *, told_return: bool
) -> tuple[dict[str, NDArray[np.float32]], bool]:
    """Check an observation, and split it into its entries.

    Args:
        observation: one observation or a batch, an array or a mapping of arrays.
        sizes: the entries that the agent needs.
        told_return: whether to read ``return_to_go`` as well, where it is there.

    Returns:
        The entries as batches, each (num_envs, size), and whether it was a single observation.

    Raises:
        ValueError: an entry is missing, has another shape or is not finite.
    """
    if isinstance(observation, tuple):
        raise ValueError(
            "the observation is a tuple; env.reset() of Gymnasium returns (observation, info), "
            "venv.reset() of Stable-Baselines3 the observation. Pass the observation alone."
        )
    given, wanted = named(observation, sizes), dict(sizes)
    if any(key not in given for key in wanted):
        raise ValueError(
            f"the observation has the entries {list(given)}; the policy needs {list(wanted)}."
        )
    if told_return and "return_to_go" in given:
        wanted["return_to_go"] = 1
    entries = {key: np.asarray(given[key], dtype=np.float32) for key in wanted}
    batch = next(iter(entries.values())).shape[:-1]
    shapes = {key: part.shape for key, part in entries.items()}
    if len(batch) > 1 or shapes != {key: (*batch, size) for key, size in wanted.items()}:
        raise ValueError(
            f"the observation has the shapes {shapes}; "
            f"expected are { {key: (size,) for key, size in wanted.items()} }, or the same with "
            "the number of environments in front."
        )
    infinite = [key for key, part in entries.items() if not np.isfinite(part).all()]
    if infinite:
        raise ValueError(f"the observation entries {infinite} are not finite: {entries}.")
    return {key: part.reshape(-1, wanted[key]) for key, part in entries.items()}, not batch


def check_spaces(
    observation: spaces.Space[Any],
    action: spaces.Space[Any],
    sizes: Mapping[str, int],
    own: spaces.Box,
) -> None:
    """Compare an environment's spaces with what an agent was made for.

    Args:
        observation: the environment's observation space.
        action: its action space.
        sizes: the entries that the agent needs.
        own: the agent's action space.

    Raises:
        ValueError: they do not fit.
    """
    if not isinstance(action, spaces.Box):
        raise ValueError(
            f"the environment's action space is {action}; the policy's actions are continuous, "
            f"{own}, and so must be the environment's."
        )
    low, high = action.low.astype(np.float32), action.high.astype(np.float32)  # as own are
    if action.shape != own.shape or (own.low < low).any() or (own.high > high).any():
        raise ValueError(
            f"the environment's action space is {action}, but the policy's actions lie in {own}; "
            "use the environment the data comes from, or load the data with its action_low and "
            "action_high."
        )
    found = named(observation, sizes)
    for key, size in sizes.items():
        if key not in found or found[key].shape != (size,):
            raise ValueError(
                f"the environment's observation space is {observation}; the policy needs the "
                f"entries {dict(sizes)} (name: size)."
            )


def check_observes(env: Any) -> None:
    """Is it an environment whose observations are on the scale of those that were recorded?

    Args:
        env: of Gymnasium, or a vectorised one of Stable-Baselines3.

    Raises:
        TypeError: it is no environment.

    Warns:
        UserWarning: a wrapper normalises them: agents do so themselves, by the data's statistics.
    """
    if not hasattr(env, "observation_space"):
        raise TypeError(f"env is {env!r}; it must be an environment, as gymnasium.make makes it.")
    if isinstance(env, gym.vector.VectorEnv):
        raise TypeError(
            f"env is {env!r}, a vectorised environment of Gymnasium; take one of "
            "Stable-Baselines3, as make_vec_env makes it."
        )
    normalizing = gym.wrappers.NormalizeObservation
    scaled = hasattr(env, "env_is_wrapped") and any(env.env_is_wrapped(normalizing))
    while env is not None and not scaled:  # VecNormalize may do without
        scaled = isinstance(env, normalizing) or getattr(env, "norm_obs", False)
        env = env.__dict__.get("venv", env.__dict__.get("env"))
    if scaled:
        warnings.warn(
            "the environment normalises its observations by statistics of its own, but the agent "
            "does so itself, by those of its data; leave NormalizeObservation out, or set norm_obs "
            "of VecNormalize to False, unless the data were recorded on that very scale.",
            stacklevel=4,
        )


def check_actions(
    actions: NDArray[Any], shape: tuple[int, ...], observation: Any, target_return: float
) -> None:
    """Refuse actions that have another shape than (number of observations, A), or are not finite.

    Raises:
        ValueError: the message names what they were made from.
    """
    if actions.shape != shape:
        raise ValueError(f"decide made actions of shape {actions.shape}; needed are {shape}.")
    if not np.isfinite(actions).all():
        given = f"observation {observation}, target_return {target_return:g} or the state"
        raise ValueError(f"the actions {actions} are not finite; too large is the {given}.")


def named(entries: Any, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A lone observation, or a lone space, stands for the first entry that is needed.

    Wrappers, which do not know the agent's name for a lone one, call it "observation".
    """
    first, *others = sizes
    if not isinstance(entries, Mapping):
        return {first: entries}
    named = dict(entries)
    alone = set(named) <= {"observation", "return_to_go"}
    if not others and first not in named and "observation" in named and alone:
        named[first] = named.pop("observation")
    return named
