"""What methods with a critic share: transitions, scaled rewards, two rates, target networks."""

from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.objectives import LossModule, SoftUpdate, ValueEstimators

from benchmarks.baselines.base import Baseline, Settings

__all__ = ["ActorCritic"]


class ActorCritic(Baseline):
    """A baseline with the attributes ``actor`` and ``loss``, a TorchRL loss with targets.

    Episodes that were cut off are bootstrapped from their last observation; those that terminated
    are worth their last reward.
    """

    defaults: ClassVar[Settings] = {
        "hidden": [256, 256],
        "batch_size": 256,
        "actor_learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
        "discount": 0.99,
        "target_rate": 0.005,
        "reward_scale": 1.0,
        "reward_shift": 0.0,
    }
    target_interval: ClassVar[int] = 1
    """Steps between two moves of the target networks."""

    actor: nn.Module

    def attach(self, loss: LossModule) -> None:
        """Take over a loss whose networks are complete."""
        self.loss = loss
        settings = self.hyperparameters
        loss.make_value_estimator(ValueEstimators.TD0, gamma=settings["discount"])
        self._targets = SoftUpdate(loss, tau=settings["target_rate"])

    def actor_parameters(self) -> list[nn.Parameter]:
        """What learns at the actor's rate."""
        return list(self.actor.parameters())

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with one rate for the actor and one for the rest."""
        ours = self.actor_parameters()
        rest = [each for each in self.loss.parameters() if not any(each is one for one in ours)]
        settings = self.hyperparameters
        groups = [
            {"params": ours, "lr": settings["actor_learning_rate"]},
            {"params": rest, "lr": settings["critic_learning_rate"]},
        ]
        return torch.optim.Adam(groups, fused=True)

    def schedule(self, step: int, steps: int) -> list[float]:
        """Two constant rates."""
        return [1.0, 1.0]

    def after_step(self, step: int) -> None:
        """Move the target networks."""
        if step % self.target_interval == 0:
            self._targets.step()

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Transitions, with rewards scaled and shifted."""
        settings, following = self.hyperparameters, dataset["next"]
        reward = following["reward"] * settings["reward_scale"] + settings["reward_shift"]
        outcome = {
            "observation": self.standardized(following),
            "reward": reward,
            "terminated": following["terminated"],
            "done": following["done"],
        }
        return super().columns(dataset).set("next", TensorDict(outcome, [len(dataset)]))
