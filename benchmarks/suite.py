"""A suite: cells that share a folder, run until each has its record, and reported."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from benchmarks import records
from benchmarks.cells import Cell, Settings, folder_of
from benchmarks.clock import write_json
from benchmarks.datasets import collect_missing, fetch, load_split, name_of_data
from benchmarks.executors import Executor
from benchmarks.experiment import DiskFullError, clear, failure, is_saved
from benchmarks.methods import is_told_return, training_of
from benchmarks.papers import Paper
from benchmarks.records import Record, RecordError
from benchmarks.view import View

__all__ = ["RECORDS", "SuiteError", "run_suite"]

RECORDS = "records.jsonl"

_COMMON = ("hold_out", "episodes", "threads", "device")  # must not differ within a folder


class SuiteError(RuntimeError):
    """A suite cannot begin, or cannot go on."""


def run_suite(
    cells: Sequence[Cell],
    settings: Settings,
    executor: Executor,
    *,
    workers: int,
    retry_failed: bool = False,
    console: Console,
    paper: Paper,
) -> tuple[list[Record], Path]:
    """Run the cells that have no record yet, and write the report of all records in the folder.

    Args:
        cells: what is to have a record in the end.
        settings: common to all cells.
        executor: runs them.
        workers: how many run at a time, for the estimate of the time left.
        retry_failed: whether cells that failed run again.
        console: where to write.
        paper: whose agent the report judges, with the paper's numbers beside ours.

    Returns:
        The record of each of the cells, and the path of the report.

    Raises:
        SuiteError: another suite uses the folder, or it cannot be written to, or the disk is full;
            no record is lost.
        ValueError: the records are damaged.
    """
    path = settings.output / RECORDS
    with _alone(settings.output):
        _check_common(settings)
        found = {records.key_of(record): record for record in records.read(path)}
        finished = _finished(found, retry_failed)
        missing = [cell for cell in cells if cell.key not in finished]
        failed = {key for key, record in found.items() if record.get("status") == "failed"}
        if begun := [c for c in missing if c.key in failed and ":" in c.method]:
            folders = sorted({str(folder_of(training_of(cell), settings)) for cell in begun})
            console.print(
                "cells that failed go on from their last checkpoint, with what the code of that "
                f"time has learnt; to train them anew, delete {', '.join(folders)}",
                soft_wrap=True,
            )
        well = _finished(found, retry_failed=True)
        needed = {training_of(cell) for cell in cells if cell.key not in well}
        for cell in cells:  # a suite may have been killed between its record and this
            if cell.key in well and training_of(cell) not in needed:
                clear(cell, settings)
        if text := _lacking([cell for cell in cells if cell.key in finished], found, settings):
            console.print(text, soft_wrap=True)
        try:
            missing = _available(missing, settings, console)
            _check_data(missing, found, settings)
            with View(missing, workers, len(cells) - len(missing), console) as view:
                named = replace(settings, methods=tuple({cell.method for cell in cells}))
                for cell, record in executor.run(missing, named, view.started):
                    records.append(path, record)
                    if record["status"] == "ok":
                        clear(cell, settings)
                    view.finished(cell, record)
        except (DiskFullError, RecordError) as error:
            raise SuiteError(
                f"{error}\nThe suite stopped; all records so far are in {path}. Make room and run "
                "the same command again."
            ) from error
        everything = records.latest(records.read(path))
        keys = {cell.key for cell in cells}
        done = [record for record in everything if records.key_of(record) in keys]
        from benchmarks import report  # pictures need matplotlib, which workers do without

        return done, report.write(everything, settings.output, paper)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Make a folder, and keep every other suite out of it."""
    lock = FileLock(output / ".lock")
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SuiteError(
            f"another suite is writing to {output}; wait for it, or choose another --output."
        ) from error
    except OSError as error:
        raise SuiteError(
            f"cannot write to {output} ({error.strerror}); choose another --output."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _check_common(settings: Settings) -> None:
    """Refuse to mix records that do not compare."""
    path = settings.output / "suite.json"
    ours = {name: getattr(settings, name) for name in _COMMON}
    if not path.exists():
        write_json(path, ours)
        return
    try:
        theirs = {"device": "cpu", **json.loads(path.read_text())}
    except (ValueError, TypeError) as error:
        raise SuiteError(f"{path} is damaged; restore it, or choose another --output.") from error
    if theirs != ours:
        raise SuiteError(
            f"{settings.output} holds a suite with {theirs}; these are {ours}. Use the same, or "
            "another --output."
        )


def _check_data(
    missing: Sequence[Cell], found: Mapping[records.Key, Record], settings: Settings
) -> None:
    """Refuse to put cells beside those that were trained on other data of the same name."""
    known = {record["dataset"]: record["data"] for record in found.values() if "data" in record}
    for dataset in {cell.dataset for cell in missing} & set(known):
        try:
            name = name_of_data(load_split.__wrapped__(dataset, settings.hold_out)[0])
        except (ValueError, KeyError, OSError):  # which becomes the cells' own record
            continue
        if name != known[dataset]:
            raise SuiteError(
                f"{dataset} has been made anew since {settings.output} has records of it; choose "
                "another --output."
            )


def _finished(found: Mapping[records.Key, Record], retry_failed: bool) -> set[records.Key]:
    """Return the keys of cells that need not run; what was unavailable may be there by now."""
    again = {"unavailable", "failed"} if retry_failed else {"unavailable"}
    return {key for key, record in found.items() if record.get("status", "ok") not in again}


def _lacking(
    finished: Sequence[Cell], found: Mapping[records.Key, Record], settings: Settings
) -> str:
    """Say what is asked for now that the cells finished before do not have."""
    done = [cell for cell in finished if found[cell.key].get("status", "ok") == "ok"]
    targets = {str(target) for target in settings.targets}
    unanswered = [
        cell
        for cell in done
        if targets - set(found[cell.key].get("asked") or {}) and is_told_return(cell.method)
    ]
    unsaved = [cell for cell in done if settings.save and not is_saved(cell, settings)]
    lacks = {"answers to all --targets": unanswered, "the model that --save asks for": unsaved}
    parts = [f"{len(cells)} have not {what}" for what, cells in lacks.items() if cells]
    own = {cell.method for cell in done if ":" in cell.method}
    if own:
        parts.append(f"those of {', '.join(sorted(own))} do not know of changes of its code since")
    if not parts:
        return ""
    return (
        f"of the {len(done)} cells that were finished before, {' and '.join(parts)}; they stay as "
        "they are, and another --output trains them anew"
    )


def _available(cells: Sequence[Cell], settings: Settings, console: Console) -> list[Cell]:
    """Collect or fetch what is not there; return the cells with data, record why others lack it."""
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    for dataset in datasets:
        collected = collect_missing(dataset)
        if collected is not None:
            console.print(f"collected {dataset} into {collected}", soft_wrap=True)
    reasons = fetch(datasets)
    for dataset, reason in reasons.items():
        console.print(f"{dataset} is unavailable: {reason}", soft_wrap=True)
    path = settings.output / RECORDS
    known = {records.key_of(record) for record in records.read(path)}
    for cell in cells:
        if cell.dataset in reasons and cell.key not in known:
            record = failure(cell, reasons[cell.dataset])
            records.append(path, {**record, "status": "unavailable"})
    return [cell for cell in cells if cell.dataset not in reasons]
