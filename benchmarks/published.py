"""The numbers that the paper prints, to stand beside ours: ``published.csv`` and how to read it.

Each row is one cell of Tables 1-8 or 15-26 of *MAGE: Multi-scale Autoregressive Generation for
Offline Reinforcement Learning*, with its table and column. They were measured by the paper's
authors (or copied by them from the baselines' papers) on D4RL's original data, 5 training seeds
each, and are not comparable one to one with what is measured here.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Published", "paper_name", "published_score", "read_published"]

PATH = Path(__file__).with_name("published.csv")
SCORE_TABLES = (1, 2, 3, 4, 15, 16, 17, 18, 24)
ABLATION_TABLES = {  # table -> what it varies, and the variant that is the paper's MAGE
    5: ("number of temporal scales", "K=8"),
    6: ("what a trajectory holds", ""),
    7: ("where the return conditions", ""),
    19: ("explicit or latent inverse dynamics", ""),
    20: ("size of the codebook", "V=512"),
    21: ("depth of the transformer", "depth=8"),
    22: ("where the condition loss acts", ""),
    23: ("reweighting by return instead of conditioning", ""),
    26: ("scales and condition loss together", "K=8"),
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One printed cell.

    Attributes:
        table: number of the table in the paper.
        column: its column, as printed.
        method: the same method by one name in all tables; ours by our own (``mage``, ``iql``).
        variant: what is changed in an ablation of MAGE; empty for the whole method.
        dataset: ``domain/kind`` in D4RL's words, or ``average/...`` for a printed average.
        value: mean normalised score (Table 8: milliseconds); None where the paper prints a dash.
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

    @property
    def is_average(self) -> bool:
        """Whether the cell is an average of other cells."""
        return self.dataset.startswith("average/")


def read_published(path: Path = PATH) -> list[Published]:
    """Read all cells, in the order of the tables.

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


def paper_name(dataset: str, known: Sequence[str]) -> str | None:
    """Find the paper's name of a dataset, or None where the paper has none.

    Args:
        dataset: a Minari id such as ``local/pen/expert-v0``, or a D4RL name such as
            ``pen-expert-v1``. The paper's ``maze2d/umaze`` is ``D4RL/pointmaze/umaze-v2`` on
            Minari and ``local/pointmaze/maze2d-umaze-v0`` where it was collected here.
        known: the paper's names.
    """
    parts = dataset.split("/")[-2:] if "/" in dataset else dataset.split("-", 1)
    name = re.sub(r"-v\d+$", "", "/".join(parts))
    candidates = (
        name,
        re.sub(r"^pointmaze/(maze2d|multi2d)-", r"\1/", name),
        re.sub(r"^pointmaze/", "maze2d/", name),
    )
    return next((candidate for candidate in candidates if candidate in known), None)


def published_score(cells: Sequence[Published], method: str, dataset: str) -> Published | None:
    """Find the paper's score of a whole method on a dataset, by the paper's name of it.

    A method that stands in several tables has the same numbers in each.
    """
    for cell in cells:
        whole = cell.table in SCORE_TABLES and not cell.variant and cell.value is not None
        if whole and (cell.method, cell.dataset) == (method, dataset):
            return cell
    return None
