"""Multi-scale transformer: all tokens of a scale at once, scales one after another (Eq. 4-5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mage_agent.nn.layers import MLP, Block, KeyValue, Modulation

__all__ = ["Condition", "MultiScaleTransformer"]


class Condition(NamedTuple):
    """What (s_0, R_0) does to the transformer: the same at every scale, so computed once.

    Attributes:
        embedding: is added to the tokens, shape (B, L or 1, D).
        modulations: of each block.
    """

    embedding: Tensor
    modulations: tuple[Modulation, ...]

    def followed_by(self, finer: Condition, scale_lengths: Sequence[int]) -> Condition:
        """This condition for the tokens of the first scale, another one for all others."""
        first, rest = scale_lengths[0], sum(scale_lengths[1:])

        def join(own: Tensor, other: Tensor) -> Tensor:
            return torch.cat([own.expand(-1, first, -1), other.expand(-1, rest, -1)], dim=1)

        return Condition(
            join(self.embedding, finer.embedding),
            tuple(
                tuple(map(join, *pair))
                for pair in zip(self.modulations, finer.modulations, strict=True)
            ),
        )


class MultiScaleTransformer(nn.Module):
    """p(m_k | m_<k, s_0, R_0) for every scale k (Eq. 4).

    Args:
        scale_lengths: tokens per scale, L_1 < ... < L_K.
        codebook_size: number of codes V.
        code_dim: code width C.
        observation_dim: entries that condition, of s_0 and its Fourier features.
        width: width D.
        num_blocks: number of blocks.
        num_heads: attention heads.
        dropout: dropout rate.
    """

    block_causal: Tensor

    def __init__(
        self,
        *,
        scale_lengths: Sequence[int],
        codebook_size: int,
        code_dim: int,
        observation_dim: int,
        width: int,
        num_blocks: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.ends = tuple(accumulate(scale_lengths))
        self.starts = (0, *self.ends[:-1])
        total = self.ends[-1]
        self.embed_code = nn.Linear(code_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(total, width))
        # s_0, R_0, and a flag that is 0 where the return is withheld.
        self.embed_condition = MLP(observation_dim + 2, width, width)
        modulate = nn.Linear(width, 6 * width)
        self.modulation = nn.Sequential(nn.GELU(), modulate)
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, codebook_size)
        nn.init.zeros_(modulate.weight)
        nn.init.zeros_(modulate.bias)
        scale = torch.tensor([k for k, length in enumerate(scale_lengths) for _ in range(length)])
        self.register_buffer("block_causal", scale[:, None] >= scale[None], persistent=False)

    @property
    def untrained(self) -> bool:
        """Whether the modulations are what they begin as."""
        return all(part.is_meta or not part.any() for part in self.modulation.parameters())

    def condition(self, observation: Tensor, return_to_go: Tensor, known: Tensor) -> Condition:
        """Embed the condition (s_0, R_0).

        Args:
            observation: s_0 and its Fourier features, shape (B, S).
            return_to_go: R_0, shape (B, 1).
            known: 1 where the return conditions, 0 where it is withheld, shape (B, 1).

        Returns:
            Embedding (B, 1, D) and modulations.
        """
        given = torch.cat([observation, return_to_go * known, known], dim=-1)
        embedding = self.embed_condition(given.to(self.position.dtype))[:, None]
        shared = self.modulation(embedding).unflatten(-1, (6, -1))  # (B, 1, 6, D)
        blocks = cast(Iterable[Block], self.blocks)
        return Condition(embedding, tuple(block.modulate(shared) for block in blocks))

    def forward(
        self,
        inputs: Tensor,
        condition: Condition,
        *,
        scale: int | None = None,
        past: Sequence[KeyValue] | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Logits of all scales in one pass, or of one scale after the cached ones.

        Args:
            inputs: scaled-down sums of the coarser scales, shape (B, L, C), where L is the number
                of tokens of all scales, or of the one asked for.
            condition: from ``condition``.
            scale: the one scale (from 0) whose tokens ``inputs`` holds; None for all.
            past: keys and values of the coarser scales, one pair per block.

        Returns:
            Logits (B, L, V), and the keys and values so far.
        """
        here = slice(None) if scale is None else slice(self.starts[scale], self.ends[scale])
        mask = self.block_causal if scale is None else None
        x = self.embed_code(inputs.to(self.position.dtype)) + self.position[here]
        x = x + condition.embedding
        present: list[KeyValue] = []
        for index, (block, modulation) in enumerate(
            zip(self.blocks, condition.modulations, strict=True)
        ):
            x, pair = block(x, modulation, mask, past[index] if past else None)
            present.append(pair)
        return self.head(self.norm(x)), present
