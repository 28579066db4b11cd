"""The controller behind D4RL's maze data: a grid planner hands waypoints to a PD controller."""

from collections import deque
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Maze", "WaypointController", "next_cells"]

Cell = tuple[int, int]
WALL = 1


class Maze(Protocol):
    """What the controller asks of a maze; those of Gymnasium-Robotics answer it."""

    @property
    def maze_map(self) -> list[list[int | str]]:
        """Rows of cells from top to bottom; 1 is a wall."""
        ...

    def cell_xy_to_rowcol(self, position: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Row and column, shape (2,), of the cell around a position, shape (2,)."""
        ...

    def cell_rowcol_to_xy(self, cell: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Centre of a cell, shape (2,), from its row and column, shape (2,)."""
        ...


def next_cells(
    maze_map: list[list[int | str]], target: Cell, *, avoid: Cell | None = None
) -> dict[Cell, Cell]:
    """Find, for every cell, the next cell on a shortest path to the target.

    Args:
        maze_map: rows of cells; 1 is a wall. The border must be walls.
        target: (row, column) to reach.
        avoid: a cell that paths may leave but not enter, unless it is the target.

    Returns:
        Mapping from each cell that can reach the target to its successor; the target maps to
        itself.
    """
    successor = {target: target}
    frontier = deque([target])
    while frontier:
        row, column = cell = frontier.popleft()
        for neighbour in (
            (row + 1, column),
            (row - 1, column),
            (row, column + 1),
            (row, column - 1),
        ):
            if neighbour not in successor and maze_map[neighbour[0]][neighbour[1]] != WALL:
                successor[neighbour] = cell
                if neighbour != avoid:
                    frontier.append(neighbour)
    return successor


class WaypointController:
    """Drive a point through a maze to a sequence of positions, the last of which it holds.

    The waypoint is the centre of the next cell on the shortest path, recomputed at every step:
    the way from anywhere in a cell to the centre of its neighbour is free of walls, so noise can
    push the point off its path without getting it stuck.

    Args:
        maze: the environment's maze (``env.unwrapped.maze``).
        targets: positions to visit in this order, each of shape (2,), in metres.
        proportional_gain: action per metre of distance to the waypoint (D4RL: 10).
        derivative_gain: action per metre per second of velocity (D4RL: -1).
        reached: distance in metres at which a target counts as visited.
        last_is_end: whether to keep off the last target's cell until the others are visited.
    """

    def __init__(
        self,
        maze: Maze,
        targets: list[npt.NDArray[np.float64]],
        *,
        proportional_gain: float = 10.0,
        derivative_gain: float = -1.0,
        reached: float = 0.3,
        last_is_end: bool = False,
    ) -> None:
        self._maze = maze
        self._targets = deque(targets)
        self._proportional_gain = proportional_gain
        self._derivative_gain = derivative_gain
        self._reached = reached
        self._avoid = self._cell(targets[-1]) if last_is_end else None
        self._plan_to_next_target()

    def _cell(self, position: npt.NDArray[np.float64]) -> Cell:
        row, column = self._maze.cell_xy_to_rowcol(position)
        return int(row), int(column)

    def _plan_to_next_target(self) -> None:
        target = self._cell(self._targets[0])
        self._successor = next_cells(self._maze.maze_map, target, avoid=self._avoid)

    def act(
        self, position: npt.NDArray[np.float64], velocity: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Return the force towards the current waypoint, before noise and clipping.

        Args:
            position: where the point is, shape (2,), metres.
            velocity: how it moves, shape (2,), metres per second.

        Returns:
            Action of shape (2,), not yet inside the action bounds.
        """
        distance = np.linalg.norm(self._targets[0] - position)
        if len(self._targets) > 1 and distance <= self._reached:
            self._targets.popleft()
            self._plan_to_next_target()
        cell = self._cell(position)
        successor = self._successor[cell]
        waypoint = (
            self._targets[0]
            if successor == cell
            else self._maze.cell_rowcol_to_xy(np.array(successor))
        )
        action: npt.NDArray[np.float64] = (
            self._proportional_gain * (waypoint - position) + self._derivative_gain * velocity
        )
        return action
