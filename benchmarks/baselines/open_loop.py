"""Planners as the published scores of point mazes have them: one plan, followed by a PD law.

They train as the planners do whose names they bear. ``all`` leaves them out: other tasks have no
such law.
"""

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.baselines.diffuser import Diffuser, DiffuserConfig
from benchmarks.baselines.dv import DV, DVConfig
from benchmarks.baselines.hd import HD, HDConfig
from benchmarks.baselines.planner import Planner

__all__ = ["OPEN_LOOP"]


@dataclass(frozen=True, kw_only=True)
class OpenDiffuserConfig(DiffuserConfig):
    """Settings of Diffuser, open loop."""

    open_loop: bool = True


class OpenDiffuser(Diffuser):
    """Diffuser, open loop."""

    name: ClassVar[str] = "diffuser-open"
    config_class: ClassVar[type[DiffuserConfig]] = OpenDiffuserConfig


@dataclass(frozen=True, kw_only=True)
class OpenHDConfig(HDConfig):
    """Settings of Hierarchical Diffuser, open loop."""

    open_loop: bool = True


class OpenHD(HD):
    """Hierarchical Diffuser, open loop."""

    name: ClassVar[str] = "hd-open"
    config_class: ClassVar[type[HDConfig]] = OpenHDConfig


@dataclass(frozen=True, kw_only=True)
class OpenDVConfig(DVConfig):
    """Settings of Diffusion Veteran, open loop."""

    open_loop: bool = True


class OpenDV(DV):
    """Diffusion Veteran, open loop, between its waypoints along straight lines."""

    name: ClassVar[str] = "dv-open"
    config_class: ClassVar[type[DVConfig]] = OpenDVConfig


OPEN_LOOP: dict[str, type[Planner]] = {cls.name: cls for cls in (OpenDiffuser, OpenHD, OpenDV)}
"""Name on the command line and in records -> method."""
