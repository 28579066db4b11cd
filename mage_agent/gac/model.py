"""GAC, the whole method on one screen: a model of trajectories and returns, asked what to do.

Read it in this order: ``latents`` makes a plan z of noise, ``value`` says which return it leads to,
``log_likelihood`` how well it explains a trajectory, ``evidence`` puts the three together to the
bound that training maximises (Eq. 6), and ``decide`` asks for a plan and follows it (Algorithm 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, ClassVar, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from mage_agent.agent import Agent
from mage_agent.config import LARGEST, Config
from mage_agent.gac import stages
from mage_agent.gac.config import GACConfig, ReplanMode, Trigger
from mage_agent.gac.evidence import Evidence, log_normal
from mage_agent.gac.inference import Posterior
from mage_agent.gac.memory import Memory
from mage_agent.gac.networks import Deviation, Encoder, Generator, Prior
from mage_agent.gac.queries import Query, make_plan
from mage_agent.gac.replanning import replan, replan_where_due
from mage_agent.gac.trajectory import Steps, Trajectories, draw_steps
from mage_agent.nn.layers import MLP
from mage_agent.nn.units import Normalizer
from mage_agent.stage import Stage

__all__ = ["GACModel"]

NUM_QUANTILES = 1024
"""Of the data's returns, kept with the model: the query "plus" draws from their upper end."""

SEEN = 64
"""Steps of a trajectory that the encoder of "amortised" inference sees."""


class GACModel(Agent):
    """p(tau, y, z | s_0) = p_alpha(z | s_0) p_beta(tau | s_0, z_rest) p_gamma(y | z_y) (Eq. 5).

    Args:
        config: everything else.
        observation_dim: observation size S, or the size of each of ``config.observation_keys``.
        action_dim: action size A.

    Attributes:
        query: what decisions ask for; set another ``Query`` to ask for something else.
        trigger: when plans are made anew, ``config.trigger`` to begin with; its limit has to be
            calibrated (``stages.calibrate``), which training does where episodes are held out.
        remembers_episodes: whether the memory reaches back to an episode's first step, which Eq. 3
            has to explain, or no further than acting needs.

    Raises:
        ValueError: a size is missing or below 1.

    Examples:
        >>> model = GACModel(GACConfig.preset("small"), observation_dim=3, action_dim=1)
        >>> latents = model.latents(torch.zeros(2, 3), torch.randn(2, *model.noise_shape))
        >>> model.value(latents).shape
        torch.Size([2])
    """

    name: ClassVar[str] = "gac"
    config_class: ClassVar[type[Config]] = GACConfig

    config: GACConfig
    moves: Tensor
    returns: Tensor
    longest: Tensor
    trained: Tensor
    surprise_limit: Tensor
    shortfall_limit: Tensor

    def __init__(
        self, config: Config, *, observation_dim: int | Mapping[str, int], action_dim: int
    ) -> None:
        super().__init__(config, observation_dim=observation_dim, action_dim=action_dim)
        config = self.config
        size, latents = self.observation_dim, config.num_latents
        width, heads = config.width, config.num_heads
        self.prior = Prior(size, latents, width, config.num_encoder_blocks, heads)
        self.generator = Generator(
            size, action_dim, width, config.num_decoder_blocks, heads, config.context
        )
        self.critic = MLP(width, 2 * width, 1)
        self.encoder = (
            Encoder(size, action_dim, latents, width, heads)
            if config.inference == "amortised"
            else None
        )
        self.action_std = Deviation(action_dim, config.action_std_floor)
        self.change_std = Deviation(size, config.state_std_floor)
        self.normalize_change = Normalizer(size)
        self.normalize_value = Normalizer(1)
        self.register_buffer("moves", torch.ones(size, dtype=torch.bool))
        self.register_buffer("returns", torch.zeros(NUM_QUANTILES))
        self.register_buffer("longest", torch.tensor(1))
        self.register_buffer("trained", torch.tensor(False))
        self.register_buffer("surprise_limit", torch.tensor(LARGEST))
        self.register_buffer("shortfall_limit", torch.tensor(LARGEST))
        self.query = Query.of(config)
        self.remembers_episodes = False
        self.trigger = config.trigger

    @property
    def trigger(self) -> Trigger:
        """What replans without a hand; "surprise" and "promise" remember whole episodes."""
        return self._trigger

    @trigger.setter
    def trigger(self, value: Trigger) -> None:
        if value not in get_args(Trigger):
            raise ValueError(f"trigger is {value!r}; it must be one of {get_args(Trigger)}.")
        self._trigger: Trigger = value
        self.remembers_episodes |= value in ("surprise", "promise")

    # ------------------------------------------------------- the model: p(tau, y, z | s_0) (Eq. 5)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape (K, D) of the eps of one plan."""
        return self.config.num_latents, self.config.width

    def latents(self, state: Tensor, noise: Tensor) -> Tensor:
        """Latents z = f_alpha(s_0, eps): z_y is the first latent, z_rest are the others.

        Args:
            state: standardised s_0, shape (B, S).
            noise: eps, shape (B, K, D).

        Returns:
            z, shape (B, K + 1, D).
        """
        latents: Tensor = self.prior(state, noise)
        return latents

    def value(self, latents: Tensor) -> Tensor:
        """E[y | z] = mu_gamma(z_y), in standard deviations of the data, shape (B,)."""
        value: Tensor = self.critic(latents[:, 0])
        return value.squeeze(-1)

    def log_value(self, value: Tensor, latents: Tensor) -> Tensor:
        """Log-density of returns, log N(y; mu_gamma(z_y), sigma_y^2), shape (B,)."""
        std = value.new_tensor(self.config.return_std)
        return log_normal(value, self.value(latents), std)

    def log_likelihood(self, steps: Steps, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density log p_beta(tau | s_0, z_rest), of actions and of changes of the state apart.

        Entries of the observation that never change, such as goals, are known and cost nothing.

        Args:
            steps: of the trajectories.
            latents: z, shape (B, K + 1, D).

        Returns:
            Log-likelihood of each step's action and of its next state, each (B, N, L).
        """
        action, change = self.generator(
            steps.observation, steps.action, steps.history, latents[:, 1:]
        )
        of_action = log_normal(steps.action, action, self.action_std())
        of_change = log_normal(steps.change, change, self.change_std())[..., self.moves]
        return of_action.sum(-1), of_change.sum(-1)

    def evidence(
        self, trajectories: Trajectories, posterior: Posterior, noise: Tensor, steps: Steps
    ) -> Evidence:
        """The parts of the evidence lower bound (Eq. 6), estimated with one sample of q.

        Args:
            trajectories: tau and y.
            posterior: q(eps | tau, y).
            noise: standard normal, shape (B, K, D).
            steps: the steps of tau whose likelihood is computed, from ``draw``.
        """
        latents = self.latents(trajectories.observation[:, 0], posterior.sample(noise))
        action, state = self.log_likelihood(steps, latents)
        return Evidence(
            action=steps.total(action),
            state=steps.total(state),
            value=self.log_value(trajectories.value, latents),
            kl=posterior.kl(),
        )

    def draw(
        self,
        trajectories: Trajectories,
        generator: torch.Generator | None = None,
        *,
        together: bool = False,
    ) -> Steps:
        """Steps that stand for whole trajectories, ``config.window`` of each.

        Args:
            trajectories: a batch.
            generator: of the choice; None is torch's own.
            together: choose alike for all of them.
        """
        count = 1 if together else len(trajectories.length)
        share = torch.rand(count, generator=generator, device=trajectories.length.device)
        drawn = draw_steps(
            trajectories.length,
            longest=trajectories.observation.shape[1],
            window=self.config.window,
            reach=self.config.reach,
            share=share,
        )
        return trajectories.take(*drawn)

    def encode(self, trajectories: Trajectories) -> Posterior:
        """q(eps | tau, y) by the encoder, which sees ``SEEN`` steps, evenly spaced."""
        assert self.encoder is not None
        phi = self.encoder(*trajectories.evenly(SEEN), trajectories.value)
        return Posterior(*phi.unbind(1))

    def standardize(
        self,
        observation: Tensor,
        action: Tensor,
        next_observation: Tensor,
        value: Tensor,
        length: Tensor,
    ) -> Trajectories:
        """Trajectories of raw numbers: observations (B, T, S), actions (B, T, A), y and T (B,)."""
        return Trajectories(
            observation=self.units.observation(observation),
            action=self.units.action(action),
            change=self.normalize_change(next_observation - observation),
            value=self.normalize_value(value[:, None]).squeeze(-1),
            length=length,
        )

    # ------------------------------------------------------------------ to be trained (Algorithm 1)

    def fit_units(self, dataset: TensorDictBase) -> None:
        """Take statistics, bounds and ranges from a dataset, in place."""
        dataset = self.trajectories(dataset)
        super().fit_units(dataset)
        stages.fit_statistics(self, dataset)

    def know_returns(self, dataset: TensorDictBase) -> None:
        """Take the returns of more data into what may be asked for, in place."""
        super().know_returns(dataset := self.trajectories(dataset))
        stages.take_returns(self, dataset)

    def trajectories(self, dataset: TensorDictBase) -> TensorDictBase:
        """A dataset whose episodes head for one goal, and are no longer than an evaluation's."""
        return stages.part(dataset, self.config)

    def stages(self, dataset: TensorDictBase) -> Sequence[Stage]:
        """One stage: q and the model, in turns or at once (Algorithm 1)."""
        return stages.make_stages(self, self.trajectories(dataset))

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """The parts of the bound of data the model has not seen, and how well it acts on them."""
        return stages.describe(self, self.trajectories(dataset))

    # ---------------------------------------------------------------------- to act (Algorithm 3)

    @property
    def told_return(self) -> bool:  # type: ignore[override]
        """Whether acting heeds the return that it is asked for: with "target", without a y*."""
        return self.query.kind == "target" and self.query.asked_return is None

    def asks(self) -> dict[str, Any]:
        """The query, and what makes plans anew."""
        told = {name: getattr(self, name) for name in ("trigger", "remembers_episodes")}
        return {**asdict(self.query), **told}

    def ask(self, saved: dict[str, Any]) -> None:
        """Ask what ``asks`` returned."""
        saved = dict(saved)
        self.trigger = saved.pop("trigger", self.trigger)
        self.remembers_episodes |= saved.pop("remembers_episodes", False)
        self.query = replace(self.query, **saved)

    def adopt(self, **settings: Any) -> None:
        """Take other settings; what query and trigger were set to stays, but for these."""
        span = self.config.replan_interval
        super().adopt(**settings)
        self.query = replace(self.query, **Query.of(self.config).among(settings))
        if "trigger" in settings:
            self.trigger = self.config.trigger
        if self.config.replan_interval != span:  # the limit is of means over as many steps
            self.surprise_limit.fill_(LARGEST)

    @contextmanager
    def exploring(self) -> Iterator[None]:
        """Meanwhile, heed the return that is asked for: p(z | y+) of Algorithm 2."""
        before, self.query = self.query, replace(self.query, kind="target", asked_return=None)
        try:
            yield
        finally:
            self.query = before

    def initial_state(self, count: int) -> TensorDict:
        """Memory of episodes that have not begun: no plan, no steps, batch size [count]."""
        return Memory.empty(self, count)

    @torch.no_grad()
    def decide(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        state: TensorDict | None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorDict]:
        """Make a plan where an episode begins, follow it where one goes on.

        Deterministic decisions draw no numbers, so they do not depend on the rows beside them.
        Sampled ones sample the plan; the action is the mean of p_beta in both cases.

        Args:
            observation: raw observations, shape (B, S).
            return_to_go: return asked for, shape (B, 1), heeded at the first step of an episode by
                the query "target" where it names no return itself.
            state: memory from ``initial_state`` or the last call, batch size [B].
            temperature: 0 is deterministic.
            generator: source of randomness; None is torch's own.
        """
        memory = Memory(self, self.initial_state(len(observation)) if state is None else state)
        memory.observe(self.units.observation(observation), return_to_go)
        random = temperature > 0
        rows = memory.begun.nonzero().squeeze(-1)
        if len(rows):
            plan = make_plan(
                self,
                memory.start[rows],
                self.query,
                memory.asked[rows] if self.told_return else None,
                sample=random,
                generator=generator,
            )
            memory.follow(plan, rows)
        action, expected = self._next(memory)
        if self.trigger != "never" and replan_where_due(
            self, memory, expected, sample=random, generator=generator
        ):
            action, _ = self._next(memory)
        executed = self.units.environment_action(action)
        memory.act(self.units.action(executed))
        return executed, memory.state

    def _next(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Means of the next action, (B, A), and of the last change of the state, (B, S)."""
        back = self.trigger == "surprise"  # one step more, whose change is known by now
        window = memory.window(self.config.reach + back)
        action, change = self.generator(*window, memory.latents[:, 1:])
        return action[:, 0, -1], change[:, 0, -1 - back]

    @torch.no_grad()
    def replan(
        self,
        state: TensorDict,
        rows: Tensor | Sequence[int] | None = None,
        *,
        mode: ReplanMode | None = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> TensorDict:
        """Make new plans in the middle of episodes (Eq. 3), by hand.

        Args:
            state: memory that ``decide`` returned; the present observation is not in it yet.
            rows: whose plans are made, numbers (n,) or bool (B,); None is all.
            mode: "posterior" or "restart"; None is ``config.replan``.
            sample: see ``make_plan``.
            generator: source of randomness.

        Raises:
            ValueError: there is no such row or mode, or "posterior" would have to explain steps
                that the memory does not hold: set ``remembers_episodes`` before an episode begins.
        """
        mode = self.config.replan if mode is None else mode
        if mode not in get_args(ReplanMode):
            raise ValueError(f"mode is {mode!r}; it must be one of {get_args(ReplanMode)}.")
        memory = Memory(self, state)
        chosen = memory.chosen(rows)
        seen = memory.length[chosen]
        if (seen < 1).any():
            raise ValueError("an episode has not begun; its plan is made where it begins.")
        if mode == "posterior" and ((seen < 2) | (seen > memory.observation.shape[1])).any():
            raise ValueError(
                f"mode='posterior' explains an episode since its beginning: {seen.tolist()} "
                f"observations, at least 2, of which the memory holds {memory.observation.shape[1]}"
                ". Set model.remembers_episodes = True before the episode begins, or take "
                "mode='restart'."
            )
        replan(self, memory, chosen, mode=mode, sample=sample, generator=generator)
        return memory.state
