"""Own data -> one TED TensorDict: from plain arrays, or from a TensorDict that a rollout gave."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from tensordict import TensorDict, TensorDictBase, pad_sequence
from torch import Tensor

from mage_agent.data.checks import check_dataset
from mage_agent.data.columns import as_array, as_flags, as_float, as_goals, as_single_column
from mage_agent.data.ted import (
    RESERVED,
    Bounds,
    assemble,
    check_contiguous,
    goal_of,
    metadata,
)
from mage_agent.types import MEMORY

OF_DATASETS = {*RESERVED, MEMORY, "collector", "index", "masks"}
"""What datasets, and batches of them, hold beside the observations."""

NOT_OBSERVATIONS = OF_DATASETS | {
    "episode_reward",
    "is_init",
    "target_return",
    "time_policy",
    "time_reset",
    "time_step",
    "traj_count",
}
"""What TorchRL's collectors, buffers and transforms put beside the observations."""

OF_POLICIES = {"loc", "scale", "logits", "log_prob", "sample_log_prob", "action_log_prob"} | {
    "state_value",
    "action_value",
    "chosen_action_value",
}
"""What TorchRL's policies put beside the observations, at the root only."""

MASKS = (("collector", "mask"), "masks")
"""Where TorchRL and ``tensordict.pad_sequence`` mark padding."""


def dataset_from_arrays(
    observations: ArrayLike | Mapping[str, ArrayLike],
    actions: ArrayLike,
    rewards: ArrayLike,
    terminations: ArrayLike,
    truncations: ArrayLike,
    *,
    next_observations: ArrayLike | Mapping[str, ArrayLike] | None = None,
    goals: ArrayLike | None = None,
    action_low: Bounds = None,
    action_high: Bounds = None,
    facts: Mapping[str, Any] | None = None,
) -> TensorDict:
    """Make a dataset from own arrays, one row per step, episode after episode.

    Args:
        observations: (N, S), or a dictionary of such arrays.
        actions: (N, A), floating point.
        rewards: (N,).
        terminations: (N,) bool, the task ended with this step.
        truncations: (N,) bool, the episode was cut off after this step.
        next_observations: Like `observations`; None takes those of the next row, and on the last
            row of an episode, where no row holds it, that row's own. GAC learns the last change of
            every episode from it, and values bootstrap from it where an episode was cut off.
        goals: (N, G), what whoever collected the data headed for, if that is known: GAC plans for
            one at a time, see ``GACConfig.split_goals``.
        action_low: Lower bound of the actions, a number or one per dimension; that of `facts` or -1
            by default.
        action_high: Upper bound likewise, 1 by default.
        facts: What else the dataset shall say about itself, see `metadata`.

    Returns:
        The same as `load_dataset`.

    Raises:
        TypeError: The actions are discrete.
        ValueError: The arrays do not fit together, or the data is unfit, see `check_dataset`.

    Warns:
        UserWarning: Nothing marks an end, so that all steps are one episode.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> ends = np.arange(1, 21) % 10 == 0  # two episodes of ten steps
        >>> observations, actions = rng.normal(size=(20, 3)), rng.uniform(-1, 1, size=(20, 2))
        >>> dataset = dataset_from_arrays(observations, actions, np.ones(20), ends, ends & False)
        >>> dataset["step_count"][9:11].flatten().tolist()
        [9, 0]
    """
    columns = {
        "actions": _action(actions),
        "rewards": as_float([rewards], "rewards"),
        "terminations": torch.from_numpy(as_flags(terminations, "terminations").copy()),
        "truncations": torch.from_numpy(as_flags(truncations, "truncations").copy()),
    }
    now = _observations(observations, "observations")
    following = None
    if next_observations is not None:
        following = _observations(next_observations, "next_observations")
        if set(following) != set(now):
            raise ValueError(
                f"observations are {sorted(now)}, next_observations {sorted(following)}; both need "
                "the same names."
            )
    if goals is not None:
        columns["goals"] = as_float([goals], "goals")
    lengths = {
        **{name: column.shape[:1].numel() for name, column in columns.items()},
        **{f"observations of {name!r}": len(column) for name, column in now.items()},
        **{f"next {name!r}": len(column) for name, column in (following or {}).items()},
    }
    if len(set(lengths.values())) != 1:
        raise ValueError(f"every array needs one row per step; the numbers of rows are {lengths}")
    reward, terminated, truncated = (
        as_single_column(columns[name], lengths["actions"], name)
        for name in ("rewards", "terminations", "truncations")
    )
    last = terminated | truncated
    dataset = assemble(
        now,
        following or {name: shift(column, last) for name, column in now.items()},
        columns["actions"],
        reward,
        terminated,
        last,
        action_low=action_low,
        action_high=action_high,
        facts=facts or {},
        goal=columns.get("goals"),
    )
    check_dataset(dataset)
    if len(last) > 1 and not last.any() and goals is None:
        warnings.warn(
            f"neither terminations nor truncations mark an end: the {len(last)} steps are one "
            "episode; if they are several, set truncations on the last step of each",
            stacklevel=2,
        )
    return dataset


def from_tensordict(
    source: TensorDictBase,
    *,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Complete a TED TensorDict: episodes, step counts, flags.

    Args:
        source: What `env.rollout`, a collector or `load_dataset` gives: any batch size, time last.
            Read are the observations (all numbers that stand both at the root and under ``next``),
            ``action`` and under ``next`` the reward and whichever of terminated, truncated and done
            are there, and ``("infos", "goal")``. An episode ends where one of the flags says so,
            where ``episode`` or ``("collector", "traj_ids")`` changes, and at the end of the time
            dimension. Steps that ``("collector", "mask")`` marks as padding are left out.
        action_low: Lower action bound; None for that of the metadata, or -1.
        action_high: Upper action bound; None for that of the metadata, or 1.

    Raises:
        KeyError: Action, reward or observations are missing.
        TypeError: The actions are not floating-point numbers.
        ValueError: There is no time dimension, the episodes are interleaved, trajectories go on in
            another row than they begin in, or ``masks`` is a column, which can mean padding as
            well as terminations.
    """
    facts: dict[str, Any] = {**metadata(source)}
    source = source.exclude("metadata")  # in joined datasets it slows everything down
    uneven = -1 in source.shape  # a stack of rollouts of different lengths
    if isinstance(column := (source[0] if uneven else source).get("masks", None), Tensor):
        raise ValueError(
            f"'masks' is a {column.dtype} column, which does not say whether 0 marks padding or "
            f"terminations; exclude it, and give padding as ('collector', 'mask') or as the masks "
            f"of tensordict.pad_sequence, and terminations as ('next', 'terminated')"
        )
    if uneven:
        source = pad_sequence(list(source.unbind(0)), return_mask=True)
    if not source.ndim or not source.shape.numel():
        raise ValueError(f"a TensorDict of shape {tuple(source.shape)} holds no steps")
    real = _real_steps(source)
    row_end = torch.ones_like(real)
    row_end[..., :-1] = ~real[..., 1:]
    flat, last = source.reshape(-1).cpu(), row_end[real]
    if not real.all():
        flat = flat[real.reshape(-1)]

    def flag(name: str) -> Tensor:
        found = flat.get(("next", name), None)
        if found is None:
            return torch.zeros_like(last)
        flags = torch.from_numpy(as_flags(found, f"next/{name}").copy())
        return as_single_column(flags, len(last), f"next/{name}")

    # Where nothing says what terminated, it is what is done and not truncated.
    known = ("next", "terminated") in flat.keys(True)
    terminated = flag("terminated") if known else flag("done") & ~flag("truncated")
    begins = last.roll(1)
    ended = terminated | flag("truncated") | flag("done")
    cut, last = last & ~ended, last | ended
    for key in ("episode", ("collector", "traj_ids")):
        number = flat.get(key, None)
        if number is not None:
            episode = _episodes(number.reshape(len(last)), last)
            check_contiguous(episode)
            last[:-1] |= episode[1:] != episode[:-1]
            break

    following = flat.get("next", TensorDict(batch_size=flat.batch_size))
    present, later = set(flat.keys()), set(following.keys())
    # A dataset that was made here holds nothing of collectors, and any name may be an observation.
    candidates = sorted(present - (OF_DATASETS if facts else NOT_OBSERVATIONS))
    numbers = [key for key in candidates if _is_number(flat[key])]
    names = [key for key in numbers if key in later] or numbers
    if "action" not in present or "reward" not in later or not names:
        raise KeyError(
            "a TED TensorDict has observations and 'action' at its root and 'reward' under 'next'; "
            f"this one has {sorted(map(str, flat.keys(include_nested=True, leaves_only=True)))}"
        )
    if left_out := sorted(set(candidates) - set(names) - OF_POLICIES):
        warnings.warn(
            f"the entries {left_out} are not read as observations, since those are numbers that "
            f"stand both at the root and under 'next'; exclude them, or put them under 'next', too",
            stacklevel=3,
        )
    plain = [key for key in names if key in later and isinstance(flat[key], Tensor)]
    if number is not None and plain and cut.any():
        seen, led = (
            torch.cat([part[key].reshape(len(last), -1) for key in plain], 1)
            for part in (flat, following)
        )
        _refuse_torn(number.reshape(len(last)), seen, led, begins, cut)
    now = {key: _floats(flat[key], key) for key in names}
    reward = as_float([following["reward"]], "next/reward")
    return assemble(
        now,
        {
            key: _floats(following[key], f"next/{key}") if key in later else shift(now[key], last)
            for key in names
        },
        _action(flat["action"]),
        as_single_column(reward, len(last), "next/reward"),
        terminated,
        last,
        action_low=action_low,
        action_high=action_high,
        facts=facts,
        goal=as_goals(goal_of(flat)),
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


def _refuse_torn(
    number: Tensor, state: Tensor, following: Tensor, begins: Tensor, cut: Tensor
) -> None:
    """Refuse trajectories that go on in another row, as where batches lie below one another.

    Args:
        number: (N,) of the trajectory of each step.
        state: (N, S) what was observed.
        following: (N, S) what was observed next.
        begins: (N,) bool, first steps of rows.
        cut: (N,) bool, last steps of rows where no episode ends.
    """
    row = begins.cumsum(0)

    def named(steps: Tensor, states: Tensor) -> Iterator[tuple[tuple[Any, ...], int]]:
        """Trajectory and state at some steps, and which row these lie in."""
        found = zip(number[steps].tolist(), states[steps].tolist(), strict=True)
        return zip(((n, *values) for n, values in found), row[steps].tolist(), strict=True)

    begun = dict(named(begins, state))
    torn = sum(begun.get(key, own) != own for key, own in named(cut, following))
    if torn:
        raise ValueError(
            f"{torn} trajectories go on in another row than they begin in, as where batches "
            "of a collector are joined along environments; join them along time, the last "
            "dimension: torch.cat(batches, -1)"
        )


def _action(actions: Any) -> Tensor:
    """Actions as float32, or of their own type if that shows that they are discrete."""
    array = as_array(actions, "actions")
    return as_float([array], "actions") if array.dtype.kind == "f" else torch.from_numpy(array)


def _observations(
    observations: ArrayLike | Mapping[str, ArrayLike], argument: str
) -> dict[str, Tensor]:
    if isinstance(observations, Mapping):
        return {
            name: as_float([column], f"{argument}[{name!r}]")
            for name, column in observations.items()
        }
    if isinstance(observations, (list, tuple)) and observations and np.ndim(observations[0]) > 1:
        raise TypeError(
            f"{argument} is a {type(observations).__name__} of {len(observations)} arrays; name "
            f"them in a dictionary, such as {{'position': ..., 'velocity': ...}}, or, if they are "
            f"episodes, join them with numpy.concatenate, and mark their ends in truncations"
        )
    return {"observation": as_float([observations], argument)}


def _real_steps(source: TensorDictBase) -> Tensor:
    """Which steps are no padding, bool of the shape of `source`."""
    for key in MASKS:
        mask = source.get(key, None)
        if isinstance(mask, TensorDictBase):  # one for each entry
            mask = next(iter(mask.values(include_nested=True, leaves_only=True)), None)
        if mask is not None:
            real = torch.from_numpy(as_flags(mask, str(key))).reshape(source.shape)
            if not real.any():
                raise ValueError(f"the TensorDict holds no steps: {key} is False throughout")
            return real
    return torch.ones(source.shape, dtype=torch.bool)


def _floats(value: Any, name: str) -> Any:
    """Float32 numbers of an entry, which may be nested."""
    if isinstance(value, TensorDictBase):
        parts = {key: _floats(part, f"{name}/{key}") for key, part in value.items()}
        return TensorDict(parts, batch_size=value.batch_size)
    return as_float([value], name)


def _is_number(value: Any) -> bool:
    if isinstance(value, TensorDictBase):  # environments with nested observations
        return all(_is_number(part) for part in value.values())
    return isinstance(value, Tensor) and not value.is_complex()
