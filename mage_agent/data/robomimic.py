"""robomimic's HDF5 files -> one TED TensorDict.

Each group ``data/demo_<number>`` is an episode with ``actions``, ``rewards``, ``dones`` and a group
``obs`` of observations by name, often ``next_obs`` as well. robomimic marks every step in the goal
as done, and demonstrations stay there for some steps; a demonstration stays one episode all the
same, which terminates if its last step is done.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDict

from mage_agent.data.arrays import dataset_from_arrays
from mage_agent.data.columns import as_flags
from mage_agent.data.hdf5 import open_hdf5
from mage_agent.data.ted import Bounds

__all__ = ["is_robomimic", "read_robomimic"]

REQUIRED = ("obs", "actions", "rewards", "dones")
CONVERT = (
    "robomimic/scripts/dataset_states_to_obs.py --done_mode 2 (without cameras) makes them from "
    "the recorded states"
)


def is_robomimic(path: str | os.PathLike[str]) -> bool:
    """Whether a file is laid out as robomimic's are; False if it cannot be read at all."""
    try:
        with h5py.File(path, "r") as file:
            link = file.get("data", getlink=True)
            return isinstance(link, h5py.HardLink) and isinstance(file["data"], h5py.Group)
    except OSError:
        return False


def read_robomimic(
    path: str | os.PathLike[str],
    *,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> TensorDict:
    """Read all demonstrations of a robomimic file.

    Args:
        path: The file, with observations that are no images.
        action_low: Lower action bound, None for -1.
        action_high: Upper action bound, None for 1.

    Returns:
        The dataset in the layout of `mage_agent.data.ted`; observations keep their names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated or unsafe, holds no demonstrations, or a demonstration lacks
            observations or rewards.
    """
    with open_hdf5(path) as file:
        demos = sorted(file["data"], key=lambda name: int((re.findall(r"\d+", name) or [0])[-1]))
        episodes = [_demo(file["data"][name], name) for name in demos]
    if not episodes:
        raise ValueError("it holds no demonstrations (data/demo_0, data/demo_1, ...)")
    names = set(episodes[0]["obs"])
    for name, episode in zip(demos, episodes, strict=True):
        if set(episode["obs"]) != names:
            raise ValueError(
                f"{name} has the observations {sorted(episode['obs'])}, {demos[0]} has "
                f"{sorted(names)}; all demonstrations need the same"
            )

    def joined(*keys: str) -> NDArray[Any]:
        parts = [
            episode[keys[0]] if len(keys) == 1 else episode[keys[0]][keys[1]]
            for episode in (episodes)
        ]
        return np.concatenate(parts)

    last = np.concatenate([np.arange(len(e["actions"]), 0, -1) == 1 for e in episodes])
    return dataset_from_arrays(
        {name: joined("obs", name) for name in names},
        joined("actions"),
        joined("rewards"),
        last & as_flags(joined("dones"), "dones").reshape(-1),
        last,
        next_observations={name: joined("next_obs", name) for name in names}
        if all("next_obs" in episode for episode in episodes)
        else None,
        action_low=action_low,
        action_high=action_high,
        facts={"dataset_id": Path(path).stem},
    )


def _demo(group: h5py.Group, name: str) -> dict[str, Any]:
    """Read one demonstration."""
    missing = [key for key in REQUIRED if key not in group]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)} (it has {sorted(group)}); {CONVERT}")
    demo: dict[str, Any] = {key: group[key][()] for key in REQUIRED[1:]}
    for part in ("obs", "next_obs"):
        if part not in group:
            continue
        demo[part] = {
            key: _flat(group[part][key][()], f"{name}/{part}/{key}") for key in group[part]
        }
    return demo


def _flat(values: NDArray[Any], name: str) -> NDArray[Any]:
    if values.ndim > 2:
        raise ValueError(
            f"{name} has the shape {values.shape}, an image it seems; read are observations of "
            f"the shape (steps, size): {CONVERT}"
        )
    return values.reshape(len(values), -1)
