"""Statistics of a dataset, kept inside the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Normalizer"]

CONSTANT = 1e-6
"""Standard deviation, as a part of the largest value, up to which values count as constant."""


class Normalizer(nn.Module):
    """Standardises values by statistics that travel with the model's weights.

    Dimensions that never vary, but for rounding errors, are shifted only, so that noise is not
    blown up. Variation counts relative to the size of the values, so that units do not matter.

    Args:
        size: number of dimensions.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take the statistics of ``values``, shape (N, size), in place."""
        flat = values.reshape(-1, self.mean.shape[0]).double()
        std = flat.std(dim=0, unbiased=False)
        self.mean.copy_(flat.mean(dim=0))
        self.std.copy_(torch.where(std > CONSTANT * flat.abs().amax(dim=0), std, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """Standardise, shape (..., size)."""
        return (values - self.mean) / self.std

    def inverse(self, values: Tensor) -> Tensor:
        """Undo ``forward``, shape (..., size)."""
        return values * self.std + self.mean
