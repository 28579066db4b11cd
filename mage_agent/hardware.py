"""Devices, their data types, memory, seeds, and Ctrl-C."""

from __future__ import annotations

import ctypes
import operator
import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["find_device", "has_bfloat16", "interrupts", "keep_freed_memory", "seeded"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


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


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of memory that it has freed, for what it allocates next.

    As it comes, glibc returns the activations of a training step to the system, and the next step
    faults each page of them in again: a tenth of the time of MAGE's and GAC's steps, a fifth of a
    Decision Transformer's (measured). Without glibc, or where the environment has settings of
    its own (``MALLOC_...``), nothing is changed.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or own:
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
    libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


@contextmanager
def interrupts(*, hold: bool) -> Iterator[threading.Event]:
    """Hold back the first Ctrl-C, for a loop that has something to save; a second one interrupts.

    Yields what is set from then on. Whoever leaves is interrupted there. Nothing is held back where
    ``hold`` is False, outside the main thread, or where somebody else than Python handles the
    signal.
    """
    asked = threading.Event()
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not (hold and here and callable(before)):
        yield asked
        return

    def note(number: int, frame: Any) -> None:
        if asked.is_set():
            before(number, frame)
        asked.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
    if asked.is_set():
        raise KeyboardInterrupt


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
