"""MAGE, the whole method on one screen: tokenize, generate, decode, act.

Read it in this order: ``tokenize`` turns a window into a pyramid of tokens, ``logits`` scores a
pyramid given (s_0, R_0), ``generate`` draws one coarse to fine, ``decode`` turns it back into a
trajectory that starts at s_0, and ``read_action`` reads the next action off it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mage_agent.config import MAGEConfig
from mage_agent.data.normalizer import Normalizer
from mage_agent.nn.autoencoder import TrajectoryDecoder, TrajectoryEncoder
from mage_agent.nn.inverse_dynamics import InverseDynamics
from mage_agent.nn.layers import MLP, KeyValue, edge_pad
from mage_agent.nn.quantizer import Encoding, MultiScaleQuantizer
from mage_agent.nn.transformer import Condition, MultiScaleTransformer
from mage_agent.types import ArrayT, Plan, TrajectoryWindow, next_return_to_go

__all__ = ["MAGEModel"]


class MAGEModel(nn.Module):
    """Multi-scale autoregressive generation of trajectories.

    Raw environment units go in and out of every public method; statistics of the dataset are
    buffers of the model. Inside, s_0, R_0 and actions are standardised.

    Args:
        config: everything else.
        observation_dim: observation size S.
        action_dim: action size A.
        goal_dim: size G of a goal; the last 2 G entries of an observation are the achieved and the
            desired goal. 0 where the configuration needs none.

    Raises:
        ValueError: the sizes leave no room for what the configuration needs.
    """

    action_low: Tensor
    action_high: Tensor
    return_range: Tensor
    target_return: Tensor
    only_acts: bool = False
    """True for the copies that ``optimize_for_inference`` makes."""

    def __init__(
        self, config: MAGEConfig, *, observation_dim: int, action_dim: int, goal_dim: int = 0
    ) -> None:
        super().__init__()
        if observation_dim < 1 or action_dim < 1:
            raise ValueError(
                f"observation_dim is {observation_dim} and action_dim is {action_dim}; both must "
                "be at least 1."
            )
        body_dim = observation_dim - 2 * goal_dim  # goals come last: achieved, desired
        if config.needs_goals and (goal_dim < 1 or body_dim < 1):
            raise ValueError(
                f"goal_dim is {goal_dim}; of {observation_dim} entries of an observation, achieved "
                "and desired goal must take at least one each, and leave one."
            )
        # Whoever names no entries, and has no dataset that names them, has a lone observation.
        self.config = config.replace(observation_keys=config.observation_keys or ("observation",))
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.goal_dim = goal_dim
        self.achieved_goal = slice(body_dim, body_dim + goal_dim)
        # Deviation: a plan of goals is made for the goals, achieved and desired, not for the body.
        # The data's body already moves where it will go: a planner that sees it keeps its course.
        self.planner_sees = slice(body_dim if "G" in config.trajectory else 0, observation_dim)
        condition_dim = observation_dim - self.planner_sees.start
        sizes = {"R": 1, "S": observation_dim, "A": action_dim, "G": goal_dim}
        self.channels = [sizes[name] for name in config.trajectory]
        body = {
            "trajectory_dim": sum(self.channels),
            "horizon": config.horizon,
            "temporal_stride": config.temporal_stride,
            "code_dim": config.code_dim,
            "width": config.width,
            "num_blocks": config.num_autoencoder_blocks,
            "num_heads": config.num_heads,
        }
        self.encoder = TrajectoryEncoder(**body)
        self.quantizer = MultiScaleQuantizer(
            config.scales, config.codebook_size, config.code_dim, config.codebook_decay
        )
        self.decoder = TrajectoryDecoder(
            **body,
            observation_dim=condition_dim,
            adapter_dim=config.adapter_dim if config.condition_guidance == "adapter" else None,
        )
        plan_dims = {
            "latent": config.latent_length * config.code_dim,
            "explicit": 2 * observation_dim,
            "direction": goal_dim,
        }
        condition_dims = {
            "none": 0,
            "state": observation_dim,
            "state_and_return": observation_dim + 1,
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
            observation_dim=condition_dim,
            width=config.width,
            num_blocks=config.num_blocks,
            num_heads=config.num_heads,
            dropout=config.dropout,
        )
        self.return_ceiling = (
            MLP(condition_dim, config.width, config.width, 1) if config.return_expectile else None
        )
        self.normalize_observation = Normalizer(observation_dim)
        self.normalize_return = Normalizer(1)
        self.normalize_action = Normalizer(action_dim)
        self.register_buffer("action_low", torch.full((action_dim,), -torch.inf))
        self.register_buffer("action_high", torch.full((action_dim,), torch.inf))
        self.register_buffer("return_range", torch.tensor([-torch.inf, torch.inf]))
        self.register_buffer("target_return", torch.tensor(0.0))

    @property
    def sizes(self) -> dict[str, int]:
        """What it takes besides the configuration to build the model."""
        names = ("observation_dim", "action_dim", "goal_dim")
        return {name: getattr(self, name) for name in names}

    # ---------------------------------------------------------------- stage 1: windows and tokens

    def tokenize(self, window: TrajectoryWindow, *, update_codebook: bool = False) -> Encoding:
        """Encode a window and quantise it scale by scale (Algorithm 1).

        Args:
            window: a batch of windows; padding may hold anything.
            update_codebook: move the codes towards this batch.

        Returns:
            Token ids (B, L_k), latent (B, L_K, C) and commitment (B,).
        """
        _, return_to_go = self.standardize(window.observation[:, 0], window.return_to_go[:, 0])
        latent = self.encoder(self.trajectory(window), self._decoder_return(return_to_go))
        # The nearest of many codes is not to be found in bfloat16, which autocast may have set.
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.to(self.quantizer.codes.dtype)
            return self.quantizer.encode(latent, update_codebook=update_codebook)

    def decode(
        self, latent: Tensor, state: Tensor, return_to_go: Tensor, *, guided: bool
    ) -> Tensor:
        """Decode a latent: with D (Algorithm 2), or guided by (s_0, R_0) with D' (Eq. 7).

        Args:
            latent: sum_k z_k, shape (B, L_K, C).
            state: standardised s_0, shape (B, S).
            return_to_go: standardised R_0, shape (B, 1).
            guided: whether the adapters take part.

        Returns:
            Standardised trajectory, shape (B, T, X).
        """
        condition = None
        if guided:
            given = state[:, self.planner_sees]
            condition = torch.cat([given, self._condition_return(return_to_go)], dim=-1)
        trajectory: Tensor = self.decoder(latent, self._decoder_return(return_to_go), condition)
        return trajectory

    def read_action(
        self,
        latent: Tensor,
        state: Tensor,
        return_to_go: Tensor,
        *,
        guided: bool = True,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Inverse dynamics (Eq. 6), or on decoded states when ``inverse_dynamics="explicit"``.

        Returns:
            Standardised action, shape (B, A).
        """
        condition = torch.cat([state, return_to_go], dim=-1)
        action: Tensor = self.inverse_dynamics(
            self.read_plan(latent, state, return_to_go, guided=guided), condition, visible
        )
        return action

    def read_plan(
        self, latent: Tensor, state: Tensor, return_to_go: Tensor, *, guided: bool = True
    ) -> Tensor:
        """What I sees of a plan: the latent, two decoded states, or the direction it leads in.

        Returns:
            Shape (B, L_K * C), (B, 2 S), or (B, G), of length 1 in the goal's units.
        """
        if self.config.inverse_dynamics == "latent":
            return latent.flatten(1)
        decoded = self.split(self.decode(latent, state, return_to_go, guided=guided))
        if self.config.inverse_dynamics == "explicit":
            return decoded["S"][:, :2].flatten(1)
        # Deviation: in ant mazes, a plan is the way of the achieved goal, and I sees its direction.
        way = decoded["G"][:, -1].detach() - state[:, self.achieved_goal]
        return F.normalize(way * self.normalize_observation.std[self.achieved_goal], dim=-1)

    # ------------------------------------------------------- stage 2: generation, coarse to fine

    def logits(
        self, codes: Sequence[Tensor], state: Tensor, return_to_go: Tensor, known: Tensor
    ) -> tuple[Tensor, ...]:
        """Score every scale given the true coarser ones, in one pass (Eq. 4).

        Args:
            codes: codes of every scale, K tensors (B, L_k, C).
            state: standardised s_0, shape (B, S).
            return_to_go: standardised R_0, shape (B, 1).
            known: 1 where the return conditions, shape (B, 1).

        Returns:
            K tensors (B, L_k, V).
        """
        lengths = self.config.scales
        inputs = torch.cat(self.quantizer.scale_inputs(codes), dim=1)
        first, finer = self._conditions(state, return_to_go, known)
        condition = first if finer is first else first.followed_by(finer, lengths)
        logits, _ = self.transformer(inputs, condition)
        per_scale: tuple[Tensor, ...] = logits.split(lengths, dim=1)
        return per_scale

    def generate(
        self,
        state: Tensor,
        return_to_go: Tensor,
        pick: Callable[[Tensor], Tensor],
        given: Sequence[Tensor] = (),
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Draw a token pyramid coarse to fine, with a key/value cache (Eq. 4).

        Args:
            state: standardised s_0, shape (B, S).
            return_to_go: standardised R_0, shape (B, 1).
            pick: maps the logits of a scale (B, L_k, V) to its codes (B, L_k, C).
            given: codes of the coarsest scales, which are not picked then, tensors (B, L_k, C).

        Returns:
            Logits, K tensors (B, L_k, V), and the sums of scales 1..k, K tensors (B, L_K, C).
        """
        batch = state.shape[0]
        known = torch.ones_like(return_to_go)
        guidance = self.config.guidance_scale
        if guidance != 1:  # the second half of the batch does without the return
            state, return_to_go = state.repeat(2, 1), return_to_go.repeat(2, 1)
            known = torch.cat([known, torch.zeros_like(known)])
        first, finer = self._conditions(state, return_to_go, known)
        scores: list[Tensor] = []
        past: list[KeyValue] | None = None

        def choose(k: int, total: Tensor) -> Tensor:
            nonlocal past
            inputs = self.quantizer.scale_down[k] @ total
            if guidance != 1:
                inputs = inputs.repeat(2, 1, 1)
            logits, past = self.transformer(inputs, finer if k else first, scale=k, past=past)
            if guidance != 1:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + guidance * (conditional - unconditional)
            scores.append(logits)
            return given[k] if k < len(given) else pick(logits)

        sums = [total for _, total in self.quantizer.coarse_to_fine(choose, state[:batch])]
        return scores, sums

    def sample(
        self, logits: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Token ids (B, L_k) from logits (B, L_k, V): the likeliest, or samples."""
        if temperature > 0:  # the Gumbel-max trick
            noise = torch.empty_like(logits).exponential_(generator=generator).log()
            logits = logits / temperature - noise
        return logits.argmax(-1)

    def pick(
        self, logits: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Codes (B, L_k, C) to act on, from the logits of a scale (B, L_k, V).

        With ``temperature`` 0, their mean at the configuration's ``code_temperature``, which at 0
        is the likeliest code; else the codes of samples.
        """
        # Deviation: the presets act on the mean code of each token, not on the likeliest one.
        if temperature == 0 and self.config.code_temperature > 0:
            codes = self.quantizer.codes
            return (logits.to(codes.dtype) / self.config.code_temperature).softmax(-1) @ codes
        return self.quantizer.lookup(self.sample(logits, temperature, generator))

    def straight_through(self, logits: Tensor) -> Tensor:
        """Codes of Gumbel-softmax samples: discrete forwards, soft backwards (Alg. 5, l. 14-18).

        Args:
            logits: shape (B, L_k, V).

        Returns:
            Codes, shape (B, L_k, C).
        """
        codes = self.quantizer.codes
        scores = logits.to(codes.dtype)
        # Uniform numbers cost a fifth of the exponential ones that F.gumbel_softmax draws.
        uniform = torch.rand_like(scores).clamp_min_(torch.finfo(scores.dtype).tiny)
        noise = uniform.log_().neg_().log_().neg_()
        soft = ((scores + noise) / self.config.gumbel_temperature).softmax(-1)
        mean = soft @ codes
        chosen = self.quantizer.lookup(soft.argmax(-1))
        return mean + (chosen - mean).detach()

    # -------------------------------------------------------------------------------- acting

    @torch.no_grad()
    def act(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The action to execute now.

        Args:
            observation: raw observations, shape (..., S).
            return_to_go: discounted return asked for, shape (...) or (..., 1).
            temperature: of the token samples; 0 is deterministic.
            generator: source of randomness.

        Returns:
            Actions inside the bounds, shape (..., A).

        Raises:
            ValueError: the last axis of ``observation`` is not S.
        """
        lead = observation.shape[:-1]
        state, target = self._ask(observation, return_to_go)
        if temperature > 0:
            _, sums = self.generate(
                state, target, lambda logits: self.pick(logits, temperature, generator)
            )
            action = self.read_action(sums[-1], state, target)
        else:
            action = self.greedy_action(state, target)
        return self.denormalize_action(action).view(*lead, self.action_dim)

    def greedy_action(self, state: Tensor, return_to_go: Tensor) -> Tensor:
        """Standardised action (B, A), deterministic; what ``optimize_for_inference`` compiles."""
        _, sums = self.generate(state, return_to_go, self.pick)
        return self.read_action(sums[-1], state, return_to_go)

    @torch.no_grad()
    def plan(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        *,
        partial: bool = False,
        guided: bool = True,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Plan:
        """The plan behind the action, decoded.

        Args:
            observation: raw observations, shape (B, S).
            return_to_go: discounted return asked for, shape (B,) or (B, 1).
            partial: also decode scales 1..k for every k.
            guided: decode with D' (adapters) rather than D.
            temperature: of the token samples; 0 is deterministic.
            generator: source of randomness.

        Returns:
            The plan in environment units.
        """
        state, target = self._ask(observation, return_to_go)
        token_ids: list[Tensor] = []

        def pick(logits: Tensor) -> Tensor:
            token_ids.append(self.sample(logits, temperature, generator))
            if temperature > 0:  # the very samples, not new ones
                return self.quantizer.lookup(token_ids[-1])
            return self.pick(logits)

        _, sums = self.generate(state, target, pick)
        decoded = [
            self.split(self.decode(total, state, target, guided=guided))
            for total in (sums if partial else sums[-1:])
        ]
        empty = state.new_zeros(state.shape[0], self.config.horizon, 0)
        observations = tuple(self._planned_observation(part, empty) for part in decoded)
        returns = decoded[-1].get("R")
        return Plan(
            token_ids=tuple(token_ids),
            latent=sums[-1],
            observation=observations[-1],
            return_to_go=empty if returns is None else self.normalize_return.inverse(returns),
            action=self.denormalize_action(self.read_action(sums[-1], state, target)),
            partial=observations if partial else (),
        )

    def _planned_observation(self, decoded: dict[str, Tensor], empty: Tensor) -> Tensor:
        """Planned observations (B, T, S); NaN is in the entries that plans do not hold."""
        if "G" in decoded:
            full = empty.new_full((*empty.shape[:2], self.observation_dim), torch.nan)
            full[..., self.achieved_goal] = decoded["G"]
            return self.normalize_observation.inverse(full)
        return self.normalize_observation.inverse(decoded["S"]) if "S" in decoded else empty

    @property
    def default_target_return(self) -> float:
        """Discounted return to ask for when the user names none, in the dataset's units."""
        return float(self.target_return)

    @property
    def return_to_go_range(self) -> tuple[float, float]:
        """Smallest and largest return-to-go of the data."""
        low, high = self.return_range.tolist()
        return low, high

    def update_return_to_go(self, return_to_go: ArrayT, reward: ArrayT) -> ArrayT:
        """What to ask for after a reward: ``(R - r) / gamma``, inside the data's range."""
        low, high = self.return_to_go_range
        return next_return_to_go(
            return_to_go, reward, discount=self.config.discount, low=low, high=high
        )

    # ---------------------------------------------------------------------------------- units

    @torch.no_grad()
    def fit_statistics(
        self,
        *,
        observation: Tensor,
        action: Tensor,
        return_to_go: Tensor,
        initial_return: Tensor,
        action_low: Tensor,
        action_high: Tensor,
    ) -> None:
        """Take units and ranges from a dataset, in place.

        Args:
            observation: all observations, shape (N, S).
            action: all actions, shape (N, A).
            return_to_go: all returns-to-go, shape (N, 1).
            initial_return: returns-to-go at the episodes' starts, shape (E, 1).
            action_low: lower bounds of the action space, shape (A,).
            action_high: upper bounds, shape (A,).
        """
        self.normalize_observation.fit(observation)
        self.normalize_action.fit(action)
        self.normalize_return.fit(return_to_go)
        self.action_low.copy_(action_low)
        self.action_high.copy_(action_high)
        self.return_range.copy_(torch.stack([return_to_go.min(), return_to_go.max()]))
        self.target_return.copy_(initial_return.quantile(self.config.target_return))

    def standardize(self, observation: Tensor, return_to_go: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised (s_0, R_0), shapes (B, S) and (B, 1)."""
        return self.normalize_observation(observation), self.normalize_return(return_to_go)

    def trajectory(self, window: TrajectoryWindow) -> Tensor:
        """The modelled channels of a window, standardised and edge-padded, shape (B, T, X)."""
        parts = {
            "R": lambda: self.normalize_return(window.return_to_go),
            "S": lambda: self.normalize_observation(window.observation),
            "A": lambda: self.normalize_action(window.action),
            "G": lambda: self.normalize_observation(window.observation)[..., self.achieved_goal],
        }
        channels = torch.cat([parts[name]() for name in self.config.trajectory], dim=-1)
        return edge_pad(channels, window.mask)

    def split(self, trajectory: Tensor) -> dict[str, Tensor]:
        """Channels of a trajectory (B, T, X) by name: "R", "S", "A", "G"."""
        parts = trajectory.split(self.channels, dim=-1)
        return dict(zip(self.config.trajectory, parts, strict=True))

    def denormalize_action(self, action: Tensor) -> Tensor:
        """Standardised action to environment units, inside the bounds, shape (B, A)."""
        raw: Tensor = self.normalize_action.inverse(action)
        return raw.clamp(self.action_low, self.action_high)

    def hide_state(self, state: Tensor) -> Tensor | None:
        """In training, 0 where s_0 is to be hidden from I, shape (B, 1)."""
        if not self.training or self.config.state_dropout == 0:
            return None
        return (torch.rand_like(state[:, :1]) >= self.config.state_dropout).to(state)

    def return_weight(self, return_to_go: Tensor) -> Tensor:
        """Return-to-go scaled to [0, 1], shape (B,) (Table 23, "reweight")."""
        low, high = self.return_range
        weight: Tensor = (return_to_go - low) / (high - low).clamp_min(1e-6)
        return weight.squeeze(-1)

    def _ask(self, observation: Tensor, return_to_go: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised condition of raw inputs, bounded by what the data reached from s_0."""
        if observation.shape[-1] != self.observation_dim:
            raise ValueError(
                f"observation has shape {tuple(observation.shape)}; its last axis must be "
                f"{self.observation_dim}."
            )
        if return_to_go.shape.numel() != observation.shape[:-1].numel():
            raise ValueError(
                f"return_to_go has shape {tuple(return_to_go.shape)}; it must hold one number for "
                f"each observation of {tuple(observation.shape)}."
            )
        dtype = self.normalize_observation.mean.dtype
        state, target = self.standardize(
            observation.reshape(-1, self.observation_dim).to(dtype),
            return_to_go.reshape(-1, 1).to(dtype),
        )
        # Deviation: with return_expectile, no return is asked that the data never reached from s_0.
        if self.return_ceiling is not None:
            target = target.minimum(self.return_ceiling(state[:, self.planner_sees]))
        return state, target

    def _conditions(
        self, state: Tensor, return_to_go: Tensor, known: Tensor
    ) -> tuple[Condition, Condition]:
        """Conditions of the first and of the finer scales."""
        sites = self.config.return_conditioning

        def embed(site: str) -> Condition:
            flag = known if site in sites else torch.zeros_like(known)
            return self.transformer.condition(state[:, self.planner_sees], return_to_go, flag)

        first = embed("first_scale")
        same = ("first_scale" in sites) == ("finer_scales" in sites)
        return first, first if same else embed("finer_scales")

    def _decoder_return(self, return_to_go: Tensor) -> Tensor:
        used = "autoencoder" in self.config.return_conditioning
        return return_to_go if used else torch.zeros_like(return_to_go)

    def _condition_return(self, return_to_go: Tensor) -> Tensor:
        used = "condition_loss" in self.config.return_conditioning
        return return_to_go if used else torch.zeros_like(return_to_go)
