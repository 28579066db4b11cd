"""The task table: which preset and how many evaluation episodes go with which dataset."""

from dataclasses import dataclass, field, replace
from typing import Any

from mage_agent import MAGEConfig

__all__ = ["TASKS", "Task", "domain_of", "mage_config", "task_of"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a dataset is trained on and evaluated; the same for all datasets of a domain.

    Attributes:
        preset: name of the ``MAGEConfig`` preset.
        episodes: evaluation episodes per training seed (the paper's).
        deterministic: whether return-conditioned policies take their likeliest action.
        environment: settings of the environment that differ from the dataset's own.
    """

    preset: str
    episodes: int
    deterministic: bool = True
    environment: dict[str, Any] = field(default_factory=dict)


_ADROIT = Task(preset="adroit", episodes=20)
_LOCOMOTION = Task(preset="locomotion", episodes=20)
_ANTMAZE = Task(preset="antmaze", episodes=100)
TASKS = {
    "pen": replace(_ADROIT, environment={"max_episode_steps": 100}),  # D4RL's limit
    "door": _ADROIT,
    "hammer": _ADROIT,
    "relocate": _ADROIT,
    "kitchen": Task(preset="kitchen", episodes=20),
    "antmaze": _ANTMAZE,
    "humanoidmaze": _ANTMAZE,
    "pointmaze": Task(preset="maze2d", episodes=100),
    "halfcheetah": _LOCOMOTION,
    "hopper": _LOCOMOTION,
    "walker2d": _LOCOMOTION,
    "ant": _LOCOMOTION,
}


def task_of(dataset_id: str) -> Task:
    """Find the task of a dataset by the middle part of its Minari id, or by its D4RL name.

    Raises:
        ValueError: the domain is not in the table.
    """
    return TASKS[domain_of(dataset_id)]


def domain_of(dataset_id: str) -> str:
    """The middle part of a Minari id, a key of the table.

    Raises:
        ValueError: the domain is not in the table.
    """
    parts = dataset_id.split("/")
    domain = parts[-2] if len(parts) > 1 else dataset_id.partition("-")[0]
    if domain not in TASKS:
        raise ValueError(
            f"{dataset_id!r} belongs to no known domain; known: {sorted(TASKS)}. An id looks like "
            "local/pen/expert-v0 or pen-expert-v1; a new domain needs a row in benchmarks/tasks.py."
        )
    return domain


def mage_config(domain: str, *, paper_size: bool = True, **changes: Any) -> MAGEConfig:
    """Return MAGE's configuration for a domain, at the paper's size or the small one.

    Raises:
        ValueError: a setting is unknown, or its value is not allowed.
    """
    preset = TASKS[domain].preset
    return MAGEConfig.preset(preset if paper_size else f"{preset}-small", **changes)
