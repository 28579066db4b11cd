"""OGBench's ``.npz`` files -> one TED TensorDict.

The columns are ``observations``, ``actions`` and ``terminals``, which marks where trajectories end;
these were cut off, not terminated. As published, the last row of a trajectory holds its last
observation, and an action that was not executed (``valids`` says so, too, in columns that OGBench's
loader made "compact"); in a file that has ``next_observations`` every row is a step. ``rewards``
and ``masks`` (0 where the task is solved: an episode ends there) are those of the tasks with a
single goal. The files as published hold no rewards, since their data serve any goal.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDict

from mage_agent.data.arrays import dataset_from_arrays
from mage_agent.data.columns import as_array, as_flags, check_lengths
from mage_agent.data.hdf5 import check_memory
from mage_agent.data.ted import Bounds

__all__ = ["read_ogbench"]

REQUIRED = ("observations", "actions", "terminals")
COLUMNS = (*REQUIRED, "next_observations", "rewards", "masks", "valids")


def read_ogbench(
    path: str | os.PathLike[str],
    *,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Read an OGBench file.

    Args:
        path: The file. What else is in it, such as ``qpos``, is not read.
        action_low: Lower action bound, None for -1.
        action_high: Upper action bound, None for 1.

    Returns:
        The dataset in the layout of `mage_agent.data.ted`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated or no such file, lacks rewards, or the columns do not fit.
    """
    columns = _read(path)
    if "rewards" not in columns:
        raise ValueError(
            f"{str(path)!r} holds no rewards, since OGBench's data serve any goal. Say which task "
            f"they are for: ogbench.make_env_and_datasets('...-singletask-v0') labels them; save "
            f"its dictionary with numpy.savez, or give its arrays to dataset_from_arrays"
        )
    ends = as_flags(columns["terminals"], "terminals").reshape(-1)
    masks = columns.get("masks", np.ones(len(ends)))
    terminated = ~as_flags(masks, "masks").reshape(-1)
    # Data of one task mask every row at its goal; the first one ends the episode.
    again = terminated & np.roll(terminated & ~ends, 1)
    again[:1] = False
    following = columns.get("next_observations")
    steps = np.ones(len(ends), dtype=bool)
    if following is None:  # the last row of each trajectory is no step
        steps = as_flags(columns["valids"], "valids").reshape(-1) if "valids" in columns else ~ends
        steps = steps & (np.arange(len(ends)) < len(ends) - 1)
        following = np.roll(columns["observations"], -1, axis=0)
        ends = np.roll(~steps, -1)
    steps = steps & ~again
    return dataset_from_arrays(
        columns["observations"][steps],
        columns["actions"][steps],
        columns["rewards"][steps],
        terminated[steps],
        ends[steps],
        next_observations=following[steps],
        action_low=action_low,
        action_high=action_high,
        facts={"dataset_id": Path(path).stem},
    )


def _read(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            check_memory(sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in REQUIRED if key not in file]
            if "rewards" in file and "masks" not in file:  # its tasks' rewards come with masks
                missing.append("masks")
            if missing:
                raise ValueError(
                    f"{str(path)!r} is not laid out as OGBench's files: it lacks "
                    f"{', '.join(missing)} and has {', '.join(file.files) or 'nothing'}; read it "
                    f"with numpy.load and use dataset_from_arrays"
                )
            columns = {key: as_array(file[key], key) for key in COLUMNS if key in file}
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(
            f"{str(path)!r} is truncated or no .npz file ({error}); download it again"
        ) from error
    check_lengths(columns, f"the columns of {str(path)!r}")
    return columns
