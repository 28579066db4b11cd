"""What the benchmark finds, and what all of its sections share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase

from benchmarks.speed import make_dataset
from mage_agent import GACConfig, GACModel, MAGEConfig, MAGEModel

__all__ = ["Bench", "Finding", "judged", "relative_error"]

TINY: dict[str, dict[str, Any]] = {
    "mage": {"width": 16, "num_blocks": 1, "num_heads": 2, "codebook_size": 16, "batch_size": 8},
    "gac": {"width": 16, "num_latents": 2, "batch_size": 4, "query_steps": 10},
}


class Finding(NamedTuple):
    """One line of the table.

    Attributes:
        section: of the benchmark.
        case: what was measured.
        value: the number.
        unit: of the number.
        limit: the largest number that passes; None where nothing is judged.
        passed: whether the number keeps to the limit.
    """

    section: str
    case: str
    value: float
    unit: str
    limit: float | None = None
    passed: bool | None = None


def judged(section: str, case: str, value: float, unit: str, limit: float) -> Finding:
    """A finding that passes if its value is at most the limit; NaN never is."""
    return Finding(section, case, value, unit, limit, value <= limit)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


@dataclass
class Bench:
    """What the sections share.

    Attributes:
        device: where everything is measured.
        size: "paper", or "tiny" for a test.
        folder: for checkpoints.
        seconds: time for training the scored agents.
        datasets: ids of the datasets they are trained on.
        methods: names of these agents.
        seed: of their weights and batches.
        peak: FLOP per second of large bfloat16 products, measured by the first section.
    """

    device: str
    size: str
    folder: Path
    seconds: float = 0.0
    datasets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("mage",)
    seed: int = 0
    peak: float = math.nan

    @property
    def tiny(self) -> bool:
        """Whether this is a test."""
        return self.size == "tiny"

    @property
    def few(self) -> int:
        """Steps of training after which an agent's actions depend on what it sees."""
        return 6 if self.tiny else 60

    def dataset(self) -> TensorDictBase:
        """Random numbers, in episodes of 200 steps."""
        return make_dataset(400 if self.tiny else 20_000)

    def mage_config(self, **changes: Any) -> MAGEConfig:
        """The paper's configuration for Adroit, or a tiny one."""
        preset = "adroit-small" if self.tiny else "adroit"
        return MAGEConfig.preset(preset, **{**(TINY["mage"] if self.tiny else {}), **changes})

    def gac_config(self, **changes: Any) -> GACConfig:
        """The paper's configuration for hopper-medium, or a tiny one."""
        preset = "small" if self.tiny else "hopper-medium"
        return GACConfig.preset(preset, **{**(TINY["gac"] if self.tiny else {}), **changes})

    def mage(self, **changes: Any) -> MAGEModel:
        """An untrained MAGE on the CPU that fits the random numbers."""
        return MAGEModel.from_dataset(self.dataset(), self.mage_config(**changes), seed=0)

    def gac(self, **changes: Any) -> GACModel:
        """An untrained GAC on the CPU that fits the random numbers."""
        return GACModel.from_dataset(self.dataset(), self.gac_config(**changes), seed=0)
