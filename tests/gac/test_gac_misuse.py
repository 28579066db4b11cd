"""What GAC is asked in vain or by mistake: an error that says so, never another answer."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RescaleAction
from torchrl.envs import GymWrapper, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from benchmarks.datasets import check_name
from mage_agent import AgentPolicy, dataset_from_arrays, evaluate, load_dataset, replay_buffer
from mage_agent.data import step_limit
from mage_agent.facts import checkpoint_facts
from mage_agent.gac.actor import GACActor
from mage_agent.gac.losses import GACLoss
from mage_agent.gac.policy import GACPolicy
from mage_agent.gac.queries import Query
from mage_agent.gac.stages import calibrate, hold_out
from mage_agent.online import learn_online
from tests.gac.point import PointEnv
from tests.gac.tiny import ACTION, STATE, tiny_config, tiny_dataset


@pytest.fixture
def policy() -> GACPolicy:
    config = tiny_config(context=1, num_decoder_blocks=1)
    return GACPolicy.from_dataset(tiny_dataset(), config, device="cpu")


def followed(policy: GACPolicy, steps: int) -> tuple[Any, ...]:
    state = None
    for observation in np.random.default_rng(0).normal(size=(steps, 2, STATE)):
        _, state = policy.predict(observation.astype(np.float32), state, deterministic=True)
    assert state is not None
    return state


def test_a_plan_explains_what_the_memory_holds_or_is_refused(policy: GACPolicy) -> None:
    state = followed(policy, 5)
    with pytest.raises(ValueError, match=r"5, 5\] observations.*memory holds 1\. Set model.rememb"):
        policy.replan(state, mode="posterior")
    assert policy.replan(state, mode="restart")
    policy.model.remembers_episodes = True
    with pytest.raises(ValueError, match=r"at least 2"):
        policy.replan(followed(policy, 1), mode="posterior")
    state = followed(policy, 5)
    again = policy.replan(state, [1], mode="posterior")
    names = list(policy.model.initial_state(1).keys())
    noise = names.index("noise")
    assert np.array_equal(again[noise][0], state[noise][0])
    assert not np.array_equal(again[noise][1], state[noise][1])
    by_mask = policy.replan(state, [False, True], mode="posterior")
    np.testing.assert_array_equal(by_mask[noise], again[noise])


def test_unknown_modes_and_triggers_are_named(policy: GACPolicy) -> None:
    policy.model.remembers_episodes = True
    with pytest.raises(ValueError, match=r"mode is 'anew'; it must be one of"):
        policy.replan(followed(policy, 3), mode="anew")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"trigger is 'often'; it must be one of"):
        policy.model.trigger = "often"  # type: ignore[assignment]
    policy.model.remembers_episodes = False
    policy.model.trigger = "promise"
    assert policy.model.remembers_episodes, "a trigger reads the whole episode"


def test_an_actor_is_made_anew_when_the_query_heeds_a_target(policy: GACPolicy) -> None:
    actor = GACActor(policy.model)
    with pytest.raises(ValueError, match=r"target_return is 3\.0, but the agent"):
        actor.make_env_transforms(3.0)
    env = TransformedEnv(GymWrapper(PointEnv(6, 4)), actor.make_env_transforms())
    policy.query = "target"
    with pytest.raises(ValueError, match="make the actor anew"):
        env.rollout(2, actor)


def test_an_environment_is_made_anew_when_the_agent_remembers_more(policy: GACPolicy) -> None:
    actor = GACActor(policy.model)
    env = TransformedEnv(GymWrapper(PointEnv(6, 4)), actor.make_env_transforms())
    policy.model.remembers_episodes = True
    with pytest.raises(ValueError, match=r"memory \['action', 'observation'\] has another size"):
        env.rollout(2, actor)


def test_rollouts_of_the_actor_are_data(policy: GACPolicy) -> None:
    actor = GACActor(policy.model)
    env = TransformedEnv(GymWrapper(PointEnv(6, 4)), actor.make_env_transforms())
    dataset = load_dataset(env.rollout(4, actor))
    assert GACPolicy.from_dataset(dataset, tiny_config()).model.observation_dim == STATE


def test_an_environment_of_other_actions_is_refused(policy: GACPolicy) -> None:
    def narrow() -> gym.Env[Any, Any]:
        return RescaleAction(PointEnv(6, 4), np.float32(-0.5), np.float32(0.5))

    with pytest.raises(ValueError, match="the policy's actions lie in"):
        evaluate(policy, narrow, episodes=1, progress_bar=False)
    with pytest.raises(ValueError, match="the policy's actions lie in"):
        learn_online(policy, narrow, dataset=tiny_dataset(), episodes=1, progress_bar=False)


def test_what_the_query_was_set_to_stays(policy: GACPolicy, tmp_path: Any) -> None:
    policy.query = Query(kind="target", asked_return=1.25, steps=7)
    copy = policy.model.changed(replan_interval=3)
    assert copy.query == policy.query
    copy = policy.model.changed(query="max", query_steps=9)
    assert (copy.query.kind, copy.query.asked_return, copy.query.steps) == ("max", 1.25, 9)
    with pytest.raises(ValueError, match="num_heads cannot change: the agent's networks"):
        policy.model.changed(num_heads=1)
    policy.save(tmp_path / "asks")
    facts = checkpoint_facts(tmp_path / "asks")
    assert (facts["asks for kind"], facts["asks for asked_return"]) == ("target", "1.25")


@pytest.mark.parametrize("trigger", ["surprise", "promise"])
def test_a_trigger_without_a_limit_is_refused(policy: GACPolicy, trigger: Any) -> None:
    policy.model.trained.fill_(True)
    policy.model.trigger = trigger
    with pytest.raises(ValueError, match=f"the trigger '{trigger}' has no limit: training held"):
        policy.predict(np.zeros(3, np.float32))
    calibrate(policy.model, tiny_dataset())
    policy.predict(np.zeros(3, np.float32))
    other = policy.model.changed(replan_interval=3)
    if trigger == "surprise":  # whose limit is of means over as many steps
        with pytest.raises(ValueError, match="or replan_interval has changed since"):
            other.initial_state(1)
    else:
        other.initial_state(1)


def test_where_episodes_are_too_short_to_look_no_trigger_fires(policy: GACPolicy) -> None:
    model = policy.model.changed(held_out=0.2, trigger="promise", replan_interval=50)
    model.trained.fill_(True)
    calibrate(model, tiny_dataset())
    assert GACPolicy(model).predict(np.zeros(3, np.float32))[0].shape == (ACTION,)


def test_returns_of_more_data_are_those_of_trajectories() -> None:
    config = tiny_config(trajectory_steps=5)
    model = GACPolicy.from_dataset(tiny_dataset(), config, device="cpu").model
    before = model.returns.clone()
    model.know_returns(tiny_dataset())
    assert torch.equal(model.returns, before)
    assert int(model.longest) == 5


def test_inference_mode_changes_nothing(policy: GACPolicy) -> None:
    """Plans are found by gradients, which that mode would not have."""
    actor = GACActor(policy.model)
    env = TransformedEnv(GymWrapper(PointEnv(6, 4)), actor.make_env_transforms())

    def act() -> tuple[Any, torch.Tensor]:
        torch.manual_seed(0)
        action, _ = policy.predict(np.ones((2, STATE), np.float32), deterministic=True)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            return action, env.rollout(4, actor)["action"]

    expected = act()
    with torch.inference_mode():
        found = act()
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1].shape == expected[1].shape


def test_a_mode_is_given_by_its_name(policy: GACPolicy) -> None:
    state = followed(policy, 2)
    with pytest.raises(TypeError, match=r"rows is .restart.; give .* by its name"):
        policy.replan(state, "restart")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state is None"):
        policy.replan(None)  # type: ignore[arg-type]


def test_an_empty_batch_is_refused(policy: GACPolicy) -> None:
    batch = replay_buffer(tiny_dataset(), horizon=20, starts="episodes", discount=1.0).sample()
    with pytest.raises(ValueError, match=r"the batch is empty: its observations have \(0, 20, 3\)"):
        GACLoss(policy.model, num_trajectories=8)(batch[:0])


@pytest.mark.parametrize("rows", [1, [0.7], [True], [2], [-1], [[0]]])
def test_rows_that_are_none_are_named(policy: GACPolicy, rows: Any) -> None:
    with pytest.raises(ValueError, match=r"rows is .*; it must be numbers of the 2 environments"):
        policy.replan(followed(policy, 3), rows, mode="restart")


def test_no_rows_are_no_new_plans(policy: GACPolicy) -> None:
    state = followed(policy, 3)
    for ours, theirs in zip(policy.replan(state, [], mode="restart"), state, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("mode", ["restart", "posterior"])
def test_no_plan_is_made_anew_before_an_episode_begins(policy: GACPolicy, mode: Any) -> None:
    with pytest.raises(ValueError, match="an episode has not begun"):
        policy.model.replan(policy.model.initial_state(2), mode=mode)


def test_windows_from_the_middle_of_episodes_are_refused(policy: GACPolicy) -> None:
    buffer = replay_buffer(tiny_dataset(), horizon=20, batch_size=16, discount=1.0)
    with pytest.raises(ValueError, match="begin in the middle of an episode"):
        GACLoss(policy.model, num_trajectories=8)(buffer.sample())
    with pytest.raises(ValueError, match="ends in the middle of an episode"):
        policy.model.stages(tiny_dataset()[:-1])


def test_several_episodes_in_a_row_are_refused(policy: GACPolicy) -> None:
    steps = len(tiny_dataset())
    batch = replay_buffer(tiny_dataset(), horizon=steps, batch_size=2, discount=1.0).storage[:]
    with pytest.raises(ValueError, match=r"1 of 1 windows hold the end of an episode before"):
        GACLoss(policy.model, num_trajectories=8)(batch[None])


def test_targets_that_nothing_heeds_are_refused(policy: GACPolicy) -> None:
    with pytest.raises(ValueError, match="nothing would come of it"):
        policy.wrap(PointEnv(6, 4), target_return=1.0)


def test_stages_need_their_numbers_before_anything_is_collected(policy: GACPolicy) -> None:
    def never() -> gym.Env[Any, Any]:
        raise AssertionError

    with pytest.raises(ValueError, match=r"quantile is \[0.5\]; it must be one number, or one for"):
        learn_online(policy, never, dataset=tiny_dataset(), stages=2, quantile=[0.5])
    with pytest.raises(TypeError, match=r"make_env is .*; it must be a function"):
        learn_online(policy, PointEnv(6, 4), dataset=tiny_dataset())  # type: ignore[arg-type]


def test_data_that_do_not_fit_are_refused_before_anything_is_collected(policy: GACPolicy) -> None:
    def never() -> gym.Env[Any, Any]:
        raise AssertionError

    other = tiny_dataset()
    other["action"] = other["action"] + 20.0
    with pytest.raises(ValueError, match=r"lies outside the bounds \[-1, 1\]"):
        learn_online(policy, never, dataset=other)
    other = tiny_dataset()
    for part in (other, other["next"]):
        part["position"] = part.pop("observation")
    with pytest.raises(ValueError, match=r"lacks the agent's observation entries \['observation"):
        learn_online(policy, never, dataset=other)

    class Named(PointEnv):
        def __init__(self) -> None:
            super().__init__(6, 4)
            self.observation_space = gym.spaces.Dict({"position": self.observation_space})

    with pytest.raises(ValueError, match="the policy needs the entries"):
        learn_online(policy, Named, dataset=tiny_dataset())
    with pytest.raises(TypeError, match="make_env makes 3; it must be a function that makes a new"):
        learn_online(policy, lambda: 3, dataset=tiny_dataset())  # type: ignore[arg-type, return-value]


def test_rewards_must_be_those_of_the_returns(policy: GACPolicy) -> None:
    left = [[-3.0], [-4.0]]
    same = policy.update_return_to_go(left, [-1.0, -2.0])
    np.testing.assert_array_equal(same, policy.update_return_to_go(left, [[-1.0], [-2.0]]))
    for rewards in ([-1.0, -2.0, -1.0], [[-1.0, -2.0]], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="are no finite rewards, one for each of"):
            policy.update_return_to_go(left, rewards)


def test_data_of_another_scale_are_told(policy: GACPolicy) -> None:
    other = tiny_dataset()
    for part in (other, other["next"]):
        part["observation"] = part["observation"] + 1000.0
    with pytest.warns(UserWarning, match="standard deviations away from"):
        policy.learn(other, steps=1, progress_bar=False)
    mean = policy.model.units.observation.mean
    for scale, told in ((1000.0, "standard deviations away"), (0.001, "hardly as varied")):
        other = tiny_dataset()  # millimetres for metres, of a sensor whose mean stays what it was
        for part in (other, other["next"]):
            part["observation"] = (part["observation"] - mean) * scale + mean
        with pytest.warns(UserWarning, match=told):
            policy.learn(other, steps=1, progress_bar=False)
    other = tiny_dataset()
    other["next", "reward"] = other["next", "reward"] * 1000.0
    with pytest.warns(UserWarning, match="returns-to-go reach from"):
        policy.learn(other, steps=1, progress_bar=False)


def test_what_agents_have_in_common_is_none() -> None:
    with pytest.raises(TypeError, match="take one of them, such as MAGEPolicy or GACPolicy"):
        AgentPolicy.from_dataset(tiny_dataset(), "small")


def test_episodes_of_a_slice_count_as_many_as_there_are() -> None:
    dataset = tiny_dataset()
    part = dataset[dataset["episode"] >= 5]
    training, held_out = hold_out(part, 0.1)
    assert held_out is not None
    assert len(held_out["episode"].unique()) == 1
    assert len(training["episode"].unique()) == 2


def test_small_units_do_not_stand_still() -> None:
    dataset = tiny_dataset()
    for part in (dataset, dataset["next"]):
        part["observation"] = part["observation"] * torch.tensor([1.0, 1e-7, 1e-9])
    policy = GACPolicy.from_dataset(dataset, tiny_config())
    assert policy.model.moves.tolist() == [True, True, True]


def test_changes_of_stages_are_checked_before_anything_is_collected(policy: GACPolicy) -> None:
    def never() -> gym.Env[Any, Any]:
        raise AssertionError

    with pytest.raises((TypeError, ValueError), match="learning_rat"):
        learn_online(policy, never, dataset=tiny_dataset(), changes=[{}, {"learning_rat": 1.0}])


def test_targets_far_from_the_data_are_told(policy: GACPolicy) -> None:
    policy.query = "target"
    low, high = policy.model.units.return_to_go_range
    policy.wrap(PointEnv(6, 4), target_return=high + 0.9 * (high - low))
    with pytest.warns(UserWarning, match="learned nothing of returns so far away"):
        policy.wrap(PointEnv(6, 4), target_return=high + 1.1 * (high - low))


def test_next_observations_have_the_names_of_observations() -> None:
    rows, flags = np.zeros((4, 2), np.float32), np.arange(4) == 3
    with pytest.raises(ValueError, match=r"next_observations \['a'\]; both need"):
        dataset_from_arrays(
            {"a": rows, "b": rows}, rows, rows[:, 0], flags, flags, next_observations={"a": rows}
        )


def test_hopper_is_a_known_task() -> None:
    check_name("hopper-medium-v2")
    dataset = tiny_dataset()
    dataset.set_non_tensor("metadata", {"dataset_id": "hopper-medium-v2"})
    assert step_limit(dataset) == 1000
