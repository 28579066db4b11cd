"""The picture of the maze game: what each method does, and what MAGE plans."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from benchmarks.mazegame.drawing import draw_game
from benchmarks.mazegame.episodes import Episode
from benchmarks.mazegame.maze import GOAL, POSITION
from mage_agent.types import Plan
from mage_agent.visualize import plot_path, plot_plan

__all__ = ["draw_results"]

REACHED = ("silver", "gold", "goal", "success")


def draw_results(
    episodes: Mapping[str, Episode],
    counts: Mapping[str, Mapping[str, Any]],
    plans: Mapping[str, npt.NDArray[np.float32]],
    growing: Plan,
) -> Figure:
    """Draw one episode of each method, counts over all, many plans, and one plan as it grows.

    Args:
        episodes: by method, an episode with the same start and goal.
        counts: by method, from ``benchmarks.mazegame.episodes.count``, with those of plans.
        plans: by method that plans, its plans for the start of that episode, (N, T, 2).
        growing: one plan with its coarse versions, from the same start.
    """
    figure = Figure(figsize=(4 * len(episodes), 12.5), layout="constrained")
    rows: Any = figure.subfigures(3, height_ratios=(4, 4, 3.3))
    top, middle, bottom = rows
    first = np.array(next(iter(episodes.values())).observations[0])

    for axes, (name, episode) in zip(top.subplots(1, len(episodes)), episodes.items(), strict=True):
        draw_game(axes)
        plot_path(axes, episode.path, goal=first[GOAL], colormap="YlOrRd", width=2)
        axes.set_title(f"{name}:\n{_reached(episode)}")
    top.suptitle("one episode of each, the longest that MAGE wins; lighter earlier")

    bars, *panels = middle.subplots(1, 1 + len(plans))
    width = 0.8 / len(counts)
    for index, (name, numbers) in enumerate(counts.items()):
        shares = [100 * numbers[key] for key in REACHED]
        bars.bar(np.arange(len(REACHED)) + index * width, shares, width, label=name)
    labels = ("silver", "gold", "goal", "all three")
    bars.set_xticks(np.arange(len(REACHED)) + 0.4 - width / 2, labels)
    bars.set(ylabel="% of the episodes", ylim=(0, 130), yticks=range(0, 101, 20))
    bars.legend(fontsize="small", loc="upper left")
    for axes, (name, paths) in zip(panels, plans.items(), strict=True):
        draw_game(axes)
        for path in paths:
            plot_path(axes, path, width=1, alpha=0.5)
        axes.plot(*first[POSITION], "o", color="black", markersize=6, zorder=5)
        share = counts[name]["plans"]["cross_walls"]
        axes.set_title(
            f"{name}:\n{len(paths)} plans from the black point;\n{share:.0%} of all cut walls"
        )

    grown = list(bottom.subplots(1, len(growing.partial)))
    for axes in grown:
        draw_game(axes)
    plot_plan(grown, growing, dimensions=(POSITION.start, POSITION.start + 1), goal=first[GOAL])
    bottom.suptitle("one plan of MAGE, coarse to fine")
    return figure


def _reached(episode: Episode) -> str:
    reached = [name for name in ("silver", "gold", "goal") if episode.info[name]]
    return " + ".join(reached) if reached else "nothing"
