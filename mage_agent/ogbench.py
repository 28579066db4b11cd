"""OGBench's mazes as tasks with a goal in view, evaluated on their five goals.

Importing the module needs ogbench; ``mage_agent.environment`` registers the environment and imports
this only when one is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mage_agent import optional

optional.require("ogbench")
import ogbench.locomaze  # noqa: E402, F401  # registers the mazes

__all__ = ["OGBenchEnv", "Seeded"]

Array = NDArray[np.float64]
FAMILIES = ("pointmaze", "antmaze", "humanoidmaze")


@contextmanager
def _seeded(generator: np.random.Generator) -> Iterator[None]:
    """Seed NumPy's global generator, which OGBench draws from, and leave it as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(generator.integers(2**31)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


class Seeded(gym.Wrapper[Any, Any, Any, Any]):
    """An environment of OGBench whose episodes follow from their seeds."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.generator = np.random.default_rng()
        self.teleports = env.spec is not None and "teleport" in env.spec.id  # to a random place

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        with _seeded(self.generator):
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act for one step."""
        with _seeded(self.generator) if self.teleports else nullcontext():
            return self.env.step(action)


class OGBenchEnv(gym.Env[Any, Any]):
    """A maze of OGBench; an episode ends at the goal, or after OGBench's number of steps.

    The reward is 1 in the step that reaches the goal, which `info["success"]` says as well.

    Observations are a dictionary of ``observation``, OGBench's own, and of ``achieved_goal`` and
    ``desired_goal``, positions of shape (2,) in metres. The seed of an episode chooses its goal:
    seeds in a row take the five goals of OGBench's evaluation in turn.

    Args:
        name: OGBench's, such as "pointmaze-giant-v0".
        **kwargs: further arguments of OGBench's environment, such as ``render_mode``.

    Raises:
        ValueError: it is no maze of OGBench's.
    """

    def __init__(self, name: str = "pointmaze-giant-v0", **kwargs: Any) -> None:
        known = [n for n in gym.registry if n.startswith(FAMILIES) and "task" not in n]
        known = [n for n in known if gym.registry[n].kwargs.get("ob_type") != "pixels"]
        if name not in known:
            raise ValueError(f"name is {name!r}; allowed: {', '.join(sorted(known))}.")
        self.inner = gym.make(name, **kwargs)
        self.maze: Any = self.inner.unwrapped
        self.teleports = "teleport" in name  # to a random place
        own, place = self.maze.observation_space, spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = spaces.Dict(
            {"observation": own, "achieved_goal": place, "desired_goal": place}
        )
        self.action_space = self.maze.action_space
        self.render_mode = self.maze.render_mode
        self.metadata = self.maze.metadata

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of start and goal; the goal is number ``seed % 5 + 1``, a random one without.
            options: OGBench's, such as ``task_id``, the number of the goal, from 1.
        """
        super().reset(seed=seed)
        goals = self.maze.num_tasks
        turn = int(self.np_random.integers(goals)) if seed is None else seed % goals
        chosen = {"task_id": turn + 1, **(options or {})}
        self.maze.action_space.seed(int(self.np_random.integers(2**31)))  # steps before an episode
        with self.seeded():
            observation, _ = self.inner.reset(
                seed=int(self.np_random.integers(2**31)), options=chosen
            )
        return self._observe(observation), {"success": False, "task_id": self.maze.cur_task_id}

    def step(self, action: Array) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Act for one step of OGBench's."""
        with self.seeded() if self.teleports else nullcontext():
            observation, reward, terminated, truncated, info = self.inner.step(action)
        ends = bool(terminated), bool(truncated)
        return self._observe(observation), float(reward), *ends, {"success": bool(info["success"])}

    def render(self) -> Any:
        """Draw the maze as an image (height, width, 3)."""
        return self.maze.render()

    def seeded(self) -> AbstractContextManager[None]:
        """Seed NumPy's global generator, which OGBench draws from, and leave it as it was."""
        return _seeded(self.np_random)

    def close(self) -> None:
        """Close OGBench's environment."""
        self.inner.close()

    def _observe(self, observation: Array) -> dict[str, Any]:
        return {
            "observation": np.array(observation),
            "achieved_goal": np.array(self.maze.get_xy(), dtype=np.float64),
            "desired_goal": np.array(self.maze.cur_goal_xy, dtype=np.float64),
        }
