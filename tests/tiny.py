"""A configuration, models and windows small enough to test the method's core in no time."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from mage_agent import MAGEConfig, MAGEModel
from tests.acting import GOAL_KEYS, make_model

STATE, ACTION, HORIZON = 3, 2, 12
SCALES = (1, 2, 4)

# Every choice of the method is spelled out, so that no test hangs on a default.
CORE: dict[str, Any] = {
    "horizon": HORIZON,
    "temporal_stride": 3,
    "num_scales": 3,
    "codebook_size": 8,
    "code_dim": 4,
    "width": 16,
    "num_blocks": 1,
    "num_heads": 2,
    "num_autoencoder_blocks": 1,
    "dropout": 0.0,
    "trajectory": "RS",
    "return_conditioning": ("autoencoder", "first_scale", "finer_scales", "condition_loss"),
    "return_reweighting": False,
    "inverse_dynamics": "latent",
    "inverse_dynamics_condition": "none",
    "condition_guidance": "adapter",
    "adapter_dim": 4,
    "context": "teacher",
    "code_temperature": 0.0,
    "return_expectile": None,
    "bootstrap_steps": 0,
    "candidates": 1,
    "plan_entries": (),
    "value_entries": (),
    "inverse_dynamics_lookahead": None,
    "data_scales": 0,
    "discount": 0.99,
    "target_quantile": 1.0,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "inverse_dynamics_average_decay": 0.0,
    "batch_size": 16,
    "tokenizer_steps": 4,
    "generator_steps": 4,
    "inverse_dynamics_steps": 4,
    "value_steps": 4,
}


def tiny_config(**changes: Any) -> MAGEConfig:
    return MAGEConfig(**{**CORE, **changes})


def tiny_model(**changes: Any) -> MAGEModel:
    """An untrained model of 3 observations and 2 actions whose codebook counts as started."""
    # Its inverse dynamics has no stage of its own, so that the second stage trains it.
    model = make_model(STATE, ACTION, **{**CORE, "inverse_dynamics_steps": 0, **changes})
    codebook = model.quantizer.codebook._codebook
    codebook.initted.fill_(True)
    codebook.embed_avg.copy_(codebook.embed)
    return model


def tiny_goal_model(**changes: Any) -> MAGEModel:
    """One that plans the way of a goal of 2 entries, for observations of 3 + 2 + 2."""
    goals = {
        "observation_keys": GOAL_KEYS,
        "trajectory": "RG",
        "inverse_dynamics": "direction",
        "inverse_dynamics_condition": "body",
        "inverse_dynamics_steps": 0,
    }
    sizes = dict(zip(GOAL_KEYS, (STATE, 2, 2), strict=True))
    return make_model(sizes, ACTION, **{**CORE, **goals, **changes})


def tiny_windows(
    batch: int = 8, *, horizon: int = HORIZON, lengths: Tensor | None = None, seed: int = 0
) -> TensorDict:
    """Windows of standard normal numbers; ``lengths`` of their steps are real, or all of them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((batch,), horizon) if lengths is None else lengths
    return TensorDict(
        {
            "observation": torch.randn(batch, horizon, STATE, generator=generator),
            "action": torch.rand(batch, horizon, ACTION, generator=generator) * 2 - 1,
            "return_to_go": 10 * torch.randn(batch, horizon, 1, generator=generator),
            ("collector", "mask"): torch.arange(horizon) < lengths[:, None],
        },
        batch_size=[batch, horizon],
    )


def tiny_goal_windows(batch: int = 8, *, horizon: int = HORIZON) -> TensorDict:
    """``tiny_windows`` with goals of 2 entries."""
    windows = tiny_windows(batch, horizon=horizon)
    generator = torch.Generator().manual_seed(1)
    for key in GOAL_KEYS[1:]:
        windows[key] = torch.randn(batch, horizon, 2, generator=generator)
    return windows
