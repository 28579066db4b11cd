"""How far a goal is, as a length between embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mage_agent.nn.layers import MLP

__all__ = ["GoalDistance"]

_EMBEDDING = 32
_SCALE = 10.0
"""Factor on distances, which so begin at about what the data's are: too small ones leak from goal
to goal, and grow slowly."""


class GoalDistance(nn.Module):
    """``c |phi(s) - psi(g)|``, and ``c |chi(s, m) - psi(g)|`` for a move m, in horizons.

    Args:
        state_dim: entries of a state, the desired goal left out.
        goal_dim: entries G of a goal.
        moved_dim: entries E of a move.
        width: hidden width.
    """

    def __init__(self, state_dim: int, goal_dim: int, moved_dim: int, width: int) -> None:
        super().__init__()
        self.state = MLP(state_dim, width, width, _EMBEDDING)
        self.move = MLP(state_dim + moved_dim, width, width, _EMBEDDING)
        self.goal = MLP(goal_dim, width, width, _EMBEDDING)

    def forward(self, state: Tensor, goal: Tensor, moves: Tensor | None = None) -> Tensor:
        """Distance to a goal (..., G) from a state (..., S - G), or after a move, (..., 1)."""
        here = self.state(state) if moves is None else self.move(torch.cat([state, moves], dim=-1))
        squares = (here - self.goal(goal)).square().sum(-1, keepdim=True)
        distance: Tensor = _SCALE * (squares + 1e-6).sqrt()  # whose slope at 0 is finite
        return distance
