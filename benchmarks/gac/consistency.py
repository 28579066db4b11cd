"""Figures 4 and 7: does the actor do what it is asked, does the critic see what was done?"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tensordict import TensorDictBase

from benchmarks.gac.trained import Trained
from mage_agent import GACModel, Query, evaluating
from mage_agent.gac.inference import Ascent, Posterior, infer, maximize
from mage_agent.gac.queries import asked_values, query_term
from mage_agent.gac.stages import sample_trajectories

__all__ = ["draw_consistency", "draw_growth", "measure_consistency", "measure_growth"]

_PLANS = 50
_STEPS = 150


def measure_consistency(
    trained: Trained, episodes: int = 50, targets: int = 7, beyond: float = 0.2
) -> dict[str, Any]:
    """Achieved against asked returns, and predicted against actual ones, first and last stage.

    The critic is asked about trajectories that were held out, with q(eps | tau): were y told, it
    would be asked for what it knows.

    Args:
        trained: the model.
        episodes: for each return that is asked for.
        targets: returns to ask for, evenly spaced from the data's least to their largest.
        beyond: share of that range by which the last one lies above it.

    Returns:
        By stage, ``asked``, ``achieved`` and ``spread`` of the actor, in units of the data;
        ``actual``, ``predicted`` and ``elbo`` per step of the critic, and their ``correlation``.
    """
    found: dict[str, Any] = {}
    for stage in dict.fromkeys((0, trained.last)):
        model = trained.stages[stage].model
        low, high = float(model.returns[0]), float(model.returns[-1])
        asked = np.linspace(low, high + beyond * (high - low), targets)
        runs = [
            trained.run(trained.asking(stage, "target", asked_return=y), "target", episodes)
            for y in asked.tolist()
        ]
        returns = np.array([[result.episode_return for result in run] for run in runs])
        found[f"stage {stage}"] = {
            "asked": asked.round(3).tolist(),
            "achieved": returns.mean(1).round(3).tolist(),
            "spread": returns.std(1).round(3).tolist(),
            **_critic(model, trained.held if len(trained.held) else trained.dataset),
        }
    return found


@torch.no_grad()
def _critic(model: GACModel, dataset: TensorDictBase) -> dict[str, Any]:
    """What the critic says of trajectories whose return it is not told."""
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(0)
        trajectories = sample_trajectories(model, model.trajectories(dataset))
        first = trajectories.observation[:, 0]
        q = infer(model, trajectories, steps=_STEPS, know_value=False)[0].posterior
        predicted = torch.stack(
            [
                model.value(model.latents(first, q.sample(torch.randn_like(q.mean))))
                for _ in range(_PLANS)
            ]
        ).mean(0)
        noise = torch.randn_like(q.mean)
        evidence = model.evidence(trajectories, q, noise, model.draw(trajectories))
        inverse = model.normalize_value.inverse
        actual, told = (inverse(v[:, None]).flatten() for v in (trajectories.value, predicted))
        pair = torch.stack([actual, told])
        varied = len(actual) > 1 and float(actual.std()) > 0
        return {
            "actual": actual.tolist(),
            "predicted": told.tolist(),
            "elbo": (evidence.bound() / trajectories.length).tolist(),
            "correlation": float(torch.corrcoef(pair)[0, 1].nan_to_num()) if varied else 0.0,
        }


def draw_consistency(found: dict[str, Any]) -> Figure:
    """For each stage, the actor and the critic against the diagonal."""
    figure = Figure(figsize=(7, 3.3 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 2, squeeze=False)
    for (name, one), (actor, critic) in zip(found.items(), rows, strict=True):
        actor.errorbar(one["asked"], one["achieved"], one["spread"], fmt="o-", capsize=2)
        actor.set(title=f"{name}: actor", xlabel="return asked for", ylabel="return achieved")
        elbo = np.argsort(np.argsort(one["elbo"])) / max(1, len(one["elbo"]) - 1)
        color = np.tile([0.23, 0.53, 0.78, 1.0], (len(elbo), 1))
        color[:, 3] = 0.15 + 0.85 * elbo  # what the model explains well is less transparent
        critic.scatter(one["actual"], one["predicted"], c=color, s=18)
        critic.set(title=f"{name}: critic, correlation {one['correlation']:.2f}")
        critic.set(xlabel="return of a held-out trajectory", ylabel="predicted from it alone")
        for axes, x in ((actor, one["asked"]), (critic, one["actual"])):
            ends = [min(x), max(x)]
            axes.plot(ends, ends, color="#8a8f98", linestyle=":", zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
    return figure


@torch.no_grad()
def measure_growth(
    trained: Trained, steps: int = 200, plans: int = 100, increments: int = 5
) -> dict[str, Any]:
    """The return that plans promise while p(z | y + dy) is inferred, for growing dy.

    Args:
        trained: the model, of which the last stage is asked.
        steps: of the inference.
        plans: initial states of the data, one plan each.
        increments: numbers of dy, from 0 to twice the standard deviation of the returns.

    Returns:
        By dy (units of the data), ``mean`` and ``std`` of the promises after every step; and the
        largest promise of as many plans of the prior, ``prior_max``.
    """
    model = trained.stages[trained.last].model
    dataset = model.trajectories(trained.dataset)
    begins = (dataset["step_count"].flatten() == 0).nonzero().flatten()
    chosen = begins[torch.linspace(0, len(begins) - 1, plans).long()]
    start = model.units.observation(model.units.concatenate(dataset[chosen]))
    inverse = model.normalize_value.inverse

    def told(value: torch.Tensor) -> torch.Tensor:
        raw: torch.Tensor = inverse(value[:, None]).flatten()
        return raw

    curves: dict[str, Any] = {}
    std = float(model.normalize_value.std)
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(0)
        for dy in np.linspace(0, 2 * std, increments):
            query = Query.of(model.config, "plus")
            query = Query(**{**vars(query), "increment": float(dy)})
            asked = asked_values(model, query, plans, sample=True)
            term = query_term(model, query, asked)
            means, spreads = [], []

            def objective(posterior: Posterior, term: Any = term) -> torch.Tensor:
                noise = torch.randn_like(posterior.mean)
                latents = model.latents(start, posterior.sample(noise))
                promise = told(model.value(latents).detach())
                means.append(float(promise.mean()))  # noqa: B023
                spreads.append(float(promise.std()))  # noqa: B023
                value: torch.Tensor = term(latents) - posterior.kl()
                return value

            begin = Ascent.random(plans, start.new_zeros(plans, *model.noise_shape))
            rate = query.learning_rate
            maximize(objective, begin, steps=steps, learning_rate=rate, tolerance=0, anneal=True)
            curves[f"{dy:.4g}"] = {"mean": means, "std": spreads}
        prior = model.latents(start, torch.randn(plans, *model.noise_shape))
        return {"curves": curves, "prior_max": float(told(model.value(prior)).max())}


def draw_growth(found: dict[str, Any]) -> Figure:
    """A curve with its spread for each dy."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    for dy, curve in found["curves"].items():
        mean, std = np.array(curve["mean"]), np.array(curve["std"])
        (line,) = axes.plot(mean, label=f"Δy = {dy}")
        axes.fill_between(
            range(len(mean)), mean - std, mean + std, alpha=0.15, color=line.get_color()
        )
    axes.axhline(found["prior_max"], color="#d1495b", linestyle="--", label="largest of the prior")
    axes.set(xlabel="step of inference", ylabel="return that the plan promises")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
