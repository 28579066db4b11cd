"""The queries of Algorithm 3 and Eq. 3, against closed forms where the networks are linear."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mage_agent.gac.model import GACModel
from mage_agent.gac.queries import Query, asked_values, make_plan, query_term
from mage_agent.gac.replanning import explain
from tests.gac.linear import design, linear_model
from tests.gac.tiny import STATE, tiny_config, tiny_model, tiny_trajectories


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def with_returns(model: GACModel, returns: Tensor) -> GACModel:
    """Give a model the returns of a dataset."""
    levels = torch.linspace(0, 1, len(model.returns))
    model.returns.copy_(returns.quantile(levels, interpolation="nearest"))
    model.normalize_value.fit(returns[:, None])
    model.units.return_range.copy_(torch.stack([returns.min(), returns.max()]))
    model.units.target_return.fill_(float(returns.max()))
    return model


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"kind": "targets"}, "query is 'targets'; allowed: .*'target'"),
        ({"kind": "target", "asked_return": float("nan")}, "asked_return is nan"),
        ({"kind": "plus", "increment": float("inf")}, "increment is inf"),
        ({"kind": "plus", "quantile": 2.0}, "quantile is 2.0"),
        ({"kind": "best", "samples": 0}, "query_samples is 0"),
        ({"kind": "max", "steps": 0}, "query_steps is 0"),
    ],
)
def test_a_query_takes_what_the_configuration_takes(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Query(**values)
    with pytest.raises(ValueError, match=named):
        tiny_config(**{named.split()[0]: list(values.values())[-1]})


def test_a_query_keeps_plain_numbers() -> None:
    asked = Query(kind="target", asked_return=np.float32(2.5), steps=np.int64(7))  # type: ignore[arg-type]
    assert json.loads(json.dumps(asdict(asked)))["asked_return"] == 2.5
    assert asked == Query(kind="target", asked_return=2.5, steps=7)


LONG = {"steps": 600, "learning_rate": 0.05, "tolerance": 0.0}


def test_max_is_the_gradient_over_lambda() -> None:
    """max E_q[w z_y + b] - lambda KL: mean w / lambda, variance 1, nothing elsewhere."""
    model = linear_model()
    query = Query(kind="max", prior_weight=0.4, radius=100.0, **LONG)
    plan = make_plan(model, torch.randn(3, STATE), query)
    expected = torch.zeros(3, *model.noise_shape)
    expected[:, 0] = model.critic.weight.detach() / 0.4
    torch.testing.assert_close(plan.noise, expected, atol=0.03, rtol=0)
    torch.testing.assert_close(plan.value, model.value(plan.latents).detach())


def test_max_looks_within_its_radius() -> None:
    model = linear_model()
    plan = make_plan(model, torch.randn(3, STATE), Query(kind="max", radius=0.5, **LONG))
    weight = model.critic.weight.detach()
    expected = torch.zeros(3, *model.noise_shape)
    expected[:, 0] = 0.5 * expected[0].numel() ** 0.5 * weight / weight.norm()
    torch.testing.assert_close(plan.noise, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", ["target", "plus"])
def test_a_fixed_return_gives_the_posterior_of_the_critic(kind: str) -> None:
    """Eq. 4 for y = w z + b + noise: mean Sigma w (y - b) / sigma^2 by Bayes' rule."""
    model = with_returns(linear_model(return_std=0.5), torch.tensor([-2.0, -1, 0, 1, 2]))
    query = Query(kind=kind, asked_return=1.5, quantile=0.0, increment=1.0, **LONG)  # type: ignore[arg-type]
    plan = make_plan(model, torch.randn(2, STATE), query)
    upper = model.returns[model.returns > -2]
    asked = 1.5 if kind == "target" else float(upper.median()) + 1.0
    y = asked / model.normalize_value.std
    w, b = model.critic.weight.detach()[0], model.critic.bias.detach()
    precision = torch.eye(2) + torch.outer(w, w) / 0.5**2
    expected = torch.zeros(2, *model.noise_shape)
    expected[:, 0] = torch.linalg.solve(precision, w * (y - b) / 0.5**2)
    torch.testing.assert_close(plan.noise, expected, atol=0.03, rtol=0)


def test_sampled_targets_have_the_posteriors_spread() -> None:
    model = with_returns(linear_model(return_std=0.5), torch.tensor([-2.0, -1, 0, 1, 2]))
    query = Query(kind="target", asked_return=1.0, steps=500, tolerance=0.0)
    generator = torch.Generator().manual_seed(0)
    plan = make_plan(model, torch.zeros(1000, STATE), query, sample=True, generator=generator)
    w = model.critic.weight.detach()[0]
    precision = 1 + w.square() / 0.5**2  # of a mean-field q
    torch.testing.assert_close(plan.noise[:, 0].std(0), precision.rsqrt(), atol=0.06, rtol=0)
    torch.testing.assert_close(plan.noise[:, 1:].std(0), torch.ones(1, 2), atol=0.08, rtol=0)


def test_prior_plans() -> None:
    model = tiny_model().double()
    start = torch.randn(500, STATE)
    plan = make_plan(model, start, Query(kind="prior"))
    assert (plan.noise == plan.noise[0]).all(), "one sample for all where nothing is drawn"
    assert 0.5 < float(plan.noise[0].std()) < 1.5
    generator = torch.Generator().manual_seed(0)
    drawn = make_plan(model, start, Query(kind="prior"), sample=True, generator=generator)
    assert abs(float(drawn.noise.std()) - 1) < 0.03
    torch.testing.assert_close(drawn.latents, model.latents(start, drawn.noise).detach())


def test_best_is_the_best_of_its_samples() -> None:
    model = tiny_model().double()
    start = torch.randn(6, STATE)
    generator = torch.Generator().manual_seed(3)
    plan = make_plan(model, start, Query(kind="best", samples=16), sample=True, generator=generator)
    generator.manual_seed(3)
    values = []
    for _ in range(16):
        noise = torch.randn(6, *model.noise_shape, generator=generator)
        values.append(model.value(model.latents(start, noise)).detach())
    torch.testing.assert_close(plan.value, torch.stack(values).amax(0))


def test_promises_are_ordered_as_the_queries_are() -> None:
    model = with_returns(tiny_model().double(), torch.linspace(-1, 1, 50))
    start = torch.randn(20, STATE)
    means = {}
    for kind in ("max", "best", "prior"):
        query = Query(kind=kind, prior_weight=0.001, steps=300)  # type: ignore[arg-type]
        means[kind] = float(make_plan(model, start, query).value.mean())
    assert means["max"] > means["best"] > means["prior"]


@pytest.mark.parametrize("kind", ["max", "plus", "target", "prior", "best"])
def test_deterministic_plans_draw_nothing_and_ignore_their_neighbours(kind: str) -> None:
    model = with_returns(tiny_model().double(), torch.linspace(-1, 1, 50))
    start, query = torch.randn(7, STATE), Query(kind=kind, steps=20)  # type: ignore[arg-type]
    before = torch.get_rng_state()
    together = make_plan(model, start, query)
    assert torch.equal(before, torch.get_rng_state())
    for row in range(7):
        alone = make_plan(model, start[row : row + 1], query)
        torch.testing.assert_close(alone.noise[0], together.noise[row])


@pytest.mark.parametrize("kind", ["max", "plus", "target", "prior", "best"])
def test_sampled_plans_follow_their_generator(kind: str) -> None:
    model = with_returns(tiny_model().double(), torch.linspace(-1, 1, 50))
    start, query = torch.randn(4, STATE), Query(kind=kind, steps=20)  # type: ignore[arg-type]

    def noise(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return make_plan(model, start, query, sample=True, generator=generator).noise

    assert torch.equal(noise(0), noise(0))
    assert not torch.equal(noise(0), noise(1))


def test_plus_asks_for_returns_above_the_quantile() -> None:
    returns = torch.arange(100.0)
    model = with_returns(linear_model(), returns)
    query = Query(kind="plus", quantile=0.8, increment=10.0)
    generator = torch.Generator().manual_seed(0)
    asked = asked_values(model, query, 5000, sample=True, generator=generator)
    raw = model.normalize_value.inverse(asked[:, None]).flatten().round(decimals=6)
    assert set(raw.tolist()) <= {y + 10 for y in returns.tolist() if y > 79.2 - 1}
    assert abs(float(raw.mean()) - (89.5 + 10)) < 0.5
    assert float(raw.max()) == 109
    step = asked_values(model, Query(kind="plus", quantile=0.8), 1, sample=False)
    more = asked_values(model, Query(kind="plus", quantile=0.8, increment=0.0), 1, sample=False)
    torch.testing.assert_close(step - more, torch.full((1,), 0.1))


def test_plus_on_constant_returns_asks_for_them() -> None:
    model = with_returns(linear_model(), torch.full((5,), 3.0))
    asked = asked_values(model, Query(kind="plus", increment=0.0), 4, sample=True)
    torch.testing.assert_close(model.normalize_value.inverse(asked), torch.full((4,), 3.0))


def test_targets_far_outside_the_data_are_bounded() -> None:
    model = with_returns(linear_model(), torch.tensor([0.0, 10.0]))

    def raw(asked: float | None) -> float:
        query = Query(kind="target", asked_return=asked)
        value = asked_values(model, query, 1, sample=False)
        return float(model.normalize_value.inverse(value))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert raw(15.0) == pytest.approx(15)
        assert raw(None) == pytest.approx(10), "the data's target return"
    with pytest.warns(UserWarning, match=r"500 is asked for.*\[0, 10\]; 20 is taken"):
        assert raw(500.0) == pytest.approx(20)
    with pytest.warns(UserWarning, match="-10 is taken"):
        assert raw(-500.0) == pytest.approx(-10)


def test_replanning_is_eq_3() -> None:
    """A linear-Gaussian model: P mean = X' r / sigma^2 + w / lambda, P the precision of q."""
    model = linear_model()
    trajectories = tiny_trajectories((5, 3), dtype=torch.float64)
    query = Query(kind="max", prior_weight=0.5, tolerance=0.0, learning_rate=0.05)
    model.query = query
    asked = asked_values(model, query, 2, sample=False)
    start = torch.randn(2, *model.noise_shape)
    fitted = explain(
        model,
        trajectories.observation[:, 0],
        start,
        trajectories,
        query_term(model, query, asked),
        learning_rate=0.05,
        steps=800,
    )
    for row in range(2):
        matrix, target, variance = (part.detach() for part in design(model, trajectories, row))
        matrix, target, variance = matrix[:-1], target[:-1], variance[:-1]  # y is not known yet
        precision = torch.eye(4) + matrix.T @ (matrix / variance[:, None])
        pull = torch.cat([model.critic.weight.detach()[0] / 0.5, torch.zeros(2)])
        expected = torch.linalg.solve(precision, matrix.T @ (target / variance) + pull)
        torch.testing.assert_close(fitted[row].flatten(), expected, atol=0.05, rtol=0)
