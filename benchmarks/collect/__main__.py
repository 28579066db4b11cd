"""Command line: ``python -m benchmarks.collect --help``, and of a name: ``... NAME --help``."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import get_args

from minari.storage.datasets_root_dir import get_dataset_path
from rich.console import Console

from benchmarks.collect import maze2d
from benchmarks.collect.pointmaze import Maze, PointMazeRecipe, Task, collect
from benchmarks.collect.recipes import D4RL_STEPS, MAZE2D


def main(arguments: list[str] | None = None) -> None:
    """Collect one dataset as the command line asks."""
    given = sys.argv[1:] if arguments is None else arguments
    name = next((word for word in given if word in MAZE2D), None)
    _pointmaze(given) if name is None else _maze2d(name, given)


def _maze2d(name: str, arguments: list[str]) -> None:
    """Collect Maze2D or Multi2D by D4RL's recipe."""
    recipe = MAZE2D[name]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.collect",
        description=f"Collect {name} by D4RL's recipe, as the Minari dataset {recipe.dataset_id}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", choices=[name])
    parser.add_argument(
        "--steps",
        type=int,
        default=recipe.steps,
        help=f"environment steps; D4RL: {D4RL_STEPS[recipe.maze]}",
    )
    parser.add_argument(
        "--action-noise",
        type=float,
        default=recipe.action_noise,
        help="standard deviation; D4RL's data have none",
    )
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--root", type=Path, default=get_dataset_path(), help="of Minari datasets")
    values = vars(parser.parse_args(arguments))
    root = values.pop("root")
    values.pop("name")
    try:
        path = maze2d.collect(dataclasses.replace(recipe, **values), root)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    Console().print(f"saved {path}")


def _pointmaze(arguments: list[str]) -> None:
    """Collect a PointMaze dataset of episodes with detours."""
    defaults = {field.name: field.default for field in dataclasses.fields(PointMazeRecipe)}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.collect",
        description=(
            "Collect a PointMaze dataset with a waypoint controller, as a Minari dataset. By "
            f"D4RL's recipe are made, with options of their own: {', '.join(MAZE2D)}."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("dataset_id", help="Minari id to save under, for example local/pointmaze/umaze-v0")
    add("--maze", choices=get_args(Maze), default=defaults["maze"])
    add(
        "--task",
        choices=get_args(Task),
        default=defaults["task"],
        help="maze2d: fixed start, random goal; multi2d: random start and goal",
    )
    add("--steps", type=int, default=defaults["steps"], help="rounded up to whole episodes")
    add("--max-episode-steps", type=int, help="None: the environment's own")
    add(
        "--detours",
        type=int,
        default=defaults["detours"],
        help="each episode visits 0 to this many random cells before its goal",
    )
    add("--action-noise", type=float, default=defaults["action_noise"], help="standard deviation")
    add(
        "--reference-episodes",
        type=int,
        default=defaults["reference_episodes"],
        help="episodes behind each of the two reference scores",
    )
    add("--seed", type=int, default=defaults["seed"])
    add(
        "--root",
        type=Path,
        default=get_dataset_path(),
        help="folder of Minari datasets",
    )
    values = vars(parser.parse_args(arguments))
    root = values.pop("root")
    try:
        path = collect(PointMazeRecipe(**values), root)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    Console().print(f"saved {path}")


if __name__ == "__main__":
    main()
