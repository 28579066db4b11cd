"""Inverse dynamics: from a plan to the action to execute now (Eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mage_agent.nn.layers import MLP

__all__ = ["InverseDynamics"]


class InverseDynamics(nn.Module):
    """a_0 = I(sum_k z_k), optionally also given what the plan was made for.

    Args:
        plan_dim: size of what I sees of the plan: L_K * C for the latent, 2 S for two decoded
            states, G for a direction.
        condition_dim: size of what I is told besides: s_0 or its first entries, (s_0, R_0), or 0 to
            read the plan alone.
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
        # Deviation: in PointMaze and locomotion, the plan is scaled down beside (s_0, R_0).
        # Its many entries, which a step of Adam moves all at once, would drown the few of s_0.
        self.plan_scale = plan_scale
        self.dropout = nn.Dropout(dropout)
        # The flag tells a hidden condition from a condition of zeros.
        extra = condition_dim + 1 if condition_dim else 0
        self.mlp = MLP(plan_dim + extra, *[width] * num_layers, action_dim)

    def reset_parameters(self) -> None:
        """Start anew, from other random weights."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, plan: Tensor, condition: Tensor, visible: Tensor | None = None) -> Tensor:
        """Read the action off a plan.

        Args:
            plan: shape (B, plan_dim).
            condition: s_0 or (s_0, R_0), of which the first ``condition_dim`` entries are used,
                shape (B, at least condition_dim).
            visible: 0 where the condition is hidden, shape (B, 1); None shows it everywhere.

        Returns:
            Action in normalised units, shape (B, A).
        """
        plan = self.plan_scale * self.dropout(plan)
        # Deviation: in mazes and locomotion, I also sees s_0, in locomotion and maze2d R_0 too.
        if self.condition_dim:
            if visible is None:
                visible = torch.ones_like(condition[:, :1])
            known = condition[:, : self.condition_dim] * visible
            plan = torch.cat([plan, known, visible], dim=-1)
        action: Tensor = self.mlp(plan)
        return action
