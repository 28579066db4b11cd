"""The last M steps of each environment, for agents whose decisions depend on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

__all__ = ["empty_memory", "from_arrays", "remember", "reset_rows", "to_arrays"]


def empty_memory(
    count: int, steps: int, sizes: Mapping[str, int], device: torch.device
) -> TensorDict:
    """Memory of ``count`` episodes that have not begun.

    Args:
        count: number of environments B.
        steps: steps M that are remembered.
        sizes: of the entries of a step, such as ``{"observation": S, "action": A}``.
        device: where to keep it.

    Returns:
        Batch size [B]: each entry (B, M, size), filled from the front, and ``length`` (B, 1).
    """
    entries = {name: torch.zeros(count, steps, size, device=device) for name, size in sizes.items()}
    length = torch.zeros(count, 1, dtype=torch.int64, device=device)
    return TensorDict({**entries, "length": length}, batch_size=[count])


def remember(memory: TensorDict, **step: Tensor) -> tuple[TensorDict, Tensor]:
    """Memory with one more step; where it is full, the oldest one is forgotten.

    Args:
        memory: from ``empty_memory``; it stays as it is.
        **step: entries of the new step, each (B, size); those left out stay zero.

    Returns:
        The memory, and the place of the new step in it, (B,).
    """
    memory = memory.clone()
    place = memory["length"].squeeze(-1).clone()  # (B,)
    names = [name for name in memory.keys() if name != "length"]  # noqa: SIM118
    steps = memory[names[0]].shape[1]
    full = place == steps
    if full.any():
        for name in names:
            memory[name][full] = memory[name][full].roll(-1, 1)
        place[full] -= 1
    rows = torch.arange(len(place), device=place.device)
    for name in names:
        memory[name][rows, place] = step.get(name, torch.zeros((), device=place.device))
    memory["length"] = (place + 1).unsqueeze(-1)
    return memory, place


def reset_rows(state: TensorDict, initial: TensorDict, rows: Tensor) -> TensorDict:
    """The state with some rows as they are before an episode.

    Args:
        state: memory of B environments.
        initial: what ``initial_state`` returns for them.
        rows: True where an episode begins, (B,).
    """
    reset: TensorDict = torch.where(rows, initial, state)
    return reset


def from_arrays(
    initial: TensorDict | None,
    arrays: Sequence[NDArray[Any]] | None,
    episode_start: NDArray[np.bool_] | None = None,
) -> TensorDict | None:
    """The memory that a policy's ``predict`` handed out as arrays, started anew where told to.

    Args:
        initial: what ``initial_state`` returns for B environments; None without memory.
        arrays: the entries of the memory, in its order; None before the first step.
        episode_start: True where an episode begins, (B,).

    Raises:
        ValueError: the arrays are those of other environments, or ``episode_start`` has not one
            entry for each.
    """
    if initial is None or arrays is None:
        return initial
    shapes = [tuple(part.shape) for part in initial.values()]
    if [np.shape(part) for part in arrays] != shapes:
        raise ValueError(
            f"state has the shapes {[np.shape(part) for part in arrays]}; expected are {shapes} "
            f"for {len(initial)} observations: pass what predict returned for the same "
            "environments, or None."
        )
    memory = initial.clone()
    for kept, part in zip(memory.values(), arrays, strict=True):
        kept.copy_(torch.as_tensor(part))
    if episode_start is None:
        return memory
    if np.size(episode_start) != len(initial):
        raise ValueError(
            f"episode_start has {np.size(episode_start)} entries; there are {len(initial)} "
            "observations, and it needs one for each."
        )
    rows = torch.as_tensor(np.reshape(episode_start, -1), dtype=torch.bool)
    return reset_rows(memory, initial, rows.to(next(iter(memory.values())).device))


def to_arrays(memory: TensorDict) -> tuple[NDArray[Any], ...]:
    """A memory as a policy's ``predict`` hands it out; ``from_arrays`` takes it back."""
    return tuple(part.cpu().numpy() for part in memory.values())
