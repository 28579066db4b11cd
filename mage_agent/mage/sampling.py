"""From token logits to ids and codes: likeliest, sampled, or straight through."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["hashed", "sample_ids", "straight_through"]


def hashed(state: Tensor, size: int) -> Tensor:
    """A number from 0 to ``size`` - 1 of each state (B, S), which looks random.

    It depends on every bit of the state in float32, and not on the rest of the batch.
    """
    mixed = torch.zeros(len(state), dtype=torch.int64, device=state.device)
    for bits in state.float().contiguous().view(torch.int32).long().unbind(1):
        mixed = (mixed ^ bits) * 0x5851F42D4C957F2D  # modulo 2**64
        mixed = mixed ^ (mixed >> 32)
    return mixed.remainder(size)


def sample_ids(
    logits: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Token ids (B, L_k) from logits (B, L_k, V): the likeliest, or samples."""
    if temperature > 0:  # the Gumbel-max trick
        noise = torch.empty_like(logits).exponential_(generator=generator).log()
        logits = logits / temperature - noise
    return logits.argmax(-1)


def straight_through(logits: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Codes of Gumbel-softmax samples: discrete forwards, soft backwards (Alg. 5, l. 14-18).

    Args:
        logits: shape (B, L_k, V).
        codes: the codebook, shape (V, C).
        temperature: of the Gumbel-softmax.

    Returns:
        Shape (B, L_k, C).
    """
    scores = logits.to(codes.dtype)
    # Uniform numbers cost a fifth of the exponential ones that F.gumbel_softmax draws.
    uniform = torch.rand_like(scores).clamp_min_(torch.finfo(scores.dtype).tiny)
    noise = uniform.log_().neg_().log_().neg_()
    soft = ((scores + noise) / temperature).softmax(-1)
    mean = soft @ codes
    chosen = F.embedding(soft.argmax(-1), codes)
    return mean + (chosen - mean).detach()
