"""Glossary of symbols and shapes, the records that cross module borders, and the policy protocol.

Symbols, used in every shape comment of the package:

====== =========================================================================
N      steps of a dataset
B      batch
T      time steps of a window (``horizon``)
M      time steps that an agent remembers
K      number of scales
L_k    tokens at scale k, coarse to fine: L_1 < ... < L_K
V      codebook size
C      code width
D      width of the networks
S, A   observation size (of all entries together), action size
R      return-to-go: discounted sum of the rewards from a step to the end of its episode
G      size of a goal, achieved or desired
X      channels of the modelled trajectory (return-to-go, observation, action, achieved goal)
====== =========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor

__all__ = ["MEMORY", "Plan", "PredictingPolicy", "TrajectoryWindow", "next_return_to_go"]

ArrayT = TypeVar("ArrayT", Tensor, np.ndarray)

MEMORY = "agent_memory"
"""Under which name actors keep an agent's memory in tensordicts, at the root and under ``next``."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryWindow:
    """A batch of trajectory windows in environment units.

    Attributes:
        observation: observations, shape (B, T, S).
        action: actions, shape (B, T, A).
        return_to_go: discounted return from each step to the end of its episode, shape (B, T, 1).
        mask: True where a step is real, False past the end of the episode, shape (B, T).
    """

    observation: Tensor
    action: Tensor
    return_to_go: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A generated plan, decoded into environment units.

    Attributes:
        token_ids: the token pyramid, K tensors of shape (B, L_k). With ``code_temperature`` above 0
            and one candidate, a plan at temperature 0 is made of mean codes, and these are the
            likeliest ones; with several candidates they are those of the chosen plan.
        latent: the sum of all scales (sum_k z_k of Eq. 6), shape (B, L_K, C).
        observation: planned observations, shape (B, T, S); empty when the trajectory holds none,
            and NaN in the entries besides the achieved goal when it holds goals alone ("RG").
        return_to_go: planned return-to-go, shape (B, T, 1); empty when the trajectory holds none.
        action: the action to execute now, shape (B, A).
        partial: planned observations decoded from scales 1..k, for k = 1..K, each (B, T, S).
    """

    token_ids: tuple[Tensor, ...]
    latent: Tensor
    observation: Tensor
    return_to_go: Tensor
    action: Tensor
    partial: tuple[Tensor, ...] = ()


@runtime_checkable
class PredictingPolicy(Protocol):
    """Anything that acts as Stable-Baselines3 policies do."""

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return the actions for a batch of observations and the next recurrent state."""
        ...


def next_return_to_go(
    return_to_go: ArrayT,
    reward: ArrayT,
    *,
    discount: float,
    low: float = -float("inf"),
    high: float = float("inf"),
) -> ArrayT:
    """Return-to-go after a reward: ``clamp((R - r) / discount, low, high)``.

    The inverse of ``R_t = r_t + discount * R_{t+1}``, kept inside the range of what may be asked
    for: the data's, with no upper end where the default is the best from every state.

    Args:
        return_to_go: return asked for before the step, any shape.
        reward: reward of the step, same shape.
        discount: discount factor in (0, 1].
        low: smallest return-to-go to ask for.
        high: largest return-to-go to ask for.

    Returns:
        The return to ask for at the next step, same shape.
    """
    following: ArrayT = ((return_to_go - reward) / discount).clip(low, high)
    return following
