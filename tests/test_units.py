"""Units: exact inverses, constant dimensions, and what an agent must know of its dataset."""

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mage_agent import MAGEModel, load_dataset, returns_to_go
from mage_agent.nn.units import Normalizer, Units
from tests.tiny import tiny_config


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


SIZES = {"position": 2, "goal": 1}


def fitted(**changes: Any) -> Units:
    """Units of 3 observations and 2 actions; returns-to-go from -6 to 4, initial ones 0 to 4."""
    units = Units(SIZES, 2, discount=0.5)
    generator = torch.Generator().manual_seed(0)
    arguments: dict[str, Any] = {
        "observation": 5 + 2 * torch.randn(100, 3, generator=generator),
        "action": 0.1 + 0.3 * torch.randn(100, 2, generator=generator),
        "return_to_go": torch.linspace(-6, 4, 100)[:, None],
        "initial_return": torch.linspace(0, 4, 5)[:, None],
        "action_low": torch.tensor([-1.0, -2.0]),
        "action_high": torch.tensor([1.0, 0.5]),
        **changes,
    }
    units.fit(**arguments)
    return units


class TestUnits:
    def test_know_nothing_at_first_and_change_nothing(self) -> None:
        units = Units(SIZES, 2, discount=0.5)
        observation, returns, action = torch.randn(4, 3), torch.randn(4, 1), 9 * torch.randn(4, 2)
        assert all(
            map(torch.equal, units.standardize(observation, returns), (observation, returns))
        )
        assert torch.equal(units.environment_action(action), action)
        assert units.return_to_go_range == (-np.inf, np.inf)
        assert units.update_return_to_go(torch.tensor(1e9), torch.tensor(-1e9)) == 4e9

    def test_take_statistics_bounds_and_ranges(self) -> None:
        observation, action = torch.randn(50, 3), torch.randn(50, 2)
        returns = torch.randn(50, 1)
        units = fitted(observation=observation, action=action, return_to_go=returns)
        for normalizer, values in (
            (units.observation, observation),
            (units.action, action),
            (units.return_to_go, returns),
        ):
            torch.testing.assert_close(normalizer.mean, values.mean(0))
            torch.testing.assert_close(normalizer.std, values.std(0, unbiased=False))
        assert units.action_low.tolist() == [-1, -2]
        assert units.action_high.tolist() == [1, 0.5]
        assert units.return_to_go_range == (float(returns.min()), float(returns.max()))

    @pytest.mark.parametrize(("quantile", "target"), [(1.0, 4), (0.5, 2), (0.125, 0.5), (0.0, 0)])
    def test_ask_for_a_quantile_of_the_initial_returns(
        self, quantile: float, target: float
    ) -> None:
        assert float(fitted(target_quantile=quantile).target_return) == pytest.approx(target)
        assert float(fitted().target_return) == 4  # the best

    @pytest.mark.parametrize("lead", [(), (4,), (4, 7)])
    def test_concatenate_entries_in_their_order(self, lead: tuple[int, ...]) -> None:
        units = fitted()
        entries = {"goal": torch.randn(*lead, 1), "other": None, "position": torch.randn(*lead, 2)}
        expected = torch.cat([entries["position"], entries["goal"]], dim=-1)
        assert torch.equal(units.concatenate(entries), expected)
        kept = {key: value for key, value in entries.items() if value is not None}
        assert torch.equal(units.concatenate(TensorDict(kept, batch_size=lead)), expected)
        with pytest.raises(KeyError, match="position"):
            units.concatenate({"goal": entries["goal"]})

    @pytest.mark.parametrize("lead", [(4,), (4, 7)])
    def test_standardize_by_the_statistics(self, lead: tuple[int, ...]) -> None:
        units = fitted()
        observation, returns = torch.randn(*lead, 3), torch.randn(*lead, 1)
        state, target = units.standardize(observation, returns)
        torch.testing.assert_close(
            state, (observation - units.observation.mean) / units.observation.std
        )
        torch.testing.assert_close(
            target, (returns - units.return_to_go.mean) / units.return_to_go.std
        )
        torch.testing.assert_close(units.observation.inverse(state), observation)

    @pytest.mark.parametrize("lead", [(), (100,), (10, 10)])
    def test_actions_come_back_in_their_units_inside_the_bounds(
        self, lead: tuple[int, ...]
    ) -> None:
        units = fitted()
        low, high = units.action_low, units.action_high
        inside = low + (high - low) * torch.rand(*lead, 2)
        torch.testing.assert_close(units.environment_action(units.action(inside)), inside)
        wild = units.environment_action(100 * torch.randn(*lead, 2).sign())
        assert ((wild == low) | (wild == high)).all()

    def test_the_return_that_is_left_obeys_discount_and_range(self) -> None:
        units = fitted()
        asked, reward = torch.tensor([[3.0], [0.0], [0.0]]), torch.tensor([[1.5], [-9.0], [9.0]])
        assert units.update_return_to_go(asked, reward).flatten().tolist() == [3, 4, -6]
        left = units.update_return_to_go(asked.numpy(), reward.numpy())
        assert isinstance(left, np.ndarray)
        assert left.flatten().tolist() == [3, 4, -6]

    def test_travel_in_the_state_and_have_no_parameters(self) -> None:
        units, other = fitted(), Units(SIZES, 2, discount=0.5)
        places = {key: value.data_ptr() for key, value in other.state_dict().items()}
        other.load_state_dict(units.state_dict())
        assert other.return_to_go_range == units.return_to_go_range
        assert other.target_return == units.target_return
        action = 5 * torch.randn(20, 2)
        assert torch.equal(other.environment_action(action), units.environment_action(action))
        assert {key: value.data_ptr() for key, value in other.state_dict().items()} == places
        assert not list(units.parameters())
        assert units.double().target_return.dtype == torch.float64


class TestOfADataset:
    """What ``from_dataset`` hands to ``Units.fit``."""

    def test_are_those_of_all_its_steps_and_of_its_episodes_starts(
        self, toy_dataset: TensorDict
    ) -> None:
        config = tiny_config(discount=0.9, target_quantile=0.5)
        units = MAGEModel.from_dataset(toy_dataset, config).units
        returns = returns_to_go(toy_dataset["next", "reward"], toy_dataset["episode"], 0.9)
        starts = returns[toy_dataset["step_count"] == 0]
        assert len(starts) == 7
        assert units.discount == 0.9
        assert float(units.target_return) == pytest.approx(float(starts.quantile(0.5)))
        assert units.return_to_go_range == (float(returns.min()), float(returns.max()))
        for normalizer, values in (
            (units.observation, toy_dataset["observation"]),
            (units.action, toy_dataset["action"]),
            (units.return_to_go, returns),
        ):
            torch.testing.assert_close(normalizer.mean, values.double().mean(0).float())

    def test_bounds_are_those_of_the_metadata_or_one(self, toy_dataset: TensorDict) -> None:
        wide = load_dataset(toy_dataset, action_low=[-3.0, -2.0], action_high=4.0)
        units = MAGEModel.from_dataset(wide, tiny_config()).units
        assert units.action_low.tolist() == [-3, -2]
        assert units.action_high.tolist() == [4, 4]
        units = MAGEModel.from_dataset(wide.exclude("metadata"), tiny_config()).units
        assert units.action_low.tolist() == [-1, -1]
        assert units.action_high.tolist() == [1, 1]

    def test_a_part_without_a_first_step_is_refused(self, toy_dataset: TensorDict) -> None:
        with pytest.raises(ValueError, match="holds the first step of no episode"):
            MAGEModel.from_dataset(toy_dataset[10:30], tiny_config())


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
