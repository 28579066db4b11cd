"""The account of the return-to-go, checked against the closed form of a scripted environment."""

import copy
import pickle
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from torchrl.envs import Compose, GymEnv, GymWrapper, ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.transforms import VecNormV2
from torchrl.envs.utils import check_env_specs

from mage_agent.envs import DiscountedTargetReturn, ReturnToGoVecWrapper, ReturnToGoWrapper

DISCOUNT = 0.9


class Scripted(gym.Env[Any, NDArray[np.float32]]):
    """Step t of an episode pays t; the episode ends after ``length`` steps."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int = 4, goal: bool = False) -> None:
        self.length, self.goal = length, goal
        box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space: Any = (
            spaces.Dict({"observation": box, "desired_goal": box}) if goal else box
        )

    def observe(self) -> Any:
        now = np.array([self.t], np.float32)
        return {"observation": now, "desired_goal": now + 100} if self.goal else now

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.observe(), float(self.t), self.t == self.length, False, {}


def closed_form(target: float, steps: int, discount: float = DISCOUNT) -> float:
    """R after rewards 1, 2, ..., steps: gamma^-n (R_0 - sum_i gamma^i r_i)."""
    paid = sum(discount**i * (i + 1) for i in range(steps))
    return (target - paid) / discount**steps


ACTION = np.zeros(1, np.float32)


class TestWrapper:
    def test_follows_the_closed_form_and_restarts(self) -> None:
        env = ReturnToGoWrapper(Scripted(), 10.0, discount=DISCOUNT)
        for _ in range(2):
            observation, _ = env.reset()
            assert observation["return_to_go"] == pytest.approx([10.0])
            for steps in range(1, 5):
                observation, reward, terminated, *_ = env.step(ACTION)
                assert reward == steps
                assert observation["observation"] == [steps]
                assert observation["return_to_go"] == pytest.approx([closed_form(10, steps)])
            assert terminated

    def test_an_environment_that_resets_by_itself_starts_at_the_target(self) -> None:
        env = ReturnToGoWrapper(gym.wrappers.Autoreset(Scripted(2)), 10.0, discount=DISCOUNT)
        env.reset()
        told = [env.step(ACTION)[0]["return_to_go"].item() for _ in range(5)]
        expected = [closed_form(10, steps) for steps in (1, 2, 0, 1, 2)]
        assert told == pytest.approx(expected)

    def test_asking_for_what_the_episode_pays_leaves_nothing(self) -> None:
        paid = sum(DISCOUNT**i * (i + 1) for i in range(4))
        env = ReturnToGoWrapper(Scripted(), paid, discount=DISCOUNT)
        env.reset()
        for _ in range(4):
            observation = env.step(ACTION)[0]
        assert observation["return_to_go"] == pytest.approx([0.0], abs=1e-5)

    def test_range_binds_steps_but_not_the_target(self) -> None:
        env = ReturnToGoWrapper(Scripted(), 50.0, return_to_go_range=(1.5, 2.5))
        assert env.reset()[0]["return_to_go"] == 50
        assert env.step(ACTION)[0]["return_to_go"] == 2.5
        for _ in range(2):
            observation = env.step(ACTION)[0]
        assert observation["return_to_go"] == 1.5

    def test_goal_observation_keeps_its_keys(self) -> None:
        env = ReturnToGoWrapper(Scripted(goal=True), 10.0)
        assert list(env.reset()[0]) == ["observation", "desired_goal", "return_to_go"]
        assert env.reset()[0] in env.observation_space

    def test_editing_an_observation_does_not_edit_the_account(self) -> None:
        env = ReturnToGoWrapper(Scripted(), 10.0, discount=DISCOUNT)
        env.reset()[0]["return_to_go"][:] = 77
        assert env.step(ACTION)[0]["return_to_go"] == pytest.approx([closed_form(10, 1)])

    @pytest.mark.filterwarnings("ignore::UserWarning")  # it would rather see other environments
    def test_passes_gymnasiums_checker_and_rebuilds_from_its_spec(self) -> None:
        env = ReturnToGoWrapper(gym.make("Pendulum-v1"), -200.0, discount=0.5)
        check_env(env, skip_render_check=True)
        assert env.spec is not None
        rebuilt = gym.make(env.spec)
        assert rebuilt.reset()[0]["return_to_go"] == -200
        env.close()
        rebuilt.close()

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
    def test_copies_go_their_own_way(self, clone: Any) -> None:
        env = ReturnToGoWrapper(Scripted(), 10.0, discount=DISCOUNT)
        env.reset()
        env.step(ACTION)
        other = clone(env)
        env.step(ACTION)
        assert other.step(ACTION)[0]["return_to_go"] == pytest.approx([closed_form(10, 2)])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"target_return": np.nan}, "must be finite"),
            ({"target_return": [1.0, 2.0]}, "one number"),
            ({"target_return": 1.0, "discount": 0.0}, "discount is 0.0"),
            ({"target_return": 1.0, "discount": 1.1}, "discount is 1.1"),
            ({"target_return": 1.0, "return_to_go_range": (2, 1)}, "must not exceed"),
        ],
    )
    def test_refuses_numbers_out_of_range(self, arguments: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ReturnToGoWrapper(Scripted(), **arguments)

    def test_refuses_other_spaces_and_double_wrapping(self) -> None:
        env = Scripted()
        env.observation_space = spaces.Discrete(3)
        with pytest.raises(TypeError, match="allowed are a Box, or a Dict of Boxes"):
            ReturnToGoWrapper(env, 1.0)
        with pytest.raises(ValueError, match="wrapped twice"):
            ReturnToGoWrapper(ReturnToGoWrapper(Scripted(), 1.0), 1.0)


def test_the_wrapper_refuses_normalised_rewards() -> None:
    with pytest.raises(ValueError, match="is wrapped in NormalizeReward"):
        ReturnToGoWrapper(gym.wrappers.NormalizeReward(Scripted()), 1.0)
    outermost = gym.wrappers.NormalizeReward(ReturnToGoWrapper(Scripted(), 1.0))
    assert outermost.reset()[0]["return_to_go"] == [1.0]


def test_the_transform_prints_before_it_has_an_environment() -> None:
    printed = repr(DiscountedTargetReturn(9.0, discount=0.9, return_to_go_range=(0.0, 12.0)))
    expected = "DiscountedTargetReturn(9.0, discount=0.9, return_to_go_range=(0.0, 12.0))"
    assert printed == expected


def test_the_transform_refuses_normalised_rewards() -> None:
    normalise = VecNormV2(in_keys=["reward"])
    with pytest.raises(ValueError, match=r"VecNormV2 normalises .* put it behind"):
        TransformedEnv(scripted(), Compose(normalise, DiscountedTargetReturn(9.0))).reset()
    behind = Compose(DiscountedTargetReturn(9.0), VecNormV2(in_keys=["reward"]))
    assert TransformedEnv(scripted(), behind).rollout(1)["return_to_go"].item() == 9.0


class TestVecWrapper:
    def make(self, *, target: Any = 10.0, goal: bool = False) -> ReturnToGoVecWrapper:
        venv = DummyVecEnv([partial(Scripted, length, goal) for length in (2, 3)])
        return ReturnToGoVecWrapper(venv, target, discount=DISCOUNT)

    @pytest.mark.parametrize("goal", [False, True])
    def test_every_environment_keeps_its_own_account(self, goal: bool) -> None:
        venv = self.make(target=[10.0, 20.0], goal=goal)
        observation = venv.reset()
        assert isinstance(observation, dict)
        assert ("desired_goal" in observation) == goal
        actions = np.zeros((2, 1), np.float32)
        for step in range(1, 13):
            observation, reward, done, infos = venv.step(actions)
            assert isinstance(observation, dict)
            for i, (length, target) in enumerate([(2, 10.0), (3, 20.0)]):
                left = closed_form(target, step % length)
                assert observation["return_to_go"][i] == pytest.approx([left], rel=1e-5)
                assert reward[i] == (step - 1) % length + 1
                assert done[i] == (step % length == 0)
                if done[i]:
                    terminal = infos[i]["terminal_observation"]
                    left = closed_form(target, length)
                    assert terminal["return_to_go"] == pytest.approx([left], rel=1e-5)
                    assert terminal["observation"] == [length]

    def test_environments_in_processes_of_their_own(self) -> None:
        venv = SubprocVecEnv([partial(Scripted, length) for length in (2, 3)])
        wrapped = ReturnToGoVecWrapper(venv, 10.0, discount=DISCOUNT)
        here = self.make()
        wrapped.reset(), here.reset()
        for _ in range(7):
            (one, *_, infos), (other, *_, expected) = (
                each.step(np.zeros((2, 1), np.float32)) for each in (wrapped, here)
            )
            for key in other:
                assert (one[key] == other[key]).all()
            for mine, theirs in zip(infos, expected, strict=True):
                assert str(mine.get("terminal_observation")) == str(
                    theirs.get("terminal_observation")
                )
        wrapped.close()

    def test_agrees_with_the_single_wrapper(self) -> None:
        envs = [partial(ReturnToGoWrapper, Scripted(n), 10.0, discount=DISCOUNT) for n in (2, 3)]
        inside, outside = DummyVecEnv(envs), self.make()
        observations = [venv.reset()["return_to_go"] for venv in (inside, outside)]  # type: ignore[call-overload, index]
        np.testing.assert_array_equal(*observations)
        for _ in range(7):
            steps = [venv.step(np.zeros((2, 1), np.float32)) for venv in (inside, outside)]
            np.testing.assert_array_equal(*[step[0]["return_to_go"] for step in steps])  # type: ignore[call-overload, index]
            for mine, theirs in zip(steps[0][3], steps[1][3], strict=True):
                terminal = [info.get("terminal_observation") for info in (mine, theirs)]
                np.testing.assert_equal(*terminal)

    def test_lives_inside_vec_normalize(self) -> None:
        venv = VecNormalize(self.make(), norm_obs_keys=["observation"])
        venv.reset()
        observation = venv.step(np.zeros((2, 1), np.float32))[0]
        assert observation["return_to_go"] == pytest.approx(closed_form(10, 1))  # type: ignore[call-overload, index]

    @pytest.mark.parametrize("switch", [{}, {"training": False}, {"norm_reward": False}])
    def test_reads_the_own_reward_around_vec_normalize(self, switch: dict[str, Any]) -> None:
        inner = DummyVecEnv([partial(Scripted, length) for length in (2, 3)])
        normalised = VecNormalize(inner, norm_obs=False, **switch)
        venvs = [ReturnToGoVecWrapper(normalised, 10.0, discount=DISCOUNT), self.make()]
        for venv in venvs:
            venv.reset()
        for _ in range(7):
            mine, plain = (venv.step(np.zeros((2, 1), np.float32))[0] for venv in venvs)
            np.testing.assert_array_equal(mine["return_to_go"], plain["return_to_go"])  # type: ignore[call-overload, index]

    def test_refuses_rewards_normalised_within(self) -> None:
        venv = DummyVecEnv([lambda: gym.wrappers.NormalizeReward(Scripted())])
        with pytest.raises(ValueError, match="are wrapped in NormalizeReward"):
            ReturnToGoVecWrapper(venv, 1.0)

    def test_leaves_the_monitor_in_reach(self) -> None:
        venv = ReturnToGoVecWrapper(DummyVecEnv([lambda: Monitor(Scripted())]), 1.0)
        assert venv.env_is_wrapped(Monitor) == [True]

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
    def test_copies_go_their_own_way(self, clone: Any) -> None:
        venv = self.make()
        venv.reset()
        other = clone(venv)
        venv.step(np.zeros((2, 1), np.float32))
        observation = other.step(np.zeros((2, 1), np.float32))[0]
        assert observation["return_to_go"] == pytest.approx(closed_form(10, 1))
        assert other.get_attr("length") == [2, 3]

    def test_refuses_targets_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match="there are 2 environments"):
            self.make(target=[1.0, 2.0, 3.0])


def scripted(length: int = 4, goal: bool = False) -> GymWrapper:
    return GymWrapper(Scripted(length, goal))


class TestTransform:
    def transformed(self, env: Any, target: Any = 10.0, **kwargs: Any) -> TransformedEnv:
        return TransformedEnv(env, DiscountedTargetReturn(target, discount=DISCOUNT, **kwargs))

    def test_follows_the_closed_form(self) -> None:
        env = self.transformed(scripted())
        check_env_specs(env)
        rollout = env.rollout(4)
        expected = [closed_form(10, n) for n in range(5)]
        assert rollout["return_to_go"].flatten().tolist() == pytest.approx(expected[:4])
        assert rollout["next", "return_to_go"].flatten().tolist() == pytest.approx(expected[1:])

    @pytest.mark.parametrize(
        ("batched", "target"),
        [(SerialEnv, 10.0), (SerialEnv, [[10.0], [20.0]]), (ParallelEnv, torch.tensor([10, 20]))],
    )
    def test_partial_resets_restart_one_environment_only(self, batched: Any, target: Any) -> None:
        env = self.transformed(batched(2, [partial(scripted, 2), partial(scripted, 3)]), target)
        check_env_specs(env)
        rollout = env.rollout(12, break_when_any_done=False)
        targets = torch.as_tensor(target).flatten().expand(2).tolist()
        for i, length in enumerate((2, 3)):
            expected = [closed_form(targets[i], t % length) for t in range(12)]
            assert rollout["return_to_go"][i].flatten().tolist() == pytest.approx(expected)
        env.close()

    # torchrl wraps a vectorised environment in a transform of its own and announces the merge.
    @pytest.mark.filterwarnings("ignore:Nested TransformedEnvs")
    def test_gym_vector_environments(self) -> None:
        env = self.transformed(GymEnv("Pendulum-v1", num_envs=3), -100.0)
        check_env_specs(env)
        rollout = env.rollout(203, break_when_any_done=False)
        asked, reward = rollout["return_to_go"], rollout["next", "reward"]
        torch.testing.assert_close(asked[:, [0, 200]], torch.full((3, 2, 1), -100.0))
        left = (asked - reward) / DISCOUNT
        torch.testing.assert_close(asked[:, 1:200], left[:, :199])
        torch.testing.assert_close(asked[:, 201:], left[:, 200:-1])
        env.close()

    def test_range_binds_steps_but_not_the_target(self) -> None:
        env = self.transformed(scripted(), 50.0, return_to_go_range=(-1.0, 2.5))
        assert env.rollout(2)["return_to_go"].flatten().tolist() == [50.0, 2.5]

    def test_agrees_with_the_wrapper(self) -> None:
        wrapped = ReturnToGoWrapper(Scripted(), 10.0, discount=DISCOUNT)
        theirs = [wrapped.reset()[0]["return_to_go"]]
        theirs += [wrapped.step(ACTION)[0]["return_to_go"] for _ in range(3)]
        ours = self.transformed(scripted()).rollout(4)["return_to_go"]
        np.testing.assert_array_equal(ours.numpy(), np.stack(theirs))

    def test_stays_float32_on_double_rewards(self) -> None:
        env = GymWrapper(Scripted())
        env.reward_spec = env.reward_spec.to(torch.float64)
        env = self.transformed(env)
        assert env.rollout(2)["return_to_go"].dtype == torch.float32
        assert env.observation_spec["return_to_go"].dtype == torch.float32

    def test_refuses_what_cannot_be(self) -> None:
        with pytest.raises(ValueError, match="must be finite"):
            DiscountedTargetReturn(float("inf"))
        env = self.transformed(SerialEnv(2, scripted), torch.zeros(3))
        with pytest.raises(ValueError, match="batch size is \\(2,\\)"):
            env.reset()
