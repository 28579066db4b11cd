"""Hierarchical Diffuser: one diffusion model plans subgoals, another one the ways between them.

Chen et al., 2024, https://arxiv.org/abs/2401.02644; written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from benchmarks.baselines.diffuser import Diffuser, DiffuserConfig
from benchmarks.baselines.planner import Generators, sources
from benchmarks.domains import POINT_MAZES
from mage_agent import bounded

__all__ = ["HD", "HDConfig"]

_HORIZONS = {"umaze": 120, "medium": 255, "large": 390}
_MAZE: dict[str, Any] = {"horizon": 120, "jump": 15, "segment_diffusion_steps": 128}


@dataclass(frozen=True, kw_only=True)
class HDConfig(DiffuserConfig):
    """The publication's settings.

    Attributes:
        horizon: steps that the subgoals span, a multiple of ``jump``.
        jump: steps K between two subgoals.
        segment_diffusion_steps: of the lower model.
        segment_action_weight: of the first action in the lower model's loss.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        **{
            domain: {**settings, **(_MAZE if domain in POINT_MAZES else {})}
            for domain, settings in DiffuserConfig.PRESETS.items()
            if domain not in ("halfcheetah", "antmaze")
        },
        **{
            f"{domain}/{maze}": {
                **DiffuserConfig.PRESETS.get(f"{domain}/{maze}", {}),
                "horizon": horizon,
            }
            for domain in POINT_MAZES
            for maze, horizon in _HORIZONS.items()
        },
        "pointmaze/giant": {"horizon": 780, "diffusion_steps": 256},  # not published
        "halfcheetah": {"guide_scale": 1e-3, "unguided": 4, "discount": 0.997},
        "antmaze": {"horizon": 240, "jump": 15, "guide_scale": 1e-3},
    }

    SMALL: ClassVar[dict[str, dict[str, Any]]] = {
        **DiffuserConfig.SMALL,
        "": {**DiffuserConfig.SMALL[""], "segment_diffusion_steps": 20},
    }

    horizon: int = bounded(32, 2)
    jump: int = bounded(4, 2)
    segment_diffusion_steps: int = bounded(20, 2)
    segment_action_weight: float = bounded(10.0, 0.0)


class HD(Diffuser):
    """Hierarchical Diffuser: two of Diffuser's models.

    The upper one plans every K-th state; where values guide it, with all actions until the next one
    (its "dense actions", which its returns need). The lower one plans the K + 1 steps between two
    subgoals, of which it knows both; all segments of a plan are denoised together.
    """

    name: ClassVar[str] = "hd"
    config_class: ClassVar[type[HDConfig]] = HDConfig
    config: HDConfig

    def networks(self) -> dict[str, nn.Module]:
        """The two denoisers, with values on the upper one where no goal is known."""
        horizon, jump, ends = self.config.horizon, self.config.jump, self.layout.ends
        if horizon % jump:
            raise ValueError(f"horizon is {horizon}; it must be a multiple of jump, {jump}.")
        self.horizon = horizon + jump  # the last subgoal has actions, too
        dense = 0 if ends else jump * self.action_dim
        return {
            "planner": self.denoiser(horizon // jump + 1, dense, ends, valued=not ends),
            "segments": self.denoiser(
                jump + 1,
                self.action_dim,
                range(len(self.layout.planned)),
                steps=self.config.segment_diffusion_steps,
                action_weight=self.config.segment_action_weight,
            ),
        }

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Errors of the subgoals that a window holds, and of its first segment."""
        action, state, mask = batch["action"], batch["state"], batch["collector", "mask"]
        jump, planner = self.config.jump, self.trained["planner"]
        dense = action.unflatten(1, (-1, jump)).flatten(2)[..., : planner.actions]
        subgoals = torch.cat([dense, state[:, ::jump]], -1)
        value = None if self.layout.ends else batch["value"][:, 0, 0]
        segment = torch.cat([action, state], -1)[:, : jump + 1]
        return {
            "planner": planner.loss(subgoals, mask[:, ::jump], value),
            "segments": self.trained["segments"].loss(segment, mask[:, : jump + 1]),
        }

    @property
    def plan_shape(self) -> tuple[int, int]:
        """Steps and entries of a plan: standardised actions, then states."""
        return self.config.horizon + 1, self.action_dim + len(self.layout.planned)

    def plan(self, observation: Tensor, noise: Generators) -> Tensor:
        """Plans (B, H + 1, X): the segments between the best subgoals, one after the other."""
        subgoals = self.best(observation, noise)[..., self.trained["planner"].actions :]
        count = subgoals.shape[1] - 1
        segments = self.trained["segments"]
        known = subgoals.new_zeros(len(subgoals) * count, *segments.shape)
        known[:, 0, segments.actions :] = subgoals[:, :-1].flatten(0, 1)
        known[:, -1, segments.actions :] = subgoals[:, 1:].flatten(0, 1)
        if isinstance(noise, list):
            noise = sources(observation, 0.0, None, candidates=count)
        ways: Tensor = segments.sample(known, noise).unflatten(0, (-1, count))
        return torch.cat([ways[:, :, :-1].flatten(1, 2), ways[:, -1, -1:]], 1)
