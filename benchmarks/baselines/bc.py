"""Behaviour cloning, of all data or of its best episodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor
from torchrl.objectives import BCLoss

from benchmarks.baselines.base import Baseline, BaselineConfig, cosine
from benchmarks.baselines.networks import Network, mlp
from mage_agent import bounded, cut_episodes

__all__ = ["BehaviourCloning", "TenPercentCloning"]

_LONGEST = 1000
"""Steps after which 10% BC cuts an episode, as CORL does."""


@dataclass(frozen=True, kw_only=True)
class CloningConfig(BaselineConfig):
    """Settings of cloning.

    Attributes:
        hidden: units of the hidden layers.
        learning_rate: at first; it falls to zero.
        fraction: part of the episodes that is cloned, those with the highest returns.
    """

    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = bounded(1e-3, 1e-12)
    fraction: float = bounded(1.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class TenPercentConfig(CloningConfig):
    """Settings of cloning of the best tenth."""

    fraction: float = bounded(0.1, 0.0, 1.0)


class BehaviourCloning(Baseline):
    """A perceptron fitted to actions by least squares.

    Size, batch and squashing are those that TD3+BC's and CORL's comparisons use.
    """

    name: ClassVar[str] = "bc"
    config_class: ClassVar[type[CloningConfig]] = CloningConfig
    config: CloningConfig

    def build(self) -> None:
        """Make the networks and the loss."""
        sizes = [self.observation_dim, *self.config.hidden, self.action_dim]
        self.policy = mlp(sizes, tanh=True)
        self.loss = _Loss(Network(self.policy, ["observation"], ["action"]), loss_function="l2")

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam; its rate falls to zero."""
        return torch.optim.Adam(self.policy.parameters(), fused=True)

    def rates(self, step: int, steps: int) -> Sequence[float]:
        """One falling rate."""
        return [self.config.learning_rate * cosine(step, steps)]

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Squared error of the actions."""
        return {"bc": self.loss(batch)["loss_bc"]}


class _Loss(BCLoss):  # type: ignore[misc]
    """The same, with a declaration that TorchRL 0.14 forgets and warns about."""

    target_actor_network_params: TensorDictParams


class TenPercentCloning(BehaviourCloning):
    """Cloning of the tenth of the episodes with the highest returns.

    Returns are discounted, as in CORL, so that among successes in a maze the fastest count as best.
    As there, longer episodes are cut: Maze2D's data are one endless run.
    """

    name: ClassVar[str] = "ten_percent_bc"
    config_class: ClassVar[type[CloningConfig]] = TenPercentConfig

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """The best episodes; those on the border are drawn by their order in the data."""
        dataset = cut_episodes(dataset, _LONGEST)
        starts = dataset["step_count"].flatten() == 0
        returns = self.returns_to_go(dataset).flatten()[starts]
        count = max(1, int(self.config.fraction * len(returns)))
        best = dataset["episode"][starts][returns.argsort(descending=True, stable=True)[:count]]
        return super().columns(dataset[torch.isin(dataset["episode"], best)])
