"""The policy inside Stable-Baselines3: shapes, state, wrappers, saving, learning."""

import copy
import math
import warnings
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
    ConvertCallback,
    EvalCallback,
    ProgressBarCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mage_agent import (
    AgentPolicy,
    Config,
    MAGEActor,
    MAGEConfig,
    MAGEPolicy,
    ReturnToGoVecWrapper,
    ReturnToGoWrapper,
    dataset_from_arrays,
    evaluate,
    load_dataset,
    returns_to_go,
)
from mage_agent.checkpoint import save
from mage_agent.evaluation import ReturnConditionedPolicy
from tests.acting import GOAL_KEYS, TINY, Echo, Reach, make_model
from tests.tiny import tiny_model

SIZES = {"observation": 3, "achieved_goal": 2, "desired_goal": 2}


@pytest.fixture
def policy() -> MAGEPolicy:
    return MAGEPolicy(make_model())


@pytest.fixture
def goal_policy() -> MAGEPolicy:
    return MAGEPolicy(make_model(SIZES, 2, observation_keys=GOAL_KEYS))


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
    }
    return MAGEConfig.preset("adroit-small", **{**TINY, **steps, **changes})


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

    def test_actions_that_are_not_finite_are_refused(self, policy: MAGEPolicy) -> None:
        with pytest.raises(ValueError, match=r"target_return is 1e\+39; .* float32"):
            policy.target_return = 1e39
        policy.model.inverse_dynamics.register_forward_hook(lambda *given: given[-1] * torch.nan)
        with pytest.raises(ValueError, match=r"are not finite.*observation \[1\. 1\. 1\.]"):
            policy.predict(np.ones(3))

    def test_only_a_lone_observation_goes_by_another_name(self) -> None:
        policy = MAGEPolicy(make_model({"pos": 2}, 2, observation_keys=("pos",)))
        alone = policy.predict({"observation": np.ones(2)}, deterministic=True)[0]
        named = policy.predict({"pos": np.ones(2)}, deterministic=True)[0]
        np.testing.assert_array_equal(alone, named)
        with pytest.raises(ValueError, match=r"entries \['observation', 'position'\]; .*\['pos'\]"):
            policy.predict({"observation": np.ones(2), "position": np.ones(2)})

    def test_acts_without_dropout(self, policy: MAGEPolicy) -> None:
        expected, _ = policy.predict(box_observation(), deterministic=True)
        policy.model.train()
        action, _ = policy.predict(box_observation(), deterministic=True)
        np.testing.assert_array_equal(action, expected)

    def test_without_return_to_go_the_target_is_asked_for_at_every_step(
        self, policy: MAGEPolicy
    ) -> None:
        observation = box_observation(3)["observation"]
        for target in (10.0, -40.0):
            policy.target_return = target
            asked = np.full((3, 1), target, np.float32)
            entries = {"observation": observation, "return_to_go": asked}
            action, state = policy.predict(observation, deterministic=True)
            np.testing.assert_array_equal(action, policy.predict(entries, deterministic=True)[0])
            assert state is None

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

    def test_array_for_a_goal_policy(self, goal_policy: MAGEPolicy) -> None:
        with pytest.raises(ValueError, match=r"needs.*desired_goal"):
            goal_policy.predict(np.zeros((2, 7), np.float32))


class TestTarget:
    def test_default_is_the_models(self, policy: MAGEPolicy) -> None:
        assert policy.target_return == policy.model.units.target_return == 20
        policy.target_return = 3.0
        assert policy.target_return == 3
        policy.target_return = None
        assert policy.target_return == 20
        with pytest.raises(ValueError, match="must be finite"):
            policy.target_return = float("nan")
        for bad in ("a", "3", [1.0], np.ones(2)):
            with pytest.raises(TypeError, match=r"target_return is .*; it must be a number, or No"):
                policy.target_return = bad
        policy.target_return = np.float32(2.5)
        assert policy.target_return == 2.5

    def test_a_target_that_nothing_heeds_is_refused(self) -> None:
        """Table 7 has a MAGE that is told no return at all."""
        policy = MAGEPolicy(make_model(return_conditioning=()))
        assert not policy.told_return
        with pytest.raises(ValueError, match="nothing would come of it"):
            policy.wrap(gym.make("Pendulum-v1"), target_return=1.0)
        observation = box_observation()["observation"]
        assert policy.predict(observation, deterministic=True)[0].shape == (20, 1)

    def test_wrap_fills_in_discount_range_and_target(self) -> None:
        model = make_model(discount=0.9)
        policy = MAGEPolicy(model, target_return=5.0)
        env = policy.wrap(gym.make("Pendulum-v1"))
        assert isinstance(env, ReturnToGoWrapper)
        assert (env.target_return, env.discount) == (5, 0.9)
        assert (env.low, env.high) == model.units.return_to_go_range
        assert env.reset(seed=0)[0]["return_to_go"] == 5
        venv = policy.wrap(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2), target_return=7.0)
        assert isinstance(venv, ReturnToGoVecWrapper)
        assert venv.reset()["return_to_go"].tolist() == [[7], [7]]  # type: ignore[call-overload, index]

    def test_bounds_that_float32_cannot_hold(self) -> None:
        steps = np.random.default_rng(0).uniform(-0.1, 0.1, size=(20, 4))
        flags, ends = np.zeros(20, bool), np.arange(20) == 19
        dataset = dataset_from_arrays(
            steps[:, :3], steps[:, 3:], flags, flags, ends, action_low=-0.1, action_high=0.1
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

    def test_wrap_warns_of_observations_on_another_scale(self, policy: MAGEPolicy) -> None:
        def make() -> gym.Env[Any, Any]:
            return gym.make("Pendulum-v1")

        def made() -> gym.Env[Any, Any]:
            return gym.wrappers.NormalizeObservation(make())

        for env in (made(), DummyVecEnv([made]), VecNormalize(DummyVecEnv([make]))):
            with pytest.warns(UserWarning, match="normalises its observations"):
                policy.wrap(env)
        with warnings.catch_warnings(action="error"):
            policy.wrap(VecNormalize(DummyVecEnv([make]), norm_obs=False))

    def test_wrap_refuses_other_spaces(self, policy: MAGEPolicy, goal_policy: MAGEPolicy) -> None:
        with pytest.raises(ValueError, match="Discrete"):
            policy.wrap(gym.make("CartPole-v1"))
        with pytest.raises(ValueError, match="needs the entries"):
            policy.wrap(gym.make("MountainCarContinuous-v0"))
        with pytest.raises(TypeError, match="vectorised environment of Gymnasium; take one of St"):
            policy.wrap(gym.vector.SyncVectorEnv([lambda: gym.make("Pendulum-v1")]))
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
        policy = Spy(make_model(SIZES, 2, observation_keys=GOAL_KEYS))
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
        assert loaded.model.observation_sizes == policy.model.observation_sizes
        assert loaded.observation_space == policy.observation_space
        assert loaded.action_space == policy.action_space
        assert loaded.config == policy.config
        random = np.random.default_rng(0)
        observation = {
            key: random.normal(size=(9, size))
            for key, size in policy.model.observation_sizes.items()
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
        with pytest.raises(ValueError, match="no checkpoint of mage_agent"):
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
        returns = returns_to_go(dataset["next", "reward"], dataset["episode"], config.discount)
        starts = returns[dataset["step_count"] == 0]
        assert policy.target_return == pytest.approx(float(starts.max()))
        action, _ = policy.predict(dataset["observation"][:4].numpy(), deterministic=True)
        assert (np.abs(action) <= 1).all()

    def test_seed_makes_equal_policies(self) -> None:
        dataset, config = make_dataset(), learning_config(generator_steps=4)
        seeds: tuple[Any, ...] = (0, np.int64(0), 1)
        policies = [
            MAGEPolicy.from_dataset(dataset, config, device="cpu", seed=seed).learn(
                dataset, progress_bar=False
            )
            for seed in seeds
        ]
        weights = [flat(one) for one in policies]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_goal_dataset(self) -> None:
        dataset = make_dataset(goal=True)
        policy = MAGEPolicy.from_dataset(dataset, learning_config(), device="cpu")
        assert policy.model.observation_sizes == dict(sorted(SIZES.items()))
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
        assert (
            policy.learn(dataset, progress_bar=False, callback=evaluation, log_dir=tmp_path / "tb")
            is policy
        )
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
            policy.learn(dataset, progress_bar=False, callback=callback)
            weights.append(flat(policy))
        assert torch.equal(*weights)
        assert calls == [50, 100, 120]


class TestAsOthersDo:
    """What people bring along from ``learn`` of Stable-Baselines3."""

    @pytest.mark.filterwarnings("ignore:the codebook has collapsed")
    def test_the_dataset_it_was_built_from_and_a_presets_name(self, minari_dataset: Any) -> None:
        policy = MAGEPolicy.from_dataset(minari_dataset.spec.dataset_id, "small", device="cpu")
        assert policy.config == MAGEConfig.preset("small", observation_keys=["observation"])
        policy.learn(progress_bar=False, steps=6)
        again = MAGEPolicy.from_dataset(load_dataset(minari_dataset), "small", device="cpu")
        again.learn(minari_dataset, progress_bar=False, steps=6)  # anything that can be loaded
        assert torch.equal(flat(policy), flat(again))

    def test_a_number_of_steps_in_place_of_a_dataset(self, policy: MAGEPolicy) -> None:
        with pytest.raises(TypeError, match=r"learn\(dataset, steps=\.\.\.\)"):
            policy.learn(10_000)
        with pytest.raises(ValueError, match="was not built from a dataset"):
            policy.learn()

    def test_another_seed(self) -> None:
        dataset, config = make_dataset(), learning_config(generator_steps=4)
        weights = [
            flat(MAGEPolicy.from_dataset(dataset, config, device="cpu").learn(seed=seed))
            for seed in (None, 0, 1)
        ]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    @pytest.mark.filterwarnings("ignore:rich is experimental")
    def test_a_list_of_callbacks_a_function_and_a_progress_bar(self) -> None:
        dataset, config = make_dataset(), learning_config()
        calls: list[int] = []

        class Record(BaseCallback):
            def _on_training_start(self) -> None:
                calls.append(self.locals["total_timesteps"])

            def _on_step(self) -> bool:
                assert self.model.device == torch.device("cpu")
                assert self.locals["stage"] == "generator"
                assert self.locals["metrics"]["loss"] > 0
                calls.append(self.num_timesteps)
                return True

        def enough(variables: dict[str, Any], _: dict[str, Any]) -> bool:
            return len(calls) < 3

        policy = MAGEPolicy.from_dataset(dataset, config, device="cpu")
        bar = ProgressBarCallback()
        policy.learn(progress_bar=False, callback=[Record(), bar])
        assert calls == [120, 50, 100, 120]
        assert bar.pbar.n == bar.pbar.total == 120
        calls.clear()
        policy.learn(progress_bar=False, callback=[Record(), ConvertCallback(enough)])
        assert calls == [120, 50, 100]
        calls.clear()
        policy.learn(progress_bar=False, callback=lambda *_: calls.append(1) or len(calls) < 2)
        assert calls == [1, 1]
        for wrong in ("EvalCallback", ["EvalCallback"], 3):
            with pytest.raises(TypeError, match=r"callback is .*; it must be a callback of Stable"):
                policy.learn(progress_bar=False, callback=wrong)  # type: ignore[arg-type]


class TestMemory:
    """The state of ``predict``, for an agent that remembers."""

    @pytest.fixture
    def remembering(self) -> AgentPolicy:
        return AgentPolicy(Echo(Config(), observation_dim=3, action_dim=1))

    def test_is_carried_and_reset_row_by_row(self, remembering: AgentPolicy) -> None:
        observations = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
        starts = np.zeros((6, 2), bool)
        starts[0], starts[3, 1] = True, True
        state, seen = None, [[], []]
        for observation, start in zip(observations, starts, strict=True):
            action, state = remembering.predict(observation, state, start, True)
            for row in range(2):
                seen[row] = [*([] if start[row] else seen[row]), observation[row, 0]][-3:]
            expected = [[np.mean(row)] for row in seen]
            np.testing.assert_allclose(action, expected, rtol=1e-5)
        assert state is not None
        assert all(isinstance(part, np.ndarray) for part in state)

    def test_single_observations(self, remembering: AgentPolicy) -> None:
        action, state = remembering.predict(np.float32([1, 0, 0]))
        action, state = remembering.predict(np.float32([3, 0, 0]), state)
        assert action == pytest.approx([2.0])
        action, state = remembering.predict(np.float32([5, 0, 0]), state, np.array([True]))
        assert action == pytest.approx([5.0])

    def test_of_other_environments_is_refused(self, remembering: AgentPolicy) -> None:
        state = remembering.predict(np.zeros((2, 3)))[1]
        with pytest.raises(ValueError, match=r"expected are .* for 3 observations"):
            remembering.predict(np.zeros((3, 3)), state)

    def test_evaluations_agree(self) -> None:
        agent = Echo(Config(observation_keys=GOAL_KEYS), observation_dim=SIZES, action_dim=2)
        agent.units.action_low.fill_(-1.0)
        agent.units.action_high.fill_(1.0)
        policy = AgentPolicy(agent)
        makers = [partial(lambda n: Monitor(Reach(n)), n) for n in (2, 3)]
        mean, _ = evaluate_policy(policy, DummyVecEnv(makers), n_eval_episodes=4)
        assert mean == 4.5  # it is not told a return, and needs none
        results = evaluate(policy, lambda: Reach(3), episodes=3, num_envs=2)
        assert [result.episode_return for result in results] == [6, 6, 6]
        with pytest.raises(ValueError, match=r"target_return is 3\.0, but"):
            evaluate(policy, lambda: Reach(3), episodes=3, target_return=3.0)


class TestClasses:
    def test_a_policy_of_another_agent_is_refused(self, tmp_path: Path) -> None:
        agent = Echo(Config(), observation_dim=3, action_dim=1)
        with pytest.raises(TypeError, match="model is a Echo; MAGEPolicy drives a MAGEModel"):
            MAGEPolicy(agent)
        AgentPolicy(agent).save(tmp_path / "echo")
        with pytest.raises(TypeError, match="holds the agent 'echo'"):
            MAGEPolicy.load(tmp_path / "echo")
        assert isinstance(AgentPolicy.load(tmp_path / "echo").model, Echo)

    def test_a_configuration_of_another_agent_is_refused(self) -> None:
        with pytest.raises(TypeError, match="config is a Config; MAGEModel takes a MAGEConfig"):
            MAGEPolicy.from_dataset(make_dataset(), Config(), device="cpu")
        with pytest.raises(ValueError, match="unknown preset 'large'; known presets: "):
            MAGEPolicy.from_dataset(make_dataset(), "large", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="device is 'cuda', but PyTorch"):
        MAGEPolicy.from_dataset(make_dataset(), learning_config(), device="cuda")
