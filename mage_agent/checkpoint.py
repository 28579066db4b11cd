"""Checkpoints: one safetensors file with weights, statistics, configuration and versions.

A checkpoint is data, never code: nothing in it is unpickled or executed.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from mage_agent.config import MAGEConfig
from mage_agent.files import make_folder
from mage_agent.model import MAGEModel

__all__ = [
    "CheckpointError",
    "digest",
    "load",
    "load_tensors",
    "save",
    "save_tensors",
    "usable",
    "versions",
]

FORMAT = "mage_agent/1"


class CheckpointError(ValueError):
    """The file is no checkpoint of ours, or it is damaged."""


@contextmanager
def usable(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file's contents into an error that names the file.

    Args:
        path: the file.
        what: what it should hold.

    Raises:
        CheckpointError: it does not.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{path} holds no usable {what} ({e}); use an intact copy, or train anew."
        ) from e


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("mage_agent", "torch", "tensordict", "torchrl", "numpy", "gymnasium")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of names, types, shapes and values, in hexadecimal digits; equal on every device."""
    found = hashlib.sha256(text.encode())
    for key, value in sorted(tensors.items()):
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


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
    make_folder(path.parent)
    # safetensors refuses tensors that share memory; clones also free us from their device.
    owned = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    text = json.dumps(header)
    metadata = {"format": FORMAT, "header": text, "sha256": digest(owned, text)}
    # A writer that was killed leaves its file behind; whoever writes here next clears it away.
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("wb") as file:  # safetensors' own writer would leave files of any name
            file.write(serialize(owned, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path}: {error.strerror}; what was there before is untouched",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


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
    # A weight that changed on the disk would be a weight all the same. Older files have no digest.
    if "sha256" in metadata and metadata["sha256"] != digest(tensors, metadata["header"]):
        raise CheckpointError(
            f"{path} is damaged: its contents are not those that were written; use an intact copy, "
            "or train anew."
        )
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
        **model.sizes,
        "versions": versions(),
    }


def build(tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: str | Path) -> MAGEModel:
    """Build a model from a header and fill it; every name and shape is checked first.

    Raises:
        CheckpointError: something is missing, unknown or of another shape.
    """
    with usable(path, "model"):
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
        sizes = {key: header[key] for key in ("observation_dim", "action_dim")}
        sizes["goal_dim"] = header.get("goal_dim", 0)  # files of 0.1 have none
        with torch.device("meta"):  # allocates nothing
            shapes = MAGEModel(config, **sizes).state_dict()
        wrong = [
            f"{key}: {tuple(tensors[key].shape) if key in tensors else 'missing'}"
            for key, value in shapes.items()
            if key not in tensors or tensors[key].shape != value.shape
        ] + [f"{key}: unknown" for key in tensors if key not in shapes]
        if wrong:
            raise CheckpointError(f"{path} does not fit its own configuration: {wrong[:5]}.")
        model = MAGEModel(config, **sizes)
        model.load_state_dict(dict(tensors))
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
    if "training" in header:
        raise CheckpointError(
            f"{path} is a state of training, not a finished model; finish the training "
            "(resume=True) and save its result."
        )
    model = build(tensors, header, path).to(device).eval()
    extra = header.get("extra", {})
    return model, extra if isinstance(extra, dict) else {}
