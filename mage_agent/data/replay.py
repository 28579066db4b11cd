"""Windows of trajectories, drawn at random, as a TorchRL replay buffer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import ImmutableDatasetWriter, TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.data.replay_buffers.storages import Storage

MASK_KEY = ("collector", "mask")
"""True = real step, False = padding; TorchRL's losses leave padding out by this key."""


class WindowSampler(Sampler):
    """Draws windows of `horizon` consecutive steps; every step of every episode can start one.

    The index is two-dimensional, (B, T), so that `sample()` of the buffer is (B, T) as it is. A
    window that reaches past the end of its episode repeats the episode's last step there and says
    so in ``("collector", "mask")``, (B, T) bool; it never enters the next episode.

    Random numbers come from the generator of the replay buffer, as with every TorchRL sampler.

    Args:
        episode: (N,) number of the episode of each step of the storage; contiguous.
        horizon: Window length T in steps.
        weights: (N,) how often each step is to start a window, relative to the others; all the same
            if None. Zero keeps a step from starting windows (it still appears inside them).

    Raises:
        ValueError: `horizon` is below 1, or the weights are not N non-negative numbers.
    """

    def __init__(self, episode: Tensor, horizon: int, *, weights: Tensor | None = None) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 step, got {horizon}")
        _, lengths = episode.unique_consecutive(return_counts=True)
        self.horizon = horizon
        # Row of the last step of the episode of each step.
        self._last = (lengths.cumsum(0) - 1).repeat_interleave(lengths)  # (N,)
        self._offsets = torch.arange(horizon)
        self._cumulative: Tensor | None = None
        if weights is not None:
            weights = weights.flatten().double()
            bad = ~torch.isfinite(weights) | (weights < 0)
            if len(weights) != len(episode) or bad.any() or not weights.any():
                raise ValueError(
                    f"weights must be {len(episode)} finite numbers >= 0, not all zero; got "
                    f"{len(weights)} numbers, {int(bad.sum())} of them negative or not finite"
                )
            self._cumulative = weights.cumsum(0)

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[Any, Any]]:
        """Draw `batch_size` windows.

        Returns:
            The (B, T) rows of the storage, and the mask under its key.
        """
        if len(storage) != len(self._last):
            raise ValueError(
                f"the sampler was made for {len(self._last)} steps, the storage has {len(storage)}"
            )
        start = self._starts(batch_size)  # (B,)
        last = self._last[start].unsqueeze(-1)  # (B, 1)
        index = start.unsqueeze(-1) + self._offsets  # (B, T)
        return index.clamp(max=last), {MASK_KEY: index <= last}

    def _starts(self, batch_size: int) -> Tensor:
        if self._cumulative is None:
            return torch.randint(len(self._last), (batch_size,), generator=self._rng)
        # torch.multinomial stops at 2**24 categories and rebuilds its table in every call.
        draw = torch.rand(batch_size, dtype=torch.float64, generator=self._rng)
        return torch.searchsorted(self._cumulative, draw * self._cumulative[-1], right=True)

    def state_dict(self) -> dict[str, Any]:
        """State of the random number generator: all that changes from draw to draw."""
        return {} if self._rng is None else {"rng_state": self._rng.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the stream of windows that `state_dict` was taken from."""
        state = state_dict.get("rng_state")
        if state is None:
            return
        if self._rng is None:
            raise RuntimeError("the sampler is not part of a replay buffer with a generator yet")
        self._rng.set_state(state.clone())

    def dumps(self, path: str | Path) -> None:
        """Save the state in a folder."""
        TensorDict(self.state_dict()).memmap(Path(path))

    def loads(self, path: str | Path) -> None:
        """Load the state from a folder."""
        self.load_state_dict(TensorDict.load_memmap(Path(path)).to_dict())

    def _empty(self) -> None:
        raise RuntimeError("an offline dataset cannot be emptied")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(steps={len(self._last)}, horizon={self.horizon})"


class WindowStorage(TensorStorage):
    """`TensorStorage` that reads a (B, T) index by whole rows.

    ``index_select`` copies rows where advanced indexing computes an address per number: measured 5
    to 7 times faster for 512 windows of 24 steps (0.4 ms against 3.0 ms on two cores).
    """

    def get(self, index: Any) -> Any:
        """Rows of the storage, batch size as the shape of `index`."""
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            return super().get(index)
        rows = index.flatten()

        def select(column: Tensor) -> Tensor:
            return column.index_select(0, rows).unflatten(0, index.shape)

        return self._storage.apply(select, batch_size=index.shape)


def replay_buffer(
    dataset: TensorDictBase,
    *,
    horizon: int = 24,
    batch_size: int = 512,
    storage: Literal["memory", "memmap"] = "memory",
    scratch_dir: str | Path | None = None,
    seed: int | None = None,
    keys: Sequence[NestedKey] | None = None,
    weights: Tensor | None = None,
) -> TensorDictReplayBuffer:
    """Make a replay buffer of trajectory windows."""
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    columns = dataset.exclude("metadata") if keys is None else dataset.select(*keys)
    if storage == "memmap":
        columns = columns.memmap(scratch_dir, copy_existing=True)
    return TensorDictReplayBuffer(
        storage=WindowStorage(columns),
        sampler=WindowSampler(dataset["episode"], horizon, weights=weights),
        writer=ImmutableDatasetWriter(),
        batch_size=batch_size,
        generator=generator,
    )
