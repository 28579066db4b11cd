"""The maze game as a Gymnasium environment."""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from benchmarks.mazegame.maze import COINS, MAZE, FloatArray

__all__ = ["MazeGame", "flat"]

Observation = dict[str, Any]

_REACH = 0.4  # distance in cells at which a coin or the goal counts as reached
_SPEED = 0.25  # cells per step
_RADIUS = 0.1  # of the point, in cells
_START_CELLS = [cell for cell in MAZE.free_cells if cell not in COINS.values()]


class MazeGame(gym.Env[Observation, npt.NDArray[np.float32]]):
    """A point collects the silver coin, then the gold coin, and finally reaches the goal.

    The coins lie at fixed places that the observation does not tell. Start and goal are random
    cells. Each of the three pays 1, once: the gold coin only after the silver one, and the goal at
    any time, which ends the episode, so that coins left behind are lost. ``info["success"]`` is
    whether all three are done; ``info["silver"]``, ``info["gold"]`` and ``info["goal"]`` tell them
    apart. The paper does not say what the observation holds: here it is position, goal and which
    coins are collected, so that a memoryless policy can win.

    Observations are dictionaries, as in all of Gymnasium's goal environments: ``observation`` is
    (x, y) in cells; ``achieved_goal`` is (x, y, silver, gold), where coins are 0 or 1; and
    ``desired_goal`` is (goal x, goal y, 1, 1). The action is a move in [-1, 1]^2, in quarters of a
    cell. Walls block, and one slides along them.

    ``reset(options={"start": (row, column), "goal": (row, column)})`` sets either by hand.

    Args:
        render_mode: "rgb_array" draws with Matplotlib; None draws nothing.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's name)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.maze = MAZE
        columns, rows = len(MAZE.maze_map[0]) / 2, len(MAZE.maze_map) / 2
        low, high = np.array([[-columns, -rows, 0, 0], [columns, rows, 1, 1]], dtype=np.float32)
        place, goal = spaces.Box(low[:2], high[:2]), spaces.Box(low, high)
        self.observation_space = spaces.Dict(
            {"observation": place, "achieved_goal": goal, "desired_goal": goal}
        )
        self.action_space = spaces.Box(-1, 1, (2,))
        self._coins = {name: MAZE.cell_rowcol_to_xy(cell) for name, cell in COINS.items()}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start somewhere in a random cell, with another random cell as the goal."""
        super().reset(seed=seed)
        picked = self.np_random.choice(len(_START_CELLS), size=2, replace=False)
        start, goal = (_START_CELLS[i] for i in picked)
        options = options or {}
        jitter = self.np_random.uniform(-0.25, 0.25, size=2)
        self._position: FloatArray = MAZE.cell_rowcol_to_xy(options.get("start", start)) + jitter
        self._goal = MAZE.cell_rowcol_to_xy(options.get("goal", goal))
        self._done = dict.fromkeys(("silver", "gold", "goal"), False)
        return self._observation(), self._info()

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the point."""
        for axis, length in enumerate(_SPEED * np.clip(action, -1.0, 1.0).astype(float)):
            self._move(axis, length)
        reward = 0.0
        if not self._done["silver"]:
            reward += self._reach("silver", self._coins["silver"])
        elif not self._done["gold"]:
            reward += self._reach("gold", self._coins["gold"])
        reward += self._reach("goal", self._goal)
        return self._observation(), reward, self._done["goal"], False, self._info()

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw walls, goal, coins and point; shape (400, 400, 3)."""
        if self.render_mode is None:
            return None
        from benchmarks.mazegame.drawing import draw_frame  # Matplotlib is optional

        left = [name for name in COINS if not self._done[name]]
        return draw_frame(self._position, self._goal, left)

    def _move(self, axis: int, length: float) -> None:
        """Move along one axis, up to the next wall."""
        ahead = math.copysign(_RADIUS, length)
        moved = self._position.copy()
        moved[axis] += length
        for aside in (-_RADIUS, _RADIUS):  # the two leading corners of the point
            corner = moved + np.array((ahead, aside) if axis == 0 else (aside, ahead))
            if MAZE.is_wall(*corner.tolist()):
                wall = MAZE.cell_rowcol_to_xy(MAZE.cell_xy_to_rowcol(corner))
                moved[axis] = wall[axis] - ahead - math.copysign(0.5 + 1e-6, ahead)
                break
        self._position = moved

    def _reach(self, name: str, place: FloatArray) -> float:
        """Note whether a place is reached; return the reward."""
        self._done[name] = math.dist(self._position, place) <= _REACH
        return float(self._done[name])

    def _observation(self) -> Observation:
        coins = (self._done["silver"], self._done["gold"])
        return {
            "observation": self._position.astype(np.float32),
            "achieved_goal": np.append(self._position, coins).astype(np.float32),
            "desired_goal": np.append(self._goal, (1, 1)).astype(np.float32),
        }

    def _info(self) -> dict[str, Any]:
        return {**self._done, "success": all(self._done.values())}


def flat(observation: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return the parts of an observation end to end, shape (10,)."""
    names = ("observation", "achieved_goal", "desired_goal")
    return np.concatenate([observation[name] for name in names])
