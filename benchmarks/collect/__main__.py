"""Command line: ``python -m benchmarks.collect --help``, and of a name: ``... NAME --help``."""

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from minari.storage.datasets_root_dir import get_dataset_path
from rich.console import Console

from benchmarks.collect.pointmaze import PointMazeRecipe
from benchmarks.collect.recipes import MAZE2D, RECIPES, collect
from benchmarks.domains import domain_of

_NAMED: dict[str, Any] = {**MAZE2D, **RECIPES}


def main(arguments: list[str] | None = None) -> None:
    """Collect one dataset as the command line asks."""
    given = sys.argv[1:] if arguments is None else arguments
    name = given[0] if given and not given[0].startswith("-") else "local/pointmaze/umaze-v0"
    root = get_dataset_path()
    domain = domain_of(name)
    if name not in _NAMED and domain.known and domain.name != "pointmaze":
        known = [known for known in RECIPES if domain_of(known) == domain]
        _refuse(f"no recipe makes {name!r}; of {domain.name}: {', '.join(known) or 'none'}.")
    recipe = _NAMED.get(name) or PointMazeRecipe(dataset_id=name)

    def run(
        name: Annotated[str, tyro.conf.arg(metavar="NAME"), tyro.conf.Positional],
        recipe: type(recipe) = recipe,  # type: ignore[valid-type]
        root: Path = root,
    ) -> None:
        path = collect(recipe, root)
        Console().print(f"saved {path}")

    description = (
        f"Collect an offline dataset for Minari. With recipes and options of their own are made "
        f"{', '.join(_NAMED)}; any other NAME is a PointMaze dataset of episodes with detours. The "
        f"options below are those of {name}."
    )
    try:
        tyro.cli(
            run,
            prog="python -m benchmarks.collect",
            description=description,
            args=given,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except (ValueError, FileExistsError, ImportError, RuntimeError) as error:
        _refuse(str(error))


def _refuse(reason: str) -> None:
    print(f"python -m benchmarks.collect: error: {reason}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


if __name__ == "__main__":
    main()
