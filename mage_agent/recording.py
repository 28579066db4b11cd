"""Datasets from experience: run a policy in an environment and keep what happened, for Minari."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs
from minari.data_collector import EpisodeBuffer
from minari.storage.datasets_root_dir import get_dataset_path

from mage_agent.data.storage import free_place, minari_root, save_minari
from mage_agent.evaluation import EpisodeResult, evaluate, new_env
from mage_agent.rewards import single_reward
from mage_agent.types import PredictingPolicy

__all__ = ["Recorder", "free_place", "minari_root", "record", "save_minari"]


_OWN = {"dataset_id", "buffer", "env", "eval_env", "observation_space", "action_space"}
"""What `record` itself tells Minari."""


def record(
    policy: PredictingPolicy | Callable[[Any], Any],
    make_env: Callable[[], gym.Env[Any, Any]],
    dataset_id: str,
    *,
    episodes: int,
    seed: int = 0,
    num_envs: int = 16,
    target_return: float | None = None,
    deterministic: bool = False,
    root: str | Path | None = None,
    progress_bar: bool = True,
    **facts: Any,
) -> list[EpisodeResult]:
    """Run a policy and save its episodes as a Minari dataset, all or nothing.

    The episodes are those that `mage_agent.evaluation.evaluate` would run with the same arguments.

    Args:
        policy: an object with ``predict``, as Stable-Baselines3 has it, or a function that maps a
            batch of observations to a batch of actions.
        make_env: function that makes one environment, with continuous actions. The dataset can make
            it again if it comes from ``gymnasium.make`` by its name and by arguments that JSON can
            hold.
        dataset_id: Minari id to save under, such as ``"local/pendulum/random-v0"``.
        episodes: number of episodes.
        seed: episode i is reset with ``seed + i``.
        num_envs: episodes to run side by side, at most.
        target_return: return to ask for; None is the policy's own, if it has one.
        deterministic: whether the policy takes its best action instead of a sample.
        root: folder that holds Minari datasets; None is the one that Minari reads.
        progress_bar: show progress if it takes more than two seconds.
        **facts: what else the dataset shall say about itself, as
            ``minari.create_dataset_from_buffers`` takes it: ``ref_min_score`` and
            ``ref_max_score``, ``description``, ``author``.

    Returns:
        What each episode came to, in order.

    Raises:
        FileExistsError: the dataset is there already; nothing is run.
        OSError: the dataset could not be saved; nothing is run.
        TypeError: the policy cannot act, or the actions are not continuous.
        ValueError: see `mage_agent.evaluation.evaluate`; or the id is none, or the environment
            supplies return_to_go.

    Examples:
        >>> brake = lambda observation: -observation[:, 2:]
        >>> make_env = lambda: gym.make("Pendulum-v1")
        >>> results = record(brake, make_env, "local/pendulum/brake-v0", episodes=2)
        >>> dataset = load_dataset("local/pendulum/brake-v0")
    """
    taken = set(inspect.signature(minari.create_dataset_from_buffers).parameters) - _OWN
    if unknown := facts.keys() - taken:
        raise TypeError(
            f"record takes no {sorted(unknown)}; beside its own arguments, it takes what "
            "minari.create_dataset_from_buffers does."
        )
    folder = Path(get_dataset_path() if root is None else root)
    free_place(folder, dataset_id)  # before the work, not after it
    recorded: list[EpisodeBuffer] = []
    recorders: list[Recorder] = []

    def make_recorder() -> gym.Env[Any, Any]:
        recorders.append(Recorder(_recordable(new_env(make_env)), recorded))
        return recorders[-1]

    results = evaluate(
        policy,
        make_recorder,
        episodes=episodes,
        seed=seed,
        num_envs=num_envs,
        target_return=target_return,
        deterministic=deterministic,
        progress_bar=progress_bar,
    )
    recorded.sort(key=lambda episode: episode.seed or 0)
    numbered = [dataclasses.replace(episode, id=i) for i, episode in enumerate(recorded)]
    env = recorders[0].env
    defaults = {
        "algorithm_name": type(policy).__name__,
        "author": "not given",
        "author_email": "not given",
        "code_permalink": "not given",
        "description": f"{episodes} episodes of {type(policy).__name__}, seeds from {seed}",
    }
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    spec = _storable(env.spec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*env.* is (set to )?None")  # there is none to give
        save_minari(
            folder, dataset_id, numbered, env=spec, eval_env=spec, **spaces, **{**defaults, **facts}
        )
    return results


def _storable(spec: EnvSpec | None) -> EnvSpec | None:
    """Return the specification if it can be written down, which one that holds code cannot."""
    try:
        return spec if spec is not None and spec.to_json() else None
    except (TypeError, ValueError):
        return None


def _recordable(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment, if a dataset of it can be learned from."""
    actions = env.action_space
    if not (
        isinstance(actions, gym.spaces.Box)
        and _are_vectors(actions)
        and np.issubdtype(actions.dtype, np.floating)
    ):
        raise TypeError(
            f"the environment's action space is {actions}; only continuous actions (a "
            "gymnasium.spaces.Box of one axis, of floating-point numbers) can be learned from."
        )
    space = env.observation_space
    if not _are_vectors(space):
        raise TypeError(
            f"the environment's observation space is {space}; only a Box of one axis, or a "
            "Dict of such, can be learned from (gymnasium.wrappers.FlattenObservation helps)."
        )
    named = space.spaces if isinstance(space, gym.spaces.Dict) else {}
    if slashed := [key for key in named if "/" in key]:
        raise ValueError(
            f"the observation entries {slashed} have a '/' in their names, which the files of a "
            "Minari dataset take for folders; rename them, for instance with "
            "gymnasium.wrappers.TransformObservation."
        )
    if "return_to_go" in named:
        raise ValueError(
            "the environment supplies return_to_go, which is no observation of its own; record "
            "the environment without that wrapper: the policy is told what is left even so."
        )
    return env


class Recorder(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Keeps every finished episode of an environment.

    Args:
        env: the environment.
        recorded: list that the episodes are added to.
    """

    def __init__(self, env: gym.Env[Any, Any], recorded: list[EpisodeBuffer]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.recorded = recorded

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.seed = seed
        self.observations = [copy.deepcopy(observation)]  # some environments reuse theirs
        self.steps: list[tuple[Any, float, bool, bool]] = []
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Go on with it, and keep it where it ends."""
        done = copy.deepcopy(action)  # some environments write to it
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.observations.append(copy.deepcopy(observation))
        ends = bool(np.all(terminated)), bool(np.all(truncated))  # evaluate refuses what is odd
        self.steps.append((done, single_reward(reward), *ends))
        if any(ends):
            actions, rewards, terminations, truncations = zip(*self.steps, strict=True)
            self.recorded.append(
                EpisodeBuffer(
                    seed=self.seed,
                    observations=_columns(self.observations),
                    actions=list(actions),
                    rewards=list(rewards),
                    terminations=list(terminations),
                    truncations=list(truncations),
                )
            )
        return observation, reward, terminated, truncated, info


def _are_vectors(space: gym.Space[Any]) -> bool:
    """Whether it is a Box of one axis, or a Dict of such, nested ones too."""
    if isinstance(space, gym.spaces.Dict):
        return all(_are_vectors(part) for part in space.values())
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 1


def _columns(observations: list[Any]) -> Any:
    """Turn a list of dictionaries, nested ones too, into dictionaries of lists."""
    first = observations[0]
    if not isinstance(first, dict):
        return observations
    return {key: _columns([one[key] for one in observations]) for key in first}
