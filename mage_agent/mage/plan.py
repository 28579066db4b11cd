"""The plan behind an action, decoded into environment units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mage_agent.types import Plan

if TYPE_CHECKING:
    from mage_agent.mage.model import MAGEModel

__all__ = ["make_plan"]


def make_plan(
    model: MAGEModel,
    observation: Tensor,
    return_to_go: Tensor,
    *,
    partial: bool,
    guided: bool,
    temperature: float,
    generator: torch.Generator | None,
) -> Plan:
    """Generate and decode a plan; see ``MAGEModel.plan``."""
    state, target = model.condition(observation, return_to_go)
    token_ids, sums = model.propose(state, target, temperature, generator)
    decoded = [
        model.split(model.decode(total, state, target, guided=guided))
        for total in (sums if partial else sums[-1:])
    ]
    empty = state.new_zeros(state.shape[0], model.config.horizon, 0)
    observations = tuple(_planned_observation(model, part, empty) for part in decoded)
    returns = decoded[-1].get("R")
    units = model.units
    return Plan(
        token_ids=tuple(token_ids),
        latent=sums[-1],
        observation=observations[-1],
        return_to_go=empty if returns is None else units.return_to_go.inverse(returns),
        action=units.environment_action(model.read_action(sums[-1], state, target)),
        partial=observations if partial else (),
    )


def _planned_observation(model: MAGEModel, decoded: dict[str, Tensor], empty: Tensor) -> Tensor:
    """Planned observations (B, T, S); NaN is in the entries that plans do not hold."""
    normalizer = model.units.observation
    if "G" in decoded:
        full = empty.new_full((*empty.shape[:2], model.observation_dim), torch.nan)
        full[..., model.achieved_goal] = decoded["G"]
        return normalizer.inverse(full)
    return normalizer.inverse(decoded["S"]) if "S" in decoded else empty
