"""MAGE's configuration by domain: the paper's size, and a size for two CPU cores."""

from typing import Any

__all__ = ["GOALS", "PRESETS"]

GOALS = ("achieved_goal", "desired_goal")
"""Entries of a goal-conditioned observation, last in ``observation_keys``."""

# How the action is read off the plan, by domain (measured). On Adroit, inverse dynamics that sees
# s_0 ignores the plan. In mazes and locomotion, it cannot hold a gait without s_0.
_BY_PLAN_AND_STATE: dict[str, Any] = {
    "inverse_dynamics_condition": "state_and_return",
    "inverse_dynamics_layers": 3,
}
_MAZE: dict[str, Any] = {
    **_BY_PLAN_AND_STATE,
    "observation_keys": ("observation", *GOALS),
    "inverse_dynamics_steps": 20_000,
}
# In point mazes, sampled plans are judged by the value of where they lead. The data pass the goal
# and never stay, so values must not see the speed; a point at full speed takes some 23 steps to
# stop. How far it is after them does not tell whether it brakes now (measured).
_POINT: dict[str, Any] = {
    **_MAZE,
    "return_expectile": 0.99,  # the way to the goal is rare in the data
    "bootstrap_steps": 23,
    "candidates": 16,
    "lookahead": 23,
    "inverse_dynamics": "displacement",
    "inverse_dynamics_lookahead": 16,
    "inverse_dynamics_weight_decay": 0.1,
    "plan_entries": (0, 1),  # the position
    "value_entries": (0, 1),
    "inverse_dynamics_condition": "state",
    "data_scales": None,
    "codebook_size": 256,
    "width": 256,
    "num_blocks": 4,
}
_SMALL: dict[str, Any] = {
    "num_scales": 4,
    "codebook_size": 256,
    "width": 128,
    "num_blocks": 3,
    "num_autoencoder_blocks": 1,
    "batch_size": 128,
    "learning_rate": 7e-4,
    "tokenizer_steps": 1_500,
    "generator_steps": 2_500,
}
# In mazes, where seven minutes are some 800 steps of the generator; on door it gains nothing
# (measured).
_SMALL_MAZE: dict[str, Any] = {
    **_SMALL,
    "optimizer": "muon",
    "learning_rate": 5e-3,
    "warmup_steps": 50,
}
_DOMAINS: dict[str, dict[str, Any]] = {
    "adroit": {},  # Table 10
    "kitchen": {"codebook_size": 2048},  # Table 11
    "antmaze": {  # Table 12
        **_MAZE,
        "codebook_size": 1024,
        "discount": 0.998,
        "trajectory": "RG",
        "inverse_dynamics": "direction",
        "inverse_dynamics_condition": "body",
        "return_expectile": 0.9,
    },
    "pointmaze": {  # Table 13, where the goal is observed
        **_POINT,
        "relative_plans": True,
        "fourier_features": 64,
        "inverse_dynamics_condition": "body",
        "inverse_dynamics_lookahead": 8,
        "inverse_dynamics_weight_decay": 0.5,
    },
    "maze2d": {**_POINT, "observation_keys": ()},  # Table 13, where rewards alone tell of the goal
    "locomotion": {  # Table 14
        **_BY_PLAN_AND_STATE,
        "inverse_dynamics_steps": 40_000,
        "plan_scale": 0.07,
        "plan_dropout": 0.5,
    },
}
PRESETS: dict[str, dict[str, Any]] = {
    **_DOMAINS,
    **{
        f"{name}-small": {**domain, **(_SMALL_MAZE if "maze" in name else _SMALL)}
        for name, domain in _DOMAINS.items()
    },
    "small": {**_DOMAINS["locomotion"], **_SMALL},
}
"""The paper's domains at the paper's size (Tables 10-14); with ``-small`` appended, the same at a
size that trains in minutes on two CPU cores; ``small`` is for data of no particular domain, and
reads plans as locomotion does, which lost to cloning on one of seven datasets (measured)."""
# Values judge the plans here, and need as many steps whatever the machine (measured).
for _name in ("pointmaze-small", "maze2d-small"):
    PRESETS[_name] |= {
        "value_steps": 15_000,
        "tokenizer_steps": 600,
        "generator_steps": 1_000,
        "inverse_dynamics_steps": 18_000,
    }
