"""Flow Q-learning: a flow clones the data, and a one-step policy follows it towards high values.

Park et al., 2025, https://arxiv.org/abs/2502.02538
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from benchmarks.baselines.actor_critic import ActorCriticConfig, OwnActorCritic
from benchmarks.baselines.networks import frozen, mlp, xavier
from mage_agent import bounded

__all__ = ["FQL"]

_ADROIT = {"pessimistic": True, "normalize_value": False}
_ANTMAZE = {"discount": 0.99, "reward_shift": -1.0, "normalize_value": False}
_LARGE = {"distillation": 3.0}


@dataclass(frozen=True, kw_only=True)
class FQLConfig(ActorCriticConfig):
    """The publication's settings; its weights of distillation hold for D4RL's rewards.

    Where it has no weight, values are divided by their mean size, an option of the authors' code,
    and beside them distillation has the weight 1.

    Attributes:
        distillation: weight alpha of the distance between one-step policy and flow.
        flow_steps: Euler steps in which the flow is integrated.
        pessimistic: whether targets take the smaller critic, not the mean of both.
        normalize_value: whether the actor's value is divided by its mean size.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "pen": {**_ADROIT, "distillation": 10_000.0},
        "pen/expert": {"distillation": 3_000.0},
        "door": {**_ADROIT, "distillation": 30_000.0},
        "hammer": {**_ADROIT, "distillation": 30_000.0},
        "hammer/cloned": {"distillation": 10_000.0},
        "relocate": {**_ADROIT, "distillation": 30_000.0},
        "relocate/human": {"distillation": 10_000.0},
        "antmaze": {**_ANTMAZE, "distillation": 10.0},
        "antmaze/large-play": _LARGE,
        "antmaze/large-diverse": _LARGE,
        "antmaze/giant-navigate": {"discount": 0.995, "pessimistic": True},
        "humanoidmaze": {**_ANTMAZE, "discount": 0.995, "distillation": 30.0},
    }

    SMALL: ClassVar[dict[str, dict[str, Any]]] = {"": {"hidden": (256, 256, 256)}}

    steps: int = bounded(500_000, 1)
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    distillation: float = bounded(1.0, 0.0)
    flow_steps: int = bounded(10, 1)
    pessimistic: bool = False
    normalize_value: bool = True


class FQL(OwnActorCritic):
    """FQL.

    Without sampling, the one-step policy acts on the noise zero.
    """

    name: ClassVar[str] = "fql"
    config_class: ClassVar[type[ActorCriticConfig]] = FQLConfig
    samples: ClassVar[bool] = True
    config: FQLConfig

    def build(self) -> None:
        """Make the networks."""
        hidden, state, action = self.config.hidden, self.observation_dim, self.action_dim

        def network(*sizes: int, layer_norm: bool = False) -> nn.Sequential:
            return xavier(mlp(sizes, activation=nn.GELU, layer_norm=layer_norm))

        self.flow = network(state + action + 1, *hidden, action)  # velocity v(s, x, t)
        self.policy = network(state + action, *hidden, action)  # action mu(s, z)
        self.actor = nn.ModuleList([self.flow, self.policy])
        self.attach_critic(lambda: network(state + action, *hidden, 1, layer_norm=True))

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """The critics' loss, the flow's, and the two of the one-step policy (Algorithm 1)."""
        observation, action = batch["observation"], batch["action"]
        following = batch["next", "observation"]
        with torch.no_grad():
            values = self.target(following, self.one_step(following, torch.randn_like(action)))
            value = values.min(0).values if self.config.pessimistic else values.mean(0)
        noise = torch.randn_like(action)
        mixed = self.policy(torch.cat([observation, noise], -1))
        with frozen(self.critic):
            reached = self.critic(observation, mixed.clamp(-1, 1)).mean(0)
        size = reached.detach().abs().mean() if self.config.normalize_value else 1.0
        distance = (mixed - self.integrate(observation, noise)).square().mean()
        return {
            "qvalue": self.qvalue_loss(batch, value),
            "flow": self.flow_loss(observation, action),
            "distillation": self.config.distillation * distance,
            "value": -reached.mean() / size,
        }

    def flow_loss(self, observation: Tensor, action: Tensor) -> Tensor:
        """Flow matching: ``|v(s, (1 - t) z + t a, t) - (a - z)|^2``, a mean."""
        noise = torch.randn_like(action)
        time = torch.rand_like(action[:, :1])
        place = (1 - time) * noise + time * action
        velocity = self.flow(torch.cat([observation, place, time], -1))
        return nn.functional.mse_loss(velocity, action - noise)

    @torch.no_grad()
    def integrate(self, observation: Tensor, noise: Tensor) -> Tensor:
        """The flow's actions in [-1, 1], (B, A), from noise (B, A) by Euler's method."""
        place, steps = noise, self.config.flow_steps
        for step in range(steps):
            time = torch.full_like(place[:, :1], step / steps)
            place = place + self.flow(torch.cat([observation, place, time], -1)) / steps
        return place.clamp(-1, 1)

    def one_step(self, observation: Tensor, noise: Tensor) -> Tensor:
        """The one-step policy's actions in [-1, 1], (B, A)."""
        action: Tensor = self.policy(torch.cat([observation, noise], -1))
        return action.clamp(-1, 1)

    def decide(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        state: TensorDict | None = None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorDict | None]:
        """One action of the one-step policy; ``temperature`` scales its noise."""
        noise = observation.new_zeros(len(observation), self.action_dim)
        if temperature > 0:
            noise = temperature * noise.normal_(generator=generator)
        action = self.one_step(self.units.observation(observation), noise)
        return self.units.environment_action(action), None
