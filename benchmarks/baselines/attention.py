"""Networks of Diffusion Veteran: transformers of states, and a perceptron of actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.baselines.networks import mlp
from benchmarks.baselines.unet import (
    BasicTransformerBlock,
    TimestepEmbedding,
    Timesteps,
)

__all__ = ["ActionDenoiser", "PlanCritic", "PlanDenoiser"]

_HEAD = 64  # channels of an attention head


class PlanDenoiser(nn.Module):
    """The noise in a sequence of states, by a diffusion transformer.

    The blocks are ``diffusers``', whose modulation by t is one projection for all blocks and an
    offset for each (adaLN-single), where the publication's blocks have a projection each.

    Args:
        size: entries S of a state.
        length: states L of a sequence.
        width: channels, a multiple of 64.
        depth: blocks.
    """

    def __init__(self, size: int, length: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(size, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.step = _Steps(width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(
                width,
                width // _HEAD,
                _HEAD,
                norm_type="ada_norm_single",
                norm_elementwise_affine=False,
                attention_bias=True,
                activation_fn="gelu-approximate",
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, size)

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        """Noise (B, L, S) in x_t after t steps (B,)."""
        x = self.embed(noisy) + self.position
        modulation = self.modulation(self.step(step))  # (B, 6 D)
        for block in self.blocks:
            x = block(x, timestep=modulation)
        noise: Tensor = self.head(self.norm(x))
        return noise


class PlanCritic(nn.Module):
    """The value of a sequence of states, by a transformer of two blocks."""

    def __init__(self, size: int, length: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(size, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(
            width,
            width // _HEAD,
            4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Values (B,) of (B, L, S), read off the first state."""
        x = self.blocks(self.embed(states) + self.position)
        value: Tensor = self.head(x[:, 0]).squeeze(-1)
        return value


class ActionDenoiser(nn.Module):
    """The noise in an action, by a perceptron of the action, t, and what is given."""

    def __init__(self, given: int, action_dim: int, hidden: int) -> None:
        super().__init__()
        self.step = _Steps(_HEAD)
        self.layers = mlp([given + action_dim + _HEAD, hidden, hidden, hidden, action_dim])

    def forward(self, noisy: Tensor, step: Tensor, given: Tensor) -> Tensor:
        """Noise (B, A) in x_t after t steps (B,), for what is given (B, G)."""
        noise: Tensor = self.layers(torch.cat([noisy, self.step(step), given], -1))
        return noise


class _Steps(nn.Module):
    """An embedding (B, width) of diffusion steps (B,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.waves = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.layers = TimestepEmbedding(width, width)

    def forward(self, step: Tensor) -> Tensor:
        embedding: Tensor = self.layers(self.waves(step))
        return embedding
