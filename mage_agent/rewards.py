"""Rewards as an environment gives them, one number per step, and the return that is asked for."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["check_own_rewards", "single_reward", "single_target", "with_return_to_go"]


def single_reward(reward: Any, where: str = "") -> float:
    """Return a reward, which may be an array with one entry, as a number.

    Args:
        reward: What an environment returned.
        where: Words for an error that say when.

    Raises:
        ValueError: It is more or less than one number, or not finite.
    """
    if np.size(reward) != 1:
        raise ValueError(
            f"the environment returned the reward {reward!r}{where}; needed is one number per step."
        )
    number = float(np.asarray(reward).item())
    if not np.isfinite(number):
        raise ValueError(
            f"the environment returned the reward {number}, which is not finite{where}; a "
            "simulation that diverges cannot be followed or scored."
        )
    return number


def single_target(target: Any) -> float:
    """Return a return to ask for as a number.

    Args:
        target: What a user gave.

    Raises:
        TypeError: It is no number.
        ValueError: It is not finite, or not as a float32.
    """
    try:
        finite = math.isfinite(target) and abs(target) <= float(np.finfo(np.float32).max)
    except TypeError as error:
        raise TypeError(
            f"target_return is {target!r}; it must be a number, or None for the agent's default."
        ) from error
    if not finite:
        raise ValueError(f"target_return is {target}; it must be finite, also as a float32.")
    return float(target)


def with_return_to_go(observation: Any, left: NDArray[np.float32]) -> dict[str, Any]:
    """Return the entries of an observation and a copy of the return that is left to achieve."""
    entries = observation if isinstance(observation, dict) else {"observation": observation}
    # A copy, so that whoever edits the observation does not edit what is tracked.
    return {**entries, "return_to_go": left.copy()}


def check_own_rewards(env: gym.Env[Any, Any]) -> None:
    """Refuse an environment that gives normalised rewards, which change their meaning as it runs.

    Args:
        env: Any environment.

    Raises:
        ValueError: One of its wrappers is ``gymnasium.wrappers.NormalizeReward``.
    """
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.NormalizeReward):
            raise ValueError(
                "the environment is wrapped in NormalizeReward, so that its rewards are not its "
                "own; leave that wrapper out (around policy.wrap's, it does no harm)."
            )
        env = env.env
