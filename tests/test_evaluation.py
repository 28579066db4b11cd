"""Evaluation against results computed by hand on a scripted environment."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from mage_agent.envs import ReturnToGoWrapper
from mage_agent.evaluation import EpisodeResult, evaluate, normalized_score
from mage_agent.types import next_return_to_go
from tests.acting import Reach


class Lottery(gym.Env[Any, NDArray[np.float32]]):
    """The seed draws a length from 1 to 6 and a wage; every step pays wage + action."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space: Any = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, log: list[Any] | None = None) -> None:
        self.log = [] if log is None else log

    def observe(self) -> Any:
        return np.array([self.wage, self.t])

    def info(self) -> dict[str, Any]:
        return {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.log.append(seed)
        self.length = int(self.np_random.integers(1, 7))
        self.wage = self.np_random.normal()
        self.t = 0
        return self.observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        reward = self.wage + float(action[0])
        return self.observe(), reward, self.t == self.length, False, self.info()

    def close(self) -> None:
        self.log.append("closed")


class GoalLottery(Lottery):
    observation_space = spaces.Dict(
        {name: spaces.Box(-np.inf, np.inf, (1,)) for name in ("observation", "desired_goal")}
    )

    def observe(self) -> Any:
        return {"observation": np.array([self.t]), "desired_goal": np.array([self.wage])}

    def info(self) -> dict[str, Any]:
        return {"success": self.t == 3}  # and lost again later


class NestedLottery(GoalLottery):
    """As FrankaKitchen, whose goals are dictionaries."""

    observation_space = spaces.Dict(
        {
            "observation": spaces.Box(-np.inf, np.inf, (1,)),
            "desired_goal": spaces.Dict({"kettle": spaces.Box(-np.inf, np.inf, (1,))}),
        }
    )

    def observe(self) -> Any:
        flat = super().observe()
        return {**flat, "desired_goal": {"kettle": flat["desired_goal"]}}


class Broken(Lottery):
    def __init__(self, where: str, log: list[Any]) -> None:
        super().__init__(log)
        self.where = where

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        if self.where == "reward":
            reward = np.nan
        else:
            observation[1] = np.inf
        return observation, reward, *rest  # type: ignore[return-value]


def half(observation: Any) -> NDArray[np.float64]:
    """A policy as a plain function."""
    return np.full((len(observation), 1), 0.5)


def by_hand(episodes: int, seed: int) -> list[EpisodeResult]:
    """What ``half`` earns in the lottery."""
    results = []
    for i in range(episodes):
        random = gym.utils.seeding.np_random(seed + i)[0]
        length, wage = int(random.integers(1, 7)), random.normal()
        total = sum(wage + 0.5 for _ in range(length))
        results.append(
            EpisodeResult(
                episode=i, seed=seed + i, episode_return=total, length=length, success=None
            )
        )
    return results


@pytest.mark.parametrize("num_envs", [1, 2, 3, 7, 40])
def test_results_are_those_by_hand_whatever_num_envs(num_envs: int) -> None:
    log: list[Any] = []
    results = evaluate(half, partial(Lottery, log), episodes=20, seed=5, num_envs=num_envs)
    assert results == by_hand(20, 5)
    assert len({result.length for result in results}) > 3  # so that the quota has been tested
    seeds = [entry for entry in log if entry != "closed"]
    assert sorted(seeds) == list(range(5, 25))  # every episode starts, once
    assert log.count("closed") == min(num_envs, 20)


class Recurrent:
    """Acts on its number of decisions in the episode, which it keeps in its state."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = 0
    ) -> Any:
        count = np.zeros(len(observation)) if state is None else state[0]
        count = np.where(episode_start, 0, count)
        assert deterministic is True
        return count[:, None] / 10, (count + 1,)


def test_state_is_passed_on_and_reset_with_the_episode() -> None:
    results = evaluate(Recurrent(), Lottery, episodes=9, num_envs=4)
    for result in results:
        random = gym.utils.seeding.np_random(result.seed)[0]
        length, wage = int(random.integers(1, 7)), random.normal()
        assert result.episode_return == pytest.approx(
            length * wage + sum(range(length)) / 10, abs=1e-6
        )


class Conditioned:
    """Acts on what is left of the return."""

    target_return = 4.0
    discount, low, high = 0.9, -3.0, 5.0

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def update_return_to_go(self, return_to_go: Any, reward: Any) -> Any:
        return next_return_to_go(
            return_to_go, reward, discount=self.discount, low=self.low, high=self.high
        )

    def predict(self, observation: Any, *_: Any) -> Any:
        assert observation["return_to_go"].dtype == np.float32
        self.seen.append(observation["return_to_go"].copy())
        return np.tanh(observation["return_to_go"]), None


def test_nested_entries_reach_the_policy() -> None:
    seen: list[Any] = []

    def act(observation: Any) -> Any:
        seen.append(observation["desired_goal"]["kettle"].shape)
        return np.zeros((len(observation["observation"]), 1))

    assert len(evaluate(act, NestedLottery, episodes=3, num_envs=2)) == 3
    assert set(seen) == {(2, 1)}


@pytest.mark.parametrize("env", [Lottery, GoalLottery])
@pytest.mark.parametrize("target", [None, 2.0])
def test_account_equals_the_wrappers(env: Any, target: float | None) -> None:
    """Whether the evaluation or a wrapper keeps the account must make no difference."""
    policy = Conditioned()

    def wrapped() -> Any:
        asked = policy.target_return if target is None else target
        return ReturnToGoWrapper(env(), asked, discount=0.9, return_to_go_range=(-3.0, 5.0))

    ours = evaluate(policy, env, episodes=12, num_envs=5, target_return=target)
    theirs = evaluate(policy, wrapped, episodes=12, num_envs=3)
    assert ours == theirs
    assert policy.seen[0] == pytest.approx(np.full((5, 1), target or 4.0))


def test_success_is_whether_it_was_ever_reported() -> None:
    results = evaluate(
        lambda observation: np.zeros((len(observation["observation"]), 1)),
        GoalLottery,
        episodes=12,
    )
    assert [result.success for result in results] == [result.length >= 3 for result in results]


def test_actions_are_clipped_to_the_action_space() -> None:
    def clipped(observation: Any) -> Any:
        return np.full((len(observation), 1), 9.0)

    result = evaluate(clipped, Lottery, episodes=1)[0]
    wage = by_hand(1, 0)[0].episode_return / result.length - 0.5
    assert result.episode_return == pytest.approx(result.length * (wage + 1))


@pytest.mark.parametrize("where", ["reward", "observation"])
def test_a_diverged_simulation_is_an_error_and_closes_everything(where: str) -> None:
    log: list[Any] = []
    with pytest.raises(ValueError, match=f"returned the {where} .* in episode 0 at step 1"):
        evaluate(half, partial(Broken, where, log), episodes=3)
    assert log.count("closed") == 3


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda observation: np.zeros((len(observation), 2)), r"actions of shape \(1, 2\)"),
        (lambda observation: np.zeros(1), r"actions of shape \(1,\)"),
        (lambda observation: np.full((1, 1), np.nan), "not finite"),
    ],
)
def test_actions_that_do_not_fit(policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(policy, Lottery, episodes=1)


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="episodes is 0"):
        evaluate(half, Lottery, episodes=0)
    with pytest.raises(TypeError, match="it must have predict"):
        evaluate("half", Lottery, episodes=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="make_env"):
        evaluate(half, Lottery(), episodes=1)  # type: ignore[arg-type]
    for target, error in ((float("nan"), ValueError), ("3", TypeError), ([1.0, 2.0], TypeError)):
        with pytest.raises(error, match=r"target_return is .*; it must be"):
            evaluate(Conditioned(), Lottery, episodes=1, target_return=target)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="function does not act on a return"):
        evaluate(half, Lottery, episodes=1, target_return=3.0)
    with pytest.raises(ValueError, match="already supplies return_to_go"):
        evaluate(
            Conditioned(), lambda: ReturnToGoWrapper(Lottery(), 1.0), episodes=1, target_return=3.0
        )


def test_normalized_score() -> None:
    assert normalized_score(30.0, 10.0, 50.0) == 50
    np.testing.assert_array_equal(normalized_score([10, 50, 90], 10, 50), [0, 100, 200])
    with pytest.raises(ValueError, match="must be smaller"):
        normalized_score(1.0, 5.0, 5.0)


class TestSharedEnvironments:
    """Episodes side by side need environments of their own."""

    @pytest.mark.parametrize("wrap", [lambda env: env, gym.wrappers.OrderEnforcing])
    def test_the_same_one_again(self, wrap: Any) -> None:
        log: list[Any] = []
        env = Lottery(log)
        with pytest.raises(ValueError, match=r"returned the same environment .* again"):
            evaluate(half, lambda: wrap(env), episodes=3, num_envs=2)
        assert log == ["closed"]  # and nothing was run

    def test_one_at_a_time(self) -> None:
        env = Lottery()
        assert evaluate(half, lambda: env, episodes=4, seed=5, num_envs=1) == by_hand(4, 5)
        seed: Any = np.int64(5)
        assert evaluate(half, lambda: env, episodes=4, seed=seed, num_envs=1) == by_hand(4, 5)


class Odd(Lottery):
    """Returns something odd with every step."""

    def __init__(self, **odd: Any) -> None:
        super().__init__()
        self.odd = odd

    def step(self, action: NDArray[np.float32]) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        step = {"reward": reward, "terminated": terminated, "truncated": truncated, "info": info}
        step |= {key: make(step[key]) for key, make in self.odd.items()}
        return observation, *step.values()


class TestWhatStepsReturn:
    @pytest.mark.parametrize("form", [np.float32, lambda x: np.array([x]), lambda x: np.array(x)])
    def test_arrays_of_one(self, form: Any) -> None:
        make = partial(Odd, reward=form, terminated=lambda x: np.array([x]), truncated=np.float64)
        for result, expected in zip(evaluate(half, make, episodes=3), by_hand(3, 0), strict=True):
            assert result.episode_return == pytest.approx(expected.episode_return, rel=1e-6)
            assert result.length == expected.length

    def test_several_rewards(self) -> None:
        with pytest.raises(ValueError, match=r"reward array\(.*in episode 0 at step 1; .* one num"):
            evaluate(half, partial(Odd, reward=lambda x: np.array([x, x])), episodes=1)

    @pytest.mark.parametrize("value", [np.nan, "False", -1, None, np.zeros(2)])
    @pytest.mark.parametrize("name", ["terminated", "truncated", "info"])
    def test_flags_that_are_none(self, name: str, value: Any) -> None:
        if name == "info":
            if value is None:
                pytest.skip("which means that success is not known")
            odd, words = {"info": lambda _: {"success": value}}, "success in the info"
        else:
            odd, words = {name: lambda _: value}, name
        with pytest.raises(
            ValueError, match=f"returned {words} as .* in episode 0 at step 1; True"
        ):
            evaluate(half, partial(Odd, **odd), episodes=1)

    def test_normalised_rewards(self) -> None:
        def make() -> Any:
            return gym.wrappers.TimeLimit(gym.wrappers.NormalizeReward(Lottery()), 5)

        with pytest.raises(ValueError, match="is wrapped in NormalizeReward"):
            evaluate(half, make, episodes=1)


class TestMemory:
    def test_an_environment_that_is_done_begins_no_more_episodes(self) -> None:
        """A policy that plans where an episode begins would plan in vain at every step."""
        starts: list[list[bool]] = []

        class Watcher:
            def predict(
                self, observation: Any, state: Any, episode_start: Any, deterministic: bool
            ) -> Any:
                starts.append(episode_start.tolist())
                return np.zeros((2, 2), np.float32), None

        lengths = iter((2, 5))
        results = evaluate(
            Watcher(), lambda: Reach(next(lengths)), episodes=3, num_envs=2, progress_bar=False
        )
        assert [result.length for result in results] == [2, 5, 2]
        assert starts == [
            [True, True],
            [False, False],
            [True, False],
            [False, False],
            [False, False],
        ]
