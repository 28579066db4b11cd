"""Diffusion-QL: a diffusion policy that clones the data and climbs the critic's values.

Wang et al., 2023, https://arxiv.org/abs/2208.06193
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from benchmarks.baselines.actor_critic import ActorCriticConfig, OwnActorCritic
from benchmarks.baselines.denoiser import Denoiser
from benchmarks.baselines.networks import follow, frozen, mlp
from benchmarks.baselines.planner import sources
from benchmarks.baselines.unet import randn_tensor
from benchmarks.domains import ADROIT
from mage_agent import bounded

__all__ = ["DiffusionQL"]

_BACKUPS = 10
"""Actions for the next state, of which ``max_backup`` takes the best."""
_AVERAGE_FROM, _AVERAGE_EVERY = 1000, 5
"""First step, and steps between two updates, of the average of the actor's weights."""


def _tuned(value_weight: float, gradient_clip: float, **others: Any) -> dict[str, Any]:
    return {"value_weight": value_weight, "gradient_clip": gradient_clip, **others}


_ADROIT = _tuned(0.1, 8.0, actor_learning_rate=3e-5, normalize_rewards=True)
_REWARDS = {"discount": 0.99, "reward_scale": 4.0, "reward_shift": -2.0}


@dataclass(frozen=True, kw_only=True)
class DiffusionQLConfig(ActorCriticConfig):
    """The publication's settings, tuned by its authors for each dataset.

    Adroit's but pen have those of pen-cloned.

    Attributes:
        diffusion_steps: denoising steps T.
        value_weight: weight eta of the value beside the cloning.
        gradient_clip: largest gradient norm, of the actor and of the critics.
        max_backup: whether targets take the best of ten actions for the next state.
        normalize_rewards: whether rewards are standardised.
        candidates: actions of which one is executed.
        average_rate: part of the way that the average of the actor moves in an update.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        **dict.fromkeys(ADROIT, _ADROIT),
        "pen/human": _tuned(0.15, 7.0),
        "kitchen": _tuned(0.005, 10.0),
        "kitchen/complete": _tuned(0.005, 9.0, steps=250_000),
        "antmaze": _tuned(0.5, 2.0, **_REWARDS),
        "antmaze/umaze-diverse": _tuned(2.0, 3.0, max_backup=True),
        "antmaze/medium-play": _tuned(2.0, 2.0, max_backup=True, actor_learning_rate=1e-3),
        "antmaze/medium-diverse": _tuned(3.0, 1.0, max_backup=True),
        "antmaze/large-play": _tuned(4.5, 10.0, max_backup=True),
        "antmaze/large-diverse": _tuned(3.5, 7.0, max_backup=True),
        **dict.fromkeys(("halfcheetah", "hopper"), _tuned(1.0, 9.0, steps=2_000_000)),
        "walker2d": _tuned(1.0, 1.0, steps=2_000_000),
        "halfcheetah/medium-replay": _tuned(1.0, 2.0),
        "halfcheetah/medium-expert": _tuned(1.0, 7.0),
        "hopper/medium-replay": _tuned(1.0, 4.0),
        "hopper/medium-expert": _tuned(1.0, 5.0),
        "walker2d/medium-replay": _tuned(1.0, 4.0),
        "walker2d/medium-expert": _tuned(1.0, 5.0),
    }

    hidden: tuple[int, ...] = (256, 256, 256)
    diffusion_steps: int = bounded(5, 1, 1000)
    value_weight: float = bounded(1.0, 0.0)
    gradient_clip: float = bounded(9.0, 1e-12)
    max_backup: bool = False
    normalize_rewards: bool = False
    candidates: int = bounded(50, 1)
    average_rate: float = bounded(0.005, 0.0, 1.0)


class DiffusionQL(OwnActorCritic):
    """Diffusion-QL.

    Of 50 sampled actions one is drawn with probabilities softmax(Q). Without sampling, their noise
    follows from the observation, and the best one is taken.
    """

    name: ClassVar[str] = "diffusion_ql"
    config_class: ClassVar[type[ActorCriticConfig]] = DiffusionQLConfig
    samples: ClassVar[bool] = True
    config: DiffusionQLConfig
    actor: Denoiser

    def build(self) -> None:
        """Make the networks."""
        hidden, state, action = self.config.hidden, self.observation_dim, self.action_dim
        self.actor = Denoiser(state, action, hidden, self.config.diffusion_steps)
        self.average = deepcopy(self.actor).requires_grad_(False)
        self.attach_critic(lambda: mlp([state + action, *hidden, 1], activation=nn.Mish))

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam; gradients of actor and critics are clipped apart."""
        groups = [self.actor.parameters(), self.critic.parameters()]
        clip = self.config.gradient_clip
        return _ClippedAdam([{"params": list(group)} for group in groups], clip)

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Transitions, on Adroit with standardised rewards."""
        columns = super().columns(dataset)
        if self.config.normalize_rewards:
            reward = columns["next", "reward"]
            columns["next", "reward"] = (reward - reward.mean()) / reward.std().clamp_min(1e-6)
        return columns

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """The critics' loss, the actor's cloning, and its value over the mean size of values."""
        observation, action = batch["observation"], batch["action"]
        following = batch["next", "observation"].expand(
            _BACKUPS if self.config.max_backup else 1, -1, -1
        )
        with torch.no_grad():
            reached = self.target(following, self.average.sample(following))  # (2, actions, B)
        new = self.actor.sample(observation)
        with frozen(self.critic):
            one, other = self.critic(observation, new)
        value, scale = torch.where(  # either critic serves half of the time
            torch.rand((), device=one.device) < 0.5,
            torch.stack([one.mean(), other.detach().abs().mean()]),
            torch.stack([other.mean(), one.detach().abs().mean()]),
        )
        return {
            "qvalue": self.qvalue_loss(batch, reached.max(1).values.min(0).values),
            "cloning": self.actor.loss(observation, action),
            "value": -self.config.value_weight * value / scale,
        }

    def after_step(self, step: int) -> None:
        """Move the target critics and the average of the actor."""
        super().after_step(step)
        if step >= _AVERAGE_FROM and step % _AVERAGE_EVERY == 0:
            follow(self.average, self.actor, self.config.average_rate)

    def decide(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        state: TensorDict | None = None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorDict | None]:
        """One of the candidates, drawn with probabilities softmax(Q / temperature)."""
        seen = self.units.observation(observation).expand(self.config.candidates, -1, -1)
        noise = sources(observation, temperature, generator)
        shape = (len(observation), len(seen), self.action_dim)
        candidates = self.actor.sample(
            seen, lambda: randn_tensor(shape, noise, seen.device).transpose(0, 1)
        )
        value = self.target(seen, candidates).min(0).values  # (candidates, B)
        if temperature > 0:
            odds = (value / temperature).softmax(0).T
            chosen = odds.multinomial(1, generator=generator).squeeze(-1)
        else:
            chosen = value.argmax(0)
        action = candidates[chosen, torch.arange(len(chosen), device=chosen.device)]
        return self.units.environment_action(action), None


class _ClippedAdam(torch.optim.Adam):
    """Adam that clips the gradient of each parameter group by itself.

    Args:
        groups: of parameters.
        most: largest gradient norm of a group.
    """

    def __init__(self, groups: list[dict[str, Any]], most: float) -> None:
        super().__init__(groups, fused=True)
        self.most = most

    def step(self, closure: Any = None) -> Any:
        """Clip, then step."""
        for group in self.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.most)
        return super().step(closure)
