"""Decisions: a plan made once and followed, as in training; replanned by hand or by a trigger."""

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from mage_agent.gac.model import GACModel
from mage_agent.gac.queries import Query
from tests.gac.tiny import ACTION, STATE, tiny_model

ASKED = torch.zeros(1)


def roll(
    model: GACModel, observations: Tensor, state: TensorDict | None = None, **kwargs: object
) -> tuple[Tensor, TensorDict]:
    """Decide on observations (B, T, S), one step after another; actions (B, T, A), last memory."""
    actions = []
    for observation in observations.unbind(1):
        asked = ASKED.expand(len(observation), 1)
        action, state = model.decide(observation, asked, state, **kwargs)  # type: ignore[arg-type]
        actions.append(action)
    assert state is not None
    return torch.stack(actions, dim=1), state


def with_units(model: GACModel) -> GACModel:
    """Units that are not one, so that a conversion left out would show."""
    model.units.observation.mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    model.units.observation.std.copy_(torch.tensor([2.0, 0.5, 1.0]))
    model.units.action.mean.copy_(torch.tensor([0.2, -0.1]))
    model.units.action.std.copy_(torch.tensor([0.5, 0.7]))
    model.units.action_low.fill_(-0.2)
    model.units.action_high.fill_(0.3)
    model.normalize_change.std.copy_(torch.tensor([0.1, 0.2, 0.3]))
    return model


@pytest.mark.parametrize(("context", "blocks"), [(1, 2), (2, 3), (4, 1)])
@pytest.mark.parametrize("trigger", ["never", "surprise", "promise"])
def test_acting_step_by_step_is_the_training_pass(context: int, blocks: int, trigger: str) -> None:
    model = with_units(tiny_model(context=context, num_decoder_blocks=blocks))
    model.trigger = trigger  # type: ignore[assignment]
    torch.manual_seed(0)
    observations = torch.randn(3, 11, STATE)
    actions, state = roll(model, observations)
    assert (actions == 0.3).any() or (actions == -0.2).any(), "the bounds are tried"
    with torch.no_grad():
        history = torch.arange(11).expand(3, 1, 11)
        predicted, _ = model.generator(
            model.units.observation(observations)[:, None],
            model.units.action(actions)[:, None],
            history,
            state["latents"][:, 1:],
        )
    expected = model.units.environment_action(predicted[:, 0])
    torch.testing.assert_close(actions, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state["start"], model.units.observation(observations[:, 0]))
    assert state["length"].flatten().tolist() == [11] * 3


def test_a_plan_is_made_where_an_episode_begins_and_kept() -> None:
    model = tiny_model()
    torch.manual_seed(0)
    observations = torch.randn(3, 5, STATE)
    _, state = roll(model, observations[:, :3])
    state[1] = model.initial_state(1)[0]
    _, after = roll(model, observations[:, 3:], state)
    assert torch.equal(after["noise"][[0, 2]], state["noise"][[0, 2]])
    _, own = roll(model, observations[1:2, 3:])
    torch.testing.assert_close(after["noise"][1], own["noise"][0])
    assert after["length"].flatten().tolist() == [5, 2, 5]


def test_the_memory_that_is_passed_stays_as_it_is() -> None:
    model = tiny_model()
    _, state = roll(model, torch.randn(2, 3, STATE))
    before = state.clone()
    roll(model, torch.randn(2, 2, STATE), state)
    model.replan(state, mode="restart")
    for key, value in before.items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("kind", ["max", "best"])
def test_new_plans_for_no_episode_change_nothing(kind: str) -> None:
    model = tiny_model(query=kind)
    _, state = roll(model, torch.randn(2, 3, STATE))
    after = model.replan(state, [], mode="restart")
    assert all(torch.equal(after[key], value) for key, value in state.items())


def test_replanning_has_a_weight_of_its_own() -> None:
    """Eq. 3 weighs what happened against the expected return; the query's weight is another."""
    plans = []
    for replan_weight, prior_weight in ((0.1, 0.0), (0.1, 5.0), (10.0, 0.0)):
        model = tiny_model(replan_weight=replan_weight)
        torch.manual_seed(0)
        _, state = roll(model, torch.randn(2, 3, STATE))
        model.query = replace(model.query, prior_weight=prior_weight)
        plans.append(model.replan(state, mode="posterior")["noise"])
    assert torch.equal(plans[0], plans[1])
    assert not torch.allclose(plans[0], plans[2])


@pytest.mark.parametrize("trigger", ["never", "better", "surprise", "promise"])
def test_deterministic_actions_do_not_depend_on_the_number_of_environments(trigger: str) -> None:
    model = tiny_model().double()
    model.trigger, model.remembers_episodes = trigger, True  # type: ignore[assignment]
    model.longest.fill_(9)
    model.surprise_limit.fill_(0.0)
    model.shortfall_limit.fill_(-1.0)
    torch.manual_seed(0)
    observations = torch.randn(5, 9, STATE).double()
    before = torch.get_rng_state()
    together, state = roll(model, observations)
    assert torch.equal(before, torch.get_rng_state()), "nothing is drawn"
    if trigger != "never":
        fired = state["since"] < 8
        assert fired.any() if trigger == "better" else fired.all(), "it has fired"
    for row in range(5):
        alone, _ = roll(model, observations[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


@pytest.mark.parametrize("kind", ["max", "best", "target", "prior"])
def test_a_plan_that_promises_more_is_followed(kind: str) -> None:
    model = tiny_model(query=kind, trigger="better")
    assert not model.remembers_episodes
    torch.manual_seed(0)
    observations = torch.randn(6, 13, STATE)
    _, state = roll(model, observations[:, :1])
    first = state["promise"]
    for step in range(1, 13):
        before = state
        _, state = roll(model, observations[:, step : step + 1], before)
        anew = state["since"].squeeze(-1) == 0
        if step % 4 or kind in ("target", "prior"):
            assert not anew.any(), "it looks every four steps, for queries that ask for the most"
        assert (state["promise"][anew] > before["promise"][anew]).all()
        assert torch.equal(state["length"].squeeze(-1) == 1, anew)
        assert torch.equal(state["start"][anew], model.units.observation(observations[anew, step]))
    if kind in ("max", "best"):
        assert (state["promise"] > first).any()
        assert (state["since"] > 12 - 4).any(), "others keep their plan"


def test_sampled_plans_differ_and_follow_their_generator() -> None:
    model = tiny_model()
    observations = torch.randn(1, 3, STATE).expand(4, -1, -1)

    def noise(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        model.query = Query.of(model.config, "plus")
        found: Tensor = roll(model, observations, temperature=1.0, generator=generator)[1]["noise"]
        return found

    assert torch.equal(noise(0), noise(0))
    assert not torch.equal(noise(0), noise(1))
    assert len(noise(0).flatten(1).unique(dim=0)) == 4


def test_restart_forgets_what_came_before() -> None:
    model = with_units(tiny_model(context=4))
    torch.manual_seed(0)
    observations = torch.randn(2, 6, STATE)
    _, state = roll(model, observations[:, :3])
    renewed = model.replan(state, torch.tensor([1]), mode="restart")
    assert torch.equal(renewed["noise"][0], state["noise"][0])
    actions, _ = roll(model, observations[:, 3:], renewed)
    # As if the episode had begun at the third step.
    _, begun = roll(model, observations[1:, 2:3])
    begun["action"] = state["action"][1:]  # which was done by the old plan
    later, _ = roll(model, observations[1:, 3:], begun)
    torch.testing.assert_close(renewed["noise"][1], begun["noise"][0])
    torch.testing.assert_close(actions[1], later[0])


def test_posterior_replanning_explains_what_happened() -> None:
    model = tiny_model(replan_steps=60)
    model.remembers_episodes = True
    model.longest.fill_(12)
    model.query = Query(kind="prior")
    torch.manual_seed(0)
    _, state = roll(model, torch.randn(4, 12, STATE))
    from mage_agent.gac.memory import Memory

    rows = torch.arange(4)
    happened = Memory(model, state).trajectories(rows)
    assert happened.length.tolist() == [11] * 4

    def explained(memory: TensorDict) -> float:
        with torch.no_grad():
            steps = model.draw(happened)
            parts = model.log_likelihood(steps, memory["latents"])
            prior = -0.5 * memory["noise"].square().sum((1, 2))
            return float((steps.total(sum(parts)) + prior).mean())  # type: ignore[arg-type]

    model.config = model.config.replace(window=None)
    after = model.replan(state, mode="posterior")
    assert explained(after) > explained(state) + 0.5
    assert torch.equal(after["start"], state["start"])
    assert after["length"].flatten().tolist() == [12] * 4


def test_memory_holds_the_trajectory_in_order() -> None:
    model = with_units(tiny_model())
    model.remembers_episodes = True
    model.longest.fill_(7)
    torch.manual_seed(0)
    observations = torch.randn(2, 5, STATE)
    actions, state = roll(model, observations)
    from mage_agent.gac.memory import Memory

    happened = Memory(model, state).trajectories(torch.tensor([1]))
    expected = model.standardize(
        observation=observations[1:, :4],
        action=actions[1:, :4],
        next_observation=observations[1:, 1:],
        value=torch.zeros(1),
        length=torch.tensor([4]),
    )
    for name in ("observation", "action", "change"):
        found = getattr(happened, name)[:, :4]
        torch.testing.assert_close(found, getattr(expected, name), atol=1e-5, rtol=1e-5)
    assert happened.length.tolist() == [4]


@pytest.mark.parametrize("trigger", ["surprise", "promise"])
def test_episodes_may_outlast_the_data(trigger: str) -> None:
    model = tiny_model(query_steps=5, replan_steps=5)
    model.trigger, model.remembers_episodes = trigger, True  # type: ignore[assignment]
    model.longest.fill_(6)
    model.surprise_limit.fill_(0.0)
    model.shortfall_limit.fill_(-1.0)
    actions, state = roll(model, torch.randn(2, 25, STATE))
    assert actions.isfinite().all()
    assert state["length"].flatten().tolist() == [25, 25]
    assert state["observation"].shape[1] == 7


def test_surprise_is_the_negative_log_likelihood_of_what_came() -> None:
    model = with_units(tiny_model(context=2, num_decoder_blocks=2, replan_interval=3))
    model.moves.copy_(torch.tensor([True, False, True]))
    model.trigger = "surprise"
    torch.manual_seed(0)
    observations = torch.randn(2, 6, STATE)
    actions, state = roll(model, observations)
    trajectories = model.standardize(
        observation=observations[:, :-1],
        action=actions[:, :-1],
        next_observation=observations[:, 1:],
        value=torch.zeros(2),
        length=torch.tensor([5, 5]),
    )
    model.config = model.config.replace(window=None)
    with torch.no_grad():
        steps = model.draw(trajectories)
        _, log_likelihood = model.log_likelihood(steps, state["latents"])
    expected = -log_likelihood[steps.weight > 0].view(2, 5)[:, -3:]
    torch.testing.assert_close(state["surprise"], expected, atol=1e-4, rtol=1e-4)


def test_actions_lie_inside_the_bounds_and_act_needs_no_memory() -> None:
    model = with_units(tiny_model())
    observation = torch.randn(2, 3, STATE)
    action = model.act(observation)
    assert action.shape == (2, 3, ACTION)
    assert (action >= -0.2).all()
    assert (action <= 0.3).all()
