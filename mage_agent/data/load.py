"""`load_dataset`: whatever the user has -> one TED TensorDict, checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import minari
from numpy.typing import ArrayLike
from tensordict import TensorDict, TensorDictBase

from mage_agent.data.arrays import from_arrays, from_tensordict
from mage_agent.data.checks import check_dataset
from mage_agent.data.d4rl import read_d4rl
from mage_agent.data.minari import open_minari, read_minari
from mage_agent.data.ted import Bounds

HDF5_SUFFIXES = {".hdf5", ".h5"}


def load_dataset(
    source: str | os.PathLike[str] | minari.MinariDataset | TensorDictBase,
    *,
    discount: float = 0.99,
    download: bool = True,
    max_episode_steps: int | None = None,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Load an offline dataset and make sure that it can be trained on.

    Args:
        source: A Minari id such as ``"D4RL/pen/human-v2"``, a `minari.MinariDataset`, the path of a
            D4RL ``.hdf5`` file, or a TensorDict in TED format (from a rollout or collector; it is
            copied and completed, see `mage_agent.data.arrays.from_tensordict`).
        discount: Discount factor per step of ``return_to_go``, in (0, 1].
        download: Whether Minari may fetch a dataset that is not on this machine.
        max_episode_steps: For D4RL files without ``timeouts``: the environment's step limit.
        action_low: Lower bound of the actions, a number or one per dimension. By default that of
            the dataset's action space, -1 (as in all of D4RL) where it has none.
        action_high: Upper bound likewise, 1 by default.

    Returns:
        One TensorDict of shape (N,), all episodes in a row, on the CPU; see `mage_agent.data.ted`
        for its keys and `mage_agent.data.metadata` for what else is known about it.

    Raises:
        FileNotFoundError: The dataset or file is not there and could not be fetched.
        KeyError: A TensorDict lacks a key.
        TypeError: The source is none of the above, or its actions are discrete.
        ValueError: A file is truncated or foreign, or the data is unfit, see `check_dataset`.

    Examples:
        >>> dataset = load_dataset("D4RL/pen/human-v2")  # doctest: +SKIP
        >>> dataset["observation"].shape  # doctest: +SKIP
        torch.Size([5000, 45])
    """
    _check_discount(discount)
    bounds: dict[str, Bounds] = {"action_low": action_low, "action_high": action_high}
    if isinstance(source, TensorDictBase):
        dataset = from_tensordict(source, discount=discount, **bounds)
        check_dataset(dataset)
        return dataset
    if not isinstance(source, (str, os.PathLike, minari.MinariDataset)):
        raise TypeError(
            f"cannot load a dataset from {type(source).__name__}; give a Minari id, a "
            f"MinariDataset, the path of a D4RL .hdf5 file, or a TensorDict in TED format "
            f"(dataset_from_arrays makes one from arrays)"
        )
    with _naming(source):
        if isinstance(source, str) and Path(source).suffix not in HDF5_SUFFIXES:
            source = open_minari(source, download=download)
        if isinstance(source, minari.MinariDataset):
            dataset = read_minari(source, discount=discount, **bounds)
        else:
            dataset = read_d4rl(
                source, discount=discount, max_episode_steps=max_episode_steps, **bounds
            )
        check_dataset(dataset)
    return dataset


@contextmanager
def _naming(source: str | os.PathLike[str] | minari.MinariDataset) -> Iterator[None]:
    """Let every error name what could not be loaded, and be one of the documented ones.

    What HDF5, Minari and Gymnasium raise over a damaged file can be anything.
    """
    name = source.id if isinstance(source, minari.MinariDataset) else os.fspath(source)
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        if isinstance(error, kind) and name in str(error):
            raise
        reason = str(error) or type(error).__name__
        raise kind(f"the dataset {name!r} cannot be loaded: {reason}") from error


def dataset_from_arrays(
    observations: ArrayLike | Mapping[str, ArrayLike],
    actions: ArrayLike,
    rewards: ArrayLike,
    terminations: ArrayLike,
    truncations: ArrayLike,
    *,
    next_observations: ArrayLike | Mapping[str, ArrayLike] | None = None,
    discount: float = 0.99,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Make a dataset from own arrays, one row per step, episode after episode.

    Args:
        observations: (N, S), or a dictionary of such arrays.
        actions: (N, A), floating point.
        rewards: (N,).
        terminations: (N,) bool, the task ended with this step.
        truncations: (N,) bool, the episode was cut off after this step.
        next_observations: Like `observations`; None takes those of the next row, and on the last
            row of an episode, where no row holds it, that row's own.
        discount: Discount factor per step of ``return_to_go``, in (0, 1].
        action_low: Lower bound of the actions, a number or one per dimension, -1 by default.
        action_high: Upper bound likewise, 1 by default.

    Returns:
        The same as `load_dataset`.

    Raises:
        TypeError: The actions are discrete.
        ValueError: The arrays do not fit together, or the data is unfit, see `check_dataset`.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> ends = np.arange(1, 21) % 10 == 0  # two episodes of ten steps
        >>> observations, actions = rng.normal(size=(20, 3)), rng.uniform(-1, 1, size=(20, 2))
        >>> dataset = dataset_from_arrays(observations, actions, np.ones(20), ends, ends & False)
        >>> dataset["step_count"][9:11].flatten().tolist()
        [9, 0]
    """
    _check_discount(discount)
    dataset = from_arrays(
        observations,
        actions,
        rewards,
        terminations,
        truncations,
        next_observations=next_observations,
        discount=discount,
        action_low=action_low,
        action_high=action_high,
    )
    check_dataset(dataset)
    return dataset


def _check_discount(discount: float) -> None:
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"discount must lie in (0, 1], got {discount}")
