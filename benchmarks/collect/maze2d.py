"""Maze2D and Multi2D by D4RL's recipe: one endless run of a waypoint controller, rewarded later."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import tyro
from minari.data_collector import EpisodeBuffer
from tqdm import trange

from benchmarks.collect.common import check_choice, check_least, origin
from benchmarks.collect.pointmaze import Maze
from benchmarks.collect.waypoints import WaypointController
from mage_agent.d4rl import TASKS
from mage_agent.recording import free_place, save_minari

__all__ = ["REACHED", "Maze2DRecipe", "collect", "make_env"]

Array = npt.NDArray[np.float64]
Task = Literal["maze2d", "multi2d"]

REACHED = 0.1
"""Distance at which a target counts as reached and the next one is drawn, metres."""


@dataclass(frozen=True, kw_only=True)
class Maze2DRecipe:
    """How a dataset is made.

    Attributes:
        maze: which maze.
        task: ``maze2d`` is the run as a single episode, rewarded for the maze's one goal;
            ``multi2d`` is the run in episodes of the step limit, each with a goal of its own in
            the observation: where the controller was heading at a random step of it.
        steps: length of the run; D4RL's are 1, 2 and 4 million (umaze, medium, large).
        action_noise: standard deviation of the Gaussian noise on actions, in action units, before
            they are clipped to [-1, 1]; none in D4RL's published data.
        seed: seeds everything.
    """

    maze: tyro.conf.Suppress[Maze]
    task: tyro.conf.Suppress[Task]
    steps: int
    action_noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be collected.

        Raises:
            ValueError: a value is not allowed.
        """
        check_choice(self, maze=get_args(Maze), task=get_args(Task))
        check_least(self, steps=1, action_noise=0)

    @property
    def dataset_id(self) -> str:
        """Minari id to save under."""
        return f"local/{self.task}/{self.maze}-v0"


def make_env(recipe: Maze2DRecipe) -> gym.Env[Any, Any]:
    """Make the environment that a dataset is evaluated in: D4RL's, or the same with moving goal."""
    task = TASKS[f"maze2d-{recipe.maze}-v1"]
    return gym.make(
        task.environment_id,
        maze=recipe.maze,
        moving_goal=recipe.task == "multi2d",
        max_episode_steps=task.max_episode_steps,
    )


def collect(recipe: Maze2DRecipe, root: Path, *, progress_bar: bool = True) -> Path:
    """Collect a dataset and save it under a Minari root; all or nothing.

    A step is rewarded where it begins within the goal's radius, as in D4RL's data.

    Args:
        recipe: what to collect.
        root: folder that holds Minari datasets.
        progress_bar: whether to show progress.

    Returns:
        The dataset's folder, ``root / recipe.dataset_id``.

    Raises:
        FileExistsError: the dataset is there already.
    """
    free_place(root, recipe.dataset_id)  # before the work, not after it
    task = TASKS[f"maze2d-{recipe.maze}-v1"]
    env = make_env(recipe)
    observations, actions, targets = _run(env, recipe, progress_bar=progress_bar)
    rng = np.random.default_rng((recipe.seed, 1))
    length = recipe.steps if recipe.task == "maze2d" else task.max_episode_steps
    point: Any = env.unwrapped
    episodes: list[EpisodeBuffer] = []
    for first in range(0, recipe.steps, length):
        stop = min(first + length, recipe.steps)
        goal = point.fixed_goal
        if goal is None:
            goal = targets[rng.integers(first, stop)]
        seen, done, led = observations[first : stop + 1], actions[first:stop], targets[first:stop]
        episodes.append(_episode(len(episodes), recipe, seen, done, led, goal, point.goal_radius))
    path = save_minari(
        root,
        recipe.dataset_id,
        episodes,
        env=env,
        eval_env=env.spec,
        algorithm_name="waypoint controller",
        description=f"{recipe}. By D4RL's recipe, with D4RL's reference scores.",
        ref_min_score=task.ref_min_score,
        ref_max_score=task.ref_max_score,
        **origin("benchmarks/collect/maze2d.py", "gymnasium-robotics", "mujoco"),
    )
    env.close()
    return path


def _run(
    env: gym.Env[Any, Any], recipe: Maze2DRecipe, *, progress_bar: bool
) -> tuple[Array, npt.NDArray[np.float32], Array]:
    """Drive the point from target to target.

    Returns:
        Observations (steps + 1, 4), actions (steps, 2) and the target that each action leads to
        (steps, 2).
    """
    point: Any = env.unwrapped
    rng = np.random.default_rng((recipe.seed, 0))
    point.reset(seed=int(rng.integers(2**31)))
    observations, targets = np.empty((recipe.steps + 1, 4)), np.empty((recipe.steps, 2))
    actions = np.empty((recipe.steps, 2), dtype=np.float32)
    place = np.concatenate([point.origin, np.zeros(2)])
    state: Array = np.concatenate([point.data.qpos, point.data.qvel])
    target = None
    for step in trange(recipe.steps, unit="step", disable=not progress_bar, desc="collect"):
        if target is None or np.linalg.norm(state[:2] + point.origin - target) <= REACHED:
            target = point.place()
            controller = WaypointController(point.maze, [target - point.origin])
        action = controller.act(state[:2], state[2:])
        action = action + recipe.action_noise * rng.standard_normal(2)
        observations[step], targets[step] = state + place, target
        actions[step] = action.clip(-1.0, 1.0)
        state, *_ = point.point_env.step(actions[step])
    observations[-1] = state + place
    return observations, actions, targets


def _episode(
    index: int,
    recipe: Maze2DRecipe,
    observations: Array,
    actions: npt.NDArray[np.float32],
    targets: Array,
    goal: Array,
    radius: float,
) -> EpisodeBuffer:
    """Reward a part of the run for a goal, and record it."""
    position = observations[:, :2]
    seen: Any = observations
    infos: dict[str, Array] | None = {"goal": targets}  # as D4RL's files have it
    if recipe.task == "multi2d":
        desired = np.tile(goal, (len(position), 1))
        seen = {"observation": observations, "achieved_goal": position, "desired_goal": desired}
        infos = None
    ends = np.arange(len(actions)) == len(actions) - 1
    return EpisodeBuffer(
        id=index,
        observations=seen,
        actions=actions,
        rewards=(np.linalg.norm(position[:-1] - goal, axis=1) <= radius).astype(float),
        terminations=np.zeros(len(actions), dtype=bool),
        truncations=ends,
        infos=infos,
    )
