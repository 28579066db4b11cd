"""Methods to compare with, one short file each."""

from typing import Any

from benchmarks.baselines.adt import ADT
from benchmarks.baselines.base import Baseline, UnsuitableError
from benchmarks.baselines.bc import BehaviourCloning, TenPercentCloning
from benchmarks.baselines.cql import CQL
from benchmarks.baselines.diffuser import Diffuser
from benchmarks.baselines.diffusion_ql import DiffusionQL
from benchmarks.baselines.dt import DT
from benchmarks.baselines.dv import DV
from benchmarks.baselines.fql import FQL
from benchmarks.baselines.hd import HD
from benchmarks.baselines.hiql import HIQL
from benchmarks.baselines.iql import IQL
from benchmarks.baselines.rebrac import ReBRAC
from benchmarks.baselines.tap import TAP
from benchmarks.baselines.td3_bc import TD3BC
from benchmarks.domains import POINT_MAZES
from mage_agent import Config

__all__ = ["BASELINES", "Baseline", "UnsuitableError", "configure"]

BASELINES: dict[str, type[Baseline]] = {
    cls.name: cls
    for cls in (
        *(BehaviourCloning, TenPercentCloning, TD3BC, ReBRAC, CQL, IQL, DT),
        *(FQL, DiffusionQL, ADT, HIQL, Diffuser, HD, DV, TAP),
    )
}
"""Name on the command line and in records -> method."""


def configure(
    baseline: type[Baseline],
    domain: str,
    dataset: str,
    *,
    discount: float,
    paper_size: bool = False,
    **changes: Any,
) -> Config:
    """The published settings of a baseline.

    Args:
        baseline: the method.
        domain: of the dataset, such as "antmaze".
        dataset: name of the dataset within it, such as "medium-diverse"; it may be empty.
        discount: of the domain, where the publication names none.
        paper_size: whether to take the published size, where there is a small one beside it.
        **changes: settings that differ from the published ones.

    Raises:
        ValueError: the method has no such setting, or its value is not allowed.
    """
    settings: dict[str, Any] = {"discount": discount} if baseline.discounted else {}
    kinds = [f"{domain}/{dataset}"]
    if domain in POINT_MAZES:  # whose size decides: "large" of "large-navigate" and "large-dense"
        kinds.insert(0, kinds[0].split("-")[0])
    small = {} if paper_size else baseline.config_class.SMALL  # type: ignore[attr-defined]
    for table in (baseline.config_class.PRESETS, small):
        for name in ("", domain, *kinds):
            settings |= table.get(name, {})
    return baseline.config_class.from_dict({**settings, **changes})
