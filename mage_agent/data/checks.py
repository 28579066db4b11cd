"""Is this dataset fit to train on? Asked once, before training, with an answer a user can act on."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from mage_agent.data.ted import metadata

TOLERANCE = 1e-4
"""How far an action may lie outside its bounds, in parts of their distance: float32 rounding."""

Key = str | tuple[str, ...]


def name_of(key: Key) -> str:
    """``("next", "reward")`` -> ``"next/reward"``, for messages."""
    return key if isinstance(key, str) else "/".join(key)


def check_dataset(
    dataset: TensorDictBase, *, observation_keys: tuple[str, ...] = ("observation",)
) -> None:
    """Refuse a dataset that training would silently learn nonsense from.

    Args:
        dataset: In the layout of `mage_agent.data.ted`.
        observation_keys: Observations that have to be there.

    Raises:
        KeyError: A key of the layout is missing.
        TypeError: Actions are not floating-point numbers.
        ValueError: There are no steps; a shape is wrong; a value is NaN or infinite; observations or
            actions are zero throughout; an action lies outside its bounds; episodes are interleaved.
    """
    if dataset.ndim != 1 or not len(dataset):
        raise ValueError(
            f"a dataset is a TensorDict of shape (N,) with N >= 1 steps, got {tuple(dataset.shape)}"
        )
    present = list(dataset.keys(include_nested=True, leaves_only=True))
    required: list[Key] = [*observation_keys, "action", "episode", "step_count", "return_to_go"]
    required += [("next", key) for key in observation_keys]
    required += [("next", key) for key in ("reward", "terminated", "truncated", "done")]
    missing = [name_of(key) for key in required if dataset.get(key, None) is None]
    if missing:
        raise KeyError(
            f"the dataset lacks {', '.join(missing)}; it has "
            f"{', '.join(sorted(map(name_of, present)))}"
        )
    if not dataset["action"].is_floating_point():
        raise TypeError(
            f"actions are {dataset['action'].dtype}; only continuous actions (floating point, one "
            f"column per action dimension) are supported, not discrete ones"
        )
    columns = [key for key in present if dataset[key].is_floating_point()]
    for key in columns:
        if dataset[key].ndim != 2:
            raise ValueError(
                f"{name_of(key)} has shape {tuple(dataset[key].shape)}, needed is (steps, size): "
                f"flatten observations, for instance with gymnasium.wrappers.FlattenObservation"
            )
        _check_finite(dataset, key)
    for key in (*observation_keys, "action"):
        if not dataset[key].any():
            raise ValueError(
                f"{name_of(key)} is zero in all {len(dataset)} steps: the dataset was not read "
                f"properly (a cache of torchrl's MinariExperienceReplay, for instance, holds zeros)"
            )
    if len(dataset["episode"].unique_consecutive()) != len(dataset["episode"].unique()):
        raise ValueError(
            "episodes are interleaved: the steps of an episode have to lie in one piece, in order"
        )
    _check_bounds(dataset)


def _where(dataset: TensorDictBase, row: int) -> str:
    return f"episode {int(dataset['episode'][row])}, step {int(dataset['step_count'][row])}"


def _check_finite(dataset: TensorDictBase, key: Key) -> None:
    values: Tensor = dataset[key]
    # One pass without a temporary mask: a sum of finite values this small cannot overflow float64.
    if torch.isfinite(values.sum(dtype=torch.float64)):
        return
    bad = ~torch.isfinite(values)
    row, column = bad.nonzero()[0].tolist()
    raise ValueError(
        f"{name_of(key)} holds {int(bad.sum())} values that are not finite, the first "
        f"({values[row, column].item()}) in {_where(dataset, row)}, column {column}; "
        f"remove those episodes or repair the values"
    )


def _check_bounds(dataset: TensorDictBase) -> None:
    facts = metadata(dataset)
    action: Tensor = dataset["action"]
    low = torch.tensor(facts.get("action_low", [-np.inf]), dtype=torch.float64)
    high = torch.tensor(facts.get("action_high", [np.inf]), dtype=torch.float64)
    for name, bound in (("action_low", low), ("action_high", high)):
        if bound.shape[-1] not in (1, action.shape[-1]):
            raise ValueError(
                f"{name} has {bound.shape[-1]} values, the actions have {action.shape[-1]} columns"
            )
    if not bool((low < high).all()):
        raise ValueError(
            f"the lower action bounds {low.tolist()} are not below the upper ones {high.tolist()}"
        )
    beyond = torch.maximum(low - action, action - high)  # (N, A), > 0 outside
    worst = int(beyond.argmax())
    row, column = divmod(worst, action.shape[-1])
    span = (high - low).expand(action.shape[-1])[column]
    if beyond[row, column] > TOLERANCE * span.clamp(max=1e6):
        bounds = [float(b.expand(action.shape[-1])[column]) for b in (low, high)]
        raise ValueError(
            f"action {action[row, column].item():g} in {_where(dataset, row)}, dimension {column} "
            f"lies outside the bounds {bounds}; pass the action_low and action_high of the "
            f"environment that made the data, or clip the actions if they were executed clipped"
        )
