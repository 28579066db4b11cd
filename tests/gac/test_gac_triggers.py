"""Triggers of replanning in closed loop: quiet where nothing happens, awake where it does."""

import pytest
import torch
from torch import Tensor

from mage_agent.gac.config import Trigger
from mage_agent.gac.model import GACModel
from mage_agent.gac.queries import Query
from mage_agent.training import fit
from tests.gac.tiny import STATE, tiny_config, tiny_dataset

ROWS, STEPS, PUSH = 64, 15, 8


@pytest.fixture(scope="module")
def model() -> GACModel:
    """Trained on 64 episodes of the point, its limits calibrated on 64 others."""
    dataset = tiny_dataset((STEPS,) * 128)
    config = tiny_config(
        steps=500, batch_size=32, held_out=0.5, context=1, replan_interval=3, replan_steps=20
    )
    built = GACModel.from_dataset(dataset, config, seed=0)
    fit(built, dataset, device="cpu", progress_bar=False)
    built.query = Query(kind="prior")
    return built


def fires(model: GACModel, trigger: Trigger, push: float = 0.0) -> Tensor:
    """Where the trigger makes a new plan, in the point's world, shape (ROWS, STEPS)."""
    model.trigger, model.remembers_episodes = trigger, True
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(ROWS, STATE, generator=generator)
    state, found = None, []
    for step in range(STEPS):
        if step == PUSH:
            point = point + push * torch.randn(ROWS, STATE, generator=generator).sign()
        asked = torch.zeros(ROWS, 1)
        action, state = model.decide(point, asked, state, temperature=1.0, generator=generator)
        assert state is not None
        found.append(state["since"].flatten() == 0)
        point = point + 0.1 * torch.cat([action, action.sum(1, keepdim=True)], dim=1)
    return torch.stack(found[1:], dim=1)


@pytest.mark.parametrize("trigger", ["surprise", "promise"])
def test_undisturbed_episodes_are_left_alone(model: GACModel, trigger: Trigger) -> None:
    assert float(fires(model, trigger).float().mean()) <= 0.05


def test_a_push_is_noticed_at_once(model: GACModel) -> None:
    fired = fires(model, "surprise", push=1.0)
    noticed = fired[:, PUSH - 1 : PUSH + 2].any(1)  # within the span of the mean
    assert float(noticed.float().mean()) > 0.95


def test_new_plans_keep_their_distance(model: GACModel) -> None:
    """At most one in ``replan_interval`` steps, however often the limit is passed."""
    before = model.surprise_limit.clone()
    try:
        model.surprise_limit.fill_(-1e30)
        fired = fires(model, "surprise")
        assert fired.any(1).all()
        for row in fired:
            steps = row.nonzero().flatten()
            assert (steps.diff() >= 3).all()
    finally:
        model.surprise_limit.copy_(before)
