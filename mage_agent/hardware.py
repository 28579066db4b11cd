"""Devices, their data types, and seeds."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["find_device", "has_bfloat16", "seeded"]


def find_device(device: str | torch.device) -> torch.device:
    """The device asked for; "auto" is a GPU where there is one.

    Raises:
        ValueError: a GPU is asked for, and there is none that PyTorch can use.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is {str(device)!r}, but PyTorch {torch.__version__} finds no GPU here; use "
            "'auto' or 'cpu', or install a driver and a build of PyTorch for CUDA."
        )
    return found


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside; afterwards they are in the state of before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed = operator.index(seed)  # NumPy's integers, too
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach every GPU
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
