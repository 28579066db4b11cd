"""How GAC is trained, what it takes from a dataset, and how it is judged."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torch import Tensor

from mage_agent import parallel
from mage_agent.agent import evaluating
from mage_agent.config import LARGEST
from mage_agent.data import (
    WindowSampler,
    cut_episodes,
    episode_lengths,
    split_goals,
    step_limit,
)
from mage_agent.gac.inference import infer
from mage_agent.gac.losses import EVALUATION_STEPS, GACLoss
from mage_agent.gac.replanning import shortfall
from mage_agent.gac.trajectory import Trajectories, draw_steps
from mage_agent.hardware import seeded
from mage_agent.nn.units import CONSTANT
from mage_agent.stage import Stage, warm_up_and_cosine

if TYPE_CHECKING:
    from mage_agent.gac.config import GACConfig
    from mage_agent.gac.model import GACModel

__all__ = [
    "calibrate",
    "describe",
    "fit_statistics",
    "hold_out",
    "make_stages",
    "part",
    "sample_trajectories",
    "take_returns",
]

JUDGED = 128
"""Trajectories that describe and calibrate look at, at most."""
CATCH_UP_STEPS = 50
"""Adam steps on the q of trajectories that a trained model meets for the first time."""
SURPRISE_QUANTILE = 0.99
SHORTFALL_QUANTILE = 0.95
CUTS = 8
"""Points of an episode at which the trigger "promise" is tried out."""


def make_stages(model: GACModel, dataset: TensorDictBase) -> list[Stage]:
    """The one stage of Algorithm 1.

    Args:
        model: the model to train.
        dataset: from ``load_dataset``.

    Raises:
        ValueError: several processes train together, and q is "persistent".

    Warns:
        UserWarning: all episodes have the same return.
    """
    config = model.config
    if config.inference == "persistent" and parallel.processes() > 1:
        raise ValueError(
            "inference='persistent' keeps q of every trajectory in one process; train in several "
            "with 'fresh' or 'amortised'."
        )
    training, held_out = hold_out(dataset, config.held_out)
    columns = _columns(model, training)
    number = int(columns["episode"][-1]) + 1
    _warn_of_constant_returns(columns)
    loss = GACLoss(model, num_trajectories=number)
    peak = config.learning_rate

    def begin() -> None:
        _take_returns(model, columns)
        if model.trained:
            _catch_up(loss, columns)

    def end() -> None:
        model.trained.fill_(True)
        if held_out is not None:
            calibrate(model, held_out)

    return [
        Stage(
            name="model",
            loss=loss,
            steps=config.steps * config.outer_steps,
            columns=lambda: columns,
            batch_size=min(config.batch_size, number),
            horizon=max(2, _longest(columns)),  # of 1 step, windows would have no time axis
            starts="episodes",
            optimizer=config.optimizer,
            # Deviation 24: the rate warms up and falls along a cosine; the paper names no schedule.
            rates=warm_up_and_cosine(peak, 0.1 * peak, config.warmup_steps),
            weight_decay=config.weight_decay,
            gradient_clip=config.gradient_clip,
            updates_per_batch=config.outer_steps,
            prepare=loss.prepare,
            begin=begin,
            end=end,
        )
    ]


def part(dataset: TensorDictBase, config: GACConfig) -> TensorDictBase:
    """A dataset whose episodes head for one goal, and are no longer than an evaluation's."""
    # Deviation 28: the paper does not say how it parts endless runs.
    if config.split_goals:
        dataset = split_goals(dataset, config.trajectory_steps)
    return cut_episodes(dataset, config.trajectory_steps)


def hold_out(dataset: TensorDictBase, share: float) -> tuple[TensorDictBase, TensorDictBase | None]:
    """Part a dataset by episodes, always in the same way.

    Args:
        dataset: from ``load_dataset``.
        share: of the episodes that goes to the second part, at least one if it is not 0.

    Returns:
        The two parts; None for the second one where it would be empty.

    Raises:
        ValueError: nothing is left to train on.
    """
    if share == 0:
        return dataset, None
    # The golden ratio spreads them evenly, and an episode keeps its place by its number: among
    # others, or without them, as online.
    place = ((dataset["episode"] + 1).double() * 0.6180339887498949) % 1
    rows = (place < share) | (place == place.min())
    if rows.all():
        raise ValueError(
            f"held_out={share} of {len(episode_lengths(dataset['episode']))} episodes leaves none "
            "to train on; use more data, or held_out=0."
        )
    return dataset[~rows], dataset[rows]


@torch.no_grad()
def fit_statistics(model: GACModel, dataset: TensorDictBase) -> None:
    """Statistics of changes and returns, which of the entries change, and the longest episode."""
    following = model.units.concatenate(dataset["next"])
    change = following - model.units.concatenate(dataset)
    model.normalize_change.fit(change)
    model.moves.copy_(change.abs().amax(0) > CONSTANT * following.abs().amax(0))
    if not model.moves.any():
        raise ValueError(
            f"the observation entries {list(model.observation_sizes)} never change within an "
            "episode: there are no dynamics to model. Choose others with observation_keys."
        )
    columns = _columns(model, dataset)
    model.normalize_value.fit(_returns(columns)[:, None])
    _take_returns(model, columns)
    # Memories reach back to s_0 in an evaluation, which may outlast the trajectories.
    model.longest.clamp_(min=model.config.trajectory_steps or step_limit(dataset) or 1)


@torch.inference_mode(False)
@torch.no_grad()
def describe(model: GACModel, dataset: TensorDictBase) -> dict[str, float]:
    """How well a model explains data, best data that it has not seen.

    Args:
        model: a trained model.
        dataset: from ``load_dataset``.

    Returns:
        The parts of the bound per trajectory, in nats: ``elbo``, ``log_action``, ``log_state``,
        ``log_return``, ``kl``; mean squared errors of the actions in environment units, given q of
        the trajectory, ``action_error``, or a sample of the prior, ``action_error_prior``; and the
        correlation of E[y | z] with y where z comes from the trajectory alone,
        ``return_correlation`` (0 where all returns are the same, and of a single trajectory).
    """
    with evaluating(model), seeded(0, model.device):
        trajectories = sample_trajectories(model, dataset)
        ascent, _ = infer(model, trajectories, steps=EVALUATION_STEPS)
        posterior = ascent.posterior
        steps = model.draw(trajectories)
        noise = torch.randn_like(posterior.mean)
        evidence = model.evidence(trajectories, posterior, noise, steps)
        first = trajectories.observation[:, 0]

        def action_error(eps: Tensor) -> float:
            latents = model.latents(first, eps)[:, 1:]
            action, _ = model.generator(steps.observation, steps.action, steps.history, latents)
            error = ((action - steps.action) * model.units.action.std).square().mean(-1)
            return float((steps.total(error) / trajectories.length).mean())

        blind, _ = infer(model, trajectories, steps=EVALUATION_STEPS, know_value=False)
        told = model.value(model.latents(first, blind.posterior.mean))
        pair = torch.stack([told, trajectories.value])
        varied = pair.shape[1] > 1  # of one trajectory there is no correlation
        return {
            "elbo": float(evidence.bound().mean()),
            "log_action": float(evidence.action.mean()),
            "log_state": float(evidence.state.mean()),
            "log_return": float(evidence.value.mean()),
            "kl": float(evidence.kl.mean()),
            "action_error": action_error(posterior.mean),
            "action_error_prior": action_error(noise),
            "return_correlation": float(torch.corrcoef(pair)[0, 1].nan_to_num()) if varied else 0.0,
        }


@torch.inference_mode(False)
@torch.no_grad()
def calibrate(model: GACModel, dataset: TensorDictBase) -> None:
    """Set the limits of both triggers by data that the model has not seen, in place.

    Each episode is followed with its own q(eps | tau, y). "surprise" may exceed its limit in one of
    a hundred places, the shortfall of "promise" in one of twenty.

    Args:
        model: a trained model.
        dataset: from ``load_dataset``.
    """
    interval = model.config.replan_interval
    for limit in (model.surprise_limit, model.shortfall_limit):
        limit.fill_(LARGEST / 2)  # where episodes are too short to look, nothing fires
    with evaluating(model), seeded(0, model.device):
        trajectories = sample_trajectories(model, model.trajectories(dataset))
        first = trajectories.observation[:, 0]
        ascent, _ = infer(model, trajectories, steps=EVALUATION_STEPS)
        plan = ascent.posterior.mean
        latents = model.latents(first, plan)
        surprise = _surprises(model, trajectories, latents)  # (B, T)
        span = min(interval, surprise.shape[1])
        means = surprise.unfold(1, span, 1).mean(-1)
        whole = means[means.isfinite()]
        if len(whole):
            model.surprise_limit.copy_(whole.quantile(SURPRISE_QUANTILE))
        missing = []
        for cut in _cuts(int(trajectories.length.max()), interval):
            rows = (trajectories.length > cut).nonzero().squeeze(-1)
            if len(rows):
                begun = trajectories.select(rows, cut)
                missing.append(shortfall(model, first[rows], plan[rows], begun))
        if missing:
            model.shortfall_limit.copy_(torch.cat(missing).quantile(SHORTFALL_QUANTILE))


def take_returns(model: GACModel, dataset: TensorDictBase) -> None:
    """Quantiles of the episodes' returns, which "plus" asks for, and the longest episode."""
    _take_returns(model, _columns(model, dataset))


def _take_returns(model: GACModel, columns: TensorDictBase) -> None:
    levels = torch.linspace(0, 1, len(model.returns), dtype=torch.float64)
    model.returns.copy_(_returns(columns).double().quantile(levels, interpolation="nearest"))
    model.longest.fill_(max(int(model.longest), _longest(columns)))


@torch.no_grad()
def _catch_up(loss: GACLoss, columns: TensorDictBase) -> None:
    """Fit the kept q of all trajectories to a model that is trained already.

    Else the first gradient steps would take the model back to what random plans can explain.
    """
    model, store = loss.model, loss.store
    if store is None:
        return
    for rows in torch.arange(len(store)).split(JUDGED):
        trajectories = _read(model, columns, rows)
        ascent, _ = infer(model, trajectories, steps=CATCH_UP_STEPS)
        store.write(rows.to(model.device), ascent)


def _surprises(model: GACModel, trajectories: Trajectories, latents: Tensor) -> Tensor:
    """-log p(s_{t+1}) of every step, NaN past the end, shape (B, T)."""
    index, history, weight = draw_steps(
        trajectories.length,
        longest=trajectories.observation.shape[1],
        window=None,
        reach=model.config.reach,
        share=trajectories.length.new_zeros(1).float(),
    )
    _, state = model.log_likelihood(trajectories.take(index, history, weight), latents)
    surprise = torch.full_like(trajectories.observation[..., 0], torch.nan)
    row = torch.arange(len(index), device=index.device)[:, None, None].expand_as(index)
    real = weight > 0
    surprise[row[real], index[real]] = -state[real]
    return surprise


def _cuts(longest: int, interval: int) -> list[int]:
    """Steps at which "promise" might look, at most ``CUTS`` of them, evenly spread."""
    looks = list(range(interval, longest, interval))
    return looks[:: max(1, -(-len(looks) // CUTS))]


def sample_trajectories(model: GACModel, dataset: TensorDictBase) -> Trajectories:
    """At most ``JUDGED`` whole trajectories of a dataset, always the same."""
    columns = _columns(model, dataset)
    number = int(columns["episode"][-1]) + 1
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
    return _read(model, columns, order[:JUDGED])


def _read(model: GACModel, columns: TensorDictBase, episodes: Tensor) -> Trajectories:
    """Some whole trajectories, by their numbers, on the model's device."""
    firsts = (columns["step_count"].flatten() == 0).nonzero().squeeze(-1)
    sampler = WindowSampler(columns["episode"], max(2, _longest(columns)), "episodes")
    index, mask = sampler.windows(firsts[episodes])
    batch = columns[index].set(("collector", "mask"), mask).to(model.device)
    return GACLoss(model, num_trajectories=1).trajectories(batch)


def _columns(model: GACModel, dataset: TensorDictBase) -> TensorDictBase:
    """What batches are made of; episodes are numbered anew, from 0."""
    keys = model.config.observation_keys
    following = [("next", key) for key in keys]
    columns = dataset.select(*keys, *following, "action", "step_count", ("next", "done"))
    episode = dataset["episode"]
    started = torch.cat([torch.ones(1).bool(), (episode[1:] != episode[:-1]).cpu()])
    torn = (dataset["step_count"].flatten().cpu() == 0) != started
    if torn.any():
        number = int(episode[torn.nonzero()[0, 0]])
        raise ValueError(
            f"what there is of episode {number} begins in the middle of an episode; GAC learns "
            "from whole episodes."
        )
    if not dataset["next", "done"][-1]:
        raise ValueError(
            "the dataset ends in the middle of an episode; GAC learns from whole episodes."
        )
    columns["episode"] = (started.long().cumsum(0) - 1).to(episode.device)
    columns["return_to_go"] = model.returns_to_go(dataset)
    return columns


def _returns(columns: TensorDictBase) -> Tensor:
    """Return of every episode, shape (E,)."""
    returns: Tensor = columns["return_to_go"][columns["step_count"].flatten() == 0].flatten()
    return returns


def _longest(columns: TensorDictBase) -> int:
    """Steps of the longest episode."""
    return int(columns["step_count"].max()) + 1


def _warn_of_constant_returns(columns: TensorDictBase) -> None:
    returns = _returns(columns)
    if float(returns.max() - returns.min()) <= 1e-6 * float(returns.abs().max()):
        warnings.warn(
            f"all {len(returns)} episodes have the return {float(returns[0]):g}: the critic has "
            "nothing to learn, so no query can ask for better plans than those of the prior.",
            stacklevel=3,
        )
