"""Hindsight goals: what was done on the way to one place shows how to reach the places between."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase

from mage_agent.data.ted import episode_lengths, metadata, observation_keys, returns_to_go

__all__ = ["add_hindsight_goals"]


def add_hindsight_goals(
    dataset: TensorDictBase, *, copies: int, discount: float, seed: int = 0
) -> TensorDictBase:
    """Append copies of all episodes that end, successfully, at a place on their way.

    Each copy is a whole episode in itself: the beginning of the original, up to a step drawn
    uniformly; ``desired_goal`` is the place achieved there, the last reward is 1, all others are 0,
    and returns-to-go follow (hindsight experience replay, Andrychowicz et al. 2017, as data).

    Args:
        dataset: TED TensorDict of a goal environment with sparse 0/1 rewards, shape (N,).
        copies: copies of every episode.
        discount: of the returns-to-go, per step.
        seed: of the steps drawn.

    Returns:
        The dataset, and behind it the copies under new episode numbers.

    Raises:
        ValueError: the dataset has no goals, or rewards other than 0 and 1.
    """
    missing = {"achieved_goal", "desired_goal"} - set(observation_keys(dataset))
    if missing:
        raise ValueError(
            "hindsight goals need the observations achieved_goal and desired_goal, but the dataset "
            f"lacks {sorted(missing)}; set hindsight_goals=0."
        )
    reward = dataset["next", "reward"]
    if not bool(((reward == 0) | (reward == 1)).all()):
        raise ValueError(
            f"hindsight goals need sparse rewards of 0 and 1, but the dataset's lie in "
            f"[{float(reward.min())}, {float(reward.max())}]; set hindsight_goals=0."
        )
    facts = metadata(dataset)
    dataset = dataset.exclude("metadata")
    lengths = episode_lengths(dataset["episode"]).repeat(copies)  # (copies * E,)
    starts = (lengths.cumsum(0) - lengths) % len(dataset)
    generator = torch.Generator().manual_seed(seed)
    kept = 1 + (torch.rand(len(lengths), generator=generator) * lengths).long()
    first = kept.cumsum(0) - kept  # of each copy among all copies
    copy = torch.repeat_interleave(torch.arange(len(kept)), kept)
    rows = torch.arange(len(copy)) - first[copy] + starts[copy]
    end = (starts + kept - 1)[copy]

    relabelled = dataset[rows]
    goal = dataset["next", "achieved_goal"][end]
    last = (rows == end)[:, None]
    relabelled["desired_goal"] = relabelled["next", "desired_goal"] = goal
    relabelled["next", "reward"] = last.to(reward.dtype)
    relabelled["next", "terminated"] = relabelled["next", "done"] = last
    relabelled["next", "truncated"] = torch.zeros_like(last)
    relabelled["episode"] = dataset["episode"].max() + 1 + copy
    relabelled["return_to_go"] = returns_to_go(
        relabelled["next", "reward"], relabelled["episode"], discount
    )
    whole: TensorDict = torch.cat([dataset, relabelled])
    whole.set_non_tensor("metadata", dict(facts))
    return whole
