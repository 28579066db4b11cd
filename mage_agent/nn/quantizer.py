"""Multi-scale residual quantisation along time (Algorithms 1-4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

__all__ = ["Encoding", "MultiScaleQuantizer"]


class Encoding(NamedTuple):
    """What the quantiser makes of a latent.

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


def _of_all_processes(values: Tensor) -> Tensor:
    """Concatenate along the batch what all processes of a training hold, in their order."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


class MultiScaleQuantizer(nn.Module):
    """One codebook for all scales; learned linear resampling between them.

    Encoding, decoding and the transformer's inputs are three views of the one coarse-to-fine loop,
    ``coarse_to_fine``.

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

    def coarse_to_fine(
        self, choose: Callable[[int, Tensor], Tensor], like: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The loop over scales: choose codes, scale them up, add them to the sum.

        Args:
            choose: maps the scale k (from 0) and the sum of the coarser scales, (B, L_K, C), to
                the codes of scale k, (B, L_k, C).
            like: gives batch size, device and dtype, shape (B, ...).

        Yields:
            For each scale the sum before it and the sum after it, each (B, L_K, C).
        """
        total = like.new_zeros(like.shape[0], self.scale_lengths[-1], self.codes.shape[-1])
        for k, up in enumerate(self.scale_up):
            before, total = total, total + up @ choose(k, total)
            yield before, total

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code (Eq. 3), shape of ``vectors`` without its last axis."""
        codes = self.codes
        # argmin ||v - c||^2 = argmin ||c||^2 - 2 v.c; the norm of v is the same for every code.
        return (codes.square().sum(-1) - 2 * vectors @ codes.T).argmin(-1)

    def encode(self, latent: Tensor, *, update_codebook: bool = False) -> Encoding:
        """Quantise scale by scale what the coarser scales left over (Algorithm 1).

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
            down = torch.cat([d @ latent.detach() for d in self.scale_down], dim=1)
            self.codebook._codebook.init_embed_(_of_all_processes(down).flatten(0, 1)[None])

        def choose(k: int, total: Tensor) -> Tensor:
            residual: Tensor = self.scale_down[k] @ (latent - total)  # (B, L_k, C)
            ids = self.nearest(residual.detach())
            codes = self.lookup(ids)
            token_ids.append(ids)
            residuals.append(residual.detach())
            commitments.append((residual - codes).square().mean(dim=(1, 2)))
            return residual + (codes - residual).detach()  # straight through

        quantised = [total for _, total in self.coarse_to_fine(choose, latent)][-1]
        if update_codebook:
            # Deviation: a moving average replaces the loss that pulls codes to latents.
            # One update for all scales: a code that only coarse scales use is not taken for dead.
            vectors, ids = torch.cat(residuals, dim=1), torch.cat(token_ids, dim=1)
            self.codebook.update_indices(_of_all_processes(vectors), _of_all_processes(ids))
        return Encoding(tuple(token_ids), quantised, torch.stack(commitments).mean(0))

    def lookup(self, token_ids: Tensor) -> Tensor:
        """Codes of token ids, shape (..., C)."""
        return F.embedding(token_ids, self.codes)

    def partial_sums(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Sums of scales 1..k (Algorithm 2, l. 1-6), each (B, L_K, C), from codes (B, L_k, C)."""
        return [after for _, after in self.coarse_to_fine(lambda k, _: codes[k], codes[0])]

    def scale_inputs(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """What the transformer sees at each scale: the coarser scales' sum at its own length.

        Args:
            codes: the codes of every scale, K tensors (B, L_k, C).

        Returns:
            K tensors (B, L_k, C); the first is zero.
        """
        loop = self.coarse_to_fine(lambda k, _: codes[k], codes[0])
        return [self.scale_down[k] @ before for k, (before, _) in enumerate(loop)]
