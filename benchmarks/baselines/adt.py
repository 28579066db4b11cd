"""V-ADT: a Decision Transformer that is told values in place of returns.

Ma et al., 2023, https://arxiv.org/abs/2311.00267; written from the paper.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from benchmarks.baselines.dt import DT, DTConfig
from benchmarks.baselines.iql import IQL, IQLConfig
from mage_agent import Stage, bounded

__all__ = ["ADT"]

_LARGEST_WEIGHT = 100.0


@dataclass(frozen=True, kw_only=True)
class ADTConfig(DTConfig):
    """The publication's settings: the Decision Transformer's, and IQL's for the values.

    Attributes:
        critic_steps: gradient steps of the values, before those of the transformer.
        expectile: see IQL.
        inverse_temperature: of the advantage weights.
        reward_scale: see IQL.
        reward_shift: see IQL.
        normalize_returns: see IQL.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = IQLConfig.PRESETS

    discount: float = bounded(0.99, 1e-6, 1.0)
    steps: int = bounded(200_000, 1)
    critic_steps: int = bounded(1_000_000, 1)
    expectile: float = bounded(0.7, 0.0, 1.0)
    inverse_temperature: float = bounded(3.0, 0.0)
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    normalize_returns: bool = False


class ADT(DT):
    """V-ADT.

    In training, a step's token is the value Q(s, a) of its action, and its error weighs
    ``exp(beta (Q(s, a) - V(s)))``; in acting, the token is V(s), that of a better action. Values
    are divided by the largest of the data.
    """

    name: ClassVar[str] = "adt"
    config_class: ClassVar[type[DTConfig]] = ADTConfig
    told_return: ClassVar[bool] = False
    discounted: ClassVar[bool] = True
    config: ADTConfig

    def build(self) -> None:
        """Make the transformer, its loss and the values."""
        super().build()
        config = self.config
        shared = ("observation_keys", "discount", "expectile", "inverse_temperature")
        rewards = ("reward_scale", "reward_shift", "normalize_returns")
        settings = {name: getattr(config, name) for name in (*shared, *rewards)}
        self.values_of = _Values(IQLConfig(steps=config.critic_steps, **settings), **self.sizes)

    def fit_units(self, dataset: TensorDictBase) -> None:
        """Take statistics; the values see states as the transformer does."""
        super().fit_units(dataset)
        self.values_of.fit_units(dataset)
        self.values_of.units.observation.load_state_dict(self.units.observation.state_dict())

    def stages(self, dataset: TensorDictBase) -> list[Stage]:
        """The values, then the transformer."""
        (values,) = self.values_of.stages(dataset)
        (transformer,) = super().stages(dataset)
        return [
            replace(values, name="values", acts=False),
            replace(transformer, begin=lambda: self.fit_scale(dataset)),
        ]

    def fit_scale(self, dataset: TensorDictBase) -> None:
        """Take the largest value of the data as the unit of the tokens."""
        columns = super().columns(dataset.to(self.device))
        action_value, _ = self.values_of.judge(columns)
        self.units.return_to_go.std.fill_(action_value.abs().max().clamp_min(1e-6))

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Steps with the values of their actions, and the advantages' weights."""
        columns = super().columns(dataset)
        action_value, value = self.values_of.judge(columns)
        weight = (self.config.inverse_temperature * (action_value - value)).exp()
        columns["return_to_go"] = self.units.return_to_go(action_value)
        return columns.set("weight", weight.clamp(max=_LARGEST_WEIGHT))

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Weighted squared error of the actions, of the steps inside their episodes."""
        seen = (batch[key] for key in ("observation", "action", "return_to_go"))
        error = (self.policy(*seen) - batch["action"]).square().mean(-1, keepdim=True)
        inside = batch["collector", "mask"].unsqueeze(-1)
        return {"action": (batch["weight"] * error * inside).sum() / inside.sum()}

    def decide(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        state: TensorDict | None = None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorDict]:
        """The next action after the steps that are remembered, told the present value."""
        value = self.values_of.value(self.units.observation(observation))
        return super().decide(observation, value, state)


class _Values(IQL):
    """IQL without its policy."""

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """The losses of critics and value."""
        return {
            "qvalue": self.loss.qvalue_loss(batch)[0],
            "value": self.loss.value_loss(batch)[0],
        }

    def value(self, observation: Tensor) -> Tensor:
        """V(s), (N, 1), of standardised observations."""
        found: Tensor = self.loss.value_network.layers(observation)
        return found

    @torch.no_grad()
    def judge(self, columns: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The smaller target critic's Q(s, a), and V(s), both (N, 1)."""
        critics, found = self.loss.target_qvalue_network_params, []
        for rows in columns.select("observation", "action").split(4096):
            judged = self.loss._vmap_qvalue_networkN0(rows, critics)["state_action_value"]
            found.append((judged.min(0).values, self.value(rows["observation"])))
        action_value, value = (torch.cat(parts) for parts in zip(*found, strict=True))
        return action_value, value
