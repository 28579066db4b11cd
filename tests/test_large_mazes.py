"""What large mazes take: plans as the way from where they start, and Fourier features of s_0."""

import pytest
import torch

from mage_agent import MAGEModel
from mage_agent.types import TrajectoryWindow
from tests.test_values import episodes
from tests.tiny import HORIZON, STATE, tiny_config, tiny_goal_model, tiny_model, tiny_windows


@pytest.mark.parametrize("trajectory", ["RS", "RG"])
def test_relative_plans_hold_the_way_from_the_start(trajectory: str) -> None:
    make = tiny_goal_model if trajectory == "RG" else tiny_model
    model = make(relative_plans=True, trajectory=trajectory)
    entries = slice(STATE, STATE + 2) if trajectory == "RG" else slice(None)
    model.drift.std.uniform_(0.5, 2)
    batch = tiny_windows()
    window = TrajectoryWindow(
        observation=torch.randn(8, HORIZON, model.observation_dim),
        action=batch["action"],
        return_to_go=batch["return_to_go"],
        mask=torch.ones(8, HORIZON, dtype=torch.bool),
    )
    channels = model.trajectory(window)
    states = model.units.observation(window.observation)
    way = (states - states[:, :1]) / model.drift.std
    torch.testing.assert_close(model.parts(channels)[trajectory[1]], way[..., entries])
    assert (channels[:, 0, 1:] == 0).all()
    found = model.split(channels, states[:, 0])
    torch.testing.assert_close(found[trajectory[1]], states[..., entries])
    assert torch.equal(found["R"], channels[..., :1])


def test_ways_are_in_standard_deviations_of_those_of_half_a_window() -> None:
    data = episodes(9, 3, 7)
    model = MAGEModel.from_dataset(data, tiny_config(relative_plans=True))
    ways = [
        part[min(step + HORIZON // 2, len(part) - 1)] - part[step]
        for part in model.units.observation(data["observation"]).split([9, 3, 7])
        for step in range(len(part))
    ]
    torch.testing.assert_close(model.drift.std, torch.stack(ways).std(0, unbiased=False))
    assert (model.drift.mean == 0).all()


@torch.no_grad()
def test_relative_plans_begin_where_the_state_is() -> None:
    """D' that has learned to give zeros first: the plan's first state is the observation."""
    model = tiny_model(relative_plans=True).eval()
    for parameter in model.decoder.project[-1].parameters():
        parameter.zero_()
    observation = 3 * torch.randn(5, STATE)
    plan = model.plan(observation, torch.zeros(5), partial=True)
    for decoded in (plan.observation, *plan.partial):
        torch.testing.assert_close(decoded, observation[:, None].expand(-1, HORIZON, -1))


@torch.no_grad()
def test_fourier_features_stand_beside_the_state() -> None:
    features = tiny_model(fourier_features=5).features
    state = torch.randn(4, STATE)
    angles = state @ features.project.weight.T
    expected = torch.cat([state, angles.sin(), angles.cos()], dim=1)
    torch.testing.assert_close(features(state), expected)
    assert expected.shape == (4, features.size)
    assert torch.equal(tiny_model().features(state), state)
