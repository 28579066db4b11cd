"""The maze of the game: where its walls and coins are, and which paths cross the walls."""

import itertools
import math

import numpy as np
import numpy.typing as npt

__all__ = ["COINS", "GOAL", "MAZE", "POSITION", "FloatArray", "GridMaze"]

FloatArray = npt.NDArray[np.float64]


class GridMaze:
    """Cells of side 1 around the origin, laid out as Gymnasium-Robotics lays out its mazes.

    Args:
        rows: rows of cells from top to bottom; ``#`` is a wall, anything else is free. The border
            must be walls.

    Raises:
        ValueError: the rows differ in length, or the border has a gap.
    """

    def __init__(self, rows: list[str]) -> None:
        lengths = {len(row) for row in rows}
        border = rows[0] + rows[-1] + "".join(row[0] + row[-1] for row in rows)
        if len(lengths) != 1 or set(border) != {"#"}:
            raise ValueError(f"rows are {rows}; they must be of one length, and the border all #.")
        self.maze_map: list[list[int | str]] = [[int(cell == "#") for cell in row] for row in rows]
        self._rows, self._columns = len(rows), len(rows[0])

    @property
    def free_cells(self) -> list[tuple[int, int]]:
        """(row, column) of every cell that is no wall."""
        return [
            (i, j) for i, row in enumerate(self.maze_map) for j, cell in enumerate(row) if cell != 1
        ]

    def cell_rowcol_to_xy(self, cell: npt.ArrayLike) -> FloatArray:
        """Centre of a cell, shape (2,), from its row and column, shape (2,)."""
        row, column = np.asarray(cell)
        return np.array([column + 0.5 - self._columns / 2, self._rows / 2 - row - 0.5])

    def cell_xy_to_rowcol(self, position: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Row and column, shape (2,), of the cell around a position, shape (2,)."""
        x, y = np.asarray(position)
        return np.floor([self._rows / 2 - y, x + self._columns / 2]).astype(np.int64)

    def is_wall(self, x: float, y: float) -> bool:
        """Whether a position lies in a wall, or outside."""
        # Called several times per step of the game: plain numbers are much faster than arrays.
        row, column = math.floor(self._rows / 2 - y), math.floor(x + self._columns / 2)
        inside = 0 <= row < self._rows and 0 <= column < self._columns
        return not inside or self.maze_map[row][column] == 1

    def crossed_walls(self, path: npt.ArrayLike, *, spacing: float = 0.05) -> float:
        """Length of the part of a path that lies in walls.

        Args:
            path: positions joined by straight lines, shape (T, 2).
            spacing: distance between the points at which the lines are looked at.

        Returns:
            Length in cells.
        """
        total = 0.0
        for start, end in itertools.pairwise(np.asarray(path, dtype=float)):
            length = math.dist(start, end)
            count = max(1, math.ceil(length / spacing))
            along = start + (np.arange(count)[:, None] + 0.5) / count * (end - start)  # (count, 2)
            total += length * sum(self.is_wall(x, y) for x, y in along.tolist()) / count
        return total


# No free cell is a bottleneck, so that the goal, wherever it is, never bars the way to a coin.
MAZE = GridMaze(
    [
        "###########",
        "#.........#",
        "#.###.###.#",
        "#.#.....#.#",
        "#.#.###.#.#",
        "#...#.....#",
        "#.###.###.#",
        "#.#.....#.#",
        "#.#.###.#.#",
        "#.........#",
        "###########",
    ]
)
COINS = {"silver": (3, 3), "gold": (7, 7)}
# Where observation, achieved and desired goal hold them, laid end to end as policies read them.
POSITION, GOAL = slice(2, 4), slice(6, 8)
