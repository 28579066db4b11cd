"""Trajectory Autoencoding Planner: a beam search among tokens of trajectories.

Jiang et al., 2023, https://arxiv.org/abs/2208.10291
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines.base import Objective
from benchmarks.baselines.planner import Generators, Planner, PlannerConfig
from benchmarks.baselines.tokens import TokenAutoencoder, TokenPrior
from benchmarks.domains import ADROIT
from mage_agent import Stage, bounded, evaluating

__all__ = ["TAP", "TAPConfig"]


@dataclass(frozen=True, kw_only=True)
class TAPConfig(PlannerConfig):
    """The publication's settings; the defaults are those of locomotion.

    Attributes:
        steps: of the autoencoder, and of the prior.
        horizon: steps T of a trajectory, a multiple of ``stride``.
        stride: steps of a token.
        codes: number of tokens there are.
        width: of the transformers.
        layers: their blocks.
        heads: their attention heads.
        dropout: of all layers.
        action_weight: of actions in the reconstruction.
        beam: trajectories that are kept at each token.
        expand: tokens that each of them is continued by.
        likely: probability of a token down to which trajectories are not penalised.
        penalty: of a unit of log-probability below that.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        **{domain: {"horizon": 24} for domain in ADROIT},
        "antmaze": {"codes": 8192, "discount": 0.998, "beam": 2},
    }
    SMALL: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"width": 128, "layers": 2, "batch_size": 64, "beam": 16, "codes": 512}
    }

    steps: int = bounded(97_656, 1)
    batch_size: int = bounded(512, 1)
    horizon: int = bounded(15, 2)
    stride: int = bounded(3, 1)
    codes: int = bounded(512, 2)
    width: int = bounded(512, 1)
    layers: int = bounded(4, 1)
    heads: int = bounded(4, 1)
    dropout: float = bounded(0.1, 0.0, 0.99)
    action_weight: float = bounded(5.0, 0.0)
    beam: int = bounded(64, 1)
    expand: int = bounded(4, 1)
    likely: float = bounded(0.05, 1e-12, 1.0)
    penalty: float = bounded(500.0, 0.0)


class TAP(Planner):
    """TAP: a vector-quantised autoencoder of trajectories given s_0, a prior of its tokens, a beam.

    A step of a trajectory is (a, s, r, R), standardised. The codebook follows by moving average.
    """

    name: ClassVar[str] = "tap"
    config_class: ClassVar[type[TAPConfig]] = TAPConfig
    config: TAPConfig
    reward_units: Tensor
    action_variance: Tensor

    def build(self) -> None:
        """Make the networks."""
        settings, size = self.config, self.plan_shape[1]
        if settings.horizon % settings.stride:
            raise ValueError(f"horizon is {settings.horizon}; it must be a multiple of stride.")
        self.horizon, stride = settings.horizon, settings.stride
        self.register_buffer("reward_units", torch.tensor([0.0, 1.0]))
        self.register_buffer("action_variance", torch.ones(self.action_dim))
        shape = {key: getattr(settings, key) for key in ("codes", "width", "layers", "heads")}
        shape["dropout"], given = settings.dropout, self.observation_dim
        self.autoencoder = TokenAutoencoder(
            size, given, horizon=self.horizon, stride=stride, **shape
        )
        self.prior = TokenPrior(given, length=self.horizon // stride, **shape)

    def fit_units(self, dataset: TensorDictBase) -> None:
        """Take statistics, of rewards and of how much actions vary, too."""
        super().fit_units(dataset)
        reward = dataset["next", "reward"]
        spread = reward.std(correction=0)
        self.reward_units.copy_(torch.stack([reward.mean(), spread + (spread == 0)]))
        variance = self.units.action(dataset["action"]).var(0, correction=0)
        self.action_variance.copy_(torch.where(variance > 1e-8, variance, 1.0))

    def stages(self, dataset: TensorDictBase) -> list[Stage]:
        """Autoencoder, then prior."""
        (whole,) = super().stages(dataset)
        return [
            replace(
                whole,
                name=f"tap/{name}",
                loss=Objective(self, losses),
                optimizer=partial(torch.optim.Adam, list(network.parameters()), fused=True),
                after_step=lambda step: None,
                acts=network is self.prior,
            )
            for name, network, losses in (
                ("autoencoder", self.autoencoder, self.autoencoder_losses),
                ("prior", self.prior, self.losses),
            )
        ]

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Trajectories' steps, and states alone."""
        columns = super().columns(dataset)
        mean, spread = self.reward_units
        reward = (dataset["next", "reward"] - mean) / spread
        returns = self.units.return_to_go(self.returns_to_go(dataset))
        step = [columns.pop("action"), columns["observation"], reward, returns]
        return columns.set("step", torch.cat(step, -1))

    def autoencoder_losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Squared error of real steps, relative to variances, and the distance to the codes."""
        steps, weight = batch["step"], torch.ones(self.plan_shape[1], device=self.device)
        weight[: self.action_dim] = self.config.action_weight / self.action_variance
        codes, _, commitment = self.autoencoder.encode(steps)
        error = (self.autoencoder.decode(codes, batch["observation"][:, 0]) - steps).square()
        return {"autoencoder": (weight * error)[batch["collector", "mask"]].mean() + commitment}

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """The prior's: cross-entropy of the tokens."""
        with torch.no_grad(), evaluating(self.autoencoder):
            codes, tokens, _ = self.autoencoder.encode(batch["step"])
        logits = self.prior(codes[:, :-1], batch["observation"][:, 0])
        return {"prior": F.cross_entropy(logits.flatten(0, 1), tokens.flatten())}

    @property
    def plan_shape(self) -> tuple[int, int]:
        """Steps of a trajectory, and entries a, s, r, R of each."""
        return self.config.horizon, self.action_dim + self.observation_dim + 2

    def plan(self, observation: Tensor, noise: Generators) -> Tensor:
        """The best trajectories (B, T, X) that the beam finds; without temperature, no sampling."""
        first, settings = self.units.observation(observation), self.config
        tokens = torch.zeros(len(first), 1, 0, dtype=torch.int64, device=first.device)
        logp, rows = first.new_zeros(len(first), 1), torch.arange(len(first), device=first.device)
        length, root = settings.horizon // settings.stride, settings.beam * settings.expand
        for depth in range(length):
            beams = tokens.shape[1]
            given = first.repeat_interleave(beams, 0)
            codes = self.autoencoder.codes[tokens.flatten(0, 1)]
            scores = self.prior(codes, given)[:, -1].log_softmax(-1)
            count = min(settings.expand if depth else root, scores.shape[-1])
            if isinstance(noise, list):
                chosen = scores.topk(count).indices
            else:
                chosen = scores.exp().multinomial(count, replacement=True, generator=noise)
            logp = (logp.unsqueeze(-1) + scores.gather(1, chosen).view(-1, beams, count)).flatten(1)
            tokens = tokens.repeat_interleave(count, 1)
            tokens = torch.cat([tokens, chosen.view(len(first), -1, 1)], -1)
            trajectories = self.decoded(tokens, first)
            likely = logp.clamp_max(length * math.log(settings.likely))
            value = self.value(trajectories) + settings.penalty * likely  # section 3.3
            kept = value.topk(min(settings.beam, value.shape[1])).indices  # the best comes first
            tokens, logp = tokens[rows[:, None], kept], logp.gather(1, kept)
        best: Tensor = trajectories[rows, kept[:, 0]]
        return best

    def decoded(self, tokens: Tensor, first: Tensor) -> Tensor:
        """Trajectories (B, N, L, X) of tokens (B, N, L / stride)."""
        codes = self.autoencoder.codes[tokens.flatten(0, 1)]
        given = first.repeat_interleave(tokens.shape[1], 0)
        steps: Tensor = self.autoencoder.decode(codes, given).unflatten(0, tokens.shape[:2])
        return steps

    def value(self, trajectories: Tensor) -> Tensor:
        """Discounted rewards of all steps but the last, and its return, (B, N), in raw units."""
        mean, spread = self.reward_units
        reward = trajectories[..., :-1, -2] * spread + mean
        final = self.units.return_to_go.inverse(trajectories[..., -1, -1:]).squeeze(-1)
        terms = torch.cat([reward, final.unsqueeze(-1)], -1)
        powers = torch.arange(terms.shape[-1], device=terms.device)
        value: Tensor = (self.config.discount**powers * terms).sum(-1)
        return value

    def states(self, plan: Tensor) -> Tensor:
        """Planned states, (B, T, S)."""
        states: Tensor = self.units.observation.inverse(plan[..., self.action_dim : -2])
        return states
