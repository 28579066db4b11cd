"""Conservative Q-learning: soft actor-critic whose critics are pushed down off the data.

Kumar et al., 2020, https://arxiv.org/abs/2006.04779; settings of CORL, which the paper's tables
quote.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import TanhNormal

from benchmarks.baselines.actor_critic import ActorCritic, ActorCriticConfig
from benchmarks.baselines.losses import ConservativeLoss
from benchmarks.baselines.networks import Network, critics, mlp
from benchmarks.domains import ADROIT, POINT_MAZES
from mage_agent import bounded

__all__ = ["CQL"]

_MAZE = {"lagrange": True}
_ADROIT = {"conservatism": 1.0, "actor_learning_rate": 1e-4}


@dataclass(frozen=True, kw_only=True)
class CQLConfig(ActorCriticConfig):
    """Settings of CORL.

    Attributes:
        critic_hidden: units of the critics' hidden layers.
        conservatism: weight of the conservative term.
        sampled_actions: actions of each kind that the soft maximum is taken over.
        lagrange: whether the weight is tuned by a multiplier.
        target_gap: gap at which the multiplier rests.
        max_backup: whether targets take the best of the sampled next actions.
        smallest_gap: at which gaps are cut off from below.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        **dict.fromkeys((*ADROIT, "kitchen"), _ADROIT),
        "pen/expert": {"lagrange": True, "actor_learning_rate": 3e-5},
        **dict.fromkeys(POINT_MAZES, _MAZE),
        "antmaze": {
            "critic_hidden": (256,) * 5,
            "actor_learning_rate": 1e-4,
            "discount": 0.99,
            "conservatism": 5.0,
            "lagrange": True,
            "target_gap": 0.8,
            "max_backup": True,
            "smallest_gap": -200.0,
            "reward_scale": 10.0,
            "reward_shift": -5.0,
        },
    }

    hidden: tuple[int, ...] = (256, 256, 256)
    critic_hidden: tuple[int, ...] = (256, 256, 256)
    actor_learning_rate: float = bounded(3e-5, 1e-12)
    conservatism: float = bounded(10.0, 0.0)
    sampled_actions: int = bounded(10, 1)
    lagrange: bool = False
    target_gap: float = 5.0
    max_backup: bool = False
    smallest_gap: float | None = None


class CQL(ActorCritic):
    """CQL(H) with importance sampling, with or without its Lagrange multiplier."""

    name: ClassVar[str] = "cql"
    config_class: ClassVar[type[ActorCriticConfig]] = CQLConfig
    config: CQLConfig

    def build(self) -> None:
        """Make the networks and the loss."""
        settings = self.config
        state, action = self.observation_dim, self.action_dim
        gaussian = _Gaussian(mlp([state, *settings.hidden, 2 * action]))
        self.policy = _Mode(gaussian)
        self.actor = ProbabilisticTensorDictSequential(
            Network(gaussian, ["observation"], ["loc", "scale"]),
            ProbabilisticTensorDictModule(
                ["loc", "scale"], ["action"], distribution_class=TanhNormal
            ),
        )
        self.attach(
            ConservativeLoss(
                self.actor,
                critics(lambda: _orthogonal(mlp([state + action, *settings.critic_hidden, 1]))),
                action_spec=Bounded(-1, 1, (action,)),
                loss_function="l2",
                num_random=settings.sampled_actions,
                max_q_backup=settings.max_backup,
                with_lagrange=settings.lagrange,
                lagrange_thresh=settings.target_gap,
            )
        )
        if settings.lagrange:
            nn.init.ones_(self.loss.log_alpha_prime)  # CORL's; TorchRL begins at 0

    def actor_parameters(self) -> list[nn.Parameter]:
        """The entropy's weight learns at the actor's rate."""
        return [*super().actor_parameters(), self.loss.log_alpha]

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """The losses of actor, entropy's weight and critics, the conservative one, and its dual."""
        settings, loss = self.config, self.loss
        losses = {"qvalue": loss.q_loss(batch)[0]}
        gaps = loss.gaps(batch)
        if settings.smallest_gap is not None:
            gaps = gaps.clamp(min=settings.smallest_gap)
        gap = gaps.mean(-1)  # one per critic
        if settings.lagrange:
            gap = gap - settings.target_gap
            multiplier = loss.log_alpha_prime.exp().clamp(max=1e6)
            weighted = settings.conservatism * gap.detach()
            losses["multiplier"] = -multiplier * weighted.mean()
            gap = multiplier.detach() * gap
        losses["conservative"] = settings.conservatism * gap.sum()
        losses["actor"], sampled = loss.actor_loss(batch)
        losses["entropy"] = loss.alpha_loss(sampled)[0]
        return losses


class _Gaussian(nn.Module):
    """Mean and standard deviation before squashing."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers
        last = layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.xavier_uniform_(last.weight, gain=1e-2)
        nn.init.zeros_(last.bias)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.layers(observation).chunk(2, -1)
        return mean, (log_std - 1).clamp(-20, 2).exp()  # starts narrower than 1


class _Mode(nn.Module):
    """The squashed mean."""

    def __init__(self, gaussian: _Gaussian) -> None:
        super().__init__()
        self.gaussian = gaussian

    def forward(self, observation: Tensor) -> Tensor:
        return torch.tanh(self.gaussian(observation)[0])


def _orthogonal(layers: nn.Sequential) -> nn.Sequential:
    """Start from orthogonal weights and a small last layer."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for layer in linear:
        nn.init.orthogonal_(layer.weight, gain=1e-2 if layer is linear[-1] else math.sqrt(2))
        nn.init.zeros_(layer.bias)
    return layers
