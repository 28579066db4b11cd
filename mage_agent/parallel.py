"""Training in several processes, each with its share of every batch.

``torchrun --nproc-per-node 2 -m mage_agent train ...`` is all there is to do; a script of one's own
that ``torchrun`` starts puts ``fit`` into ``with together():``. All processes draw the same batches
and the same random numbers, so that parameters, codebook and optimiser stay alike without being
sent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from tensordict import TensorDictBase
from torch import Tensor, distributed, nn

__all__ = [
    "agreed",
    "average",
    "average_gradients",
    "check_share",
    "gather",
    "is_first",
    "processes",
    "share",
    "together",
]


@contextmanager
def together() -> Iterator[None]:
    """Train with the other processes that ``torchrun`` has started, each on a GPU of its own.

    Begin it before the agent is moved to its device. A process that nobody has started with others
    trains alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or processes() > 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def processes() -> int:
    """How many processes train together."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def is_first() -> bool:
    """Whether this is the process that logs and saves."""
    return processes() == 1 or distributed.get_rank() == 0


def check_share(batch_size: int) -> None:
    """Refuse a batch that the processes cannot share evenly.

    Raises:
        ValueError: its size is no multiple of their number.
    """
    if batch_size % processes():
        raise ValueError(
            f"batch_size is {batch_size}, which {processes()} processes cannot share evenly; make "
            "it a multiple of their number."
        )


def share(batch: TensorDictBase) -> TensorDictBase:
    """This process's part of a batch whose size is a multiple of the number of processes."""
    if processes() == 1:
        return batch
    parts: tuple[TensorDictBase, ...] = batch.chunk(processes())
    return parts[distributed.get_rank()]


def agreed(stop: bool, device: torch.device) -> bool:
    """Whether any process wants to stop; all of them ask at the same step."""
    if processes() == 1:
        return stop
    votes = torch.tensor(float(stop), device=device)
    distributed.all_reduce(votes)
    return bool(votes > 0)


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


def gather(values: Tensor) -> Tensor:
    """Concatenate along the batch what all processes hold, in their order."""
    if processes() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(processes())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)
