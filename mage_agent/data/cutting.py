"""Episodes of data, cut: to the length of those of an evaluation, or by what they head for."""

from __future__ import annotations

import json

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mage_agent.data.checks import check_layout
from mage_agent.data.d4rl_tasks import ALL_TASKS
from mage_agent.data.ted import episode_lengths, goal_of, metadata, number_episodes

__all__ = ["cut_episodes", "first_steps", "split_goals", "step_limit"]


def step_limit(dataset: TensorDictBase) -> int | None:
    """Steps after which the environment of a dataset ends an episode.

    Args:
        dataset: As `load_dataset` returns it.

    Returns:
        At least 1; None if the dataset names no environment, or one without a limit.
    """
    facts = metadata(dataset)
    spec = facts.get("eval_env_spec") or facts.get("env_spec")
    if spec:
        limit = json.loads(spec).get("max_episode_steps")
        return None if limit is None else int(limit)
    task = ALL_TASKS.get(facts.get("dataset_id", ""))
    return None if task is None else task.max_episode_steps


def cut_episodes(dataset: TensorDictBase, steps: int | None = None) -> TensorDictBase:
    """Cut each episode of more than ``steps`` steps into episodes of exactly so many.

    What is left over at its end is dropped: its return would be that of a shorter episode.

    Args:
        dataset: As `load_dataset` returns it; it stays as it is.
        steps: The most steps that an episode may have, at least 1; None is the environment's
            `step_limit`.

    Returns:
        A new dataset, (N',) with N' <= N; the dataset itself where no episode is longer, or the
        environment has no limit.

    Raises:
        KeyError, TypeError: It is no dataset.
        ValueError: `steps` is below 1.
    """
    check_layout(dataset)
    steps = step_limit(dataset) if steps is None else steps
    if steps is None:
        return dataset
    _check_steps(steps)
    lengths = episode_lengths(dataset["episode"])
    if int(lengths.max()) <= steps:
        return dataset
    length = lengths.repeat_interleave(lengths)
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    place = torch.arange(len(length), device=length.device) - first
    piece = place // steps
    long = length > steps
    kept = ~long | ((piece + 1) * steps <= length)
    pieces = dataset[kept]
    long, place = long[kept], place[kept]
    cut: TensorDictBase = pieces.copy()
    cut["episode"] = ((place == 0) | (long & (place % steps == 0))).long().cumsum(0) - 1
    count = pieces["step_count"].flatten()
    cut["step_count"] = torch.where(long, place % steps, count)[:, None]
    _truncate(cut, long & (place % steps == steps - 1))
    return cut


def split_goals(dataset: TensorDictBase, steps: int | None = None) -> TensorDictBase:
    """End episodes where what their collector headed for changes, if the data say what that is.

    A part that ends so has usually arrived, and goes on elsewhere for another goal's sake. So the
    return of every part is that of staying: unless it terminates, the reward of its last step
    counts for all that is left of `steps`.

    The steps of an episode that is split count from where its parts begin; a last part whose end a
    slice has cut off is dropped.

    Args:
        dataset: As `load_dataset` returns it; it stays as it is.
        steps: How long whoever has arrived may stay, counted from the beginning of a part, at
            least 1; None is the environment's `step_limit`, and without one nobody stays. With 1,
            all rewards are what they were.

    Returns:
        A new dataset, (N',) with N' <= N; the dataset itself where ``("infos", "goal")`` never
        changes within an episode, or is not there.

    Raises:
        KeyError, TypeError: It is no dataset.
        ValueError: `steps` is below 1.
    """
    check_layout(dataset)
    steps = step_limit(dataset) if steps is None else steps
    _check_steps(1 if steps is None else steps)
    goal = goal_of(dataset)
    if goal is None:
        return dataset
    number, count = dataset["episode"], dataset["step_count"].flatten()
    last = torch.ones_like(number, dtype=torch.bool)  # steps of episodes
    last[:-1] = number[1:] != number[:-1]
    inner = torch.zeros_like(last)  # last steps of parts within episodes
    inner[:-1] = (goal[1:] != goal[:-1]).any(-1) & ~last[:-1]
    if not inner.any():
        return dataset
    is_split = torch.isin(number, number[inner])
    split: TensorDictBase = dataset.copy()
    split["episode"], first = number_episodes(last | inner)
    split["step_count"] = (count - torch.where(is_split, count[first], 0))[:, None]
    _truncate(split, inner)
    if steps is not None:
        times = (steps - split["step_count"]).clamp_min(1)  # that a last reward counts
        reward = split["next", "reward"]
        stays = is_split[:, None] & split["next", "truncated"]
        split["next", "reward"] = torch.where(stays, reward * times, reward)
    cut_off = is_split & last & ~dataset["next", "done"].flatten()
    return split[~torch.isin(first, first[cut_off])] if cut_off.any() else split


def first_steps(dataset: TensorDictBase, steps: int) -> TensorDictBase:
    """The first steps of a dataset; an episode that is cut there ends by truncation.

    Args:
        dataset: As `load_dataset` returns it; it stays as it is.
        steps: How many, at least 1.

    Returns:
        A new dataset, (min(N, steps),); its memory is shared.

    Raises:
        KeyError, TypeError: It is no dataset.
        ValueError: `steps` is below 1.
    """
    check_layout(dataset)
    _check_steps(steps)
    part: TensorDictBase = dataset[:steps].copy()
    ends = torch.zeros_like(part["episode"], dtype=torch.bool)
    ends[-1:] = True
    _truncate(part, ends)
    return part


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1.")


def _truncate(dataset: TensorDictBase, ends: Tensor) -> None:
    """End episodes at the steps (N,) where ``ends`` is True, in a copy whose entries are shared."""
    outcome = dataset["next"].copy()
    outcome["truncated"] = outcome["truncated"] | (ends[:, None] & ~outcome["terminated"])
    outcome["done"] = outcome["done"] | ends[:, None]
    dataset["next"] = outcome
