"""What methods with a critic share: transitions, scaled rewards, two rates, target networks."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule, SoftUpdate, ValueEstimators

from benchmarks.baselines.base import Baseline, BaselineConfig
from benchmarks.baselines.networks import Ensemble, follow
from mage_agent import bounded

__all__ = ["ActorCritic", "ActorCriticConfig", "OwnActorCritic"]


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(BaselineConfig):
    """Settings of methods with a critic.

    Attributes:
        hidden: units of the hidden layers.
        actor_learning_rate: of the actor.
        critic_learning_rate: of all else.
        target_rate: part of the way that target networks move in a step.
        reward_scale: factor on the rewards.
        reward_shift: added to the scaled rewards.
    """

    hidden: tuple[int, ...] = (256, 256)
    actor_learning_rate: float = bounded(3e-4, 1e-12)
    critic_learning_rate: float = bounded(3e-4, 1e-12)
    target_rate: float = bounded(0.005, 0.0, 1.0)
    reward_scale: float = 1.0
    reward_shift: float = 0.0


class ActorCritic(Baseline):
    """A baseline with the attributes ``actor`` and ``loss``, a TorchRL loss with targets.

    Episodes that were cut off are bootstrapped from their last observation; those that terminated
    are worth their last reward.
    """

    config: ActorCriticConfig
    target_interval: ClassVar[int] = 1
    """Steps between two moves of the target networks."""

    actor: nn.Module

    def attach(self, loss: LossModule) -> None:
        """Take over a loss whose networks are complete."""
        self.loss = loss
        loss.make_value_estimator(ValueEstimators.TD0, gamma=self.config.discount)
        self._targets = SoftUpdate(loss, tau=self.config.target_rate)

    def actor_parameters(self) -> list[nn.Parameter]:
        """What learns at the actor's rate."""
        return list(self.actor.parameters())

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with one rate for the actor and one for the rest."""
        ours = self.actor_parameters()
        rest = [each for each in self.loss.parameters() if not any(each is one for one in ours)]
        return torch.optim.Adam([{"params": ours}, {"params": rest}], fused=True)

    def rates(self, step: int, steps: int) -> Sequence[float]:
        """Two constant rates."""
        return [self.config.actor_learning_rate, self.config.critic_learning_rate]

    def after_step(self, step: int) -> None:
        """Move the target networks."""
        if step % self.target_interval == 0:
            self._targets.step()

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Transitions, with rewards scaled and shifted."""
        following = dataset["next"]
        outcome = {
            "observation": self.standardized(following),
            "reward": following["reward"] * self.config.reward_scale + self.config.reward_shift,
            "terminated": following["terminated"],
            "done": following["done"],
        }
        return super().columns(dataset).set("next", TensorDict(outcome, [len(dataset)]))


class OwnActorCritic(ActorCritic):
    """A baseline whose losses are written out, for which TorchRL has none.

    ``critic`` and ``target``, a moving average of it, are ensembles Q(s, a).
    """

    def attach_critic(self, make: Callable[[], nn.Module]) -> None:
        """Make two critics of new layers from (B, S + A) to (B, 1), and their targets."""
        self.critic = Ensemble(make)
        self.target = deepcopy(self.critic).requires_grad_(False)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with one rate for the actor and one for the critics."""
        groups = [self.actor.parameters(), self.critic.parameters()]
        return torch.optim.Adam([{"params": list(group)} for group in groups], fused=True)

    def after_step(self, step: int) -> None:
        """Move the target critics."""
        follow(self.target, self.critic, self.config.target_rate)

    def qvalue_loss(self, batch: TensorDictBase, following: Tensor) -> Tensor:
        """Squared errors of the critics, against the values (B,) that follow."""
        outcome = batch["next"]
        alive = ~outcome["terminated"].squeeze(-1)
        target = outcome["reward"].squeeze(-1) + self.config.discount * alive * following
        errors = self.critic(batch["observation"], batch["action"]) - target.detach()
        loss: Tensor = errors.square().mean(-1).sum()
        return loss
