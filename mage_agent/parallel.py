"""Training in several processes, each with its share of every batch.

There is nothing to set up but ``torch.distributed.init_process_group()`` before ``fit``, in a
script that ``torchrun`` starts, and with GPUs ``torch.cuda.set_device`` to each process's own. All
processes draw the same batches and the same random numbers, so that parameters, codebook and
optimiser stay alike without being sent.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import TensorDictBase
from torch import distributed, nn

__all__ = ["average", "average_gradients", "check_parts", "is_first", "processes", "share"]


def processes() -> int:
    """How many processes train together."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def is_first() -> bool:
    """Whether this is the process that logs and saves."""
    return processes() == 1 or distributed.get_rank() == 0


def check_parts(batch_size: int, accumulation: int) -> None:
    """Refuse numbers that do not divide a batch evenly.

    Raises:
        ValueError: they do not.
    """
    if accumulation < 1 or batch_size % (processes() * accumulation):
        raise ValueError(
            f"batch_size is {batch_size}, which {processes()} processes with accumulation="
            f"{accumulation} cannot share evenly; choose numbers whose product divides it."
        )


def share(batch: TensorDictBase) -> TensorDictBase:
    """This process's part of a batch whose size is a multiple of the number of processes."""
    if processes() == 1:
        return batch
    parts: tuple[TensorDictBase, ...] = batch.chunk(processes())
    return parts[distributed.get_rank()]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients."""
    if processes() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= processes()
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))


def average(losses: TensorDictBase) -> TensorDictBase:
    """The mean of all processes' losses, which are scalars."""
    if processes() == 1:
        return losses
    values = torch.stack([value.float() for value in losses.values()])
    distributed.all_reduce(values)
    means = (values / processes()).unbind()
    return losses.replace(dict(zip(losses.keys(), means, strict=True)))
