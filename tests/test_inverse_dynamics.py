"""Inverse dynamics: recovers the action that led from one state to the next."""

import pytest
import torch

from mage_agent.nn.inverse_dynamics import InverseDynamics


@pytest.mark.parametrize("observation_dim", [0, 3])
def test_shapes(observation_dim: int) -> None:
    inverse = InverseDynamics(8, observation_dim, 2, 16)
    assert inverse(torch.randn(5, 8), torch.randn(5, 3)).shape == (5, 2)


def test_sees_the_state_only_when_built_to() -> None:
    plan, state = torch.randn(5, 8), torch.randn(5, 3)
    blind, seeing = InverseDynamics(8, 0, 2, 16), InverseDynamics(8, 3, 2, 16)
    assert torch.equal(blind(plan, state), blind(plan, -state))
    assert (seeing(plan, state) != seeing(plan, -state)).any()
    assert (seeing(plan, state) != seeing(-plan, state)).any()


def test_a_hidden_state_does_not_matter_and_is_not_a_state_of_zeros() -> None:
    inverse, plan, state = InverseDynamics(8, 3, 2, 16), torch.randn(5, 8), torch.randn(5, 3)
    hidden = torch.zeros(5, 1)
    assert torch.equal(inverse(plan, state, hidden), inverse(plan, -state, hidden))
    assert (inverse(plan, 0 * state) != inverse(plan, state, hidden)).any()
    assert torch.equal(inverse(plan, state), inverse(plan, state, torch.ones(5, 1)))


def test_the_plan_is_scaled_and_the_condition_is_not() -> None:
    inverse, plan = InverseDynamics(12, 3, 2, 16, plan_scale=0.5), torch.randn(5, 12)
    inverse.mlp, state = torch.nn.Identity(), torch.randn(5, 3)
    received = inverse(plan, state)
    torch.testing.assert_close(received[:, :12], 0.5 * plan)
    torch.testing.assert_close(received[:, 12:15], state)


def test_recovers_the_actions_of_a_linear_system() -> None:
    dynamics = torch.tensor([[0.5, 0.1], [-0.2, 0.4], [0.3, 0.3]])  # (S, A)
    state, action = torch.randn(1024, 3), torch.rand(1024, 2) * 2 - 1
    plan = torch.cat([state, state + action @ dynamics.T], dim=-1)
    inverse = InverseDynamics(6, 0, 2, 32)
    optimizer = torch.optim.Adam(inverse.parameters(), lr=1e-2)
    for _ in range(200):
        loss = (inverse(plan, state) - action).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01 * action.square().mean()
