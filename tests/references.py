"""Slow, obvious versions of what the package computes in one go."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mage_agent.nn.layers import Attention


class SlowEncoding(NamedTuple):
    """What ``quantize_slowly`` finds for one latent."""

    token_ids: list[list[int]]  # K lists of L_k
    sums: list[Tensor]  # K tensors (L_K, C), of scales 1..k
    inputs: list[Tensor]  # K tensors (L_k, C), what the transformer is to see at scale k
    commitment: float


def nearest_code(vector: Tensor, codes: Tensor) -> int:
    """The index of the code with the smallest squared distance to one vector."""
    distances = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(vector, c, strict=True)) for c in codes
    ]
    return distances.index(min(distances))


def quantize_slowly(
    latent: Tensor, codes: Tensor, downs: list[Tensor], ups: list[Tensor]
) -> SlowEncoding:
    """Algorithm 1 for one latent (L_K, C), one scale and one vector at a time.

    As the paper has it: what is left over shrinks, and the sum is never formed until asked for.
    """
    rest = latent.clone()
    total = torch.zeros_like(latent)
    ids, sums, inputs, commitments = [], [], [], []
    for down, up in zip(downs, ups, strict=True):
        inputs.append(down @ total)
        vectors = down @ rest  # (L_k, C)
        ids.append([nearest_code(vector, codes) for vector in vectors])
        chosen = torch.stack([codes[i] for i in ids[-1]])
        errors = [
            float((vector - code).square().mean())
            for vector, code in zip(vectors, chosen, strict=True)
        ]
        commitments.append(sum(errors) / len(errors))
        rest = rest - up @ chosen
        total = total + up @ chosen
        sums.append(total)
    return SlowEncoding(ids, sums, inputs, sum(commitments) / len(commitments))


def area_mean(length_out: int, signal: list[float]) -> list[float]:
    """Mean over the parts that adaptive pooling cuts a signal into."""
    length = len(signal)
    means = []
    for i in range(length_out):
        part = signal[i * length // length_out : -(-(i + 1) * length // length_out)]
        means.append(sum(part) / len(part))
    return means


def interpolate(length_out: int, signal: list[float]) -> list[float]:
    """Linear interpolation between the centres of a signal's cells."""
    values = []
    for i in range(length_out):
        place = max((i + 0.5) * len(signal) / length_out - 0.5, 0.0)
        left = min(int(place), len(signal) - 1)
        right = min(left + 1, len(signal) - 1)
        share = place - left
        values.append((1 - share) * signal[left] + share * signal[right])
    return values


def moving_average_step(
    codes_sum: Tensor, counts: Tensor, vectors: Tensor, ids: Tensor, decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of a codebook that follows its vectors: new sums, counts and codes."""
    codes_sum, counts = codes_sum.clone(), counts.clone()
    for code in range(len(counts)):
        mine = vectors[ids == code]
        codes_sum[code] = decay * codes_sum[code] + (1 - decay) * mine.sum(0)
        counts[code] = decay * counts[code] + (1 - decay) * len(mine)
    smooth = (counts + 1e-5) / (counts.sum() + len(counts) * 1e-5) * counts.sum()
    return codes_sum, counts, codes_sum / smooth[:, None]


def attend_slowly(attention: Attention, x: Tensor, mask: Tensor) -> Tensor:
    """Self-attention of one sequence (L, D), one head and one query at a time."""
    length, width = x.shape
    size = width // attention.num_heads
    query, key, value = attention.qkv(x).split(width, dim=-1)
    out = torch.zeros_like(x)
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(length):
            seen = [j for j in range(length) if mask[i, j]]
            scores = torch.stack([query[i, part] @ key[j, part] / math.sqrt(size) for j in seen])
            weights = scores.softmax(0)
            out[i, part] = sum(w * value[j, part] for w, j in zip(weights, seen, strict=True))
    projected: Tensor = attention.project(out)
    return projected
