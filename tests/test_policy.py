"""The policy inside Stable-Baselines3: shapes, state, wrappers, saving, learning."""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mage_agent.actor import MAGEActor
from mage_agent.checkpoint import save
from mage_agent.config import MAGEConfig
from mage_agent.data import dataset_from_arrays
from mage_agent.envs import ReturnToGoVecWrapper, ReturnToGoWrapper
from mage_agent.evaluation import ReturnConditionedPolicy, evaluate
from mage_agent.policy import MAGEPolicy
from tests.acting import GOAL_KEYS, TINY, Reach, make_model
from tests.tiny import tiny_model

SIZES = {"observation": 3, "achieved_goal": 2, "desired_goal": 2}


@pytest.fixture
def policy() -> MAGEPolicy:
    return MAGEPolicy(make_model())


@pytest.fixture
def goal_policy() -> MAGEPolicy:
    return MAGEPolicy(make_model(7, 2, observation_keys=GOAL_KEYS), observation_sizes=SIZES)


def box_observation(count: int = 20, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return {
        "observation": random.normal(size=(count, 3)).astype(np.float32),
        "return_to_go": random.uniform(-50, 20, size=(count, 1)).astype(np.float32),
    }


def make_dataset(goal: bool = False, episodes: int = 6, length: int = 30) -> Any:
    random = np.random.default_rng(0)
    steps = episodes * length
    observations: Any = random.normal(size=(steps, 3))
    if goal:
        observations = {key: random.normal(size=(steps, size)) for key, size in SIZES.items()}
    ends = np.arange(1, steps + 1) % length == 0
    return dataset_from_arrays(
        observations,
        random.uniform(-1, 1, size=(steps, 2 if goal else 1)),
        random.normal(size=steps),
        np.zeros(steps, bool),
        ends,
    )


def learning_config(**changes: Any) -> MAGEConfig:
    steps = {
        "batch_size": 8,
        "tokenizer_steps": 4,
        "generator_steps": 120,
        "inverse_dynamics_steps": 2,
    }
    return MAGEConfig.preset("small", **{**TINY, **steps, **changes})


def flat(policy: MAGEPolicy) -> torch.Tensor:
    """All weights, one after the other."""
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


class TestPredict:
    def test_equals_the_actor(self, policy: MAGEPolicy) -> None:
        observation = box_observation()
        td = TensorDict({k: torch.as_tensor(v) for k, v in observation.items()}, [20])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            expected = MAGEActor(policy.model)(td)["action"]
        action, state = policy.predict(observation, deterministic=True)
        np.testing.assert_array_equal(action, expected)
        assert state is None
        assert len(np.unique(action)) > 1
        # The same randomness gives the same samples.
        actor = MAGEActor(policy.model, generator=torch.Generator().manual_seed(policy.seed))
        with set_exploration_type(ExplorationType.RANDOM):
            sampled = actor(td.select("observation", "return_to_go"))["action"]
        np.testing.assert_array_equal(policy.predict(observation)[0], sampled)
        assert (sampled != expected).any()

    def test_single_and_batched_observations(self, policy: MAGEPolicy) -> None:
        observation = box_observation(5)
        batch, _ = policy.predict(observation, None, None, True)
        assert batch.shape == (5, 1)
        assert batch.dtype == np.float32
        for i in range(5):
            row = {key: value[i].astype(np.float64) for key, value in observation.items()}
            action, _ = policy.predict(row, deterministic=True)
            assert action.shape == (1,)
            np.testing.assert_allclose(action, batch[i], atol=1e-5)

    def test_acts_without_dropout(self, policy: MAGEPolicy) -> None:
        expected, _ = policy.predict(box_observation(), deterministic=True)
        policy.model.train()
        action, _ = policy.predict(box_observation(), deterministic=True)
        np.testing.assert_array_equal(action, expected)

    def test_without_return_to_go_the_target_is_constant_per_environment(
        self, policy: MAGEPolicy
    ) -> None:
        observation = box_observation(3)["observation"]

        def asking(returns: list[float]) -> Any:
            asked = np.array(returns, np.float32)[:, None]
            entries = {"observation": observation, "return_to_go": asked}
            return policy.predict(entries, deterministic=True)[0]

        policy.target_return = 10.0
        action, state = policy.predict(observation, deterministic=True)
        np.testing.assert_array_equal(action, asking([10, 10, 10]))
        assert state is not None
        np.testing.assert_array_equal(state[0], [[10], [10], [10]])
        # A new target holds for the episodes that start from now on.
        policy.target_return = -40.0
        start = np.array([False, True, False])
        action, state = policy.predict(observation, state, start, deterministic=True)
        np.testing.assert_array_equal(action, asking([10, -40, 10]))
        action, state = policy.predict(observation, state, deterministic=True)
        assert state is not None
        np.testing.assert_array_equal(state[0], [[10], [-40], [10]])

    def test_goal_observations_with_further_entries(self, goal_policy: MAGEPolicy) -> None:
        random = np.random.default_rng(0)
        observation = {key: random.normal(size=(4, size)) for key, size in SIZES.items()}
        observation["image"] = np.zeros((4, 8, 8, 3))
        action, _ = goal_policy.predict(observation, deterministic=True)
        flat = torch.as_tensor(np.concatenate([observation[key] for key in GOAL_KEYS], axis=1))
        target = torch.full((4, 1), goal_policy.target_return)
        np.testing.assert_array_equal(action, goal_policy.model.act(flat.float(), target))

    def test_dictionary_around_a_box(self, policy: MAGEPolicy) -> None:
        observation = box_observation(2)["observation"]
        bare, _ = policy.predict(observation, deterministic=True)
        named, _ = policy.predict({"observation": observation}, deterministic=True)
        np.testing.assert_array_equal(bare, named)

    @pytest.mark.parametrize(
        ("observation", "message"),
        [
            ((np.zeros(3), {}), "Pass the observation alone"),
            (np.zeros(4), r"\(4,\)"),
            (np.zeros((2, 4)), r"\(2, 4\)"),
            (np.zeros((2, 2, 3)), r"\(2, 2, 3\)"),
            ({"state": np.zeros(3)}, r"entries \['state'\]"),
            ({"observation": np.zeros((2, 3)), "return_to_go": np.zeros(2)}, "return_to_go"),
            ({"observation": np.zeros((2, 3)), "return_to_go": np.zeros((3, 1))}, "return_to_go"),
            (np.array([0, 0, np.nan]), "not finite"),
        ],
    )
    def test_observations_that_do_not_fit(
        self, policy: MAGEPolicy, observation: Any, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            policy.predict(observation)

    def test_state_of_other_environments(self, policy: MAGEPolicy) -> None:
        state = policy.predict(np.zeros((2, 3)))[1]
        with pytest.raises(ValueError, match="returns of shape"):
            policy.predict(np.zeros((3, 3)), state)

    def test_array_for_a_goal_policy(self, goal_policy: MAGEPolicy) -> None:
        with pytest.raises(ValueError, match=r"needs.*desired_goal"):
            goal_policy.predict(np.zeros((2, 7), np.float32))


class TestTarget:
    def test_default_is_the_models(self, policy: MAGEPolicy) -> None:
        assert policy.target_return == policy.model.default_target_return == 20
        policy.target_return = 3.0
        assert policy.target_return == 3
        policy.target_return = None
        assert policy.target_return == 20
        with pytest.raises(ValueError, match="must be finite"):
            policy.target_return = float("nan")

    def test_wrap_fills_in_discount_range_and_target(self) -> None:
        model = make_model(discount=0.9)
        policy = MAGEPolicy(model, target_return=5.0)
        env = policy.wrap(gym.make("Pendulum-v1"))
        assert isinstance(env, ReturnToGoWrapper)
        assert (env.target_return, env.discount) == (5, 0.9)
        assert (env.low, env.high) == model.return_to_go_range
        assert env.reset(seed=0)[0]["return_to_go"] == 5
        venv = policy.wrap(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2), target_return=7.0)
        assert isinstance(venv, ReturnToGoVecWrapper)
        assert venv.reset()["return_to_go"].tolist() == [[7], [7]]  # type: ignore[call-overload, index]

    def test_bounds_that_float32_cannot_hold(self) -> None:
        steps = np.random.default_rng(0).uniform(-0.1, 0.1, size=(20, 4))
        flags = np.zeros(20, bool)
        dataset = dataset_from_arrays(
            steps[:, :3], steps[:, 3:], flags, flags, flags, action_low=-0.1, action_high=0.1
        )
        pendulum = gym.make("Pendulum-v1")
        pendulum.action_space = spaces.Box(-0.1, 0.1, (1,), np.float64)
        MAGEPolicy.from_dataset(dataset, learning_config(), device="cpu").wrap(pendulum)

    def test_a_lone_entry_of_another_name(self) -> None:
        policy = MAGEPolicy(make_model(3, 1, observation_keys=("state",)), target_return=0.0)
        env = policy.wrap(gym.make("Pendulum-v1", max_episode_steps=3))
        observation, _ = env.reset(seed=0)
        told, _ = policy.predict(observation, deterministic=True)
        alone, _ = policy.predict(observation["observation"], deterministic=True)
        np.testing.assert_array_equal(told, alone)
        unlimited = lambda: gym.make("Pendulum-v1", max_episode_steps=3)  # noqa: E731
        assert len(evaluate(policy, unlimited, episodes=1)) == 1

    def test_wrap_refuses_other_spaces(self, policy: MAGEPolicy, goal_policy: MAGEPolicy) -> None:
        with pytest.raises(ValueError, match="Discrete"):
            policy.wrap(gym.make("CartPole-v1"))
        with pytest.raises(ValueError, match="needs the entries"):
            policy.wrap(gym.make("MountainCarContinuous-v0"))
        pendulum = gym.make("Pendulum-v1")
        pendulum.action_space = goal_policy.action_space
        with pytest.raises(ValueError, match="needs the entries"):
            goal_policy.wrap(pendulum)
        env = Reach(3)
        env.action_space = spaces.Box(-1, 1, (2,), np.float64)
        goal_policy.wrap(env)
        env.action_space = spaces.Box(-0.5, 0.5, (2,), np.float32)
        with pytest.raises(ValueError, match="action space"):
            goal_policy.wrap(env)

    def test_sizes_must_fit_the_model(self) -> None:
        model = make_model(7, 2, observation_keys=GOAL_KEYS)
        for sizes in (None, {**SIZES, "desired_goal": 3}, {"observation": 7}):
            with pytest.raises(ValueError, match="must add up to 7"):
                MAGEPolicy(model, observation_sizes=sizes)


class Spy(MAGEPolicy):
    """Remembers what it was asked for."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        action, state = super().predict(*args, **kwargs)
        self.__dict__.setdefault("asked", []).append(args[0]["return_to_go"].copy())
        return action, state


class TestStableBaselines:
    def test_is_a_policy(self, policy: MAGEPolicy) -> None:
        assert isinstance(policy, BasePolicy)
        assert isinstance(policy, ReturnConditionedPolicy)
        assert policy.observation_space.shape == (3,)
        assert copy.deepcopy(policy).target_return == 20

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_evaluate_policy(self, policy: MAGEPolicy, wrapped: bool) -> None:
        venv: Any = DummyVecEnv([lambda: Monitor(gym.make("Pendulum-v1"))] * 2)
        venv.seed(0)
        venv = policy.wrap(venv) if wrapped else venv
        returns, lengths = evaluate_policy(
            policy, venv, n_eval_episodes=3, return_episode_rewards=True
        )
        assert lengths == [200] * 3
        assert np.isfinite(returns).all()

    def test_evaluate_policy_on_a_single_goal_environment(self, goal_policy: MAGEPolicy) -> None:
        env = Monitor(goal_policy.wrap(Reach(4)))
        assert evaluate_policy(goal_policy, env, n_eval_episodes=2) == (10, 0)

    def test_every_environment_restarts_at_the_target(self) -> None:
        policy = Spy(make_model(7, 2, observation_keys=GOAL_KEYS), observation_sizes=SIZES)
        venv = DummyVecEnv([partial(lambda n: Monitor(Reach(n)), n) for n in (2, 3)])
        evaluate_policy(policy, policy.wrap(venv), n_eval_episodes=6)
        asked = np.array(policy.asked)[:, :, 0]  # (steps, environments)
        np.testing.assert_array_equal(asked[::2, 0], 20)
        np.testing.assert_allclose(asked[1::2, 0], 19 / 0.99 if 19 / 0.99 < 20 else 20)
        np.testing.assert_array_equal(asked[::3, 1], 20)

    def test_stochastic_evaluation_repeats(self) -> None:
        policy = MAGEPolicy(make_model(temperature=2.0))
        results = [
            evaluate(
                policy,
                lambda: gym.make("Pendulum-v1", max_episode_steps=20),
                episodes=3,
                deterministic=deterministic,
            )
            for deterministic in (False, False, True)
        ]
        assert results[0] == results[1] != results[2]

    def test_agrees_with_our_evaluation(self, policy: MAGEPolicy) -> None:
        ours = evaluate(policy, lambda: gym.make("Pendulum-v1"), episodes=1, seed=3)
        venv = DummyVecEnv([lambda: Monitor(gym.make("Pendulum-v1"))])
        venv.seed(3)
        mean, _ = evaluate_policy(policy, policy.wrap(venv), n_eval_episodes=1)
        assert mean == pytest.approx(ours[0].episode_return, rel=1e-4)


class TestFiles:
    @pytest.mark.parametrize("which", ["policy", "goal_policy"])
    def test_round_trip(self, which: str, request: Any, tmp_path: Path) -> None:
        policy: MAGEPolicy = request.getfixturevalue(which)
        policy.target_return = 7.0
        policy.save(tmp_path / "deep" / "policy.mage")
        loaded = MAGEPolicy.load(tmp_path / "deep" / "policy.mage", device="cpu")
        assert loaded.target_return == 7
        assert loaded.observation_sizes == policy.observation_sizes
        assert loaded.observation_space == policy.observation_space
        assert loaded.action_space == policy.action_space
        assert loaded.config == policy.config
        random = np.random.default_rng(0)
        observation = {
            key: random.normal(size=(9, size)) for key, size in policy.observation_sizes.items()
        }
        for deterministic in (True, False):
            np.testing.assert_array_equal(
                policy.predict(observation, deterministic=deterministic)[0],
                loaded.predict(observation, deterministic=deterministic)[0],
            )

    def test_foreign_and_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            MAGEPolicy.load(tmp_path / "none.mage")
        torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.mage")
        with pytest.raises(ValueError, match="no MAGE checkpoint"):
            MAGEPolicy.load(tmp_path / "foreign.mage")

    @pytest.mark.parametrize(
        "extra",
        [
            {"target_return": "high"},
            {"target_return": math.nan},
            {"target_return": []},
            {"seed": "0"},
            {"seed": 10**30},
            {"seed": None},
            {"observation_sizes": 3},
            {"observation_sizes": {"observation": "three"}},
            {"observation_sizes": {"observation": 10**12}},
        ],
        ids=str,
    )
    def test_a_crafted_policy_is_refused(self, tmp_path: Path, extra: dict[str, Any]) -> None:
        save(tiny_model(), tmp_path / "crafted.mage", extra)
        with pytest.raises(ValueError, match=r"crafted\.mage holds no usable policy"):
            MAGEPolicy.load(tmp_path / "crafted.mage")


class TestLearn:
    def test_learns_from_a_dataset_and_acts(self) -> None:
        dataset = make_dataset()
        config = learning_config(generator_steps=4)
        policy = MAGEPolicy.from_dataset(dataset, config, device="cpu")
        before = [parameter.clone() for parameter in policy.parameters()]
        assert policy.learn(dataset, progress_bar=False) is policy
        changed = [
            not torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True)
        ]
        assert any(changed)
        starts = dataset["return_to_go"][dataset["step_count"] == 0]
        assert policy.target_return == pytest.approx(float(starts.max()))
        action, _ = policy.predict(dataset["observation"][:4].numpy(), deterministic=True)
        assert (np.abs(action) <= 1).all()

    def test_seed_makes_equal_policies(self) -> None:
        dataset, config = make_dataset(), learning_config(generator_steps=4)
        policies = [
            MAGEPolicy.from_dataset(dataset, config, device="cpu", seed=seed).learn(dataset, False)
            for seed in (0, 0, 1)
        ]
        weights = [flat(one) for one in policies]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_goal_dataset(self) -> None:
        dataset = make_dataset(goal=True)
        policy = MAGEPolicy.from_dataset(dataset, learning_config(), device="cpu")
        assert policy.observation_sizes == {key: SIZES[key] for key in policy.observation_sizes}
        assert set(policy.observation_sizes) == set(SIZES)
        policy.predict(Reach(2).observe())

    def test_eval_callback_and_early_stop(self, tmp_path: Path) -> None:
        dataset = make_dataset(goal=True)
        policy = MAGEPolicy.from_dataset(dataset, learning_config(), device="cpu")
        stop = StopTrainingOnRewardThreshold(reward_threshold=9.0)  # Reach(4) pays 10
        evaluation = EvalCallback(
            policy.wrap(DummyVecEnv([lambda: Monitor(Reach(4))])),
            n_eval_episodes=2,
            eval_freq=1,
            best_model_save_path=str(tmp_path / "best"),
            log_path=str(tmp_path / "log"),
            callback_on_new_best=stop,
            verbose=0,
        )
        assert policy.learn(dataset, False, callback=evaluation, log_dir=tmp_path / "tb") is policy
        assert not policy.training
        results = np.load(tmp_path / "log" / "evaluations.npz")
        assert results["timesteps"].tolist() == [50]  # of 120: it stopped
        np.testing.assert_array_equal(results["results"], [[10, 10]])
        assert MAGEPolicy.load(tmp_path / "best" / "best_model").config == policy.config

    def test_callbacks_do_not_change_what_is_learnt(self) -> None:
        dataset, config = make_dataset(goal=True), learning_config()
        calls: list[int] = []

        class Record(BaseCallback):
            def _on_step(self) -> bool:
                calls.append(self.num_timesteps)
                return True

        weights = []
        for observed in (False, True):
            policy = MAGEPolicy.from_dataset(dataset, config, device="cpu")
            callback = None
            if observed:
                venv = policy.wrap(DummyVecEnv([lambda: Monitor(Reach(4))]))
                evaluation = EvalCallback(venv, eval_freq=1, deterministic=False, verbose=0)
                callback = CallbackList([Record(), evaluation])
            policy.learn(dataset, False, callback=callback)
            weights.append(flat(policy))
        assert torch.equal(*weights)
        assert calls == [50, 100, 120, 122]  # the third stage, of two steps, goes on counting


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="device is 'cuda', but PyTorch"):
        MAGEPolicy.from_dataset(make_dataset(), learning_config(), device="cuda")
