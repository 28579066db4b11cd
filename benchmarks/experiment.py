"""Running a cell: train, measure, and give the record; an interrupted run is taken up again."""

import errno
import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import save_model
from tensordict import TensorDictBase
from torch import nn

from benchmarks.budgets import Plan, make_plan
from benchmarks.cells import Cell, Settings, folder_of
from benchmarks.course import Course, undisturbed, write_json
from benchmarks.datasets import load_split
from benchmarks.measure import measure, play, scores_of
from benchmarks.methods import Method, build_method
from benchmarks.records import Record
from benchmarks.surroundings import surroundings
from benchmarks.tasks import Task, domain_of, mage_config, task_of

__all__ = ["DiskFullError", "attempt", "clear", "failure", "is_saved", "run"]

_INTERIM = {"episodes": 5, "seed": 5_000}  # apart from the seeds of the report
_CHECKPOINT, _COURSE = "checkpoint", "course.json"
_POLICY, _WEIGHTS = "policy.mage", "model.safetensors"
_BETWEEN_CHECKPOINTS = 30.0  # seconds


class DiskFullError(RuntimeError):
    """There is no room for checkpoints: no other cell would fare better."""


def attempt(cell: Cell, settings: Settings) -> Record:
    """Run a cell; what goes wrong becomes its record.

    Raises:
        DiskFullError: there is no room for checkpoints.
    """
    started = _now()
    try:
        return run(cell, settings)
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
        **surroundings(),
    }


def run(cell: Cell, settings: Settings) -> Record:
    """Train and measure a method, from where an interrupted run left it; return the record."""
    started, began = _now(), time.perf_counter()
    if not settings.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(settings.threads)
    task = task_of(cell.dataset)
    discount = cell.changes.get("discount", mage_config(domain_of(cell.dataset)).discount)
    training, held = load_split(cell.dataset, discount, settings.hold_out)
    folder = folder_of(cell, settings)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # an orphan of a killed suite may be dying in here
        method, about = _train(cell, settings, task, training, folder)
        measured = measure(
            method,
            training,
            task,
            seed=cell.seed,
            episodes=settings.episodes or task.episodes,
            targets=settings.targets,
        )
        diagnosis = method.describe(held) if len(held) else {}
        diagnosis = {name: float(value) for name, value in diagnosis.items()}
        if settings.save:
            _save(method, folder)
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
        **measured,
        **about,
        "held_out": diagnosis,
        "hold_out": settings.hold_out,
        "threads": settings.threads,
        "started": started,
        "finished": _now(),
        "wall_seconds": round(time.perf_counter() - began, 2),
        **surroundings(),
    }


def _train(
    cell: Cell, settings: Settings, task: Task, dataset: TensorDictBase, folder: Path
) -> tuple[Method, Record]:
    """Plan and train; return the method, and what the record says about its training."""
    build = partial(
        build_method,
        cell.method,
        dataset,
        domain=domain_of(cell.dataset),
        seed=cell.seed,
        paper_size=cell.budget == "paper",
        changes=dict(cell.changes),
    )
    plan = _plan(folder, build, partial(_new_plan, cell, settings, build, dataset))
    method = build()

    def interim() -> Record:
        with undisturbed(method):
            scores = scores_of(play(method, dataset, task, **_INTERIM), dataset)
        return {"score": float(np.mean(scores)), "episodes": len(scores)}

    course = Course(
        folder / _COURSE, steps=plan.steps, points=settings.curve_points, evaluate=interim
    )
    method.learn(
        dataset,
        steps=plan.steps,
        seed=cell.seed,
        progress_bar=False,
        checkpoint_path=folder / _CHECKPOINT,
        checkpoint_interval=plan.steps_in(_BETWEEN_CHECKPOINTS),
        callback=course,
    )
    course.save()
    used = method.hyperparameters
    # Not of those used, which hold the steps that the budget left room for on this machine.
    text = json.dumps(plan.hyperparameters, sort_keys=True).encode()
    samples = plan.steps * used["batch_size"] if "batch_size" in used else None
    return method, {
        "hyperparameters": used,
        "config_digest": hashlib.sha256(text).hexdigest()[:12],
        "steps": plan.steps,
        "published_steps": method.published_steps,
        "seconds_per_step": plan.seconds_per_step,
        "fixed_seconds": plan.fixed_seconds,
        "training_seconds": round(course.seconds, 2),
        "training_wall_seconds": round(course.wall_seconds, 2),
        "interruptions": course.interruptions,
        "samples_per_second": samples and round(samples / course.seconds, 1),
        "learning_curve": course.curve,
    }


def _plan(folder: Path, build: Callable[[], Method], make: Callable[[], Plan]) -> Plan:
    """Return the plan that an interrupted run left behind, or make one and start anew."""

    def anew() -> Plan:
        (folder / _CHECKPOINT).unlink(missing_ok=True)
        return make()

    plan = _kept(folder / "plan.json", build, anew)
    if not (folder / _CHECKPOINT).exists():
        (folder / _COURSE).unlink(missing_ok=True)
    return plan


def _new_plan(
    cell: Cell, settings: Settings, build: Callable[..., Method], dataset: TensorDictBase
) -> Plan:
    """Plan a cell by itself, or as all whose steps are to be equal, which are timed once."""
    if not cell.equal_steps:
        return make_plan(build, dataset, cell.minutes)
    unchanged = partial(build, seed=0, changes={})
    timed = partial(make_plan, unchanged, dataset, cell.minutes)
    folder = folder_of(replace(cell, seed=0, variant="", changes={}), settings)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".equal_steps.lock"):
        return _kept(folder / "equal_steps.json", unchanged, timed)


def _kept(path: Path, build: Callable[[], Method], make: Callable[[], Plan]) -> Plan:
    """Return the plan in a file, or make one if there is none or it was for other settings."""
    plan = Plan(**json.loads(path.read_text())) if path.exists() else None
    ours = json.loads(json.dumps(build().hyperparameters))
    if plan is None or plan.hyperparameters != ours:
        plan = replace(make(), hyperparameters=ours)
        write_json(path, plan.to_dict())
    return plan


def clear(cell: Cell, settings: Settings) -> None:
    """Remove what a cell needed in order to be taken up again, once its record is safe."""
    folder = folder_of(cell, settings)
    (folder / _CHECKPOINT).unlink(missing_ok=True)
    for part in folder.glob(".*.part"):  # of writes that were interrupted
        part.unlink()


def _save(method: Any, folder: Path) -> None:
    """Keep a trained model: by its own ``save``, or its weights."""
    if hasattr(method, "save"):
        method.save(folder / _POLICY)
    elif isinstance(method, nn.Module):
        save_model(method, str(folder / _WEIGHTS))


def is_saved(cell: Cell, settings: Settings) -> bool:
    """Whether the trained model of a cell was kept."""
    return any((folder_of(cell, settings) / name).exists() for name in (_POLICY, _WEIGHTS))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
