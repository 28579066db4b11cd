"""The actor inside TorchRL: any batch shape, exploration types, environments and collectors."""

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import Bounded, OneHot
from torchrl.envs import GymEnv, GymWrapper, ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, check_env_specs, set_exploration_type

from mage_agent import AgentActor, Config, MAGEActor, load_dataset
from mage_agent.data import observation_keys
from tests.acting import GOAL_KEYS, Echo, Reach, make_model

deterministic = partial(set_exploration_type, ExplorationType.DETERMINISTIC)


SIZES = dict(zip(GOAL_KEYS, (3, 2, 2), strict=True))


def inputs(*batch: int, size: int = 3) -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    return TensorDict(
        {
            "observation": torch.randn(*batch, size, generator=generator),
            "return_to_go": 20 * torch.randn(*batch, 1, generator=generator),
        },
        batch_size=batch,
    )


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 1, 4)])
def test_any_batch_shape_gives_each_row_its_own_action(batch: tuple[int, ...]) -> None:
    actor = MAGEActor(make_model())
    with deterministic():
        action = actor(inputs(*batch))["action"]
        rows = torch.stack([actor(row)["action"] for row in inputs(*batch).reshape(-1)])
    assert action.shape == (*batch, 1)
    torch.testing.assert_close(action.reshape(-1, 1), rows, atol=1e-3, rtol=1e-3)


def test_equals_the_models_act_and_depends_on_both_inputs() -> None:
    model = make_model()
    actor, td = MAGEActor(model), inputs(50)
    with deterministic():
        action = actor(td.clone())["action"]
        torch.testing.assert_close(action, model.act(td["observation"], td["return_to_go"]))
        assert (
            action != actor(td.clone().set("return_to_go", -td["return_to_go"]))["action"]
        ).any()
        assert (action != actor(td.clone().set("observation", -td["observation"]))["action"]).any()
    assert not action.requires_grad
    assert action.abs().max() <= 1


def test_exploration_type_chooses_between_argmax_and_samples() -> None:
    actor, td = MAGEActor(make_model(temperature=2.0)), inputs(20)

    def act(kind: ExplorationType, seed: int) -> torch.Tensor:
        actor.module.generator = torch.Generator().manual_seed(seed)
        with set_exploration_type(kind):
            action: torch.Tensor = actor(td.clone())["action"]
        return action

    best = act(ExplorationType.DETERMINISTIC, 0)
    assert torch.equal(best, act(ExplorationType.DETERMINISTIC, 1))
    assert torch.equal(best, act(ExplorationType.MODE, 1))
    sampled = act(ExplorationType.RANDOM, 0)
    assert torch.equal(sampled, act(ExplorationType.RANDOM, 0))
    assert not torch.equal(sampled, act(ExplorationType.RANDOM, 1))
    assert not torch.equal(sampled, best)


def test_acting_ignores_dropout_and_leaves_the_training_mode_as_it_was() -> None:
    model = make_model()
    actor, td = MAGEActor(model), inputs(20)
    with deterministic():
        expected = actor(td.clone())["action"]
        model.train()
        model.encoder.eval()  # a part that is frozen must stay so
        before = [module.training for module in model.modules()]
        assert torch.equal(actor(td.clone())["action"], expected)
    assert [module.training for module in model.modules()] == before


BATCHED = {
    "single": lambda: GymEnv("Pendulum-v1"),
    "serial": lambda: SerialEnv(2, partial(GymEnv, "Pendulum-v1")),
    "parallel": lambda: ParallelEnv(2, partial(GymEnv, "Pendulum-v1")),
    "gym_vector": lambda: GymEnv("Pendulum-v1", num_envs=2),
}


# torchrl wraps a vectorised environment in a transform of its own and announces the merge.
@pytest.mark.filterwarnings("ignore:Nested TransformedEnvs")
@pytest.mark.parametrize("name", BATCHED)
def test_rolls_out_in_every_kind_of_environment(name: str) -> None:
    model = make_model()
    actor = MAGEActor(model)
    env = TransformedEnv(BATCHED[name](), actor.make_env_transforms(target_return=-30.0))
    check_env_specs(env)
    with deterministic():
        rollout = env.rollout(203, actor, break_when_any_done=False)
    asked, reward = rollout["return_to_go"], rollout["next", "reward"]
    assert asked.dtype == torch.float32
    torch.testing.assert_close(asked[..., [0, 200], :], torch.full_like(reward[..., :2, :], -30))
    torch.testing.assert_close(
        asked[..., 1:200, :], model.units.update_return_to_go(asked, reward)[..., :199, :]
    )
    # Pendulum's actions reach to 2, the data's to 1: the actor stays inside the data's bounds.
    assert rollout["action"].abs().max() <= 1
    torch.testing.assert_close(
        rollout["action"], model.act(rollout["observation"], asked), atol=1e-4, rtol=1e-4
    )
    assert rollout["is_init"][..., [0, 200], :].all()
    env.close()


def test_goal_environments_with_partial_resets_and_a_target_each() -> None:
    sizes = dict(zip(GOAL_KEYS, (3, 2, 2), strict=True))
    model = make_model(sizes, 2, observation_keys=GOAL_KEYS)
    actor = MAGEActor(model)
    assert actor.in_keys == [*GOAL_KEYS, "return_to_go"]
    makers = [lambda length=length: GymWrapper(Reach(length)) for length in (2, 3)]
    transforms = actor.make_env_transforms(target_return=torch.tensor([10.0, 15.0]))
    env = TransformedEnv(SerialEnv(2, makers), transforms)
    check_env_specs(env)
    rollout = env.rollout(12, actor, break_when_any_done=False)
    for i, (length, target) in enumerate([(2, 10.0), (3, 15.0)]):
        starts = rollout["return_to_go"][i, ::length]
        torch.testing.assert_close(starts, torch.full_like(starts, target))
        second = rollout["return_to_go"][i, 1::length]
        torch.testing.assert_close(second, torch.full_like(second, (target - 1) / 0.99))
    ends = rollout["next", "episode_reward"][rollout["next", "done"]]
    assert set(ends.tolist()) == {3.0, 6.0}


def test_collector() -> None:
    actor = MAGEActor(make_model())
    env = TransformedEnv(
        SerialEnv(2, partial(GymEnv, "Pendulum-v1")), actor.make_env_transforms(-30.0)
    )
    collector = Collector(env, actor, frames_per_batch=20, total_frames=40)
    batches = [batch.clone() for batch in collector]
    assert [batch.shape for batch in batches] == [(2, 10), (2, 10)]
    # The return-to-go is tracked from batch to batch.
    torch.testing.assert_close(
        batches[1]["return_to_go"][:, 0], batches[0]["next", "return_to_go"][:, -1]
    )
    collector.shutdown()


def test_target_defaults_to_the_models() -> None:
    model = make_model(target_quantile=0.5)
    env = TransformedEnv(GymEnv("Pendulum-v1"), MAGEActor(model).make_env_transforms())
    assert env.reset()["return_to_go"].item() == pytest.approx(-15) == model.units.target_return


def test_spec_and_keys() -> None:
    model = make_model()
    actor = MAGEActor(
        model,
        in_keys=[("agent", "state"), ("agent", "target")],
        out_keys=[("agent", "action")],
        spec=Bounded(-1, 1, (1,)),
    )
    td = TensorDict({"agent": {"state": torch.randn(4, 3), "target": torch.randn(4, 1)}}, [4])
    assert actor(td)["agent", "action"].shape == (4, 1)
    assert actor.spec["agent", "action"].shape == (1,)
    with pytest.raises(ValueError, match="one entry for each of"):
        MAGEActor(model, in_keys=["observation"])
    with pytest.raises(ValueError, match="1 continuous actions"):
        MAGEActor(model, spec=Bounded(-1, 1, (2,)))
    with pytest.raises(ValueError, match="1 continuous actions"):
        MAGEActor(model, spec=OneHot(1))


def test_observation_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="last axis must be 3"):
        MAGEActor(make_model())(inputs(2, size=4))


def test_missing_return_to_go_is_an_error_that_names_it() -> None:
    with pytest.raises(KeyError, match="return_to_go"):
        GymEnv("Pendulum-v1").rollout(2, MAGEActor(make_model()))
    with pytest.raises(KeyError, match=r"by itself, actor\.make_env_transforms\(\) adds to it"):
        MAGEActor(make_model())(inputs(2).exclude("return_to_go"))


def test_an_error_inside_the_agent_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    monkeypatch.setattr(type(model), "decide", lambda *args, **kwargs: {}["my table"])
    with pytest.raises(KeyError, match=r"^'my table'$"):
        MAGEActor(model)(inputs(2))


class TestMemory:
    def expected(self, rollout: TensorDict) -> torch.Tensor:
        """What ``Echo`` should do at every step of a rollout (B, T), by a plain loop."""
        rows = []
        for observed, starts in zip(rollout["observation"], rollout["is_init"], strict=True):
            seen: list[torch.Tensor] = []
            for one, start in zip(observed[..., 0], starts, strict=True):
                seen = [one] if start else [*seen, one][-3:]
                rows.append(torch.stack(seen).mean())
        return torch.stack(rows).view(*rollout.shape, 1)

    @pytest.mark.parametrize("make", [SerialEnv, ParallelEnv])
    def test_is_carried_by_the_tensordict_and_reset_row_by_row(self, make: Any) -> None:
        actor = AgentActor(
            Echo(Config(observation_keys=GOAL_KEYS), observation_dim=SIZES, action_dim=2)
        )
        memory = [("agent_memory", name) for name in ("length", "observation")]
        assert actor.in_keys == [*GOAL_KEYS, *memory, "is_init"]
        makers = [partial(make_reach, length) for length in (2, 5)]
        env = TransformedEnv(make(2, makers), actor.make_env_transforms())
        check_env_specs(env)
        rollout = env.rollout(13, actor, break_when_any_done=False)
        torch.testing.assert_close(rollout["action"], self.expected(rollout).expand(-1, -1, 2))
        assert rollout["next", "agent_memory", "length"].max() == 3
        env.close()

    def test_goes_on_from_batch_to_batch_of_a_collector(self) -> None:
        actor = AgentActor(
            Echo(Config(observation_keys=GOAL_KEYS), observation_dim=SIZES, action_dim=2)
        )
        makers = [partial(make_reach, length) for length in (4, 7)]
        env = TransformedEnv(SerialEnv(2, makers), actor.make_env_transforms())
        collector = Collector(env, actor, frames_per_batch=10, total_frames=30)
        batches = [batch.clone() for batch in collector]
        whole = torch.cat(batches, dim=1)
        torch.testing.assert_close(whole["action"], self.expected(whole).expand(-1, -1, 2))
        collector.shutdown()
        loaded = load_dataset(whole, action_low=-1.0, action_high=1.0)
        assert set(observation_keys(loaded)) == set(GOAL_KEYS), "a memory is no observation"

    @pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
    def test_any_batch_shape(self, batch: tuple[int, ...]) -> None:
        agent = Echo(Config(), observation_dim=3, action_dim=1)
        actor = AgentActor(agent)
        td = inputs(*batch).exclude("return_to_go")
        td["is_init"] = torch.ones(*batch, 1, dtype=torch.bool)
        count = td.numel() if batch else 1
        td["agent_memory"] = (
            agent.initial_state(count).reshape(batch) if batch else agent.initial_state(1)[0]
        )
        after = actor(td)
        torch.testing.assert_close(after["action"], td["observation"][..., :1])
        assert after["next", "agent_memory", "length"].shape == (*batch, 1)
        again = td.exclude("next", "action").update({"agent_memory": after["next", "agent_memory"]})
        again["is_init"] = torch.zeros(*batch, 1, dtype=torch.bool)
        assert (actor(again)["next", "agent_memory", "length"] == 2).all()


def make_reach(length: int) -> GymWrapper:
    return GymWrapper(Reach(length))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_of_a_collector_may_ask_the_actor_for_their_transforms() -> None:
    """They get an actor without values; target and range must be there all the same."""
    actor = MAGEActor(make_model())

    def make_env() -> TransformedEnv:
        return TransformedEnv(GymEnv("Pendulum-v1"), actor.make_env_transforms())

    collector = MultiSyncCollector(
        [make_env, make_env], actor, frames_per_batch=20, total_frames=20
    )
    (batch,) = (each.clone() for each in collector)
    collector.shutdown()
    starts = batch["return_to_go"].reshape(-1)[batch["is_init"].reshape(-1)]
    assert starts.tolist() == [20.0] * len(starts)
    assert len(starts) >= 2
    ranges = batch["next", "return_to_go"]
    assert -50 <= ranges.min() <= ranges.max() <= 20
