"""D4RL's point mazes: the environment, and data collected by D4RL's recipe."""

import dataclasses
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics")

from benchmarks.collect.__main__ import main
from benchmarks.collect.maze2d import REACHED, Maze2DRecipe, collect, make_env
from benchmarks.collect.recipes import MAZE2D
from benchmarks.collect.waypoints import WaypointController
from benchmarks.datasets import hold_out
from benchmarks.methods import configure
from mage_agent import MAGEModel, load_dataset
from mage_agent.d4rl import TASKS, make
from mage_agent.data.d4rl_tasks import MAZES
from mage_agent.environment import make_environment

STEPS = 2_000


@pytest.mark.parametrize("name", MAZES)
def test_walls_are_where_d4rl_has_them(name: str) -> None:
    point = make(f"maze2d-{name}-v1").unwrapped
    for row, line in enumerate(MAZES[name]):
        for column, cell in enumerate(line):
            # D4RL has the centre of a cell 0.2 below its number.
            position = np.array([row, column]) - 0.2 - point.origin
            turned = point.maze.cell_xy_to_rowcol(position)
            assert (point.maze.maze_map[turned[0]][turned[1]] == 1) == (cell == "#")
    assert point.maze.maze_map[1][1] != 1


@pytest.mark.parametrize("name", MAZES)
def test_starts_anywhere_the_goal_included(name: str) -> None:
    env = make(f"maze2d-{name}-v1")
    starts = np.array([env.reset(seed=seed)[0] for seed in range(300)])
    places = {tuple(place) for place in np.round(starts[:, :2]).astype(int).tolist()}
    free = {
        (row, column)
        for row, line in enumerate(MAZES[name])
        for column, cell in enumerate(line)
        if cell == " "
    }
    assert places <= free
    assert len(places) >= 0.9 * len(free)
    assert np.abs(starts[:, :2] - np.round(starts[:, :2])).max() <= 0.1
    assert starts[:, 2:].std() == pytest.approx(0.1, rel=0.2)
    assert any(env.reset(seed=seed)[1]["success"] for seed in range(300))


def test_x_counts_rows() -> None:
    env = make("maze2d-medium-v1")
    before, _ = env.reset(seed=0, options={"start": (1, 1)})
    for _ in range(20):
        after = env.step(np.array([1.0, 0.0]))[0]
    assert after[0] > before[0] + 0.1
    assert after[1] == pytest.approx(before[1], abs=0.1)


def test_reward_is_for_the_fixed_goal_and_never_ends_an_episode() -> None:
    env = make("maze2d-medium-v1")  # goal in row 6, column 6
    for start, reward in (((6.3, 6.3), 1.0), ((6.0, 5.4), 0.0)):
        env.reset(seed=0, options={"start": start})
        _, found, terminated, _, info = env.step(np.zeros(2))
        assert (found, terminated, info["success"]) == (reward, False, bool(reward))
    steps, truncated = 1, False
    while not truncated:
        _, _, terminated, truncated, _ = env.step(np.zeros(2))
        assert not terminated
        steps += 1
    assert steps == 600


def test_multi2d_draws_a_goal_per_episode_and_shows_it() -> None:
    env = make_env(MAZE2D["multi2d-umaze-v1"])
    goals = []
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        assert env.observation_space.contains(observation)
        goals.append(observation["desired_goal"])
        moved, *_ = env.step(np.ones(2))
        np.testing.assert_array_equal(moved["desired_goal"], goals[-1])
        np.testing.assert_array_equal(moved["achieved_goal"], moved["observation"][:2])
    assert len(np.unique(np.round(goals), axis=0)) > 3
    env.reset(seed=0, options={"start": (1.0, 3.0), "goal": (1.0, 3.2)})
    assert env.step(np.zeros(2))[1] == 1.0


def test_unknown_maze() -> None:
    with pytest.raises(ValueError, match=r"'huge'; allowed: \['large', 'medium', 'umaze'\]"):
        gym.make(TASKS["maze2d-umaze-v1"].environment_id, maze="huge")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "score"), [("umaze", 157), ("medium", 173), ("large", 229)])
def test_the_controller_scores_what_it_does_on_d4rls_scale(name: str, score: float) -> None:
    env = make(f"maze2d-{name}-v1")
    point = env.unwrapped
    returns = []
    for seed in range(30):
        observation, _ = env.reset(seed=seed)
        controller = WaypointController(point.maze, [point.goal])
        total, truncated = 0.0, False
        while not truncated:
            action = controller.act(observation[:2] - point.origin, observation[2:])
            observation, reward, _, truncated, _ = env.step(action.clip(-1, 1))
            total += reward
        returns.append(total)
    assert 100 * env.get_normalized_score(np.mean(returns)) == pytest.approx(score, abs=15)


def collected(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    recipe = dataclasses.replace(MAZE2D[name], steps=STEPS)
    assert collect(recipe, root, progress_bar=False) == root / recipe.dataset_id
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return recipe.dataset_id


def test_maze2d_is_one_run_rewarded_before_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_id = collected("maze2d-umaze-v1", tmp_path, monkeypatch)
    dataset = minari.load_dataset(dataset_id)
    assert (dataset.total_episodes, dataset.total_steps) == (1, STEPS)
    (run,) = dataset
    assert run.truncations.tolist() == [False] * (STEPS - 1) + [True]
    distance = np.linalg.norm(run.observations[:-1, :2] - np.array([1.0, 1.0]), axis=1)
    np.testing.assert_array_equal(run.rewards, distance <= 0.5)
    assert 0 < run.rewards.mean() < 0.5
    assert np.abs(run.actions).max() <= 1
    goals = run.infos["goal"]
    changed = (goals[1:] != goals[:-1]).any(1)
    reached = np.linalg.norm(run.observations[1:-1, :2] - goals[:-1], axis=1) <= REACHED
    assert changed.sum() > 10
    np.testing.assert_array_equal(changed, reached)  # another goal on arrival, and only then
    assert torch.equal(load_dataset(dataset_id)["infos", "goal"], torch.tensor(goals).float())
    env = make_environment(dataset_id)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 300
    point = env.unwrapped
    env.reset(seed=0)
    for step in range(100):  # what is stored is what the environment does
        qpos, qvel = run.observations[step, :2] - point.origin, run.observations[step, 2:]
        point.point_env.set_state(qpos, qvel)
        found = env.step(run.actions[step])[0]
        np.testing.assert_allclose(found, run.observations[step + 1], atol=1e-6)


def test_multi2d_is_the_same_run_with_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = minari.load_dataset(collected("maze2d-umaze-v1", tmp_path, monkeypatch))
    several = minari.load_dataset(collected("multi2d-umaze-v1", tmp_path, monkeypatch))
    assert [len(episode) for episode in several] == [300] * 6 + [200]
    actions = np.concatenate([episode.actions for episode in several])
    np.testing.assert_array_equal(actions, single[0].actions)
    rewarded = 0
    for episode in several:
        seen = episode.observations
        assert (seen["desired_goal"] == seen["desired_goal"][0]).all()
        distance = np.linalg.norm(seen["achieved_goal"] - seen["desired_goal"], axis=1)
        np.testing.assert_array_equal(episode.rewards, distance[:-1] <= 0.5)
        rewarded += bool(episode.rewards.any())
    assert rewarded >= 4


@pytest.mark.parametrize("task", ["maze2d", "multi2d"])
def test_both_can_be_trained_on(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset(collected(f"{task}-umaze-v1", tmp_path, monkeypatch))
    trained, held = hold_out(dataset, 0.1)
    assert (len(trained), len(held)) in {(1_800, 200), (1_700, 300)}
    assert trained["next", "done"][-1], "a run that is cut ends there"
    assert len(dataset) == 2_000
    assert dataset["next", "done"].sum() == len(dataset["episode"].unique())
    config = configure(MAGEModel, f"{task}-umaze-v1")
    model = MAGEModel.from_dataset(trained, config)
    assert len(model.observation_sizes) == (1 if task == "maze2d" else 3)
    assert make_environment(dataset).observation_space is not None


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["maze2d-umaze-v1", "--root", str(tmp_path)]
    main([*arguments, "--steps", "300", "--seed", "3"])
    assert "saved" in capsys.readouterr().out
    assert (tmp_path / "local/maze2d/umaze-v0").is_dir()
    for wrong, message in ((["--steps", "0"], "steps is 0"), ([], "delete it")):
        with pytest.raises(SystemExit):
            main([*arguments, *wrong])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["maze2d-umaze-v1", "--help"])
    assert "250000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value"),
    [("maze", "tiny"), ("task", "3d"), ("steps", 0), ("action_noise", -0.1)],
)
def test_impossible_recipe_is_refused(field: str, value: object) -> None:
    fields = {"maze": "umaze", "task": "maze2d", "steps": 10, field: value}
    with pytest.raises(ValueError, match=field):
        Maze2DRecipe(**fields)
