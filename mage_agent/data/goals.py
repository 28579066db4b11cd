"""Goals in hindsight: episodes retold as if they had been after places that they got to."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mage_agent.data.checks import check_layout
from mage_agent.data.ted import episode_lengths, goal_of, metadata

__all__ = ["relabel_goals"]

_ACHIEVED, _DESIRED = "achieved_goal", "desired_goal"
_Rule = Callable[[TensorDictBase], Tensor]
"""Rewards (N, 1) of the steps of a dataset."""


def relabel_goals(
    dataset: TensorDictBase,
    copies: int = 1,
    *,
    reward: Callable[[Tensor, Tensor], Any] | None = None,
    seed: int = 0,
) -> TensorDict:
    """The dataset, followed by copies of its episodes with other goals (Andrychowicz et al., 2017).

    The goal of a copy is where its episode was after one of its steps, drawn at random, and its
    rewards are those for that goal. Where all steps of the dataset that reach its goals end their
    episodes, the first step that is rewarded like one of them ends a copy, too; an episode that
    ended for another reason still does. Where rewards are of more than two values, all steps that
    terminate are taken to have reached their goals.

    Args:
        dataset: As `load_dataset` returns it, with ``achieved_goal`` and ``desired_goal``; it stays
            as it is.
        copies: Of each episode, at least 0.
        reward: Reward of steps, (N,), for the goals that are achieved after them and those desired,
            (N, G) each. None finds the distance within which the dataset rewards, where its rewards
            are one number within a distance and another one beyond.
        seed: Of the goals.

    Returns:
        A new dataset, (N',).

    Raises:
        KeyError, TypeError: It is no dataset.
        ValueError: `copies` is negative, the dataset has no goals, its rewards do not follow from
            the distance to them, or `reward` does not part the steps that reach them from others.

    Examples:
        >>> relabel_goals(load_dataset("D4RL/pointmaze/large-v2"), copies=4)  # doctest: +SKIP
    """
    check_layout(dataset)
    if copies < 0:
        raise ValueError(f"copies is {copies}; it must be at least 0.")
    missing = [key for key in (_ACHIEVED, _DESIRED) if key not in dataset.keys()]  # noqa: SIM118
    if missing:
        raise ValueError(f"the dataset has no {missing} to relabel; it has {list(dataset.keys())}.")
    rewarded = dataset["next", "reward"]
    rule = _by_distance(dataset) if reward is None else _given(reward)
    ended = dataset["next", "terminated"]
    arrived = rewarded == rewarded.max() if len(rewarded.unique()) <= 2 else ended
    terminal = bool(arrived.any() and ended[arrived].all())
    own = rule(dataset)  # whose numbers need not be those of the dataset
    least = own[arrived].min() if terminal else own.max()
    if terminal and (alike := own[~arrived] >= least).any():
        raise ValueError(
            f"the steps that reach a goal end their episodes, but by reward= {int(alike.sum())} "
            f"others, too, have {float(least):g}, the least of theirs, or more, so that nothing "
            "says where a copy ends. Either what followed the last steps is missing "
            "(next_observations of dataset_from_arrays), or episodes of a dense reward also end "
            "without their goal, or the reward is that of another task."
        )
    failed = ended & ~arrived
    generator = torch.Generator().manual_seed(operator.index(seed))
    lengths = episode_lengths(dataset["episode"])
    first = lengths.cumsum(0) - lengths
    recorded = goal_of(dataset)
    parts = [dataset]
    for number in range(1, copies + 1):
        drawn = first + (torch.rand(len(lengths), generator=generator) * lengths).long()
        goal = dataset["next", _ACHIEVED][drawn].repeat_interleave(lengths, 0)
        copy = dataset.copy()
        copy["next"] = dataset["next"].copy()
        copy[_DESIRED], copy["next", _DESIRED] = goal, goal.clone()
        given = rule(copy)
        copy["next", "reward"] = given.to(rewarded.dtype)
        if recorded is not None:  # by which episodes are split
            copy["infos"] = dataset["infos"].copy()
            copy["infos", "goal"] = (
                goal.to(recorded)
                if goal.shape == recorded.shape
                else recorded[first.repeat_interleave(lengths)]
            )
        copy["episode"] = dataset["episode"] + number * (int(dataset["episode"].max()) + 1)
        reached = given >= least
        parts.append(_ended(copy, reached, failed) if terminal else copy)
    result: TensorDict = torch.cat([part.exclude("metadata") for part in parts])
    result.set_non_tensor("metadata", dict(metadata(dataset)))
    return result


def _given(reward: Callable[[Tensor, Tensor], Any]) -> _Rule:
    """A reward of goals achieved after a step and goals desired."""
    return lambda told: torch.as_tensor(reward(told["next", _ACHIEVED], told[_DESIRED])).view(-1, 1)


def _by_distance(dataset: TensorDictBase) -> _Rule:
    """The two rewards of a dataset, one within a distance of the goal and the other one beyond.

    Raises:
        ValueError: No distance parts them, neither before the steps nor after them.
    """
    rewarded = dataset["next", "reward"]
    rewards = rewarded.unique()
    reached = rewarded == rewards[-1]
    for place in (("next", _ACHIEVED), (_ACHIEVED,)):
        distance = _distance(dataset, place)
        radius = distance[reached].max()
        if len(rewards) == 2 and radius < distance[~reached].min():
            return partial(_within, place=place, radius=radius, rewards=rewards)
    raise ValueError(
        f"the rewards of the dataset, {len(rewards)} different ones from {float(rewards[0]):g} to "
        f"{float(rewards[-1]):g}, are not one within a distance of the goal and another one "
        "beyond. Either what followed the last steps of episodes is missing (next_observations "
        "of dataset_from_arrays), or give reward=, for instance lambda achieved, goal: "
        "env.unwrapped.compute_reward(achieved, goal, {})."
    )


def _within(
    told: TensorDictBase, place: tuple[str, ...], radius: Tensor, rewards: Tensor
) -> Tensor:
    """The higher of two rewards within a radius, the lower one beyond."""
    return torch.where(_distance(told, place) <= radius, rewards[1], rewards[0])


def _distance(dataset: TensorDictBase, place: tuple[str, ...]) -> Tensor:
    """From the goal achieved before or after each step to the one desired, (N, 1)."""
    distance: Tensor = (dataset[place] - dataset[_DESIRED]).norm(dim=-1, keepdim=True)
    return distance


def _ended(dataset: TensorDict, reached: Tensor, failed: Tensor) -> TensorDictBase:
    """Episodes that terminate at the first step that reaches the goal, or where they failed.

    Both (N, 1) booleans.
    """
    lengths = episode_lengths(dataset["episode"])
    before = reached.flatten().long().cumsum(0) - reached.flatten().long()  # reached before a step
    begun = before[lengths.cumsum(0) - lengths].repeat_interleave(lengths)
    outcome = dataset["next"]
    outcome["terminated"] = reached | failed
    outcome["truncated"] = outcome["done"] & ~outcome["terminated"]
    outcome["done"] = outcome["done"] | reached
    kept: TensorDictBase = dataset[before == begun]
    return kept
