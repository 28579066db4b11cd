"""Implicit Q-learning: values of the data's better actions, and cloning weighted by them.

Kostrikov et al., 2022, https://arxiv.org/abs/2110.06169
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torchrl.objectives import IQLLoss

from benchmarks.baselines.actor_critic import ActorCritic, ActorCriticConfig
from benchmarks.baselines.base import cosine
from benchmarks.baselines.networks import Gaussian, Network, critics, mlp
from benchmarks.domains import ADROIT
from mage_agent import bounded

__all__ = ["IQL"]

_ADROIT = {"inverse_temperature": 0.5, "dropout": 0.1}
_LOCOMOTION = {"normalize_returns": True}


@dataclass(frozen=True, kw_only=True)
class IQLConfig(ActorCriticConfig):
    """The publication's settings.

    Attributes:
        expectile: of the values.
        inverse_temperature: of the advantage weights.
        dropout: of the actor's hidden units.
        normalize_returns: whether rewards are scaled so that returns span 1000.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        **dict.fromkeys((*ADROIT, "kitchen"), _ADROIT),
        **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), _LOCOMOTION),
        "antmaze": {
            "discount": 0.99,
            "expectile": 0.9,
            "inverse_temperature": 10.0,
            "reward_shift": -1.0,
        },
    }

    expectile: float = bounded(0.7, 0.0, 1.0)
    inverse_temperature: float = bounded(3.0, 0.0)
    dropout: float = bounded(0.0, 0.0, 0.99)
    normalize_returns: bool = False


class IQL(ActorCritic):
    """IQL."""

    name: ClassVar[str] = "iql"
    config_class: ClassVar[type[ActorCriticConfig]] = IQLConfig
    config: IQLConfig

    def build(self) -> None:
        """Make the networks and the loss."""
        settings = self.config
        hidden, state, action = settings.hidden, self.observation_dim, self.action_dim
        self.policy = mlp([state, *hidden, action], dropout=settings.dropout, tanh=True)
        self.actor = ProbabilisticTensorDictSequential(
            Network(Gaussian(self.policy, action), ["observation"], ["loc", "scale"]),
            ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=_normal),
        )
        self.attach(
            IQLLoss(
                self.actor,
                critics(lambda: mlp([state + action, *hidden, 1])),
                Network(mlp([state, *hidden, 1]), ["observation"], ["state_value"]),
                loss_function="l2",
                temperature=settings.inverse_temperature,
                expectile=settings.expectile,
            )
        )

    def rates(self, step: int, steps: int) -> Sequence[float]:
        """The actor's rate falls to zero, the critics' is constant."""
        actor, critics = super().rates(step, steps)
        return [actor * cosine(step, steps), critics]

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Transitions; on locomotion, returns span 1000, as the publication's code has it."""
        columns = super().columns(dataset)
        if self.config.normalize_returns:
            episode, reward = dataset["episode"], columns["next", "reward"]
            returns = reward.new_zeros(int(episode.max()) + 1)
            returns.index_add_(0, episode, reward.flatten())
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


def _normal(loc: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)
