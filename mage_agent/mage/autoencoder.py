"""Encoder and condition-guided decoder of trajectory windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mage_agent.nn.layers import MLP, Block

__all__ = ["Adapter", "TrajectoryDecoder", "TrajectoryEncoder"]


class TrajectoryEncoder(nn.Module):
    """f = E(x, R_0) (Algorithm 1, line 1): a window to a shorter latent sequence.

    Args:
        trajectory_dim: channels X of a step.
        horizon: steps T of a window.
        temporal_stride: steps per latent step.
        code_dim: code width C.
        width: width D.
        num_blocks: transformer blocks.
        num_heads: attention heads.
    """

    def __init__(
        self,
        *,
        trajectory_dim: int,
        horizon: int,
        temporal_stride: int,
        code_dim: int,
        width: int,
        num_blocks: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.temporal_stride = temporal_stride
        self.embed = nn.Linear(trajectory_dim * temporal_stride, width)
        self.embed_return = nn.Linear(1, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon // temporal_stride, width))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, code_dim)

    def forward(self, trajectory: Tensor, return_to_go: Tensor) -> Tensor:
        """Encode.

        Args:
            trajectory: x, shape (B, T, X).
            return_to_go: R_0, shape (B, 1).

        Returns:
            Latent f, shape (B, L_K, C).
        """
        # Deviation 1: the encoder pools time by temporal_stride, as TAP does.
        patches = trajectory.unflatten(1, (-1, self.temporal_stride)).flatten(2)
        x = self.embed(patches) + self.position + self.embed_return(return_to_go)[:, None]
        for block in self.blocks:
            x, _ = block(x)
        latent: Tensor = self.project(self.norm(x))
        return latent


class Adapter(nn.Module):
    """Bottleneck that adapts a layer's output to the condition (section A.4.1).

    Only the first latent step is adapted, since the condition is about the plan's start; attention
    carries the change on to the later ones. Starts as the identity, so that guidance begins at the
    trained decoder.
    """

    def __init__(self, width: int, condition_dim: int, adapter_dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, adapter_dim)
        self.condition = nn.Linear(condition_dim, adapter_dim)
        self.up = nn.Linear(adapter_dim, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Adapt (B, L, D) to a condition (B, S + 1)."""
        # Deviation 4: adapters change the first latent step, not all of them.
        first = x[:, 0]
        adapted = first + self.up(nn.functional.gelu(self.down(first) + self.condition(condition)))
        return torch.cat([adapted[:, None], x[:, 1:]], dim=1)


class TrajectoryDecoder(nn.Module):
    """x_hat = D(sum_k z_k, R_0) (Algorithm 2), and D' with adapters between its layers (Eq. 7).

    Args:
        trajectory_dim: channels X of a step.
        observation_dim: entries of s_0 that condition: S, or 3 G where the plan holds goals alone.
        horizon: steps T of a window.
        temporal_stride: steps per latent step.
        code_dim: code width C.
        width: width D.
        num_blocks: transformer blocks.
        num_heads: attention heads.
        adapter_dim: width of the adapters' bottleneck; None builds no adapters.
    """

    def __init__(
        self,
        *,
        trajectory_dim: int,
        observation_dim: int,
        horizon: int,
        temporal_stride: int,
        code_dim: int,
        width: int,
        num_blocks: int,
        num_heads: int,
        adapter_dim: int | None,
    ) -> None:
        super().__init__()
        self.temporal_stride = temporal_stride
        self.embed = nn.Linear(code_dim, width)
        self.embed_return = nn.Linear(1, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon // temporal_stride, width))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.project = MLP(width, width, trajectory_dim * temporal_stride)
        self.adapters = nn.ModuleList()
        if adapter_dim is not None:
            self.adapters.extend(
                Adapter(width, observation_dim + 1, adapter_dim) for _ in range(num_blocks + 1)
            )

    def forward(
        self, latent: Tensor, return_to_go: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """Decode with D, or with D' when a condition is given and there are adapters.

        Args:
            latent: sum_k z_k, shape (B, L_K, C).
            return_to_go: R_0, shape (B, 1).
            condition: (s_0, R_0), shape (B, S + 1).

        Returns:
            Trajectory, shape (B, T, X).
        """
        guided = condition is not None and len(self.adapters) > 0
        x = self.embed(latent) + self.position + self.embed_return(return_to_go)[:, None]
        for index, block in enumerate(self.blocks):
            if guided:
                x = self.adapters[index](x, condition)
            x, _ = block(x)
        if guided:
            x = self.adapters[-1](x, condition)
        patches = self.project(self.norm(x)).unflatten(-1, (self.temporal_stride, -1))
        trajectory: Tensor = patches.flatten(1, 2)
        return trajectory
