"""The environments that datasets come from."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import gymnasium as gym
import minari
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDictBase

from mage_agent import optional
from mage_agent.d4rl import ALL_TASKS, make
from mage_agent.data import metadata
from mage_agent.data.minari import open_minari

__all__ = ["OGBENCH_ID", "make_environment"]

OGBENCH_ID = "mage_agent/OGBench-v0"
"""An OGBench maze with its goal in view; ``name`` says which."""
gym.register(OGBENCH_ID, entry_point="mage_agent.ogbench:OGBenchEnv")


def make_environment(
    source: str | minari.MinariDataset | TensorDictBase,
    *,
    evaluation: bool = True,
    download: bool = True,
    **kwargs: Any,
) -> gym.Env[Any, Any]:
    """Make the environment that a dataset comes from.

    Args:
        source: A dataset as `load_dataset` returns it, a Minari dataset or its id, or a D4RL id. Of
            an OGBench file, the name says which of its tasks it is for.
        evaluation: The environment meant for evaluation, where the dataset names one, instead of
            the one the data was collected in.
        download: Whether Minari may fetch a dataset, given by its id, that is not on this machine.
        **kwargs: Further arguments of `gymnasium.make`, for instance ``render_mode``.

    Returns:
        A Gymnasium environment; a D4RL id gives a `mage_agent.d4rl.D4RLEnv`.

    Raises:
        FileNotFoundError: The dataset is not on this machine.
        ImportError: The simulator is not installed; the message says how to install it.
        ValueError: The dataset does not say which environment it comes from, or names code that
            no registered environment has.
    """
    if isinstance(source, str):
        if source in ALL_TASKS:
            return make(source, **kwargs)
        source = open_minari(source, download=download)
    facts = dict(
        source.storage.metadata if isinstance(source, minari.MinariDataset) else metadata(source)
    )
    spec = (facts.get("eval_env_spec") if evaluation else None) or facts.get("env_spec")
    if spec is None:
        name = str(facts.get("dataset_id", ""))
        if name in ALL_TASKS:
            if not ALL_TASKS[name].file_fits:
                raise ValueError(
                    f"{name!r} has no environment for its data: {ALL_TASKS[name].note}"
                )
            return make(name, **kwargs)
        data, single, task = name.partition("-singletask-")
        if single:  # OGBench's, as in pointmaze-giant-navigate-singletask-task1-v0
            from mage_agent.ogbench import Seeded

            return Seeded(gym.make(f"{data.rpartition('-')[0]}{single}{task}", **kwargs))
        raise ValueError(
            f"the dataset {facts.get('dataset_id', 'given')!r} does not say which environment it "
            f"comes from; make that with gymnasium.make"
        )
    return gym.make(_trusted(str(spec)), **kwargs)


def _trusted(text: str) -> EnvSpec:
    """Read the specification of an environment; its code must be that of a registered one.

    Raises:
        ImportError: The simulator is not installed.
        ValueError: It names other code, which making the environment would run.
    """
    try:
        written = json.loads(text)
        entry_point = written["entry_point"]
        package = entry_point.partition(".")[0]
        # Datasets of older Gymnasium versions carry fields that EnvSpec no longer has.
        known = {item.name for item in fields(EnvSpec) if item.init}
        spec = EnvSpec(**{k: v for k, v in written.items() if k in known})
    except (AttributeError, gym.error.Error, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"the dataset names no environment that can be made: {error}") from error
    if any(package in packages for packages in optional.EXTRAS.values()):
        gym.register_envs(optional.require(package))
    if entry_point.startswith("gymnasium.envs.mujoco"):
        optional.require("mujoco")
    if spec.additional_wrappers or entry_point not in {
        registered.entry_point for registered in gym.registry.values()
    }:
        raise ValueError(
            f"the dataset names the environment {spec.id!r} with the code {entry_point!r} and the "
            f"wrappers {spec.additional_wrappers}; made are environments without wrappers whose "
            f"code is registered, since a dataset must not choose what runs. If you trust it, "
            f"register the environment (gymnasium.register), or make it with gymnasium.make"
        )
    return spec
