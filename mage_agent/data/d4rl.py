"""D4RL's own HDF5 files -> one TED TensorDict.

These files are flat logs: ``observations``, ``actions``, ``rewards``, ``terminals`` and usually
``timeouts``, one row per step, episode after episode. Three traps are dealt with here:

* A timeout is not a termination: it becomes ``truncated``.
* The row after an episode's last one belongs to another episode. What the agent saw after its last
  action was not recorded (except as ``next_observations``, in some files), so the last observation
  is repeated there. No return changes; a method that bootstraps from truncated steps sees a state
  one step old. `mage_agent.d4rl.qlearning_dataset` drops those steps instead, as D4RL does.
* Files without ``timeouts`` mark no time limit: `max_episode_steps` says where episodes end. In the
  replay files timeouts are not always marked; there the ``next_observations`` show it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict

from mage_agent.data.arrays import dataset_from_arrays
from mage_agent.data.columns import as_flags, as_goals, check_lengths
from mage_agent.data.continuity import jumps
from mage_agent.data.d4rl_tasks import ALL_TASKS
from mage_agent.data.hdf5 import open_hdf5
from mage_agent.data.ted import Bounds

REQUIRED = ("observations", "actions", "rewards", "terminals")
COLUMNS = (*REQUIRED, "timeouts", "next_observations", "infos/goal")


def read_hdf5(path: str | os.PathLike[str], *, everything: bool = False) -> dict[str, NDArray[Any]]:
    """Read the columns of a D4RL file as they are.

    Args:
        path: The file.
        everything: Read what else is in the file, too, such as ``infos/qpos``.

    Returns:
        ``observations`` (N, S), ``actions`` (N, A), ``rewards`` (N,), ``terminals`` (N,), and if
        the file has them, ``timeouts`` (N,), ``next_observations`` (N, S), ``infos/goal`` (N, G).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, no HDF5 file, or not one of D4RL's.
    """
    columns: dict[str, NDArray[Any]] = {}
    further: dict[str, Any] = {}

    def read(key: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and (everything or key in COLUMNS):
            (columns if key in COLUMNS else further)[key] = item[()]

    with open_hdf5(path) as file:
        missing = [key for key in REQUIRED if not isinstance(file.get(key), h5py.Dataset)]
        if missing:
            found = sorted(file)[:8]
            hint = " (a Minari dataset: load it by its id)" if "episode_0" in file else ""
            if groups := [key for key in missing if isinstance(file.get(key), h5py.Group)]:
                hint = f"; {', '.join(groups)} must be one array, not a group of them"
            raise ValueError(
                f"{str(path)!r} is not a D4RL file: it lacks {', '.join(missing)} and has "
                f"{', '.join(found) or 'nothing'}{hint}"
            )
        file.visititems(read)
    for key in ("rewards", "terminals", "timeouts"):
        if key in columns:
            columns[key] = columns[key].reshape(-1)
    check_lengths(columns, f"the columns of {str(path)!r}")
    return columns | further


def read_d4rl(
    path: str | os.PathLike[str],
    *,
    max_episode_steps: int | None = None,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Read a D4RL file.

    Args:
        path: The file. Under the name that D4RL gave it, its reference scores and step limit are
            known and become part of the metadata.
        max_episode_steps: Step limit of the environment, for files whose ``timeouts`` mark nothing.
        action_low: Lower action bound, None for -1 as in all of D4RL.
        action_high: Upper action bound, None for 1.

    Returns:
        The dataset in the layout of `mage_agent.data.ted`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated or not one of D4RL's, or nothing, or both the file and the step
            limit, would say where episodes end.
    """
    columns = read_hdf5(path)
    if np.any(columns.get("timeouts", False)):
        refuse_limit(max_episode_steps, "a file whose timeouts are marked")
    elif max_episode_steps is not None:
        columns.pop("timeouts", None)  # which mark nothing: the steps are counted
    task = next((t for t in ALL_TASKS.values() if t.file.name == Path(path).name), None)
    facts: dict[str, Any] = {"dataset_id": task.id if task else Path(path).stem}
    if task is not None:
        facts |= {"ref_min_score": task.ref_min_score, "ref_max_score": task.ref_max_score}
        if max_episode_steps is None:
            max_episode_steps = task.max_episode_steps
    ends = timeouts(columns, max_episode_steps, str(path))
    if task is not None and "next_observations" in columns:
        ends = _with_unmarked(columns, ends, str(path))
    return dataset_from_arrays(
        columns["observations"],
        columns["actions"],
        columns["rewards"],
        columns["terminals"],
        ends,
        next_observations=columns.get("next_observations"),
        goals=as_goals(columns.get("infos/goal")),
        action_low=action_low,
        action_high=action_high,
        facts=facts,
    )


def refuse_limit(max_episode_steps: int | None, source: str) -> None:
    """Refuse a step limit that nothing would heed."""
    if max_episode_steps is not None:
        raise ValueError(
            f"max_episode_steps is {max_episode_steps}, but {source} says itself where episodes "
            "end; cut longer ones by cut_episodes"
        )


def timeouts(
    columns: Mapping[str, NDArray[Any]], max_episode_steps: int | None, name: str
) -> NDArray[np.bool_]:
    """Where the time limit ended an episode: as recorded, or else counted.

    Args:
        columns: As `read_hdf5` gives them.
        max_episode_steps: Step limit of the environment.
        name: What to call the data in an error.

    Returns:
        (N,) bool.

    Raises:
        ValueError: There are no ``timeouts``, and no step limit of at least 1.
    """
    if "timeouts" in columns:
        marked = as_flags(columns["timeouts"], "timeouts")
        ends = marked.any() or np.any(columns["terminals"])
        if len(marked) and not ends and "infos/goal" not in columns:
            warnings.warn(
                f"in {name!r}, neither 'terminals' nor 'timeouts' mark an end: its {len(marked)} "
                "steps are one episode; pass max_episode_steps to count its episodes",
                stacklevel=3,
            )
            marked = (
                np.arange(len(marked)) == len(marked) - 1
            )  # dataset_from_arrays needs not warn, too
        return marked
    if max_episode_steps is None:
        raise ValueError(
            f"{name!r} has no 'timeouts', so nothing says where its episodes end; pass "
            f"max_episode_steps, the step limit of its environment"
        )
    if max_episode_steps < 1:
        raise ValueError(f"max_episode_steps is {max_episode_steps}; it must be at least 1")
    terminals = as_flags(columns["terminals"], "terminals")
    rows = np.arange(len(terminals))
    first = np.concatenate([[True], terminals[:-1]])
    start = np.maximum.accumulate(np.where(first, rows, 0))
    return np.asarray((rows - start) % max_episode_steps == max_episode_steps - 1)


def _with_unmarked(
    columns: Mapping[str, NDArray[Any]], ends: NDArray[np.bool_], name: str
) -> NDArray[np.bool_]:
    """Add the ends that D4RL left unmarked, where the next row does not follow on."""
    now, following = (
        TensorDict({"observation": torch.from_numpy(columns[key])})
        for key in ("observations", "next_observations")
    )
    last = ends | as_flags(columns["terminals"], "terminals")
    found = jumps(now, following, torch.from_numpy(last))
    for rows in found.values():
        ends = ends.copy()
        ends[rows] = True
        warnings.warn(
            f"in {name!r}, {len(rows)} steps are not followed by their next observation and not "
            f"marked as the end of an episode, the first one in row {rows[0]}; they are taken as "
            f"truncated",
            stacklevel=3,
        )
    return ends
