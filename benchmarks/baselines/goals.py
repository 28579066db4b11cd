"""What HIQL needs of goals: their values, and places that the data reached as goals."""

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from benchmarks.baselines.networks import Ensemble, mlp, xavier

__all__ = ["GoalValue", "Hindsight", "scaled"]

_HERE, _ANYWHERE = 0.2, 0.3
"""Shares of the values' goals that are the state's own, and any of the data."""


def scaled(code: Tensor) -> Tensor:
    """Representations (..., d) of length sqrt(d)."""
    found: Tensor = nn.functional.normalize(code, dim=-1) * code.shape[-1] ** 0.5
    return found


class GoalValue(nn.Module):
    """Two values V(s, phi(s, g)) of a goal, and its representation phi of length sqrt(d)."""

    def __init__(self, state: int, goal: int, code: int, hidden: tuple[int, ...]) -> None:
        super().__init__()

        def network(*sizes: int) -> nn.Sequential:
            return xavier(mlp(sizes, activation=nn.GELU, layer_norm=True))

        self.phi = network(state + goal, *hidden, code)
        self.values = Ensemble(lambda: network(state + code, *hidden, 1))

    def encode(self, state: Tensor, goal: Tensor) -> Tensor:
        """Representations (..., d) of goals."""
        return scaled(self.phi(torch.cat([state, goal], -1)))

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """Both values, (2, ...)."""
        values: Tensor = self.values(state, self.encode(state, goal))
        return values


class Hindsight:
    """Draws goals, for the rows of a batch, from what the data reached.

    Args:
        discount: of the distances of goals ahead, which are geometric.
        subgoal_steps: steps k from a state to its subgoal.
        anywhere: share of the high-level policy's goals that are any of the data.
        device: of the batches.
    """

    def __init__(
        self, discount: float, subgoal_steps: int, anywhere: float, device: torch.device
    ) -> None:
        self.discount, self.subgoal_steps, self.device = discount, subgoal_steps, device
        self.anywhere = anywhere

    def note(self, columns: TensorDictBase) -> TensorDictBase:
        """Note what the batches will be drawn from."""
        _, lengths = columns["episode"].unique_consecutive(return_counts=True)
        self.last = (lengths.cumsum(0) - 1).repeat_interleave(lengths).to(self.device)
        self.state = columns["observation"].to(self.device)
        self.reached = columns["reached"].to(self.device)
        return columns.exclude("reached")

    def with_goals(self, batch: TensorDictBase) -> TensorDictBase:
        """A batch with the goals of the value and of both policies.

        A value's goal is the state's own place, one later in the episode, or any; a high-level
        policy's is one later in the episode, or any, and its subgoal lies k steps ahead, but no
        further than the goal; a low-level policy's goal lies k steps ahead.
        """
        row = batch["index"].flatten()
        last, whole = self.last[row], len(self.last)
        further = torch.minimum(row + self.subgoal_steps, last)

        def uniform() -> Tensor:
            return torch.rand(len(row), device=row.device)

        def anywhere() -> Tensor:
            return torch.randint(whole, (len(row),), device=row.device)

        steps = (torch.log(1 - uniform()) / math.log(self.discount)).ceil().clamp(max=whole)
        ahead = torch.minimum(row + steps.long(), last)
        chance = uniform()
        goal = torch.where(chance < _ANYWHERE, anywhere(), ahead)
        goal = torch.where(chance > 1 - _HERE, row, goal)
        first, part = torch.minimum(row + 1, last), uniform()
        later = first + ((last - first) * part).round().long()
        away = uniform() < self.anywhere
        subgoal = torch.where(away, further, torch.minimum(further, later))
        return batch.update(
            {
                "goal": self.reached[goal],
                "at_goal": goal == row,
                "aim": self.reached[torch.where(away, anywhere(), later)],
                "subgoal": self.reached[subgoal],
                "subgoal_state": self.state[subgoal],
                "low_goal": self.reached[further],
            }
        )
