"""D4RL's point mazes in Gymnasium-Robotics' simulator: Maze2D, and Multi2D with its goal in view.

Importing the module needs gymnasium-robotics; ``mage_agent.d4rl`` registers the environment and
imports this only when one is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mage_agent import optional
from mage_agent.data.d4rl_tasks import MAZE2D, MAZES, maze_map

optional.require("gymnasium_robotics")
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv  # noqa: E402

__all__ = ["Maze2DEnv"]

Array = NDArray[np.float64]

PLACE_NOISE = 0.1
"""Largest offset of a start or goal from its place along an axis, metres."""
SPEED_NOISE = 0.1
"""Standard deviation of the first velocity, metres per second."""


class Maze2DEnv(PointMazeEnv):  # type: ignore[misc]
    """D4RL's ``maze2d-*-v1``: a point that is pushed through a maze to a goal, and has to stay.

    The reward of a step is 1 where it ends within ``goal_radius`` of the goal. An episode never
    terminates; limit its steps (D4RL: 300, 600, 800). It starts anywhere, the goal included, within
    `PLACE_NOISE` of a place, at a velocity of ``N(0, SPEED_NOISE)``.

    Observations are position and velocity, shape (4,), in metres and metres per second. Positions
    are D4RL's: x counts rows and y columns of the maze, and the place (row, column) lies 0.2 m
    beyond the centre of its cell. Actions are forces of shape (2,) in [-1, 1].

    With ``moving_goal`` it is Multi2D: every reset draws the goal anew, as it draws the start,
    and observations are a dictionary of ``observation`` as above, ``achieved_goal`` and
    ``desired_goal``, positions of shape (2,).

    Args:
        maze: "umaze", "medium" or "large".
        moving_goal: whether each reset draws the goal anew.
        **kwargs: further arguments of Gymnasium-Robotics' ``PointMazeEnv``, such as
            ``render_mode``.

    Raises:
        ValueError: there is no such maze.
    """

    goal_radius = 0.5
    """Distance from the goal within which a step is rewarded, metres."""

    def __init__(self, maze: str = "umaze", *, moving_goal: bool = False, **kwargs: Any) -> None:
        if maze not in MAZES:
            raise ValueError(f"maze is {maze!r}; allowed: {sorted(MAZES)}.")
        layout = MAZES[maze]
        # Gymnasium-Robotics has x count columns, and y rows from the bottom up.
        turned = tuple(map("".join, zip(*layout, strict=True)))[::-1]
        super().__init__(maze_map=maze_map(turned), **kwargs)
        self.places = np.argwhere(np.array([list(row) for row in layout]) == " ").astype(float)
        """Every place that a start or a goal is drawn from, shape (places, 2)."""
        self.origin = np.array([len(layout), len(layout[0])]) / 2 - 0.7
        """D4RL's position of the simulator's origin, shape (2,)."""
        self.fixed_goal = None if moving_goal else np.array(MAZE2D[maze][0], dtype=float)
        box = {size: spaces.Box(-np.inf, np.inf, (size,), np.float64) for size in (2, 4)}
        self.observation_space = (
            spaces.Dict({"observation": box[4], "achieved_goal": box[2], "desired_goal": box[2]})
            if moving_goal
            else box[4]
        )

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of start, velocity and goal.
            options: ``start`` and, with ``moving_goal``, ``goal``, positions of shape (2,), instead
                of those drawn.
        """
        gym.Env.reset(self, seed=seed)
        given = dict(options or {})
        start, goal, velocity = self.place(), self.place(), self.np_random.normal(size=2)
        start = np.asarray(given.get("start", start), dtype=float)
        self.goal_place = self.fixed_goal
        if self.goal_place is None:
            self.goal_place = np.asarray(given.get("goal", goal), dtype=float)
        self.goal = self.goal_place - self.origin  # where the simulator draws it
        self.update_target_site_pos()
        self.point_env.reset(seed=seed)
        self.point_env.set_state(start - self.origin, SPEED_NOISE * velocity)
        observed, _ = self.point_env._get_obs()
        return self._observe(observed), {"success": self._near(observed)}

    def step(self, action: Array) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Push the point for a hundredth of a second."""
        observed, *_ = self.point_env.step(action)
        near = self._near(observed)
        return self._observe(observed), float(near), False, False, {"success": near}

    def place(self) -> Array:
        """Draw a position near a place, shape (2,)."""
        centre = self.places[self.np_random.integers(len(self.places))]
        place: Array = centre + self.np_random.uniform(-PLACE_NOISE, PLACE_NOISE, size=2)
        return place

    def _near(self, observed: Array) -> bool:
        return bool(np.linalg.norm(observed[:2] - self.goal) <= self.goal_radius)

    def _observe(self, observed: Array) -> Any:
        observation = np.concatenate([observed[:2] + self.origin, observed[2:]])
        if self.fixed_goal is not None:
            return observation
        achieved, desired = observation[:2].copy(), np.array(self.goal_place)
        return {"observation": observation, "achieved_goal": achieved, "desired_goal": desired}
