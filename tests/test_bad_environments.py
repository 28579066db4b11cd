"""Environments that misbehave: an error that says how, or the right result."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv
from tensordict import TensorDict
from torchrl.envs import GymWrapper, SerialEnv, TransformedEnv

from mage_agent import (
    DiscountedTargetReturn,
    MAGEActor,
    MAGEPolicy,
    ReturnToGoVecWrapper,
    ReturnToGoWrapper,
    evaluate,
)
from tests.acting import make_model

Step = Callable[[int], tuple[NDArray[Any], float, bool]]


class Scripted(gym.Env[Any, Any]):
    """What step t returns is up to a script."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: Any = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, script: Step) -> None:
        self.script = script

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        observation, reward, end = self.script(self.t)
        return observation, reward, end, False, {}


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def policy() -> MAGEPolicy:
    return MAGEPolicy(make_model())


@pytest.mark.parametrize("num_envs", [1, 2])
class TestEvaluate:
    def run(self, policy: MAGEPolicy, script: Step, num_envs: int, **kwargs: Any) -> Any:
        return evaluate(policy, lambda: Scripted(script), episodes=2, num_envs=num_envs, **kwargs)

    def test_one_that_ends_at_once(self, policy: MAGEPolicy, num_envs: int) -> None:
        results = self.run(policy, lambda t: (zeros(3), 7.0, True), num_envs)
        assert [(result.length, result.episode_return) for result in results] == [(1, 7.0)] * 2

    def test_one_that_never_ends(self, policy: MAGEPolicy, num_envs: int) -> None:
        def script(t: int) -> tuple[NDArray[Any], float, bool]:
            return zeros(3), 0.0, False

        with pytest.raises(ValueError, match=r"not ended after 50 steps.*TimeLimit"):
            self.run(policy, script, num_envs, max_episode_steps=50)

    def test_the_limit_itself_is_allowed(self, policy: MAGEPolicy, num_envs: int) -> None:
        results = self.run(policy, lambda t: (zeros(3), 1.0, t == 5), num_envs, max_episode_steps=5)
        assert [result.length for result in results] == [5, 5]

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite(
        self, policy: MAGEPolicy, num_envs: int, value: float
    ) -> None:
        with pytest.raises(ValueError, match=r"reward .* not finite, in episode 0 at step 2"):
            self.run(policy, lambda t: (zeros(3), value if t == 2 else 0.0, False), num_envs)
        with pytest.raises(ValueError, match=r"observation .* not finite, in episode 0 at step 2"):
            self.run(policy, lambda t: (zeros(3) + (value if t == 2 else 0), 0.0, False), num_envs)

    def test_observations_that_change_their_shape(self, policy: MAGEPolicy, num_envs: int) -> None:
        with pytest.raises(ValueError, match=r"from the shape \(3,\) to \(4,\) .* at step 2"):
            self.run(policy, lambda t: (zeros(3 if t < 2 else 4), 0.0, False), num_envs)


def test_environments_of_different_spaces(policy: MAGEPolicy) -> None:
    class Wide(Scripted):
        def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
            return zeros(4), {}

    made = iter([Scripted, Wide])
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(4,\); .* one observation space"):
        evaluate(policy, lambda: next(made)(lambda t: (zeros(3), 0.0, True)), episodes=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
class TestRewardsThatAreNotFinite:
    def test_in_one_environment(self, value: float) -> None:
        env = ReturnToGoWrapper(Scripted(lambda t: (zeros(3), value, False)), 5.0)
        env.reset()
        with pytest.raises(ValueError, match=r"reward .* is not finite"):
            env.step(zeros(1))

    def test_in_several(self, value: float) -> None:
        venv = DummyVecEnv([lambda: Scripted(lambda t: (zeros(3), value, False))] * 2)
        wrapped = ReturnToGoVecWrapper(venv, 5.0)
        wrapped.reset()
        with pytest.raises(ValueError, match=r"reward .* is not finite"):
            wrapped.step(zeros(2, 1))

    def test_in_torchrl(self, value: float) -> None:
        env = SerialEnv(2, lambda: GymWrapper(Scripted(lambda t: (zeros(3), value, False))))
        transformed = TransformedEnv(env, DiscountedTargetReturn(5.0))
        with pytest.raises(ValueError, match=r"reward .* is not finite"):
            transformed.rollout(2)


class TestActing:
    def test_observations_that_change_their_shape(self, policy: MAGEPolicy) -> None:
        policy.predict(zeros(3))
        with pytest.raises(ValueError, match=r"shapes .*\(4,\).* expected are .*\(3,\)"):
            policy.predict(zeros(4))

    @pytest.mark.parametrize("key", ["observation", "return_to_go"])
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_the_actor_refuses_what_is_not_finite(self, key: str, value: float) -> None:
        actor = MAGEActor(make_model())
        td = TensorDict({"observation": torch.zeros(2, 3), "return_to_go": torch.zeros(2, 1)}, [2])
        assert actor(td.clone())["action"].isfinite().all()
        td[key][1, 0] = value
        with pytest.raises(ValueError, match="not finite"):
            actor(td)
