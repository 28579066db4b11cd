"""D4RL's interface on Gymnasium, and the environments that datasets belong to.

``make("pen-expert-v1")`` gives a Gymnasium environment with D4RL's observations, step limit and
reference scores, with ``get_dataset()`` and ``get_normalized_score()``; `qlearning_dataset` and
`sequence_dataset` give D4RL's dictionaries of transitions and of episodes. The simulators are
Gymnasium's, not D4RL's own of 2020: ``env.task.note`` says what differs.

    >>> from mage_agent import d4rl
    >>> env = d4rl.make("halfcheetah-medium-v2")
    >>> env.get_normalized_score(12135.0)
    1.0
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TransformObservation
from numpy.typing import ArrayLike, NDArray
from tensordict import TensorDictBase

from mage_agent import optional
from mage_agent.data.columns import as_flags, check_lengths
from mage_agent.data.d4rl import REQUIRED, read_hdf5
from mage_agent.data.d4rl_tasks import ALL_TASKS, MAZE2D_ID, TASKS, D4RLTask
from mage_agent.data.load import load_dataset

__all__ = [
    "ALL_TASKS",
    "TASKS",
    "D4RLEnv",
    "D4RLTask",
    "get_normalized_score",
    "make",
    "qlearning_dataset",
    "sequence_dataset",
]

Array = NDArray[Any]
Columns = dict[str, Array]

ANT_CONTACT_FORCES = 84
"""Columns at the end of D4RL's ant observation, all zero."""
gym.register(MAZE2D_ID, entry_point="mage_agent.maze2d:Maze2DEnv")


def make(task_id: str, **kwargs: Any) -> D4RLEnv:
    """Make the Gymnasium environment of a D4RL task.

    Args:
        task_id: D4RL's name, a key of `ALL_TASKS`.
        **kwargs: Further arguments of `gymnasium.make`, for instance ``render_mode``.

    Raises:
        ImportError: The simulator is not installed; the message says how to install it.
        ValueError: The task is unknown; the message lists the known ones.
    """
    task = _find(task_id)
    if task.domain == "locomotion":
        optional.require("mujoco")
    else:
        gym.register_envs(optional.require("gymnasium_robotics"))
    arguments = {
        "max_episode_steps": task.max_episode_steps,
        "disable_env_checker": True,  # FrankaKitchen does not pass it, and users cannot help it
        **task.environment_kwargs,
        **kwargs,
    }
    # Made from its spec, since gymnasium warns of ids that have a later version.
    env: gym.Env[Any, Any] = gym.make(gym.spec(task.environment_id), **arguments)
    if isinstance(env.observation_space, gym.spaces.Dict) or task_id.startswith("ant-"):
        shape = _flat(_named(env.observation_space), task, of=_zeros).shape
        env = TransformObservation(
            env,
            lambda observation: _flat(_named(observation), task),
            gym.spaces.Box(-np.inf, np.inf, shape, dtype=np.float64),
        )
    return D4RLEnv(env, task)


def _find(task_id: str) -> D4RLTask:
    """Return a task by its name.

    Raises:
        ValueError: The task is unknown; the message lists the known ones.
    """
    if task_id not in ALL_TASKS:
        close = difflib.get_close_matches(task_id, ALL_TASKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown D4RL task {task_id!r}; {hint}known are {', '.join(ALL_TASKS)}")
    return ALL_TASKS[task_id]


def get_normalized_score(task_id: str, score: float | Array) -> float | Array:
    """Return a task's score as a fraction, as D4RL's function of this name does.

    Args:
        task_id: D4RL's name.
        score: Undiscounted returns of episodes, any shape.

    Raises:
        ValueError: The task is unknown.
    """
    task = _find(task_id)
    above: float | Array = np.subtract(score, task.ref_min_score)
    return above / (task.ref_max_score - task.ref_min_score)


def _named(observation: Any) -> Mapping[str, Any]:
    """An observation, or a space of them, by name."""
    if isinstance(observation, (dict, gym.spaces.Dict)):
        return observation
    return {"observation": observation}


def _zeros(space: gym.Space[Any]) -> Array:
    return np.zeros(space.shape or ())


def _flat(
    named: Mapping[str, Any], task: D4RLTask, *, of: Callable[[Any], Array] = np.asarray
) -> Array:
    """D4RL's observation from Gymnasium's; the last axis is the observation, any others are batch.

    Args:
        named: Gymnasium's observation by name.
        task: The task it is of.
        of: Makes an array of each part of it.
    """
    main = of(named["observation"])
    if task.domain == "antmaze":  # the position, which Gymnasium keeps in the achieved goal
        return np.concatenate([of(named["achieved_goal"]), main], axis=-1)
    if task.id.startswith("ant-"):
        return np.concatenate([main, np.zeros((*main.shape[:-1], ANT_CONTACT_FORCES))], axis=-1)
    return main


class D4RLEnv(gym.Wrapper[Any, Any, Any, Any]):
    """A Gymnasium environment with the attributes that code written for D4RL uses.

    Args:
        env: The environment of the task.
        task: The task.

    Gymnasium's wrappers around it do not pass on its own attributes: ask them for
    ``env.get_wrapper_attr("get_normalized_score")``.

    Attributes:
        task: The task's row in the table, with notes on differences from D4RL.
        ref_min_score: Return of a random policy.
        ref_max_score: Return of an expert.
    """

    def __init__(self, env: gym.Env[Any, Any], task: D4RLTask) -> None:
        super().__init__(env)
        self.task = task
        self.ref_min_score = task.ref_min_score
        self.ref_max_score = task.ref_max_score

    @property
    def _max_episode_steps(self) -> int:
        """Step limit, under the name by which D4RL's users know it."""
        limit = self.spec.max_episode_steps if self.spec else None
        return limit or self.task.max_episode_steps

    def get_normalized_score(self, score: float | Array) -> float | Array:
        """Return the score as a fraction, as D4RL does: 0 is random, 1 is the expert.

        The paper's tables, and `mage_agent.evaluation`, give it times 100.

        Args:
            score: Undiscounted return of an episode.
        """
        return get_normalized_score(self.task.id, score)

    def get_dataset(self, h5path: str | os.PathLike[str] | None = None) -> Columns:
        """Return the data of the task as D4RL's columns.

        Looked for in this order: `h5path`; D4RL's file where D4RL keeps it (``$D4RL_DATASET_DIR``
        or ``~/.d4rl/datasets``); the same data on Minari, downloaded if need be; and if Minari does
        not have it, D4RL's file, downloaded to where D4RL keeps it.

        Args:
            h5path: A file of the task's data, of D4RL's format.

        Returns:
            ``observations`` (N, S), ``actions`` (N, A), ``rewards`` (N,), ``terminals`` and
            ``timeouts`` (N,) bool, float32 where not bool; and what else is in a file, such as
            ``infos/qpos``.

        Raises:
            FileNotFoundError: The data is not there and cannot be downloaded.
            ValueError: A file's observations or actions are not the environment's.
        """
        own = self.task.file
        if h5path is None and self.task.file_fits and own.is_file():
            h5path = own
        if h5path is None and self.task.minari_id is not None:
            return self._columns(load_dataset(self.task.minari_id))
        if h5path is None:
            h5path = _download(self.task.file_url, own)
        columns = read_hdf5(h5path, everything=True)
        if not self.task.file_fits or columns["observations"].shape[1:] != (
            self.observation_space.shape
        ):
            raise ValueError(
                f"the observations in {str(h5path)!r}, {columns['observations'].shape[1:]}, are "
                f"not those of the environment {self.task.environment_id}, "
                f"{self.observation_space.shape}. {self.task.note} Use get_dataset() without a "
                f"path, or load_dataset(path) to read the file all the same"
            )
        if columns["actions"].shape[1:] != self.action_space.shape:
            raise ValueError(
                f"the actions in {str(h5path)!r}, {columns['actions'].shape[1:]}, are not those of "
                f"the environment {self.task.environment_id}, {self.action_space.shape}; give a "
                f"file of {self.task.id!r}"
            )
        return columns

    def _columns(self, dataset: TensorDictBase) -> Columns:
        following = dataset["next"]
        return {
            "observations": _flat(dataset, self.task).astype(np.float32),
            "actions": dataset["action"].numpy(),
            "rewards": following["reward"].squeeze(-1).numpy(),
            "terminals": following["terminated"].squeeze(-1).numpy(),
            "timeouts": following["truncated"].squeeze(-1).numpy(),
        }


def _download(url: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))  # under a temporary name until complete
    except OSError as error:
        raise FileNotFoundError(
            f"{str(path)!r} is not there and downloading {url} failed ({error}); fetch it by other "
            f"means and put it there"
        ) from error
    return path


def qlearning_dataset(
    env: gym.Env[Any, Any],
    dataset: Mapping[str, ArrayLike] | None = None,
    terminate_on_end: bool = False,
    **kwargs: Any,
) -> Columns:
    """Return a task's data as transitions, as D4RL's function of this name does.

    The next observation is that of the next row. The last step of an episode that ran into its time
    limit has none and is left out, unless `terminate_on_end`; so is the last row of all. After a
    termination the next observation belongs to another episode, which is harmless as long as
    ``terminals`` is heeded.

    Args:
        env: As `make` returns it, or wrapped.
        dataset: Columns as ``env.get_dataset()`` returns them, which is asked for them if None.
            Without ``timeouts``, the environment's step limit is counted.
        terminate_on_end: Keep the last step of truncated episodes too; their next observation is
            the first one of another episode.
        **kwargs: Arguments of ``env.get_dataset``.

    Returns:
        ``observations``, ``actions``, ``next_observations``, ``rewards`` in float32, ``terminals``
        bool.
    """
    columns, terminals, final = _columns(env, dataset, terminate_on_end, kwargs)
    rows = np.arange(len(terminals) - 1)
    if not terminate_on_end:
        rows = rows[~final[:-1]]
    observations = columns["observations"]
    return {
        "observations": observations[rows].astype(np.float32),
        "actions": columns["actions"][rows].astype(np.float32),
        "next_observations": observations[rows + 1].astype(np.float32),
        "rewards": columns["rewards"].reshape(-1)[rows].astype(np.float32),
        "terminals": terminals[rows],
    }


def sequence_dataset(
    env: gym.Env[Any, Any], dataset: Mapping[str, ArrayLike] | None = None, **kwargs: Any
) -> Iterator[Columns]:
    """Yield a task's data episode by episode, as D4RL's function of this name does.

    Steps after the last end of an episode belong to none, and are left out.

    Args:
        env: As `make` returns it, or wrapped.
        dataset: Columns as ``env.get_dataset()`` returns them, which is asked for them if None.
            Without ``timeouts``, the environment's step limit is counted.
        **kwargs: Arguments of ``env.get_dataset``.

    Yields:
        The rows of all columns but ``metadata/...`` that belong to one episode of T steps:
        ``observations`` (T, S), ``actions`` (T, A), ``rewards`` (T,), ``terminals`` (T,), ...
    """
    columns, terminals, final = _columns(env, dataset, True, kwargs)
    ends = np.flatnonzero(terminals | final) + 1
    for start, end in zip([0, *ends], ends, strict=False):
        yield {key: column[start:end] for key, column in columns.items()}


def _columns(
    env: gym.Env[Any, Any],
    dataset: Mapping[str, ArrayLike] | None,
    terminate_on_end: bool,
    arguments: Mapping[str, Any],
) -> tuple[Columns, Array, Array]:
    """The columns that hold a row for every step, and of these, (N,) bool each, which terminate.

    The last are the rows that run into the time limit.

    Raises:
        KeyError: A column is missing.
        TypeError: The environment is none of `make`, nor a wrapper of one.
    """
    inner: Any = env
    while not isinstance(inner, D4RLEnv):
        if not isinstance(inner, gym.Wrapper):
            raise TypeError(f"env is {env!r}; it must be what d4rl.make returns, or wraps it.")
        inner = inner.env
    given = inner.get_dataset(**arguments) if dataset is None else dataset
    if missing := [name for name in REQUIRED if name not in given]:
        raise KeyError(f"the dataset lacks the columns {missing}; it has {sorted(given)}")
    columns = {
        name: np.asarray(column)
        for name, column in given.items()
        if not name.startswith("metadata")
    }
    check_lengths(columns)
    terminals = as_flags(columns["terminals"], "terminals").reshape(-1)
    if "timeouts" in columns:
        return columns, terminals, as_flags(columns["timeouts"], "timeouts").reshape(-1)
    limit = inner._max_episode_steps
    return columns, terminals, _count_timeouts(terminals, limit, terminate_on_end)


def _count_timeouts(terminals: Array, limit: int, terminate_on_end: bool) -> Array:
    """Count to the step limit as D4RL does, which after a kept last step begins at 1."""
    final = np.zeros(len(terminals), dtype=bool)
    step = 0
    for row, terminal in enumerate(terminals.tolist()):
        final[row] = step == limit - 1
        if final[row] and not terminate_on_end:
            step = 0
        else:
            step = 1 if terminal or final[row] else step + 1
    return final
