"""What the suite knows of a paper: its tables as selections of cells, and the numbers it prints."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import minari

from benchmarks.domains import FINAL_RETURN, base_id, split_id
from mage_agent.d4rl import ALL_TASKS, TASKS
from mage_agent.evaluation import normalized_score

__all__ = [
    "Ablation",
    "Changes",
    "Paper",
    "Published",
    "Table",
    "on_d4rl_scale",
    "read_published",
    "stand_in",
]

Changes = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a table compares, as far as it can be run here.

    Attributes:
        datasets: D4RL's names, or ids of datasets that have no such name.
        methods: its methods that are bundled.
        variants: changes of the paper's agent by name, as JSON has them; the empty name is the
            agent as published.
        stages: numbers of online stages after which methods are scored; 0 is before the first.
    """

    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    variants: dict[str, Changes] = field(default_factory=lambda: {"": {}})
    stages: tuple[int, ...] = (0,)


class Ablation(NamedTuple):
    """What an ablation varies, and the variant that is the paper's agent as published."""

    subject: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """One printed cell.

    Attributes:
        table: number of the table in the paper.
        column: its column, as printed.
        method: the same method by one name in all tables; ours by our own (``mage``, ``iql``).
        variant: what is changed in an ablation; empty for the whole method.
        dataset: ``domain/kind`` in D4RL's words, or ``average/...`` for a printed average.
        value: mean normalised score, or milliseconds; None where the paper prints a dash.
        error: standard error; None where none is printed.
        note: how the print differs from this row.
    """

    table: int
    column: str
    method: str
    variant: str
    dataset: str
    value: float | None
    error: float | None
    note: str


@dataclass(frozen=True)
class Paper:
    """A paper about one agent of ours.

    Attributes:
        agent: name of the agent; the suite's ablations change it, the report judges it.
        title: what the agent is called in text.
        published_path: the numbers that the paper prints.
        tables: those that can be run, by number.
        score_tables: numbers of the tables of scores.
        ablations: by the number of the table.
        rising: number of the table whose scores should rise in the order of its variants, up to
            the agent as published.
        latency: what the paper says about the time per action.
        everywhere: what tells today's datasets and environments from those of the paper.
        remade: the same for datasets that were collected anew.
        environments: what today's environments change, by domain.
        data: what data that were collected anew change, by domain.
        names: what tables call methods that only this paper compares.
        errors: what the print gives beside its scores.
        settings: variants in the print that stand for a whole method, on a dataset as it is and on
            one with final returns only, the first ones first.
        online_tables: numbers of the tables of scores after online fine-tuning, whose variants are
            "stage 1" and so on, or those of ``settings`` for the last stage.
    """

    agent: str
    title: str
    published_path: Path
    tables: Mapping[int, Table]
    score_tables: Sequence[int]
    ablations: Mapping[int, Ablation]
    rising: int
    latency: str
    everywhere: Sequence[str]
    remade: str
    environments: Mapping[str, Sequence[str]]
    data: Mapping[str, Sequence[str]]
    names: Mapping[str, str] = field(default_factory=dict)
    errors: str = "5 seeds, mean ± standard error"
    settings: tuple[Sequence[str], Sequence[str]] = (("",), ("",))
    online_tables: Sequence[int] = ()

    @cached_property
    def published(self) -> list[Published]:
        """All printed cells, in the order of the tables."""
        return read_published(self.published_path)

    def find_table(self, number: int) -> Table:
        """Return a table.

        Raises:
            ValueError: the table cannot be run; the message lists those that can.
        """
        if number not in self.tables:
            raise ValueError(
                f"no table {number}; the paper's tables that can be run are {sorted(self.tables)}."
            )
        return self.tables[number]

    def variant_name(self, changes: Changes) -> str:
        """Return the paper's name of changed settings, or one that spells them out."""
        for table in self.tables.values():
            for name, known in table.variants.items():
                if known == changes:
                    return name
        return "+".join(f"{key}={value}" for key, value in sorted(changes.items()))

    def dataset_name(self, dataset: str) -> str | None:
        """Find the paper's name of a dataset with scores, or None where the paper has none.

        Args:
            dataset: a Minari id such as ``local/pen/expert-v0``, or a D4RL name such as
                ``pen-expert-v1``. A paper's ``maze2d/umaze`` is ``D4RL/pointmaze/umaze-v2`` on
                Minari and ``local/maze2d/umaze-v0`` where it was collected here.
        """
        known = {cell.dataset for cell in self.published if cell.table in self.score_tables}
        name = "/".join(split_id(dataset))
        minari = re.sub(r"^pointmaze/", "maze2d/", name) if dataset.startswith("D4RL/") else name
        return next((candidate for candidate in (name, minari) if candidate in known), None)

    def score(self, method: str, dataset: str, *, delayed: bool = False) -> Published | None:
        """Find the score of a whole method on a dataset, by the paper's name of it.

        A method that stands in several tables has the same numbers in each.

        Args:
            method: name of the method.
            dataset: the paper's name.
            delayed: whether only the return of an episode is known.
        """
        return self._find(self.score_tables, method, dataset, self.settings[delayed])

    def online(
        self, method: str, dataset: str, stage: int, *, delayed: bool = False
    ) -> Published | None:
        """Find the score of a method after a stage of online fine-tuning; arguments as above."""
        last = max(stage for table in self.tables.values() for stage in table.stages)
        variants = [f"stage {stage}", *(self.settings[delayed] if stage == last else ())]
        return self._find(self.online_tables, method, dataset, variants)

    def _find(
        self, tables: Sequence[int], method: str, dataset: str, variants: Sequence[str]
    ) -> Published | None:
        for variant in variants:
            for cell in self.published:
                found = (cell.method, cell.dataset, cell.variant) == (method, dataset, variant)
                if found and cell.table in tables and cell.value is not None:
                    return cell
        return None

    def differences(self, names: Mapping[str, str]) -> list[str]:
        """Facts on datasets that tell them from the paper's, each once.

        Args:
            names: the paper's names of datasets, by their ids.
        """
        facts = list(self.everywhere)
        for name in names.values():
            facts += self.environments.get(name.partition("/")[0], ())
        remade = [name for dataset, name in names.items() if dataset.startswith("local/")]
        for name in remade:
            facts += self.data.get(name.partition("/")[0], ())
        return list(dict.fromkeys([self.remade, *facts] if remade else facts))


def read_published(path: Path) -> list[Published]:
    """Read all printed cells, in the order of the tables.

    Raises:
        ValueError: a row lacks a column, or a number is none.
    """
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                rows.append(
                    Published(
                        table=int(row["table"]),
                        column=row["column"],
                        method=row["method"],
                        variant=row["variant"],
                        dataset=row["dataset"],
                        value=float(row["value"]) if row["value"] else None,
                        error=float(row["error"]) if row["error"] else None,
                        note=row["note"],
                    )
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"line {number} of {path} is no published cell ({error!r}); the columns are "
                    "table,column,method,variant,dataset,value,error,note."
                ) from error
    return rows


def on_d4rl_scale(record: Mapping[str, Any]) -> bool:
    """Whether the score of a record is D4RL's of its returns, wherever D4RL has the task."""
    domain, kind = split_id(record["dataset"])
    domain = domain.replace("multi2d", "maze2d").replace("pointmaze", "maze2d")
    tasks = [t for name, t in ALL_TASKS.items() if name.startswith(f"{domain}-{kind}-v")]
    if not tasks or not record.get("returns"):
        return True
    references = tasks[0].ref_min_score, tasks[0].ref_max_score
    scores = normalized_score(record["returns"], *references)
    return bool(abs(scores.mean() - record["score"]) < 0.5)


def stand_in(dataset: str) -> str:
    """Return the dataset to use for one of a table.

    The same data on Minari under D4RL's name, unless only a remake is on this machine: that of
    ``D4RL/pen/expert-v2`` is ``local/pen/expert-v0``.
    """
    if dataset.endswith(FINAL_RETURN):
        return stand_in(base_id(dataset)) + FINAL_RETURN
    task = TASKS.get(dataset)
    if task is None:
        return dataset
    name, kind = split_id(dataset)
    here = minari.list_local_datasets()
    remake = f"local/{name}/{kind}-v0"
    if task.minari_id not in here and remake in here:
        return remake
    return task.minari_id or dataset
