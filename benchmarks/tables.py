"""The paper's tables as selections: datasets, methods, and for the ablations variants of MAGE."""

from dataclasses import dataclass, field
from typing import Any

import minari

from mage_agent.d4rl import TASKS

__all__ = ["TABLES", "Table", "find_table", "stand_in", "variant_name"]

Changes = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a table compares, as far as it can be run here.

    Attributes:
        datasets: D4RL's names, or ids of datasets that have no such name.
        methods: its methods that are bundled.
        variants: changes of MAGE by name, as JSON has them; the empty name is MAGE as published.
    """

    datasets: tuple[str, ...]
    methods: tuple[str, ...] = ("mage",)
    variants: dict[str, Changes] = field(default_factory=lambda: {"": {}})


def _of_domain(domain: str) -> tuple[str, ...]:
    return tuple(task.id for task in TASKS.values() if task.domain == domain)


_ADROIT = _of_domain("adroit")
_KITCHEN = ("kitchen-partial-v0", "kitchen-mixed-v0")
_MAZES = tuple(  # collected on demand by benchmarks/collect/recipes.py
    f"local/pointmaze/{task}-{maze}-v0"
    for task in ("maze2d", "multi2d")
    for maze in ("umaze", "medium", "large")
)
_OGBENCH = (
    "ogbench/pointmaze/giant-navigate-v0",
    "ogbench/antmaze/giant-navigate-v0",
    "ogbench/antmaze/teleport-navigate-v0",
    "ogbench/humanoidmaze/giant-navigate-v0",
)
_ABLATED = ("pen-expert-v1", "door-cloned-v1")
_SITES = ("autoencoder", "first_scale", "finer_scales", "condition_loss")


def _scales(*counts: int) -> dict[str, Changes]:
    """Return variants with other numbers of scales.

    The latent of 24 steps by a stride of 3 has room for 8 scales; more take a stride of 2.
    """
    return {
        f"K={count}": {"num_scales": count} | ({"temporal_stride": 2} if count > 8 else {})
        for count in counts
    }


def _without(site: str) -> Changes:
    return {"return_conditioning": [other for other in _SITES if other != site]}


def _ablation(variants: dict[str, Changes], *more: str, methods: tuple[str, ...] = ()) -> Table:
    return Table(datasets=_ABLATED + more, methods=("mage", *methods), variants=variants)


TABLES = {
    1: Table(datasets=_ADROIT, methods=("mage", "iql", "dt")),
    2: Table(datasets=_KITCHEN, methods=("mage", "iql", "dt")),
    3: Table(datasets=_of_domain("antmaze"), methods=("mage", "bc", "cql", "iql", "dt")),
    4: Table(datasets=_MAZES, methods=("mage", "cql", "iql", "dt")),
    5: _ablation(_scales(1, 2, 4, 6, 8, 10)),
    6: _ablation(
        {"": {}}
        | {f"({', '.join(x)})": {"trajectory": x} for x in ("S", "A", "RSA")}
        | {"(A) with CQL": {"trajectory": "A", "return_conditioning": [], "q_value_weight": 1.0}}
    ),
    7: _ablation(
        {
            "": {},
            "no return in D": _without("autoencoder"),
            "no return in finer scales": _without("finer_scales"),
            "no return in L_cond": _without("condition_loss"),
        }
    ),
    15: Table(datasets=_ADROIT, methods=("mage", "bc", "cql")),
    16: Table(datasets=_KITCHEN, methods=("mage", "bc", "cql")),
    17: Table(datasets=_MAZES),
    18: Table(datasets=_of_domain("locomotion"), methods=("mage", "bc", "cql", "iql", "dt")),
    19: _ablation({"": {}, "explicit": {"inverse_dynamics": "explicit"}}),
    20: _ablation({f"V={size}": {"codebook_size": size} for size in (128, 256, 512, 1024)}),
    21: _ablation({f"depth={depth}": {"num_blocks": depth} for depth in (2, 4, 8, 16)}),
    22: _ablation({"": {}, "direct decoder": {"condition_guidance": "decoder"}}),
    23: _ablation(
        {
            "": {},
            "no condition": {"return_conditioning": []},
            "reweighting": {"return_conditioning": [], "return_reweighting": True},
        }
    ),
    24: Table(datasets=_OGBENCH),
    26: _ablation(
        {
            f"K={count} without L_cond": {"num_scales": count, "condition_guidance": "none"}
            for count in (8, 1)
        }
        | _scales(1, 2, 4, 8),
        "hammer-expert-v1",
        "relocate-expert-v1",
        methods=("dt",),
    ),
}


def find_table(number: int) -> Table:
    """Return a table of the paper.

    Raises:
        ValueError: the table cannot be run; the message lists those that can.
    """
    if number not in TABLES:
        raise ValueError(
            f"no table {number}; the paper's tables that can be run are {sorted(TABLES)}."
        )
    return TABLES[number]


def variant_name(changes: Changes) -> str:
    """Return the paper's name of changed settings, or one that spells them out."""
    for table in TABLES.values():
        for name, known in table.variants.items():
            if known == changes:
                return name
    return "+".join(f"{key}={value}" for key, value in sorted(changes.items()))


def stand_in(dataset: str) -> str:
    """Return the dataset to use for one of a table.

    The same data on Minari under D4RL's name, unless only a remake is on this machine: that of
    ``D4RL/pen/expert-v2`` is ``local/pen/expert-v0``.
    """
    task = TASKS.get(dataset)
    if task is None:
        return dataset
    name, _, data = dataset.rpartition("-")[0].partition("-")
    here = minari.list_local_datasets()
    remake = f"local/{name}/{data}-v0"
    if task.minari_id not in here and remake in here:
        return remake
    return task.minari_id or dataset
