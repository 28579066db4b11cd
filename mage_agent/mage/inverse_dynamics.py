"""Inverse dynamics: from a plan to the action to execute now (Eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mage_agent.nn.layers import MLP

__all__ = ["InverseDynamics"]


class InverseDynamics(nn.Module):
    """a_0 = I(sum_k z_k) (Eq. 6), optionally also given entries of (s_0, R_0).

    Args:
        plan_dim: size of what is read of the plan.
        condition_dim: entries of (s_0, R_0) that are read besides, the first ones; 0 reads the plan
            alone.
        action_dim: action size A.
        width: hidden width.
        num_layers: hidden layers.
        plan_scale: factor on the plan.
        dropout: rate at which entries of the plan are dropped in training.
    """

    def __init__(
        self,
        plan_dim: int,
        condition_dim: int,
        action_dim: int,
        width: int,
        *,
        num_layers: int = 2,
        plan_scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.condition_dim = condition_dim
        # Deviation 13: beside (s_0, R_0), the plan is scaled down (locomotion, the maze game).
        # It has many more entries than s_0, and a step of Adam moves the weights of all of them.
        self.plan_scale = plan_scale
        self.dropout = nn.Dropout(dropout)
        self.mlp = MLP(plan_dim + condition_dim, *[width] * num_layers, action_dim)

    def reset_parameters(self) -> None:
        """Draw new random weights."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, plan: Tensor, condition: Tensor) -> Tensor:
        """Read the action off a plan.

        Args:
            plan: shape (B, plan_dim).
            condition: (s_0, R_0), shape (B, S + 1).

        Returns:
            Action in normalised units, shape (B, A).
        """
        plan = self.plan_scale * self.dropout(plan)
        # Deviation 12: in Maze2D and locomotion, inverse dynamics also sees s_0, in locomotion R_0
        # too; where goals are observed, s_0 without them.
        known = torch.cat([plan, condition[:, : self.condition_dim]], dim=-1)
        action: Tensor = self.mlp(known)
        return action
