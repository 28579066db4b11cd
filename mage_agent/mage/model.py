"""MAGE, the whole method: tokenize, generate, decode, act.

Read it in this order: ``tokenize`` turns a window into a pyramid of tokens, ``logits`` scores a
pyramid given (s_0, R_0), ``generate`` draws one coarse to fine, ``decode`` turns it back into a
trajectory that starts at s_0, and ``read_action`` reads the next action off it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from mage_agent.mage import inference, stages
from mage_agent.mage.networks import MAGENetworks
from mage_agent.mage.quantizer import Encoding
from mage_agent.mage.sampling import hashed, sample_ids
from mage_agent.mage.transformer import Condition
from mage_agent.nn.layers import KeyValue
from mage_agent.stage import Stage
from mage_agent.types import Plan, TrajectoryWindow

__all__ = ["MAGEModel"]


class MAGEModel(MAGENetworks):
    """Multi-scale autoregressive generation of trajectories.

    Raw environment units go in and out of ``act``, ``decide``, ``plan`` and ``tokenize``; what the
    other methods take and return is standardised.

    Args:
        config: everything else.
        observation_dim: observation size S, or the size of each of ``config.observation_keys``.
        action_dim: action size A.

    Raises:
        ValueError: a size is missing or below 1, does not go with the goals that are planned, or
            ``plan_entries`` names an entry beyond S.

    Examples:
        >>> model = MAGEModel(MAGEConfig.preset("small"), observation_dim=3, action_dim=1)
        >>> plan = model.plan(torch.zeros(2, 3), torch.tensor([-200.0, -100.0]))
        >>> plan.observation.shape, plan.action.shape
        (torch.Size([2, 24, 3]), torch.Size([2, 1]))
    """

    name: ClassVar[str] = "mage"

    # ---------------------------------------------------------------- stage 1: windows and tokens

    def tokenize(self, window: TrajectoryWindow, *, update_codebook: bool = False) -> Encoding:
        """Encode a window and quantise it scale by scale (Algorithm 1).

        Args:
            window: a batch of windows; padding may hold anything.
            update_codebook: move the codes towards this batch.

        Returns:
            Token ids (B, L_k), latent (B, L_K, C) and commitment (B,).
        """
        return_to_go = self.units.return_to_go(window.return_to_go[:, 0])
        latent = self.encoder(self.trajectory(window), self._shown("autoencoder", return_to_go))
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
            state: s_0, shape (B, S).
            return_to_go: R_0, shape (B, 1).
            guided: whether the adapters take part.

        Returns:
            Trajectory, shape (B, T, X).
        """
        condition = None
        if guided:
            given = self.seen(state)
            condition = torch.cat([given, self._shown("condition_loss", return_to_go)], dim=-1)
        shown = self._shown("autoencoder", return_to_go)
        trajectory: Tensor = self.decoder(latent, shown, condition)
        return trajectory

    # ------------------------------------------------------- stage 2: generation, coarse to fine

    def logits(
        self, codes: Sequence[Tensor], state: Tensor, return_to_go: Tensor
    ) -> tuple[Tensor, ...]:
        """Score every scale given the true coarser ones, in one pass (Eq. 4).

        Args:
            codes: codes of every scale, K tensors (B, L_k, C).
            state: s_0, shape (B, S).
            return_to_go: R_0, shape (B, 1).

        Returns:
            K tensors (B, L_k, V).
        """
        lengths = self.config.scales
        inputs = torch.cat(self.quantizer.scale_inputs(codes), dim=1)
        first, finer = self._embedded(state, return_to_go)
        condition = first if finer is first else first.followed_by(finer, lengths)
        logits, _ = self.transformer(inputs, condition)
        per_scale: tuple[Tensor, ...] = logits.split(lengths, dim=1)
        return per_scale

    def generate(
        self,
        state: Tensor,
        return_to_go: Tensor,
        choose: Callable[[Tensor], Tensor],
        given: Sequence[Tensor] = (),
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Draw a token pyramid coarse to fine, with a key/value cache (Eq. 4).

        Args:
            state: s_0, shape (B, S).
            return_to_go: R_0, shape (B, 1).
            choose: maps the logits of a scale (B, L_k, V) to its codes (B, L_k, C).
            given: codes of the coarsest scales, which are not chosen then, tensors (B, L_k, C).

        Returns:
            Logits, K tensors (B, L_k, V), and the sums of scales 1..k, K tensors (B, L_K, C).
        """
        first, finer = self._embedded(state, return_to_go)
        scores: list[Tensor] = []
        sums: list[Tensor] = []
        past: list[KeyValue] | None = None
        total = state.new_zeros(len(state), self.config.latent_length, self.config.code_dim)
        for k in range(self.config.num_scales):
            inputs = self.quantizer.scale_down[k] @ total  # (B, L_k, C)
            logits, past = self.transformer(inputs, finer if k else first, scale=k, past=past)
            codes = given[k] if k < len(given) else choose(logits)
            total = total + self.quantizer.scale_up[k] @ codes
            scores.append(logits)
            sums.append(total)
        return scores, sums

    def choose(self, logits: Tensor) -> Tensor:
        """Codes (B, L_k, C) to act on, from the logits of a scale (B, L_k, V)."""
        # Deviation 17: a deterministic policy acts on mean codes, not on the likeliest.
        codes, temperature = self.quantizer.codes, self.config.code_temperature
        if temperature == 0:
            return self.quantizer.lookup(sample_ids(logits))
        return (logits.to(codes.dtype) / temperature).softmax(-1) @ codes

    def propose(
        self,
        state: Tensor,
        return_to_go: Tensor,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The plan to act on: that of the mean codes, or the best judged of sampled ones.

        Args:
            state: s_0, shape (B, S).
            return_to_go: R_0, shape (B, 1).
            temperature: of the token samples; at 0, candidates are drawn with noise that follows
                from the state, so that the plan depends on nothing else.
            generator: source of randomness.

        Returns:
            Token ids, K tensors (B, L_k), and the sums of scales 1..k, K tensors (B, L_K, C).
        """
        count = self.config.candidates
        token_ids: list[Tensor] = []
        noise = self._noise(state) if temperature == 0 and count > 1 else None

        def choose(logits: Tensor) -> Tensor:
            if noise is not None:
                logits = logits + noise[len(token_ids)]
            token_ids.append(sample_ids(logits, temperature, generator))
            if temperature == 0 and count == 1:
                return self.choose(logits)
            return self.quantizer.lookup(token_ids[-1])

        if count == 1:
            return token_ids, self.generate(state, return_to_go, choose)[1]
        # Deviation 29: of several sampled plans, the one whose move from s_0 is worth the most.
        states, returns = (part.repeat_interleave(count, 0) for part in (state, return_to_go))
        _, sums = self.generate(states, returns, choose)
        latents = sums[-1].unflatten(0, (len(state), count))
        best = self.judge(latents, state, return_to_go).argmax(1)
        rows = best + count * torch.arange(len(state), device=state.device)
        return [each[rows] for each in token_ids], [each[rows] for each in sums]

    def _noise(self, state: Tensor) -> tuple[Tensor, ...]:
        """Gumbel noise of the candidates of every state, K tensors (B * candidates, L_k, V).

        It is another one in every state: with the same noise everywhere, the agent comes to rest
        where none of its few candidates leads on.
        """
        size = len(self.noise) // 2
        noise = self.noise.unfold(0, size, 1)[hashed(state, size)]
        rows = noise.view(-1, sum(self.config.scales), self.config.codebook_size)
        parts: tuple[Tensor, ...] = rows.split(self.config.scales, dim=1)
        return parts

    def judge(self, latent: Tensor, state: Tensor, return_to_go: Tensor) -> Tensor:
        """Value of moving from s_0 as a plan does, less how far it begins from s_0.

        Where distances judge, also less how much further its end is than it could get to.

        Args:
            latent: sum_k z_k of n plans for each s_0, shape (B, n, L_K, C).
            state: s_0, shape (B, S).
            return_to_go: R_0, shape (B, 1).

        Returns:
            Shape (B, n).
        """
        each = latent.shape[:2]
        states, returns = (part.repeat_interleave(each[1], 0) for part in (state, return_to_go))
        trajectory = self.decode(latent.flatten(0, 1), states, returns, guided=True)
        end = self.planned_state(trajectory, states, self.config.lookahead)
        moves = self.moves((end - states)[:, self.moved_entries])
        worth = self.value_of_moves(state, moves.unflatten(0, each)).flatten()
        off = self.planned_state(trajectory, states, 0) - states
        worth = worth - off[:, self.planned_entries].square().mean(-1)
        if self.goal_distance is not None:
            goal = self.as_goal(self.units.observation.inverse(end)[:, self.achieved_goal])
            steps = self.steps_to_goal(self.apart(states)[0], goal).squeeze(-1)
            late = (steps - self.config.lookahead).clamp_min(0)
            worth = worth - late / self.config.horizon
        return worth.reshape(each)

    # ---------------------------------------------------------------- from the plan to the action

    def read_action(
        self,
        latent: Tensor,
        state: Tensor,
        return_to_go: Tensor,
        *,
        trajectory: Tensor | None = None,
    ) -> Tensor:
        """Inverse dynamics on a plan (Eq. 6), or on what ``inverse_dynamics`` makes of it.

        Args:
            latent: sum_k z_k, shape (B, L_K, C).
            state: s_0, shape (B, S).
            return_to_go: R_0, shape (B, 1).
            trajectory: the latent decoded, shape (B, T, X), where that is known; else D' decodes.

        Returns:
            Action, shape (B, A).
        """
        read = self.read_plan(latent, state, return_to_go, trajectory=trajectory)
        action: Tensor = self.inverse_dynamics(read, torch.cat([state, return_to_go], dim=-1))
        return action

    def read_plan(
        self,
        latent: Tensor,
        state: Tensor,
        return_to_go: Tensor,
        *,
        trajectory: Tensor | None = None,
    ) -> Tensor:
        """What inverse dynamics reads of a plan, as ``config.inverse_dynamics`` says.

        Returns:
            The latent (B, L_K * C), two states (B, 2 S), a displacement (B, len(plan_entries)), in
            standard deviations of the data's, or a direction (B, G), of length 1 in goal units.
        """
        if self.config.inverse_dynamics == "latent":
            return latent.flatten(1)
        if trajectory is None:
            with torch.no_grad():  # what reads a plan does not bend it (Eq. 7 alone trains D')
                trajectory = self.decode(latent, state, return_to_go, guided=True)
        if self.config.inverse_dynamics == "displacement":
            # Deviation 30: in point mazes, inverse dynamics reads how far the plan moves.
            return self.planned_moves(trajectory, state, self.config.read_lookahead)
        decoded = self.split(trajectory, state)
        if self.config.inverse_dynamics == "explicit":
            return decoded["S"][:, :2].flatten(1)
        # Deviation 20: in ant mazes, inverse dynamics reads the plan's direction, not its latent.
        path = decoded["G"][:, -1].detach() - state[:, self.achieved_goal]
        return F.normalize(path * self.units.observation.std[self.achieved_goal], dim=-1)

    def decide(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        state: TensorDict | None = None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, None]:
        """The action to execute now; MAGE makes a new plan at every step and keeps no memory."""
        given, target = self.condition(observation, return_to_go)
        if temperature == 0:
            action = self.greedy_action(given, target)
        else:
            _, sums = self.propose(given, target, temperature, generator)
            action = self.read_action(sums[-1], given, target)
        return self.units.environment_action(action), None

    def greedy_action(self, state: Tensor, return_to_go: Tensor) -> Tensor:
        """Deterministic action (B, A); what ``optimize_for_inference`` compiles."""
        _, sums = self.propose(state, return_to_go)
        return self.read_action(sums[-1], state, return_to_go)

    def optimize_for_inference(
        self, weights: str = "float32", *, compiled: bool = False
    ) -> MAGEModel:
        """A copy that acts faster; see ``mage_agent.mage.inference``."""
        return inference.optimize_for_inference(self, weights, compiled=compiled)

    @torch.no_grad()
    def plan(
        self,
        observation: Tensor,
        return_to_go: Tensor | float,
        *,
        partial: bool = False,
        guided: bool = True,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Plan:
        """The plan behind the action, decoded.

        Args:
            observation: raw observations, shape (B, S).
            return_to_go: discounted return asked for, shape (B,) or (B, 1), or one number.
            partial: also decode scales 1..k for every k.
            guided: decode with D' (adapters) rather than D.
            temperature: of the token samples; 0 is deterministic.
            generator: source of randomness.

        Returns:
            The plan in environment units.

        Raises:
            ValueError: the shapes do not fit.
        """
        asked = self.asked(return_to_go, observation)
        state, target = self.condition(self.rows(observation), asked)
        token_ids, sums = self.propose(state, target, temperature, generator)
        decoded = [
            self.split(self.decode(total, state, target, guided=guided), state)
            for total in (sums if partial else sums[-1:])
        ]
        observations = tuple(self.planned_observation(part) for part in decoded)
        returns = decoded[-1].get("R", state.new_zeros(len(state), self.config.horizon, 0))
        return Plan(
            token_ids=tuple(token_ids),
            latent=sums[-1],
            observation=observations[-1],
            return_to_go=self.units.return_to_go.inverse(returns),
            action=self.units.environment_action(self.read_action(sums[-1], state, target)),
            partial=observations if partial else (),
        )

    # -------------------------------------------------------------------------------- training

    def stages(self, dataset: TensorDictBase) -> list[Stage]:
        """Values or distances (``return_expectile``), tokenizer, generator, inverse dynamics.

        The last stage is there with ``inverse_dynamics_steps``.
        """
        return stages.make_stages(self, dataset)

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Errors on data, from tokens to actions; see ``mage_agent.mage.stages.describe``."""
        return stages.describe(self, dataset)

    # -------------------------------------------------------------- where the return conditions

    def _embedded(self, state: Tensor, return_to_go: Tensor) -> tuple[Condition, Condition]:
        """Conditions of the first and of the finer scales (Table 7)."""
        sites, seen = self.config.return_conditioning, self.features(self.seen(state))

        def embed(site: str) -> Condition:
            told = return_to_go.new_full(return_to_go.shape, float(site in sites))
            return self.transformer.condition(seen, return_to_go, told)

        first = embed("first_scale")
        same = ("first_scale" in sites) == ("finer_scales" in sites)
        return first, first if same else embed("finer_scales")

    def _shown(self, site: str, return_to_go: Tensor) -> Tensor:
        """The return where it conditions (Table 7), zeros where it does not."""
        shown = site in self.config.return_conditioning
        return return_to_go if shown else torch.zeros_like(return_to_go)
