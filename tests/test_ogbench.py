"""OGBench's mazes: five goals in turn, and data by OGBench's recipe."""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest

pytest.importorskip("ogbench")

from benchmarks.collect.__main__ import main
from benchmarks.collect.ogbench import OGBenchRecipe, collect, goal_cells
from mage_agent import evaluate, load_dataset, make_environment
from mage_agent.environment import OGBENCH_ID
from mage_agent.recording import minari_root

RECIPE = OGBenchRecipe(maze="medium", steps=1500)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    collect(RECIPE, root, progress_bar=False)
    return root


@pytest.fixture
def env() -> Any:
    env = gym.make(OGBENCH_ID, name="pointmaze-medium-v0")
    yield env
    env.close()


def towards(env: Any) -> np.ndarray:
    maze = env.unwrapped.maze
    centre, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
    near = maze.xy_to_ij(maze.get_xy()) == maze.xy_to_ij(maze.cur_goal_xy)
    way = np.asarray(maze.cur_goal_xy if near else centre) - maze.get_xy()
    return way / max(np.linalg.norm(way), 1.0)


def test_seeds_in_a_row_take_the_five_goals_in_turn(env: Any) -> None:
    cells = [task["goal_ij"] for task in env.unwrapped.maze.task_infos]
    for seed in range(100_000, 100_007):
        observation, info = env.reset(seed=seed)
        assert info == {"success": False, "task_id": seed % 5 + 1}
        assert env.observation_space.contains(observation)
        assert env.unwrapped.maze.xy_to_ij(observation["desired_goal"]) == cells[seed % 5]
        np.testing.assert_array_equal(observation["observation"], observation["achieved_goal"])
    assert env.reset(seed=0, options={"task_id": 4})[1]["task_id"] == 4
    assert len({env.reset()[1]["task_id"] for _ in range(30)}) == 5


def test_an_episode_is_its_seeds_and_leaves_numpy_alone(env: Any) -> None:
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    starts = []
    for _ in range(2):
        np.random.seed(5)  # noqa: NPY002
        observation, _ = env.reset(seed=7)
        starts.append([observation["observation"], env.step(np.ones(2))[0]["observation"]])
        assert np.random.random() == expected  # noqa: NPY002
    np.testing.assert_array_equal(*starts)
    assert not np.array_equal(env.reset(seed=12)[0]["observation"], starts[0][0])  # the same goal
    with pytest.raises(KeyError), env.unwrapped.seeded():
        raise KeyError
    assert np.random.get_state()[2] == 2  # noqa: NPY002  # one number was drawn


def test_the_goal_ends_an_episode_and_time_cuts_it_off(env: Any) -> None:
    env.reset(seed=1)
    rewards, done = [], False
    while not done:
        observation, reward, done, truncated, info = env.step(towards(env))
        rewards.append(reward)
        assert not truncated
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert info == {"success": True}
    assert np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"]) <= 1
    env.reset(seed=1)
    ends = [env.step(np.zeros(2))[2:4] for _ in range(1000)]
    assert ends == [(False, False)] * 999 + [(False, True)]


def test_data_are_ways_to_goals(root: Path) -> None:
    with minari_root(root):
        dataset = minari.load_dataset(RECIPE.dataset_id)
        loaded = load_dataset(RECIPE.dataset_id)
        env = make_environment(RECIPE.dataset_id)
    assert dataset.total_steps == 2000  # whole trajectories
    assert len(loaded) == 2000
    assert env.spec is not None
    assert env.spec.kwargs == {"name": "pointmaze-medium-v0"}
    length, before = 0, None
    for episode in dataset:
        seen = episode.observations
        distance = np.linalg.norm(seen["achieved_goal"] - seen["desired_goal"], axis=1)[1:]
        assert np.ptp(seen["desired_goal"], axis=0).max() == 0
        assert episode.terminations.tolist() == (distance <= 1).tolist()  # at its end alone
        assert episode.rewards.tolist() == (distance <= 1).tolist()
        assert not episode.truncations.any()
        if length % 1000:  # a way begins where the last one of its trajectory ended
            np.testing.assert_array_equal(seen["observation"][0], before)
        before, length = seen["observation"][-1], length + len(episode)
    assert length == 2000
    assert loaded["next", "terminated"].sum() == dataset.total_episodes >= 6
    # The noise is OGBench's: of the actions' components, a part is clipped.
    assert 0.1 < (loaded["action"].abs() == 1).float().mean() < 0.5
    env.close()


def test_evaluation_counts_successes(root: Path) -> None:
    with minari_root(root):
        dataset = load_dataset(RECIPE.dataset_id)
    env = make_environment(dataset)
    still = evaluate(lambda observation: np.zeros((1, 2)), lambda: env, episodes=1, num_envs=1)
    assert (still[0].success, still[0].length) == (False, 1000)
    env = make_environment(dataset)
    results = evaluate(lambda _: towards(env)[None], lambda: env, episodes=5, num_envs=1)
    assert [result.success for result in results] == [True] * 5
    assert [result.episode_return for result in results] == [1.0] * 5


def test_a_file_for_one_task_leads_to_its_environment(tmp_path: Path) -> None:
    path = tmp_path / "pointmaze-medium-navigate-singletask-task2-v0.npz"
    rows = {"observations": np.random.default_rng(0).normal(size=(6, 2)), "rewards": -np.ones(6)}
    ends = np.arange(6) == 5
    np.savez(path, **rows, actions=np.full((6, 2), 0.5), terminals=ends, masks=np.ones(6))
    env = make_environment(load_dataset(path))
    assert env.spec is not None
    assert env.spec.id == "pointmaze-medium-singletask-task2-v0"
    first, second, other = (env.reset(seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    env.reset(seed=0)
    assert env.unwrapped.cur_task_id == 2
    env.close()


def test_without_ogbench_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mage_agent.ogbench", raising=False)
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[ogbench\]'"):
        gym.make(OGBENCH_ID)


def test_goals_are_not_in_corridors() -> None:
    maze = np.ones((5, 6), dtype=int)
    maze[1, 1:5] = maze[1:4, 1] = 0  # an L
    free, goals = goal_cells(maze)
    assert len(free) == 6
    assert goals == [(1, 1), (1, 4), (3, 1)]


def test_bad_input_names_what_is_allowed(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"name is 'pointmaze-huge-v0'; allowed: antmaze-giant-v0"):
        gym.make(OGBENCH_ID, name="pointmaze-huge-v0")
    for field, value in (("maze", "huge"), ("steps", 0), ("action_noise", -1.0)):
        with pytest.raises(ValueError, match=field):
            OGBenchRecipe(**{"maze": "giant", field: value})
    with pytest.raises(FileExistsError):
        collect(RECIPE, root)
    with pytest.raises(SystemExit):
        main([RECIPE.dataset_id, "--root", str(tmp_path), "--steps", "0"])
    assert "steps is 0" in capsys.readouterr().err
