"""D4RL's own HDF5 files -> one TED TensorDict.

These files are flat logs: ``observations``, ``actions``, ``rewards``, ``terminals`` and usually
``timeouts``, one row per step, episode after episode. Three traps are dealt with here:

* A timeout is not a termination: it becomes ``truncated``.
* The row after an episode's last one belongs to another episode. What the agent saw after its last
  action was not recorded (except as ``next_observations``, in some files), so the last observation
  is repeated there. No return changes; a method that bootstraps from truncated steps sees a state
  one step old. `mage_agent.d4rl.qlearning_dataset` drops those steps instead, as D4RL does.
* Files without ``timeouts`` mark no time limit: `max_episode_steps` says where episodes end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDict

from mage_agent.data.arrays import from_arrays
from mage_agent.data.d4rl_tasks import TASKS
from mage_agent.data.hdf5 import check_hdf5
from mage_agent.data.ted import Bounds

REQUIRED = ("observations", "actions", "rewards", "terminals")


def read_hdf5(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read the columns of a D4RL file as they are.

    Args:
        path: The file.

    Returns:
        ``observations`` (N, S), ``actions`` (N, A), ``rewards`` (N,), ``terminals`` (N,), and if
        the file has them, ``timeouts`` (N,) and ``next_observations`` (N, S).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, no HDF5 file, or not one of D4RL's.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        check_hdf5(path)
        with h5py.File(path, "r") as file:
            missing = [key for key in REQUIRED if not isinstance(file.get(key), h5py.Dataset)]
            if missing:
                found = sorted(file)[:8]
                hint = " (a Minari dataset: load it by its id)" if "episode_0" in file else ""
                raise ValueError(
                    f"{str(path)!r} is not a D4RL file: it lacks {', '.join(missing)} and has "
                    f"{', '.join(found) or 'nothing'}{hint}"
                )
            columns = {
                key: file[key][()]
                for key in (*REQUIRED, "timeouts", "next_observations")
                if key in file
            }
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} is truncated or no HDF5 file ({error}); download it again"
        ) from error
    for key in ("rewards", "terminals", "timeouts"):
        if key in columns:
            columns[key] = columns[key].reshape(-1)
    lengths = {key: column.shape[:1] for key, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the columns of {str(path)!r} have different lengths: {lengths}")
    return columns


def read_d4rl(
    path: str | os.PathLike[str],
    *,
    discount: float,
    max_episode_steps: int | None = None,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Read a D4RL file.

    Args:
        path: The file. Under the name that D4RL gave it, its reference scores and step limit are
            known and become part of the metadata.
        discount: Discount factor per step of ``return_to_go``.
        max_episode_steps: Step limit of the environment, for files without ``timeouts``.
        action_low: Lower action bound, None for -1 as in all of D4RL.
        action_high: Upper action bound, None for 1.

    Returns:
        The dataset in the layout of `mage_agent.data.ted`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated or not one of D4RL's, or nothing says where episodes end.
    """
    columns = read_hdf5(path)
    task = next((task for task in TASKS.values() if task.file.name == Path(path).name), None)
    facts: dict[str, Any] = {"dataset_id": task.id if task else Path(path).stem}
    if task is not None:
        facts |= {"ref_min_score": task.ref_min_score, "ref_max_score": task.ref_max_score}
        max_episode_steps = max_episode_steps or task.max_episode_steps
    return from_arrays(
        columns["observations"],
        columns["actions"],
        columns["rewards"],
        columns["terminals"],
        timeouts(columns, max_episode_steps, str(path)),
        next_observations=columns.get("next_observations"),
        discount=discount,
        action_low=action_low,
        action_high=action_high,
        facts=facts,
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
        ValueError: There are no ``timeouts`` and no step limit.
    """
    if "timeouts" in columns:
        return columns["timeouts"].astype(bool)
    if max_episode_steps is None:
        raise ValueError(
            f"{name!r} has no 'timeouts', so nothing says where its episodes end; pass "
            f"max_episode_steps, the step limit of its environment"
        )
    terminals = columns["terminals"].astype(bool)
    rows = np.arange(len(terminals))
    first = np.concatenate([[True], terminals[:-1]])
    start = np.maximum.accumulate(np.where(first, rows, 0))
    return np.asarray((rows - start) % max_episode_steps == max_episode_steps - 1)
