"""What methods that plan share: a plan in the memory of an episode."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines.base import Baseline, BaselineConfig
from mage_agent import Config, Stage, averaged, bounded

__all__ = [
    "Generators",
    "Planner",
    "PlannerConfig",
    "SamplingPlanner",
    "SamplingPlannerConfig",
    "fit_limits",
    "interpolated",
    "sources",
    "steps_left",
]

Generators = torch.Generator | list[torch.Generator] | None
_DESCRIBED = 64  # rows that errors are measured on, since each takes a plan


@dataclass(frozen=True, kw_only=True)
class PlannerConfig(BaselineConfig):
    """Settings of methods that plan.

    Attributes:
        learning_rate: of Adam.
        replan_every: environment steps between two plans.
        open_loop: plan once, at the start, and follow that plan by the law of ``Planner.follow``.
    """

    learning_rate: float = bounded(2e-4, 1e-12)
    replan_every: int = bounded(1, 1)
    open_loop: bool = False


class Planner(Baseline):
    """A baseline that acts on a plan of actions and states, which its memory keeps.

    Deterministic acting draws noise that follows from the observation, so that a plan depends on it
    alone, and plans differ from state to state as sampled ones do.
    """

    config: PlannerConfig
    trained: Any
    """The networks by name, an ``nn.ModuleDict``."""

    def __init__(self, config: Config, **sizes: Any) -> None:
        super().__init__(config, **sizes)
        first = next(iter(self.observation_sizes.values()))
        if self.config.open_loop and (first, self.action_dim) != (4, 2):
            raise ValueError(
                "open_loop needs two actions, and observations that begin with two positions and "
                f"two velocities; they are {self.observation_sizes} and {self.action_dim} actions."
            )

    @property
    @abstractmethod
    def plan_shape(self) -> tuple[int, int]:
        """Steps L and entries X of a plan."""

    @abstractmethod
    def plan(self, observation: Tensor, noise: Generators) -> Tensor:
        """Plans (B, L, X) for raw observations (B, S), as ``actions`` and ``states`` read them.

        Args:
            observation: raw observations.
            noise: where random numbers come from, see ``sources``.
        """

    def actions(self, plan: Tensor, observation: Tensor, age: Tensor, noise: Generators) -> Tensor:
        """Actions (B, A) in environment units, ``age`` steps (B,) after the plan was made.

        Here those that the plan begins each step with.
        """
        rows = torch.arange(len(age), device=age.device)
        action = plan[rows, age.clamp_max(plan.shape[1] - 1), : self.action_dim]
        return self.units.environment_action(action)

    @abstractmethod
    def states(self, plan: Tensor) -> Tensor:
        """Planned states (B, L, P) in environment units."""

    def sources(
        self, observation: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Generators:
        """Where the noise of plans for observations (B, S) comes from."""
        return sources(observation, temperature, generator)

    def initial_state(self, count: int) -> TensorDict:
        """No plan yet."""
        plan = torch.zeros(count, *self.plan_shape, device=self.device)
        age = torch.full((count, 1), -1, dtype=torch.int64, device=self.device)
        return TensorDict({"plan": plan, "age": age}, batch_size=[count])

    def decide(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        state: TensorDict | None = None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorDict]:
        """The next action of the plan; a new plan where there is none or it is too old."""
        state = self.initial_state(len(observation)) if state is None else state.clone()
        plan, age = state["plan"], state["age"].squeeze(-1)  # (B,)
        due = age < 0
        if not self.config.open_loop:
            due = due | (age >= self.config.replan_every)
        if due.any():
            noise = self.sources(observation[due], temperature, generator)
            plan[due] = self.plan(observation[due], noise)
            age[due] = 0
        if self.config.open_loop:
            action = self.follow(plan, observation, age)
        else:
            noise = sources(observation, temperature, generator)
            action = self.actions(plan, observation, age, noise)
        low, high = self.units.action_low, self.units.action_high
        return action.clamp(low, high), state.set("age", (age + 1).unsqueeze(-1))

    def follow(self, plan: Tensor, observation: Tensor, age: Tensor) -> Tensor:
        """What Diffuser's authors follow plans by: a PD law on positions and velocities.

        a = (x_plan[t + 1] - x) + (v_plan[t + 1] - v); after the plan's end, its last position, at
        rest. States begin with two positions and two velocities.
        """
        states = self.states(plan)[..., :4]
        last = states.shape[1] - 1
        rows = torch.arange(len(age), device=age.device)
        target = states[rows, (age + 1).clamp_max(last)]  # (B, 4)
        moves = (age < last).unsqueeze(-1)
        error = torch.cat([target[:, :2], target[:, 2:] * moves], -1) - observation[:, :4]
        return error[:, :2] + error[:, 2:]

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.trained.parameters(), fused=True)

    def rates(self, step: int, steps: int) -> Sequence[float]:
        """A constant rate."""
        return [self.config.learning_rate]

    @torch.no_grad()
    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Mean squared error of the first actions, in environment units, on a few rows."""
        apart = max(1, len(dataset) // _DESCRIBED)
        return super().describe(dataset[::apart][:_DESCRIBED])


@dataclass(frozen=True, kw_only=True)
class SamplingPlannerConfig(PlannerConfig):
    """Settings of planners that sample plans with averaged weights, as diffusion models do.

    Attributes:
        average_decay: of the moving average of the weights, per step.
        candidates: plans that the one with the highest value is chosen from.
        termination_penalty: added, in values, to the last reward of an episode that terminates.
    """

    average_decay: float = bounded(0.9995, 0.0, 1.0)  # published: 0.995 at every tenth step
    candidates: int = bounded(50, 1)
    termination_penalty: float = 0.0


class SamplingPlanner(Planner):
    """A planner that acts with a moving average of its weights."""

    config: SamplingPlannerConfig

    @property
    def decays(self) -> dict[str, float]:
        """The averages' decays by network."""
        return dict.fromkeys(self.trained, self.config.average_decay)

    def stages(self, dataset: TensorDictBase) -> list[Stage]:
        """The one stage."""
        (stage,) = super().stages(dataset)
        for name, decay in self.decays.items():
            stage = averaged(stage, decay, self.trained[name].parameters())
        return [stage]

    def valued_returns(self, dataset: TensorDictBase) -> Tensor:
        """The return-to-go of every step, (N, 1), that values learn: failures are penalized."""
        penalty = self.config.termination_penalty * dataset["next", "terminated"]
        penalized: TensorDictBase = dataset.clone(recurse=False)
        penalized["next", "reward"] = dataset["next", "reward"] + penalty
        returns: Tensor = self.returns_to_go(penalized)
        return returns

    def sources(
        self, observation: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Generators:
        """Where the noise of all candidates comes from."""
        return sources(observation, temperature, generator, candidates=self.config.candidates)


def sources(
    observation: Tensor,
    temperature: float,
    generator: torch.Generator | None,
    *,
    candidates: int = 1,
) -> Generators:
    """Where the noise of some candidates for each observation (B, S) comes from.

    Returns:
        The generator, or without temperature, one for each candidate, whose seed follows from the
        observation and its number among the candidates.
    """
    if temperature > 0:
        return generator
    seeds = [crc32(row.tobytes()) for row in observation.float().cpu().numpy()]
    return [
        torch.Generator().manual_seed(seed * candidates + number)
        for seed in seeds
        for number in range(candidates)
    ]


def fit_limits(normalizer: Any, values: Tensor) -> None:
    """Make a ``Normalizer`` map the range of values (N, size) to [-1, 1], in place."""
    low, high = values.aminmax(dim=0)
    normalizer.mean.copy_((low + high) / 2)
    half = (high - low) / 2
    normalizer.std.copy_(torch.where(half > 1e-6 * high.abs(), half, 1.0))


def interpolated(plan: Tensor, stride: int) -> Tensor:
    """The (L - 1) * stride + 1 steps of a plan (B, L, X) that has every ``stride``-th one."""
    length = (plan.shape[1] - 1) * stride + 1
    return F.interpolate(plan.mT, length, mode="linear", align_corners=True).mT


def steps_left(reward: Tensor, episode: Tensor) -> Tensor:
    """Steps (N,) until the next reward above zero in the same episode; -1 where none comes."""
    rows = torch.arange(len(reward), device=reward.device)
    following = torch.where(reward > 0, rows, len(rows)).flip(0).cummin(0).values.flip(0)
    reached = following.clamp_max(len(rows) - 1)
    comes = (following < len(rows)) & (episode[reached] == episode)
    return torch.where(comes, following - rows, -1)
