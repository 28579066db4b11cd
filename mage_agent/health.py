"""Signs that a training has gone wrong."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

__all__ = ["TrainingError", "warn_of_collapse"]

COLLAPSED = 0.1
"""Perplexity of the tokens, from 0 at one code to 1 at all alike, below which a codebook has
collapsed; healthy ones were measured at 0.8 to 0.97."""


class TrainingError(RuntimeError):
    """Training cannot go on.

    Attributes:
        rows: rows of the dataset at which the windows of the last batch begin, shape (B,);
            None where they are not known.
    """

    def __init__(self, message: str, rows: Tensor | None = None) -> None:
        super().__init__(message)
        self.rows = rows


def warn_of_collapse(token_ids: Tensor, codebook_size: int) -> None:
    """Say so if hardly any codes carry the dataset.

    Args:
        token_ids: tokens of all its windows, shape (N, sum_k L_k).
        codebook_size: number of codes V.

    Warns:
        UserWarning: the codes' perplexity is below a tenth of what it could be.
    """
    share = token_ids.flatten().bincount(minlength=codebook_size) / token_ids.numel()
    perplexity = float(torch.special.entr(share).sum().exp())
    if perplexity - 1 < COLLAPSED * (min(codebook_size, token_ids.numel()) - 1):
        warnings.warn(
            f"the codebook has collapsed: {int((share > 0).sum())} of {codebook_size} codes are "
            f"used, as unevenly as {perplexity:.1f} codes used alike. Train the tokenizer longer "
            "(tokenizer_steps), lower learning_rate or commitment_weight, or make codebook_size "
            "smaller.",
            stacklevel=4,  # whoever called fit
        )
