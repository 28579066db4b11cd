"""Diffusion Veteran: the best of many sampled plans, and diffused inverse dynamics to follow it.

Lu et al., 2025, https://arxiv.org/abs/2503.00535
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from benchmarks.baselines.attention import ActionDenoiser, PlanCritic, PlanDenoiser
from benchmarks.baselines.base import cosine
from benchmarks.baselines.layout import Layout
from benchmarks.baselines.planner import (
    Generators,
    SamplingPlanner,
    SamplingPlannerConfig,
    interpolated,
    steps_left,
)
from benchmarks.baselines.unet import DDIMScheduler, randn_tensor
from benchmarks.domains import POINT_MAZES
from mage_agent import bounded

__all__ = ["DV", "DVConfig"]

_MAZE = {"stride": 15, "until_reward": True, "rebase": True}
_ANTMAZE = {**_MAZE, "stride": 25, "horizon": 40, "depth": 8}
_LOCOMOTION = {"horizon": 4, "stride": 1, "value_weight": 2.0, "termination_penalty": -100.0}


@dataclass(frozen=True, kw_only=True)
class DVConfig(SamplingPlannerConfig):
    """The publication's settings; where it has none, those of Kitchen.

    Attributes:
        horizon: states of a plan.
        stride: environment steps between two of them.
        width: of the planner's and the critic's transformers.
        depth: blocks of the planner; the critic has two.
        hidden: units of the inverse dynamics.
        planner_steps: of DDIM, for a plan.
        action_steps: of diffusion, for an action.
        action_noise: standard deviation of the noise in acting.
        until_reward: whether data end at a reward; values are then the time until it.
        longest: most steps until a reward for which plans are learnt.
        rebase: whether inverse dynamics is told the way to go in place of positions.
        critic_learning_rate: of the critic and the inverse dynamics.
        value_weight: w in the weight exp(w (V - 1)) of a plan in the loss, V in [-1, 1].
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        **dict.fromkeys(POINT_MAZES, _MAZE),
        **dict.fromkeys(("antmaze", "humanoidmaze"), _ANTMAZE),
        "kitchen": {"candidates": 150},
        **dict.fromkeys(("halfcheetah", "hopper", "walker2d", "ant"), _LOCOMOTION),
    }
    SMALL: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"width": 128, "depth": 2, "batch_size": 64, "planner_steps": 10, "candidates": 16},
        **{domain: {"replan_every": 5} for domain in (*POINT_MAZES, "antmaze", "humanoidmaze")},
    }

    discount: float = bounded(0.997, 1e-6, 1.0)
    average_decay: float = bounded(0.9999, 0.0, 1.0)
    batch_size: int = bounded(128, 1)
    horizon: int = bounded(32, 2)
    stride: int = bounded(4, 1)
    width: int = bounded(256, 64)
    depth: int = bounded(2, 1)
    hidden: int = bounded(256, 1)
    planner_steps: int = bounded(20, 1)
    action_steps: int = bounded(10, 1)
    action_noise: float = bounded(0.5, 0.0)
    until_reward: bool = False
    longest: int = bounded(800, 1)
    rebase: bool = False
    critic_learning_rate: float = bounded(3e-4, 1e-12)
    value_weight: float = bounded(0.0, 0.0)


class DV(SamplingPlanner):
    """DV: plans are states, of which the present one is known; no goal is.

    The critic is trained on the data's plans and chooses among those sampled.
    """

    name: ClassVar[str] = "dv"
    config_class: ClassVar[type[DVConfig]] = DVConfig
    discounted: ClassVar[bool] = False  # it has one of its own
    config: DVConfig

    def build(self) -> None:
        """Make the networks."""
        settings, layout = self.config, Layout(self.observation_sizes, ())
        self.horizon = (settings.horizon - 1) * settings.stride + 1
        point = [0, 1] if next(iter(self.observation_sizes.values())) == 4 else []
        self.body, self.positions = layout.planned, point + layout.columns
        self.plans: Any = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
        self.moves: Any = DDIMScheduler(settings.action_steps, beta_schedule="squaredcos_cap_v2")
        self.moves.set_timesteps(settings.action_steps)
        shape = (self.observation_dim, settings.horizon, settings.width)
        self.trained = nn.ModuleDict(
            {
                "planner": PlanDenoiser(*shape, settings.depth),
                "critic": PlanCritic(*shape),
                "inverse": ActionDenoiser(2 * len(self.body), self.action_dim, settings.hidden),
            }
        )

    @property
    def decays(self) -> dict[str, float]:
        """The averages' decays by network; the critic has none."""
        return {"planner": self.config.average_decay, "inverse": 0.995}

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam with one rate for the planner and one for the rest."""
        groups = [{"params": list(network.parameters())} for network in self.trained.values()]
        return torch.optim.Adam(groups, fused=True)

    def rates(self, step: int, steps: int) -> Sequence[float]:
        """Rates that fall to zero."""
        rest = self.config.critic_learning_rate
        return [rate * cosine(step, steps) for rate in (self.config.learning_rate, rest, rest)]

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Steps, the steps left until plans stand still, and values in [-1, 1]."""
        columns = super().columns(dataset)
        if self.config.until_reward:
            left = steps_left(dataset["next", "reward"].flatten(), dataset["episode"])
            known = (left >= 0) & (left <= self.config.longest)
            value = -left.clamp(0, self.config.longest).float()
            if not known.any():
                raise ValueError("no step of the dataset leads to a reward above zero.")
        else:
            left = torch.full_like(dataset["episode"], self.horizon)
            known, value = left >= 0, self.valued_returns(dataset).flatten()
        low, high = value.aminmax()
        value = 2 * (value - low) / (high - low).clamp_min(1e-6) - 1
        return columns.update({"left": left, "known": known.float(), "value": value})

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Errors of the planner's and the inverse dynamics' noise, and of the critic."""
        window, stride = batch["observation"], self.config.stride
        known, left = batch["known"][:, 0], batch["left"][:, 0]
        index = stride * torch.arange(self.config.horizon, device=window.device)
        index = index.minimum(left.clamp_min(0).unsqueeze(-1))  # (B, H)
        states = window.gather(1, index.unsqueeze(-1).expand(-1, -1, window.shape[-1]))
        networks, noise = self.trained, torch.randn_like(states)
        at = torch.randint(len(self.plans.betas), (len(states),), device=states.device)
        noisy = torch.cat([states[:, :1], self.plans.add_noise(states, noise, at)[:, 1:]], 1)
        error = (networks["planner"](noisy, at) - noise)[:, 1:].square().mean((1, 2))
        value = (networks["critic"](states) - batch["value"][:, 0]).square()
        action, given = batch["action"][:, 0], self.told(window[:, 0], window[:, stride])
        drawn, at = torch.randn_like(action), torch.randint_like(at, self.config.action_steps)
        moved = networks["inverse"](self.moves.add_noise(action, drawn, at), at, given)
        weight = known * (self.config.value_weight * (batch["value"][:, 0] - 1)).exp()
        planner, critic = (weight * error).mean(), (known * value).mean()
        return {"planner": planner, "critic": critic, "inverse": (moved - drawn).square().mean()}

    def told(self, now: Tensor, then: Tensor) -> Tensor:
        """What the inverse dynamics is told of two states (B, S), (B, 2 S) without goals."""
        if self.config.rebase:
            here = torch.zeros_like(now)
            here[:, self.positions] = now[:, self.positions]
            now, then = now - here, then - here
        return torch.cat([now[:, self.body], then[:, self.body]], -1)

    @property
    def plan_shape(self) -> tuple[int, int]:
        """States of a plan and their entries."""
        return self.config.horizon, self.observation_dim

    def plan(self, observation: Tensor, noise: Generators) -> Tensor:
        """Standardised plans (B, H, S): the candidates of the highest value."""
        networks, candidates = self.trained, self.config.candidates
        now = self.units.observation(observation).repeat_interleave(candidates, 0)[:, None]
        x: Tensor = randn_tensor((len(now), *self.plan_shape), noise, now.device, now.dtype)
        self.plans.set_timesteps(self.config.planner_steps)
        for at in self.plans.timesteps:
            x = torch.cat([now, x[:, 1:]], 1)
            predicted = networks["planner"](x, at.to(x.device).expand(len(x)))
            x = self.plans.step(predicted, at, x, return_dict=False)[0]
        x = torch.cat([now, x[:, 1:]], 1).unflatten(0, (-1, candidates))
        chosen = networks["critic"](x.flatten(0, 1)).view(-1, candidates).argmax(1)
        return x[torch.arange(len(x), device=x.device), chosen]

    def actions(self, plan: Tensor, observation: Tensor, age: Tensor, noise: Generators) -> Tensor:
        """Inverse dynamics to where the plan is ``stride`` steps from now."""
        dense, then = interpolated(plan, self.config.stride), age + self.config.stride
        then = dense[torch.arange(len(age)), then.clamp_max(dense.shape[1] - 1)]
        given = self.told(self.units.observation(observation), then)
        scale, shape = self.config.action_noise, (len(given), self.action_dim)
        x = scale * randn_tensor(shape, noise, given.device, given.dtype)
        for at in self.moves.timesteps:
            predicted = self.trained["inverse"](x, at.to(x.device).expand(len(x)), given)
            drawn = scale * randn_tensor(shape, noise, x.device, x.dtype)
            x = self.moves.step(predicted, at, x, 1.0, True, None, drawn, return_dict=False)[0]
        return self.units.environment_action(x)

    def states(self, plan: Tensor) -> Tensor:
        """Planned states, interpolated to all steps."""
        return self.units.observation.inverse(interpolated(plan, self.config.stride))
