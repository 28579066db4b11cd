"""Diffuser: plans are denoised trajectories, their ends are given or their values climbed.

Janner et al., 2022, https://arxiv.org/abs/2205.09991
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from benchmarks.baselines.layout import Layout
from benchmarks.baselines.planner import (
    Generators,
    SamplingPlanner,
    SamplingPlannerConfig,
    fit_limits,
)
from benchmarks.baselines.unet import Denoiser
from benchmarks.domains import ADROIT, POINT_MAZES
from mage_agent import bounded

__all__ = ["Diffuser", "DiffuserConfig"]

_MAZE: dict[str, Any] = {
    "steps": 2_000_000,
    "horizon": 128,
    "diffusion_steps": 64,
    "multipliers": (1, 4, 8),
    "action_weight": 1.0,
    "inpaint_goal": True,
    "candidates": 1,
    "replan_every": 10,  # closed loop, which the publication is not
}
_SMALL_MAZE: dict[str, Any] = {
    "candidates": 1,
    "multipliers": (1, 4, 8),
    "diffusion_steps": 20,
}
_MEDIUM, _LARGE = ({"horizon": horizon, "diffusion_steps": 256} for horizon in (256, 384))


@dataclass(frozen=True, kw_only=True)
class DiffuserConfig(SamplingPlannerConfig):
    """The publication's settings; the defaults are those of locomotion.

    Attributes:
        horizon: steps of a plan.
        width: channels of the U-Net's first level.
        multipliers: channels of its levels, as multiples; each level halves the plan's length.
        diffusion_steps: steps of noise, with a cosine schedule.
        action_weight: of the first action in the loss.
        inpaint_goal: whether plans end at the goal, where one is known.
        goal: that is not observed, the first entries of the plan's last state.
        guide_scale: of the gradient of the value in raw units, in variances of the denoising step.
        guide_steps: along that gradient, in each denoising step but the last ``unguided``.
        unguided: last denoising steps without guidance.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        **dict.fromkeys(POINT_MAZES, _MAZE),
        **{f"{domain}/medium": _MEDIUM for domain in POINT_MAZES},
        **{f"{domain}/large": _LARGE for domain in POINT_MAZES},
        "pointmaze/giant": {**_LARGE, "horizon": 768},  # not published
        "maze2d/umaze": {"goal": (1.0, 1.0, 0.0, 0.0)},  # at rest
        "maze2d/medium": {**_MEDIUM, "goal": (6.0, 6.0, 0.0, 0.0)},
        "maze2d/large": {**_LARGE, "goal": (7.0, 9.0, 0.0, 0.0)},
        **{
            domain: {"termination_penalty": -100.0, "discount": 0.997}
            for domain in ("hopper", "walker2d", "ant")
        },
        "hopper/medium-expert": {"guide_scale": 1e-4, "unguided": 4},
        "halfcheetah": {
            "horizon": 4,
            "multipliers": (1, 4, 8),
            "guide_scale": 1e-3,
            "unguided": 4,
            "discount": 0.997,
        },
        **{domain: {"guide_scale": 1e-3} for domain in ADROIT},  # not published
        "antmaze": {"horizon": 64, "guide_scale": 1e-3},  # this and the next as in CleanDiffuser
        "kitchen": {"guide_scale": 1e-4},
        "kitchen/partial": {"guide_scale": 1e-2},
    }
    SMALL: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"width": 16, "batch_size": 32, "candidates": 16, "multipliers": (1, 2, 4)},
        **dict.fromkeys(POINT_MAZES, _SMALL_MAZE),
    }

    batch_size: int = bounded(64, 1)
    horizon: int = bounded(32, 2)
    width: int = bounded(32, 8)
    multipliers: tuple[int, ...] = bounded((1, 2, 4, 8), 1)
    diffusion_steps: int = bounded(20, 2)
    action_weight: float = bounded(10.0, 0.0)
    inpaint_goal: bool = False
    goal: tuple[float, ...] = ()
    candidates: int = bounded(64, 1)
    guide_scale: float = bounded(0.1, 0.0)
    guide_steps: int = bounded(2, 0)
    unguided: int = bounded(2, 0)


class Diffuser(SamplingPlanner):
    """Diffuser: goals are inpainted where they are known, else values guide.

    Plans begin at the present state. The goal is that of the observation's entry ``desired_goal``,
    which plans leave out, or one that is told.
    """

    name: ClassVar[str] = "diffuser"
    config_class: ClassVar[type[DiffuserConfig]] = DiffuserConfig
    config: DiffuserConfig

    def build(self) -> None:
        """Make the networks."""
        settings = self.config
        self.horizon = settings.horizon
        self.layout = Layout(
            self.observation_sizes, settings.goal if settings.inpaint_goal else None
        )
        self.trained = nn.ModuleDict(self.networks())

    def networks(self) -> dict[str, nn.Module]:
        """The denoiser, with values where no goal is known."""
        ends, length = self.layout.ends, self.config.horizon
        return {"planner": self.denoiser(length, self.action_dim, ends, valued=not ends)}

    def denoiser(self, length: int, actions: int, ends: Sequence[int], **changes: Any) -> Denoiser:
        """A diffusion model with the settings of the configuration, but for changes."""
        settings = self.config
        return Denoiser(
            length,
            actions,
            len(self.layout.planned),
            ends,
            **{
                "width": settings.width,
                "multipliers": settings.multipliers,
                "steps": settings.diffusion_steps,
                "action_weight": settings.action_weight,
                **changes,
            },
        )

    def fit_units(self, dataset: TensorDictBase) -> None:
        """Take statistics; observations and returns span [-1, 1]."""
        super().fit_units(dataset)
        fit_limits(self.units.observation, self.units.concatenate(dataset))
        fit_limits(self.units.return_to_go, self.valued_returns(dataset))

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Steps, and the return that followed."""
        columns = super().columns(dataset)
        columns["state"] = columns.pop("observation")[:, self.layout.planned]
        columns["value"] = self.units.return_to_go(self.valued_returns(dataset))
        return columns

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Errors of the denoised plans, and of the values of noised ones."""
        clean = torch.cat([batch["action"], batch["state"]], -1)
        value = None if self.layout.ends else batch["value"][:, 0, 0]
        mask = batch["collector", "mask"]
        return {"planner": self.trained["planner"].loss(clean, mask, value)}

    # ------------------------------------------------------------------------------------ to act

    @property
    def plan_shape(self) -> tuple[int, int]:
        """Steps and entries of a plan: standardised actions, then states."""
        return self.config.horizon, self.action_dim + len(self.layout.planned)

    def best(self, observation: Tensor, noise: Generators) -> Tensor:
        """What the planner makes of the present states and the goals (B, S)."""
        settings, layout, normalizer = self.config, self.layout, self.units.observation
        planner = self.trained["planner"]
        known = observation.new_zeros(len(observation), *planner.shape)
        known[:, 0, planner.actions :] = normalizer(observation)[:, layout.planned]
        # Values are learnt in units of the returns' range, and the published scale is of raw ones.
        guide: dict[str, Any] = {
            "guide_scale": settings.guide_scale * float(self.units.return_to_go.std),
            "guide_steps": settings.guide_steps,
            "unguided": settings.unguided,
        }
        if layout.ends:
            columns, guide = layout.columns, {}
            goal = (layout.goal(observation) - normalizer.mean[columns]) / normalizer.std[columns]
            known[:, -1, [planner.actions + place for place in layout.ends]] = goal
        plans: Tensor = planner.best(known, noise, settings.candidates, **guide)
        return plans

    def plan(self, observation: Tensor, noise: Generators) -> Tensor:
        """Plans (B, H, X): of the candidates, the one of the highest value."""
        return self.best(observation, noise)

    def states(self, plan: Tensor) -> Tensor:
        """Planned states, (B, L, P)."""
        normalizer, planned = self.units.observation, self.layout.planned
        states: Tensor = plan[..., self.action_dim :]
        return states * normalizer.std[planned] + normalizer.mean[planned]
