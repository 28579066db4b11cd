"""Multi-scale residual quantisation along time (Algorithms 1-4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from mage_agent.parallel import gather

__all__ = ["Encoding", "MultiScaleQuantizer"]


class Encoding(NamedTuple):
    """A quantised latent.

    Attributes:
        token_ids: K tensors of shape (B, L_k).
        latent: sum_k z_k with straight-through gradients, shape (B, L_K, C).
        commitment: distance of what was quantised to its codes, averaged over scales, shape (B,).
    """

    token_ids: tuple[Tensor, ...]
    latent: Tensor
    commitment: Tensor


def _interpolation(length_out: int, length_in: int) -> Tensor:
    """Linear interpolation along time as a matrix, shape (length_out, length_in)."""
    signal = torch.eye(length_in)[None]  # (1, length_in, length_in)
    matrix = F.interpolate(signal, size=length_out, mode="linear", align_corners=False)[0].T
    return matrix.contiguous()  # fused optimisers take parameter and state for laid out alike


def _area_mean(length_out: int, length_in: int) -> Tensor:
    """Mean over equal parts of the time axis as a matrix, shape (length_out, length_in)."""
    matrix = F.interpolate(torch.eye(length_in)[None], size=length_out, mode="area")[0].T
    return matrix.contiguous()


class MultiScaleQuantizer(nn.Module):
    """One codebook for all scales; learned linear resampling between them.

    Every loop over scales, here and in ``MAGEModel.generate``, sums the scales:
    ``total = total + scale_up[k] @ codes``.

    Args:
        scale_lengths: tokens per scale, L_1 < ... < L_K.
        codebook_size: number of codes V.
        code_dim: code width C.
        codebook_decay: decay of the codebook's moving average.
    """

    def __init__(
        self,
        scale_lengths: Sequence[int],
        codebook_size: int,
        code_dim: int,
        codebook_decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.scale_lengths = tuple(scale_lengths)
        longest = self.scale_lengths[-1]
        # "Implemented through linear projection" (section 3.1): started at mean and interpolation.
        self.scale_down = nn.ParameterList(_area_mean(n, longest) for n in self.scale_lengths)
        self.scale_up = nn.ParameterList(_interpolation(longest, n) for n in self.scale_lengths)
        self.codebook = VectorQuantize(
            dim=code_dim,
            codebook_size=codebook_size,
            decay=codebook_decay,
            kmeans_init=True,
            threshold_ema_dead_code=1,
            sync_codebook=False,  # every process makes the same update of the whole batch
        )

    @property
    def codes(self) -> Tensor:
        """The codebook, shape (V, C)."""
        codes: Tensor = self.codebook.codebook
        return codes

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code (Eq. 3), shape of ``vectors`` without its last axis."""
        codes = self.codes
        # argmin ||v - c||^2 = argmin ||c||^2 - 2 v.c; the norm of v is the same for every code.
        return (codes.square().sum(-1) - 2 * vectors @ codes.T).argmin(-1)

    def encode(self, latent: Tensor, *, update_codebook: bool = False) -> Encoding:
        """Quantise scale by scale the residual of the coarser scales (Algorithm 1).

        Args:
            latent: the encoder's output f, shape (B, L_K, C).
            update_codebook: move the codes towards this batch.

        Returns:
            Token ids, latent and commitment.
        """
        token_ids: list[Tensor] = []
        residuals: list[Tensor] = []
        commitments: list[Tensor] = []

        if update_codebook and not self.codebook._codebook.initted:
            down = gather(torch.cat([d @ latent.detach() for d in self.scale_down], dim=1))
            if down.isfinite().all():
                self.codebook._codebook.init_embed_(down.flatten(0, 1)[None])

        total = torch.zeros_like(latent)
        for down, up in zip(self.scale_down, self.scale_up, strict=True):
            residual: Tensor = down @ (latent - total)  # (B, L_k, C)
            ids = self.nearest(residual.detach())
            codes = self.lookup(ids)
            total = total + up @ (residual + (codes - residual).detach())  # straight through
            token_ids.append(ids)
            residuals.append(residual.detach())
            commitments.append((residual - codes).square().mean(dim=(1, 2)))
        if update_codebook:
            # Deviation 2: the codebook follows by moving average, without a codebook loss.
            # One update for all scales: a code that only coarse scales use is not taken for dead.
            vectors, ids = (gather(torch.cat(part, dim=1)) for part in (residuals, token_ids))
            if vectors.isfinite().all():  # else the codes would never be finite again
                self.codebook.update_indices(vectors, ids)
        return Encoding(tuple(token_ids), total, torch.stack(commitments).mean(0))

    def lookup(self, token_ids: Tensor) -> Tensor:
        """Codes of token ids, shape (..., C)."""
        return F.embedding(token_ids, self.codes)

    def partial_sums(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Sums of scales 1..k (Algorithm 2, l. 1-6), each (B, L_K, C), from codes (B, L_k, C)."""
        # Summed in the codes' own type, also where autocast makes the products narrower.
        total = codes[0].new_zeros(len(codes[0]), self.scale_lengths[-1], codes[0].shape[-1])
        sums: list[Tensor] = []
        for up, chosen in zip(self.scale_up, codes, strict=True):
            total = total + up @ chosen
            sums.append(total)
        return sums

    def scale_inputs(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """The transformer's input at each scale: the coarser scales' sum at its own length.

        Args:
            codes: the codes of every scale, K tensors (B, L_k, C).

        Returns:
            K tensors (B, L_k, C); the first is zero.
        """
        sums = self.partial_sums(codes)
        before = [torch.zeros_like(sums[0]), *sums[:-1]]
        return [down @ total for down, total in zip(self.scale_down, before, strict=True)]
