"""`load_dataset`: whatever the user has -> one TED TensorDict, checked."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import h5py
import minari
from tensordict import TensorDict, TensorDictBase

from mage_agent.data.arrays import from_tensordict
from mage_agent.data.checks import check_dataset
from mage_agent.data.d4rl import read_d4rl, refuse_limit
from mage_agent.data.hdf5 import available_memory
from mage_agent.data.minari import open_minari, read_minari, refuse_folder
from mage_agent.data.ogbench import read_ogbench
from mage_agent.data.robomimic import is_robomimic, read_robomimic
from mage_agent.data.ted import Bounds, metadata

FILE_SUFFIXES = {".hdf5", ".h5", ".npz"}


def load_dataset(
    source: str | os.PathLike[str] | minari.MinariDataset | TensorDictBase,
    *,
    download: bool = True,
    max_episode_steps: int | None = None,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Load an offline dataset and make sure that it can be trained on.

    Args:
        source: A Minari id such as ``"D4RL/pen/human-v2"``, a `minari.MinariDataset`, the path of a
            ``.hdf5`` file of D4RL or robomimic, of an ``.npz`` file of OGBench, or a TensorDict in
            TED format (from a rollout or collector; it is copied and completed, see
            `mage_agent.data.arrays.from_tensordict`).
        download: Whether Minari may fetch a dataset that is not on this machine.
        max_episode_steps: For D4RL files whose ``timeouts`` mark nothing: the environment's step
            limit. Other sources say where episodes end.
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
        ValueError: A file is truncated, foreign or too large for memory, or the data is unfit, see
            `check_dataset`.

    Examples:
        >>> dataset = load_dataset("D4RL/pen/human-v2")  # doctest: +SKIP
        >>> dataset["observation"].shape  # doctest: +SKIP
        torch.Size([5000, 45])
    """
    bounds: dict[str, Bounds] = {"action_low": action_low, "action_high": action_high}
    if isinstance(source, TensorDictBase):
        refuse_limit(max_episode_steps, "a TensorDict")
        dataset = from_tensordict(source, **bounds)
        check_dataset(dataset)
        return dataset
    if not isinstance(source, (str, os.PathLike, minari.MinariDataset)):
        raise TypeError(
            f"cannot load a dataset from {type(source).__name__}; give a Minari id, a "
            f"MinariDataset, the path of an .hdf5 or .npz file, or a TensorDict in TED format "
            f"(dataset_from_arrays makes one from arrays)"
        )
    with _naming(source):
        if isinstance(source, str) and not is_file_name(source):
            source = open_minari(source, download=download)
        elif isinstance(source, os.PathLike):
            refuse_folder(source)
        if isinstance(source, minari.MinariDataset):
            refuse_limit(max_episode_steps, "a Minari dataset")
            dataset = read_minari(source, **bounds)
            check_dataset(dataset)
        elif _kind(source) == "npz":
            refuse_limit(max_episode_steps, "an .npz file")
            dataset = read_ogbench(source, **bounds)
        elif is_robomimic(source):
            refuse_limit(max_episode_steps, "a file of robomimic")
            dataset = read_robomimic(source, **bounds)
        else:
            dataset = read_d4rl(source, max_episode_steps=max_episode_steps, **bounds)
    return dataset


def as_dataset(
    source: str | os.PathLike[str] | minari.MinariDataset | TensorDictBase,
) -> TensorDictBase:
    """What `load_dataset` makes of a source; a dataset that it has made is returned as it is.

    It is known by the action bounds in its metadata.

    Raises:
        As `load_dataset`.
    """
    if isinstance(source, TensorDictBase) and "action_low" in metadata(source):
        check_dataset(source)
        return source
    return load_dataset(source)


def is_file_name(source: str) -> bool:
    """Whether a text is the path of a file, not the id of a Minari dataset."""
    return Path(source).suffix.lower() in FILE_SUFFIXES or Path(source).is_file()


def holds_data(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of data by its contents, or by its name if it is damaged."""
    named = Path(path).suffix.lower() in FILE_SUFFIXES
    return named or zipfile.is_zipfile(path) or h5py.is_hdf5(path)


def _kind(path: str | os.PathLike[str]) -> Literal["hdf5", "npz"]:
    """Tell the kind of a file by its contents, and by its name if it is damaged or not there."""
    if zipfile.is_zipfile(path) or Path(path).suffix.lower() == ".npz":
        return "npz"
    if Path(path).is_file() and not holds_data(path):
        raise ValueError(
            f"{str(path)!r} is neither the id of a Minari dataset nor a file of a known kind "
            f"(.hdf5 of D4RL or robomimic, .npz of OGBench); read it yourself, and give the arrays "
            f"to dataset_from_arrays"
        )
    return "hdf5"


@contextmanager
def _naming(source: str | os.PathLike[str] | minari.MinariDataset) -> Iterator[None]:
    """Let every error name what could not be loaded, and be one of the documented ones.

    What HDF5, Minari and Gymnasium raise over a damaged file can be anything.
    """
    name = source.id if isinstance(source, minari.MinariDataset) else os.fspath(source)
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        if isinstance(error, kind) and name in str(error):
            raise
        reason = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            reason += f"; this process has {available_memory()} bytes of memory left at most"
        raise kind(f"the dataset {name!r} cannot be loaded: {reason}") from error
