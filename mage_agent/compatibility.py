"""Does a dataset, or a return to ask for, fit an agent? Asked before anything is done with it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from tensordict import TensorDictBase

from mage_agent.agent import Agent
from mage_agent.data import check_dataset, episode_lengths
from mage_agent.nn.units import BEST

__all__ = ["check_fits", "check_target"]

FAR = 100.0
"""Standard deviations by which observations may differ from those the agent knows, on average;
agents may scale an entry, such as a goal, by the statistics of another one."""

TOLERANCE = 1e-4
"""How far data may lie outside an agent's bounds, as a part of their distance: rounding."""


def check_fits(agent: Agent, dataset: TensorDictBase) -> None:
    """Compare a dataset with an agent before anything is trained.

    Args:
        agent: to be trained.
        dataset: from ``load_dataset``.

    Raises:
        KeyError, TypeError: the dataset is not what ``load_dataset`` returns.
        ValueError: entries or sizes differ, actions lie outside the agent's bounds, or the agent
            is a copy that only acts.

    Warns:
        UserWarning: returns lie outside the range that the agent was built with, observations are
            of another scale, or the return to ask for is that of an episode cut off early.
    """
    if agent.only_acts:
        raise ValueError("optimize_for_inference made this copy to act; train the model itself.")
    check_dataset(dataset)
    missing = [key for key in agent.config.observation_keys if key not in dataset]
    if missing:
        raise ValueError(f"the dataset lacks the agent's observation entries {missing}.")
    found = {key: dataset[key].shape[-1] for key in agent.observation_sizes}
    actions = dataset["action"].shape[-1]
    if (found, actions) != (agent.observation_sizes, agent.action_dim):
        raise ValueError(
            f"the dataset has observations of the sizes {found} and {actions} actions, the agent "
            f"{agent.observation_sizes} and {agent.action_dim}; build it with from_dataset."
        )
    _check_ranges(agent, dataset)
    if agent.told_return and agent.units.default_target < BEST:
        _check_asked(agent, dataset)


def _check_ranges(agent: Agent, dataset: TensorDictBase) -> None:
    """Compare a dataset with the bounds and returns that the agent was built for."""
    units, action = agent.units, dataset["action"]
    low, high = units.action_low.to(action.device), units.action_high.to(action.device)
    width = torch.where((high - low).isfinite(), high - low, 0.0)
    beyond = torch.maximum(low - action, action - high) > TOLERANCE * width
    if beyond.any():
        row, column = beyond.nonzero()[0].tolist()
        raise ValueError(
            f"{int(beyond.any(-1).sum())} of {len(dataset)} steps have actions outside the agent's "
            f"bounds, first {action[row, column]:g} in step {row}, dimension {column}, where "
            f"[{low[column]:g}, {high[column]:g}] is allowed; build the agent from this dataset, "
            "or load it with the bounds of the first one."
        )
    observation = units.observation(units.concatenate(dataset).to(agent.device))
    away = float(observation.square().mean(0, dtype=torch.float64).max().sqrt())
    spread = float(observation.var(0, correction=0).max().sqrt())
    if away > FAR or spread < 1 / FAR:
        far = f"on average {away:.3g} standard deviations away from"
        how = far if away > FAR else "hardly as varied as"
        warnings.warn(
            f"the dataset's observations are {how} those that the agent was built with, and are "
            "still scaled like these: perhaps they have other units. Build the agent anew with "
            "from_dataset, or from both datasets together.",
            stacklevel=4,
        )
    returns = agent.returns_to_go(agent.trajectories(dataset))
    smallest, largest = units.return_range.tolist()
    found = float(returns.min()), float(returns.max())
    slack = TOLERANCE * (largest - smallest)
    if found[0] < smallest - slack or found[1] > largest + slack:
        warnings.warn(
            f"the dataset's returns-to-go reach from {found[0]:g} to {found[1]:g}, those that the "
            f"agent was built with from {smallest:g} to {largest:g}, and no others are asked for; "
            "build the agent anew with from_dataset, or from both datasets together.",
            stacklevel=4,
        )


def _check_asked(agent: Agent, dataset: TensorDictBase) -> None:
    """Does the best return come of an episode that had hardly begun when it was cut off?"""
    lengths = episode_lengths(dataset["episode"])
    ends = lengths.cumsum(0) - 1
    returns = agent.returns_to_go(dataset)[ends - lengths + 1].flatten()
    best = int(torch.where(returns == returns.max(), lengths, 0).argmax())  # the longest of these
    length, usual = int(lengths[best]), int(lengths.median())
    asked = math.isclose(float(returns[best]), agent.units.default_target, rel_tol=1e-6)
    if asked and 2 * length < usual and dataset["next", "truncated"][ends[best]]:
        warnings.warn(
            f"the return that is asked for, {float(returns[best]):g}, is that of an episode cut "
            f"off after {length} steps, where most have {usual} or more; leave such episodes out, "
            "or set target_return.",
            stacklevel=4,
        )


def check_target(agent: Agent, target_return: Any, *, for_later: bool = False) -> None:
    """Is it a return that the agent can be asked for? None always is.

    Raises:
        ValueError: the agent's actions do not depend on it.

    Warns:
        UserWarning: it is further from the data's than these from one another, or, ``for_later``,
            the agent's actions do not depend on it yet.
    """
    if target_return is None:
        return
    if not agent.told_return:
        reason = (
            f"target_return is {target_return}, but the agent does not act on a return that is "
            "asked for, so that nothing would come of it; leave it out, or ask GAC the query "
            '"target" without an asked_return.'
        )
        if not for_later:
            raise ValueError(reason)
        warnings.warn(reason, stacklevel=3)
        return
    low, high = agent.units.return_to_go_range
    asked = torch.as_tensor(target_return, dtype=torch.float64)
    far = (asked - asked.clamp(low, high)).abs() > high - low
    varied = low < high and agent.units.default_target < BEST  # else the best of the state is meant
    if varied and far.any():
        warnings.warn(
            f"a return of {float(asked[far].flatten()[0]):g} is asked for, but the data's lie in "
            f"[{low:g}, {high:g}]: the agent has learned nothing of returns so far away.",
            stacklevel=3,
        )
