"""Saving a Minari dataset all or nothing."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import minari
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.namespace import create_namespace, list_local_namespaces

from mage_agent.files import make_folder

__all__ = ["free_place", "minari_root", "save_minari"]

_ROOT_VARIABLE = "MINARI_DATASETS_PATH"


@contextmanager
def minari_root(root: Path) -> Iterator[None]:
    """Let Minari keep its datasets under ``root``; only the environment can tell it to."""
    before = os.environ.get(_ROOT_VARIABLE)
    os.environ[_ROOT_VARIABLE] = str(root.resolve())  # Minari stumbles over relative paths
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ROOT_VARIABLE]
        else:
            os.environ[_ROOT_VARIABLE] = before


def free_place(root: Path, dataset_id: str) -> Path:
    """Return the folder a dataset will have; clear away what a killed collection left.

    Raises:
        FileExistsError: the dataset is there already.
        OSError: nothing can be written under ``root``.
        ValueError: the id is not of the form that Minari wants.
    """
    try:
        parse_dataset_id(dataset_id)
    except TypeError as error:  # of Minari, if there is no version
        raise ValueError(
            f"the dataset id is {dataset_id!r}; it must end in a version, such as "
            f"{dataset_id + '-v0'!r}."
        ) from error
    make_folder(root)
    path = root / dataset_id
    for left in root.glob(glob.escape(_staging_prefix(dataset_id)) + "*"):
        shutil.rmtree(left, ignore_errors=True)
    if path.exists():
        raise FileExistsError(
            f"{path} exists; delete it to collect it anew, or choose another dataset id."
        )
    return path


def save_minari(
    root: Path, dataset_id: str, episodes: list[EpisodeBuffer], **metadata: Any
) -> Path:
    """Write a dataset beside its place and move it there when it is whole.

    Args:
        root: folder that holds Minari datasets; made if missing.
        dataset_id: Minari id, for example ``local/pointmaze/umaze-v0``.
        episodes: the data.
        **metadata: passed to ``minari.create_dataset_from_buffers``.

    Returns:
        The dataset's folder.

    Raises:
        FileExistsError: the dataset is there already; nothing is changed.
        OSError: nothing can be written under ``root``.
    """
    target = free_place(root, dataset_id)
    # Hidden from Minari's listings, and on the same file system, so that the move is atomic.
    prefix = _staging_prefix(dataset_id)
    with tempfile.TemporaryDirectory(dir=root, prefix=prefix) as staging:
        with minari_root(Path(staging)):
            minari.create_dataset_from_buffers(dataset_id, episodes, **metadata)
        namespace = parse_dataset_id(dataset_id)[0]
        if namespace is not None:
            with minari_root(root):
                if namespace not in list_local_namespaces():
                    create_namespace(namespace)
        target.parent.mkdir(parents=True, exist_ok=True)
        (Path(staging) / dataset_id).rename(target)
    return target


def _staging_prefix(dataset_id: str) -> str:
    return f".unfinished-{dataset_id.replace('/', '--')}."
