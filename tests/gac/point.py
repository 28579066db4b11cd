"""The environment that ``tiny_dataset`` might come from."""

from typing import Any

import gymnasium as gym
import numpy as np

from tests.gac.tiny import ACTION, STATE


class PointEnv(gym.Env[Any, Any]):
    """A point that is pulled about for a number of steps that its start decides."""

    def __init__(self, length: int = 9, vary: int = 1) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (STATE,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (ACTION,), np.float32)
        self.length, self.vary = length, vary

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=STATE).astype(np.float32)
        self.left = self.length + int(self.np_random.integers(self.vary))
        return self.state.copy(), {}

    def step(self, action: Any) -> Any:
        pull = np.asarray(action, np.float32)
        self.state = self.state + 0.1 * np.append(pull, pull.sum()).astype(np.float32)
        self.left -= 1
        return self.state.copy(), float(pull[0]), False, self.left == 0, {}
