"""Facts about a dataset or a checkpoint, as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tensordict import TensorDictBase
from torch import Tensor

from mage_agent import checkpoint
from mage_agent.data import episode_lengths, metadata, observation_keys, returns_to_go
from mage_agent.evaluation import normalized_score
from mage_agent.nn.units import BEST

__all__ = ["asked_for", "checkpoint_facts", "dataset_facts", "spread"]


def dataset_facts(dataset: TensorDictBase, *, discount: float) -> dict[str, str]:
    """Size, returns, entries and origin of a dataset.

    Args:
        dataset: from ``load_dataset``.
        discount: of the discounted returns.
    """
    facts = metadata(dataset)
    episode, reward = dataset["episode"], dataset["next", "reward"].double()
    lengths = episode_lengths(episode)
    starts = lengths.cumsum(0) - lengths
    returns, discounted = (returns_to_go(reward, episode, d)[starts] for d in (1.0, discount))
    ends = {key: int(dataset["next", key].sum()) for key in ("terminated", "truncated")}
    words = {
        "dataset": str(facts.get("dataset_id", "given")),
        "size": f"{len(dataset)} steps in {len(lengths)} episodes",
        "episode length": spread(lengths.numpy()),
        "episodes end": ", ".join(f"{count} {key}" for key, count in ends.items()),
        "return": spread(returns.numpy()),
        f"with discount {discount:g}": spread(discounted.numpy()),
        "observation": ", ".join(
            f"{key} ({dataset[key].shape[-1] if isinstance(dataset[key], Tensor) else 'nested'})"
            for key in observation_keys(dataset)
        ),
        "action": f"{dataset['action'].shape[-1]}, from {_bound(facts['action_low'])} to "
        f"{_bound(facts['action_high'])}",
    }
    if "ref_min_score" in facts and "ref_max_score" in facts:
        low, high = facts["ref_min_score"], facts["ref_max_score"]
        score = float(normalized_score(returns.mean(), low, high))
        words["score"] = (
            f"{score:.1f} on average (return {low:.4g} scores 0, {high:.4g} scores 100)"
        )
    spec = facts.get("eval_env_spec") or facts.get("env_spec")
    if spec is not None:
        words["environment"] = str(json.loads(spec)["id"])
    return words


def checkpoint_facts(path: str | Path) -> dict[str, str]:
    """Sizes, training and configuration of a checkpoint.

    Args:
        path: file that a policy or a training wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, not ours, or does not fit its own configuration.
    """
    tensors, header = checkpoint.load_tensors(path)
    loop: dict[str, Any] | None = header.get("training")
    if loop is not None:
        prefix = "model."
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    model = checkpoint.build(tensors, header, path)
    target = (header.get("extra") or {}).get("target_return")
    units = model.units
    low, high = units.return_range.tolist()
    return {
        "checkpoint": str(path),
        "holds": (
            "a trained policy"
            if loop is None
            else f"a state of training, stage {loop['stage']}, step {loop['step']}"
        ),
        "method": model.name,
        "parameters": f"{sum(weight.numel() for weight in model.parameters()):,}",
        "observation": ", ".join(
            f"{key} ({size})" for key, size in model.observation_sizes.items()
        ),
        "action": f"{model.action_dim}, from {_bound(units.action_low.tolist())} to "
        f"{_bound(units.action_high.tolist())}",
        "asks for return": f"{asked_for(units.default_target if target is None else target)} "
        f"(discounted; the data holds {low:.4g} to {high:.4g})",
        **{f"asks for {name}": str(value) for name, value in model.asks().items()},
        "versions": ", ".join(f"{k} {v}" for k, v in header.get("versions", {}).items()),
        "configuration": model.config.digest,
        **{f"  {key}": str(value) for key, value in model.config.to_dict().items()},
    }


def asked_for(target: float) -> str:
    """A return that is asked for, in words."""
    return f"{target:.4g}" if target < BEST / 2 else "the best of every state"


def spread(numbers: ArrayLike) -> str:
    """Mean, extremes and median of numbers, in words."""
    values = np.asarray(numbers, dtype=np.float64)
    low, middle, high = np.quantile(values, (0.0, 0.5, 1.0))
    return f"mean {np.mean(values):.4g}, from {low:.4g} to {high:.4g}, median {middle:.4g}"


def _bound(bound: list[float]) -> str:
    return (
        f"{bound[0]:g}" if len(set(bound)) == 1 else "[" + ", ".join(f"{b:g}" for b in bound) + "]"
    )
