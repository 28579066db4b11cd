"""The evidence lower bound of a trajectory and its return, part by part (Eq. 6)."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

__all__ = ["Evidence", "log_normal"]


class Evidence(NamedTuple):
    """The four parts of Eq. 6 for each trajectory, in nats, shape (B,).

    Attributes:
        action: E_q[sum_t log p_beta(a_t)].
        state: E_q[sum_t log p_beta(s_{t+1})].
        value: E_q[log p_gamma(y)].
        kl: KL(q, p(eps)).
    """

    action: Tensor
    state: Tensor
    value: Tensor
    kl: Tensor

    def bound(self) -> Tensor:
        """The evidence lower bound (Eq. 6)."""
        return self.action + self.state + self.value - self.kl

    def free_kl(self, free_bits: float) -> Tensor:
        """Eta + softplus(KL - eta): up to about eta, a KL costs nothing (appendix B)."""
        return free_bits + F.softplus(self.kl - free_bits)

    def objective(self, free_bits: float) -> Tensor:
        """What training maximises: the bound with free bits."""
        return self.action + self.state + self.value - self.free_kl(free_bits)


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of independent normal numbers in nats, entry by entry, shape of ``x``."""
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
