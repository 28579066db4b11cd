"""Draw a figure of GAC's paper of a model that the suite trained.

python -m benchmarks.gac figure 2 DATASET FOLDER
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.gac import consistency, maze, replanning, returns
from benchmarks.gac.trained import Trained

__all__ = ["FIGURES", "main"]


class _Figure(NamedTuple):
    """How a figure's numbers are measured, and how they are drawn."""

    measure: Callable[..., dict[str, Any]]
    draw: Callable[[dict[str, Any]], Figure]
    episodes: int | None


FIGURES = {
    2: _Figure(returns.measure, returns.draw, 100),
    3: _Figure(maze.measure, maze.draw, 10),
    4: _Figure(consistency.measure_consistency, consistency.draw_consistency, 50),
    5: _Figure(replanning.measure, replanning.draw, 50),
    7: _Figure(consistency.measure_growth, consistency.draw_growth, None),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the command line names, and write its numbers beside it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gac", description=(__doc__ or "").partition("\n")[0]
    )
    command = parser.add_subparsers(dest="command", required=True).add_parser("figure")
    command.add_argument("number", type=int, choices=tuple(FIGURES), help="of the paper's figure")
    command.add_argument("dataset", help="what the model was trained on, as the suite was told it")
    command.add_argument("folder", type=Path, help="of the cell, with its policy.mage")
    command.add_argument("--output", type=Path, help="default: figure_N.png in that folder")
    command.add_argument("--episodes", type=int, help="of each query, start cell or asked return")
    command.add_argument(
        "--hold-out", type=float, default=0.05, help="share, as the suite was told"
    )
    args = parser.parse_args(arguments)
    figure = FIGURES[args.number]
    options = {} if args.episodes is None else {"episodes": args.episodes}
    if options and figure.episodes is None:
        parser.error(f"figure {args.number} runs no episodes; leave --episodes out.")
    try:
        trained = Trained.load(args.dataset, args.folder, args.hold_out)
        found = figure.measure(trained, **options)
    except (FileNotFoundError, TypeError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    output = args.output or args.folder / f"figure_{args.number}.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(found))
    figure.draw(found).savefig(output, dpi=120)
    Console().print(f"{output} and {output.with_suffix('.json')}", soft_wrap=True)


if __name__ == "__main__":
    main()
