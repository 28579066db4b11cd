"""The D4RL tasks of the paper and their like: names in Gymnasium and on Minari, and scores.

Reference scores, step limits, mazes and file locations are those of D4RL (``d4rl/infos.py`` and the
``__init__.py`` of each domain). `D4RLTask.minari_id` is set only where Minari holds D4RL's data or
its authors' reproduction of it; `D4RLTask.note` says what to know before comparing with published
numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Domain = Literal["adroit", "kitchen", "antmaze", "maze2d", "locomotion"]

FILES = "http://rail.eecs.berkeley.edu/datasets/offline_rl"

ADROIT = {  # step limit, return of a random policy, return of the expert
    "pen": (100, 96.262799, 3076.8331017826877),
    "door": (200, -56.512833, 2880.5693087298737),
    "hammer": (200, -274.856578, 12794.134825156867),
    "relocate": (200, -6.425911, 4233.877797728884),
}
KITCHEN = {  # subtasks that score, file
    "complete": (
        ("microwave", "kettle", "light switch", "slide cabinet"),
        "mini_kitchen_microwave_kettle_light_slider-v0",
    ),
    "partial": (
        ("microwave", "kettle", "light switch", "slide cabinet"),
        "kitchen_microwave_kettle_light_slider-v0",
    ),
    "mixed": (
        ("microwave", "kettle", "bottom burner", "light switch"),
        "kitchen_microwave_kettle_bottomburner_light-v0",
    ),
}
MAZES = {  # "#" is wall; rows and columns are counted from 0
    "umaze": ("#####", "#   #", "### #", "#   #", "#####"),
    "medium": (
        "########",
        "#  ##  #",
        "#  #   #",
        "##   ###",
        "#  #   #",
        "# #  # #",
        "#   #  #",
        "########",
    ),
    "large": (
        "############",
        "#    #     #",
        "# ## # # # #",
        "#      #   #",
        "# #### ### #",
        "#  # #     #",
        "## # # # ###",
        "#  #   #   #",
        "############",
    ),
}
ANTMAZE = {  # maze, start, goal, step limit, Gymnasium name, what the file name says
    "umaze": ("umaze", (1, 1), (3, 1), 700, "UMaze", "u-maze", (False, False)),
    "umaze-diverse": ("umaze", (1, 1), (3, 1), 700, "UMaze", "u-maze", (True, True)),
    "medium-play": ("medium", (1, 1), (6, 6), 1000, "Medium", "big-maze", (True, False)),
    "medium-diverse": ("medium", (1, 1), (6, 6), 1000, "Medium", "big-maze", (True, True)),
    "large-play": ("large", (1, 1), (7, 9), 1000, "Large", "hardest-maze", (True, False)),
    "large-diverse": ("large", (1, 1), (7, 9), 1000, "Large", "hardest-maze", (True, True)),
}
MAZE2D_ID = "mage_agent/Maze2D-v1"
MAZE2D = {  # goal, step limit, random, expert
    "umaze": ((1, 1), 300, 23.85, 161.86),
    "medium": ((6, 6), 600, 13.13, 277.39),
    "large": ((7, 9), 800, 6.7, 273.99),
}
LOCOMOTION: dict[str, tuple[str, dict[str, Any], float, float]] = {
    "halfcheetah": ("HalfCheetah-v5", {}, -280.178953, 12135.0),
    "hopper": ("Hopper-v5", {}, -20.272305, 3234.3),
    # D4RL's walker had feet of different friction; the model file without a version keeps that.
    "walker2d": ("Walker2d-v5", {"xml_file": "walker2d.xml"}, 1.629008, 4592.3),
    # D4RL's simulator left all contact forces at zero (Farama-Foundation/D4RL issue 143).
    "ant": (
        "Ant-v5",
        {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0},
        -325.6,
        3879.7,
    ),
}
LOCOMOTION_DATA = ("medium-expert", "medium", "medium-replay", "expert", "full-replay", "random")
NOTES: dict[Domain, str] = {
    "adroit": "gymnasium-robotics before 1.4.3 rewards the distance of palm and object with the "
    "opposite sign (door, hammer, relocate), and pen no longer ends when the pen is dropped.",
    "kitchen": "Gymnasium observes positions and velocities (59), D4RL's file positions and goal "
    "(60), so that file does not fit; Minari's data counts all finished subtasks in every step and "
    "does not end when all are done, where this environment, as D4RL's, rewards each one once.",
    "antmaze": "Minari's data was collected anew. Gymnasium puts the origin into the middle of the "
    "maze, with y pointing up, so D4RL's file does not fit; goal radius 0.45 instead of 0.5, start "
    "and goal vary by 1 m.",
    "maze2d": "Positions, starts and rewards are D4RL's, so D4RL's file fits. Minari's "
    "D4RL/pointmaze/* is no equal: there the goal moves, and the reward is for the moving one. "
    "python -m benchmarks.collect makes such data anew.",
    "locomotion": "Version 5 of the environments instead of 2. Minari's mujoco/* is no equal: "
    "other policies collected it.",
}


@dataclass(frozen=True, kw_only=True)
class D4RLTask:
    """One D4RL task.

    Attributes:
        id: D4RL's name, for instance ``"pen-expert-v1"``.
        domain: The family of tasks it belongs to.
        environment_id: The Gymnasium environment that stands in for D4RL's.
        environment_kwargs: Arguments of that environment.
        max_episode_steps: D4RL's step limit; Gymnasium's own may differ (pen: 200).
        ref_min_score: Undiscounted return that scores 0, of a random policy.
        ref_max_score: Undiscounted return that scores 1 (in the paper's tables, 100).
        file_url: Where D4RL keeps its data.
        file_fits: Whether observations in that file mean the same as those of the environment.
        minari_id: The same data on Minari, None where there is no equal.
    """

    id: str
    domain: Domain
    environment_id: str
    environment_kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int
    ref_min_score: float
    ref_max_score: float
    file_url: str
    file_fits: bool = True
    minari_id: str | None = None

    @property
    def file(self) -> Path:
        """Where D4RL keeps its file: in ``$D4RL_DATASET_DIR``, or in ``~/.d4rl/datasets``."""
        folder = Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
        return folder / self.file_url.rpartition("/")[2]

    @property
    def note(self) -> str:
        """What to know before comparing with numbers published for D4RL."""
        return NOTES[self.domain]


def _tasks() -> Iterator[D4RLTask]:
    for name, (steps, low, high) in ADROIT.items():
        for data in ("expert", "human", "cloned"):
            yield D4RLTask(
                id=f"{name}-{data}-v1",
                domain="adroit",
                environment_id=f"AdroitHand{name.capitalize()}-v1",
                max_episode_steps=steps,
                ref_min_score=low,
                ref_max_score=high,
                file_url=f"{FILES}/hand_dapg_v1/{name}-{data}-v1.hdf5",
                minari_id=f"D4RL/{name}/{data}-v2",
            )
    for data, (subtasks, file) in KITCHEN.items():
        yield D4RLTask(
            id=f"kitchen-{data}-v0",
            domain="kitchen",
            environment_id="FrankaKitchen-v1",
            environment_kwargs={"tasks_to_complete": list(subtasks)},
            max_episode_steps=280,
            ref_min_score=0.0,
            ref_max_score=4.0,
            file_url=f"{FILES}/kitchen/{file}.hdf5",
            file_fits=False,
            minari_id=f"D4RL/kitchen/{data}-v2",
        )
    for data, (maze, start, goal, steps, name, file, multi) in ANTMAZE.items():
        yield D4RLTask(
            id=f"antmaze-{data}-v2",
            domain="antmaze",
            environment_id=f"AntMaze_{name}-v4",
            environment_kwargs={
                "maze_map": maze_map(MAZES[maze], start=start, goal=goal),
                "reward_type": "sparse",
                "continuing_task": False,  # an episode ends at the goal
            },
            max_episode_steps=steps,
            ref_min_score=0.0,
            ref_max_score=1.0,
            file_url=f"{FILES}/ant_maze_v2/Ant_maze_{file}_noisy_multistart_{multi[0]}"
            f"_multigoal_{multi[1]}_sparse_fixed.hdf5",
            file_fits=False,
            minari_id=f"D4RL/antmaze/{data}-v1",
        )
    for data, (_, steps, low, high) in MAZE2D.items():
        yield D4RLTask(
            id=f"maze2d-{data}-v1",
            domain="maze2d",
            environment_id=MAZE2D_ID,
            environment_kwargs={"maze": data},
            max_episode_steps=steps,
            ref_min_score=low,
            ref_max_score=high,
            file_url=f"{FILES}/maze2d/maze2d-{data}-sparse-v1.hdf5",
        )
    for name, (environment_id, kwargs, low, high) in LOCOMOTION.items():
        for data in LOCOMOTION_DATA:
            yield D4RLTask(
                id=f"{name}-{data}-v2",
                domain="locomotion",
                environment_id=environment_id,
                environment_kwargs=kwargs,
                max_episode_steps=1000,
                ref_min_score=low,
                ref_max_score=high,
                file_url=f"{FILES}/gym_mujoco_v2/{name}_{data.replace('-', '_')}-v2.hdf5",
            )


def maze_map(
    maze: tuple[str, ...],
    *,
    start: tuple[int, int] | None = None,
    goal: tuple[int, int] | None = None,
) -> list[list[int | str]]:
    """Return a maze in the notation of gymnasium-robotics: 1 wall, 0 free, "r" start, "g" goal.

    Args:
        maze: Rows of `MAZES`.
        start: Row and column of the start; anywhere if None.
        goal: Row and column of the goal; anywhere if None.
    """
    cells: list[list[int | str]] = [[int(cell == "#") for cell in row] for row in maze]
    for mark, place in (("r", start), ("g", goal)):
        if place is not None:
            cells[place[0]][place[1]] = mark
    return cells


def _in_paper(task: D4RLTask) -> bool:
    name, _, data = task.id.removesuffix("-v2").partition("-")
    return task.domain != "locomotion" or (name != "hopper" and data in LOCOMOTION_DATA[:3])


ALL_TASKS = {task.id: task for task in _tasks()}
"""Every D4RL task that can be made, by D4RL's id."""

TASKS = {task.id: task for task in ALL_TASKS.values() if _in_paper(task)}
"""Those of the paper's Tables 1-4 and 15-18."""
