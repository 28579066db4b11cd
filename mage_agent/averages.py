"""A moving average of weights that a stage trains, which they are set to when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from mage_agent.stage import Stage

__all__ = ["averaged"]


def averaged(stage: Stage, decay: float, parameters: Iterable[nn.Parameter] | None = None) -> Stage:
    """A stage that ends with a moving average of weights that it trains.

    The last steps of training still move the weights. The loss hardly feels that; episodes, where
    one error leads to the next, do (Block et al. 2024, *Butterfly Effects of SGD Noise*). The n-th
    step moves the average by 1 - min(decay, n / (9 + n)), so that short stages keep nothing of
    their first weights. Callbacks see the agent with the average as it is then. Training's
    checkpoints hold it.

    Args:
        stage: the stage.
        decay: of the average, per step; 0 leaves the stage as it is.
        parameters: what is averaged; None is all that the stage trains.

    Examples:
        >>> averaged(Stage(name="all", loss=loss, steps=1000, ...), 0.997)
    """
    if not decay:
        return stage
    average = _Average(stage.loss.parameters() if parameters is None else parameters)

    def begin() -> None:
        stage.begin()
        average.take()

    def after_step(step: int) -> None:
        stage.after_step(step)
        average.move(1 - min(decay, (step + 1) / (10 + step)))

    @contextmanager
    def acting() -> Iterator[None]:
        average.exchange()
        try:
            with stage.acting():
                yield
        finally:
            average.exchange()

    def end() -> None:
        average.exchange()
        stage.end()

    kept = {**stage.kept, f"average{len(stage.kept) or ''}": average}
    return replace(stage, kept=kept, begin=begin, after_step=after_step, acting=acting, end=end)


class _Average(nn.Module):
    """Buffers that follow parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.followed = tuple(parameters)  # of the agent, which keeps and moves them
        for number, each in enumerate(self.followed):
            self.register_buffer(str(number), each.detach().clone())

    @torch.no_grad()
    def take(self) -> None:
        """Begin at the parameters as they are."""
        torch._foreach_copy_(self._mine, self.followed)

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move this share of the way to the parameters."""
        torch._foreach_lerp_(self._mine, self.followed, share)

    @torch.no_grad()
    def exchange(self) -> None:
        """Set the parameters to the average, and keep what they were; again, and it is undone."""
        last = [each.clone() for each in self.followed]
        torch._foreach_copy_(self.followed, self._mine)
        torch._foreach_copy_(self._mine, last)

    @property
    def _mine(self) -> list[Tensor]:
        return list(self.buffers())
