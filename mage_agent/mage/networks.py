"""What MAGE is made of: its networks, and the channels and conditions that they see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from mage_agent.agent import Agent
from mage_agent.data import rows_ahead
from mage_agent.mage import upgrade
from mage_agent.mage.autoencoder import TrajectoryDecoder, TrajectoryEncoder
from mage_agent.mage.config import GOALS, MAGEConfig
from mage_agent.mage.goal_distance import GoalDistance, beside
from mage_agent.mage.inverse_dynamics import InverseDynamics
from mage_agent.mage.quantizer import MultiScaleQuantizer
from mage_agent.mage.transformer import MultiScaleTransformer
from mage_agent.nn.layers import MLP, FourierFeatures, edge_pad
from mage_agent.nn.units import Normalizer
from mage_agent.types import TrajectoryWindow

__all__ = ["MAGENetworks"]


class MAGENetworks(Agent):
    """The networks of ``MAGEModel``, which says what is done with them."""

    config_class: ClassVar[type[MAGEConfig]] = MAGEConfig
    config: MAGEConfig
    noise: Tensor
    moved_entries: Tensor | slice
    valued_entries: Tensor | slice

    def __init__(
        self, config: MAGEConfig, *, observation_dim: int | Mapping[str, int], action_dim: int
    ) -> None:
        super().__init__(config, observation_dim=observation_dim, action_dim=action_dim)
        self.told_return = bool(config.return_conditioning)  # type: ignore[misc]
        total = self.observation_dim
        achieved, desired = (self.observation_sizes.get(key, 0) for key in GOALS)
        if config.needs_goals and (achieved != desired or total == achieved + desired):
            raise ValueError(
                f"observation_dim is {self.observation_sizes}; achieved and desired goal must be "
                "of one size, and other entries beside them."
            )
        goal_dim = achieved if config.needs_goals else 0
        body_dim = total - 2 * goal_dim  # goals come last: achieved, desired
        self.achieved_goal = slice(body_dim, body_dim + goal_dim)
        # Deviation 19: plans of goals are conditioned on the goals alone, not on the body.
        # A planner that sees the body repeats the direction in which it already moves.
        plans_goals = "G" in config.trajectory
        self.planner_sees = slice(body_dim if plans_goals else 0, total)
        condition_dim = total - self.planner_sees.start + goal_dim * plans_goals
        self.reach = Normalizer(goal_dim) if plans_goals else None
        sizes = {"R": 1, "S": total, "A": action_dim, "G": goal_dim}
        self.channels = [sizes[name] for name in config.trajectory]
        # Deviation 33: in point mazes with observed goals, plans hold the way from s_0, and Fourier
        # features of s_0 condition them: in a large maze, plans of places led through walls.
        self.drift = Normalizer(total) if config.relative_plans else None
        autoencoder = {
            "trajectory_dim": sum(self.channels),
            "horizon": config.horizon,
            "temporal_stride": config.temporal_stride,
            "code_dim": config.code_dim,
            "width": config.width,
            "num_blocks": config.num_autoencoder_blocks,
            "num_heads": config.num_heads,
        }
        self.encoder = TrajectoryEncoder(**autoencoder)
        self.quantizer = MultiScaleQuantizer(
            config.scales, config.codebook_size, config.code_dim, config.codebook_decay
        )
        self.decoder = TrajectoryDecoder(
            **autoencoder,
            observation_dim=condition_dim,
            adapter_dim=config.adapter_dim if config.condition_guidance == "adapter" else None,
        )
        for name in ("plan_entries", "value_entries"):
            if max(entries := getattr(config, name), default=0) >= total:
                raise ValueError(f"{name} is {entries}, but an observation has {total} entries.")
        sizes_until = accumulate(self.observation_sizes.values())
        end = dict(zip(self.observation_sizes, sizes_until, strict=True)).get(GOALS[1], 0)
        seen = {entry for entry in config.value_entries if end - desired <= entry < end}
        if config.value_entries and len(seen) < desired and not config.judges_by_distance:
            raise ValueError(
                f"value_entries is {config.value_entries}, which leaves out the desired goal, the "
                f"entries {end - desired} to {end - 1}: values could not tell where it is. Set "
                "value_entries to () for all, or take the preset 'pointmaze' and its candidates, "
                "which are judged by distances to the goal."
            )
        if config.judges_by_distance and max(config.value_entries, default=0) >= end - desired:
            raise ValueError(
                f"value_entries is {config.value_entries}, but distances see the desired goal, "
                f"from entry {end - desired} on, apart; leave it out."
            )
        planned = self.achieved_goal if "G" in config.trajectory else slice(0, total)
        self.planned_entries = planned
        self._register_entries("moved_entries", config.plan_entries, planned)
        self._register_entries(
            "valued_entries", config.value_entries, slice(0, self.achieved_goal.stop)
        )
        moved_dim = len(config.plan_entries) or planned.stop - planned.start
        if config.looks_ahead:
            self.displacement = Normalizer(moved_dim)
        plan_dims = {
            "latent": config.latent_length * config.code_dim,
            "explicit": 2 * total,
            "displacement": moved_dim,
            "direction": goal_dim,
        }
        condition_dims = {
            "none": 0,
            "state": total,
            "state_and_return": total + 1,
            "body": body_dim,
        }
        self.inverse_dynamics = InverseDynamics(
            plan_dims[config.inverse_dynamics],
            condition_dims[config.inverse_dynamics_condition],
            action_dim,
            2 * config.width,
            num_layers=config.inverse_dynamics_layers,
            plan_scale=config.plan_scale,
            dropout=config.plan_dropout,
        )
        self.transformer = MultiScaleTransformer(
            scale_lengths=config.scales,
            codebook_size=config.codebook_size,
            code_dim=config.code_dim,
            observation_dim=condition_dim + 2 * config.fourier_features,
            width=config.width,
            num_blocks=config.num_blocks,
            num_heads=config.num_heads,
            dropout=config.dropout,
        )
        features = config.fourier_features
        self.features = FourierFeatures(condition_dim, features) if features else nn.Identity()
        if config.candidates > 1:  # the Gumbel noise of deterministic candidates, cut from twice it
            noise = torch.empty(2 * config.candidates * sum(config.scales) * config.codebook_size)
            if not noise.is_meta:  # where a checkpoint's shapes are compared, nothing is drawn
                drawn = torch.empty(noise.shape, device="cpu")
                drawn.exponential_(generator=torch.Generator().manual_seed(0))
                noise.copy_(drawn.log_().neg_())
            self.register_buffer("noise", noise, persistent=False)
        # Deviation 31: in goal environments, what plans are judged by is the distance to the goal.
        width, judges, by_distance = config.width, config.candidates > 1, config.judges_by_distance
        by_return = config.return_expectile is not None and not by_distance
        all_dim = total - goal_dim if by_distance else condition_dim
        valued_dim = len(config.value_entries) or all_dim
        self.goal_distance = (
            GoalDistance(valued_dim, goal_dim, moved_dim, width) if by_distance else None
        )
        self.return_value = MLP(valued_dim, width, width, 1) if by_return else None
        self.plan_value = (
            MLP(valued_dim + moved_dim, width, width, 1) if judges and by_return else None
        )

    def _register_entries(self, name: str, entries: tuple[int, ...], otherwise: slice) -> None:
        """What to index states by, on the model's device: a CUDA graph can copy nothing there."""
        if entries:
            self.register_buffer(name, torch.tensor(entries), persistent=False)
        else:
            setattr(self, name, otherwise)

    @classmethod
    def upgrade(
        cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """What a file of the first format held, in today's form."""
        return upgrade.upgrade(tensors, header)

    # ------------------------------------------------------------------ conditions and channels

    def condition(self, observation: Tensor, return_to_go: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised (s_0, R_0), (B, S) and (B, 1), of raw ones."""
        state, target = self.units.standardize(observation, return_to_go.reshape(-1, 1))
        # Deviation 18: with return_expectile, a learned value of s_0 caps the return asked for.
        # A return that the data never reached from s_0 is out of distribution.
        if self.config.return_expectile is not None:
            target = target.minimum(self.value(state))
        return state, target

    def value(self, state: Tensor) -> Tensor:
        """The return-to-go that the data's better steps reach from a state, (B, S) to (B, 1).

        In goal environments, that of being ``bootstrap_steps`` nearer to the goal.
        """
        if self.goal_distance is not None:
            left = self.config.horizon * self.goal_distance.way(*self.apart(state))
            return self.nearness(left - self.config.bootstrap_steps)
        assert self.return_value is not None, "there are values only with return_expectile"
        learned: Tensor = self.return_value(self.valued(state))
        return learned

    def steps_to_goal(self, place: Tensor, goal: Tensor) -> Tensor:
        """How far a goal (..., G) is in environment steps, (..., 1); both from ``apart``."""
        assert self.goal_distance is not None, "there are distances only where goals are observed"
        steps: Tensor = self.config.horizon * self.goal_distance(place, goal)
        return steps

    def nearness(self, steps: Tensor) -> Tensor:
        """The return-to-go that stands for being so many steps from a goal, (B, 1) to (B, 1).

        The data's lowest return, and ``discount ** steps`` of what the highest one is above it, or
        of 1 where all are alike.
        """
        low, high = self.units.return_range
        span = torch.where(high > low, high - low, 1.0)
        worth = self.units.return_to_go(low + span * self.config.discount ** steps.clamp_min(0))
        return torch.where(torch.isfinite(worth), worth, torch.inf)  # no data, no bound

    def value_of_moves(self, state: Tensor, moves: Tensor) -> Tensor:
        """What moving so from a state is worth, (B, S) and (B, E) or (B, n, E) to (..., 1).

        The return-to-go that it leads to; in goal environments, less the further the goal is then.
        """
        if self.goal_distance is not None:
            return -self.goal_distance.way(*self.apart(state), moves)
        assert self.plan_value is not None, "moves are valued only with candidates"
        worth: Tensor = self.plan_value(beside(self.valued(state), moves))
        return worth

    def seen(self, state: Tensor) -> Tensor:
        """What of a standardised state (B, S) conditions plans.

        For plans of goals: the goals, and how far the desired one is, in units of how far the data
        get within a window and within 5 of them, so that near goals are told apart.
        """
        seen = state[:, self.planner_sees]
        if self.reach is None:
            return seen
        achieved, desired = self.units.observation.inverse(state)[:, self.planner_sees].chunk(2, -1)
        return torch.cat([seen, self.reach(desired - achieved).clamp(-5, 5)], dim=-1)

    def valued(self, state: Tensor) -> Tensor:
        """What of a standardised state (B, S) values see."""
        return state[:, self.valued_entries] if self.config.value_entries else self.seen(state)

    def apart(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """What distances see of a standardised state (..., S), and its desired goal, (..., G)."""
        return state[..., self.valued_entries], state[..., self.achieved_goal.stop :]

    def as_goal(self, place: Tensor) -> Tensor:
        """A place (..., G) in environment units, standardised as desired goals are."""
        units, desired = self.units.observation, slice(self.achieved_goal.stop, None)
        return (place - units.mean[desired]) / units.std[desired]

    def fit_units(self, dataset: TensorDictBase) -> None:
        """Take statistics of a dataset; where values cap what is asked for, ask for the best."""
        super().fit_units(dataset)
        if self.config.looks_ahead:
            self.displacement.fit(self.displacements(dataset, self.config.lookahead))
        if self.reach is not None:
            self.reach.fit(self.ways(dataset).to(self.device))
        if self.drift is not None:
            self.drift.fit(self.drifts(dataset, -(-self.config.horizon // 2)))
            self.drift.mean.zero_()  # s_0 itself is 0
        if self.config.return_expectile is not None and self.config.target_quantile == 1:
            self.units.ask_for_the_best()

    def ways(self, dataset: TensorDictBase) -> Tensor:
        """How far the data's achieved goals get within a window, (N, G), in goal units."""
        goal: Tensor = dataset["achieved_goal"]
        return goal[rows_ahead(dataset["episode"], self.config.horizon - 1)] - goal

    def displacements(self, dataset: TensorDictBase, steps: int) -> Tensor:
        """How far the data move ``moved_entries`` within some steps, (N, E), standardised."""
        displacement: Tensor = self.drifts(dataset, steps)[:, self.moved_entries]
        return displacement

    def drifts(self, dataset: TensorDictBase, steps: int) -> Tensor:
        """How far the data's states get within some steps, (N, S), standardised."""
        state: Tensor = self.units.observation(self.units.concatenate(dataset).to(self.device))
        return state[rows_ahead(dataset["episode"], steps)] - state

    def moves(self, displacement: Tensor) -> Tensor:
        """Displacements (N, E) in standard deviations of the lookahead's, within 5 of them."""
        moves: Tensor = self.displacement(displacement).clamp(-5, 5)
        return moves

    def planned_moves(self, trajectory: Tensor, state: Tensor, steps: int) -> Tensor:
        """How far trajectories (B, T, X) move from s_0, (B, S), in some steps, as ``moves``."""
        ahead = self.planned_state(trajectory, state, steps).detach()
        return self.moves((ahead - state)[:, self.moved_entries])

    def planned_state(self, trajectory: Tensor, state: Tensor, step: int) -> Tensor:
        """What trajectories (B, T, X) hold of the state at a step, the rest of s_0; (B, S)."""
        decoded = self.split(trajectory, state)
        planned = state.clone()
        planned[:, self.planned_entries] = decoded["S" if "S" in decoded else "G"][:, step]
        return planned

    def planned_observation(self, decoded: dict[str, Tensor]) -> Tensor:
        """Planned observations (B, T, S), raw; NaN is in the entries that plans do not hold."""
        normalizer, (first, *_) = self.units.observation, decoded.values()
        if "S" in decoded:
            return normalizer.inverse(decoded["S"])
        if "G" not in decoded:
            return first.new_zeros(*first.shape[:2], 0)
        full = first.new_full((*first.shape[:2], self.observation_dim), torch.nan)
        full[..., self.achieved_goal] = decoded["G"]
        return normalizer.inverse(full)

    def trajectory(self, window: TrajectoryWindow) -> Tensor:
        """The modelled channels of a window, standardised and edge-padded, shape (B, T, X)."""
        units = self.units

        def states() -> Tensor:
            seen: Tensor = units.observation(window.observation)
            return seen if self.drift is None else self.drift(seen - seen[:, :1])

        parts: dict[str, Callable[[], Tensor]] = {
            "R": lambda: units.return_to_go(window.return_to_go),
            "S": states,
            "A": lambda: units.action(window.action),
            "G": lambda: states()[..., self.achieved_goal],
        }
        channels = torch.cat([parts[name]() for name in self.config.trajectory], dim=-1)
        return edge_pad(channels, window.mask)

    def parts(self, trajectory: Tensor) -> dict[str, Tensor]:
        """Channels of a trajectory (B, T, X) by name, as they are modelled: "R", "S", "A", "G"."""
        parts = trajectory.split(self.channels, dim=-1)
        return dict(zip(self.config.trajectory, parts, strict=True))

    def split(self, trajectory: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Channels of a trajectory (B, T, X) from s_0, (B, S), by name, standardised."""
        parts = self.parts(trajectory)
        if self.drift is None:
            return parts
        for name, entries in (("S", slice(None)), ("G", self.achieved_goal)):
            if name in parts:
                way = parts[name] * self.drift.std[entries]
                parts[name] = state[:, None, entries] + way
        return parts
