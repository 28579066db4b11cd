"""Methods that MAGE is compared with, one short file each."""

from benchmarks.baselines.base import Baseline
from benchmarks.baselines.bc import BehaviourCloning, TenPercentCloning
from benchmarks.baselines.cql import CQL
from benchmarks.baselines.dt import DT
from benchmarks.baselines.iql import IQL
from benchmarks.baselines.rebrac import ReBRAC
from benchmarks.baselines.td3_bc import TD3BC

__all__ = ["BASELINES", "Baseline"]

BASELINES: dict[str, type[Baseline]] = {
    "bc": BehaviourCloning,
    "ten_percent_bc": TenPercentCloning,
    "td3_bc": TD3BC,
    "rebrac": ReBRAC,
    "cql": CQL,
    "iql": IQL,
    "dt": DT,
}
"""Name on the command line and in records -> method."""
