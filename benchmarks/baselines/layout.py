"""Which entries of observations are planned, and where plans end."""

from collections.abc import Mapping

from torch import Tensor

__all__ = ["Layout"]


class Layout:
    """Which entries of observations are planned, and at which the plan's end is known.

    The entry ``desired_goal`` is not planned but is where ``achieved_goal`` ends; without the two,
    a goal that is told is where the first entries end.

    Args:
        sizes: of the observation's entries, in their order.
        told: the goal, where it is not observed; None where plans end anywhere.

    Attributes:
        planned: columns of the observation that are planned.
        columns: those of them whose end is known.
        ends: their places among the planned ones.
    """

    def __init__(self, sizes: Mapping[str, int], told: tuple[float, ...] | None) -> None:
        names = [name for name, size in sizes.items() for _ in range(size)]
        at = {name: [i for i, each in enumerate(names) if each == name] for name in sizes}
        self._told, self._desired = told, at.get("desired_goal", [])
        self.planned, self.columns = list(range(len(names))), list(range(len(told or ())))
        if told is not None and self._desired and "achieved_goal" in at:
            self._told, self.columns = None, at["achieved_goal"]
            self.planned = [i for i in self.planned if i not in self._desired]
        if len(self.columns) > len(self.planned):
            raise ValueError(f"goal is {told}; observations have {len(names)} entries.")
        self.ends = [self.planned.index(column) for column in self.columns]

    def goal(self, observation: Tensor) -> Tensor:
        """Where the columns end, (B, G) or (G,)."""
        if self._told is None:
            return observation[:, self._desired]
        return observation.new_tensor(self._told)
