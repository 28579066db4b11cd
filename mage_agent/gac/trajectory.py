"""Whole trajectories, and the steps of them whose likelihood is computed at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Steps", "Trajectories", "draw_steps"]


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """A batch of whole episodes, standardised; what stands in the padding never matters.

    Attributes:
        observation: s_0 ... s_{T-1}, shape (B, T, S).
        action: a_0 ... a_{T-1}, shape (B, T, A).
        change: s_{t+1} - s_t, in its own standard deviations, shape (B, T, S).
        value: return y, shape (B,).
        length: steps of each episode, shape (B,).
    """

    observation: Tensor
    action: Tensor
    change: Tensor
    value: Tensor
    length: Tensor

    def take(self, index: Tensor, history: Tensor, weight: Tensor) -> Steps:
        """Look up the steps that ``draw_steps`` chose."""
        batch, longest = self.observation.shape[:2]
        rows = index + longest * torch.arange(batch, device=index.device)[:, None, None]

        def gather(values: Tensor) -> Tensor:
            flat = values.flatten(0, 1).index_select(0, rows.flatten())
            taken: Tensor = flat.unflatten(0, tuple(index.shape))
            return taken

        return Steps(
            observation=gather(self.observation),
            action=gather(self.action),
            change=gather(self.change),
            history=history,
            weight=weight,
        )

    def evenly(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Evenly spaced steps: observations (B, L, S), actions (B, L, A), clock (B, L, 1)."""
        place = torch.arange(count, device=self.length.device)
        index = place * self.length[:, None] // count  # (B, L)
        rows = torch.arange(len(index), device=index.device)[:, None]
        clock = (index / self.length[:, None])[..., None]
        return self.observation[rows, index], self.action[rows, index], clock

    def select(self, rows: Tensor, length: int) -> Trajectories:
        """The first steps of some of the trajectories."""
        return Trajectories(
            observation=self.observation[rows, :length],
            action=self.action[rows, :length],
            change=self.change[rows, :length],
            value=self.value[rows],
            length=self.length[rows].clamp_max(length),
        )


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps of trajectories, as N pieces of L consecutive ones.

    Attributes:
        observation: shape (B, N, L, S).
        action: shape (B, N, L, A).
        change: s_{t+1} - s_t, shape (B, N, L, S).
        history: how many earlier steps of its piece a step may look back on, shape (B, N, L).
        weight: factor on the log-likelihood of a step; 0 where it is only there for later ones to
            look back on, or not there at all, shape (B, N, L).
    """

    observation: Tensor
    action: Tensor
    change: Tensor
    history: Tensor
    weight: Tensor

    def total(self, values: Tensor) -> Tensor:
        """Weighted sum over the steps of a trajectory, (B, N, L) to (B,)."""
        # Select rather than multiply: what was made of padding may not be finite.
        return torch.where(self.weight > 0, self.weight * values, 0.0).sum((1, 2))


def draw_steps(
    length: Tensor,
    *,
    longest: int,
    window: int | None,
    reach: int,
    share: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose ``window`` steps of every trajectory, so that their weighted sum is unbiased.

    A trajectory of T > ``window`` steps is closed to a ring, of which evenly spaced pieces are
    taken from a random offset on: each of its steps is chosen with the same probability, and counts
    T / ``window``. Of a shorter one all steps are taken, each once. In front of each piece stand
    the ``reach`` - 1 steps that its first outputs depend on. Pieces are as short as these allow,
    since steps far apart tell more about a trajectory than neighbours do.

    Args:
        length: steps T of each trajectory, shape (B,).
        longest: an upper bound of them.
        window: steps C to choose; None takes all.
        reach: steps W that an output of the generator depends on.
        share: uniform in [0, 1), where on its ring a trajectory is entered, shape (B,) or (1,).

    Returns:
        ``index`` into the trajectory, ``history`` and ``weight`` of ``Steps``, each (B, N, L).
    """
    # Deviation 26: a few steps stand for a trajectory; the paper sums over all of them.
    size = longest if window is None else min(window, longest)
    past = reach - 1
    piece = min(size, max(1, 4 * past))
    pieces = -(-size // piece)
    length = length[:, None]
    number = torch.arange(pieces, device=length.device)
    chosen = pieces * piece
    short = length <= chosen  # taken as it is
    offset = (share[:, None] * length).long().minimum(length - 1)
    ring = (offset + number * length // pieces) % length
    start = torch.where(short, number * piece, ring)
    place = torch.arange(-past, piece, device=length.device)
    step = start[..., None] + place  # (B, N, L)
    end = length[..., None]
    wrapped = (step >= end) & ~short[..., None]
    since_piece = torch.arange(past + piece, device=length.device)
    history = torch.where(wrapped, step - end, step.minimum(since_piece)).clamp_min(0)
    index = torch.where(wrapped, step - end, step).clamp_min(0).minimum(end - 1)
    real = (place >= 0) & (wrapped | (step < end))
    factor = torch.where(short, 1.0, length / chosen)[..., None]
    return index, history, real * factor
