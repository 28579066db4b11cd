"""Your own environment: record a controller in it, train on the recording, act in it.

    python examples/own_environment.py

The environment is a boat that crosses a river: a current carries it off, an engine pushes it.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from mage_agent import MAGEPolicy, evaluate, load_dataset, record
from mage_agent.recording import minari_root


class River(gym.Env[Any, Any]):
    """A boat at (x, y) should get to the jetty at (0, 1); the reward is minus the distance left."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))  # only continuous actions can be learned from

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Start on the southern bank."""
        super().reset(seed=seed)
        self.position = np.array([self.np_random.uniform(-1, 1), -1.0], dtype=np.float32)
        return self.position, {}

    def step(self, action: Any) -> Any:
        """Move for a tenth of a minute; the current is strongest in the middle."""
        current = np.array([0.5 * np.exp(-4 * self.position[1] ** 2), 0.0])
        self.position = (self.position + 0.1 * (action + current)).astype(np.float32)
        left = float(np.linalg.norm(self.position - [0.0, 1.0]))
        arrived = left < 0.1
        return self.position, -left, arrived, False, {"success": arrived}


def make_env() -> gym.Env[Any, Any]:
    """Every episode needs an end: this one after 60 steps at the latest."""
    return gym.wrappers.TimeLimit(River(), max_episode_steps=60)


def helmsman(observation: np.ndarray) -> np.ndarray:
    """Steer towards the jetty, unsteadily; observations are (batch, 2), so are actions."""
    heading = np.array([0.0, 1.0]) - observation
    heading /= np.linalg.norm(heading, axis=1, keepdims=True) + 1e-6
    unsteady = np.random.default_rng(abs(int(1e6 * observation.sum())))
    return np.clip(heading + unsteady.normal(scale=0.7, size=heading.shape), -1, 1)


def main() -> None:
    """Record, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200, help="to record")
    parser.add_argument("--steps", type=int, default=1_000, help="gradient steps in all")
    parser.add_argument("--eval-episodes", type=int, default=20)
    args = parser.parse_args()

    # Without `minari_root`, the dataset stays where Minari keeps its datasets.
    with tempfile.TemporaryDirectory() as folder, minari_root(Path(folder)):
        recorded = record(helmsman, make_env, "river/unsteady-v0", episodes=args.episodes)
        dataset = load_dataset("river/unsteady-v0")
    policy = MAGEPolicy.from_dataset(dataset, "small").learn(steps=args.steps)

    results = evaluate(policy, make_env, episodes=args.eval_episodes, seed=10_000)
    for name, episodes in (("the helmsman", recorded), ("MAGE", results)):
        returned = np.mean([episode.episode_return for episode in episodes])
        arrived = np.mean([episode.success for episode in episodes])
        print(f"{name}: return {returned:.1f}, arrived in {arrived:.0%} of the episodes")


if __name__ == "__main__":
    main()
