"""Networks of the Trajectory Autoencoding Planner: an autoencoder with a codebook, and a prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

__all__ = ["TokenAutoencoder", "TokenPrior"]


class CausalTransformer(nn.Module):
    """Pre-norm blocks in which a position sees those before it.

    Args:
        length: most positions.
        width: channels D.
        layers: blocks.
        heads: attention heads.
        dropout: of all layers.
    """

    mask: Tensor

    def __init__(self, length: int, *, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, L, D) of (B, L, D)."""
        length = x.shape[1]
        mask = self.mask[:length, :length]
        features: Tensor = self.blocks(x + self.position[:length], mask=mask, is_causal=True)
        return features


class TokenAutoencoder(nn.Module):
    """Trajectories (B, T, X) to a code for every ``stride`` steps, and back, given s_0.

    Args:
        size: entries X of a step.
        given: entries of s_0.
        horizon: steps T.
        stride: steps of a token; features are pooled by their maximum.
        codes: size of the codebook, which follows by moving average.
        width: of codes and transformers.
        layers: of the transformers.
        heads: of the transformers.
        dropout: of the transformers.
    """

    def __init__(
        self,
        size: int,
        given: int,
        *,
        horizon: int,
        stride: int,
        codes: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stride = stride
        shape = {"width": width, "layers": layers, "heads": heads, "dropout": dropout}
        self.embed = nn.Linear(size, width)
        self.encoder = CausalTransformer(horizon, **shape)  # type: ignore[arg-type]
        self.pool = nn.MaxPool1d(stride)
        self.codebook = VectorQuantize(
            width, codes, decay=0.99, kmeans_init=True, threshold_ema_dead_code=1
        )
        self.given = nn.Linear(width + given, width)
        self.decoder = CausalTransformer(horizon // stride, **shape)  # type: ignore[arg-type]
        self.head = nn.Linear(width, size * stride)

    @property
    def codes(self) -> Tensor:
        """The codebook, (V, D)."""
        codes: Tensor = self.codebook.codebook
        return codes

    def encode(self, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (B, M, D) with straight-through gradients, tokens (B, M) and the commitment."""
        features = self.pool(self.encoder(self.embed(steps)).mT).mT
        codes, tokens, commitment = self.codebook(features)
        return codes, tokens, commitment.sum()

    def decode(self, codes: Tensor, first: Tensor) -> Tensor:
        """Steps (B, M * stride, X) of codes (B, M, D), given s_0, (B, S)."""
        first = first[:, None].expand(-1, codes.shape[1], -1)
        features = self.decoder(self.given(torch.cat([codes, first], -1)))
        steps: Tensor = self.head(features).unflatten(-1, (self.stride, -1)).flatten(1, 2)
        return steps


class TokenPrior(nn.Module):
    """p(z_m | z_<m, s_0), by a causal transformer of codes."""

    def __init__(
        self,
        given: int,
        *,
        length: int,
        codes: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.given = nn.Linear(given, width)
        self.code = nn.Linear(width, width)
        self.blocks = CausalTransformer(
            length, width=width, layers=layers, heads=heads, dropout=dropout
        )
        self.head = nn.Linear(width, codes)

    def forward(self, codes: Tensor, first: Tensor) -> Tensor:
        """Logits (B, m + 1, V) of each token after those before, codes (B, m, D), given s_0."""
        x = torch.cat([self.given(first)[:, None], self.code(codes)], 1)
        logits: Tensor = self.head(self.blocks(x))
        return logits
