"""The time that a training takes, and what it scores on the way."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["TrainingClock", "preserve_state", "seconds_on", "write_json"]

_INTERVAL = 5.0  # seconds between two writes


def seconds_on(device: str) -> float:
    """Seconds that count: of this process's processor time; with a GPU, of the wall clock.

    Processor time depends far less on what else the machine is doing, but a GPU takes none of it.
    """
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def write_json(path: Path, value: Any) -> None:
    """Replace a file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value))
    os.replace(part, path)


@contextmanager
def preserve_state(method: Any) -> Iterator[None]:
    """Let training go on afterwards as if nothing had happened."""
    modes = {part: part.training for part in method.modules()} if hasattr(method, "modules") else {}
    with torch.random.fork_rng(
        [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    ):
        yield
    for part, training in modes.items():
        part.training = training


class TrainingClock:
    """A training's callback; what it has seen survives an interruption.

    Args:
        path: file to keep it in.
        steps: all steps of the training.
        points: number of interim evaluations, evenly spaced over the training.
        evaluate: returns the interim score.
        device: decides which seconds count, see ``seconds_on``.

    Attributes:
        curve: the interim evaluations so far: step, seconds and score of each.
        interruptions: how often the training was taken up again.
    """

    def __init__(
        self,
        path: Path,
        *,
        steps: int,
        points: int,
        evaluate: Callable[[], dict[str, Any]],
        device: str = "cpu",
    ) -> None:
        self.path, self.evaluate, self.device = path, evaluate, device
        self.due = [steps * i / (points + 1) for i in range(1, points + 1)]
        self.curve: list[dict[str, Any]] = []
        self.interruptions, self._before = 0, {"seconds": 0.0, "wall_seconds": 0.0}
        if path.exists():
            kept = json.loads(path.read_text())
            self.curve, self.interruptions = kept["curve"], kept["interruptions"] + 1
            self._before = {name: kept[name] for name in self._before}
        self._began = self._now()
        self._written = 0.0
        self.save()

    def _now(self) -> tuple[float, float]:
        return seconds_on(self.device), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, repeated steps included, evaluations not."""
        return self._before["seconds"] + seconds_on(self.device) - self._began[0]

    @property
    def wall_seconds(self) -> float:
        """The same by the wall clock."""
        return self._before["wall_seconds"] + time.perf_counter() - self._began[1]

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Evaluate if it is time to; write everything down now and then."""
        acts = metrics.get("acts", 1.0) > 0
        if acts and len(self.curve) < len(self.due) and step >= self.due[len(self.curve)]:
            point = {"step": step, "seconds": round(self.seconds, 2)}
            paused = self._now()
            self.curve.append(point | self.evaluate())
            resumed = zip(self._began, self._now(), paused, strict=True)
            began, wall_began = (start + now - before for start, now, before in resumed)
            self._began = began, wall_began
            self.save()
        elif time.perf_counter() - self._written > _INTERVAL:
            self.save()

    def save(self) -> None:
        """Write everything down."""
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
