"""A cell of the suite: one method on one dataset with one seed and one budget."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.records import Key, Record, key_of

__all__ = ["Cell", "Settings", "folder_of"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is trained; two cells that are equal are one.

    Attributes:
        dataset: id of the dataset.
        method: name of the method.
        seed: of the training.
        budget: name of the budget.
        minutes: of training, see ``seconds_on``; None is the published number of steps.
        variant: name of a changed method; empty for the method as published.
        stage: stages of online fine-tuning that follow the training.
        changes: the settings that the variant changes.
        equal_steps: whether all such cells of the dataset take the same number of steps, which is
            how ablations compare: as many as the minutes leave room for without the changes. Else
            each takes as many as they leave room for with its own.
        shared: whether other cells are scored on the same training, so that its model is kept.
    """

    dataset: str
    method: str
    seed: int
    budget: str
    minutes: float | None
    variant: str = ""
    stage: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    equal_steps: bool = False
    shared: bool = field(default=False, compare=False)

    @property
    def facts(self) -> Record:
        """The part of the record that tells this cell from others."""
        facts = {k: v for k, v in vars(self).items() if k not in ("changes", "shared")}
        return {**facts, "variant": self.name, "changes": dict(self.changes)}

    @property
    def name(self) -> str:
        """Of the variant and the stage; empty for the method as published."""
        stage = f"stage {self.stage}" if self.stage else ""
        return ", ".join(filter(None, (self.variant, stage)))

    @property
    def key(self) -> Key:
        """What identifies this cell among records."""
        return key_of(self.facts)

    def __str__(self) -> str:
        variant = f" [{self.name}]" if self.name else ""
        return f"{self.dataset} {self.method}{variant} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all cells of a suite share.

    Attributes:
        output: folder of the suite.
        hold_out: share of the episodes that is kept from training.
        episodes: evaluation episodes per cell; None is the domain's number.
        targets: returns to ask for besides the method's own.
        curve_points: interim evaluations per cell.
        threads: of each cell.
        device: where agents are trained and act, "cpu" or "cuda".
        gpus: of each cell, a share of one or several.
        save: whether to keep the trained models.
        methods: names of the suite's; modules of the user's own may register environments.
    """

    output: Path
    hold_out: float = 0.05
    episodes: int | None = None
    targets: tuple[float, ...] = ()
    curve_points: int = 3
    threads: int = 1
    device: str = "cpu"
    gpus: float = 0.0
    save: bool = False
    methods: tuple[str, ...] = ()


def folder_of(cell: Cell, settings: Settings) -> Path:
    """Return where a cell keeps its schedule, checkpoint and, if asked for, its model."""
    digest = hashlib.sha256(json.dumps(cell.key).encode()).hexdigest()[
        :8
    ]  # names may clash, or be too long for a folder
    parts = (cell.dataset, cell.method, cell.name, f"seed{cell.seed}", cell.budget)
    name = "_".join(re.sub(r"[^\w.=+-]+", "-", part) for part in parts if part)
    return settings.output / "cells" / f"{name[:150]}_{digest}"
