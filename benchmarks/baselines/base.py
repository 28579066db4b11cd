"""What all baselines share: an agent of one stage, with standardised inputs and bounded actions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mage_agent import Agent, Config, Stage, bounded

__all__ = ["Baseline", "BaselineConfig", "Objective", "UnsuitableError", "cosine"]


class UnsuitableError(ValueError):
    """A dataset lacks what a method learns from."""


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(Config):
    """The published settings of a method.

    ``PRESETS`` holds where the publication departs from the defaults: by domain, or by
    ``domain/dataset``.

    Attributes:
        steps: gradient steps.
        batch_size: transitions, or windows, per step.
    """

    SMALL: ClassVar[dict[str, dict[str, Any]]] = {}
    """What differs besides where a training takes minutes, not days; "" stands for all domains."""

    steps: int = bounded(1_000_000, 1)
    batch_size: int = bounded(256, 1)


def cosine(step: int, steps: int) -> float:
    """Factor of the learning rate that falls from 1 to 0 along a cosine."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


class Baseline(Agent):
    """A method to compare with, trained on TorchRL's losses in one stage.

    Networks see standardised observations and act in [-1, 1].
    """

    told_return: ClassVar[bool] = False
    discounted: ClassVar[bool] = True
    """Whether the method has a discount factor, which is then that of the domain by default."""
    samples: ClassVar[bool] = False
    """Whether the publication scores sampled actions, not the best ones."""
    horizon: int = 1
    """Steps of the windows that the losses take."""
    gradient_clip: float = math.inf
    """Largest gradient norm."""
    low_precision: bool = False
    """Whether losses are computed in bfloat16 where that is native."""

    config: BaselineConfig
    policy: nn.Module
    """Best actions in [-1, 1], (B, A), for standardised observations (B, S)."""

    def __init__(
        self, config: Config, *, observation_dim: int | Mapping[str, int], action_dim: int
    ) -> None:
        super().__init__(config, observation_dim=observation_dim, action_dim=action_dim)
        with torch.device("cpu"):  # TorchRL's losses read the bounds that they are given
            self.build()

    @abstractmethod
    def build(self) -> None:
        """Make the networks and the loss, and set ``policy``."""

    @abstractmethod
    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Losses of a batch, to be summed; each is a scalar."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimiser of all that is trained."""

    @abstractmethod
    def rates(self, step: int, steps: int) -> Sequence[float]:
        """Learning rates, one per parameter group of the optimiser."""

    def after_step(self, step: int) -> None:
        """Follow up on the optimiser's step, such as by moving target networks."""

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """What batches are made of: standardised observations, actions in [-1, 1], episodes."""
        columns = {
            "observation": self.standardized(dataset),
            "action": self.units.action(dataset["action"]).clamp(-1, 1),
            "episode": dataset["episode"],
        }
        return TensorDict(columns, batch_size=[len(dataset)])

    def standardized(self, dataset: TensorDictBase) -> Tensor:
        """Standardised observations of a dataset, (N, S)."""
        standardized: Tensor = self.units.observation(self.units.concatenate(dataset))
        return standardized

    def fit_units(self, dataset: TensorDictBase) -> None:
        """Take statistics; actions are scaled by their bounds."""
        super().fit_units(dataset)
        units, observation = self.units, self.units.concatenate(dataset)
        units.observation.mean.copy_(observation.mean(0))
        # The summand is TD3+BC's: entries that hardly vary are not blown up.
        units.observation.std.copy_(observation.std(0, correction=0) + 1e-3)
        half = (units.action_high - units.action_low) / 2
        units.action.mean.copy_(units.action_low + half)
        units.action.std.copy_(torch.where(half > 0, half, 1.0))  # some dimensions never move

    def stages(self, dataset: TensorDictBase) -> list[Stage]:
        """The one stage."""
        objective = Objective(self, self.losses)
        return [
            Stage(
                name=self.name,
                loss=objective,
                steps=self.config.steps,
                columns=lambda: self.columns(dataset.to(self.device)).cpu(),
                batch_size=self.config.batch_size,
                horizon=self.horizon,
                optimizer=self.optimizer,
                rates=self.rates,
                gradient_clip=self.gradient_clip,
                low_precision=self.low_precision,
                after_step=objective.after_step,
            )
        ]

    def decide(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        state: TensorDict | None = None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorDict | None]:
        """The best action; there is no memory and no noise."""
        action = self.policy(self.units.observation(observation))
        return self.units.environment_action(action), None


class Objective(nn.Module):
    """Losses of a baseline as the loss of a stage; it counts the steps, which some losses heed."""

    step: Tensor

    def __init__(
        self, baseline: Baseline, losses: Callable[[TensorDictBase, int], dict[str, Tensor]]
    ) -> None:
        super().__init__()
        self.baseline, self.losses = baseline, losses
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: TensorDictBase) -> TensorDict:
        """The losses of a batch under their names."""
        losses: dict[str, Any] = self.losses(batch, int(self.step))
        return TensorDict({f"loss_{name}": loss for name, loss in losses.items()})

    def after_step(self, step: int) -> None:
        """Count, and let the baseline follow up."""
        self.baseline.after_step(step)
        self.step += 1
