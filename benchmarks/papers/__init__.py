"""The papers whose tables the suite runs and whose numbers the report prints beside ours."""

from benchmarks.papers.gac import PAPER as GAC
from benchmarks.papers.mage import PAPER as MAGE
from benchmarks.papers.paper import Ablation, Paper, Published, Table, on_d4rl_scale, stand_in

__all__ = [
    "PAPERS",
    "Ablation",
    "Paper",
    "Published",
    "Table",
    "find_paper",
    "on_d4rl_scale",
    "stand_in",
]

PAPERS = {paper.agent: paper for paper in (MAGE, GAC)}


def find_paper(agent: str = MAGE.agent) -> Paper:
    """The paper about an agent.

    Raises:
        ValueError: there is none here; the message lists those that are.
    """
    if agent not in PAPERS:
        raise ValueError(f"there is no paper {agent!r}; known: {sorted(PAPERS)}.")
    return PAPERS[agent]
