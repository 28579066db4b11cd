"""Classical variational Bayes: q(eps) = N(mean, diag variance), fitted by gradient ascent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mage_agent.gac.model import GACModel
    from mage_agent.gac.trajectory import Trajectories

__all__ = ["Ascent", "Posterior", "PosteriorStore", "infer", "maximize"]

BETAS = (0.9, 0.999)
EPSILON = 1e-8
SPAN = 10
"""Steps over which the objective is averaged before it is asked whether it still changes."""


class Posterior(NamedTuple):
    """q(eps) = N(mean, diag exp(log_variance)) of each row, both (B, K, D)."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Mean + std * noise, the reparametrisation of section 3.2, shape (B, K, D)."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """KL(q, N(0, I)) in nats, shape (B,)."""
        terms = self.mean.square() + self.log_variance.exp() - self.log_variance - 1
        return 0.5 * terms.sum((1, 2))


@dataclass
class Ascent:
    """Parameters phi of q and Adam's state, a row for each trajectory.

    Adam works entry by entry and every row counts its own steps, so rows never feel one another.

    Attributes:
        phi: mean and log-variance, stacked, shape (B, 2, K, D).
        first: running mean of the gradient, same shape.
        second: running mean of its square, same shape.
        count: steps taken, shape (B,).
    """

    phi: Tensor
    first: Tensor
    second: Tensor
    count: Tensor

    @classmethod
    def start(cls, phi: Tensor) -> Ascent:
        """Begin at phi."""
        zeros = torch.zeros_like(phi)
        count = torch.zeros(len(phi), dtype=torch.long, device=phi.device)
        return cls(phi, zeros, zeros.clone(), count)

    @classmethod
    def random(cls, rows: int, like: Tensor, generator: torch.Generator | None = None) -> Ascent:
        """Mean and log-variance from N(0, I), so that the KL does not start at 0 (appendix B).

        Args:
            rows: number of trajectories B.
            like: a tensor of the model whose last two axes are (K, D).
            generator: None is torch's own.
        """
        size = (rows, 2, *like.shape[-2:])
        phi = torch.randn(size, generator=generator, dtype=like.dtype, device=like.device)
        return cls.start(phi)

    @property
    def posterior(self) -> Posterior:
        """The q that phi stands for."""
        return Posterior(*self.phi.unbind(1))

    def step(self, gradient: Tensor, learning_rate: float, active: Tensor | None = None) -> Ascent:
        """One step of Adam up the gradient.

        Args:
            gradient: of the objective, shape of phi.
            learning_rate: of the step.
            active: rows that take it, shape (B,); None is all.
        """
        count = self.count + 1
        wide = count.to(gradient.dtype)[:, None, None, None]
        first = torch.lerp(self.first, gradient, 1 - BETAS[0])
        second = torch.lerp(self.second, gradient.square(), 1 - BETAS[1])
        scale = (second / (1 - BETAS[1] ** wide)).sqrt() + EPSILON
        phi = self.phi + learning_rate * first / (1 - BETAS[0] ** wide) / scale
        if active is None:
            return Ascent(phi, first, second, count)
        chosen = active[:, None, None, None]
        return Ascent(
            torch.where(chosen, phi, self.phi),
            torch.where(chosen, first, self.first),
            torch.where(chosen, second, self.second),
            torch.where(active, count, self.count),
        )


class PosteriorStore(nn.Module):
    """The phi_i of Algorithm 1, line 2, with Adam's moments: a row for every trajectory.

    Args:
        rows: number of trajectories.
        num_latents: latents K of the trajectory.
        width: width D.
        generator: of the random start.
    """

    phi: Tensor
    first: Tensor
    second: Tensor
    count: Tensor

    def __init__(
        self, rows: int, num_latents: int, width: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        start = Ascent.random(rows, torch.empty(num_latents, width), generator)
        for name in ("phi", "first", "second", "count"):
            self.register_buffer(name, getattr(start, name))

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self.phi)

    def read(self, rows: Tensor) -> Ascent:
        """Copy the rows of a batch, shape (B,)."""
        return Ascent(self.phi[rows], self.first[rows], self.second[rows], self.count[rows])

    @torch.no_grad()
    def write(self, rows: Tensor, ascent: Ascent) -> None:
        """Keep the rows of a batch."""
        self.phi[rows] = ascent.phi
        self.first[rows] = ascent.first
        self.second[rows] = ascent.second
        self.count[rows] = ascent.count


def maximize(
    objective: Callable[[Posterior], Tensor],
    start: Ascent,
    *,
    steps: int,
    learning_rate: float,
    tolerance: float,
    anneal: bool = False,
) -> tuple[Ascent, int]:
    """Fit q by Adam, each row by itself, until its objective no longer changes.

    With fresh noise in every step a single value says little: means over ``SPAN`` steps are
    compared. A row that has converged stays as it is.

    Args:
        objective: q to a value of each row, shape (B,), which depends on that row alone.
        start: where to begin.
        steps: at most.
        learning_rate: of Adam.
        tolerance: relative change of the mean objective at which a row stops.
        anneal: lower the rate along a cosine.

    Returns:
        Where the ascent ended, and the steps it took.
    """
    ascent = start
    active = torch.ones(len(start.phi), dtype=torch.bool, device=start.phi.device)
    total = torch.zeros(len(start.phi), dtype=torch.float64, device=start.phi.device)
    before: Tensor | None = None
    for step in range(steps):
        with torch.enable_grad():
            phi = ascent.phi.detach().requires_grad_()
            value = objective(Posterior(*phi.unbind(1)))  # (B,)
            (gradient,) = torch.autograd.grad(value.sum(), phi)
        rate = learning_rate
        if anneal:
            rate *= 0.5 * (1 + math.cos(math.pi * step / steps))
        ascent = ascent.step(gradient, rate, active)
        total += value.detach()
        if (step + 1) % SPAN:
            continue
        # Deviation 27: the threshold is on means of ten steps; the paper does not say of what.
        mean, total = total / SPAN, torch.zeros_like(total)
        if before is not None:
            change = (mean - before).abs()
            active = active & (change > tolerance * before.abs().clamp_min(1.0))
            if not active.any():
                return ascent, step + 1
        before = mean
    return ascent, steps


def infer(
    model: GACModel,
    trajectories: Trajectories,
    start: Ascent | None = None,
    *,
    steps: int,
    free_bits: float | None = None,
    know_value: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Ascent, int]:
    """Fit q(eps | tau, y) to trajectories (Algorithm 1, lines 5 to 8).

    Args:
        model: whose networks stay as they are.
        trajectories: tau and y.
        start: where to begin; None is the prior.
        steps: at most.
        free_bits: margin eta; None is the plain bound.
        know_value: whether q is told y; without, it is q(eps | tau), and what the critic says of it
            can be compared with y.
        generator: of noise and windows, both new at every step; None is torch's own.

    Returns:
        Where the ascent ended, and the steps it took.
    """
    first = trajectories.observation[:, 0]
    if start is None:
        start = Ascent.start(first.new_zeros(len(first), 2, *model.noise_shape))
    length = trajectories.length.to(start.phi.dtype)

    def objective(posterior: Posterior) -> Tensor:
        mean = posterior.mean
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        drawn = model.draw(trajectories, generator)
        evidence = model.evidence(trajectories, posterior, noise, drawn)
        bound = evidence.bound() if free_bits is None else evidence.objective(free_bits)
        # Per step of the trajectory: then the tolerance means the same for long and short ones.
        return (bound if know_value else bound - evidence.value) / length

    return maximize(
        objective,
        start,
        steps=steps,
        learning_rate=model.config.inner_learning_rate,
        tolerance=model.config.inner_tolerance,
    )
