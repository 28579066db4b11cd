"""Command line: ``python -m benchmarks.collect --help``."""

import argparse
import dataclasses
from pathlib import Path
from typing import get_args

from minari.storage.datasets_root_dir import get_dataset_path
from rich.console import Console

from benchmarks.collect.pointmaze import Maze, PointMazeRecipe, Task, collect


def main(arguments: list[str] | None = None) -> None:
    """Collect one PointMaze dataset as the command line asks."""
    defaults = {field.name: field.default for field in dataclasses.fields(PointMazeRecipe)}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.collect",
        description="Collect a PointMaze dataset with a waypoint controller, as a Minari dataset.",
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
