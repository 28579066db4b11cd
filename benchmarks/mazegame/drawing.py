"""Pictures of the maze game."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.mazegame.maze import COINS, MAZE
from mage_agent.visualize import plot_maze

__all__ = ["draw_frame", "draw_game"]

_COIN_COLORS = {"silver": "#b8bcc4", "gold": "#e0a526"}


def draw_game(axes: Axes, coins: Iterable[str] = COINS) -> None:
    """Draw the walls and the coins."""
    plot_maze(axes, MAZE.maze_map)
    for name in coins:
        x, y = MAZE.cell_rowcol_to_xy(COINS[name])
        axes.plot(
            x, y, "o", color=_COIN_COLORS[name], markeredgecolor="black", markersize=9, zorder=4
        )


def draw_frame(
    position: npt.ArrayLike, goal: npt.ArrayLike, coins: Iterable[str]
) -> npt.NDArray[np.uint8]:
    """Draw one moment of the game as an image, shape (400, 400, 3).

    Args:
        position: where the point is, shape (2,).
        goal: where the goal is, shape (2,).
        coins: names of the coins that are left.
    """
    figure = Figure(figsize=(4, 4), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_game(axes, coins)
    axes.plot(*np.asarray(goal), "*", color="#d1495b", markersize=14)
    axes.plot(*np.asarray(position), "o", color="#2a7ab9", markersize=8, zorder=5)
    canvas: Any = FigureCanvasAgg(figure)  # its methods carry no types
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
