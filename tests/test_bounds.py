"""Actions stay inside their bounds in every floating-point type."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from mage_agent.bounds import clip_actions, inner_bounds

EDGES = np.array([0.1, 0.3, 0.7, 1.0, 1e-9, 123456789.0])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("own", [np.float32, np.float64])
def test_clipped_actions_are_in_the_space(kind: type, own: type) -> None:
    space = spaces.Box(-EDGES.astype(own), EDGES.astype(own), dtype=own)
    for sign in (-1, 1):
        for factor in (1.0, 1.0 + 1e-7, 2.0):
            with np.errstate(over="ignore"):
                action = clip_actions((sign * factor * EDGES).astype(kind), space)
            assert space.contains(action)
    inside = clip_actions(np.zeros((3, 6), dtype=kind), space)
    assert not inside.any()


def test_other_spaces_are_left_alone() -> None:
    assert clip_actions(np.array([2]), spaces.Discrete(3)).tolist() == [2]


def test_bounds_are_rounded_inwards() -> None:
    low, high = inner_bounds(-EDGES, EDGES)
    assert low.dtype == high.dtype == np.float32
    assert (low.astype(np.float64) >= -EDGES).all()
    assert (high.astype(np.float64) <= EDGES).all()
    np.testing.assert_allclose(high, EDGES, rtol=1e-6)
    assert inner_bounds([-1.0], [1.0]) == (np.float32(-1), np.float32(1))


def test_a_dimension_that_never_moves() -> None:
    low, high = inner_bounds([0.1, 0.0], [0.1, 0.0])
    assert low.tolist() == high.tolist() == [np.float32(0.1), 0.0]


class Narrow(gym.Env[Any, Any]):
    """Accepts only what its float64 space contains."""

    observation_space: Any = spaces.Box(-1, 1, (1,))
    action_space: Any = spaces.Box(-0.1, 0.1, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return np.zeros(1, np.float32), 0.0, True, False, {}


def test_environments_are_given_what_they_contain() -> None:
    from mage_agent.evaluation import evaluate
    from mage_agent.recording import record

    for sign in (-1, 1):
        edge = np.full((1, 1), sign * 0.1, dtype=np.float32)
        evaluate(lambda observation, edge=edge: edge, Narrow, episodes=1)
        record(lambda observation, edge=edge: edge, Narrow, f"narrow/{sign + 1}-v0", episodes=1)
