"""A method of one's own: the example trains, resumes, acts everywhere, is saved and is scored."""

import io
import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from tensordict import TensorDict
from torchrl.envs import GymEnv, TransformedEnv

from benchmarks.methods import build_method
from examples import own_agent
from examples.own_agent import LinearAgent, LinearConfig
from mage_agent import (
    AgentActor,
    AgentPolicy,
    Progress,
    Stage,
    averaged,
    evaluate,
    fit,
    load_dataset,
    total_loss,
)
from mage_agent.checkpoint import load, save

STEPS = 60
REPOSITORY = Path(own_agent.__file__).parents[1]


@pytest.fixture
def dataset() -> TensorDict:
    rollout = GymEnv("Pendulum-v1").rollout(400, break_when_any_done=False)
    return load_dataset(rollout, action_low=-2, action_high=2)


@pytest.fixture
def agent(dataset: TensorDict) -> LinearAgent:
    return LinearAgent.from_dataset(dataset, LinearConfig(steps=STEPS))


def equal(one: LinearAgent, other: LinearAgent) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_the_file_is_short() -> None:
    assert len(Path(own_agent.__file__).read_text().splitlines()) < 60


def test_training_fits_a_linear_controller(dataset: TensorDict) -> None:
    dataset["action"] = 0.5 * dataset["observation"][:, 2:].clamp(-4, 4)
    agent = LinearAgent.from_dataset(dataset, LinearConfig(steps=300))
    before = agent.describe(dataset)["action_error"]
    fit(agent, dataset, progress_bar=False)
    assert agent.describe(dataset)["action_error"] < 0.1 * before


def test_resumed_training_equals_an_uninterrupted_one(
    agent: LinearAgent, dataset: TensorDict, tmp_path: Path
) -> None:
    class InterruptError(Exception):
        pass

    def interrupt(progress: Progress) -> None:
        raise InterruptError

    options = {"progress_bar": False, "checkpoint_path": tmp_path / "state"}
    with pytest.raises(InterruptError):
        fit(agent, dataset, **options, checkpoint_interval=20, callback=interrupt)
    resumed = LinearAgent.from_dataset(dataset, agent.config)
    fit(resumed, dataset, **options, resume=True)
    whole = LinearAgent.from_dataset(dataset, agent.config)
    assert equal(resumed, fit(whole, dataset, progress_bar=False))


class Averaged(LinearAgent):
    """Its own loss, as in the example, whose weights are averaged twice."""

    name = "linear-averaged"

    def stages(self, dataset: TensorDict) -> list[Stage]:
        return [averaged(averaged(stage, 0.5), 0.9) for stage in super().stages(dataset)]


def test_averages_do_not_enter_an_agent_that_is_its_own_loss(
    dataset: TensorDict, tmp_path: Path
) -> None:
    config = LinearConfig(steps=STEPS)
    whole = fit(Averaged.from_dataset(dataset, config), dataset, progress_bar=False)
    assert (
        whole.state_dict().keys() == LinearAgent.from_dataset(dataset, config).state_dict().keys()
    )
    save(whole, tmp_path / "policy")
    assert equal(load(tmp_path / "policy")[0], whole)
    options = {"progress_bar": False, "checkpoint_path": tmp_path / "state"}
    stopped = Averaged.from_dataset(dataset, config)
    fit(stopped, dataset, **options, callback=lambda progress: False)
    assert not equal(stopped, whole)
    resumed = fit(Averaged.from_dataset(dataset, config), dataset, **options, resume=True)
    assert equal(resumed, whole)


def test_a_loop_over_stages_equals_fit(agent: LinearAgent, dataset: TensorDict) -> None:
    fitted = fit(LinearAgent.from_dataset(dataset, agent.config), dataset, progress_bar=False)
    untrained = [weight.clone() for weight in agent.parameters()]
    for number, stage in enumerate(agent.stages(dataset)):
        stage.begin()
        optimizer = stage.make_optimizer()
        batches = stage.batches(seed=number)
        for step in range(stage.steps):
            total_loss(stage.losses(next(batches))).backward()
            stage.step(optimizer, step)
    assert equal(agent, fitted)
    assert not any(map(torch.equal, untrained, agent.parameters()))


def test_it_acts_the_same_in_every_library(agent: LinearAgent) -> None:
    policy = AgentPolicy(agent)
    venv = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    mean, _ = evaluate_policy(policy, policy.wrap(venv), n_eval_episodes=2)
    assert mean < 0

    actor = AgentActor(agent)
    env = TransformedEnv(GymEnv("Pendulum-v1"), actor.make_env_transforms())
    rollout = env.rollout(20, actor)
    action, state = policy.predict(rollout["observation"].numpy(), deterministic=True)
    torch.testing.assert_close(torch.as_tensor(action), rollout["action"])
    assert state is None

    results = evaluate(policy, lambda: gym.make("Pendulum-v1"), episodes=2, progress_bar=False)
    assert [result.length for result in results] == [200, 200]


def test_bundled_names_are_taken() -> None:
    with pytest.raises(ValueError, match=r"Mine.name is 'mage', which is the name of MAGEModel"):

        class Mine(LinearAgent):
            name = "mage"


def test_actions_of_another_shape_are_named(
    agent: LinearAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "decide", lambda *_, **__: (torch.zeros(2, 3), None))
    with pytest.raises(ValueError, match=r"shape \(2, 3\); needed are \(2, 1\)"):
        AgentPolicy(agent).predict(np.zeros((2, 3), np.float32))


def test_it_is_saved_and_loaded(agent: LinearAgent, tmp_path: Path) -> None:
    AgentPolicy(agent).save(tmp_path / "linear.agent")
    loaded = AgentPolicy.load(tmp_path / "linear.agent", device="cpu")
    assert isinstance(loaded.model, LinearAgent)
    assert loaded.model.config == agent.config
    assert equal(loaded.model, agent)

    file = io.BytesIO()
    save(agent, file)
    file.seek(0)
    assert equal(load(file)[0], agent)


@pytest.mark.slow
def test_the_suite_takes_no_more_than_its_own_steps(dataset: TensorDict) -> None:
    name = "examples.own_agent:LinearAgent"
    method = build_method(name, dataset, dataset_id="own/data-v0", seed=0, changes={"steps": 7})
    assert method.published_steps == 7


def test_the_suite_scores_it(maze_dataset: str, tmp_path: Path) -> None:
    method = "examples.own_agent:LinearAgent"
    command = [sys.executable, "benchmarks/run_suite.py", "--datasets", maze_dataset]
    command += ["--methods", method, "--seeds", "1", "--episodes", "2", "--curve-points", "0"]
    command += ["--budget", "paper", "--output", str(tmp_path / "runs")]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (record,) = map(json.loads, (tmp_path / "runs" / "records.jsonl").read_text().splitlines())
    assert (record["method"], record["status"]) == (method, "ok")
    assert len(record["scores"]) == 2
    assert record["steps"] == LinearConfig().steps
    assert record["held_out"]["action_error"] > 0
