"""*Generative Actor Critic*.

``gac.csv`` holds every cell of its Tables 1, 2, 8, 9 and 10: numbers of the paper's authors on
D4RL's original data, in D4RL's normalised scores; the tables' own columns hold two settings
("step-wise reward", "final return"), the three stages of online fine-tuning, and what fine-tuning
gained. Errors are standard deviations of returns, not standard errors: over 100 trajectories in
Tables 1, 2 and 10, over 5 seeds in Tables 8 and 9, which print the same numbers all the same.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.domains import FINAL_RETURN
from benchmarks.papers.paper import Paper, Table
from mage_agent import GACModel

__all__ = ["DATASETS", "METHODS", "PAPER"]

_AGENT = GACModel.name
_ROBOTS = tuple(
    (robot, kind)
    for robot in ("hopper", "walker2d", "halfcheetah")
    for kind in ("medium", "medium-replay")
)
_MAZES = tuple(("maze2d", maze) for maze in ("umaze", "medium", "large"))
DATASETS = tuple("/".join(pair) for pair in _ROBOTS + _MAZES)
METHODS = {
    "gac": "max E[y]",
    "gac-plus": "p(z | y+)",
    "gac-target": "p(z | y*)",
    "gac-prior": "p(z)",
}
"""Our names of the queries that the paper compares."""

_MAZE_DATA = tuple(f"local/{domain}/{maze}-v0" for domain, maze in _MAZES)
_DATA = tuple(f"local/{robot}/{kind}-v0" for robot, kind in _ROBOTS) + _MAZE_DATA  # made by collect
_BASELINES = ("iql", "cql", "dt")
_STAGES = 3


def _delayed(datasets: Sequence[str]) -> tuple[str, ...]:
    return tuple(dataset + FINAL_RETURN for dataset in datasets)


_TABLES = {
    1: Table(datasets=_delayed(_DATA), methods=(*METHODS, *_BASELINES)),
    2: Table(datasets=_delayed(_DATA), methods=(_AGENT, *_BASELINES), stages=(0, _STAGES)),
    # GAC never reads step rewards: its half of Tables 8 and 9 is that of Tables 1 and 2.
    8: Table(datasets=_DATA, methods=_BASELINES),
    9: Table(datasets=_DATA, methods=_BASELINES, stages=(0, _STAGES)),
    10: Table(
        datasets=_delayed(_MAZE_DATA), methods=tuple(METHODS), stages=tuple(range(_STAGES + 1))
    ),
}

PAPER = Paper(
    agent=_AGENT,
    title="GAC",
    published_path=Path(__file__).with_suffix(".csv"),
    tables=_TABLES,
    score_tables=(1, 8, 10),
    ablations={},
    rising=0,
    latency="The paper names no times.",
    everywhere=(
        "Simulators differ: D4RL ran on mujoco-py, today's environments run on MuJoCo 3.",
        "The paper's settings were searched for each dataset, by the evidence lower bound; ours "
        "are one per domain, unless the budget is the paper's.",
        "Where data say what they head for, trajectories of the trajectory-return-only setting end "
        "on arrival, and their return is that of staying, for every method.",
        "Errors in the paper are standard deviations over 100 episodes; ours are standard errors.",
        "Baselines fine-tune online by the same stages and the same number of episodes as GAC, "
        "not by the algorithms that the paper cites for them.",
    ),
    remade=(
        "Datasets whose ids begin with local/ are not D4RL's files: they were collected anew, by "
        "D4RL's recipes, and hold fewer steps."
    ),
    environments={},
    data={
        "maze2d": (
            "Maze2D: one run without an end. GAC's trajectories, and all of those whose return "
            "alone is told, end where another goal is headed for; other methods' episodes, at the "
            "environment's step limit. The paper does not say how it parts the run.",
        )
    },
    names={method: f"GAC {query}" for method, query in METHODS.items() if method != _AGENT},
    errors="mean ± standard deviation over 100 episodes",
    settings=(("step-wise reward", "final return", "stage 0"), ("final return", "stage 0")),
    online_tables=(2, 9, 10),
)
