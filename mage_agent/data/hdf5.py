"""Is this HDF5 file safe to read? Asked before anything in it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
from h5py import h5d, h5g, h5l, h5o

__all__ = ["available_memory", "check_hdf5", "check_memory", "open_hdf5"]

DEPTH = 16
"""How deep groups may be nested."""

COPIES = 8
"""Bytes that reading takes for each value besides the declared ones: a dataset holds it as float32
twice, as what is observed now and next. Measured in all, with temporary arrays: 9 (D4RL), 13 to 14
(Minari), 13 to 18 (robomimic)."""


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
    """Refuse a file that leads out of itself, or that takes more memory to read than there is.

    HDF5 can read other files through links, and a few bytes can declare arrays of any size.

    Args:
        path: The file.

    Raises:
        OSError: It is truncated or no HDF5 file.
        ValueError: It has a link to another file or object, external or virtual storage, or more
            data than there is memory.
    """
    declared = copies = most = 0
    largest = ""
    with h5py.File(path, "r") as file:
        groups = [(file.id, "", 0)]
        while groups:
            group, path_of_group, depth = groups.pop()
            for key in group:
                where = f"{path_of_group}/{key.decode(errors='replace')}"
                kind = _kind(group, key, where)
                if kind == h5o.TYPE_DATASET:
                    size, values, shape = _extent(h5d.open(group, key), where)
                    declared += size
                    copies += COPIES * values if _is_copied(where) else 0
                    if size > most:
                        most, largest = size, f", the largest part in {where} of the shape {shape}"
                elif kind == h5o.TYPE_GROUP:
                    if depth == DEPTH:
                        raise ValueError(f"{where} is nested more than {DEPTH} deep")
                    groups.append((h5g.open(group, key), where, depth + 1))
    check_memory(declared, copies, largest)


def available_memory() -> int:
    """Bytes that this process may take: the machine's, or what its own limit leaves of them."""
    import resource  # which Unix alone has: the package itself can be imported anywhere

    page = os.sysconf("SC_PAGE_SIZE")
    memory = page * os.sysconf("SC_PHYS_PAGES")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)  # what `ulimit -v` sets
    if limit == resource.RLIM_INFINITY:
        return memory
    taken = Path("/proc/self/statm")
    pages = int(taken.read_text().split()[0]) if taken.exists() else 0
    return min(memory, max(0, limit - page * pages))


def check_memory(declared: int, copies: int = 0, largest: str = "") -> None:
    """Refuse what could not be held in memory.

    Args:
        declared: Bytes of all data.
        copies: Bytes that reading takes besides.
        largest: What to say of the largest part.

    Raises:
        ValueError: There is less memory.
    """
    memory = available_memory()
    if declared + copies > memory:
        raise ValueError(
            f"it declares {declared} bytes of data{largest}; reading it takes {declared + copies} "
            f"bytes, and this process has {memory} bytes of memory at most: the file is damaged, "
            "or too large to be read here"
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


def _extent(dataset: h5d.DatasetID, where: str) -> tuple[int, int, tuple[int, ...]]:
    """Return the bytes, values and shape that a dataset unfolds to, which must lie in this file."""
    stored = dataset.get_create_plist()
    if stored.get_layout() == h5d.VIRTUAL or stored.get_external_count():
        raise ValueError(f"the data of {where} lie in another file; they must lie in this one")
    space = dataset.get_space()
    values = int(space.get_simple_extent_npoints())
    return values * dataset.get_type().get_size(), values, space.shape


def _is_copied(where: str) -> bool:
    """Whether values become part of a dataset; next observations take the place of a copy."""
    parts = where.removesuffix("infos/goal").split("/")
    return not any(part == "infos" or part.startswith("next_") for part in parts)
