"""Is this HDF5 file safe to read? Asked before anything in it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
from h5py import h5d, h5g, h5l, h5o

__all__ = ["check_hdf5", "check_memory", "open_hdf5"]

DEPTH = 16
"""How deep groups may be nested."""


@contextmanager
def open_hdf5(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Open a file for reading after `check_hdf5`.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, no HDF5 file, or unsafe.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        check_hdf5(path)
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} is truncated or no HDF5 file ({error}); download it again"
        ) from error


def check_hdf5(path: str | os.PathLike[str]) -> None:
    """Refuse a file that leads out of itself, or that unfolds to more than memory holds.

    HDF5 can read other files through links, and a few bytes can declare arrays of any size.

    Args:
        path: The file.

    Raises:
        OSError: It is truncated or no HDF5 file.
        ValueError: It has a link to another file or object, external or virtual storage, or more
            data than there is memory.
    """
    unfolded = 0
    with h5py.File(path, "r") as file:
        groups = [(file.id, "", 0)]
        while groups:
            group, path_of_group, depth = groups.pop()
            for key in group:
                where = f"{path_of_group}/{key.decode(errors='replace')}"
                kind = _kind(group, key, where)
                if kind == h5o.TYPE_DATASET:
                    unfolded += _size(h5d.open(group, key), where)
                elif kind == h5o.TYPE_GROUP:
                    if depth == DEPTH:
                        raise ValueError(f"{where} is nested more than {DEPTH} deep")
                    groups.append((h5g.open(group, key), where, depth + 1))
    check_memory(unfolded)


def check_memory(size: int) -> None:
    """Refuse what could not be held in the machine's memory.

    Args:
        size: Bytes of all data.

    Raises:
        ValueError: There is less memory.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(
            f"it declares {size} bytes of data, and the machine has {memory} bytes of memory; the "
            "file is damaged, or too large to be read here"
        )


# h5py's lower level, since thousands of episodes have tens of thousands of members.


def _kind(group: h5g.GroupID, key: bytes, where: str) -> int:
    """Return the type of a member, which must lie in this file and nowhere else in it."""
    if group.links.get_info(key).type != h5l.TYPE_HARD:
        raise ValueError(f"{where} is a link to something else; it must hold its data itself")
    member = h5o.get_info(group, key)
    if member.rc != 1:
        raise ValueError(f"{where} is linked more than once; it must hold its data once")
    return int(member.type)


def _size(dataset: h5d.DatasetID, where: str) -> int:
    """Return the bytes that a dataset unfolds to, which must lie in this file."""
    stored = dataset.get_create_plist()
    if stored.get_layout() == h5d.VIRTUAL or stored.get_external_count():
        raise ValueError(f"the data of {where} lie in another file; they must lie in this one")
    return int(dataset.get_space().get_simple_extent_npoints() * dataset.get_type().get_size())
