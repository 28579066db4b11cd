"""Variational Bayes: Adam row by row, and q and the bound where both are known."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from mage_agent.gac.inference import Ascent, Posterior, PosteriorStore, infer, maximize
from tests.gac.linear import known, linear_model
from tests.gac.tiny import tiny_model, tiny_trajectories


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_steps_are_those_of_adam() -> None:
    torch.manual_seed(0)
    ascent = Ascent.random(3, torch.empty(2, 4))
    leaf = ascent.phi.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.07, maximize=True)
    for _ in range(5):
        gradient = torch.randn_like(leaf)
        ascent = ascent.step(gradient, 0.07)
        leaf.grad = gradient
        optimizer.step()
    torch.testing.assert_close(ascent.phi, leaf.detach())
    assert ascent.count.tolist() == [5, 5, 5]


def test_rows_count_their_own_steps() -> None:
    torch.manual_seed(0)
    ascent = Ascent.random(2, torch.empty(2, 4))
    gradients = torch.randn(4, *ascent.phi.shape)
    mixed = ascent
    for number, gradient in enumerate(gradients):
        mixed = mixed.step(gradient, 0.1, torch.tensor([True, number % 2 == 0]))
    alone = Ascent(*(part[1:] for part in vars(ascent).values()))
    for gradient in gradients[::2]:
        alone = alone.step(gradient[1:], 0.1)
    torch.testing.assert_close(mixed.phi[1:], alone.phi)
    assert mixed.count.tolist() == [4, 2]


def test_kl_and_samples() -> None:
    torch.manual_seed(0)
    q = Ascent.random(3, torch.empty(2, 4)).posterior
    zeros, eye = torch.zeros(8), torch.eye(8)
    for row in range(3):
        own = MultivariateNormal(
            q.mean[row].flatten(), torch.diag(q.log_variance[row].exp().flatten())
        )
        slow = kl_divergence(own, MultivariateNormal(zeros, eye))
        torch.testing.assert_close(q.kl()[row], slow)
    drawn = Posterior(*(part[:1].expand(200_000, -1, -1) for part in q)).sample(
        torch.randn(200_000, 2, 4)
    )
    torch.testing.assert_close(drawn.mean(0), q.mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.var(0), q.log_variance[0].exp(), atol=0.02, rtol=0.02)


def test_converged_rows_stay_and_the_loop_ends_when_all_have() -> None:
    goal = torch.tensor([0.0, 100.0])[:, None, None]
    seen: list[Tensor] = []

    def objective(q: Posterior) -> Tensor:
        seen.append(q.mean.detach()[:, 0, 0])
        return -(q.mean - goal).square().sum((1, 2)) - q.log_variance.square().sum((1, 2))

    start = Ascent.start(torch.zeros(2, 2, 1, 1))
    ascent, steps = maximize(objective, start, steps=5000, learning_rate=0.5, tolerance=1e-4)
    assert steps < 5000
    assert ascent.count[0] == 20, "two means of ten steps to compare"
    assert ascent.count[1] == steps
    torch.testing.assert_close(ascent.phi[:, 0], goal, atol=0.1, rtol=0)


@pytest.mark.parametrize("window", [None, 5])
def test_trajectories_of_a_batch_are_independent(window: int | None) -> None:
    lengths = (12, 5, 1, 9)
    model = tiny_model(window=window).double()
    batch = tiny_trajectories(lengths, dtype=torch.float64)
    start = Ascent.random(4, torch.empty(*model.noise_shape))
    noise = torch.randn(20, 4, *model.noise_shape)

    def run(rows: Tensor) -> Tensor:
        """Twenty steps on some of the rows, each with the noise and the steps it always has."""
        part = type(batch)(**{name: value[rows] for name, value in vars(batch).items()})

        steps = itertools.count()

        def objective(q: Posterior) -> Tensor:
            step = next(steps)
            drawn = model.draw(part, torch.Generator().manual_seed(step), together=True)
            return model.evidence(part, q, noise[step, rows], drawn).objective(1.0)

        own = Ascent(*(value[rows] for value in vars(start).values()))
        return maximize(objective, own, steps=20, learning_rate=0.1, tolerance=0.0)[0].phi

    together = run(torch.arange(4))
    for row in range(4):
        torch.testing.assert_close(run(torch.tensor([row]))[0], together[row])


def test_q_and_the_bound_match_the_known_posterior_and_evidence() -> None:
    """Mean-field q of a linear-Gaussian model: the posterior's mean, 1 / precision, and a gap."""
    model = linear_model(inner_tolerance=0.0, inner_learning_rate=0.03)
    trajectories = tiny_trajectories((6, 3, 1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    start = Ascent.start(torch.zeros(3, 2, *model.noise_shape))
    ascent, _ = infer(model, trajectories, start, steps=600, generator=generator)
    model.config = model.config.replace(inner_learning_rate=0.002)
    ascent, _ = infer(model, trajectories, ascent, steps=600, generator=generator)
    q = ascent.posterior
    noise = torch.randn(20_000, *model.noise_shape, generator=generator)
    for row in range(3):
        exact = known(model, trajectories, row)
        deviation = torch.linalg.inv(exact.covariance).diagonal().rsqrt()
        error = (q.mean[row].flatten() - exact.mean) / exact.covariance.diagonal().sqrt()
        assert error.abs().max() < 0.15
        own = (0.5 * q.log_variance[row]).exp().flatten()
        torch.testing.assert_close(own, deviation, rtol=0.1, atol=0)
        one = torch.full((len(noise),), row)
        part = type(trajectories)(**{k: v[one] for k, v in vars(trajectories).items()})
        fitted = Posterior(q.mean[one], q.log_variance[one])
        with torch.no_grad():
            evidence = model.evidence(part, fitted, noise, model.draw(part))
        bound = evidence.bound().mean()
        best = MultivariateNormal(exact.mean, torch.diag(deviation.square()))
        gap = kl_divergence(best, MultivariateNormal(exact.mean, exact.covariance))
        assert bound < exact.evidence
        torch.testing.assert_close(bound, exact.evidence - gap, atol=0.15, rtol=0)


def test_the_bound_is_the_evidence_where_q_can_be_the_posterior() -> None:
    """Orthogonal columns: the posterior is diagonal, and Eq. 6 is tight."""
    model = linear_model()
    with torch.no_grad():
        model.generator.action.weight.copy_(torch.tensor([[0.8, 0, 0, 0], [0, -0.5, 0, 0]]))
        model.generator.change.weight.copy_(torch.zeros(3, 4))
        model.generator.change.weight[0, 2] = 0.3
        model.critic.weight.copy_(torch.tensor([[0.0, 0.7]]))
    trajectories = tiny_trajectories((6, 3), dtype=torch.float64)
    exact = [known(model, trajectories, row) for row in range(2)]
    shape = (2, *model.noise_shape)
    mean = torch.stack([each.mean for each in exact]).view(shape)
    variance = torch.stack([each.covariance.diagonal() for each in exact]).view(shape)
    q = Posterior(mean, variance.log())
    bounds = []
    for sign in (1.0, -1.0):  # antithetic noise and unit second moments: quadratic, so exact
        for entry in range(4):
            noise = torch.zeros(shape)
            noise.view(2, -1)[:, entry] = sign * 4**0.5
            with torch.no_grad():
                drawn = model.draw(trajectories)
                bounds.append(model.evidence(trajectories, q, noise, drawn).bound())
    expected = torch.stack([each.evidence for each in exact])
    torch.testing.assert_close(torch.stack(bounds).mean(0), expected)


def test_windows_estimate_the_bound_without_bias() -> None:
    model = tiny_model(window=6, context=2).double()
    trajectories = tiny_trajectories((23,), dtype=torch.float64)
    q = Ascent.random(1, torch.empty(*model.noise_shape)).posterior
    noise = torch.randn(1, *model.noise_shape)

    @torch.no_grad()
    def bound(share: float | None) -> Tensor:
        from mage_agent.gac.trajectory import draw_steps

        drawn = draw_steps(
            trajectories.length,
            longest=23,
            window=None if share is None else 6,
            reach=model.config.reach,
            share=torch.tensor([share or 0.0]),
        )
        return model.evidence(trajectories, q, noise, trajectories.take(*drawn)).bound()

    estimates = torch.cat([bound((step + 0.5) / 23) for step in range(23)])
    assert estimates.std() > 1
    torch.testing.assert_close(estimates.mean(), bound(None)[0])


def test_inference_without_the_return_does_not_see_it() -> None:
    model = linear_model(inner_tolerance=0.0)
    with torch.no_grad():  # of the first latent, whose value is the return's, nothing else is seen
        model.generator.action.weight[:, :2] = 0.0  # type: ignore[union-attr, index, operator]
        model.generator.change.weight[:, :2] = 0.0  # type: ignore[union-attr, index, operator]
    trajectories = tiny_trajectories((6,), dtype=torch.float64)
    start = Ascent.start(torch.zeros(1, 2, *model.noise_shape))
    blind, _ = infer(model, trajectories, start, steps=300, know_value=False)
    torch.testing.assert_close(blind.posterior.mean[:, 0], torch.zeros(1, 2), atol=0.1, rtol=0)
    told, _ = infer(model, trajectories, start, steps=300)
    error = (model.value(told.posterior.mean) - trajectories.value).abs()
    assert error < (model.value(blind.posterior.mean) - trajectories.value).abs()


def test_the_store_keeps_rows_apart() -> None:
    store = PosteriorStore(5, 2, 4, torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in store.state_dict().items()}
    rows = torch.tensor([3, 1])
    ascent = store.read(rows).step(torch.ones(2, 2, 2, 4), 0.1)
    store.write(rows, ascent)
    for name, value in store.state_dict().items():
        changed = (value != before[name]).flatten(1 if value.ndim > 1 else 0)
        assert (changed.any(1) if value.ndim > 1 else changed).tolist() == [
            False,
            True,
            False,
            True,
            False,
        ]
        torch.testing.assert_close(value[3], getattr(ascent, name)[0])
