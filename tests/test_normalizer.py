"""Normaliser: exact inverse, constant dimensions, statistics that travel with the weights."""

import numpy as np
import pytest
import torch

from mage_agent.data.normalizer import Normalizer


@pytest.fixture
def values(generator: torch.Generator) -> torch.Tensor:
    scale = torch.tensor([1e-3, 1.0, 1e4])
    return torch.randn(500, 3, generator=generator) * scale + torch.tensor([5.0, 0.0, -1e4])


def test_takes_numpys_statistics_and_standardises(values: torch.Tensor) -> None:
    normalizer = Normalizer(3)
    normalizer.fit(values)
    exact = values.numpy().astype(np.float64)
    np.testing.assert_allclose(normalizer.mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normalizer.std, exact.std(0), rtol=1e-6)
    standard = normalizer.double()(values.double())
    torch.testing.assert_close(standard.mean(0), torch.zeros(3).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(3).double(), atol=2e-3, rtol=0)


def test_inverse_undoes_it_for_any_leading_axes(values: torch.Tensor) -> None:
    normalizer = Normalizer(3).double()
    normalizer.fit(values)
    for shape in ((3,), (500, 3), (10, 50, 3)):
        raw = values.double().flatten()[: np.prod(shape)].view(shape)
        torch.testing.assert_close(normalizer.inverse(normalizer(raw)), raw, rtol=1e-12, atol=0)


def test_starts_as_the_identity(values: torch.Tensor) -> None:
    assert torch.equal(Normalizer(3)(values), values)


@pytest.mark.parametrize("constant", [0.0, 7.0, 1e6])
def test_a_constant_dimension_is_shifted_only(constant: float) -> None:
    normalizer, data = Normalizer(2), torch.randn(100, 2)
    data[:, 1] = constant
    normalizer.fit(data)
    assert normalizer.std[1] == 1
    assert (normalizer(data)[:, 1] == 0).all()
    assert normalizer(torch.tensor([0.0, constant + 2]))[1] == 2


def test_fits_in_place_and_travels_in_the_state(values: torch.Tensor) -> None:
    normalizer = Normalizer(3)
    shared = normalizer.mean
    normalizer.fit(values)
    assert normalizer.mean is shared
    other = Normalizer(3)
    other.load_state_dict(normalizer.state_dict())
    assert torch.equal(other(values), normalizer(values))
    assert not list(normalizer.parameters())


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e3])
def test_units_do_not_matter(values: torch.Tensor, scale: float) -> None:
    normalizer = Normalizer(values.shape[-1])
    normalizer.fit(values * scale)
    standardised = normalizer(values * scale)
    torch.testing.assert_close(standardised.std(0, unbiased=False), torch.ones(values.shape[-1]))


def test_rounding_errors_are_not_blown_up(values: torch.Tensor) -> None:
    constant = 0.1 + 1e-8 * torch.sign(values)
    normalizer = Normalizer(values.shape[-1])
    normalizer.fit(constant)
    assert normalizer(constant).abs().max() < 1e-6
