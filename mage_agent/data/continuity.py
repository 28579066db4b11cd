"""Do the steps of an episode follow on? What a step led to must be what the next one began with."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

__all__ = ["jumps"]

ROUNDING = 1e-3
"""How far the two may lie apart, as a part of the range of the column."""


def jumps(
    now: TensorDictBase, following: TensorDictBase, last: Tensor
) -> dict[str | tuple[str, ...], Tensor]:
    """Return the steps that are not followed by what they led to: entry -> (M,) int64 rows.

    Args:
        now: Observations of each step, batch (N,), entries (N, S).
        following: What was observed after each step, with the same entries.
        last: (N,) bool, steps that end an episode; nothing has to follow these.

    Raises:
        ValueError: An entry has other columns in `following` than in `now`.
    """
    found = {}
    for key in now.keys(include_nested=True, leaves_only=True):
        before, after = now[key], following[key]
        if not isinstance(before, Tensor) or len(before) < 2:
            continue
        if before.shape != after.shape:
            raise ValueError(
                f"the observation {key!r} has the shape {tuple(before.shape)}, under 'next' "
                f"{tuple(after.shape)}; both need the same columns"
            )
        # Usually all are equal, and comparing rows as a whole settles that without much work.
        differs = (after[:-1] != before[1:]).any(-1) & ~last[:-1]
        rows = differs.nonzero().flatten()
        if len(rows):
            low, high = before.aminmax(dim=0)
            allowed = ROUNDING * (high - low) + 1e-6 * torch.maximum(-low, high)  # (S,)
            rows = rows[((after[rows] - before[rows + 1]).abs() > allowed).any(-1)]
        if len(rows):
            found[key] = rows
    return found
