"""The locomotion data maker: a training of SAC that can be killed, and what it leaves."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest

pytest.importorskip("mujoco")

from stable_baselines3 import SAC

from benchmarks.collect import locomotion
from benchmarks.collect.__main__ import main
from benchmarks.collect.locomotion import LocomotionRecipe, collect, episodes_of
from mage_agent import load_dataset
from mage_agent.recording import minari_root

TINY = LocomotionRecipe(
    robot="hopper",
    most_steps=300,
    steps=120,
    evaluate_every=100,
    episodes=2,
    learning_starts=90,
)


@pytest.fixture
def level(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda score: monkeypatch.setitem(locomotion.LEVELS, "medium", score)


def test_interrupted_training_goes_on_and_leaves_both_datasets(tmp_path: Path, level: Any) -> None:
    level(1000.0)
    with pytest.raises(RuntimeError, match=r"hopper scores .* after 300 steps.*raise most_steps"):
        collect(TINY, tmp_path, progress_bar=False)
    assert [path.name for path in (tmp_path / ".training/hopper-0").iterdir()] == ["300"]
    before = locomotion._restore(TINY, tmp_path / ".training/hopper-0")
    assert before.replay_buffer is not None
    assert before.replay_buffer.full

    longer = dataclasses.replace(TINY, most_steps=400)
    with pytest.raises(RuntimeError, match="after 400 steps"):
        collect(longer, tmp_path, progress_bar=False)
    level(-100.0)
    assert collect(longer, tmp_path, progress_bar=False) == tmp_path / "local/hopper"
    with minari_root(tmp_path):
        replay, policy = (minari.load_dataset(name) for name in TINY.dataset_ids)
        assert len(load_dataset(TINY.dataset_ids[0])) == 400
    assert replay.total_steps == 400
    assert policy.total_steps >= 100
    seen = np.concatenate([episode.observations[:-1] for episode in replay])
    np.testing.assert_array_equal(seen[:300], before.replay_buffer.observations[:300, 0])
    for dataset in (replay, policy):
        assert dataset.storage.metadata["ref_max_score"] == 3234.3  # D4RL's
        assert dataset.recover_environment(eval_env=True).spec.id == "Hopper-v5"

    with pytest.raises(FileExistsError):
        collect(longer, tmp_path, progress_bar=False)


def test_the_expert_goes_on_from_medium_and_is_joined_with_it(
    tmp_path: Path, level: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    level(-100.0)
    monkeypatch.setitem(locomotion.LEVELS, "expert", 1000.0)
    expert = dataclasses.replace(TINY, level="expert", most_steps=100)
    with pytest.raises(RuntimeError, match="after 100 steps, and expert is 1000"):
        collect(expert, tmp_path, progress_bar=False)
    assert sorted(path.name for path in (tmp_path / "local/hopper").glob("*-v0")) == [
        "medium-replay-v0",
        "medium-v0",
    ]
    monkeypatch.setitem(locomotion.LEVELS, "expert", -100.0)
    collect(expert, tmp_path, progress_bar=False)
    with minari_root(tmp_path):
        replay, policy, both = (minari.load_dataset(name) for name in expert.dataset_ids)
        medium = minari.load_dataset(TINY.dataset_ids[1])
        assert len(load_dataset(expert.dataset_ids[2])) == both.total_steps
    assert replay.total_steps == 100
    assert both.total_steps == medium.total_steps + policy.total_steps
    joined = [*medium, *policy]
    for ours, stored in zip(joined, both, strict=True):
        np.testing.assert_array_equal(ours.observations, stored.observations)
        np.testing.assert_array_equal(ours.actions, stored.actions)
        assert ours.terminations.tolist() == stored.terminations.tolist()


def test_episodes_are_what_the_environment_did() -> None:
    """Terminations end episodes, the time limit truncates them, and so does a resumed training."""

    class Counter(gym.Env[np.ndarray, np.ndarray]):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
        action_space = gym.spaces.Box(-4.0, 2.0, (1,))
        episode = -1

        def reset(self, **_: Any) -> Any:
            self.episode, self.time = self.episode + 1, 0
            return np.array([self.episode, 0], np.float32), {}

        def step(self, action: np.ndarray) -> Any:
            self.time += 1
            fell = self.episode % 2 == 0 and self.time == 3
            return np.array([self.episode, self.time], np.float32), action.item(), fell, False, {}

    def env() -> gym.Env[Any, Any]:
        return gym.wrappers.TimeLimit(Counter(), 5)

    sac = SAC("MlpPolicy", env(), learning_starts=100, buffer_size=100, seed=0)
    sac.learn(18, reset_num_timesteps=False)  # 3 + 5 + 3 + 5, and 2 of an episode cut off
    sac.set_env(gym.wrappers.TimeLimit(Counter(), 5))
    sac.learn(4, reset_num_timesteps=False)
    episodes = episodes_of(sac)
    assert [len(episode.actions) for episode in episodes] == [3, 5, 3, 5, 2, 3, 1]
    ends = [(bool(e.terminations[-1]), bool(e.truncations[-1])) for e in episodes]
    fell, cut = (True, False), (False, True)
    assert ends == [fell, cut, fell, cut, cut, fell, cut]
    for episode in episodes:
        assert episode.observations[:, 1].tolist() == list(range(len(episode.actions) + 1))
        assert not episode.terminations[:-1].any()
        assert not episode.truncations[:-1].any()
        # The environment's own actions, not SAC's, which lie in [-1, 1].
        np.testing.assert_allclose(episode.actions[:, 0], episode.rewards, rtol=1e-6)
    assert min(episode.actions.min() for episode in episodes) < -1.5


def test_checkpoint_killed_in_writing_is_not_taken(tmp_path: Path) -> None:
    sac = locomotion._restore(TINY, tmp_path)
    sac.learn(20, reset_num_timesteps=False)
    locomotion._save(sac, tmp_path)
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished/sac.zip").write_text("half a file")
    assert locomotion._restore(TINY, tmp_path).num_timesteps == 20
    sac.learn(20, reset_num_timesteps=False)
    locomotion._save(sac, tmp_path)
    assert os.listdir(tmp_path) == ["40"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["local/hopper/medium-replay-v0", "--root", str(tmp_path), "--episodes", "1"]
    with pytest.raises(SystemExit):
        main([*arguments, "--most-steps", "10"])
    assert "hopper scores" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["local/hopper/human-v0", *arguments[1:3]])
    assert "of hopper: local/hopper/medium-replay-v0, local/hopper/medium-v0" in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main([*arguments, "--evaluate-every", "0"])
    assert "evaluate_every is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"), [("robot", "swimmer"), ("level", "random"), ("steps", 0)]
)
def test_impossible_recipe_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        LocomotionRecipe(**{"robot": "ant", field: value})
