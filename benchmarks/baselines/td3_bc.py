"""TD3+BC: a deterministic actor-critic that also clones (Fujimoto and Gu, 2021).

https://arxiv.org/abs/2106.06860
"""

from typing import ClassVar

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import TD3BCLoss

from benchmarks.baselines.actor_critic import ActorCritic
from benchmarks.baselines.base import Settings
from benchmarks.baselines.networks import Network, critics, mlp

__all__ = ["TD3BC"]


class TD3BC(ActorCritic):
    """TD3+BC with the publication's settings; those of AntMaze are CORL's."""

    defaults: ClassVar[Settings] = {
        **ActorCritic.defaults,
        "alpha": 2.5,
        "policy_noise": 0.2,
        "noise_clip": 0.5,
    }
    published: ClassVar[dict[str, Settings]] = {"antmaze": {"discount": 0.99, "reward_shift": -1.0}}
    target_interval: ClassVar[int] = 2  # actor and targets move on every second step

    def build(self, dataset: TensorDictBase) -> None:
        """Make the networks and the loss."""
        settings = self.hyperparameters
        hidden, state, action = settings["hidden"], self.observation_dim, self.action_dim
        self.policy = mlp([state, *hidden, action], tanh=True)
        self.actor = Network(self.policy, ["observation"], ["action"])
        self.attach(
            TD3BCLoss(
                self.actor,
                critics(lambda: mlp([state + action, *hidden, 1])),
                bounds=(-1.0, 1.0),
                policy_noise=settings["policy_noise"],
                noise_clip=settings["noise_clip"],
                alpha=settings["alpha"],
                loss_function="l2",
            )
        )

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """The critics' loss, and on every second step the actor's."""
        losses = {"qvalue": self.loss.qvalue_loss(batch)[0]}
        if step % self.target_interval == 0:
            losses["actor"] = self.loss.actor_loss(batch)[0]
        return losses
