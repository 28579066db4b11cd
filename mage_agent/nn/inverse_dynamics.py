"""Inverse dynamics: from a plan to the action to execute now (Eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mage_agent.nn.layers import MLP

__all__ = ["InverseDynamics"]


class InverseDynamics(nn.Module):
    """a_0 = I(sum_k z_k), optionally also given s_0.

    Args:
        plan_dim: size of the flattened plan: L_K * C for the latent, 2 S for two decoded states.
        observation_dim: size of s_0, or 0 to read the plan alone.
        action_dim: action size A.
        width: hidden width.
    """

    def __init__(self, plan_dim: int, observation_dim: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.observation_dim = observation_dim
        # The flag tells a hidden state from a state of zeros.
        extra = observation_dim + 1 if observation_dim else 0
        self.mlp = MLP(plan_dim + extra, width, width, action_dim)

    def forward(self, plan: Tensor, observation: Tensor, visible: Tensor | None = None) -> Tensor:
        """Read the action off a plan.

        Args:
            plan: shape (B, plan_dim).
            observation: s_0, shape (B, S).
            visible: 0 where s_0 is hidden, shape (B, 1); None shows it everywhere.

        Returns:
            Action in normalised units, shape (B, A).
        """
        # Deviation: in mazes and locomotion, I also sees s_0.
        if self.observation_dim:
            if visible is None:
                visible = torch.ones_like(observation[:, :1])
            plan = torch.cat([plan, observation * visible, visible], dim=-1)
        action: Tensor = self.mlp(plan)
        return action
