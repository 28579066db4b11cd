"""Files of the first format, which knew no other agent than MAGE, in today's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["upgrade"]

_MOVED = {
    "normalize_observation.": "units.observation.",
    "normalize_return.": "units.return_to_go.",
    "normalize_action.": "units.action.",
    "action_low": "units.action_low",
    "action_high": "units.action_high",
    "return_range": "units.return_range",
    "target_return": "units.target_return",
    "return_ceiling.": "return_value.",
}
_RENAMED = {"target_return": "target_quantile", "followed_scales": "data_scales"}
_GONE = {
    "scale_lengths": None,
    "state_dropout": 0.0,
    "return_dropout": 0.0,
    "guidance_scale": 1.0,
}
"""Settings that no longer exist, with the only value that today's model can follow."""
_FIRST_LAYER = "inverse_dynamics.mlp.0."
_READS_GOALS = ("embed_condition.0.weight", ".condition.weight", "return_value.0.weight")


def upgrade(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and header of a file of the first format, as today's model has them.

    Raises:
        ValueError: the model was made with a setting that no longer exists, or the file does not
            say how large each observation entry is.
    """
    config = {_RENAMED.get(key, key): value for key, value in header["config"].items()}
    for key, neutral in _GONE.items():
        value = config.pop(key, neutral)
        if value != neutral:
            raise ValueError(f"it was made with {key}={value!r}, a setting that no longer exists")
    weights = {_moved(key): value for key, value in tensors.items()}
    if config.get("inverse_dynamics_condition", "none") != "none":
        # The last input was a flag that said 1, which is what a bias is.
        weight = weights[_FIRST_LAYER + "weight"]
        weights[_FIRST_LAYER + "bias"] = weights[_FIRST_LAYER + "bias"] + weight[:, -1]
        weights[_FIRST_LAYER + "weight"] = weight[:, :-1].contiguous()
    sizes = {"observation_dim": _observation_sizes(config, header)}
    if "G" in config.get("trajectory", ""):
        goals = sizes["observation_dim"]["achieved_goal"]
        weights = _blind_to_offsets(weights, goals)
    sizes["action_dim"] = header["action_dim"]
    kept = {key: header[key] for key in ("versions", "extra") if key in header}
    return weights, {**kept, "method": "mage", "config": config, "sizes": sizes}


def _blind_to_offsets(weights: Mapping[str, Tensor], goals: int) -> dict[str, Tensor]:
    """The weights with zeros for how far the desired goal is, which plans of goals did not see."""
    blind = dict(weights)
    for key, weight in weights.items():
        if key.endswith(_READS_GOALS):
            seen, rest = weight.split([2 * goals, weight.shape[1] - 2 * goals], dim=1)
            blind[key] = torch.cat([seen, weight.new_zeros(len(weight), goals), rest], dim=1)
    blind["reach.mean"], blind["reach.std"] = torch.zeros(goals), torch.ones(goals)
    return blind


def _moved(key: str) -> str:
    for old, new in _MOVED.items():
        if key == old or (old.endswith(".") and key.startswith(old)):
            return new + key.removeprefix(old)
    return key


def _observation_sizes(config: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, int]:
    """Size of each observation entry; the policy kept them, the model alone knew their sum."""
    keys, total = list(config["observation_keys"]), header["observation_dim"]
    known = header.get("extra", {}).get("observation_sizes")
    if known is not None:
        return {key: known[key] for key in keys}
    goals = header.get("goal_dim", 0)
    if len(keys) == 1 + 2 * bool(goals):
        return dict(zip(keys, (total - 2 * goals, goals, goals), strict=False))
    raise ValueError(f"it does not say how large each of the observation entries {keys} is")
