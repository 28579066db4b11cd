"""TD3+BC: a deterministic actor-critic that also clones (Fujimoto and Gu, 2021).

https://arxiv.org/abs/2106.06860
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import TD3BCLoss

from benchmarks.baselines.actor_critic import ActorCritic, ActorCriticConfig
from benchmarks.baselines.networks import Network, critics, mlp
from mage_agent import bounded

__all__ = ["TD3BC"]


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(ActorCriticConfig):
    """The publication's settings; those of AntMaze are CORL's.

    Attributes:
        alpha: weight of the value beside the cloning.
        policy_noise: standard deviation of the noise on the actions that targets are judged by.
        noise_clip: its largest size.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "antmaze": {"discount": 0.99, "reward_shift": -1.0}
    }

    alpha: float = bounded(2.5, 0.0)
    policy_noise: float = bounded(0.2, 0.0)
    noise_clip: float = bounded(0.5, 0.0)


class TD3BC(ActorCritic):
    """TD3+BC."""

    name: ClassVar[str] = "td3_bc"
    config_class: ClassVar[type[ActorCriticConfig]] = TD3BCConfig
    config: TD3BCConfig
    target_interval: ClassVar[int] = 2  # actor and targets move on every second step

    def build(self) -> None:
        """Make the networks and the loss."""
        settings = self.config
        hidden, state, action = settings.hidden, self.observation_dim, self.action_dim
        self.policy = mlp([state, *hidden, action], tanh=True)
        self.actor = Network(self.policy, ["observation"], ["action"])
        self.attach(
            TD3BCLoss(
                self.actor,
                critics(lambda: mlp([state + action, *hidden, 1])),
                bounds=(-1.0, 1.0),
                policy_noise=settings.policy_noise,
                noise_clip=settings.noise_clip,
                alpha=settings.alpha,
                loss_function="l2",
            )
        )

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """The critics' loss, and on every second step the actor's."""
        losses = {"qvalue": self.loss.qvalue_loss(batch)[0]}
        if step % self.target_interval == 0:
            losses["actor"] = self.loss.actor_loss(batch)[0]
        return losses
