"""Actions inside their bounds, whatever the floating-point types are.

0.1 as a float32 is 0.100000001, outside a float64 ``Box`` that ends at 0.1. Bounds are therefore
rounded inwards where they become float32, and actions are clipped in the environment's own type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

__all__ = ["clip_actions", "inner_bounds"]


def clip_actions(actions: ArrayLike, space: spaces.Space[Any]) -> NDArray[Any]:
    """Return actions that the space contains, in its own type.

    Args:
        actions: (*B, A) of any numeric type.
        space: The action space; actions of one that is no ``Box`` are returned as they are.
    """
    if not isinstance(space, spaces.Box):
        return np.asarray(actions)
    own = np.asarray(actions).astype(space.dtype)
    clipped: NDArray[Any] = np.clip(own, space.low, space.high)
    return clipped


def inner_bounds(
    low: ArrayLike, high: ArrayLike
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return bounds as float32 that do not exceed the given ones.

    Args:
        low: (A,) lower bounds.
        high: (A,) upper bounds, nowhere below the lower ones.

    Returns:
        Both (A,). Where no float32 lies between the two, as in a dimension that never moves, the
        one nearest to both; only `clip_actions` can help there.
    """
    exact_low, exact_high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    inner_low, inner_high = exact_low.astype(np.float32), exact_high.astype(np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    inner_low = np.where(inner_low < exact_low, np.nextafter(inner_low, up), inner_low)
    inner_high = np.where(inner_high > exact_high, np.nextafter(inner_high, down), inner_high)
    empty = inner_low > inner_high
    nearest = ((exact_low + exact_high) / 2).astype(np.float32)
    return np.where(empty, nearest, inner_low), np.where(empty, nearest, inner_high)
