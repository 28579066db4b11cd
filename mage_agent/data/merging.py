"""The metadata of datasets that were joined, for instance by ``torch.cat``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tensordict import NonTensorData, NonTensorStack

__all__ = ["distinct", "merged"]

WIDENED: dict[str, Callable[[Sequence[float]], float]] = {"action_low": min, "action_high": max}
"""Bounds, of which the wider one holds for both."""


def distinct(found: Any) -> list[dict[str, Any]]:
    """Return the different metadata among those that the rows of a TensorDict have, in order.

    Args:
        found: What the TensorDict holds under ``metadata``.
    """
    rows: dict[int, dict[str, Any]] = {}  # rows share the objects, so that this takes no time
    for facts in _leaves(found):
        rows.setdefault(id(facts), facts)
    different: list[dict[str, Any]] = []
    for facts in rows.values():
        if facts not in different:
            different.append(facts)
    return different


def _leaves(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, NonTensorStack):
        for part in found.tensordicts:
            yield from _leaves(part)
    else:
        yield found.data if isinstance(found, NonTensorData) else found


def merged(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the metadata of joined datasets: what they agree on, and the wider bounds.

    Args:
        several: The different ones, in the order of the datasets.

    Raises:
        ValueError: They contradict each other.
    """
    if len(several) < 2:
        return dict(several[0]) if several else {}
    facts: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in several for key in one):
        values: list[Any] = []
        for one in several:
            if key in one and one[key] not in values:
                values.append(one[key])
        if key == "dataset_id":
            facts[key] = " + ".join(values)
        elif key in WIDENED and len({len(value) for value in values}) == 1:
            facts[key] = [WIDENED[key](column) for column in zip(*values, strict=True)]
        elif len(values) == 1:
            facts[key] = values[0]
        else:
            raise ValueError(
                f"the joined datasets contradict each other in {key}: "
                f"{' and '.join(map(repr, values))}. If they belong together all the same, "
                f"join them without metadata: torch.cat([one.exclude('metadata'), ...]), and give "
                f"load_dataset the action_low and action_high"
            )
    return facts
