"""Evaluation of anything that acts, by one protocol, so that methods can be compared.

Episode i is reset with ``seed + i``, once, and every episode that was started is counted, so that
no method profits from short or lucky episodes and all methods meet the same initial states. Several
episodes run side by side in one process, since one batched decision costs far less than many single
ones; how many do so does not change what an episode meets.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from torch import nn
from tqdm import tqdm

from mage_agent.bounds import clip_actions
from mage_agent.rewards import check_own_rewards, single_reward, single_target, with_return_to_go
from mage_agent.types import PredictingPolicy

__all__ = [
    "EpisodeResult",
    "ReturnConditionedPolicy",
    "evaluate",
    "is_told_return",
    "new_env",
    "normalized_score",
]

Observation: TypeAlias = NDArray[Any] | dict[str, Any]
ActionFunction: TypeAlias = Callable[[Any], NDArray[Any]]


@runtime_checkable
class ReturnConditionedPolicy(PredictingPolicy, Protocol):
    """A policy that is told how much return to achieve, in ``observation["return_to_go"]``."""

    @property
    def target_return(self) -> float:
        """Return to ask for at the start of an episode."""
        ...

    def update_return_to_go(
        self, return_to_go: NDArray[np.float32], reward: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return to ask for after a reward, both of shape (num_envs, 1)."""
        ...


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What one evaluation episode came to.

    Attributes:
        episode: number of the episode, from 0.
        seed: seed its environment was reset with.
        episode_return: undiscounted sum of its rewards, in the environment's units.
        length: its number of steps.
        success: whether the environment reported ``success`` (or ``is_success``) at any step; None
            if it never reports either.
    """

    episode: int
    seed: int
    episode_return: float
    length: int
    success: bool | None


def evaluate(
    policy: PredictingPolicy | ActionFunction,
    make_env: Callable[[], gym.Env[Any, Any]],
    *,
    episodes: int,
    seed: int = 0,
    num_envs: int = 16,
    target_return: float | None = None,
    deterministic: bool = True,
    max_episode_steps: int = 100_000,
    progress_bar: bool = True,
) -> list[EpisodeResult]:
    """Run a policy for a number of episodes.

    A policy with ``target_return`` and ``update_return_to_go`` (such as ``MAGEPolicy``) finds the
    return-to-go in its observations, as if the environments were wrapped in ``ReturnToGoWrapper``:
    a Box observation becomes ``{"observation": ..., "return_to_go": ...}``, a Dict gains a key.
    Other policies see the environment's observations, and so does every policy where the
    environment supplies ``return_to_go`` itself.

    The results do not depend on ``num_envs``, up to the rounding of a policy that computes a batch
    differently from single rows, and up to the draws of a stochastic policy. A policy with
    ``set_random_seed`` is given ``seed``, so that equal calls have equal results.

    Args:
        policy: an object with ``predict``, as Stable-Baselines3 has it, or a function that maps a
            batch of observations to a batch of actions.
        make_env: function that makes one environment; it is called ``num_envs`` times.
        episodes: number of episodes.
        seed: episode i is reset with ``seed + i``.
        num_envs: episodes to run side by side, at most.
        target_return: return to ask for; None is the policy's own ``target_return``.
        deterministic: whether the policy takes its best action instead of a sample.
        max_episode_steps: an episode that goes on for longer is an error, since an environment
            without a time limit would be waited for in vain.
        progress_bar: show progress if it takes more than two seconds.

    Returns:
        One result per episode, in order.

    Raises:
        TypeError: ``policy`` cannot act, or ``make_env`` is no function that makes an environment.
        ValueError: ``make_env`` makes the same environment again, one with normalised rewards, or
            one that the policy's own ``check_env`` refuses; a number is out of its range, an
            observation, a reward or an action is not finite, the observations change their shape,
            there is not one reward per step, an action does not fit the action space, or an episode
            does not end.

    Examples:
        >>> rest = lambda observation: np.zeros((len(observation), 1))
        >>> results = evaluate(rest, lambda: gym.make("Pendulum-v1"), episodes=3)
        >>> [result.length for result in results]
        [200, 200, 200]
    """
    if episodes < 1 or num_envs < 1:
        raise ValueError(
            f"episodes is {episodes} and num_envs is {num_envs}; both must be at least 1."
        )
    predict = _as_predict(policy)
    runners: list[_Runner] = []
    try:
        for _ in range(min(num_envs, episodes)):
            runner = _Runner(make_env, seed, max_episode_steps)
            _check_separate(runner.env, runners)
            runners.append(runner)
        if hasattr(policy, "check_env"):
            policy.check_env(runners[0].env, target_return)
        tracker = _ReturnTracker(policy, target_return, runners)
        if not deterministic and hasattr(policy, "set_random_seed"):
            policy.set_random_seed(seed)
        queue = iter(range(episodes))
        for runner in runners:
            runner.start(next(queue))
        started = np.ones(len(runners), dtype=bool)
        state: tuple[NDArray[Any], ...] | None = None
        results: list[EpisodeResult] = []
        with tqdm(
            total=episodes, desc="evaluate", unit="episode", delay=2.0, disable=not progress_bar
        ) as bar:
            while len(results) < episodes:
                observation = tracker.extended(_stack([one.observation for one in runners]))
                actions, state = predict(observation, state, started, deterministic)
                actions = runners[0].checked(actions, len(runners))
                rewards = np.zeros((len(runners), 1), dtype=np.float32)
                # An environment without work stays at its last observation, so that the batch
                # keeps its size; what the policy decides there is not executed.
                started = np.zeros(len(runners), dtype=bool)
                for i in np.flatnonzero([not runner.idle for runner in runners]):
                    rewards[i], finished = runners[i].step(actions[i])
                    if finished is not None:
                        results.append(finished)
                        bar.update()
                        runners[i].start(next(queue, None))
                        started[i] = not runners[i].idle
                tracker.update(rewards, started)
        return sorted(results, key=lambda result: result.episode)
    finally:
        for runner in runners:
            runner.env.close()


def is_told_return(policy: Any) -> bool:
    """Whether a policy acts on a return-to-go: it tracks one, and does not say otherwise."""
    return isinstance(policy, ReturnConditionedPolicy) and getattr(policy, "told_return", True)


def normalized_score(
    returns: ArrayLike, ref_min_score: float, ref_max_score: float
) -> NDArray[np.float64]:
    """D4RL's normalised score, 0 for a random policy and 100 for an expert.

    Args:
        returns: undiscounted episode returns, any shape.
        ref_min_score: return of the random policy; in the dataset's metadata.
        ref_max_score: return of the expert; in the dataset's metadata.

    Returns:
        ``100 (return - ref_min_score) / (ref_max_score - ref_min_score)``, same shape.

    Raises:
        ValueError: the references are not in increasing order.
    """
    if not ref_min_score < ref_max_score:
        raise ValueError(
            f"ref_min_score {ref_min_score} must be smaller than ref_max_score {ref_max_score}."
        )
    shifted: NDArray[np.float64] = np.asarray(returns, dtype=np.float64) - ref_min_score
    return 100 * shifted / (ref_max_score - ref_min_score)


class _ReturnTracker:
    """The returns-to-go of all environments, if the policy is conditioned on them."""

    def __init__(self, policy: Any, target: float | None, runners: Sequence[_Runner]) -> None:
        space = runners[0].env.observation_space
        told = isinstance(space, spaces.Dict) and "return_to_go" in space.spaces
        self.policy = policy if is_told_return(policy) and not told else None
        if self.policy is None:
            if target is not None:
                reason = (
                    "the environment already supplies return_to_go"
                    if told
                    else f"{type(policy).__name__} does not act on a return that is asked for"
                )
                raise ValueError(
                    f"target_return is {target}, but {reason}, so that nothing would come of it; "
                    "leave it out."
                )
            return
        asked = self.policy.target_return if target is None else single_target(target)
        self.target = np.float32(asked)
        self.left = np.full((len(runners), 1), self.target, dtype=np.float32)

    def extended(self, observation: Observation) -> Observation:
        """Add what is left of the returns to the observations."""
        if self.policy is None:
            return observation
        return with_return_to_go(observation, self.left)

    def update(self, rewards: NDArray[np.float32], started: NDArray[np.bool_]) -> None:
        """Subtract the rewards (num_envs, 1), and start anew where an episode started."""
        if self.policy is not None:
            left = self.policy.update_return_to_go(self.left, rewards)
            self.left = np.where(started[:, None], self.target, left)


class _Runner:
    """One environment, and the episode it is in."""

    def __init__(self, make_env: Callable[[], gym.Env[Any, Any]], seed: int, limit: int) -> None:
        env = new_env(make_env)
        check_own_rewards(env)
        self.env = env
        self.first_seed = operator.index(seed)
        self.limit = limit
        self.episode: int | None = None

    @property
    def idle(self) -> bool:
        """Whether there was no episode left to start."""
        return self.episode is None

    def start(self, episode: int | None) -> None:
        """Start an episode, or rest."""
        self.episode = episode
        if episode is None:
            return
        self.total, self.length = 0.0, 0
        self.success: bool | None = None
        observation, _ = self.env.reset(seed=self.first_seed + episode)
        self.observation: Observation = self._finite(observation, "observation")

    def step(self, action: NDArray[Any]) -> tuple[float, EpisodeResult | None]:
        """Step; return the reward, and the result if the episode ended."""
        assert self.episode is not None
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.length += 1
        reward = single_reward(reward, f", in {self._where()}")
        before, after = _shapes(self.observation), _shapes(observation)
        if before != after:
            raise ValueError(
                f"the environment's observation changed from the shape {before} to {after} in "
                f"episode {self.episode} at step {self.length}; it must keep its observation space."
            )
        self.observation = self._finite(observation, "observation")
        self.total += reward
        success = info.get("success", info.get("is_success"))
        if success is not None:
            self.success = bool(self.success) or self._flag(success, "success in the info")
        if not (self._flag(terminated, "terminated") | self._flag(truncated, "truncated")):
            if self.length >= self.limit:
                raise ValueError(
                    f"episode {self.episode} has not ended after {self.length} steps; limit the "
                    "environment with gymnasium.wrappers.TimeLimit, or raise max_episode_steps."
                )
            return reward, None
        return reward, EpisodeResult(
            episode=self.episode,
            seed=self.first_seed + self.episode,
            episode_return=self.total,
            length=self.length,
            success=self.success,
        )

    def checked(self, actions: NDArray[Any], num_envs: int) -> NDArray[Any]:
        """Return the actions of all environments, inside the bounds of the action space."""
        space = self.env.action_space
        actions = np.asarray(actions)
        if actions.shape != (num_envs, *(space.shape or ())):
            raise ValueError(
                f"the policy returned actions of shape {actions.shape} for {num_envs} observations,"
                f" but the environment's action space is {space}; the policy seems to have been "
                "made for another environment."
            )
        if not np.isfinite(actions).all():
            raise ValueError(f"the policy returned an action that is not finite: {actions}.")
        return clip_actions(actions, space)

    def _flag(self, value: Any, name: str) -> bool:
        """Read a truth value; NaN or a word would count as true."""
        try:
            flag = np.asarray(value).item()
        except ValueError:
            flag = None
        if flag not in (0, 1):
            raise ValueError(
                f"the environment returned {name} as {value!r} in {self._where()}; True or False "
                "is needed."
            )
        return bool(flag)

    def _where(self) -> str:
        return f"episode {self.episode} at step {self.length}"

    def _finite(self, value: Any, name: str) -> Any:
        if isinstance(value, dict):
            for part in value.values():
                self._finite(part, name)
        elif not np.isfinite(value).all():
            raise ValueError(
                f"the environment returned the {name} {value}, which is not finite, in "
                f"{self._where()}; a simulation that diverges cannot be scored."
            )
        return value


def new_env(make_env: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """What a user's function makes.

    Raises:
        TypeError: it is no function, or makes something else.
    """
    env: Any = make_env() if callable(make_env) else None
    if not isinstance(env, gym.Env):
        what = f"makes {env!r}" if callable(make_env) else f"is {make_env!r}"
        raise TypeError(
            f"make_env {what}; it must be a function that makes a new gymnasium.Env, such as "
            'lambda: gymnasium.make("Pendulum-v1").'
        )
    return env


def _check_separate(env: gym.Env[Any, Any], runners: Sequence[_Runner]) -> None:
    """Refuse to run episodes side by side in one environment; wrappers may differ."""
    if any(env.unwrapped is other.env.unwrapped for other in runners):
        raise ValueError(
            f"make_env returned the same environment {env} again, so that episodes would "
            'interrupt each other; make a new one in each call: lambda: gymnasium.make("..."), or '
            "pass num_envs=1."
        )


def _as_predict(policy: Any) -> Callable[..., tuple[NDArray[Any], Any]]:
    """Return the policy's ``predict``, or one around a plain function."""
    if isinstance(policy, PredictingPolicy):
        return policy.predict
    if not callable(policy) or isinstance(policy, nn.Module):
        raise TypeError(
            f"policy is a {type(policy).__name__}; it must have predict(observation, state, "
            "episode_start, deterministic), as policies have it and agents do not, or be a "
            "function from observations to actions, such as lambda observation: ..."
        )
    return lambda observation, *_: (policy(observation), None)


def _stack(observations: Sequence[Any]) -> Observation:
    """Stack the observations of all environments along a new first axis."""
    first = observations[0]
    shapes = [_shapes(one) for one in observations]
    if shapes.count(shapes[0]) < len(shapes):
        other = next(shape for shape in shapes if shape != shapes[0])
        raise ValueError(
            f"the environments returned observations of the shapes {shapes[0]} and {other}; all of "
            "an evaluation must have one observation space, and keep it."
        )
    if isinstance(first, dict):
        return {key: _stack([one[key] for one in observations]) for key in first}
    return np.stack(observations)


def _shapes(observation: Any) -> Any:
    """The shape of an observation, or of each of its entries."""
    if isinstance(observation, dict):
        return {key: _shapes(part) for key, part in observation.items()}
    return np.shape(observation)
