"""Planners that act with a moving average of their weights, as diffusion models do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.baselines.planner import Generators, Planner, PlannerConfig, sources
from mage_agent import bounded

__all__ = ["AveragedPlanner", "AveragedPlannerConfig", "averaged"]


@dataclass(frozen=True, kw_only=True)
class AveragedPlannerConfig(PlannerConfig):
    """Settings of planners with averaged weights.

    Attributes:
        average_decay: of the moving average of the weights, which acts; it is smaller at first.
        average_interval: steps between two of its moves.
        candidates: plans that the one with the highest value is chosen from.
        termination_penalty: added, in values, to the last reward of an episode that terminates.
    """

    average_decay: float = bounded(0.995, 0.0, 1.0)
    average_interval: int = bounded(10, 1)
    candidates: int = bounded(50, 1)
    termination_penalty: float = 0.0


class AveragedPlanner(Planner):
    """A planner whose ``average`` acts, of the networks ``trained``."""

    config: AveragedPlannerConfig
    average: Any

    def train_averaged(self, networks: dict[str, nn.Module], **decays: float) -> None:
        """Train these networks by name, and act with their averages.

        Args:
            networks: by name.
            **decays: of networks whose average has another one than ``average_decay``.
        """
        decay = self.config.average_decay
        self.trained = nn.ModuleDict(networks)
        self.average = nn.ModuleDict(
            {name: averaged(each, decays.get(name, decay)) for name, each in networks.items()}
        )

    def valued_returns(self, dataset: TensorDictBase) -> Tensor:
        """The return-to-go of every step, (N, 1), that values learn: failures are penalized."""
        penalty = self.config.termination_penalty * dataset["next", "terminated"]
        penalized: TensorDictBase = dataset.clone(recurse=False)
        penalized["next", "reward"] = dataset["next", "reward"] + penalty
        returns: Tensor = self.returns_to_go(penalized)
        return returns

    @property
    def acting(self) -> dict[str, Any]:
        """The networks by name, with averaged weights."""
        return {name: average.module for name, average in self.average.items()}

    def sources(
        self, observation: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Generators:
        """Where the noise of all candidates comes from."""
        return sources(observation, temperature, generator, candidates=self.config.candidates)

    def after_step(self, step: int) -> None:
        """Move the average."""
        if step % self.config.average_interval == 0:
            for name, average in self.average.items():
                average.update_parameters(self.trained[name])


def averaged(networks: nn.Module, decay: float) -> AveragedModel:
    """Networks whose weights are a moving average of others'.

    The n-th move has the decay min(decay, (1 + n) / (10 + n)), so that short trainings end with
    little of their first weights. (The publications start to average after some thousand steps.)
    """
    average = AveragedModel(networks, multi_avg_fn=partial(_move, decay))
    return average.requires_grad_(False)


def _move(decay: float, average: list[Tensor], current: list[Tensor], moves: Tensor) -> None:
    count = int(moves)
    get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(average, current, moves)
