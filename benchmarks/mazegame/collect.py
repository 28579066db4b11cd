"""Maze game datasets: ``python -m benchmarks.mazegame.collect --help``."""

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.storage.datasets_root_dir import get_dataset_path
from rich.console import Console
from tqdm import trange

import benchmarks.mazegame  # noqa: F401  (registers the environment)
from benchmarks.collect.common import check_least, origin
from benchmarks.collect.waypoints import WaypointController
from benchmarks.mazegame.maze import COINS, MAZE
from mage_agent.recording import Recorder, free_place, save_minari

__all__ = ["MazeGameRecipe", "collect"]

COMPLETE = ("silver", "gold", "goal")
INCOMPLETE = (("gold", "silver", "goal"), ("silver", "goal"), ("gold", "goal"), ("goal",))


@dataclass(frozen=True, kw_only=True)
class MazeGameRecipe:
    """How a maze game dataset is made.

    Attributes:
        dataset_id: Minari id to save under.
        episodes: number of episodes.
        complete_share: share of the episodes that set out to win; the others leave out one coin or
            both, or take them in the wrong order.
        detours: each episode visits 0 to this many random cells (uniformly) on its way.
        action_noise: standard deviation of the Gaussian noise on actions, in action units, before
            they are clipped to [-1, 1].
        reference_episodes: episodes of the random policy and of the controller without noise and
            detours that set the reference scores.
        seed: seeds everything.
    """

    dataset_id: str
    episodes: int = 2_000
    complete_share: float = 0.3
    detours: int = 1
    action_noise: float = 0.3
    reference_episodes: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be collected.

        Raises:
            ValueError: a value is not allowed.
        """
        check_least(self, episodes=1, reference_episodes=1, detours=0, action_noise=0)
        if not 0 <= self.complete_share <= 1:
            raise ValueError(f"complete_share is {self.complete_share}; it must lie in [0, 1].")


def collect(recipe: MazeGameRecipe, root: Path, *, progress_bar: bool = True) -> Path:
    """Collect a dataset and save it under a Minari root; all or nothing.

    The reference scores in its metadata are mean returns over ``recipe.reference_episodes``
    episodes: 0 is a policy with uniformly random actions, 100 is the waypoint controller that sets
    out to win, without noise and detours.

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
    env = gym.make("MazeGame-v0")
    rng = np.random.default_rng((recipe.seed, 0))
    episodes = []
    for index in trange(recipe.episodes, desc="collect", disable=not progress_bar):
        wins = rng.random() < recipe.complete_share
        route = COMPLETE if wins else INCOMPLETE[rng.integers(len(INCOMPLETE))]
        detours = int(rng.integers(recipe.detours + 1))
        episode = _run_episode(
            env, rng, index=index, route=route, detours=detours, action_noise=recipe.action_noise
        )
        episodes.append(episode)
    low, high = (
        np.mean(
            [
                sum(_run_episode(env, np.random.default_rng((recipe.seed, 1 + i)), route).rewards)
                for i in range(recipe.reference_episodes)
            ]
        )
        for route in (None, COMPLETE)
    )
    path = save_minari(
        root,
        recipe.dataset_id,
        episodes,
        env=env,
        eval_env=env.spec,
        algorithm_name="waypoint controller",
        **origin("benchmarks/mazegame/collect.py"),
        description=(
            f"{recipe}. Reference scores: mean return over {recipe.reference_episodes} episodes "
            "of uniformly random actions (min) and of the controller without noise and detours "
            "(max)."
        ),
        ref_min_score=float(low),
        ref_max_score=float(high),
        num_episodes_average_score=recipe.reference_episodes,
    )
    env.close()
    return path


def _run_episode(
    env: gym.Env[Any, Any],
    rng: np.random.Generator,
    route: tuple[str, ...] | None,
    *,
    index: int = 0,
    detours: int = 0,
    action_noise: float = 0.0,
) -> EpisodeBuffer:
    """Run one episode from a seed drawn from ``rng``, and record it; no route is random actions."""
    seed = int(rng.integers(2**31))
    recorded: list[EpisodeBuffer] = []
    env = Recorder(env, recorded)
    observation, _ = env.reset(seed=seed)
    places = {name: MAZE.cell_rowcol_to_xy(cell) for name, cell in COINS.items()}
    places["goal"] = observation["desired_goal"][:2].astype(float)
    stops = [places[name] for name in route or ("goal",)]
    for _ in range(detours):
        cell = MAZE.free_cells[rng.integers(len(MAZE.free_cells))]
        stops.insert(int(rng.integers(len(stops))), MAZE.cell_rowcol_to_xy(cell))
    controller = WaypointController(
        MAZE, stops, proportional_gain=3.0, derivative_gain=0.0, last_is_end=True
    )
    while not recorded:
        if route is None:
            action = rng.uniform(-1.0, 1.0, size=2)
        else:
            action = controller.act(observation["observation"].astype(float), np.zeros(2))
            action = action.clip(-1.0, 1.0) + action_noise * rng.standard_normal(2)
        observation, *_ = env.step(action.clip(-1.0, 1.0).astype(np.float32))
    return replace(recorded[0], id=index)


def main(arguments: list[str] | None = None) -> None:
    """Collect one dataset as the command line asks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mazegame.collect",
        description="Collect a maze game dataset with a waypoint controller, as a Minari dataset.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("dataset_id", help="Minari id to save under, for example local/mazegame/mixed-v0")
    for field in fields(MazeGameRecipe)[1:]:
        name, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        add(name, type=kind, default=field.default, help="see MazeGameRecipe")
    add("--root", type=Path, default=get_dataset_path(), help="folder of Minari datasets")
    values = vars(parser.parse_args(arguments))
    root = values.pop("root")
    try:
        path = collect(MazeGameRecipe(**values), root)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    Console().print(f"saved {path}")


if __name__ == "__main__":
    main()
