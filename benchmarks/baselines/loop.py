"""The training loop of all baselines: batches, optimiser steps and the state to go on from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mage_agent import replay_buffer
from mage_agent.checkpoint import load_tensors, save_tensors, versions
from mage_agent.training import TrainingError

if TYPE_CHECKING:
    from benchmarks.baselines.base import Baseline

__all__ = ["Loop", "cosine"]

DRAWN_AT_ONCE = 16
"""Batches drawn by one call of the replay buffer, which costs 0.2 ms whatever the batch size."""


def cosine(step: int, steps: int) -> float:
    """Factor of the learning rate that falls from 1 to 0 along a cosine."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


class Loop:
    """What one training run consists of besides the networks.

    Args:
        method: the baseline; trained in place.
        dataset: from ``load_dataset``.
        steps: gradient steps in all.
        seed: of the batches.
        path: file to keep the state in, or None.

    Raises:
        ValueError: the file at ``path`` comes from another run.
    """

    def __init__(
        self, method: Baseline, dataset: TensorDictBase, steps: int, seed: int, path: Path | None
    ) -> None:
        self.method, self.steps, self.path, self.step = method, steps, path, 0
        settings = method.hyperparameters
        self.run = {
            "method": type(method).__name__,
            "hyperparameters": settings,
            "initial_seed": method.seed,
            "seed": seed,
            "steps": steps,
            "transitions": len(dataset),
        }
        self.buffer = replay_buffer(
            method.columns(dataset),
            horizon=method.horizon,
            batch_size=settings["batch_size"] * DRAWN_AT_ONCE,
            seed=seed,
        )
        self.optimizer = method.optimizer()
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.drawn_from = self._random_state()
        self.batches: list[TensorDictBase] = []
        if path is not None and path.is_file():
            self._restore(path)

    def advance(self) -> dict[str, Tensor]:
        """Take one gradient step; return the losses before it.

        Raises:
            TrainingError: a loss is not finite.
        """
        factors = self.method.schedule(self.step, self.steps)
        for group, rate, factor in zip(
            self.optimizer.param_groups, self.rates, factors, strict=True
        ):
            group["lr"] = rate * factor
        losses = self.method.losses(self._batch(), self.step)
        total = torch.stack(list(losses.values())).sum()
        detached = {key: loss.detach() for key, loss in losses.items()}
        if not torch.isfinite(total):
            raise TrainingError(self._failure({key: float(x) for key, x in detached.items()}))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.method.after_backward()
        self.optimizer.step()
        self.method.after_step(self.step)
        self.step += 1
        return detached

    def save(self) -> None:
        """Write everything that the rest of training depends on.

        Raises:
            TrainingError: a weight is not finite; what was saved before stays.
        """
        state = self._tensors()
        if bad := [key for key, value in state.items() if not value.isfinite().all()]:
            raise TrainingError(self._failure({"tensors": bad[:5]}))
        if self.path is None:
            return
        tensors = {f"model.{key}": value for key, value in state.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
        tensors["random.torch"] = torch.get_rng_state()
        tensors["random.batches"] = self.drawn_from
        loop = {"step": self.step, "left": len(self.batches)}
        header = {"run": self.run, "loop": loop, "versions": versions()}
        save_tensors(tensors, self.path, header)

    def _restore(self, path: Path) -> None:
        tensors, header = load_tensors(path)
        theirs = header.get("run", {})
        if changed := sorted(key for key in self.run if theirs.get(key) != self.run[key]):
            found = {key: theirs.get(key) for key in changed}
            raise ValueError(
                f"{path} comes from another run: it has {found} where this one has "
                f"{ {key: self.run[key] for key in changed} }. Use another file, or delete it."
            )
        for key, value in self._tensors().items():
            value.copy_(tensors[f"model.{key}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.buffer.sampler.load_state_dict({"rng_state": tensors["random.batches"]})
        loop: Mapping[str, int] = header["loop"]
        self.step = loop["step"]
        self._draw()
        del self.batches[: DRAWN_AT_ONCE - loop["left"]]
        torch.set_rng_state(tensors["random.torch"])

    def _batch(self) -> TensorDictBase:
        if not self.batches:
            self._draw()
        return self.batches.pop(0)

    def _draw(self) -> None:
        self.drawn_from = self._random_state()
        drawn = self.buffer.sample()
        if self.method.horizon == 1:  # without the mask, nothing is masked; the losses are faster
            drawn = drawn.squeeze(1).exclude("collector", "index")
        size = self.method.hyperparameters["batch_size"]
        self.batches = list(drawn.reshape(DRAWN_AT_ONCE, size, *drawn.shape[1:]).unbind(0))

    def _random_state(self) -> Tensor:
        state: Tensor = self.buffer.sampler.state_dict()["rng_state"]
        return state

    def _tensors(self) -> dict[str, Tensor]:
        """All weights, target weights and statistics, each once and without its gradient."""
        named: dict[str, Any] = dict(self.method.named_parameters())
        named |= dict(self.method.named_buffers())
        return {key: value.detach() for key, value in named.items()}

    def _failure(self, what: dict[str, Any]) -> str:
        kept = f"; the last good state is {self.path}" if self.path and self.path.exists() else ""
        return (
            f"{type(self.method).__name__} is not finite at step {self.step}: {what}{kept}. Lower "
            "the learning rates."
        )
