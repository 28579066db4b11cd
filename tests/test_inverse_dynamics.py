"""Inverse dynamics: recovers the action that led from one state to the next."""

import pytest
import torch

from mage_agent.mage.inverse_dynamics import InverseDynamics


@pytest.mark.parametrize("condition_dim", [0, 2, 3])
def test_shapes(condition_dim: int) -> None:
    inverse = InverseDynamics(8, condition_dim, 2, 16)
    assert inverse(torch.randn(5, 8), torch.randn(5, 3)).shape == (5, 2)


def test_sees_the_first_entries_of_the_condition_and_no_other() -> None:
    inverse, plan, condition = InverseDynamics(8, 2, 2, 16), torch.randn(5, 8), torch.randn(5, 4)
    action = inverse(plan, condition)
    for entry in range(4):
        changed = condition.clone()
        changed[:, entry] += 1
        assert torch.equal(inverse(plan, changed), action) == (entry >= 2)


def test_entries_of_the_plan_are_dropped_in_training_only() -> None:
    inverse = InverseDynamics(1000, 3, 2, 16, dropout=0.25)
    inverse.mlp, plan, state = torch.nn.Identity(), torch.ones(5, 1000), torch.ones(5, 3)
    dropped = inverse.train()(plan, state)
    assert float((dropped[:, :1000] == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(dropped[:, 1000:], state)
    assert torch.equal(inverse.eval()(plan, state)[:, :1000], plan)


def test_can_start_anew() -> None:
    inverse, plan, state = InverseDynamics(8, 3, 2, 16), torch.randn(5, 8), torch.randn(5, 3)
    with torch.no_grad():
        for parameter in inverse.parameters():
            parameter.fill_(1000)
    inverse.reset_parameters()
    assert all((p.abs() < 1).all() and p.unique().numel() > 1 for p in inverse.parameters())
    assert inverse(plan, state).abs().max() < 10


def test_sees_the_state_only_when_built_to() -> None:
    plan, state = torch.randn(5, 8), torch.randn(5, 3)
    blind, seeing = InverseDynamics(8, 0, 2, 16), InverseDynamics(8, 3, 2, 16)
    assert torch.equal(blind(plan, state), blind(plan, -state))
    assert (seeing(plan, state) != seeing(plan, -state)).any()
    assert (seeing(plan, state) != seeing(-plan, state)).any()


def test_the_plan_is_scaled_and_the_condition_is_not() -> None:
    inverse, plan = InverseDynamics(12, 3, 2, 16, plan_scale=0.5), torch.randn(5, 12)
    inverse.mlp, state = torch.nn.Identity(), torch.randn(5, 3)
    received = inverse(plan, state)
    torch.testing.assert_close(received[:, :12], 0.5 * plan)
    torch.testing.assert_close(received[:, 12:], state)


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
