"""The setting in which only whole trajectories have a return."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase

from mage_agent.data.checks import check_layout
from mage_agent.data.ted import episode_lengths, returns_to_go

__all__ = ["delayed_rewards"]


def delayed_rewards(dataset: TensorDictBase) -> TensorDict:
    """The dataset with each episode's return as the reward of its last step, and 0 before.

    For methods that learn from step rewards, in comparisons where only the return of a trajectory
    is known. Undiscounted returns stay what they were.

    Args:
        dataset: As `load_dataset` returns it; it stays as it is.

    Returns:
        A new dataset, (N,), with other rewards and without ``infos``; other entries are shared.

    Raises:
        KeyError, TypeError: It is no dataset.

    Examples:
        >>> delayed = delayed_rewards(load_dataset("D4RL/pen/human-v2"))  # doctest: +SKIP
    """
    check_layout(dataset)
    reward = dataset["next", "reward"]
    total = returns_to_go(reward, dataset["episode"], 1.0)
    lengths = episode_lengths(dataset["episode"])
    ends = lengths.cumsum(0)
    # Without the goals by which GAC would part them: these returns are of whole episodes.
    delayed: TensorDict = dataset.exclude("infos")
    delayed["next"] = dataset["next"].copy()
    late = torch.zeros_like(reward)
    late[ends - 1] = total[ends - lengths].to(reward.dtype)
    delayed["next", "reward"] = late
    return delayed
