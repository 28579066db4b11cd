"""Own data -> one TED TensorDict: from plain arrays, or from a TensorDict that a rollout gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mage_agent.data.ted import (
    RESERVED,
    Bounds,
    as_float,
    assemble,
    check_contiguous,
    metadata,
)

NOT_OBSERVATIONS = {*RESERVED, "episode_reward", "collector", "index"}
"""What TorchRL's collectors, buffers and transforms put beside the observations."""


def from_arrays(
    observations: ArrayLike | Mapping[str, ArrayLike],
    actions: ArrayLike,
    rewards: ArrayLike,
    terminations: ArrayLike,
    truncations: ArrayLike,
    *,
    next_observations: ArrayLike | Mapping[str, ArrayLike] | None = None,
    discount: float,
    action_low: Bounds = None,
    action_high: Bounds = None,
    facts: Mapping[str, Any] | None = None,
) -> TensorDict:
    """Make a dataset from the columns of a log; all arrays have one row per step.

    Args:
        observations: (N, S), or one such array per observation name.
        actions: (N, A), floating point.
        rewards: (N,) or (N, 1).
        terminations: (N,) or (N, 1) bool, the task ended with this step.
        truncations: (N,) or (N, 1) bool, the episode was cut off after this step.
        next_observations: Like `observations`. If None, the observation of the next row, and on the
            last row of an episode, where the log does not hold it, that row's own observation.
            This leaves returns untouched and matters only to methods that bootstrap from truncated
            steps; windows of trajectories never read it.
        discount: Discount factor per step.
        action_low: Lower action bound, None for -1.
        action_high: Upper action bound, None for 1.
        facts: Further metadata.

    Raises:
        TypeError: The actions are not floating-point numbers.
        ValueError: The arrays have different lengths or unsuitable shapes.
    """
    action = torch.as_tensor(np.array(actions))
    now = _columns(observations)
    following = None if next_observations is None else _columns(next_observations)
    flags = [np.asarray(flag, dtype=bool) for flag in (terminations, truncations)]
    lengths = {
        "actions": len(action),
        "rewards": np.size(rewards),
        "terminations": flags[0].size,
        "truncations": flags[1].size,
        **{f"observations of {name!r}": len(column) for name, column in now.items()},
        **{f"next {name!r}": len(column) for name, column in (following or {}).items()},
    }
    if len(set(lengths.values())) != 1:
        raise ValueError(f"every array needs one row per step; the numbers of rows are {lengths}")
    terminated, truncated = (torch.from_numpy(flag.reshape(-1).copy()) for flag in flags)
    last = terminated | truncated
    return assemble(
        now,
        following or {name: shift(column, last) for name, column in now.items()},
        action,
        as_float([rewards]).reshape(-1),
        terminated,
        last,
        discount=discount,
        action_low=action_low,
        action_high=action_high,
        facts=facts or {},
    )


def from_tensordict(
    source: TensorDictBase,
    *,
    discount: float,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Complete a TED TensorDict: episodes, step counts, returns-to-go for this discount.

    Args:
        source: What `env.rollout`, a collector or `load_dataset` gives: any batch size, time last.
            Read are the observations (all numbers that stand both at the root and under ``next``),
            ``action`` and under ``next`` the reward and whichever of terminated, truncated and done
            are there. An episode ends where one of those says so, where ``episode`` or
            ``("collector", "traj_ids")`` changes, and at the end of the time dimension. Steps that
            ``("collector", "mask")`` marks as padding are left out.
        discount: Discount factor per step.
        action_low: Lower action bound; None for that of the metadata, or -1.
        action_high: Upper action bound; None for that of the metadata, or 1.

    Raises:
        KeyError: Action, reward or observations are missing.
        TypeError: The actions are not floating-point numbers.
        ValueError: There is no time dimension, or the episodes are interleaved.
    """
    if not source.ndim or not source.shape.numel():
        raise ValueError(f"a TensorDict of shape {tuple(source.shape)} holds no steps")
    mask = source.get(("collector", "mask"), None)
    real = torch.ones(source.shape, dtype=torch.bool)
    if mask is not None:
        real = mask.cpu().reshape(source.shape)
    if not real.any():
        raise ValueError('the TensorDict holds no steps: ("collector", "mask") is False throughout')
    row_end = torch.ones_like(real)
    row_end[..., :-1] = ~real[..., 1:]
    flat, last = source.reshape(-1).cpu(), row_end[real]
    if mask is not None:
        flat = flat[real.reshape(-1)]

    def flag(name: str) -> Tensor:
        found = flat.get(("next", name), None)
        return torch.zeros_like(last) if found is None else found.bool().reshape(len(last))

    # Without the distinction, done means terminated.
    told_apart = {("next", "terminated"), ("next", "truncated")} & set(flat.keys(True))
    terminated = flag("terminated" if told_apart else "done")
    last = last | terminated | flag("truncated") | flag("done")
    for key in ("episode", ("collector", "traj_ids")):
        number = flat.get(key, None)
        if number is not None:
            episode = _episodes(number.reshape(len(last)), last)
            check_contiguous(episode)
            last[:-1] |= episode[1:] != episode[:-1]
            break

    following = flat.get("next", TensorDict(batch_size=flat.batch_size))
    present, later = set(flat.keys()), set(following.keys())
    names = [key for key in sorted(present - NOT_OBSERVATIONS) if _is_number(flat[key])]
    names = [key for key in names if key in later] or names
    if "action" not in present or "reward" not in later or not names:
        raise KeyError(
            "a TED TensorDict has observations and 'action' at its root and 'reward' under 'next'; "
            f"this one has {sorted(map(str, flat.keys(include_nested=True, leaves_only=True)))}"
        )
    facts: dict[str, Any] = {**metadata(source)}
    return assemble(
        {key: flat[key].float() for key in names},
        {
            key: following[key].float() if key in later else shift(flat[key].float(), last)
            for key in names
        },
        flat["action"],
        following["reward"].reshape(len(last)),
        terminated,
        last,
        discount=discount,
        action_low=facts.pop("action_low", None) if action_low is None else action_low,
        action_high=facts.pop("action_high", None) if action_high is None else action_high,
        facts=facts,
    )


def shift(column: Tensor, last: Tensor) -> Tensor:
    """The value of the next step; on the last step of an episode, its own.

    Args:
        column: (N, ...).
        last: (N,) bool.
    """
    rows = torch.arange(len(last))
    return column[torch.where(last, rows, (rows + 1).clamp(max=len(last) - 1))]


def _episodes(number: Tensor, last: Tensor) -> Tensor:
    """Tell apart episodes of the same number, as merged datasets have them; (N,) int64.

    Args:
        number: (N,) what the source calls the episode of each step.
        last: (N,) bool, where an episode is known to end.
    """
    order = number.argsort(stable=True)
    begins = torch.ones_like(last)
    begins[1:] = last[order][:-1] | (number[order][1:] != number[order][:-1])
    episode = torch.empty_like(order)
    episode[order] = begins.cumsum(0) - 1
    return episode


def _columns(observations: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, Tensor]:
    if not isinstance(observations, Mapping):
        observations = {"observation": observations}
    return {name: as_float([column]) for name, column in observations.items()}


def _is_number(value: Any) -> bool:
    if isinstance(value, TensorDictBase):  # environments with nested observations
        return all(_is_number(part) for part in value.values())
    return isinstance(value, Tensor) and value.dtype != torch.bool
