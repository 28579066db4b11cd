"""A model and data small enough to test GAC in no time."""

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from mage_agent.data import dataset_from_arrays
from mage_agent.gac.config import GACConfig
from mage_agent.gac.model import GACModel
from mage_agent.gac.trajectory import Trajectories

STATE, ACTION = 3, 2

# Every choice of the method is spelled out, so that no test hangs on a default.
CORE: dict[str, Any] = {
    "width": 8,
    "num_latents": 2,
    "num_heads": 2,
    "num_decoder_blocks": 2,
    "num_encoder_blocks": 1,
    "context": 2,
    "action_std_floor": 0.1,
    "state_std_floor": 0.3,
    "return_std": 0.1,
    "free_bits": 1.0,
    "inference": "persistent",
    "inner_steps": None,
    "inner_learning_rate": 0.1,
    "inner_tolerance": 1e-4,
    "window": 8,
    "steps": 6,
    "outer_steps": 1,
    "batch_size": 4,
    "optimizer": "adam",
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "warmup_steps": 1,
    "gradient_clip": 1.0,
    "held_out": 0.0,
    "query": "max",
    "asked_return": None,
    "quantile": 0.8,
    "increment": None,
    "prior_weight": 0.1,
    "query_radius": 100.0,
    "query_samples": 8,
    "query_steps": 30,
    "query_learning_rate": 0.05,
    "query_tolerance": 0.0,
    "trigger": "never",
    "replan": "posterior",
    "replan_interval": 4,
    "replan_steps": 10,
}


def tiny_config(**changes: Any) -> GACConfig:
    return GACConfig(**{**CORE, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> GACModel:
    """A model whose weights are all away from where they start, so that none is idle."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GACModel(tiny_config(**changes), observation_dim=STATE, action_dim=ACTION)
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tiny_dataset(
    lengths: tuple[int, ...] = (1, 7, 12, 2, 20, 9, 15, 11), seed: int = 0, **changes: Any
) -> TensorDict:
    """Episodes of a point that is pulled about; the return is how far it went up in all."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[Any]] = {name: [] for name in ("o", "a", "r", "t", "n")}
    for length in lengths:
        action = np.clip(0.5 * rng.normal() + 0.3 * rng.normal(size=(length, ACTION)), -1, 1)
        drift = np.concatenate([action, action.sum(1, keepdims=True)], axis=1)
        states = np.cumsum(np.concatenate([rng.normal(size=(1, STATE)), 0.1 * drift]), axis=0)
        parts["o"].append(states[:-1])
        parts["n"].append(states[1:])
        parts["a"].append(action)
        parts["r"].append(action[:, 0])
        parts["t"].append(np.arange(length) == length - 1)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    joined["r"] = changes.get("reward", joined["r"] * 1.0)
    return dataset_from_arrays(
        joined["o"].astype(np.float32),
        joined["a"].astype(np.float32),
        joined["r"].astype(np.float32),
        np.zeros_like(joined["t"]),
        joined["t"],
        next_observations=joined["n"].astype(np.float32),
    )


def tiny_trajectories(
    lengths: tuple[int, ...] = (12, 5, 1, 9), seed: int = 0, dtype: torch.dtype = torch.float32
) -> Trajectories:
    """Trajectories of standard normal numbers, with NaN for padding."""
    generator = torch.Generator().manual_seed(seed)
    batch, longest = len(lengths), max(lengths)

    def draw(size: int) -> torch.Tensor:
        values = torch.randn(batch, longest, size, generator=generator, dtype=dtype)
        for row, length in enumerate(lengths):
            values[row, length:] = torch.nan
        return values

    return Trajectories(
        observation=draw(STATE),
        action=draw(ACTION),
        change=draw(STATE),
        value=torch.randn(batch, generator=generator, dtype=dtype),
        length=torch.tensor(lengths),
    )
