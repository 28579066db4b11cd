"""GAC as an agent like any other: fit, checkpoints, policy, actor, evaluation."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import GymWrapper, SerialEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mage_agent.agent import find_agent
from mage_agent.checkpoint import load, load_tensors, save
from mage_agent.evaluation import evaluate
from mage_agent.gac.actor import GACActor
from mage_agent.gac.model import GACModel
from mage_agent.gac.policy import GACPolicy
from mage_agent.gac.queries import Query
from mage_agent.policy import AgentPolicy
from mage_agent.training import Progress, fit
from tests.gac.point import PointEnv
from tests.gac.tiny import STATE, tiny_config, tiny_dataset


def build(**changes: Any) -> GACModel:
    return GACModel.from_dataset(tiny_dataset(), tiny_config(**changes), seed=0)


def trained(**changes: Any) -> GACModel:
    """A model whose plans differ from start to start."""
    model = build(**{"steps": 30, **changes})
    fit(model, tiny_dataset(), progress_bar=False, device="cpu")
    return model


def test_the_name_finds_the_class() -> None:
    assert find_agent("gac") is GACModel


@pytest.mark.parametrize(("inference", "optimizer"), [("persistent", "muon"), ("fresh", "adam")])
def test_a_killed_training_goes_on_to_the_same_weights(
    inference: str, optimizer: str, tmp_path: Path
) -> None:
    """Killed at step 50 of 66, between two checkpoints and inside the steps of a batch."""
    changes = {"inference": inference, "inner_steps": 2, "steps": 22, "outer_steps": 3}
    changes["optimizer"] = optimizer
    dataset = tiny_dataset()

    def run(path: Path, model: GACModel, **kwargs: Any) -> None:
        fit(
            model,
            dataset,
            device="cpu",
            progress_bar=False,
            checkpoint_path=path,
            checkpoint_interval=7,
            **kwargs,
        )

    whole = build(**changes)
    run(tmp_path / "whole", whole)

    def kill(progress: Progress) -> None:
        if progress.step == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", build(**changes), callback=kill)
    resumed = build(**changes)
    run(tmp_path / "killed", resumed, resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    one, other = (load_tensors(tmp_path / name)[0] for name in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert any("store" in key for key in one) == (inference == "persistent")
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def test_a_policy_is_saved_without_its_posteriors_and_acts_the_same(tmp_path: Path) -> None:
    policy = GACPolicy.from_dataset(tiny_dataset(), tiny_config(held_out=0.3), device="cpu")
    policy.learn(progress_bar=False)
    policy.save(tmp_path / "policy")
    loaded = GACPolicy.load(tmp_path / "policy", device="cpu")
    observation = np.random.default_rng(0).normal(size=(4, STATE)).astype(np.float32)
    for kind in ("max", "plus", "target", "prior", "best"):
        policy.query = loaded.query = kind  # type: ignore[assignment]
        found = [each.predict(observation, deterministic=True)[0] for each in (policy, loaded)]
        np.testing.assert_array_equal(*found)
    for name in ("returns", "surprise_limit", "shortfall_limit", "longest", "moves"):
        assert torch.equal(getattr(policy.model, name), getattr(loaded.model, name))
    assert policy.model.surprise_limit < 1e20
    assert not any("store" in key for key in loaded.model.state_dict())


def test_a_policy_keeps_the_trigger_that_was_set(tmp_path: Path) -> None:
    policy = GACPolicy(trained())
    policy.model.trigger = "surprise"
    policy.save(tmp_path / "policy")
    loaded = GACPolicy.load(tmp_path / "policy", device="cpu").model
    assert isinstance(loaded, GACModel)
    for kept in (loaded, policy.model.changed(query_steps=3)):
        assert kept.trigger == "surprise"
        assert kept.remembers_episodes
    assert policy.model.changed(trigger="promise", held_out=0.1).trigger == "promise"


def test_a_policy_keeps_the_query_that_was_set(tmp_path: Path) -> None:
    policy = GACPolicy(trained())
    policy.query = Query(kind="target", asked_return=-2.0, steps=7)
    policy.save(tmp_path / "policy")
    for cls in (GACPolicy, AgentPolicy):
        assert cls.load(tmp_path / "policy", device="cpu").model.query == policy.query
    save(policy.model, tmp_path / "model")
    agent, _ = load(tmp_path / "model")
    assert isinstance(agent, GACModel)
    assert agent.query == policy.query
    observation = np.zeros((2, STATE), np.float32)
    loaded = GACPolicy.load(tmp_path / "policy", device="cpu")
    found = [each.predict(observation, deterministic=True)[0] for each in (policy, loaded)]
    np.testing.assert_array_equal(*found)
    with pytest.raises(ValueError, match=r"query is 'bset'; allowed: \('max'"):
        policy.query = "bset"


def test_a_wrong_number_of_starts_is_refused() -> None:
    policy, observation = GACPolicy(trained()), np.zeros((3, STATE), np.float32)
    _, state = policy.predict(observation)
    for starts in ([True], [True, False]):
        with pytest.raises(ValueError, match=f"episode_start has {len(starts)} entries; .* 3"):
            policy.predict(observation, state, np.array(starts))


def test_predict_carries_the_plan_in_its_state() -> None:
    policy = GACPolicy(trained(context=3))
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(6, 3, STATE)).astype(np.float32)
    state, actions = None, []
    for number, observation in enumerate(observations):
        start = np.array([False, number == 2, False])
        action, state = policy.predict(observation, state, start, deterministic=True)
        actions.append(action)
    for row, parts in ((0, [slice(0, 6)]), (1, [slice(0, 2), slice(2, 6)])):
        for part in parts:
            own = None
            for number in range(part.start, part.stop):
                single, own = policy.predict(observations[number, row], own, deterministic=True)
                np.testing.assert_allclose(single, actions[number][row], atol=1e-5)


def test_evaluation_does_not_depend_on_the_number_of_environments() -> None:
    policy = GACPolicy(trained())
    found = [
        evaluate(policy, lambda: PointEnv(5, 4), episodes=5, num_envs=count, progress_bar=False)
        for count in (1, 2, 5)
    ]
    for other in found[1:]:
        returns = [[each.episode_return for each in results] for results in (found[0], other)]
        assert returns[0] == pytest.approx(returns[1], abs=1e-4)
        assert [each.length for each in other] == [each.length for each in found[0]]


def test_only_a_target_without_a_number_heeds_the_return_asked_for() -> None:
    model = trained()
    policy = GACPolicy(model)
    observation = np.zeros((1, STATE), np.float32)

    def promise(asked: float) -> float:
        unheeded = pytest.warns(UserWarning, match="nothing would come of it")
        with nullcontext() if policy.told_return else unheeded:
            policy.target_return = asked
        state = policy.predict(observation, deterministic=True)[1]
        assert state is not None
        names = list(model.initial_state(1).keys())
        return float(state[names.index("promise")][0, 0])

    low, high = (float(model.returns[index]) for index in (0, -1))
    assert not policy.told_return
    assert promise(low) == promise(high)
    policy.query = "target"
    assert policy.told_return
    assert promise(high) > promise(low)
    policy.query = Query(kind="target", asked_return=high)
    assert not policy.told_return
    assert promise(low) == promise(high)
    policy.query = "max"
    with model.exploring():
        assert policy.told_return
    assert model.query == Query.of(model.config)


@pytest.mark.parametrize("trigger", ["never", "surprise"])
def test_the_actor_keeps_its_plan_in_the_tensordict(trigger: str) -> None:
    model = trained(held_out=0.3, trigger=trigger)
    actor = GACActor(model)
    env = TransformedEnv(
        SerialEnv(2, [lambda: GymWrapper(PointEnv(4)), lambda: GymWrapper(PointEnv(7))]),
        actor.make_env_transforms(),
    )
    env.set_seed(0)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        rollout = env.rollout(11, actor, break_when_any_done=False)
    env.close()
    noise = rollout["next", "agent_memory", "noise"]
    for row, length in ((0, 4), (1, 7)):
        for begin in range(0, 11, length):
            part = rollout[row, begin : begin + length]
            state = None
            for step in part.unbind(0):
                action, state = model.decide(step["observation"][None], torch.zeros(1, 1), state)
                torch.testing.assert_close(step["action"], action[0], atol=1e-5, rtol=1e-4)
        assert not torch.equal(noise[row, length - 1], noise[row, length]), "a plan of its own"
        if trigger == "never":
            assert torch.equal(noise[row, 0], noise[row, length - 1]), "kept for the episode"


def test_the_actor_takes_batches_of_two_dimensions() -> None:
    model = trained()
    actor = GACActor(model)
    observation = torch.randn(2, 3, STATE)
    memory = model.initial_state(6).reshape(2, 3)
    batch = TensorDict(
        {
            "observation": observation,
            "agent_memory": memory,
            "is_init": torch.ones(2, 3, 1, dtype=torch.bool),
        },
        batch_size=[2, 3],
    )
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        acted = actor(batch)
    expected, state = model.decide(observation.flatten(0, 1), torch.zeros(6, 1), None)
    torch.testing.assert_close(acted["action"].flatten(0, 1), expected)
    torch.testing.assert_close(acted["next", "agent_memory", "noise"].flatten(0, 1), state["noise"])


def test_a_trained_model_that_learns_on_does_not_fall_back() -> None:
    """q of all trajectories is fitted before the first step, instead of starting at random."""
    dataset = tiny_dataset((12,) * 16)
    model = GACModel.from_dataset(dataset, tiny_config(steps=300, batch_size=16), seed=0)
    (stage,) = model.stages(dataset)
    stage.begin()
    batch = next(stage.batches())

    def kl(stage: Any) -> float:
        with torch.no_grad():
            torch.manual_seed(0)
            return float(stage.loss.train()(batch)["kl"])

    assert kl(stage) > 10
    fit(model, dataset, device="cpu", progress_bar=False)
    (stage,) = model.stages(dataset)
    assert kl(stage) > 10, "not yet"
    stage.begin()
    assert kl(stage) < 10
