"""Implicit Q-learning: values of the data's better actions, and cloning weighted by them.

Kostrikov et al., 2022, https://arxiv.org/abs/2110.06169
"""

from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torchrl.objectives import IQLLoss

from benchmarks.baselines.actor_critic import ActorCritic
from benchmarks.baselines.base import Settings
from benchmarks.baselines.loop import cosine
from benchmarks.baselines.networks import Network, critics, mlp

__all__ = ["IQL"]

_ADROIT = {"temperature": 0.5, "dropout": 0.1}
_LOCOMOTION = {"normalize_returns": True}


class IQL(ActorCritic):
    """IQL with the publication's settings."""

    defaults: ClassVar[Settings] = {
        **ActorCritic.defaults,
        "expectile": 0.7,
        "temperature": 3.0,
        "dropout": 0.0,
        "normalize_returns": False,
    }
    published: ClassVar[dict[str, Settings]] = {
        **dict.fromkeys(("pen", "door", "hammer", "relocate", "kitchen"), _ADROIT),
        **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), _LOCOMOTION),
        "antmaze": {
            "discount": 0.99,
            "expectile": 0.9,
            "temperature": 10.0,
            "reward_shift": -1.0,
        },
    }

    def build(self, dataset: TensorDictBase) -> None:
        """Make the networks and the loss."""
        settings = self.hyperparameters
        hidden, state, action = settings["hidden"], self.observation_dim, self.action_dim
        self.policy = mlp([state, *hidden, action], dropout=settings["dropout"], tanh=True)
        self.actor = ProbabilisticTensorDictSequential(
            Network(_Gaussian(self.policy, action), ["observation"], ["loc", "scale"]),
            ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=_normal),
        )
        self.attach(
            IQLLoss(
                self.actor,
                critics(lambda: mlp([state + action, *hidden, 1])),
                Network(mlp([state, *hidden, 1]), ["observation"], ["state_value"]),
                loss_function="l2",
                temperature=settings["temperature"],
                expectile=settings["expectile"],
            )
        )

    def schedule(self, step: int, steps: int) -> list[float]:
        """The actor's rate falls to zero, the critics' is constant."""
        return [cosine(step, steps), 1.0]

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Transitions; on locomotion, returns span 1000, as the publication's code has it."""
        columns = super().columns(dataset)
        if self.hyperparameters["normalize_returns"]:
            episode, reward = dataset["episode"], columns["next", "reward"]
            returns = torch.zeros(int(episode.max()) + 1).index_add_(0, episode, reward.flatten())
            returns = returns[episode.unique()]
            columns["next", "reward"] = 1000 * reward / (returns.max() - returns.min())
        return columns

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """The losses of actor, critics and value."""
        return {
            "actor": self.loss.actor_loss(batch)[0],
            "qvalue": self.loss.qvalue_loss(batch)[0],
            "value": self.loss.value_loss(batch)[0],
        }


class _Gaussian(nn.Module):
    """Mean and standard deviation, which does not depend on the state, of a Gaussian policy."""

    def __init__(self, mean: nn.Module, action_dim: int) -> None:
        super().__init__()
        self.mean = mean
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(observation)
        return mean, self.log_std.clamp(-5.0, 2.0).exp().expand_as(mean)


def _normal(loc: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
