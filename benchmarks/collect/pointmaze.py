"""PointMaze datasets: a waypoint controller that takes detours, with noise on its actions."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import tyro
from gymnasium_robotics.envs.maze import maps
from minari.data_collector import EpisodeBuffer
from tqdm import tqdm

from benchmarks.collect.common import check_choice, check_least, origin
from benchmarks.collect.waypoints import WaypointController
from mage_agent.recording import Recorder, free_place, save_minari

__all__ = ["PointMazeRecipe", "collect", "make_env"]

Maze = Literal["umaze", "medium", "large"]
Task = Literal["maze2d", "multi2d"]

_ENV_IDS: dict[Maze, str] = {
    "umaze": "PointMaze_UMaze-v3",
    "medium": "PointMaze_Medium-v3",
    "large": "PointMaze_Large-v3",
}
_MAPS: dict[Maze, list[list[int]]] = {
    "umaze": maps.U_MAZE,
    "medium": maps.MEDIUM_MAZE,
    "large": maps.LARGE_MAZE,
}
_START = (1, 1)  # the fixed start of maze2d, a free cell of all three mazes


@dataclass(frozen=True, kw_only=True)
class PointMazeRecipe:
    """How a PointMaze dataset is made.

    Attributes:
        dataset_id: Minari id to save under.
        maze: which maze.
        task: ``maze2d`` has a fixed start and a random goal, ``multi2d`` a random start and goal.
        steps: environment steps to collect, rounded up to whole episodes.
        max_episode_steps: length of an episode; None takes the environment's own (umaze 300,
            medium 600, large 800).
        detours: each episode visits 0 to this many random cells (uniformly) before its goal, so
            that returns vary and the data is worse than the controller behind it.
        action_noise: standard deviation of the Gaussian noise on actions, in action units, before
            they are clipped to [-1, 1] (D4RL: 0.5).
        reference_episodes: episodes of the random policy and of the controller without noise and
            detours that set the reference scores.
        seed: seeds everything.
    """

    dataset_id: tyro.conf.Suppress[str]
    maze: Maze = "umaze"
    task: Task = "multi2d"
    steps: int = 20_000
    max_episode_steps: int | None = None
    detours: int = 2
    action_noise: float = 0.5
    reference_episodes: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be collected.

        Raises:
            ValueError: a value is not allowed.
        """
        check_choice(self, maze=get_args(Maze), task=get_args(Task))
        check_least(self, steps=1, reference_episodes=1, detours=0, action_noise=0)


def make_env(recipe: PointMazeRecipe) -> gym.Env[Any, Any]:
    """Make the environment of a recipe.

    Its reward is 1 in every step within 0.45 m of the goal, as in D4RL: the episode goes on, so
    the return counts the steps spent there, and who arrives earlier gets more.
    """
    gym.register_envs(gymnasium_robotics)
    # Without letters in its map the maze starts and ends episodes anywhere.
    maze_map: list[list[int | str]] = [list(row) for row in _MAPS[recipe.maze]]
    if recipe.task == "maze2d":
        maze_map[_START[0]][_START[1]] = maps.RESET
    return gym.make(
        _ENV_IDS[recipe.maze],
        maze_map=maze_map,
        continuing_task=True,
        reset_target=False,
        max_episode_steps=recipe.max_episode_steps,
    )


def collect(recipe: PointMazeRecipe, root: Path, *, progress_bar: bool = True) -> Path:
    """Collect a dataset and save it under a Minari root; all or nothing.

    The reference scores in its metadata are mean returns over ``recipe.reference_episodes``
    episodes: 0 is a policy with uniformly random actions, 100 is the waypoint controller without
    noise and detours, both on the same starts and goals.

    Args:
        recipe: what to collect.
        root: folder that holds Minari datasets.
        progress_bar: whether to show progress.

    Returns:
        The dataset's folder, ``root / recipe.dataset_id``.

    Raises:
        FileExistsError: the dataset is there already.
        ValueError: the controller does no better than random actions.
    """
    free_place(root, recipe.dataset_id)  # before the work, not after it
    env = make_env(recipe)
    episodes: list[EpisodeBuffer] = []
    collected = 0
    rng = np.random.default_rng((recipe.seed, 0))
    with tqdm(total=recipe.steps, unit="step", disable=not progress_bar, desc="collect") as bar:
        while collected < recipe.steps:
            episode = _run_episode(
                env,
                rng,
                index=len(episodes),
                detours=int(rng.integers(recipe.detours + 1)),
                action_noise=recipe.action_noise,
            )
            episodes.append(episode)
            collected += len(episode)
            bar.update(len(episode))
    low = _mean_return(env, recipe, random_policy=True)
    high = _mean_return(env, recipe, random_policy=False)
    if low >= high:
        raise ValueError(
            f"in {recipe.reference_episodes} reference episodes random actions returned {low} and "
            f"the controller {high}: scores would mean nothing. Raise reference_episodes or "
            "max_episode_steps."
        )
    path = save_minari(
        root,
        recipe.dataset_id,
        episodes,
        env=env,
        eval_env=env.spec,
        algorithm_name="waypoint controller",
        description=(
            f"{recipe}. Reference scores: mean return over {recipe.reference_episodes} episodes "
            "of uniformly random actions (min) and of the controller without noise and detours "
            "(max)."
        ),
        ref_min_score=low,
        ref_max_score=high,
        num_episodes_average_score=recipe.reference_episodes,
        **origin("benchmarks/collect/pointmaze.py", "gymnasium-robotics", "mujoco"),
    )
    env.close()
    return path


def _run_episode(
    env: gym.Env[Any, Any],
    rng: np.random.Generator,
    *,
    index: int = 0,
    detours: int = 0,
    action_noise: float = 0.0,
    random_policy: bool = False,
) -> EpisodeBuffer:
    """Run one episode from a seed drawn from ``rng``, and record it."""
    seed = int(rng.integers(2**31))
    recorded: list[EpisodeBuffer] = []
    env = Recorder(env, recorded)
    observation, _ = env.reset(seed=seed)
    maze = env.get_wrapper_attr("maze")
    free = [*maze.unique_reset_locations, *maze.unique_goal_locations]
    stops = [free[i].copy() for i in rng.integers(len(free), size=detours)]
    controller = WaypointController(maze, [*stops, observation["desired_goal"].copy()])

    while not recorded:
        if random_policy:
            action = rng.uniform(-1.0, 1.0, size=2)
        else:
            action = controller.act(observation["achieved_goal"], observation["observation"][2:])
            action = action + action_noise * rng.standard_normal(2)
        observation, *_ = env.step(np.clip(action, -1.0, 1.0).astype(np.float32))
    return replace(recorded[0], id=index)


def _mean_return(env: gym.Env[Any, Any], recipe: PointMazeRecipe, *, random_policy: bool) -> float:
    """Mean undiscounted return of a reference policy, on the same starts and goals for each."""
    returns = [
        sum(
            _run_episode(
                env,
                np.random.default_rng((recipe.seed, 1 + episode)),
                random_policy=random_policy,
            ).rewards
        )
        for episode in range(recipe.reference_episodes)
    ]
    return float(np.mean(returns))
