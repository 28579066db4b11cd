"""Columns of a log -> arrays and tensors that say the same, or an error that names the column."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "as_array",
    "as_flags",
    "as_float",
    "as_goals",
    "as_single_column",
    "check_lengths",
]

EXACT = {"float16", "float32", "bool", "int8", "uint8", "int16", "uint16"}
"""Types whose values float32 holds exactly."""

ROUNDING = 2.0**-24
"""Largest relative error of a number that becomes float32."""

OFFSET = 1e-5
"""Rounding errors, as a part of a column's range, from which on the column is looked at closely."""

LOST = 1e-3
"""Rounding errors, as a part of a column's range, that are worth a warning."""


def as_array(values: Any, name: str) -> NDArray[Any]:
    """Return numbers as an array of native byte order, of their own type.

    Args:
        values: Anything array-like: arrays, tensors on any device, data frames, lists, and columns
            that hold one array per row.
        name: What to call it in an error.

    Raises:
        TypeError: These are no numbers.
        ValueError: The rows have different shapes.
    """
    if isinstance(values, Mapping):
        raise TypeError(
            f"{name} is a dictionary with the entries {list(values)}; give each its own name, such "
            f"as {name}_{next(iter(values), '')}"
        )
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    if np.ma.is_masked(values):
        raise ValueError(f"{name} has masked values; fill them, or leave those episodes out")
    try:
        array = np.atleast_1d(np.asarray(values))
        if array.dtype == object:  # a column of arrays, or of numbers of several types
            array = np.stack([np.asarray(row) for row in array])
        if array.dtype == object and all(isinstance(value, Real) for value in array.flat):
            array = array.astype(np.float64)  # a data frame's, of columns of several types
    except (ValueError, RuntimeError) as error:
        shapes = [np.shape(row) for row in values]
        odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), 0)
        raise ValueError(
            f"the rows of {name} must have one shape, but row 0 has {shapes[0]} and row {odd} "
            f"{shapes[odd]}; episodes of own lengths are joined with numpy.concatenate"
        ) from error
    if array.dtype.kind not in "biuf":
        hint = "; of times, give the seconds since the start" if array.dtype.kind in "mM" else ""
        raise TypeError(
            f"{name} holds {array.dtype} such as {_first_odd(array)!r}, needed are real "
            f"numbers{hint}"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _first_odd(array: NDArray[Any]) -> Any:
    """Return the first value that is no real number."""
    return next((value for value in array.ravel().tolist() if not isinstance(value, Real)), None)


def as_flags(values: Any, name: str) -> NDArray[np.bool_]:
    """Return truth values, which must be booleans or the numbers 0 and 1.

    Args:
        values: Any shape.
        name: What to call it in an error.

    Raises:
        ValueError: Others are among them, such as NaN, -1 or words; these would all count as true.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if values is None:
        raise ValueError(f"{name} is None; give a truth value for each step")
    array = np.asarray(values)
    if array.dtype == bool:
        return array
    if array.dtype.kind in "iuf":
        good = (array == 0) | (array == 1)
    else:
        array = array.astype(object)
        good = np.array([_is_flag(value) for value in array.flat], dtype=bool)
    if not good.all():
        bad = np.flatnonzero(~good.reshape(-1))
        raise ValueError(
            f"{name} must hold booleans, or 0 and 1, but {len(bad)} of {array.size} values are "
            f"neither, the first one {array.reshape(-1)[bad[:1]].tolist()[0]!r} in row {bad[0]}; "
            f"say of each step whether it holds, for instance {name} == 'True'"
        )
    return np.asarray(array == 1, dtype=bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number, np.bool_)) and value in (0, 1)


def as_single_column(values: Tensor, steps: int, name: str) -> Tensor:
    """Return what has one value per step as (N,).

    Args:
        values: (N,) or (N, 1).
        steps: N.
        name: What to call it in an error.

    Raises:
        ValueError: There is not one value per step.
    """
    if values.numel() != steps:
        raise ValueError(
            f"{name} has the shape {tuple(values.shape)}, needed is one "
            f"value for each of {steps} steps"
        )
    return values.reshape(-1)


def as_float(parts: Sequence[Any], name: str) -> Tensor:
    """Concatenate arrays along the first axis into one float32 tensor that owns its memory.

    Args:
        parts: Arrays (n_i, ...) of numbers.
        name: What to call them in errors and warnings.

    Raises:
        TypeError: These are no numbers.
        ValueError: The parts have different shapes, or values beyond the range of float32.

    Warns:
        UserWarning: Rounding to float32 wipes out differences in a column.
    """
    arrays = [as_array(part, name) for part in parts]
    with np.errstate(over="ignore"):
        floats = [array.astype(np.float32, copy=len(arrays) == 1) for array in arrays]
    try:
        joined = floats[0] if len(floats) == 1 else np.concatenate(floats)
    except ValueError as error:
        raise ValueError(f"the parts of {name} have different shapes: {error}") from error
    if not all(array.dtype.name in EXACT for array in arrays) and joined.size:
        _check_rounding(arrays, joined, name)
    return torch.from_numpy(joined)


def _check_rounding(arrays: Sequence[NDArray[Any]], joined: NDArray[np.float32], name: str) -> None:
    """Warn of columns that lose their values in float32."""
    rows = joined.reshape(len(joined), -1)
    # Some rows show how far values spread at least, and the largest of all how far they are rounded
    # at most; for nearly all data that is enough.
    some = rows[:: max(1, len(rows) // 1000)].astype(np.float64)
    size = max(-rows.min(), rows.max())
    with np.errstate(invalid="ignore"):
        harmless = np.isfinite(size) & (ROUNDING * size <= OFFSET * np.ptp(some, axis=0))
    for column in np.flatnonzero(~harmless):
        exact = np.concatenate([a.reshape(len(a), -1)[:, column] for a in arrays])
        exact = exact.astype(np.float64)
        finite = np.isfinite(exact)
        if not np.isfinite(rows[finite, column]).all():
            raise ValueError(
                f"{name} holds {exact[finite][np.abs(exact[finite]).argmax()]:g} in column "
                f"{column}, beyond the range of float32; rescale it"
            )
        exact, rounded = exact[finite], rows[finite, column]
        if not exact.size or (extent := np.ptp(exact)) == 0:
            continue
        error = np.abs(exact - rounded).max()
        kept, distinct = len(np.unique(rounded)), len(np.unique(exact))
        if error > LOST * extent or kept < distinct / 2:
            warnings.warn(
                f"{name}, column {column}, loses its values in float32: of {distinct} different "
                f"ones {kept} are left (from {exact.min():.10g} to {exact.max():.10g}); subtract "
                f"an offset, such as the first value",
                stacklevel=2,
            )


def as_goals(values: Any) -> Tensor | None:
    """What the steps of foreign data head for, (N, G) float32.

    Args:
        values: What a source has under ``infos/goal``: an array, a tensor, or None.

    Returns:
        None where this is not one row of finite numbers a step, and so means something else.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().float().numpy()
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "biuf":
        return None
    return as_float([values], "infos/goal") if np.isfinite(values).all() else None


def check_lengths(columns: Mapping[str, NDArray[Any]], name: str = "the columns") -> None:
    """Refuse columns that have not one row each for the same steps.

    Args:
        columns: By name.
        name: What to call them in an error.

    Raises:
        ValueError: They have different lengths.
    """
    lengths = {key: column.shape[:1] for key, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{name} have different lengths: {lengths}")
