"""A stage of an agent's training: what ``fit`` must know, and no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from mage_agent.data import Batches, Starts
from mage_agent.hardware import has_bfloat16
from mage_agent.nn.muon import Muon

__all__ = ["Stage", "TrainingError", "share_out", "total_loss", "warm_up_and_cosine"]


class TrainingError(RuntimeError):
    """Training cannot go on.

    Attributes:
        rows: rows of the dataset at which the windows of the last batch begin, shape (B,);
            None where they are not known.
    """

    def __init__(self, message: str, rows: Tensor | None = None) -> None:
        super().__init__(message)
        self.rows = rows


def total_loss(losses: TensorDictBase) -> Tensor:
    """The sum of all entries that start with "loss_", as TorchRL's trainers take it.

    Args:
        losses: scalars, from a loss with ``reduction`` "mean" or "sum".

    Returns:
        A scalar.
    """
    terms = [value for key, value in losses.items() if key.startswith("loss_")]
    if not terms:
        raise KeyError(f"no entry of the losses begins with 'loss_'; there are {list(losses)}.")
    return torch.stack(terms).sum()


def warm_up_and_cosine(
    peak: float, low: float, warmup: int
) -> Callable[[int, int], Sequence[float]]:
    """Learning rates along a cosine from ``peak`` to ``low``, times a linear rise.

    It takes ``warmup`` steps, in which the cosine falls already, or a quarter of the steps at most:
    a stage that ``learn(steps=)`` cuts short would else end before its rate is up.

    Returns:
        Function of the step and the number of steps, as ``Stage.rates`` takes it.
    """

    def rates(step: int, steps: int) -> list[float]:
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        rising = max(1, min(warmup, steps // 4))
        return [min(1.0, (step + 1) / rising) * (low + (peak - low) * cosine)]

    return rates


@dataclass(frozen=True, kw_only=True)
class Stage:
    r"""A part of an agent's training: a loss, its batches, and how it is minimised.

    The whole of a training, and what ``fit`` does besides logs and checkpoints, is::

        for number, stage in enumerate(agent.stages(dataset)):
            stage.begin()
            optimizer, batches = stage.make_optimizer(), stage.batches(seed=number)
            for step in range(stage.steps):
                losses = stage.losses(next(batches))
                total_loss(losses).backward()
                stage.step(optimizer, step)
            stage.end()

    How the usual kinds of training are expressed:

    * stages that need what earlier ones learnt: ``columns`` is called when a stage begins, so it
      may run the networks of the stages before (MAGE's tokens and plans);
    * target networks: ``after_step``; averaged weights to act with: ``averaged``;
    * several networks with rates of their own: ``optimizer`` with several parameter groups, and
      ``rates``, one number for each;
    * several updates for a batch, or an inner loop of inference before them: ``updates_per_batch``
      and ``prepare``, whose result is the batch of all these updates;
    * state of the training that no acting needs (target networks, posteriors of trajectories):
      buffers or parameters of the loss module, or modules in ``kept``; training's checkpoints hold
      them, the agent's do not.

    Attributes:
        name: of the stage, for progress and logs.
        loss: module from a batch to a TensorDict with scalar entries "loss\_...", which are summed,
            and metrics beside them; a ``LossModule`` of TorchRL, for instance.
        steps: gradient steps.
        columns: returns what batches are made of, a TensorDict (N,) with ``episode`` in it.
        batch_size: windows per batch.
        horizon: window length T. 1 gives batches of transitions (B,), else of windows (B, T) with a
            mask under ``("collector", "mask")``.
        starts: whether windows begin at any step, or at the first ones of episodes only.
        learning_rate: of "adam" and "muon".
        rates: learning rates of a step by parameter group, given the step and the number of steps;
            None keeps ``learning_rate``.
        weight_decay: of "adam" and "muon".
        gradient_clip: largest gradient norm.
        optimizer: "adam", which is AdamW; "muon", in which the weight matrices within modules named
            ``blocks`` follow their momentum orthogonalised (``Muon``) and all else follows AdamW;
            or a function that makes another one of the loss.
        updates_per_batch: consecutive steps that see the same batch.
        low_precision: whether to compute the loss in bfloat16 where that is native.
        one_graph: whether the loss does nothing but tensor arithmetic, so that compiling it pays.
        acts: whether the agent can act while this stage is trained; callbacks that evaluate wait
            for it.
        acting: makes the context in which callbacks are called, where the agent is to be what it
            would be if the stage ended now.
        kept: modules beside the loss whose state belongs to training, by name.
        begin: called once before the first step, not when training is taken up again.
        prepare: called once for each batch.
        after_step: called after each step with its number, from 0.
        end: called once after the last step.
    """

    name: str
    loss: nn.Module
    steps: int
    columns: Callable[[], TensorDictBase]
    batch_size: int
    horizon: int = 1
    starts: Starts = "steps"
    learning_rate: float = 3e-4
    rates: Callable[[int, int], Sequence[float]] | None = None
    weight_decay: float = 0.0
    gradient_clip: float = math.inf
    optimizer: Literal["adam", "muon"] | Callable[[], torch.optim.Optimizer] = "adam"
    updates_per_batch: int = 1
    low_precision: bool = False
    one_graph: bool = False
    acts: bool = True
    acting: Callable[[], AbstractContextManager[None]] = nullcontext
    kept: Mapping[str, nn.Module] = field(default_factory=dict)
    begin: Callable[[], None] = lambda: None
    prepare: Callable[[TensorDictBase], TensorDictBase] = lambda batch: batch
    after_step: Callable[[int], None] = lambda step: None
    end: Callable[[], None] = lambda: None

    def batches(self, seed: int = 0) -> Iterator[TensorDictBase]:
        """An endless stream of batches, each as often as it is to be used, on the loss's device."""
        for batch in self.make_batches(seed):
            ready = self.prepare(batch.to(self.device))
            for _ in range(self.updates_per_batch):
                yield ready

    def make_batches(self, seed: int) -> Batches:
        """The batches alone, whose state a checkpoint can keep."""
        return Batches(
            self.columns(),
            horizon=self.horizon,
            batch_size=self.batch_size,
            starts=self.starts,
            seed=seed,
        )

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A new optimiser of all that the stage trains.

        Raises:
            ValueError: ``optimizer`` is neither "adam" nor "muon" nor a function.
        """
        self.loss.train()
        if callable(self.optimizer):
            return self.optimizer()
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer == "muon":
            return Muon(self.loss.named_parameters(), lr=rate, weight_decay=decay)
        if self.optimizer != "adam":
            raise ValueError(
                f"the optimizer of stage {self.name!r} is {self.optimizer!r}; it must be 'adam', "
                "'muon' or a function that makes one."
            )
        return torch.optim.AdamW(self.loss.parameters(), lr=rate, weight_decay=decay, fused=True)

    def losses(self, batch: TensorDictBase) -> TensorDictBase:
        """Losses and metrics of a batch, each a scalar."""
        narrow = self.low_precision and has_bfloat16(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
            losses: TensorDictBase = self.loss(batch)
        return losses

    def step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Follow the gradients, and clear them.

        Raises:
            TrainingError: the gradient that is clipped is not finite; no weight has moved.
        """
        if self.rates is not None:
            rates = self.rates(step, self.steps)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        if self.gradient_clip < math.inf:
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
            if not torch.isfinite(norm):
                raise TrainingError(f"the gradient is not finite at step {step} of {self.name!r}.")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.after_step(step)

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the loss and of what is kept beside it."""
        parts = [("", self.loss), *((f"{name}.", each) for name, each in self.kept.items())]
        return {f"{at}{key}": v for at, part in parts for key, v in part.state_dict().items()}

    @property
    def device(self) -> torch.device:
        """Where the loss's parameters are."""
        return next(self.loss.parameters()).device


def share_out(stages: Sequence[Stage], steps: int | None) -> list[Stage]:
    """The stages with ``steps`` steps in all; each has at least one."""
    if steps is None:
        return list(stages)
    if steps != int(steps):
        raise ValueError(f"steps is {steps}; it must be a whole number.")
    if steps < len(stages):
        raise ValueError(f"steps is {steps}; each of {[s.name for s in stages]} needs at least 1.")
    total, shared, left = sum(stage.steps for stage in stages), [], steps
    for number, stage in enumerate(stages, start=1):
        share = round(stage.steps / total * left)
        share = min(max(1, share), left - (len(stages) - number))  # one for each that follows
        shared.append(replace(stage, steps=share))
        total, left = total - stage.steps, left - share
    return shared
