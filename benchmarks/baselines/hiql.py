"""HIQL: a high-level policy names subgoals, a low-level one goes there, both led by one value.

Park et al., 2023, https://arxiv.org/abs/2307.11949; OGBench's settings on its data.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from benchmarks.baselines.base import Baseline, BaselineConfig, UnsuitableError
from benchmarks.baselines.goals import GoalValue, Hindsight, scaled
from benchmarks.baselines.networks import Gaussian, follow, mlp, xavier
from mage_agent import Config, Stage, bounded

__all__ = ["HIQL"]

_GOAL, _REACHED = "desired_goal", "achieved_goal"
_LARGEST_WEIGHT = 100.0
_OGBENCH = {"inverse_temperature": 3.0, "actor_hidden": (512, 512, 512), "random_aims": 0.0}


@dataclass(frozen=True, kw_only=True)
class HIQLConfig(BaselineConfig):
    """The publication's settings for D4RL's ant mazes.

    Attributes:
        hidden: units of the hidden layers of values and representation.
        actor_hidden: units of the hidden layers of both policies.
        learning_rate: of all networks.
        target_rate: part of the way that the target network moves in a step.
        expectile: of the values.
        inverse_temperature: of the advantage weights of both policies.
        subgoal_steps: steps k from a state to its subgoal.
        representation: dimensions of a subgoal's representation.
        random_aims: share of the high-level policy's goals that are any place of the data.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "antmaze": {"discount": 0.99},
        "antmaze/giant-navigate": {"discount": 0.995, **_OGBENCH},
        "humanoidmaze": {"discount": 0.995, "subgoal_steps": 100, **_OGBENCH},
        "pointmaze": _OGBENCH,
        "pointmaze/giant-navigate": {"discount": 0.995},
        "multi2d": {**_OGBENCH, "random_aims": 0.3},
    }
    SMALL: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"batch_size": 256, "hidden": (256, 256), "actor_hidden": (256, 256)}
    }

    discount: float = bounded(0.99, 1e-6, 0.99999)
    batch_size: int = bounded(1024, 1)
    hidden: tuple[int, ...] = (512, 512, 512)
    actor_hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = bounded(3e-4, 1e-12)
    target_rate: float = bounded(0.005, 0.0, 1.0)
    expectile: float = bounded(0.7, 0.0, 1.0)
    inverse_temperature: float = bounded(1.0, 0.0)
    subgoal_steps: int = bounded(25, 1)
    representation: int = bounded(10, 1)
    random_aims: float = bounded(0.3, 0.0, 1.0)


class HIQL(Baseline):
    """HIQL.

    A goal is what ``achieved_goal`` holds, where the publication's is a whole state; so a subgoal
    is the place that is reached k steps later.
    """

    name: ClassVar[str] = "hiql"
    config_class: ClassVar[type[HIQLConfig]] = HIQLConfig
    config: HIQLConfig

    @classmethod
    def from_dataset(cls, dataset: TensorDictBase, config: Config | str, *, seed: int = 0) -> Self:
        """Build an untrained agent; see ``Agent.from_dataset``.

        Raises:
            UnsuitableError: the dataset has no goals.
        """
        missing = sorted({_GOAL, _REACHED} - set(dataset.keys()))
        if missing:
            name = dataset.get_non_tensor("metadata").get("dataset_id", "this dataset")
            raise UnsuitableError(
                f"{name} has no {' and no '.join(missing)} among its observations; hiql learns "
                "from data of goal environments, such as local/antmaze/umaze-v0."
            )
        return super().from_dataset(dataset, config, seed=seed)

    def build(self) -> None:
        """Make the networks.

        Raises:
            ValueError: the observation lacks the goal, or what is reached.
        """
        config, sizes = self.config, self.observation_sizes
        if not {_GOAL, _REACHED} <= set(sizes):
            raise ValueError(
                f"observation_keys is {config.observation_keys}; hiql needs {_REACHED!r} and "
                f"{_GOAL!r} in it."
            )
        goal, code = sizes[_GOAL], config.representation
        state = self.observation_dim - goal
        self.value = GoalValue(state, goal, code, config.hidden)
        self.target = deepcopy(self.value).requires_grad_(False)
        hidden = config.actor_hidden
        self.high = Gaussian(xavier(mlp([state + goal, *hidden, code])), code)
        self.low = Gaussian(xavier(mlp([state + code, *hidden, self.action_dim])), self.action_dim)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        trained = [each for each in self.parameters() if each.requires_grad]
        return torch.optim.Adam(trained, fused=True)

    def rates(self, step: int, steps: int) -> Sequence[float]:
        """One constant rate."""
        return [self.config.learning_rate]

    def after_step(self, step: int) -> None:
        """Move the target network."""
        follow(self.target, self.value, self.config.target_rate)

    def fit_units(self, dataset: TensorDictBase) -> None:
        """Take statistics; goals are standardised like what is reached."""
        super().fit_units(dataset)
        for statistic in (self.units.observation.mean, self.units.observation.std):
            parts = self._entries(statistic)
            parts[_GOAL].copy_(parts[_REACHED])

    def _entries(self, observation: Tensor) -> dict[str, Tensor]:
        """Views of the entries of an observation (..., S)."""
        parts = observation.split(list(self.observation_sizes.values()), -1)
        return dict(zip(self.observation_sizes, parts, strict=True))

    def state_and_goal(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """An observation (..., S) without the goal, and the goal."""
        entries = self._entries(observation)
        goal = entries.pop(_GOAL)
        return torch.cat(list(entries.values()), -1), goal

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Transitions of states, and the place of each.

        Episodes that go on where the last one ended, for another goal's sake, are one trajectory.
        """
        columns = super().columns(dataset)
        columns["reached"] = self._entries(columns["observation"])[_REACHED]
        columns["observation"], _ = self.state_and_goal(columns["observation"])
        following, _ = self.state_and_goal(self.standardized(dataset["next"]))
        begins = (columns["observation"][1:] != following[:-1]).any(-1)
        begins &= columns["episode"][1:] != columns["episode"][:-1]
        columns["episode"] = torch.cat([begins.new_zeros(1), begins]).cumsum(0)
        return columns.set("next", TensorDict({"observation": following}, [len(dataset)]))

    def stages(self, dataset: TensorDictBase) -> list[Stage]:
        """The one stage; its batches get goals in hindsight."""
        (stage,) = super().stages(dataset)
        make, config = stage.columns, self.config
        goals = Hindsight(config.discount, config.subgoal_steps, config.random_aims, self.device)
        return [replace(stage, columns=lambda: goals.note(make()), prepare=goals.with_goals)]

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """The losses of the value and of both policies, on what ``Hindsight.with_goals`` gives."""
        state, following = batch["observation"], batch["next", "observation"]
        goal, reached = batch["goal"], batch["at_goal"]
        with torch.no_grad():
            reward = reached.to(state.dtype) - 1
            ahead = reward + self.config.discount * ~reached * self.target(following, goal)
            advantage = ahead.min(0).values - self.target(state, goal).mean(0)
            slope = torch.where(advantage >= 0, self.config.expectile, 1 - self.config.expectile)
            aim, subgoal, low_goal = batch["aim"], batch["subgoal"], batch["low_goal"]
            code = self.value.encode(state, subgoal)
            high = self.weight(batch["subgoal_state"], state, aim)
            low = self.weight(following, state, low_goal)
            low_input = torch.cat([state, self.value.encode(state, low_goal)], -1)
        value = self.value(state, goal)
        return {
            "value": (slope * (ahead - value).square()).mean(-1).sum(),
            "high": -(high * self.high.log_prob(torch.cat([state, aim], -1), code)).mean(),
            "low": -(low * self.low.log_prob(low_input, batch["action"])).mean(),
        }

    def weight(self, later: Tensor, state: Tensor, goal: Tensor) -> Tensor:
        """``exp(beta (V(later, g) - V(s, g)))``, (B,), cut off."""
        gain: Tensor = self.value(later, goal).mean(0) - self.value(state, goal).mean(0)
        return (self.config.inverse_temperature * gain).exp().clamp(max=_LARGEST_WEIGHT)

    def decide(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        state: TensorDict | None = None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorDict | None]:
        """The action towards the subgoal; ``temperature`` scales both policies' deviations."""
        place, goal = self.state_and_goal(self.units.observation(observation))
        code = self.high.draw(torch.cat([place, goal], -1), temperature, generator)
        low_input = torch.cat([place, scaled(code)], -1)
        action = self.low.draw(low_input, temperature, generator).clamp(-1, 1)
        return self.units.environment_action(action), None
