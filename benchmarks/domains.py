"""Domains: how the datasets of one kind of task are trained on and evaluated."""

import re
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "ADROIT",
    "DOMAINS",
    "FINAL_RETURN",
    "POINT_MAZES",
    "Domain",
    "base_id",
    "domain_of",
    "split_id",
]

ADROIT = ("pen", "door", "hammer", "relocate")
"""Domains of one hand."""
POINT_MAZES = ("pointmaze", "maze2d", "multi2d")
"""Domains of a point in a maze."""

FINAL_RETURN = "@final-return"
"""At the end of a dataset's id: the same data, where the return of an episode is the reward of its
last step."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What all datasets of a domain have in common; the defaults are those of unknown domains.

    Attributes:
        name: the middle part of a dataset's id, such as "pen".
        preset: which preset agents take, at the paper's size, or at the small one with "-small"
            appended; empty stands for the generic one, "small".
        episodes: evaluation episodes per training seed.
        online_episodes: episodes that a stage of online fine-tuning collects.
        discount: of methods whose publication names none.
        observation_keys: observation entries, concatenated in this order; empty takes all that the
            dataset has.
        deterministic: whether policies take their best action, and do not sample.
        environment: settings of the environment that differ from the dataset's own.
    """

    name: str
    preset: str = ""
    episodes: int = 20
    online_episodes: int = 100
    discount: float = 0.99
    observation_keys: tuple[str, ...] = ()
    deterministic: bool = True
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether the domain is one of ``DOMAINS``."""
        return self.name in DOMAINS

    def presets(self, kind: str = "", *, paper_size: bool) -> list[str]:
        """Names of presets that suit a dataset, the best first; an agent need not have all.

        Args:
            kind: of the dataset within the domain, such as "medium-replay".
            paper_size: whether to take the paper's size, not that for two cores.
        """
        names = [name for name in (f"{self.name}-{kind}", self.name, self.preset) if name]
        return names if paper_size else [*(f"{name}-small" for name in names), "small"]


_LONE: dict[str, Any] = {"observation_keys": ("observation",)}
_GOALS = ("observation", "achieved_goal", "desired_goal")
_MAZE: dict[str, Any] = {"observation_keys": _GOALS, "episodes": 100, "online_episodes": 500}
_ADROIT = {"preset": "adroit", **_LONE}
_ANTMAZE = {"preset": "antmaze", "discount": 0.998, **_MAZE}
_LOCOMOTION = {"preset": "locomotion", **_LONE}
DOMAINS = {
    name: Domain(name=name, **settings)
    for name, settings in {
        **dict.fromkeys(ADROIT, _ADROIT),
        "pen": {**_ADROIT, "environment": {"max_episode_steps": 100}},  # D4RL's limit
        "kitchen": {"preset": "kitchen", **_LONE},
        "antmaze": _ANTMAZE,
        "humanoidmaze": _ANTMAZE,
        "pointmaze": {"preset": "pointmaze", **_MAZE},
        "maze2d": {**_MAZE, "preset": "maze2d", **_LONE},  # sees no goal
        "multi2d": {"preset": "pointmaze", **_MAZE},
        "halfcheetah": _LOCOMOTION,
        "hopper": _LOCOMOTION,
        "walker2d": _LOCOMOTION,
        "ant": _LOCOMOTION,
    }.items()
}


def base_id(dataset_id: str) -> str:
    """The id without what ``FINAL_RETURN`` adds to it."""
    return dataset_id.removesuffix(FINAL_RETURN)


def split_id(dataset_id: str) -> tuple[str, str]:
    """Domain and kind of a dataset: "pen", "expert" of ``local/pen/expert-v0``, ``pen-expert-v1``.

    The kind is empty where the id names none.
    """
    dataset_id = base_id(dataset_id)
    parts = dataset_id.split("/")[-2:] if "/" in dataset_id else dataset_id.split("-", 1)
    domain, kind = (*parts, "")[:2]
    return domain, re.sub(r"-?v\d+$", "", kind)


def domain_of(dataset_id: str) -> Domain:
    """The domain of a dataset, by its id on Minari or its D4RL name; it need not be a known one."""
    name, _ = split_id(dataset_id)
    return DOMAINS.get(name) or Domain(name=name)
