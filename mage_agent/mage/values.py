"""What a state is worth: an upper expectile of the returns from there, stitched by bootstrapping.

The value bounds the return that is asked for, and labels the data's steps with the returns that
they can lead to. What a move from a state is worth, on average, judges sampled plans.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

from mage_agent.data import n_step_returns, rows_ahead
from mage_agent.losses import AgentLoss, squared_error

if TYPE_CHECKING:
    from mage_agent.mage.model import MAGEModel

__all__ = ["BootstrappedLoss", "MAGEValueLoss", "label_returns"]

_RATE = 0.01
"""Of the moving average that values are bootstrapped from, per step."""
_UNMOVED = 100
"""Batches after which an average that has not moved is warned of; gradients may be added up."""


class BootstrappedLoss(AgentLoss):
    """A regression on what a moving average of the trained network says of later states.

    ``after_step`` moves the average. ``Stage.step`` calls it; in a loop of one's own, call it after
    each step of the optimiser, ``begin`` before the first one and ``end`` after the last, and take
    batches of ``columns``, each through ``prepare``, as ``Stage.batches`` does.

    Args:
        model: the model to train.
        reduction: "mean" (default), "sum" or "none" (one loss per sample).
    """

    follows: ClassVar[str]
    """The model's network that the moving average follows."""
    stage: ClassVar[str]
    optimizer: ClassVar[Literal["adam", "muon"]]
    learning_rate: ClassVar[float]
    """At its peak."""
    model: MAGEModel

    def __init__(self, model: MAGEModel, *, reduction: str | None = None) -> None:
        super().__init__(model, reduction=reduction)
        self.target = copy.deepcopy(self._followed).requires_grad_(False)
        self.bootstraps = True
        self.unmoved = 0  # batches since the average moved

    def begin(self) -> None:
        """Start the moving average anew."""
        self.target.load_state_dict(self._followed.state_dict())

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the average towards the network."""
        pairs = zip(self.target.parameters(), self._followed.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, _RATE)
        self.unmoved = 0

    def bootstrapped(self, *inputs: Tensor) -> Tensor:
        """What the moving average says of later states."""
        if self.training and self.bootstraps and not torch.compiler.is_compiling():
            self.unmoved += 1
            if self.unmoved == _UNMOVED:
                warnings.warn(
                    f"{type(self).__name__} has learnt from {_UNMOVED} batches on a moving average "
                    "that has not moved; call its after_step(step) after each step of the "
                    "optimiser, as Stage.step does.",
                    stacklevel=4,
                )
        said: Tensor = self.target(*inputs)
        return said

    def end(self) -> None:
        """Finish the stage."""

    def needed(self) -> list[NestedKey]:
        """What ``forward`` reads: neither actions nor returns-to-go."""
        return [*self.observation_keys, *self.reads]

    def columns(self, dataset: TensorDictBase) -> TensorDictBase:
        """A dataset's columns (N,) with what the loss reads besides."""
        model = self.model
        columns = dataset.select(*model.config.observation_keys, "episode")
        if "moves" in self.reads:
            moves = model.moves(model.displacements(dataset, model.config.lookahead))
            columns["moves"] = moves.cpu()
        return columns

    def prepare(self, batch: TensorDictBase) -> TensorDictBase:
        """A batch of these columns, with what is drawn for it alone."""
        return batch

    @property
    def _followed(self) -> nn.Module:
        return self.model.get_submodule(self.follows)


class MAGEValueLoss(BootstrappedLoss):
    """Expectile regression of V(s_0) on ``sum_{i<n} gamma^i r_i + gamma^n V'(s_n)``.

    V' is a moving average of V, which ``after_step`` moves. With ``bootstrap_steps=0`` the return
    that followed takes the place of the sum, and nothing is bootstrapped. Where sampled plans are
    judged (``candidates``), Q(s_0, m) is trained besides, the mean of the sum for a move m, how far
    the state goes within the lookahead. Both see ``value_entries`` of a state. A batch holds
    transitions (B,) with ``n_step_return`` (B, 1), ``n_step_factor`` (B, 1), ``n_step_observation``
    (B, S), and for Q ``moves`` (B, E), as those of the stage do.

    Args:
        model: the model to train.
        reduction: "mean" (default), "sum" or "none" (one loss per transition).

    Raises:
        ValueError: the model has no values, since ``return_expectile`` is None.

    Examples:
        >>> config = MAGEConfig.preset("small", return_expectile=0.95)
        >>> model = MAGEModel.from_dataset(dataset, config)
        >>> stage = model.stages(dataset)[0]  # its loss is a MAGEValueLoss
        >>> MAGEValueLoss(model)(next(stage.batches()))["loss_value"].backward()
    """

    trains: tuple[str, ...] = ("return_value",)
    reads: tuple[str, ...] = ("n_step_return", "n_step_factor", "n_step_observation")
    follows = "return_value"
    stage, optimizer, learning_rate = "values", "adam", 2e-3

    def __init__(self, model: MAGEModel, *, reduction: str | None = None) -> None:
        expectile = model.config.return_expectile
        if expectile is None:
            raise ValueError(
                "the model has no values of states, since return_expectile is None; set it to a "
                "number between 0 and 1, for instance 0.95."
            )
        if model.return_value is None:
            raise ValueError(
                "the model has distances to goals in place of values of states; MAGEDistanceLoss "
                "trains them."
            )
        super().__init__(model, reduction=reduction)
        self.expectile, self.bootstraps = expectile, model.config.bootstrap_steps > 0
        if model.plan_value is not None:
            self.trains, self.reads = (*self.trains, "plan_value"), (*self.reads, "moves")

    def written(self) -> list[str]:
        """The loss of V, and that of Q where there is one."""
        judges = self.model.plan_value is not None
        return ["loss_value", "loss_plan_value"] if judges else ["loss_value"]

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Loss of a batch of transitions; the input stays as it is."""
        model, units = self.model, self.model.units
        state = units.observation(self.observation(tensordict))
        with torch.no_grad():
            then = units.observation(self.read(tensordict, "n_step_observation"))
            ahead = units.return_to_go.inverse(self.bootstrapped(model.valued(then)))
            factor = self.read(tensordict, "n_step_factor")
            total = self.read(tensordict, "n_step_return") + factor * ahead
            wanted = units.return_to_go(total)
        error = wanted - model.value(state)
        expectile = self.expectile
        weight = torch.where(error > 0, expectile, 1 - expectile)
        losses = {"loss_value": (weight * error.square()).squeeze(-1)}
        if model.plan_value is not None:
            worth = model.value_of_moves(state, self.read(tensordict, "moves"))
            losses["loss_plan_value"] = squared_error(worth, wanted)
        return self.reduced(losses, {})

    def columns(self, dataset: TensorDictBase) -> TensorDictBase:
        """A dataset's columns (N,) with what the loss reads besides."""
        model, config, columns = self.model, self.model.config, super().columns(dataset)
        if config.bootstrap_steps:
            total, factor, last = n_step_returns(dataset, config.discount, config.bootstrap_steps)
        else:
            total, last = model.returns_to_go(dataset), torch.arange(len(dataset))
            factor = torch.zeros_like(total)
        columns["n_step_return"], columns["n_step_factor"] = total, factor
        columns["n_step_observation"] = model.units.concatenate(dataset["next"])[last]
        return columns


@torch.no_grad()
def label_returns(model: MAGEModel, dataset: TensorDictBase) -> Tensor:
    """The return-to-go that each step is labelled with, shape (N, 1).

    That of the next ``bootstrap_steps`` rewards and of the value of where they lead, so that good
    parts of different episodes add up; the return that followed where nothing is bootstrapped. In
    goal environments, how near to the goal these steps lead, whatever the rewards.
    """
    config, concatenate = model.config, model.units.concatenate
    if model.goal_distance is not None:
        later = concatenate(dataset)[rows_ahead(dataset["episode"], config.bootstrap_steps)]
        return _returns(
            model, later, lambda state: model.nearness(model.steps_to_goal(*model.apart(state)))
        )
    if not config.bootstrap_steps:
        return model.returns_to_go(dataset)
    total, factor, last = n_step_returns(dataset, config.discount, config.bootstrap_steps)
    return total + factor * _returns(model, concatenate(dataset["next"])[last], model.value)


def _returns(model: MAGEModel, observation: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """Raw returns (N, 1) that a value of standardised states gives observations (N, S)."""
    units, device = model.units, model.device
    parts = observation.split(8192)
    worth = [
        units.return_to_go.inverse(value(units.observation(part.to(device)))) for part in parts
    ]
    return torch.cat([each.cpu() for each in worth])
