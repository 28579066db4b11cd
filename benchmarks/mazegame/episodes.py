"""Episodes of the maze game, kept whole, and what is counted in them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.mazegame.game import flat
from benchmarks.mazegame.maze import MAZE, POSITION
from mage_agent import MAGEPolicy, evaluate

__all__ = ["Episode", "count", "plans_of", "record_episodes", "wall_statistics"]

CROSSED = 0.5  # cells inside walls; a path that only cuts corners stays below


@dataclass
class Episode:
    """What was met in one episode.

    Attributes:
        observations: shape (T + 1, S).
        asked: return asked for at each of them, shape (T + 1, 1); empty where none is.
        info: the environment's last information.
    """

    observations: list[npt.NDArray[np.float32]] = field(default_factory=list)
    asked: list[npt.NDArray[np.float32]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> npt.NDArray[np.float32]:
        """Positions, shape (T + 1, 2)."""
        return np.array(self.observations)[:, POSITION]


class _Keeper(gym.Wrapper[Any, Any, Any, Any]):
    """Keep what happens in ``episodes``, by the seed of the reset."""

    def __init__(self, env: gym.Env[Any, Any], episodes: dict[int, Episode]) -> None:
        super().__init__(env)
        self._episodes = episodes

    def _keep(self, observation: Any) -> None:
        if "return_to_go" in observation:
            self._episode.asked.append(observation["return_to_go"].copy())
        self._episode.observations.append(flat(observation))

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start a record."""
        assert seed is not None
        self._episode = self._episodes[seed] = Episode()
        observation, info = self.env.reset(seed=seed, **kwargs)
        self._keep(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Go on with it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._keep(observation)
        self._episode.info = info
        return observation, reward, terminated, truncated, info


def record_episodes(
    policy: Any,
    make_env: Callable[[], gym.Env[Any, Any]],
    *,
    episodes: int,
    seed: int,
) -> list[Episode]:
    """Run episodes and keep them whole; episode i is reset with ``seed + i``.

    Args:
        policy: as ``mage_agent.evaluation.evaluate`` takes it; MAGE acts on samples, at its
            configuration's temperature, since a memoryless policy without chance that comes to
            rest rests for ever.
        make_env: makes the maze game.
        episodes: number of episodes.
        seed: of the first episode.
    """
    kept: dict[int, Episode] = {}

    samples = isinstance(policy, MAGEPolicy)

    def recorded() -> gym.Env[Any, Any]:
        env = make_env()
        return _Keeper(policy.wrap(env) if samples else env, kept)

    evaluate(
        policy,
        recorded,
        episodes=episodes,
        seed=seed,
        num_envs=50,
        deterministic=not samples,
    )
    return [kept[seed + i] for i in range(episodes)]


def count(episodes: list[Episode]) -> dict[str, float]:
    """Share of the episodes that reach each coin and the goal, and that win; mean length."""
    shares = {
        name: float(np.mean([episode.info[name] for episode in episodes]))
        for name in ("silver", "gold", "goal", "success")
    }
    return {**shares, "length": float(np.mean([len(one.observations) - 1 for one in episodes]))}


def plans_of(
    policy: MAGEPolicy,
    episodes: list[Episode],
    *,
    interval: int = 10,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Plans made anew at the states that were met, sampled as for acting, and these states.

    Args:
        policy: whose plans.
        episodes: of this policy, with the returns asked for.
        interval: every how many steps of an episode.

    Returns:
        Planned positions (N, T, 2), and the positions of the agent (N, 2).
    """
    states = np.concatenate([np.array(one.observations[:-1:interval]) for one in episodes])
    asked = np.concatenate([np.array(one.asked[:-1:interval]) for one in episodes])
    plan = policy.model.plan(
        torch.as_tensor(states),
        torch.as_tensor(asked),
        temperature=policy.config.temperature,
        generator=torch.Generator().manual_seed(0),
    )
    return plan.observation[..., POSITION].numpy(), states[:, POSITION]


def wall_statistics(
    plans: npt.NDArray[np.float32], states: npt.NDArray[np.float32]
) -> dict[str, float]:
    """How far plans keep to the maze and begin at the agent.

    Args:
        plans: planned positions, shape (N, T, 2).
        states: positions of the agent, shape (N, 2).

    Returns:
        ``cross_walls``, the share of plans of which more than half a cell lies in walls;
        ``length_in_walls``, the mean of this length; ``first_state_error``, the mean distance of
        the first planned position from the agent; ``roughness``, the mean distance of a planned
        position from the middle of its neighbours. Lengths are in cells.
    """
    inside = np.array([MAZE.crossed_walls(plan) for plan in plans])
    bends = plans[:, 1:-1] - (plans[:, :-2] + plans[:, 2:]) / 2
    return {
        "plans": len(plans),
        "cross_walls": float((inside > CROSSED).mean()),
        "length_in_walls": float(inside.mean()),
        "first_state_error": float(np.linalg.norm(plans[:, 0] - states, axis=1).mean()),
        "roughness": float(np.linalg.norm(bends, axis=-1).mean()),
    }
