"""Running a cell: train, measure, and give the record; an interrupted run is taken up again."""

import errno
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from tensordict import TensorDictBase

from benchmarks.baselines import UnsuitableError
from benchmarks.budgets import Schedule, make_schedule
from benchmarks.cells import Cell, Settings, folder_of
from benchmarks.clock import TrainingClock, preserve_state, write_json
from benchmarks.datasets import load_split, name_of_data
from benchmarks.domains import Domain, domain_of
from benchmarks.measure import measure, run_episodes, scores_of
from benchmarks.methods import QUESTIONS, build_for, find_method, training_of
from benchmarks.protocol import Method
from benchmarks.provenance import provenance
from benchmarks.records import Record
from benchmarks.sharing import SAVED, digest, stage_file, take_up
from mage_agent import make_environment

__all__ = ["SAVED", "DiskFullError", "attempt", "clear", "failure", "is_saved", "run"]

_INTERIM = {"episodes": 5, "seed": 5_000}  # apart from the seeds of the report
_CHECKPOINT, _CLOCK = "checkpoint", "clock.json"
_BETWEEN_CHECKPOINTS = 30.0  # seconds


class DiskFullError(RuntimeError):
    """There is no room for checkpoints: no other cell would fare better."""


def attempt(cell: Cell, settings: Settings) -> Record:
    """Run a cell; what goes wrong, or that its data do not suit the method, becomes its record.

    Raises:
        DiskFullError: there is no room for checkpoints.
    """
    started = _now()
    try:
        return run(cell, settings)
    except UnsuitableError as error:
        return {**failure(cell, error, started), "status": "unavailable"}
    except Exception as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise DiskFullError(f"{cell}: {error}") from error
        return failure(cell, error, started)


def failure(cell: Cell, error: BaseException | str, started: str | None = None) -> Record:
    """Return the record of a cell that came to nothing."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    trace = [] if isinstance(error, str) else traceback.format_exception(error)
    return {
        **cell.facts,
        "status": "failed",
        "error": text,
        "traceback": "".join(trace)[-4000:],
        "started": started or _now(),
        "finished": _now(),
        **provenance(),
    }


def run(cell: Cell, settings: Settings) -> Record:
    """Train and measure a method, from where an interrupted run left it; return the record."""
    started, began = _now(), time.perf_counter()
    if settings.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(settings.threads)
    domain = domain_of(cell.dataset)
    for name in {*settings.methods, cell.method}:
        find_method(name)  # whose module may register the environment
    training, held = load_split(cell.dataset, settings.hold_out)
    make_environment(training, **domain.environment).close()  # before the work, not after it
    source = training_of(cell)
    folder = folder_of(source, settings)
    folder.mkdir(parents=True, exist_ok=True)
    train = partial(_train, source, settings, domain, training, folder)
    with FileLock(folder / ".lock"):  # an orphan of a killed suite may be dying in here
        method: Method
        if cell.shared or source != cell:
            method, about = take_up(cell, settings, domain, training, folder, train)
        else:
            method, about = train()
            if settings.save and hasattr(method, "save"):
                method.save(folder / SAVED)
    measured = measure(
        method,
        training,
        domain,
        seed=cell.seed,
        episodes=settings.episodes or domain.episodes,
        targets=settings.targets,
    )
    # What a training knows of data it has not seen does not depend on the question.
    diagnosis = method.describe(held) if len(held) and cell.method not in QUESTIONS else {}
    diagnosis = {name: float(value) for name, value in diagnosis.items()}
    about["learning_curve"].append(
        {
            "step": about["steps"],
            "seconds": about["training_seconds"],
            "score": measured["score"],
            "episodes": measured["episodes"],
        }
    )
    return {
        **cell.facts,
        "status": "ok",
        "domain": domain.name if domain.known else "unknown",
        **measured,
        **about,
        "held_out": diagnosis,
        "hold_out": settings.hold_out,
        "data": name_of_data(training),
        "threads": settings.threads,
        "device": settings.device,
        "started": started,
        "finished": _now(),
        "wall_seconds": round(time.perf_counter() - began, 2),
        **provenance(),
    }


def _train(
    cell: Cell, settings: Settings, domain: Domain, dataset: TensorDictBase, folder: Path
) -> tuple[Method, Record]:
    """Schedule and train; return the method, and what the record says about its training."""
    build = partial(build_for, cell, dataset, settings.device)
    method = build()
    schedule = _schedule(folder, method, partial(_new_schedule, cell, settings, build, dataset))

    def interim() -> Record:
        with preserve_state(method):
            scores = scores_of(run_episodes(method, dataset, domain, **_INTERIM), dataset)
        return {"score": float(np.mean(scores)), "episodes": len(scores)}

    clock = TrainingClock(
        folder / _CLOCK,
        steps=schedule.steps,
        points=settings.curve_points,
        evaluate=interim,
        device=settings.device,
    )
    method.learn(
        dataset,
        steps=schedule.steps,
        seed=cell.seed,
        progress_bar=False,
        checkpoint_path=folder / _CHECKPOINT,
        checkpoint_interval=schedule.steps_in(_BETWEEN_CHECKPOINTS),
        callback=clock,
    )
    clock.save()
    used = method.hyperparameters
    samples = schedule.steps * used["batch_size"] if "batch_size" in used else None
    return method, {
        "hyperparameters": used,
        "config_digest": digest(used),
        "steps": schedule.steps,
        "published_steps": method.published_steps,
        "seconds_per_step": schedule.seconds_per_step,
        "fixed_seconds": schedule.fixed_seconds,
        "training_seconds": round(clock.seconds, 2),
        "training_wall_seconds": round(clock.wall_seconds, 2),
        "interruptions": clock.interruptions,
        "samples_per_second": samples and round(samples / clock.seconds, 1),
        "learning_curve": clock.curve,
    }


def _schedule(folder: Path, method: Method, make: Callable[[], Schedule]) -> Schedule:
    """Return the schedule that an interrupted run left behind, or make one and start anew."""

    def anew() -> Schedule:
        (folder / _CHECKPOINT).unlink(missing_ok=True)
        return make()

    schedule = _kept(folder / "schedule.json", method, anew)
    if not (folder / _CHECKPOINT).exists():
        (folder / _CLOCK).unlink(missing_ok=True)
    return schedule


def _new_schedule(
    cell: Cell, settings: Settings, build: Callable[..., Method], dataset: TensorDictBase
) -> Schedule:
    """Schedule a cell by itself, or as all whose steps are to be equal, which are timed once."""
    if not cell.equal_steps:
        return make_schedule(build, dataset, cell.minutes, settings.device)
    unchanged = partial(build, seed=0, changes={})
    timed = partial(make_schedule, unchanged, dataset, cell.minutes, settings.device)
    folder = folder_of(replace(cell, seed=0, variant="", changes={}), settings)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".equal_steps.lock"):
        return _kept(folder / "equal_steps.json", unchanged(), timed)


def _kept(path: Path, method: Method, make: Callable[[], Schedule]) -> Schedule:
    """Return the schedule in a file, or make one if there is none or it was for other settings."""
    schedule = Schedule(**json.loads(path.read_text())) if path.exists() else None
    ours = json.loads(json.dumps(method.hyperparameters))
    if schedule is None or schedule.hyperparameters != ours:
        schedule = replace(make(), hyperparameters=ours)
        write_json(path, asdict(schedule))
    return schedule


def clear(cell: Cell, settings: Settings) -> None:
    """Remove what a cell needed in order to be taken up again, once its record is safe."""
    folder = folder_of(training_of(cell), settings)
    (folder / _CHECKPOINT).unlink(missing_ok=True)
    for part in folder.glob(".*.part"):  # of writes that were interrupted
        part.unlink()


def is_saved(cell: Cell, settings: Settings) -> bool:
    """Whether the trained model of a cell was kept."""
    return stage_file(folder_of(training_of(cell), settings), cell.stage).exists()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
