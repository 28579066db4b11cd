"""The datasets of the suite: fetched or collected, loaded once, with episodes held out."""

import difflib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import minari
import numpy as np
import torch
from minari.storage.datasets_root_dir import get_dataset_path
from tensordict import TensorDictBase

from benchmarks.domains import FINAL_RETURN, base_id
from mage_agent import cut_episodes, delayed_rewards, first_steps, load_dataset, split_goals
from mage_agent.checkpoint import digest
from mage_agent.d4rl import ALL_TASKS, make

__all__ = ["check_name", "collect_missing", "fetch", "hold_out", "load_split", "name_of_data"]


def check_name(dataset_id: str) -> None:
    """Refuse what is neither an id on Minari nor a name of D4RL's.

    Raises:
        ValueError: the message lists the known names.
    """
    dataset_id = base_id(dataset_id)
    if "/" in dataset_id or dataset_id in ALL_TASKS or dataset_id in minari.list_local_datasets():
        return
    close = difflib.get_close_matches(dataset_id, ALL_TASKS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"unknown dataset {dataset_id!r}.{hint} D4RL's names are {', '.join(ALL_TASKS)}; ids on "
        "Minari look like D4RL/pen/expert-v2."
    )


def collect_missing(dataset_id: str) -> Path | None:
    """Collect a maze dataset that has a recipe and is not there; return where it was put."""
    root, dataset_id = get_dataset_path(), base_id(dataset_id)
    if (
        not dataset_id.startswith(("local/maze2d/", "local/multi2d/", "ogbench/pointmaze/"))
        or (root / dataset_id).exists()
    ):
        return None
    from benchmarks.collect.recipes import RECIPES, collect  # needs the simulator

    return collect(RECIPES[dataset_id], root) if dataset_id in RECIPES else None


def fetch(dataset_ids: Sequence[str]) -> dict[str, str]:
    """Fetch the datasets that are not on this machine.

    Returns:
        Why a dataset cannot be had, for each that cannot.
    """
    here = minari.list_local_datasets()
    missing = [name for name in dict.fromkeys(dataset_ids) if not _is_here(name, here)]
    with ThreadPoolExecutor() as pool:  # without a network, each takes long to give up
        reasons = dict(zip(missing, pool.map(_fetch, missing), strict=True))
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _is_here(dataset_id: str, here: Collection[str]) -> bool:
    """Whether a dataset is among those of Minari, or where D4RL keeps its file."""
    dataset_id = base_id(dataset_id)
    task = ALL_TASKS.get(dataset_id)
    if task is None:
        return dataset_id in here
    return task.file.is_file() if task.minari_id is None else task.minari_id in here


def _fetch(dataset_id: str) -> str | None:
    try:
        _open(dataset_id)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


@lru_cache(maxsize=1)  # cells come dataset by dataset, and another one may be large
def load_split(dataset_id: str, share: float) -> tuple[TensorDictBase, TensorDictBase]:
    """Load a dataset once per process; return what to train on, and what is held out."""
    return hold_out(_open(dataset_id), share)


def name_of_data(training: TensorDictBase) -> str:
    """A name of what is trained on, by its actions and rewards: data may be made anew."""
    columns = {"action": training["action"], "reward": training["next", "reward"]}
    return digest(columns)[:12]


def hold_out(dataset: TensorDictBase, share: float) -> tuple[TensorDictBase, TensorDictBase]:
    """Split whole episodes off the end of a fixed random order; off a single one, its last steps.

    Args:
        dataset: TED TensorDict.
        share: of the episodes to hold out, in [0, 1); at least one, unless the share is 0.

    Returns:
        What to train on, and what is held out.

    Raises:
        ValueError: no episode would be left.
    """
    episodes = dataset["episode"].unique()
    if len(episodes) == 1 and len(dataset) > 1:  # Maze2D is one endless run
        kept = len(dataset) - min(len(dataset) - 1, round(share * len(dataset)))
        return first_steps(dataset, kept), dataset[kept:]
    count = max(1, round(share * len(episodes))) if share else 0
    if count >= len(episodes):
        raise ValueError(
            f"the dataset has {len(episodes)} episodes, of which {count} would be held out; lower "
            "--hold-out, or set it to 0."
        )
    order = np.random.default_rng(0).permutation(len(episodes))
    held = torch.isin(dataset["episode"], episodes[order[:count].tolist()])
    return dataset[~held], dataset[held]


def _open(dataset_id: str) -> TensorDictBase:
    """Load a dataset by its id on Minari, or by D4RL's; with delayed rewards if it says so."""
    if dataset_id.endswith(FINAL_RETURN):
        return delayed_rewards(cut_episodes(split_goals(_open(base_id(dataset_id)))))
    task = ALL_TASKS.get(dataset_id)
    if task is None or task.minari_id is not None:
        name = dataset_id if task is None else str(task.minari_id)
        return load_dataset(name, download=not name.startswith("local/"))
    if not task.file.is_file():
        make(dataset_id).get_dataset()  # leaves D4RL's file there
    return load_dataset(task.file)
