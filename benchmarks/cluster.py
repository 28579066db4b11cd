"""Cells as tasks of a Ray cluster."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.cells import Cell, Settings
from benchmarks.executors import Started, take_next
from benchmarks.experiment import DiskFullError, attempt, failure
from benchmarks.records import Record

__all__ = ["RayExecutor"]

_RETRIES = 3  # of a cell whose worker died


class RayExecutor:
    """Tasks of a Ray cluster, with the processors and GPUs they need declared.

    All nodes must see the suite's folder and the datasets under the same paths.

    Args:
        address: of the cluster, for example ``auto``; None starts one on this machine.
        workers: cells at a time on this machine, if a cluster is started here.

    Raises:
        ImportError: Ray is not installed.
    """

    def __init__(self, address: str | None, workers: int) -> None:
        self.ray = _import_ray()
        self.address, self.workers = address, workers

    def run(
        self, cells: Sequence[Cell], settings: Settings, started: Started
    ) -> Iterator[tuple[Cell, Record]]:
        """Run cells; see ``Executor.run``. As many are handed to Ray as have room in it."""
        ray = self.ray
        ray.init(
            address=self.address,
            num_cpus=None if self.address else self.workers * settings.threads,
            runtime_env={"env_vars": _environment()},
            log_to_driver=False,
        )
        try:
            task = ray.remote(
                num_cpus=settings.threads, num_gpus=settings.gpus, max_retries=_RETRIES
            )(attempt)
            queue, pending = deque(cells), dict[Any, Cell]()
            resources = ray.cluster_resources()
            room = int(resources.get("CPU", 1) // settings.threads)
            if settings.gpus:
                room = min(room, int(resources.get("GPU", 0) // settings.gpus))
            while queue or pending:
                while queue and len(pending) < max(1, room):
                    cell = take_next(queue, pending.values())
                    pending[task.remote(cell, settings)] = cell
                    started(cell)
                (done, *_), _ = ray.wait(list(pending))
                cell = pending.pop(done)
                try:
                    yield cell, ray.get(done)
                except DiskFullError:  # Ray's error is also one of the class that was raised
                    raise
                except ray.exceptions.RayError as error:
                    yield cell, failure(cell, error)
        finally:
            ray.shutdown()


def _environment() -> dict[str, str]:
    """Let tasks find this code and the datasets."""
    root = str(Path(__file__).resolve().parents[1])
    names = ("MINARI_DATASETS_PATH", "D4RL_DATASET_DIR")
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, **{name: os.environ[name] for name in names if name in os.environ}}


def _import_ray() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ImportError(
            "--executor ray needs Ray, which is not installed. Install it from your checkout: "
            "pip install '.[cluster]'"
        ) from error
    module: ModuleType = ray
    return module
