"""The course of a training: the processor time it takes, and a few interim scores."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["Course", "undisturbed", "write_json"]

_INTERVAL = 5.0  # seconds between two writes


def write_json(path: Path, value: Any) -> None:
    """Replace a file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value))
    os.replace(part, path)


@contextmanager
def undisturbed(method: Any) -> Iterator[None]:
    """Let training go on afterwards as if nothing had happened."""
    modes = {part: part.training for part in method.modules()} if hasattr(method, "modules") else {}
    with torch.random.fork_rng(devices=[]):
        yield
    for part, training in modes.items():
        part.training = training


class Course:
    """A training's callback; what it has seen survives an interruption.

    Args:
        path: file to keep the course in.
        steps: all steps of the training.
        points: number of interim evaluations, evenly spaced over the training.
        evaluate: returns the interim score.

    Attributes:
        curve: the interim evaluations so far: step, processor seconds and score of each.
        interruptions: how often the training was taken up again.
    """

    def __init__(
        self, path: Path, *, steps: int, points: int, evaluate: Callable[[], dict[str, Any]]
    ) -> None:
        self.path, self.evaluate = path, evaluate
        self.due = [steps * i / (points + 1) for i in range(1, points + 1)]
        self.curve: list[dict[str, Any]] = []
        self.interruptions, self._before = 0, {"seconds": 0.0, "wall_seconds": 0.0}
        if path.exists():
            kept = json.loads(path.read_text())
            self.curve, self.interruptions = kept["curve"], kept["interruptions"] + 1
            self._before = {name: kept[name] for name in self._before}
        self._began = time.process_time(), time.perf_counter()
        self._written = 0.0
        self.save()

    @property
    def seconds(self) -> float:
        """Processor seconds of training so far, repeated steps included, evaluations not."""
        return self._before["seconds"] + time.process_time() - self._began[0]

    @property
    def wall_seconds(self) -> float:
        """The same by the clock."""
        return self._before["wall_seconds"] + time.perf_counter() - self._began[1]

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Evaluate if it is time to; write the course down now and then."""
        if len(self.curve) < len(self.due) and step >= self.due[len(self.curve)]:
            point = {"step": step, "seconds": round(self.seconds, 2)}
            paused = time.process_time(), time.perf_counter()
            self.curve.append(point | self.evaluate())
            self._began = (
                self._began[0] + time.process_time() - paused[0],
                self._began[1] + time.perf_counter() - paused[1],
            )
            self.save()
        elif time.perf_counter() - self._written > _INTERVAL:
            self.save()

    def save(self) -> None:
        """Write the course down."""
        self._written = time.perf_counter()
        write_json(
            self.path,
            {
                "seconds": self.seconds,
                "wall_seconds": self.wall_seconds,
                "interruptions": self.interruptions,
                "curve": self.curve,
            },
        )
