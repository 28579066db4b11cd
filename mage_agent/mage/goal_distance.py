"""How far a goal is, as the sum of absolute differences of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mage_agent.nn.layers import MLP, FourierFeatures

__all__ = ["GoalDistance"]

_EMBEDDING = 32
_FEATURES = 64
_SCALE = 2.0
"""Factor on distances, which so begin at about what the data's are: too small ones leak from goal
to goal, and grow slowly."""


class GoalDistance(nn.Module):
    """``c |phi(s) - psi(g)|_1``, and ``c |chi(s, m) - psi(g)|_1`` for a move m, in horizons.

    Args:
        state_dim: entries of a state that are seen.
        goal_dim: entries G of a goal.
        moved_dim: entries E of a move.
        width: hidden width.
    """

    def __init__(self, state_dim: int, goal_dim: int, moved_dim: int, width: int) -> None:
        super().__init__()
        self.state_features = FourierFeatures(state_dim, _FEATURES)
        self.goal_features = FourierFeatures(goal_dim, _FEATURES)
        seen = self.state_features.size
        sizes = {"state": seen, "move": seen + moved_dim, "goal": self.goal_features.size}
        # By the name of blocks, for Muon: Adam fits the rarest places last.
        self.blocks = nn.ModuleDict(
            {name: MLP(size, width, width, _EMBEDDING) for name, size in sizes.items()}
        )

    def forward(self, state: Tensor, goal: Tensor, moves: Tensor | None = None) -> Tensor:
        """Distance to a goal (..., G) from a state (..., S), and after moves (..., E) from there.

        Returns:
            Shape (..., 1), with moves (..., 2).
        """
        seen, there = self.state_features(state), self.blocks["goal"](self.goal_features(goal))
        places = [self.blocks["state"](seen)]
        if moves is not None:
            places.append(self.blocks["move"](torch.cat([seen, moves], dim=-1)))
        apart = [(place - there).abs().sum(-1, keepdim=True) for place in places]
        return _SCALE * torch.cat(apart, dim=-1)
