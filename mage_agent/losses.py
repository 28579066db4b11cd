"""TorchRL's ``LossModule`` contract for the losses of all agents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from mage_agent.agent import Agent

__all__ = ["AgentLoss", "squared_error"]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, shape (B,)."""
    return (prediction - target).square().flatten(1).mean(1)


class AgentLoss(LossModule):  # type: ignore[misc]
    r"""A loss of some of an agent's networks, on batches of its dataset.

    A subclass names the networks that it trains and returns ``reduced`` losses from ``forward``.
    ``parameters()`` are those of these networks only, so that no gradient step can move another
    stage's, while ``state_dict()``, ``to()`` and ``train()`` reach the whole agent: it is a plain
    submodule (``functional`` is False), since no target networks need a copy. A loss in training
    mode puts its agent there when it is called, wherever that has acted in between.

    Args:
        model: the agent to train.
        reduction: "mean" (default), "sum" or "none" (one loss per sample).

    Raises:
        ValueError: the reduction is unknown.
    """

    @dataclass
    class _AcceptedKeys:
        """Names of the entries that the loss reads.

        Attributes:
            observation: stands for "observation" in ``config.observation_keys``.
            action: actions, shape (B, T, A).
            return_to_go: discounted returns-to-go, shape (B, T, 1).
            mask: True for real steps, shape (B, T) or (B, T, 1); all steps are real without it.
        """

        observation: NestedKey = "observation"
        action: NestedKey = "action"
        return_to_go: NestedKey = "return_to_go"
        mask: NestedKey = ("collector", "mask")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    model: Agent
    agent: ClassVar[str] = ""
    """Name of the agent that the loss is for; empty is any."""
    trains: tuple[str, ...]
    """Names of the agent's networks that this loss trains."""
    reads: tuple[str, ...] = ()
    """Entries that the loss reads besides those of the keys."""
    metrics: bool = True
    """Whether to compute metrics, which are for logs only."""

    def __init__(self, model: Agent, *, reduction: str | None = None) -> None:
        names = {"", *(getattr(each, "name", "") for each in type(model).__mro__)}
        if not isinstance(model, Agent) or self.agent not in names:
            raise TypeError(
                f"model is a {type(model).__name__}; {type(self).__name__} takes the model of "
                f"{self.agent.upper() or 'an agent'}, such as policy.model."
            )
        if reduction not in (None, "mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}; allowed: 'mean', 'sum', 'none'.")
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[str] | None = None
        super().__init__()
        self.model = model
        self.reduction = reduction or "mean"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Losses of a batch, as ``forward`` has them, with the agent in the loss's own mode."""
        if self.training != self.model.training:  # agents act, and other losses train, in theirs
            self.model.train(self.training)
        return super().__call__(*args, **kwargs)

    @property
    def functional(self) -> bool:
        """The agent is a plain submodule."""
        return False

    @property
    def observation_keys(self) -> list[NestedKey]:
        """Observation entries, in the order in which they are concatenated."""
        return [
            self.tensor_keys.observation if key == "observation" else key
            for key in self.model.config.observation_keys
        ]

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that must be there."""
        return self.needed() if self._in_keys is None else self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    def needed(self) -> list[NestedKey]:
        """What ``forward`` reads, unless ``in_keys`` was set."""
        keys = self.tensor_keys
        told = [keys.return_to_go] if self.model.told_return else []
        return [*self.observation_keys, keys.action, *told, *self.reads]

    @property
    def out_keys(self) -> list[str]:
        """Entries of the output."""
        if self._out_keys is not None:
            return self._out_keys
        written = self.written()
        # Metrics are scalars, and stay out of losses of shape (B,).
        alone = self.reduction == "none" or not self.metrics
        return [key for key in written if key.startswith("loss_") or not alone]

    @out_keys.setter
    def out_keys(self, values: list[str]) -> None:
        self._out_keys = values

    @abstractmethod
    def written(self) -> list[str]:
        """Losses and metrics that ``forward`` writes."""

    def set_keys(self, **kwargs: NestedKey | None) -> None:
        """Rename the entries to read; None restores the default.

        Raises:
            ValueError: there is no such key, or the agent reads no entry that it stands for.
        """
        keys, default = self.model.config.observation_keys, self.default_keys().observation
        if kwargs.get("observation") not in (None, default) and default not in keys:
            raise ValueError(
                f"set_keys(observation={kwargs['observation']!r}) stands for {default!r}, which is "
                f"none of the agent's observation_keys, {list(keys)}; rename the batch's entries."
            )
        super().set_keys(**kwargs)
        self._in_keys = None

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """There is no value function."""

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """The networks that this loss trains, by their name in the agent."""
        for name in self.trains:
            yield name, self.model.get_submodule(name)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Only what this loss trains: no gradient step can move the other stages."""
        for name, network in self.networks():
            start = ".".join(filter(None, (prefix, "model", name)))
            for key, parameter in network.named_parameters(start, recurse, remove_duplicate):
                if parameter.requires_grad:
                    yield key, parameter

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Only what this loss trains."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze what this loss trains, or let it learn again."""
        for _, network in self.networks():
            network.requires_grad_(requires_grad)
        return self

    @contextmanager
    def others_frozen(self) -> Iterator[None]:
        """Build no gradients for what other losses train; no optimiser would clear them."""
        mine = set(self.parameters())
        others = [p for p in self.model.parameters() if p.requires_grad and p not in mine]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def reset_parameters_recursive(self, params: TensorDictBase | None = None) -> None:
        """Initialise the networks that this loss trains again, buffers included."""
        new = type(self.model)(self.model.config, **self.model.sizes)
        for name, network in self.networks():
            network.load_state_dict(new.get_submodule(name).state_dict())

    def observation(self, tensordict: TensorDictBase) -> Tensor:
        """Observations (..., S) of a batch that holds all that is read.

        Raises:
            KeyError: the batch lacks an entry.
        """
        missing = [key for key in self.in_keys if tensordict.get(key, None) is None]
        if missing:
            raise KeyError(
                f"the batch lacks {missing}; {type(self).__name__} reads {self.in_keys}: load the "
                "data with load_dataset and take the batches of a stage, or draw windows with "
                f"replay_buffer(dataset, discount={self.model.config.discount})."
            )
        return torch.cat([self.read(tensordict, key) for key in self.observation_keys], dim=-1)

    def action(self, tensordict: TensorDictBase) -> Tensor:
        """Actions (..., A) of a batch, one for each observation.

        Raises:
            ValueError: they have another shape.
        """
        action = self.read(tensordict, self.tensor_keys.action)
        steps = tensordict.get(self.observation_keys[0]).shape[:-1]
        if action.shape != (*steps, self.model.action_dim):
            raise ValueError(
                f"the actions have shape {tuple(action.shape)}; expected "
                f"{(*steps, self.model.action_dim)}."
            )
        return action

    def mask(self, tensordict: TensorDictBase, shape: torch.Size) -> Tensor:
        """True for the real steps of a batch of windows, of shape (B, T).

        Raises:
            KeyError: the batch lacks the entry that ``set_keys`` named.
        """
        key = self.tensor_keys.mask
        mask: Tensor | None = tensordict.get(key, None)
        if mask is not None:
            return mask.view(shape).bool()  # TensorDict.double() casts it, too
        if key != self.default_keys().mask:
            raise KeyError(f"the batch lacks {key!r}, where set_keys says that its mask is.")
        return torch.ones(shape, dtype=torch.bool, device=tensordict.device)

    def read(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        """An entry of a batch, in the agent's own floating-point type."""
        entry: Tensor = tensordict.get(key)
        return entry.to(self.model.units.action_low.dtype)

    def reduced(self, losses: dict[str, Tensor], metrics: dict[str, Tensor]) -> TensorDict:
        """Reduce losses of shape (B,); metrics are scalars and stay out of ``reduction="none"``."""
        if self.reduction == "none":
            return TensorDict(losses, batch_size=next(iter(losses.values())).shape)
        total = torch.sum if self.reduction == "sum" else torch.mean
        reduced = {key: total(value) for key, value in losses.items()}
        logged = {key: value.detach() for key, value in metrics.items() if self.metrics}
        return TensorDict({**reduced, **logged})
