"""Algorithm 2: what is asked for, what is collected, and that a killed run loses nothing."""

import contextlib
import functools
import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mage_agent import MAGEConfig, MAGEPolicy, MAGETokenizerLoss, online
from mage_agent.gac import queries
from mage_agent.gac.model import GACModel
from mage_agent.gac.policy import GACPolicy
from mage_agent.online import OnlineStage, _asked, _columns, learn_online
from mage_agent.policy import AgentPolicy
from mage_agent.stage import Stage, total_loss
from tests.gac.point import PointEnv
from tests.gac.tiny import tiny_config, tiny_dataset


def gac_policy(**changes: Any) -> GACPolicy:
    policy = GACPolicy.from_dataset(
        tiny_dataset(), tiny_config(**{"steps": 20, **changes}), device="cpu"
    )
    return policy.learn(progress_bar=False)


def run(policy: AgentPolicy, env: type[PointEnv] = PointEnv, **changes: Any) -> list[OnlineStage]:
    arguments = {"stages": 2, "episodes": 5, "steps": 12, "num_envs": 3, "progress_bar": False}
    arguments |= {"dataset": tiny_dataset()}
    return learn_online(policy, lambda: env(6, 4), **{**arguments, **changes})


def test_returns_above_the_quantile_are_asked_for() -> None:
    policy = gac_policy()
    buffer = _columns(policy.model, tiny_dataset())
    starts = buffer["step_count"].flatten() == 0
    returns = policy.model.returns_to_go(buffer)[starts].flatten().double().numpy()
    asked = _asked(policy.model, buffer, 1000, 0.5, 2.0, seed=0)
    upper = returns[returns > np.quantile(returns, 0.5)] + 2.0
    assert set(asked) == set(upper)
    np.testing.assert_array_equal(asked, _asked(policy.model, buffer, 1000, 0.5, 2.0, seed=0))
    assert not np.array_equal(asked, _asked(policy.model, buffer, 1000, 0.5, 2.0, seed=1))
    default = _asked(policy.model, buffer, 1, 0.99, None, seed=0)
    assert default[0] == pytest.approx(returns.max() + 0.1 * returns.std())


def test_stages_collect_learn_and_report() -> None:
    policy = gac_policy()
    mean = policy.model.units.observation.mean.clone()
    seen: list[tuple[int, Any]] = []
    before = {key: value.clone() for key, value in policy.model.state_dict().items()}

    def note(given: AgentPolicy, stage: OnlineStage) -> None:
        assert given is policy
        seen.append((stage.number, policy.model.returns.clone()))

    results = run(policy, callback=note, elite_fraction=1.0)
    assert [number for number, _ in seen] == [1, 2]
    for result in results:
        assert result.asked.shape == result.returns.shape == (5,)
        assert result.steps == 12
    # Statistics stay, the returns that can be asked for grow, and the weights move.
    assert torch.equal(policy.model.units.observation.mean, mean)
    for result, (_, returns) in zip(results, seen, strict=True):
        for value in result.returns:
            assert (returns - float(value)).abs().min() < 1e-4
    moved = policy.model.critic[0].weight
    assert not torch.equal(moved, before["critic.0.weight"])
    assert policy.query.kind == "max", "as it was"


def test_every_episode_is_asked_for_its_own_return(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = gac_policy()
    asked: list[float] = []
    decide = type(policy.model).decide

    def spy(self: Any, observation: Any, return_to_go: Any, state: Any, **kwargs: Any) -> Any:
        begins = state["length"].flatten() == 0
        asked.extend(return_to_go[begins].flatten().tolist())
        assert kwargs["temperature"] > 0, "plans are sampled"
        return decide(self, observation, return_to_go, state, **kwargs)

    monkeypatch.setattr(type(policy.model), "decide", spy)
    (result,) = run(policy, stages=1, episodes=4, num_envs=2)
    assert set(np.float32(result.asked)) <= set(np.float32(asked))


def test_a_killed_run_loses_nothing(tmp_path: Path) -> None:
    whole = gac_policy()
    expected = run(whole, folder=tmp_path / "whole")
    killed = gac_policy()

    def kill(policy: AgentPolicy, stage: OnlineStage) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(killed, folder=tmp_path / "killed", callback=kill)
    # The second time, in the second stage, before its training.
    again = gac_policy()
    env_steps = 0

    class Counted(PointEnv):
        def step(self, action: Any) -> Any:
            nonlocal env_steps
            env_steps += 1
            return super().step(action)

    found = run(again, Counted, folder=tmp_path / "killed")
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one.asked, other.asked)
        np.testing.assert_allclose(one.returns, other.returns)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert env_steps <= 5 * 9, "the first stage's episodes are not run again"


@pytest.mark.parametrize(
    ("owner", "call"),
    [
        (PointEnv, 20),  # while the first stage collects
        (Stage, 12 + 7),  # while the second one trains, after a checkpoint
    ],
)
def test_a_run_killed_within_a_stage_loses_nothing(
    owner: type[Any], call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gac_policy()
    expected = run(whole, folder=tmp_path / "whole")
    often = functools.partial(online.fit, checkpoint_interval=4)
    monkeypatch.setattr(online, "fit", often)
    policy, calls, step = gac_policy(), itertools.count(), owner.step

    def die(*args: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as killing:
        killing.setattr(owner, "step", die)
        with pytest.raises(KeyboardInterrupt):
            run(policy, folder=tmp_path / "killed")
    for again in (gac_policy(), policy):  # in another process, and in the same one
        found = run(again, folder=tmp_path / "killed")
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one.asked, other.asked)
            np.testing.assert_array_equal(one.returns, other.returns)
        for key, value in whole.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[key]), key


def test_episodes_collected_before_a_kill_are_kept(tmp_path: Path) -> None:
    expected = run(gac_policy(), stages=1, episodes=7, num_envs=1, folder=tmp_path / "whole")[0]
    begun = 0

    class Dies(PointEnv):
        def reset(self, **options: Any) -> Any:
            nonlocal begun
            begun += 1
            if begun == 7:
                raise ConnectionError("the robot is gone")
            return super().reset(**options)

    policies = [gac_policy() for _ in range(3)]
    for attempt, policy in enumerate(policies):  # four of seven the first time
        if attempt == 1:
            moved = policies[0].learn(progress_bar=False, steps=1)
            with pytest.raises(ValueError, match="weights was"):
                run(moved, stages=1, episodes=7, num_envs=1, folder=tmp_path / "killed")
        with contextlib.suppress(ConnectionError):
            (found,) = run(
                policy, Dies, stages=1, episodes=7, num_envs=1, folder=tmp_path / "killed"
            )
    assert begun < 7 + 7
    np.testing.assert_array_equal(expected.returns, found.returns)
    earned = found.data["next", "reward"].flatten()
    sums = torch.zeros(7).index_add(0, found.data["episode"], earned)
    np.testing.assert_allclose(sums, found.returns, atol=1e-5)


def test_stages_may_learn_from_the_best_episodes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, seen = gac_policy(), []
    real = online.fit

    def fit(agent: Any, dataset: TensorDict, **options: Any) -> Any:
        starts = dataset["step_count"].flatten() == 0
        seen.append(agent.returns_to_go(dataset)[starts].flatten())
        return real(agent, dataset, **options)

    monkeypatch.setattr(online, "fit", fit)
    (result,) = run(policy, stages=1, elite_fraction=0.5)
    dataset = tiny_dataset()
    starts = dataset["step_count"].flatten() == 0
    old = policy.model.returns_to_go(dataset)[starts].flatten().tolist()
    best = sorted([*old, *result.returns.tolist()])[-6:]  # of 8 and 5
    assert sorted(seen[0].tolist()) == pytest.approx(best, abs=1e-5)
    # What "plus" asks for follows from all returns, not from those of the elite alone.
    asked = policy.model.returns[[0, -1]].tolist()
    assert asked == pytest.approx([min(old + result.returns.tolist()), best[-1]], abs=1e-5)
    (result,) = run(gac_policy(), stages=1)
    assert len(seen[1]) == 3, "by default a quarter of 8 and 5"


def test_configurations_and_targets_may_change_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = gac_policy()
    changes = [{"learning_rate": 1e-5, "batch_size": 2}, {"learning_rate": 1e-4}]
    run(policy, changes=changes, quantile=[0.8, 0.6], increment=[1.0, 0.5])
    assert policy.config.learning_rate == 1e-4
    assert policy.config.batch_size == 2
    # A stage asks for what the stage before it was told, as Table 7 is read.
    seen = []

    def asked(agent: Any, *arguments: Any, **options: Any) -> Any:
        seen.append((agent.config.quantile, options["quantile"]))
        return _asked(agent, *arguments, **options)

    monkeypatch.setattr(online, "_asked", asked)
    run(gac_policy(quantile=0.7), changes=[{"quantile": 0.5, "increment": 2.0}])
    assert seen == [(0.7, None), (0.5, None)]


def test_what_the_configuration_says_is_asked_for() -> None:
    policy = gac_policy(quantile=0.5, increment=2.0)
    buffer = _columns(policy.model, tiny_dataset())
    asked = [_asked(policy.model, buffer, 9, *to, seed=0) for to in ((None, None), (0.5, 2.0))]
    np.testing.assert_array_equal(*asked)


def test_changed_stages_resume_in_the_same_process(tmp_path: Path) -> None:
    changes = [{"learning_rate": 1e-2}, {"batch_size": 2, "outer_steps": 2}]
    policy = gac_policy()
    began = policy.config
    for _ in range(2):
        found = run(policy, changes=changes, steps=None, folder=tmp_path)
        assert [stage.steps for stage in found] == [4, 4]
        assert policy.config == began.replace(**changes[0]).replace(**changes[1])
    with pytest.raises(ValueError, match=r"changes was \{'learning_rate': 0.01\} and is"):
        run(gac_policy(), changes=[{"learning_rate": 1e-6}], folder=tmp_path)


def test_a_call_that_collected_nothing_binds_nobody(tmp_path: Path) -> None:
    class Broken(PointEnv):
        def reset(self, **options: Any) -> Any:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        run(gac_policy(), Broken, folder=tmp_path)
    assert len(run(gac_policy(steps=21), seed=5, folder=tmp_path)) == 2


def test_a_refused_call_leaves_the_policy_as_it_is(tmp_path: Path) -> None:
    policy = gac_policy()
    run(policy, folder=tmp_path)
    before = {key: value.clone() for key, value in policy.model.state_dict().items()}
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        run(policy, folder=tmp_path, seed=1)
    for key, value in policy.model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.filterwarnings("ignore:all . episodes have the return 1")
def test_more_than_the_best_is_asked_for_in_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sparse(PointEnv):
        def step(self, action: Any) -> Any:
            state, _, terminated, truncated, info = super().step(action)
            return state, float(truncated), terminated, truncated, info

    dataset = tiny_dataset()
    dataset["next", "reward"] = dataset["next", "done"].float()
    dataset["next", "reward"][: len(dataset) // 2] = 0
    policy = GACPolicy.from_dataset(dataset, tiny_config(steps=20), device="cpu")
    policy.learn(progress_bar=False)
    heeded = []
    real = queries.asked_values

    def values(model: Any, *arguments: Any, **options: Any) -> Any:
        standardised = real(model, *arguments, **options)
        heeded.append(model.normalize_value.inverse(standardised[:, None]))
        return standardised

    monkeypatch.setattr(queries, "asked_values", values)
    options = {"episodes": 4, "steps": 8, "increment": 0.5, "elite_fraction": 0.3}
    learn_online(
        policy, lambda: Sparse(6), dataset=dataset, stages=2, progress_bar=False, **options
    )
    torch.testing.assert_close(torch.cat(heeded), torch.full((8, 1), 1.5))


def test_mage_learns_online_too() -> None:
    config = MAGEConfig(
        horizon=6,
        temporal_stride=3,
        num_scales=2,
        codebook_size=8,
        code_dim=4,
        width=16,
        num_blocks=1,
        num_heads=2,
        num_autoencoder_blocks=1,
        batch_size=8,
        tokenizer_steps=2,
        generator_steps=2,
        discount=0.9,
    )
    policy = MAGEPolicy.from_dataset(tiny_dataset(), config, device="cpu")
    policy.learn(progress_bar=False)
    before = [weights.clone() for weights in policy.model.inverse_dynamics.parameters()]
    results = run(policy, stages=1, steps=6)
    assert np.isfinite(results[0].returns).all()
    # Six small steps: what inverse dynamics knew is not thrown away, nor read off fine tokens.
    tokenizer = policy.model.stages(tiny_dataset())[0].loss
    assert isinstance(tokenizer, MAGETokenizerLoss)
    assert "inverse_dynamics" not in tokenizer.trains
    tokenizer(next(policy.model.stages(tiny_dataset())[0].batches()))
    total_loss(tokenizer(next(policy.model.stages(tiny_dataset())[0].batches()))).backward()
    assert all(weight.grad is None for weight in policy.model.inverse_dynamics.parameters())
    fresh = MAGEPolicy.from_dataset(tiny_dataset(), config, device="cpu").model
    assert "inverse_dynamics" in dict(fresh.stages(tiny_dataset())[0].loss.networks())
    after = policy.model.inverse_dynamics.parameters()
    assert all(torch.allclose(*pair, atol=0.05) for pair in zip(before, after, strict=True))
    # Returns asked for are discounted, as the agent counts them.
    assert results[0].asked.max() < 1.1 * 1 / (1 - 0.9)


class Named(gym.Wrapper[Any, Any, Any, Any]):
    """A point whose observation has a name."""

    def __init__(self, name: str, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.name = name
        self.observation_space = gym.spaces.Dict({name: env.observation_space})

    def reset(self, **options: Any) -> Any:
        observation, info = self.env.reset(**options)
        return {self.name: observation}, info

    def step(self, action: Any) -> Any:
        observation, *others = self.env.step(action)
        return ({self.name: observation}, *others)


@pytest.mark.parametrize(("ours", "theirs"), [("/odom", "/odom"), ("state", "observation")])
def test_entries_of_any_name_are_collected_and_taken_up(
    ours: str, theirs: str, tmp_path: Path
) -> None:
    dataset = tiny_dataset()
    dataset.rename_key_("observation", ours)
    dataset["next"].rename_key_("observation", ours)
    policy = GACPolicy.from_dataset(dataset, tiny_config(observation_keys=[ours]), device="cpu")
    policy.learn(steps=2, progress_bar=False)
    options: dict[str, Any] = {"dataset": dataset, "folder": tmp_path, "stages": 1, "steps": 2}
    options |= {"episodes": 4, "progress_bar": False}

    def make_env() -> Named:
        return Named(theirs, PointEnv(6, 4))

    (first,) = learn_online(policy, make_env, **options)
    (again,) = learn_online(policy, make_env, **options)
    assert (first.data[ours] == again.data[ours]).all()


def test_bad_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="stages is 0"):
        run(gac_policy(), stages=0)
    with pytest.raises(ValueError, match="elite_fraction is 0"):
        run(gac_policy(), elite_fraction=0.0)
    with pytest.raises(ValueError, match=r"quantile is 1.8 in a stage"):
        run(gac_policy(), quantile=[0.5, 1.8], stages=2)
    with pytest.raises(ValueError, match=r"increment is inf in a stage; it must be finite"):
        run(gac_policy(), increment=[0.5, float("inf")], stages=2)
    for name in ("steps", "num_envs"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
            run(gac_policy(), **{name: 0})
    with pytest.raises(TypeError, match=r"one such dictionary for each stage, a list"):
        run(gac_policy(), changes={"steps": 5})


def test_changes_of_what_was_learned_are_refused_before_the_work() -> None:
    for change in ({"width": 32}, {"num_heads": 1}, {"trajectory_steps": 3}):
        (name,) = change
        with pytest.raises(
            ValueError, match=rf"{name} cannot change: .* What may change: \['asked_"
        ):
            run(gac_policy(), changes=[change])
    # A stage goes on with what the stage before it was told.
    told = [{"held_out": 0.2, "trigger": "surprise"}, {"held_out": 0.0}]
    with pytest.raises(ValueError, match="held_out is 0"):
        run(gac_policy(), changes=told)


def test_a_run_goes_on_whatever_its_last_stage_was_told(tmp_path: Path) -> None:
    told = [{"held_out": 0.0}, {"held_out": 0.2, "trigger": "promise"}]
    policy = gac_policy()
    first = run(policy, changes=told, folder=tmp_path)
    again = run(policy, changes=told, folder=tmp_path)
    assert [each.returns.tolist() for each in again] == [each.returns.tolist() for each in first]


def test_changes_reach_the_query_and_the_trigger(tmp_path: Path) -> None:
    policy = gac_policy()
    policy.query = "plus"
    change = {"query_steps": 3, "quantile": 0.3, "held_out": 0.2, "trigger": "promise"}
    changes = [{}, change]
    run(policy, changes=changes, folder=tmp_path)
    model = policy.model
    assert isinstance(model, GACModel)
    told = (model.query.kind, model.query.steps, model.query.quantile, model.trigger)
    assert told == ("plus", 3, 0.3, "promise")
    assert model.shortfall_limit < 1e20
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    policy.query = "prior"  # a run goes on from where it began
    run(policy, changes=changes, folder=tmp_path)
    assert (model.query.kind, model.query.steps, model.trigger) == ("plus", 3, "promise")
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run(gac_policy(), folder=tmp_path)
    with pytest.raises(ValueError, match=r"comes from another run: seed was 0 and is 5; give the"):
        run(gac_policy(), folder=tmp_path, seed=5)
    with pytest.raises(ValueError, match=r"elite_fraction was 0.25 and is 0.5"):
        run(gac_policy(), folder=tmp_path, elite_fraction=0.5)
    with pytest.raises(ValueError, match=r"another run: dataset was \w+ and is \w+; give"):
        run(gac_policy(), folder=tmp_path, dataset=tiny_dataset(seed=9))
    assert len(run(gac_policy(), folder=tmp_path, stages=3)) == 3  # to go on is no other run
    same = gac_policy()
    run(same, folder=tmp_path)
    run(same, folder=tmp_path, stages=3)
    same.learn(progress_bar=False, steps=1)
    with pytest.raises(ValueError, match="weights was"):  # not what it ended with
        run(same, folder=tmp_path, stages=3)
    other = gac_policy(steps=21)
    with pytest.raises(
        ValueError, match=r"comes from another run: weights was \w+ and is \w+; give"
    ):
        run(other, folder=tmp_path)


def test_a_folder_takes_numpys_numbers(tmp_path: Path) -> None:
    numbers = {"episodes": np.int64(5), "quantile": np.float32(0.5)}
    assert len(run(gac_policy(), folder=tmp_path, **numbers)) == 2


def test_new_episodes_are_numbered_past_all_others() -> None:
    from mage_agent.online import _append

    old, new = tiny_dataset(), tiny_dataset()
    highest = int(old["episode"].max())
    old["episode"] = highest - old["episode"]  # the last one has the lowest number
    joined = _append(old, new)
    assert int(joined["episode"].max()) == 2 * highest + 1
    assert len(joined["episode"].unique()) == 2 * highest + 2


def test_recorded_episodes_are_what_happened() -> None:
    """The buffer of a run with one stage, read from its folder."""
    from mage_agent.online import _collect

    policy = gac_policy()
    asked = np.array([1.0, 2.0, 3.0])
    new, returns = _collect(policy, lambda: PointEnv(6, 4), asked, 10**6, 2, False)
    assert isinstance(new, TensorDict)
    for number in range(3):
        part = new[new["episode"] == number]
        assert float(part["next", "reward"].sum()) == pytest.approx(returns[number], abs=1e-5)
        assert part["next", "done"].flatten().tolist() == [False] * (len(part) - 1) + [True]
        drift = torch.cat([part["action"], part["action"].sum(1, keepdim=True)], dim=1)
        change = part["next", "observation"] - part["observation"]
        torch.testing.assert_close(change, 0.1 * drift, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(part["observation"][1:], part["next", "observation"][:-1])
