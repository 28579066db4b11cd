"""Layers shared by the networks: attention with an explicit cache, blocks, padding."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "Dropout",
    "FourierFeatures",
    "KeyValue",
    "Modulation",
    "edge_pad",
]

KeyValue = tuple[Tensor, Tensor]
Modulation = tuple[Tensor, ...]
"""Factor, shift and gate of the two halves of a block, six tensors (B, L or 1, D)."""


def edge_pad(values: Tensor, mask: Tensor) -> Tensor:
    """Repeat the last real step over the padding, whatever the padding holds.

    Args:
        values: shape (B, T, X).
        mask: booleans, true for a prefix of at least one step, shape (B, T).

    Returns:
        Padded values, shape (B, T, X).
    """
    last = mask.sum(dim=1, keepdim=True).clamp_min(1) - 1  # (B, 1)
    steps = torch.arange(mask.shape[1], device=mask.device).minimum(last)  # (B, T)
    return values.gather(1, steps[..., None].expand_as(values))


class MLP(nn.Sequential):
    """Fully connected layers with GELU between them."""

    def __init__(self, *sizes: int) -> None:
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.GELU()]
        super().__init__(*layers[:-1])


class FourierFeatures(nn.Module):
    """Beside its input (..., D), sines and cosines of N learned projections of it, (..., D + 2 N).

    In a large maze, what lies on both sides of a wall is near; smooth networks take it for alike.
    """

    def __init__(self, input_dim: int, count: int) -> None:
        super().__init__()
        self.project = nn.Linear(input_dim, count, bias=False)
        nn.init.normal_(self.project.weight, std=(2 / input_dim) ** 0.5)
        self.size = input_dim + 2 * count

    def forward(self, values: Tensor) -> Tensor:
        """Input and features, shape (..., D + 2 N)."""
        # Cosines of large angles are not to be had in bfloat16, which autocast may have set.
        with torch.autocast(values.device.type, enabled=False):
            angles = self.project(values)
        return torch.cat([values, angles.sin(), angles.cos()], dim=-1)


class Dropout(nn.Dropout):
    """``nn.Dropout``, with 16 random bits for an element on CPU: a third of the time."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop out and scale up, in training."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = torch.ge(bits, round(self.p * 2**16) - 2**15, out=x.new_empty(x.shape))
        return x * keep.mul_(1 / (1 - self.p))


class Attention(nn.Module):
    """Multi-head self-attention; keys and values of earlier scales come and go as arguments."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, past: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """Attend over ``past`` and ``x``.

        Args:
            x: inputs, shape (B, L, D).
            mask: booleans, true where a query (row) may see a key (column), shape (L, L).
            past: keys and values of earlier positions, each (B, heads, L_past, D / heads).

        Returns:
            Outputs (B, L, D), and the keys and values of all positions so far.
        """
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, L, D / heads)
        if past is not None:
            key = torch.cat([past[0], key], dim=2)
            value = torch.cat([past[1], value], dim=2)
        if x.device.type == "cpu" and query.requires_grad:
            out = _attend(query, key, value, mask)
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.project(out.transpose(1, 2).flatten(2)), (key, value)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """``F.scaled_dot_product_attention`` by batched products.

    On CPU, for as few tokens as here: measured 1.7 times faster in bfloat16, whose fused kernel has
    a backward pass ten times slower than that of float32.
    """
    batch, heads, length, size = query.shape
    query, key, value = (part.reshape(batch * heads, -1, size) for part in (query, key, value))
    bias = query.new_zeros(length, key.shape[1])
    if mask is not None:
        bias.masked_fill_(~mask, -torch.inf)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=size**-0.5)
    return torch.bmm(scores.softmax(-1), value).view(batch, heads, length, size)


class Block(nn.Module):
    """Pre-norm transformer block whose norms are scaled, shifted and gated by a condition (adaLN).

    The modulation is the sum of a signal shared by all blocks and an offset of the block's own
    (adaLN-single), so that conditioning costs one projection per model and not one per block.
    Without a condition the offset alone makes it an ordinary pre-norm block.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = MLP(width, 4 * width, width)
        self.dropout = Dropout(dropout)
        self.offset = nn.Parameter(torch.zeros(6, width))

    def modulate(self, shared: Tensor | float = 0.0) -> Modulation:
        """Add the block's own offset to the shared modulation, shape (B, L or 1, 6, D)."""
        scale1, shift1, gate1, scale2, shift2, gate2 = (self.offset + shared).unbind(-2)
        return 1 + scale1, shift1, 1 + gate1, 1 + scale2, shift2, 1 + gate2

    def forward(
        self,
        x: Tensor,
        modulation: Modulation | None = None,
        mask: Tensor | None = None,
        past: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Apply the block.

        Args:
            x: inputs, shape (B, L, D).
            modulation: from ``modulate``; None is the block's own offset alone.
            mask: see ``Attention``.
            past: see ``Attention``.

        Returns:
            Outputs (B, L, D), and this block's keys and values.
        """
        factor1, shift1, gate1, factor2, shift2, gate2 = modulation or self.modulate()
        attended, present = self.attention(
            torch.addcmul(shift1, self.norm1(x), factor1), mask, past
        )
        x = torch.addcmul(x, gate1, self.dropout(attended))
        hidden = self.mlp(torch.addcmul(shift2, self.norm2(x), factor2))
        return torch.addcmul(x, gate2, self.dropout(hidden)), present
