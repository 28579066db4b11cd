"""Checkpoints: one safetensors file with weights, statistics, configuration and versions.

A checkpoint is data, never code: nothing in it is unpickled or executed.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mage_agent.config import MAGEConfig
from mage_agent.model import MAGEModel

__all__ = ["CheckpointError", "load", "load_tensors", "save", "save_tensors", "versions"]

FORMAT = "mage_agent/1"


class CheckpointError(ValueError):
    """The file is no checkpoint of ours, or it is damaged."""


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("mage_agent", "torch", "tensordict", "torchrl", "numpy", "gymnasium")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, header: dict[str, Any]) -> None:
    """Write tensors and a JSON header; the file is whole or absent, and an old one survives.

    Args:
        tensors: what to save.
        path: file to write; its folder is made.
        header: JSON-ready values.

    Raises:
        OSError: the disk is full or the folder cannot be written; an existing file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # safetensors refuses tensors that share memory; clones also free us from their device.
    owned = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        save_file(owned, temporary, metadata={"format": FORMAT, "header": json.dumps(header)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_tensors`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or not ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} is no MAGE checkpoint: its format is {metadata.get('format')!r}, "
                    f"expected {FORMAT!r}."
                )
            header = json.loads(metadata["header"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or no MAGE checkpoint ({error}); use an intact copy, or train anew."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is no JSON object.")
    return tensors, header


def save(model: MAGEModel, path: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Save a model so that ``load`` needs nothing else.

    Args:
        model: the model.
        path: file to write, atomically.
        extra: more JSON-ready values to keep, under ``"extra"`` of the header.

    Raises:
        OSError: the file cannot be written.
        ValueError: the model is a copy that only acts.
    """
    if model.only_acts:
        raise ValueError("optimize_for_inference made this copy to act; save the model itself.")
    save_tensors(model.state_dict(), path, model_header(model) | {"extra": extra or {}})


def model_header(model: MAGEModel) -> dict[str, Any]:
    """What it takes to build the model again."""
    return {
        "config": model.config.to_dict(),
        "observation_dim": model.observation_dim,
        "action_dim": model.action_dim,
        "versions": versions(),
    }


def build(tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: str | Path) -> MAGEModel:
    """Build a model from a header and fill it; every name and shape is checked first.

    Raises:
        CheckpointError: something is missing, unknown or of another shape.
    """
    try:
        # A crafted header must keep nobody busy: first what loops of Python run over, then shapes.
        for name in ("num_scales", "num_blocks", "num_autoencoder_blocks"):
            if header["config"].get(name, 1) > len(tensors):
                raise CheckpointError(f"{path} holds too few tensors for {name} of its header.")
        config = MAGEConfig.from_dict(header["config"])
        if tensors["encoder.position"].shape != (config.latent_length, config.width):
            raise CheckpointError(
                f"{path} does not fit its own configuration: encoder.position has shape "
                f"{tuple(tensors['encoder.position'].shape)}."
            )
        with torch.device("meta"):  # allocates nothing
            shapes = MAGEModel(
                config, observation_dim=header["observation_dim"], action_dim=header["action_dim"]
            ).state_dict()
        wrong = [
            f"{key}: {tuple(tensors[key].shape) if key in tensors else 'missing'}"
            for key, value in shapes.items()
            if key not in tensors or tensors[key].shape != value.shape
        ] + [f"{key}: unknown" for key in tensors if key not in shapes]
        if wrong:
            raise CheckpointError(f"{path} does not fit its own configuration: {wrong[:5]}.")
        model = MAGEModel(
            config, observation_dim=header["observation_dim"], action_dim=header["action_dim"]
        )
        model.load_state_dict(dict(tensors))
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds no usable model: {error}") from error
    return model


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[MAGEModel, dict[str, Any]]:
    """Load what ``save`` wrote.

    Args:
        path: the checkpoint.
        device: where the model goes.

    Returns:
        The model in evaluation mode, and the ``extra`` values saved with it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, not ours, or does not fit its own configuration.
    """
    tensors, header = load_tensors(path)
    model = build(tensors, header, path).to(device).eval()
    extra = header.get("extra", {})
    return model, extra if isinstance(extra, dict) else {}
