"""Drawings of mazes, of paths through them, and of plans at growing resolution.

Every function draws into Matplotlib axes that the caller made, so that drawings combine freely and
nothing here touches Matplotlib's global state:

    >>> from matplotlib.figure import Figure
    >>> figure = Figure()
    >>> axes = figure.subplots()
    >>> plot_maze(axes, [[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    >>> plot_path(axes, [[-0.3, 0.0], [0.3, 0.2]])
    >>> figure.savefig("maze.png")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from mage_agent.optional import require
from mage_agent.types import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_asked_and_achieved", "plot_maze", "plot_path", "plot_plan"]

WALL = 1
_WALL_COLOR = "#3d4451"
_START_COLOR = "#2a7ab9"
_GOAL_COLOR = "#d1495b"


def plot_maze(axes: Axes, maze_map: Sequence[Sequence[Any]], *, cell_size: float = 1.0) -> None:
    """Draw the walls of a Gymnasium-Robotics maze, in the coordinates of its observations.

    Args:
        axes: where to draw.
        maze_map: rows of cells from top to bottom; 1 is a wall
            (``env.get_wrapper_attr("maze").maze_map``).
        cell_size: side of a cell in metres (1 in PointMaze, 4 in AntMaze).
    """
    patches = require("matplotlib.patches")
    rows, columns = len(maze_map), len(maze_map[0])
    left, top = -columns / 2 * cell_size, rows / 2 * cell_size
    for i, row in enumerate(maze_map):
        for j, cell in enumerate(row):
            if cell == WALL:
                corner = (left + j * cell_size, top - (i + 1) * cell_size)
                # A line of the same colour closes the hairline between neighbours.
                axes.add_patch(
                    patches.Rectangle(
                        corner, cell_size, cell_size, facecolor=_WALL_COLOR, edgecolor=_WALL_COLOR
                    )
                )
    edge = cell_size / 2  # half of the outer walls tells as much as the whole
    axes.set(xlim=(left + edge, -left - edge), ylim=(-top + edge, top - edge))
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def plot_path(
    axes: Axes,
    positions: ArrayLike,
    *,
    goal: ArrayLike | None = None,
    colormap: str = "viridis",
    width: float = 1.5,
    alpha: float = 1.0,
) -> None:
    """Draw a path whose colour runs from start to end, with a dot where it starts.

    Args:
        axes: where to draw.
        positions: path, shape (T, 2), in metres.
        goal: where it should lead, shape (2,); drawn as a star.
        colormap: name of a Matplotlib colour map.
        width: width of the line in points.
        alpha: opacity of the line in [0, 1].

    Raises:
        ValueError: ``positions`` is not (T, 2).
    """
    points = np.asarray(positions, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(
            f"positions has shape {points.shape}; it must be (T, 2): select the two coordinates "
            "of the plane, for example observation[:, :2]."
        )
    collections = require("matplotlib.collections")
    line = collections.LineCollection(
        np.stack([points[:-1], points[1:]], axis=1),  # (T - 1, 2, 2)
        array=np.linspace(0, 1, len(points) - 1),
        cmap=colormap,
        linewidths=width,
        capstyle="round",
        alpha=alpha,
    )
    axes.add_collection(line, autolim=True)
    axes.plot(*points[0], "o", color=_START_COLOR, markersize=4, zorder=3)
    if goal is not None:
        axes.plot(*np.asarray(goal), "*", color=_GOAL_COLOR, markersize=11, zorder=3)


def plot_plan(
    axes: Sequence[Axes],
    plan: Plan,
    *,
    row: int = 0,
    dimensions: tuple[int, int] = (0, 1),
    goal: ArrayLike | None = None,
) -> None:
    """Draw one plan as it grows from coarse to fine: panel k decodes scales 1 to k.

    Args:
        axes: one panel per scale, in which a maze may be drawn already.
        plan: from ``model.plan(..., partial=True)``.
        row: which plan of the batch.
        dimensions: the two entries of the observation to draw.
        goal: where the plan should lead, shape (2,).

    Raises:
        ValueError: the plan has no partial decodings, or there are not as many panels as scales.
    """
    if not plan.partial:
        raise ValueError("the plan holds no coarse versions; ask for them: plan(partial=True).")
    if len(axes) != len(plan.partial):
        raise ValueError(
            f"there are {len(axes)} panels for {len(plan.partial)} scales; give one per scale."
        )
    tokens = 0
    for k, (panel, decoded) in enumerate(zip(axes, plan.partial, strict=True), start=1):
        tokens += plan.token_ids[k - 1].shape[1]
        plot_path(panel, decoded[row, :, list(dimensions)].cpu(), goal=goal, width=1.8)
        scales = "scale 1" if k == 1 else f"scales 1 to {k}"
        panel.set_title(f"{scales}, {tokens} token{'s' if tokens > 1 else ''}")


def plot_asked_and_achieved(
    axes: Axes, asked: ArrayLike, achieved: ArrayLike, *, label: str | None = None
) -> None:
    """Draw what came of asking for more: the achieved score over the asked return.

    Args:
        axes: where to draw.
        asked: discounted returns asked for, shape (N,).
        achieved: mean normalised score of each, shape (N,).
        label: name of the line.

    Raises:
        ValueError: the two differ in length.
    """
    asked, achieved = np.asarray(asked, dtype=float), np.asarray(achieved, dtype=float)
    if asked.shape != achieved.shape or asked.ndim != 1:
        raise ValueError(
            f"asked has shape {asked.shape} and achieved {achieved.shape}; both must be (N,)."
        )
    order = asked.argsort()
    axes.plot(asked[order], achieved[order], marker="o", label=label)
    axes.set_xlabel("asked return (discounted)")
    axes.set_ylabel("achieved score")
