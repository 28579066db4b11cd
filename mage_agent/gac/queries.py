"""The queries of Algorithm 3: which plan is to be made for s_0."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mage_agent.gac.config import GACConfig, QueryKind
from mage_agent.gac.inference import Ascent, Posterior, maximize

if TYPE_CHECKING:
    from mage_agent.gac.model import GACModel

__all__ = ["Plan", "Query", "asked_values", "make_plan", "noise_like", "query_term"]


@dataclass(frozen=True, kw_only=True)
class Query:
    """What a plan is asked for (Algorithm 3).

    A policy's own query has the numbers of its configuration: ask for something else by
    ``dataclasses.replace(policy.query, ...)``, or by ``policy.query = "target"``. A new query is
    for plans that are made from then on: where an episode begins, and by ``replan``.

    Attributes:
        kind: "max", "plus", "target", "prior" or "best" (see ``GACConfig.query``).
        asked_return: y* of "target", in units of the data; None is the model's target return.
        quantile: q of "plus".
        increment: dy of "plus", in units of the data; None is a tenth of the standard deviation.
        prior_weight: lambda of "max"; in effect 1e-6 or more.
        radius: largest |eps| of "max", in units of sqrt(K D).
        samples: of "best".
        steps: Adam steps, at most.
        learning_rate: of Adam.
        tolerance: relative change at which they stop.

    Raises:
        ValueError: a value is not allowed.

    Examples:
        >>> policy.query = replace(policy.query, kind="target", asked_return=3000.0)
    """

    kind: QueryKind
    asked_return: float | None = None
    quantile: float = 0.8
    increment: float | None = None
    prior_weight: float = 0.0
    radius: float = 0.7
    samples: int = 64
    steps: int = 200
    learning_rate: float = 0.05
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse what the configuration would refuse, and keep what it would keep."""
        names = {name: _IN_CONFIG.get(name, name) for name in vars(self)}
        config = GACConfig(**{names[name]: value for name, value in vars(self).items()})
        for name, in_config in names.items():  # plain numbers, not NumPy's
            object.__setattr__(self, name, getattr(config, in_config))

    def among(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers of the query that the names of a configuration's settings stand for."""
        return {k: v for k, v in vars(self).items() if _IN_CONFIG.get(k, k) in settings}

    @classmethod
    def of(cls, config: GACConfig, kind: QueryKind | None = None) -> Query:
        """The query of a configuration, or one of another kind with its numbers."""
        names = [field.name for field in fields(cls)]
        values = {name: getattr(config, _IN_CONFIG.get(name, name)) for name in names}
        return cls(**(values if kind is None else {**values, "kind": kind}))


_IN_CONFIG = {
    "kind": "query",
    **{f: f"query_{f}" for f in ("radius", "samples", "steps", "learning_rate", "tolerance")},
}
"""Names of a query's fields in ``GACConfig``, where they differ."""


class Plan(NamedTuple):
    """What a query found.

    Attributes:
        noise: eps, shape (B, K, D).
        latents: z = f_alpha(s_0, eps), shape (B, K + 1, D).
        value: the return it promises, E[y | z], in standard deviations, shape (B,).
    """

    noise: Tensor
    latents: Tensor
    value: Tensor

    @classmethod
    def of(cls, model: GACModel, start: Tensor, noise: Tensor) -> Plan:
        """The plan of eps (B, K, D) for standardised s_0, (B, S)."""
        latents = model.latents(start, noise)
        return cls(noise, latents, model.value(latents))


@torch.no_grad()
def make_plan(
    model: GACModel,
    start: Tensor,
    query: Query,
    asked: Tensor | None = None,
    *,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> Plan:
    """Answer a query.

    Args:
        model: whose networks stay as they are; only f_alpha and the critic are used.
        start: standardised s_0, shape (B, S).
        query: what is asked for.
        asked: y* of "target" where the query names none, in units of the data, shape (B,).
        sample: draw the plan where the query has a distribution of them; else take its mean (of
            the prior always the same sample: its mean, 0, is like none of them), and draw nothing
            from ``generator``.
        generator: source of randomness; None is torch's own.
    """
    rows, device = len(start), start.device
    noise = noise_like(model, start, sample=sample, generator=generator)
    if query.kind == "prior":
        chosen = noise()
    elif query.kind == "best":
        chosen = _best(model, start, query.samples, noise)
    else:
        values = asked_values(model, query, rows, asked, sample=sample, generator=generator)
        term = query_term(model, query, values)

        def near(posterior: Posterior) -> Posterior:
            if query.kind != "max":
                return posterior
            # Further out the critic promises what no plan leads to.
            length = posterior.mean.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None]
            most = query.radius * math.prod(model.noise_shape) ** 0.5
            return posterior._replace(mean=posterior.mean * (most / length).clamp_max(1.0))

        def objective(posterior: Posterior) -> Tensor:
            posterior = near(posterior)
            latents = model.latents(start, posterior.sample(noise()))
            return term(latents) - posterior.kl()

        begin = torch.zeros(rows, 2, *model.noise_shape, dtype=start.dtype, device=device)
        if sample and query.kind == "max":
            begin[:, 0] = noise()  # from the prior: another start may find another maximum
        elif sample:
            begin = Ascent.random(rows, begin, generator).phi  # as in training (appendix B)
        ascent, _ = maximize(
            objective,
            Ascent.start(begin),
            steps=query.steps,
            learning_rate=query.learning_rate,
            tolerance=query.tolerance,
            anneal=True,
        )
        found = near(ascent.posterior)
        drawn = sample and query.kind != "max"
        chosen = found.sample(noise()) if drawn else found.mean
    return Plan.of(model, start, chosen)


def noise_like(
    model: GACModel, start: Tensor, *, sample: bool, generator: torch.Generator | None
) -> Callable[[], Tensor]:
    """A source of standard normal eps, (B, K, D).

    Deterministic decisions use a stream of their own, the same for every row, call and device: what
    is decided for a row then depends on nothing but that row.
    """
    device, dtype = start.device, start.dtype
    if sample:
        size = (len(start), *model.noise_shape)
        return lambda: torch.randn(size, generator=generator, device=device, dtype=dtype)
    own = torch.Generator().manual_seed(0)
    return lambda: (
        torch.randn(model.noise_shape, generator=own, dtype=dtype)
        .to(device, non_blocking=True)
        .expand(len(start), -1, -1)
    )


def query_term(model: GACModel, query: Query, asked: Tensor) -> Callable[[Tensor], Tensor]:
    """What a query adds to -KL(q, p): a function of z (B, K + 1, D) with a value a row (B,).

    Args:
        model: whose critic is asked.
        query: the query.
        asked: standardised y+ or y*, from ``asked_values``, shape (B,).
    """
    if query.kind in ("plus", "target"):
        return lambda latents: model.log_value(asked, latents)  # Eq. 4
    if query.kind == "prior":
        return lambda latents: 0.0 * model.value(latents)
    # Deviation 22: the KL of Eq. 2 has a weight lambda on returns in standard deviations, and by
    # default next to none, as in Algorithm 3. Eq. 2 has weight 1 on returns in unnamed units.
    weight = max(query.prior_weight, 1e-6)
    return lambda latents: model.value(latents) / weight


def asked_values(
    model: GACModel,
    query: Query,
    rows: int,
    asked: Tensor | None = None,
    *,
    sample: bool,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Standardised returns that a query asks for, shape (B,).

    "plus" adds dy to a return drawn from those of the data above quantile q (section 3.3), or to
    their median where nothing is drawn; "target" asks for y*: the query's, else ``asked``, else
    the data's target return; within the data's range, widened by its own length on both sides.

    Warns:
        UserWarning: y* is further away than that.
    """
    returns = model.returns
    if query.kind == "plus":
        upper = returns[returns > returns.quantile(query.quantile)]
        upper = upper if len(upper) else returns[-1:]  # constant returns
        if sample:
            place = torch.randint(len(upper), (rows,), generator=generator, device=returns.device)
            wanted = upper[place]
        else:
            wanted = upper.median().expand(rows)
        step = 0.1 * model.normalize_value.std if query.increment is None else query.increment
        wanted = wanted + step
    else:
        if query.asked_return is not None:
            asked = returns.new_full((rows,), query.asked_return)
        elif asked is None:
            asked = model.units.target_return.expand(rows)
        low, high = model.units.return_range
        wanted = asked.clamp(low - (high - low), high + (high - low))
        if query.kind == "target" and (wanted != asked).any():
            far = int((wanted - asked).abs().argmax())
            warnings.warn(
                f"a return of {float(asked[far]):g} is asked for, but the data's lie in "
                f"[{float(low):g}, {float(high):g}]; {float(wanted[far]):g} is taken instead. The "
                "model knows nothing of returns so far away.",
                stacklevel=2,
            )
    standardised: Tensor = model.normalize_value(wanted[:, None]).squeeze(-1)
    return standardised


def _best(model: GACModel, start: Tensor, samples: int, noise: Callable[[], Tensor]) -> Tensor:
    """The eps of the prior's samples with the largest E[y | z], shape (B, K, D)."""
    best, most = noise(), start.new_full((len(start),), -torch.inf)
    for number in range(samples):
        candidate = best if number == 0 else noise()
        value = model.value(model.latents(start, candidate))
        better = value > most
        best = torch.where(better[:, None, None], candidate, best)
        most = torch.where(better, value, most)
    return best
