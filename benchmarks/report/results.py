"""Records as the suite wrote them, put in order: which method did how well on which task."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.papers import PAPERS, Paper, find_paper
from benchmarks.records import Record, read

__all__ = [
    "LONG",
    "Results",
    "Task",
    "Trainings",
    "display_name",
    "is_own",
    "read_records",
    "stage_of",
]

NAMES = {  # the order of the tables, and what the methods are called there
    **{paper.agent: paper.title for paper in PAPERS.values()},
    "bc": "BC",
    "ten_percent_bc": "10% BC",
    "td3_bc": "TD3+BC",
    "rebrac": "ReBRAC",
    "cql": "CQL",
    "iql": "IQL",
    "dt": "DT",
    "fql": "FQL",
    "diffusion_ql": "Diffusion-QL",
    "diffuser": "Diffuser",
    "diffuser-open": "Diffuser open loop",
    "hd": "HD",
    "hd-open": "HD open loop",
    "dv": "DV",
    "dv-open": "DV open loop",
    "adt": "V-ADT",
    "tap": "TAP",
    "hiql": "HIQL",
    **{name: text for paper in PAPERS.values() for name, text in paper.names.items()},
}


def is_own(method: str) -> bool:
    """Whether a method is one of the library's agents, whatever it is asked."""
    return method.partition("-")[0] in {paper.agent for paper in PAPERS.values()}


def display_name(method: str) -> str:
    """Name of a method in tables; a user's own method is called what the user calls it."""
    return NAMES.get(method, method)


def read_records(path: Path) -> list[Record]:
    """Read the records of a file, or of all ``*.jsonl`` files of a folder, by name.

    Raises:
        FileNotFoundError: there is no such file, or no ``*.jsonl`` in the folder.
        ValueError: a line other than the last of its file is no record.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(
            f"no {path if missing else f'*.jsonl file in {path}'}; the suite writes its records to "
            "records.jsonl in its --output folder."
        )
    return [record for file in files for record in read(file)]


LONG = ("long", "paper")
"""Budgets that give every method as long as it needs, not the same minutes."""


@dataclass(frozen=True, order=True)
class Task:
    """What methods are compared on: a dataset, at one budget of training.

    Attributes:
        dataset: Minari id.
        budget: name of the budget; empty if the records name none.
        minutes: training time per cell that the budget allows; 0 if it is not by time.
    """

    dataset: str
    budget: str = ""
    minutes: float = 0.0

    @property
    def long(self) -> bool:
        """Whether methods were given as long as they need, not the same minutes."""
        return self.budget in LONG


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """One method on one task, over all its training seeds.

    Attributes:
        method: name of the method.
        variant: name of the ablation; empty for the method as it stands.
        task: dataset and budget.
        finished: records of finished trainings, by seed.
        failed: records of trainings that failed, by seed.
        unavailable: records of seeds that could not start, such as for want of the dataset.
    """

    method: str
    variant: str
    task: Task
    finished: list[Record]
    failed: list[Record]
    unavailable: list[Record]

    def first(self, count: int) -> "Trainings":
        """Return the cell with the finished trainings of the lowest seeds alone."""
        return replace(self, finished=self.finished[:count])

    @property
    def scores(self) -> np.ndarray:
        """Mean score of every finished training, shape (seeds,)."""
        return np.array([record["score"] for record in self.finished], dtype=float)

    @property
    def episode_scores(self) -> np.ndarray:
        """Scores of all evaluation episodes of all finished trainings, shape (episodes,)."""
        lists = [record.get("scores") or [record["score"]] for record in self.finished]
        return np.array([score for scores in lists for score in scores], dtype=float)

    @property
    def mean(self) -> float:
        """Mean over training seeds."""
        return float(self.scores.mean())

    @property
    def error(self) -> float | None:
        """Standard error: over training seeds; of one training, over its episodes."""
        values = self.scores if len(self.scores) > 1 else self.episode_scores
        return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


@dataclass(kw_only=True)
class Results:
    """All records, in order, and the cells they make.

    Attributes:
        records: cleaned records, sorted; of several for one training, the finished or last one.
        paper: whose agent is judged.
        tasks: all tasks, sorted.
        methods: all methods, in the order of the tables.
        cells: by (task, method, variant).
        problems: sentences on records that could not be used.
    """

    records: list[Record]
    paper: Paper
    tasks: list[Task] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    cells: dict[tuple[Task, str, str], Trainings] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, records: Iterable[Any], paper: Paper | None = None) -> "Results":
        """Clean and group records; ``paper`` is by default the first."""
        kept, problems = _clean(records)
        groups: dict[tuple[Task, str, str], list[Record]] = defaultdict(list)
        for record in kept:
            groups[_task(record), record["method"], record["variant"]].append(record)
        cells = {
            (task, method, variant): Trainings(
                method=method,
                variant=variant,
                task=task,
                finished=[record for record in group if record["status"] == "ok"],
                failed=[record for record in group if record["status"] == "failed"],
                unavailable=[record for record in group if record["status"] == "unavailable"],
            )
            for (task, method, variant), group in groups.items()
        }
        known = list(NAMES)
        return cls(
            records=kept,
            paper=paper or find_paper(),
            tasks=sorted({task for task, _, _ in cells}),
            methods=sorted(
                {method for _, method, _ in cells},
                key=lambda name: (known.index(name) if name in known else len(known), name),
            ),
            cells=cells,
            problems=problems,
        )

    def cell(self, task: Task, method: str, variant: str = "") -> Trainings | None:
        """Find a cell; None if nothing was recorded of it."""
        return self.cells.get((task, method, variant))

    @property
    def subject(self) -> str:
        """The method that is judged."""
        return self.paper.agent

    @property
    def by_return(self) -> list[Task]:
        """Tasks without reference scores, where a score is a return, which no other compares to."""
        return self._scored_by("return")

    @property
    def by_success(self) -> list[Task]:
        """Tasks without reference scores, where a score is the share of episodes that succeed."""
        return self._scored_by("success")

    def _scored_by(self, unit: str) -> list[Task]:
        return sorted({_task(each) for each in self.records if each.get("scored_by") == unit})

    def competing(self, task: Task) -> dict[str, Trainings]:
        """Methods, as they stand, with at least one finished training on a task.

        In the budget "long", a method that has no such training stands with its usual one.
        """
        usual = [t for t in self.tasks if t.dataset == task.dataset and not t.long]
        places = [task, *usual[-1:]] if task.budget == "long" else [task]
        cells = {
            m: next(filter(None, (self.cell(t, m) for t in places)), None) for m in self.methods
        }
        return {method: cell for method, cell in cells.items() if cell and cell.finished}

    def label(self, task: Task) -> str:
        """Shortest name that tells a task from the others: ``pen/expert``."""
        short = _short(task.dataset)
        ids = {other.dataset for other in self.tasks if _short(other.dataset) == short}
        name = short if len(ids) == 1 else task.dataset
        alike = [other for other in self.tasks if other.long == task.long]
        budgets = {(other.budget, other.minutes) for other in alike}
        if len(budgets) > 1 or (task.long and len(alike) < len(self.tasks)):
            minutes = f"{task.minutes:g} min" if task.minutes else ""
            details = ", ".join(part for part in (task.budget, minutes) if part)
            name += f" ({details or 'no budget'})"
        return name

    def label_of(self, record: Record) -> str:
        """Label of the task of a record."""
        return self.label(_task(record))


def stage_of(variant: str) -> int:
    """The stage of online fine-tuning that the name of a variant ends with, or 0."""
    found = re.search(r"(?:^|, )stage (\d+)$", variant)
    return int(found[1]) if found else 0


def _short(dataset: str) -> str:
    parts = dataset.split("/")[-2:]
    return "/".join([*parts[:-1], parts[-1].rpartition("-v")[0] or parts[-1]])


def _task(record: Record) -> Task:
    return Task(record["dataset"], record["budget"], record["minutes"])


def _key(record: Record) -> tuple[Any, ...]:
    return (_task(record), record["method"], record["variant"], record["seed"])


def _clean(records: Iterable[Any]) -> tuple[list[Record], list[str]]:
    """Fill in what old or odd records lack, and keep one record for each training."""
    chosen: dict[tuple[Any, ...], Record] = {}
    problems, repeated = [], 0
    for number, raw in enumerate(records, start=1):
        try:
            record = _complete(raw)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problems.append(f"Record {number} is left out, since it is no record: {error!r}.")
            continue
        before = chosen.get(_key(record))
        repeated += before is not None
        # A training that failed and was run again counts as what it became.
        if before is None or record["status"] == "ok" or before["status"] != "ok":
            chosen[_key(record)] = record
    if repeated:
        problems.append(
            f"{repeated} records repeat a training that has another record; the last finished one "
            "counts."
        )
    return [chosen[key] for key in sorted(chosen)], problems


def _complete(raw: Record) -> Record:
    record = {
        **raw,
        "method": str(raw["method"]),
        "dataset": str(raw["dataset"]),
        "variant": str(raw.get("variant") or ""),
        "budget": str(raw.get("budget") or ""),
        "minutes": float(raw.get("minutes") or 0),
        "seed": int(raw.get("seed") or 0),
        "status": raw.get("status") or "ok",
        "learning_curve": [
            point
            for point in raw.get("learning_curve") or raw.get("curve") or []
            if _is_number(point.get("seconds")) and _is_number(point.get("score"))
        ],
        "asked": {k: v for k, v in (raw.get("asked") or {}).items() if _is_number(v)},
    }
    if record["status"] == "ok":
        scores = [score for score in raw.get("scores") or [] if _is_number(score)]
        score = raw.get("score")
        if _is_number(score) and len(scores) == len(raw.get("scores") or []):
            return record
        if score is None and scores and len(scores) == len(raw["scores"]):
            return {**record, "score": float(np.mean(scores))}
        return {**record, "status": "failed", "error": f"its score is no number: {score!r}"}
    if record["status"] != "unavailable":  # what else is not finished has failed
        record["status"] = "failed"
    return record


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def numbers(records: Sequence[Record], *keys: str) -> list[float]:
    """Collect a nested number from the records that have it."""
    found = []
    for record in records:
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if _is_number(value):
            found.append(float(value))
    return found
