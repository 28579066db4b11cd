"""OGBench's ``pointmaze-*-navigate`` by its recipe: a noisy point on its way from goal to goal."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import tyro
from minari.data_collector import EpisodeBuffer
from tqdm import trange

from benchmarks.collect.common import check_choice, check_least, origin
from mage_agent.recording import free_place, save_minari

__all__ = ["LENGTHS", "OGBenchRecipe", "collect", "goal_cells"]

LENGTHS = {"medium": 1000, "large": 1000, "giant": 2000, "teleport": 1000}
"""Steps of a trajectory by maze; OGBench stores one observation more."""
REACHED = 1.0
"""Distance from the goal at which OGBench's point has reached it, metres."""
Array = npt.NDArray[Any]
Cell = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class OGBenchRecipe:
    """How a dataset is made.

    OGBench's data are trajectories through one goal after another, which they do not tell: a method
    takes for goals where a trajectory leads. So does each episode here. Its goal, in its
    observations, is the position at a step drawn uniformly from the rest of the trajectory, and it
    ends with the reward 1 when that is reached; the next one goes on from there.

    Attributes:
        maze: one of ``LENGTHS``.
        steps: environment steps, rounded up to whole trajectories; OGBench: a million.
        action_noise: standard deviation of the Gaussian noise on actions, which lie in [-1, 1].
        seed: seeds everything.
    """

    maze: tyro.conf.Suppress[str]
    steps: int = 1_000_000
    action_noise: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be collected.

        Raises:
            ValueError: a value is not allowed.
        """
        check_choice(self, maze=tuple(LENGTHS))
        check_least(self, steps=1, action_noise=0)

    @property
    def dataset_id(self) -> str:
        """Minari id to save under."""
        return f"ogbench/pointmaze/{self.maze}-navigate-v0"


def collect(recipe: OGBenchRecipe, root: Path, *, progress_bar: bool = True) -> Path:
    """Collect a dataset and save it under a Minari root; all or nothing.

    Args:
        recipe: what to collect.
        root: folder that holds Minari datasets.
        progress_bar: whether to show progress.

    Returns:
        The dataset's folder, ``root / recipe.dataset_id``.

    Raises:
        FileExistsError: the dataset is there already.
        ImportError: ogbench is not installed; the message says how to install it.
    """
    free_place(root, recipe.dataset_id)  # before the work, not after it
    env = gym.make("mage_agent/OGBench-v0", name=f"pointmaze-{recipe.maze}-v0")
    env.reset(seed=recipe.seed)
    goals: Any = env.unwrapped
    rng, cuts = (np.random.default_rng((recipe.seed, stream)) for stream in (0, 1))
    episodes: list[EpisodeBuffer] = []
    trajectories = -(-recipe.steps // LENGTHS[recipe.maze])
    with goals.seeded():
        for _ in trange(trajectories, unit="trajectory", disable=not progress_bar, desc="collect"):
            episodes += _episodes(*_trajectory(goals.maze, recipe, rng), cuts, len(episodes))
    path = save_minari(
        root,
        recipe.dataset_id,
        episodes,
        env=env,
        eval_env=env.spec,
        algorithm_name="noisy oracle",
        description=f"{recipe}. By OGBench's recipe.",
        **origin("benchmarks/collect/ogbench.py", "ogbench", "mujoco"),
    )
    env.close()
    return path


def goal_cells(maze_map: npt.NDArray[np.int64]) -> tuple[list[Cell], list[Cell]]:
    """Free cells, and those of them that are goals: all but the inner parts of corridors."""
    free = [(int(i), int(j)) for i, j in np.argwhere(maze_map == 0)]

    def corridor(i: int, j: int) -> bool:
        above, below = maze_map[i - 1, j], maze_map[i + 1, j]
        left, right = maze_map[i, j - 1], maze_map[i, j + 1]
        return bool(above == below != left == right)

    return free, [cell for cell in free if not corridor(*cell)]


def _trajectory(env: Any, recipe: OGBenchRecipe, rng: np.random.Generator) -> tuple[Array, Array]:
    """Walk from a random cell to random goals.

    Returns:
        Observations (steps + 1, 2), which are positions, and actions (steps, 2).
    """
    free, goals = goal_cells(env.maze_map)

    @cache
    def next_centre(cell: Cell, goal: Cell) -> Array:
        centre, _ = env.get_oracle_subgoal(env.ij_to_xy(cell), env.ij_to_xy(goal))
        return np.asarray(centre)

    start, goal = free[rng.integers(len(free))], goals[rng.integers(len(goals))]
    observation, _ = env.reset(options={"task_info": {"init_ij": start, "goal_ij": goal}})
    observations, actions = [observation], []
    for _ in range(LENGTHS[recipe.maze]):
        place = env.get_xy()
        way = next_centre(env.xy_to_ij(place), env.xy_to_ij(env.cur_goal_xy)) - place
        action = way / (np.linalg.norm(way) + 1e-6) + recipe.action_noise * rng.standard_normal(2)
        actions.append(action.clip(-1.0, 1.0).astype(np.float32))
        observation, _, _, _, info = env.step(actions[-1])
        observations.append(observation)
        if info["success"]:
            env.set_goal(goal_ij=goals[rng.integers(len(goals))])
    return np.stack(observations), np.stack(actions)


def _episodes(
    observations: Array, actions: Array, rng: np.random.Generator, first: int
) -> Iterator[EpisodeBuffer]:
    """Cut a trajectory into ways to goals in hindsight."""
    start, index = 0, first
    while start < len(actions):
        goal = observations[rng.integers(start + 1, len(observations))]
        distances = np.linalg.norm(observations[start + 1 :] - goal, axis=1)
        stop = start + 1 + int(np.argmax(distances <= REACHED))
        seen, last = observations[start : stop + 1], np.arange(start, stop) == stop - 1
        desired = np.tile(goal, (len(seen), 1))
        yield EpisodeBuffer(
            id=index,
            observations={"observation": seen, "achieved_goal": seen, "desired_goal": desired},
            actions=actions[start:stop],
            rewards=last.astype(float),
            terminations=last,
            truncations=np.zeros(len(last), dtype=bool),
        )
        start, index = stop, index + 1
