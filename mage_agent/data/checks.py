"""Is this dataset fit to train on? Asked once, before training, with an answer to act on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from mage_agent.data.continuity import jumps
from mage_agent.data.ted import (
    OUTCOMES,
    check_contiguous,
    episode_lengths,
    metadata,
    observation_keys,
)

OUTLIERS = 3
"""Values, at most, that are pointed at where a column's spread is theirs alone."""
FEW_STEPS = 100
"""Below which a single value may well make up the spread."""
TOLERANCE = 1e-4
"""How far an action may lie outside its bounds, as a part of their distance: rounding."""

Key = str | tuple[str, ...]


def check_dataset(dataset: TensorDictBase) -> None:
    """Refuse a dataset that training would silently learn nonsense from.

    Args:
        dataset: In the layout of `mage_agent.data.ted`.

    Raises:
        KeyError: A key of the layout is missing.
        TypeError: It is no TensorDict, or actions are not floating-point numbers.
        ValueError: There are no steps, a shape is wrong, a value is NaN or infinite, observations
            or actions are zero throughout, an action lies outside its bounds, the steps of an
            episode do not lie in one piece or do not follow on, or an episode is padding.

    Warns:
        UserWarning: Nearly all of a column's variance is that of one to three values.
    """
    observations = check_layout(dataset)
    if not dataset["action"].is_floating_point():
        raise TypeError(
            f"the actions are {dataset['action'].dtype}; only continuous actions are supported "
            f"(floating point, one column per action dimension), not discrete ones"
        )
    leaves = list(dataset.keys(include_nested=True, leaves_only=True))
    for key in leaves:
        if isinstance(dataset[key], Tensor) and dataset[key].is_floating_point():
            _check_values(dataset, key)
    for keys in (observations, ("action",)):
        if not any(column.any() for key in keys for column in _tensors(dataset[key])):
            raise ValueError(
                f"{' and '.join(map(repr, keys))} is zero in all {len(dataset)} steps: either "
                f"nothing happened, or the data was not read properly (the cache of torchrl 0.14's "
                f"MinariExperienceReplay, for instance, holds only zeros)"
            )
    for entry in observations:
        if isinstance(dataset[entry], Tensor):
            _warn_of_outliers(dataset, entry)
    check_contiguous(dataset["episode"])
    _check_episodes(dataset, observations)
    _check_bounds(dataset)


def check_layout(dataset: TensorDictBase) -> Sequence[str]:
    """Refuse what is no dataset, without a look at its values.

    Returns:
        The observation entries.

    Raises:
        KeyError: A key of the layout is missing.
        TypeError: It is no TensorDict.
        ValueError: There are no steps, or they are not in a row.
    """
    if not isinstance(dataset, TensorDictBase):
        raise TypeError(
            f"the dataset is a {type(dataset).__name__}, needed is the TensorDict that "
            f"load_dataset or dataset_from_arrays returns"
        )
    observations = observation_keys(dataset) or ("observation",)
    required: list[Key] = [*observations, "action", "episode", "step_count"]
    required += [("next", key) for key in (*observations, *OUTCOMES)]
    missing = [_name(key) for key in required if dataset.get(key, None) is None]
    if missing:
        present = dataset.keys(include_nested=True, leaves_only=True)
        raise KeyError(
            f"the dataset lacks {', '.join(missing)}; it has "
            f"{', '.join(sorted(map(_name, present)))}. load_dataset(tensordict) completes "
            f"episode, step_count and done"
        )
    check_row(dataset)
    for key in [("step_count",), *(("next", key) for key in OUTCOMES)]:
        if dataset[key].shape != (len(dataset), 1):
            raise ValueError(
                f"{_name(key)} has the shape {tuple(dataset[key].shape)}, needed is a column, "
                f"{(len(dataset), 1)}; load_dataset(tensordict) makes it one"
            )
    return observations


def check_row(dataset: TensorDictBase) -> None:
    """Refuse what does not hold step after step of numbered episodes.

    Raises:
        KeyError: ``episode`` is missing.
        ValueError: There are no steps, or they or their episodes are not in a row.
    """
    if dataset.ndim != 1 or not len(dataset):
        raise ValueError(
            f"a dataset is a TensorDict of shape (N,) with N >= 1 steps, got {tuple(dataset.shape)}"
        )
    episode = dataset.get("episode", None)
    if episode is None:
        raise KeyError("the dataset has no 'episode'; load_dataset(tensordict) completes it")
    if episode.shape != dataset.shape:
        raise ValueError(
            f"episode has the shape {tuple(episode.shape)}, needed is one number per step, "
            f"{tuple(dataset.shape)}; load_dataset(tensordict) numbers the episodes"
        )


def _check_values(dataset: TensorDictBase, key: Key) -> None:
    values: Tensor = dataset[key]
    if values.ndim != 2:
        raise ValueError(
            f"{_name(key)} has the shape {tuple(values.shape)}, needed is (steps, size); "
            + (
                "reshape(-1, 1) makes a column"
                if values.ndim == 1
                else "flatten observations, for instance with gymnasium.wrappers.FlattenObservation"
            )
        )
    # NaN spreads to both extremes, so one pass without a mask settles the usual case.
    if not values.numel() or all(math.isfinite(extreme) for extreme in values.aminmax()):
        return
    bad = ~torch.isfinite(values)
    row, column = bad.nonzero()[0].tolist()
    raise ValueError(
        f"{_name(key)} holds {int(bad.sum())} values that are not finite, the first one "
        f"({values[row, column].item()}) in {_where(dataset, row)}, column {column}; leave those "
        f"episodes out or repair the values"
    )


def _warn_of_outliers(dataset: TensorDictBase, key: Key) -> None:
    values: Tensor = dataset[key]
    if len(values) < FEW_STEPS:
        return
    largest = values.abs().amax(0)
    squares = values / torch.where(largest > 0, largest, 1)  # their squares stay within float32
    squares = squares.sub_(squares.mean(0)).square_()
    total = squares.sum(0)
    for column in (squares.amax(0) > total / (OUTLIERS + 1)).nonzero().flatten().tolist():
        most, rows = squares[:, column].topk(OUTLIERS)
        every = values[:, column]
        low, high = (float(each) for each in every.index_fill(0, rows, every.median()).aminmax())
        # Of flags that are rarely set, the rest does not vary, and nothing is lost.
        if most.sum() > 0.99 * total[column] and low < high:
            row = int(rows[0])
            warnings.warn(
                f"{_name(key)}, column {column}, is {float(every[row]):g} in "
                f"{_where(dataset, row)}, and within [{low:g}, {high:g}] in all steps but "
                f"{OUTLIERS} at most: standardised by such a spread, all the others look alike. If "
                "it stands for a missing value, repair it, or leave the episode out.",
                stacklevel=4,
            )


def _check_episodes(dataset: TensorDictBase, observations: Sequence[str]) -> None:
    """Refuse episodes that the data themselves prove not to be one."""
    last = torch.ones(len(dataset), dtype=torch.bool, device=dataset["episode"].device)
    last[:-1] = dataset["episode"][1:] != dataset["episode"][:-1]
    outcome = dataset["next"]
    done = outcome["done"]
    torn = (done != (outcome["terminated"] | outcome["truncated"])).flatten().nonzero().flatten()
    if len(torn):
        raise ValueError(
            f"in {len(torn)} steps, next/done is not what next/terminated and next/truncated come "
            f"to, the first one in {_where(dataset, int(torn[0]))}; if you have edited these "
            f"flags, load_dataset(tensordict) parts the episodes by them anew"
        )
    inside = (done.flatten() & ~last).nonzero().flatten()
    if len(inside):
        raise ValueError(
            f"{len(inside)} steps are done and yet do not end their episode, the first one in "
            f"{_where(dataset, int(inside[0]))}; load_dataset(tensordict) begins a new episode "
            f"after each"
        )
    now, following = dataset.select(*observations), dataset["next"].select(*observations)
    if found := jumps(now, following, last):
        rows = torch.cat(list(found.values())).unique()  # in order
        raise ValueError(
            f"{len(rows)} of {int((~last).sum())} steps jump: what they led to ('next') is not "
            f"what the following step observed in {', '.join(map(_name, found))}, the first one in "
            f"{_where(dataset, int(rows[0]))}. Either episodes were joined without marking their "
            f"ends (set truncated on the last step of each), or steps of several environments lie "
            f"alternately (sort them by environment; time is the last dimension of a TensorDict, "
            f"the first one of Stable-Baselines3's buffers), or steps are missing (keep whole "
            f"episodes), or these entries are no observations (leave them out)"
        )
    step = dataset["step_count"].flatten()
    skipped = ((step[1:] != step[:-1] + 1) & ~last[:-1]).nonzero().flatten()
    if len(skipped):
        raise ValueError(
            f"step_count does not go up by 1 within an episode at {len(skipped)} steps, the first "
            f"one after {_where(dataset, int(skipped[0]))}; load_dataset(tensordict) counts anew"
        )
    starts = last.roll(1).nonzero().flatten()
    columns = [*_tensors(now), *_tensors(following), dataset["action"], dataset["next", "reward"]]
    for column in columns:  # episodes that begin with zeros are few, if any
        starts = starts[~column[starts].any(-1)]
    if not len(starts):
        return
    zero = ~torch.stack([column.flatten(1).any(1) for column in columns]).any(0)  # (N,)
    lengths = episode_lengths(dataset["episode"])
    sums = F.pad(zero.cumsum(0), (1, 0))
    first = lengths.cumsum(0) - lengths
    whole = sums[first + lengths] - sums[first] == lengths
    if whole.any():
        row, steps = int(first[whole][0]), int(lengths[whole][0])
        raise ValueError(
            f"episode {int(dataset['episode'][row])} of {steps} steps is zero throughout, as "
            f"padding is; leave it out, for instance with a mask "
            f"(tensordict.pad_sequence(..., return_mask=True))"
        )


def _check_bounds(dataset: TensorDictBase) -> None:
    facts = metadata(dataset)
    if "action_low" not in facts or "action_high" not in facts:
        return
    action: Tensor = dataset["action"]
    low, high = (action.new_tensor(facts[name]) for name in ("action_low", "action_high"))
    if not len(low) == len(high) == action.shape[-1]:
        raise ValueError(
            f"the actions have {action.shape[-1]} columns, the bounds in the metadata {len(low)} "
            f"and {len(high)}; load_dataset(tensordict, action_low=..., action_high=...) sets them"
        )
    beyond = torch.maximum(low - action, action - high) - TOLERANCE * (high - low)  # (N, A)
    row, column = divmod(int(beyond.argmax()), action.shape[-1])
    if beyond[row, column] > 0:
        raise ValueError(
            f"the action {action[row, column].item():g} in {_where(dataset, row)}, dimension "
            f"{column} lies outside the bounds [{low[column].item():g}, {high[column].item():g}]; "
            f"pass the action_low and action_high of the environment that the data comes from, or "
            f"clip the actions if the environment clipped them"
        )


def _tensors(value: Tensor | TensorDictBase) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value.values(True, True))


def _name(key: Key) -> str:
    return key if isinstance(key, str) else "/".join(key)


def _where(dataset: TensorDictBase, row: int) -> str:
    return f"episode {int(dataset['episode'][row])}, step {int(dataset['step_count'][row])}"
