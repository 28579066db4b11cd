"""What *Generative Actor Critic* prints: every cell of its Tables 1, 2, 8, 9 and 10.

Numbers of the paper's authors on D4RL's original data, in D4RL's normalised scores; the tables' own
columns hold two settings ("step-wise reward", "final return"), the three stages of online
fine-tuning, and what fine-tuning gained. Errors are standard deviations of returns, not standard
errors: over 100 trajectories in Tables 1, 2 and 10, over 5 seeds in Tables 8 and 9, which print the
same numbers all the same.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.papers.paper import Published, read_published

__all__ = ["DATASETS", "METHODS", "published"]

PATH = Path(__file__).with_name("gac.csv")
DATASETS = (
    *(f"{robot}/{kind}" for robot in ("hopper", "walker2d", "halfcheetah")
      for kind in ("medium", "medium-replay")),
    *(f"maze2d/{maze}" for maze in ("umaze", "medium", "large")),
)  # fmt: skip
METHODS = {
    "gac": "max E[y]",
    "gac-plus": "p(z | y+)",
    "gac-target": "p(z | y*)",
    "gac-prior": "p(z)",
}
"""Our names of the queries that the paper compares."""


def published(table: int | None = None, method: str | None = None) -> Sequence[Published]:
    """Read the printed cells.

    Args:
        table: number of a table; None is all.
        method: our name of a method; None is all.
    """
    return [
        cell
        for cell in read_published(PATH)
        if table in (None, cell.table) and method in (None, cell.method)
    ]
