"""New plans in the middle of an episode (Eq. 3), by hand or by a trigger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mage_agent.gac.config import ReplanMode
from mage_agent.gac.inference import Ascent, Posterior, maximize
from mage_agent.gac.memory import Memory
from mage_agent.gac.queries import Plan, asked_values, make_plan, noise_like, query_term
from mage_agent.gac.trajectory import Trajectories

if TYPE_CHECKING:
    from mage_agent.gac.model import GACModel

__all__ = ["explain", "replan", "replan_where_due", "shortfall"]

FIRST_LOG_VARIANCE = -2.0
"""Of q around a plan that is to be changed: sure of the plan, but not entirely."""
LOOK_STEPS = 10
"""Adam steps after which the trigger "promise" reads the return that is still to be expected."""
LOOK_LEARNING_RATE = 0.05
"""Of these steps; its limit holds for them alone."""


@torch.no_grad()
def replan(
    model: GACModel,
    memory: Memory,
    rows: Tensor,
    *,
    mode: ReplanMode,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> None:
    """Give some rows of a memory new plans.

    "posterior" maximises Eq. 3; "restart" asks the query anew, with s_t for s_0.

    Args:
        model: the model.
        memory: written to.
        rows: whose plans.
        mode: how.
        sample: see ``make_plan``.
        generator: source of randomness.
    """
    query = model.query
    asked = memory.asked[rows] if model.told_return else None
    if mode == "restart":
        memory.restart(rows)
        start = memory.start[rows]
        plan = make_plan(model, start, query, asked, sample=sample, generator=generator)
    else:
        values = asked_values(model, query, len(rows), asked, sample=sample, generator=generator)
        start = memory.start[rows]
        noise = explain(
            model,
            start,
            memory.noise[rows],
            memory.trajectories(rows),
            query_term(model, replace(query, prior_weight=model.config.replan_weight), values),
            steps=model.config.replan_steps,
            learning_rate=query.learning_rate,
            sample=sample,
            generator=generator,
        )
        plan = Plan.of(model, start, noise)
    memory.follow(plan, rows)


@torch.no_grad()
def shortfall(model: GACModel, start: Tensor, noise: Tensor, trajectories: Trajectories) -> Tensor:
    """How much of a plan's return what happened has put out of reach, in standard deviations.

    The plan moves for a few steps towards what happened, and for as many from the same place
    without it; both move towards the prior as well, so that this cancels.

    Args:
        model: the model.
        start: standardised s_0, shape (B, S).
        noise: eps of the plans, shape (B, K, D).
        trajectories: what happened since.

    Returns:
        Difference of E[y | z], shape (B,).
    """

    def expected(seen: Trajectories | None) -> Tensor:
        moved = explain(
            model, start, noise, seen, None, steps=LOOK_STEPS, learning_rate=LOOK_LEARNING_RATE
        )
        return Plan.of(model, start, moved).value

    return expected(None) - expected(trajectories)


def replan_where_due(
    model: GACModel,
    memory: Memory,
    expected: Tensor,
    *,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> bool:
    """Ask the trigger, and replan the rows where it fires.

    Args:
        model: the model.
        memory: written to; its newest observation is the present one.
        expected: what the model expected of the last change of the state, shape (B, S).
        sample: see ``make_plan``.
        generator: source of randomness.

    Returns:
        Whether it fired anywhere.
    """
    interval = model.config.replan_interval
    if model.trigger == "surprise":
        memory.wonder(expected)
        ready = (memory.since >= interval) & (memory.length > interval)
        fires = ready & (memory.surprise.mean(-1) > model.surprise_limit)
        rows = fires.nonzero().squeeze(-1)
    else:
        looks = (memory.since > 0) & (memory.since % interval == 0) & (memory.length > 1)
        rows = looks.nonzero().squeeze(-1)
        if model.trigger == "better":
            return _improve(model, memory, rows, sample=sample, generator=generator)
        if len(rows):
            start, noise = memory.start[rows], memory.noise[rows]
            missing = shortfall(model, start, noise, memory.trajectories(rows))
            rows = rows[missing > model.shortfall_limit]
    if len(rows):
        replan(model, memory, rows, mode=model.config.replan, sample=sample, generator=generator)
    return len(rows) > 0


def _improve(
    model: GACModel,
    memory: Memory,
    rows: Tensor,
    *,
    sample: bool,
    generator: torch.Generator | None,
) -> bool:
    """Follow plans made from where rows are, if they promise more; whether any does."""
    if not len(rows) or model.query.kind not in ("max", "best"):  # others ask for no more
        return False
    start = memory.observation[rows, -1]
    plan = make_plan(model, start, model.query, sample=sample, generator=generator)
    better = plan.value > memory.promise[rows]
    rows = rows[better]
    memory.restart(rows)
    memory.follow(Plan(*(entry[better] for entry in plan)), rows)
    return len(rows) > 0


def explain(
    model: GACModel,
    start: Tensor,
    noise: Tensor,
    trajectories: Trajectories | None,
    term: Callable[[Tensor], Tensor] | None,
    *,
    steps: int,
    learning_rate: float,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move plans to where they explain what happened so far, and serve a query (Eq. 3).

    KL(q, p(eps | s_0, tau_t)) is KL(q, p(eps)) - E_q[log p_beta(tau_t | s_0, z_rest)] and a
    constant.

    Args:
        model: whose networks stay as they are.
        start: standardised s_0, shape (B, S).
        noise: eps of the plans, shape (B, K, D).
        trajectories: tau_t, at least one step of each, whose returns are not read; None explains
            nothing.
        term: what the query adds, from ``query_term``; None asks for nothing.
        steps: of Adam, at most.
        learning_rate: of these steps.
        sample: whether to draw from ``generator``.
        generator: source of randomness; None is torch's own.

    Returns:
        eps, the mean of q, shape (B, K, D).
    """
    draw = noise_like(model, start, sample=sample, generator=generator)
    windows = generator if sample else torch.Generator(start.device).manual_seed(0)

    def objective(posterior: Posterior) -> Tensor:
        latents = model.latents(start, posterior.sample(draw()))
        value = -posterior.kl() if term is None else term(latents) - posterior.kl()
        if trajectories is None:
            return value
        # Which steps are looked at is the same for every row: see ``noise_like``.
        chosen = model.draw(trajectories, windows, together=not sample)
        action, state = model.log_likelihood(chosen, latents)
        return value + chosen.total(action + state)

    phi = torch.stack([noise, torch.full_like(noise, FIRST_LOG_VARIANCE)], dim=1)
    ascent, _ = maximize(
        objective,
        Ascent.start(phi),
        steps=steps,
        learning_rate=learning_rate,
        tolerance=model.query.tolerance,
        anneal=term is not None,
    )
    return ascent.posterior.mean
