"""Behaviour cloning, of all data or of its best episodes."""

from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor
from torchrl.objectives import BCLoss

from benchmarks.baselines.base import Baseline, Settings
from benchmarks.baselines.loop import cosine
from benchmarks.baselines.networks import Network, mlp

__all__ = ["BehaviourCloning", "TenPercentCloning"]


class BehaviourCloning(Baseline):
    """A perceptron fitted to actions by least squares.

    Size, batch and squashing are those that TD3+BC's and CORL's comparisons use.
    """

    defaults: ClassVar[Settings] = {"hidden": [256, 256], "batch_size": 256, "learning_rate": 1e-3}

    def build(self, dataset: TensorDictBase) -> None:
        """Make the networks and the loss."""
        sizes = [self.observation_dim, *self.hyperparameters["hidden"], self.action_dim]
        self.policy = mlp(sizes, tanh=True)
        self.loss = _Loss(Network(self.policy, ["observation"], ["action"]), loss_function="l2")

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam; its rate falls to zero."""
        rate = self.hyperparameters["learning_rate"]
        return torch.optim.Adam(self.policy.parameters(), lr=rate, fused=True)

    def schedule(self, step: int, steps: int) -> list[float]:
        """One falling rate."""
        return [cosine(step, steps)]

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Squared error of the actions."""
        return {"bc": self.loss(batch)["loss_bc"]}


class _Loss(BCLoss):  # type: ignore[misc]
    """The same, with a declaration that TorchRL 0.14 forgets and warns about."""

    target_actor_network_params: TensorDictParams


class TenPercentCloning(BehaviourCloning):
    """Cloning of the tenth of the episodes with the highest returns.

    Returns are discounted, as in CORL, so that among successes in a maze the fastest count as best.
    """

    defaults: ClassVar[Settings] = {**BehaviourCloning.defaults, "fraction": 0.1}

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """The best episodes; those on the border are drawn by their order in the data."""
        starts = dataset["step_count"].flatten() == 0
        returns = dataset["return_to_go"].flatten()[starts]
        count = max(1, int(self.hyperparameters["fraction"] * len(returns)))
        best = dataset["episode"][starts][returns.argsort(descending=True, stable=True)[:count]]
        return super().columns(dataset[torch.isin(dataset["episode"], best)])
