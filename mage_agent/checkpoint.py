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
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from mage_agent.agent import Agent, find_agent
from mage_agent.files import make_folder

__all__ = [
    "CheckpointError",
    "agent_header",
    "digest",
    "load",
    "load_tensors",
    "save",
    "save_tensors",
    "usable",
    "versions",
]

FORMATS = ("mage_agent/1", "mage_agent/2")
"""The formats that can be read; the last one is written. The first one knew MAGE only."""

File = str | Path | BinaryIO
"""A path, or an open binary file."""


class CheckpointError(ValueError):
    """The file is no checkpoint of ours, or it is damaged."""


@contextmanager
def usable(path: File, what: str) -> Iterator[None]:
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
    import mage_agent  # not its metadata: a checkout need not be installed

    packages = ("torch", "tensordict", "torchrl", "numpy", "gymnasium")
    return {
        "python": platform.python_version(),
        "mage_agent": mage_agent.__version__,
        **{name: version(name) for name in packages},
    }


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of names, types, shapes and values, in hexadecimal digits; equal on every device."""
    found = hashlib.sha256(text.encode())
    for key, value in sorted(tensors.items()):
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], path: File, header: dict[str, Any]) -> None:
    """Write tensors and a JSON header; the file is whole or absent, and an old one survives.

    Args:
        tensors: what to save.
        path: file to write, whose folder is made; or an open binary file.
        header: JSON-ready values.

    Raises:
        OSError: the disk is full or the folder cannot be written; an existing file is untouched.
    """
    # safetensors refuses tensors that share memory; clones also free us from their device.
    owned = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    text = json.dumps(header)
    metadata = {"format": FORMATS[-1], "header": text, "sha256": digest(owned, text)}
    data = serialize(owned, metadata=metadata)
    if isinstance(path, str | Path):
        _replace(Path(path), data)
    else:
        path.write(data)


def _replace(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    make_folder(path.parent)
    # A killed writer leaves its temporary file behind; the next writer removes it.
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
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


def load_tensors(path: File) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_tensors`` wrote.

    Args:
        path: the file, or an open binary one.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or not ours.
    """
    if isinstance(path, str | Path):
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}.")
        data = path.read_bytes()
    else:
        data = path.read()
    try:
        tensors = deserialize(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        if metadata.get("format") not in FORMATS:
            raise CheckpointError(
                f"{path} is no checkpoint of mage_agent: its format is "
                f"{metadata.get('format')!r}, expected {FORMATS[-1]!r}."
            )
        header = json.loads(metadata["header"])
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint of mage_agent ({error}); use an intact copy, or "
            "train anew."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is no JSON object.")
    # Without a digest, as in older files, a flipped bit would load as another weight.
    if "sha256" in metadata and metadata["sha256"] != digest(tensors, metadata["header"]):
        raise CheckpointError(
            f"{path} is damaged: its contents are not those that were written; use an intact copy, "
            "or train anew."
        )
    return tensors, header


def save(agent: Agent, path: File, extra: dict[str, Any] | None = None) -> None:
    """Save an agent so that ``load`` needs nothing else.

    Args:
        agent: the agent.
        path: file to write, atomically; or an open binary file.
        extra: more JSON-ready values to keep, under ``"extra"`` of the header.

    Raises:
        OSError: the file cannot be written.
        ValueError: the agent is a copy that only acts.
    """
    if agent.only_acts:
        raise ValueError("optimize_for_inference made this copy to act; save the model itself.")
    save_tensors(agent.state_dict(), path, agent_header(agent) | {"extra": extra or {}})


def agent_header(agent: Agent) -> dict[str, Any]:
    """What is needed to build the agent again."""
    return {
        "method": agent.name,
        "module": type(agent).__module__,
        "config": agent.config.to_dict(),
        "sizes": agent.sizes,
        "asks": agent.asks(),
        "versions": versions(),
    }


def build(tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: File) -> Agent:
    """Build an agent from a header and fill it; every name and shape is checked first.

    Raises:
        CheckpointError: something is missing, unknown or of another shape.
    """
    try:
        cls = find_agent(header.get("method", "mage"))  # files of the first format name none
    except (TypeError, ValueError) as error:
        where = f" It is of the module {header['module']}." if "module" in header else ""
        raise CheckpointError(f"{path} cannot be read yet: {error}{where}") from error
    with usable(path, "agent"):
        if "method" not in header:
            tensors, header = cls.upgrade(tensors, header)
        config, sizes = cls.config_class.from_dict(header["config"]), header["sizes"]
        with torch.device("meta"):  # allocates nothing
            shapes = cls(config, **sizes).state_dict()
        wrong = [
            f"{key}: {tuple(tensors[key].shape) if key in tensors else 'missing'}"
            for key, value in shapes.items()
            if key not in tensors or tensors[key].shape != value.shape
        ] + [f"{key}: unknown" for key in tensors if key not in shapes]
        if wrong:
            raise CheckpointError(f"{path} does not fit its own configuration: {wrong[:5]}.")
        agent = cls(config, **sizes)
        agent.load_state_dict(dict(tensors))
        agent.ask(header.get("asks", {}))
    return agent


def load(path: File, device: str | torch.device = "cpu") -> tuple[Agent, dict[str, Any]]:
    """Load what ``save`` wrote.

    Args:
        path: the checkpoint, or an open binary file.
        device: where the agent goes.

    Returns:
        The agent in evaluation mode, and the ``extra`` values saved with it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, not ours, of an agent that no imported module
            defines, or does not fit its own configuration.
    """
    tensors, header = load_tensors(path)
    if "training" in header:
        raise CheckpointError(
            f"{path} is a state of training, not a finished model; finish the training "
            "(resume=True) and save its result."
        )
    agent = build(tensors, header, path).to(device).eval()
    extra = header.get("extra", {})
    return agent, extra if isinstance(extra, dict) else {}
