"""The dataset maker: the planner, the controller, and what ends up on disk."""

import dataclasses
import itertools
from pathlib import Path

import minari
import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics")

from gymnasium_robotics.envs.maze.maps import LARGE_MAZE, U_MAZE

from benchmarks.collect.__main__ import main
from benchmarks.collect.pointmaze import PointMazeRecipe, collect, make_env
from benchmarks.collect.waypoints import WaypointController, next_cells
from mage_agent.recording import minari_root

RECIPE = PointMazeRecipe(
    dataset_id="local/pointmaze/test-v0",
    steps=100,
    max_episode_steps=60,
    reference_episodes=10,
)


def load(root: Path, dataset_id: str = RECIPE.dataset_id) -> minari.MinariDataset:
    with minari_root(root):
        return minari.load_dataset(dataset_id)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_planner_walks_around_the_wall_of_the_u_maze() -> None:
    successor = next_cells(U_MAZE, (3, 1))
    path = [(1, 1)]
    while path[-1] != (3, 1):
        path.append(successor[path[-1]])
    assert path == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]


def test_planner_finds_shortest_paths_between_all_cells() -> None:
    free = [
        (row, column)
        for row, column in itertools.product(range(len(LARGE_MAZE)), range(len(LARGE_MAZE[0])))
        if LARGE_MAZE[row][column] == 0
    ]
    for target in free[::7]:
        distance = {target: 0}  # Bellman-Ford on the grid, the slow oracle
        for _ in free:
            for row, column in free:
                for cell in ((row + 1, column), (row - 1, column), (row, column + 1)):
                    for a, b in (((row, column), cell), (cell, (row, column))):
                        if a in distance and LARGE_MAZE[b[0]][b[1]] == 0:
                            distance[b] = min(distance.get(b, 999), distance[a] + 1)
        successor = next_cells(LARGE_MAZE, target)
        assert set(successor) == set(free)
        for cell in set(free) - {target}:
            assert distance[successor[cell]] == distance[cell] - 1


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_noisy_controller_reaches_the_goal_and_stays(maze: str) -> None:
    env = make_env(PointMazeRecipe(dataset_id="x/y-v0", maze=maze))
    rng = np.random.default_rng(0)
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        controller = WaypointController(
            env.get_wrapper_attr("maze"), [observation["desired_goal"].copy()]
        )
        done, rewards = False, []
        while not done:
            action = controller.act(observation["achieved_goal"], observation["observation"][2:])
            action = (action + 0.5 * rng.standard_normal(2)).clip(-1, 1).astype(np.float32)
            observation, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            done = terminated or truncated
        assert sum(rewards[-50:]) == 50
    env.close()


def test_dataset_holds_whole_consistent_episodes(tmp_path: Path) -> None:
    path = collect(RECIPE, tmp_path, progress_bar=False)
    assert path == tmp_path / RECIPE.dataset_id
    dataset = load(tmp_path)
    assert dataset.total_steps == 120  # rounded up to whole episodes
    metadata = dataset.storage.metadata
    assert metadata["ref_min_score"] < metadata["ref_max_score"]
    env = dataset.recover_environment(eval_env=True)
    assert env.spec.max_episode_steps == 60
    for episode in dataset:
        assert np.abs(episode.actions).max() <= 1
        assert episode.truncations.tolist() == [False] * 59 + [True]
        assert not episode.terminations.any()
        # What is stored is what the environment does: replay it.
        (recorded,) = dataset.storage.get_episode_metadata([episode.id])
        observation, _ = env.reset(seed=recorded["seed"])
        for step, action in enumerate(episode.actions):
            np.testing.assert_array_equal(
                observation["observation"], episode.observations["observation"][step]
            )
            observation, reward, _, _, _ = env.step(action)
            assert reward == episode.rewards[step]
    env.close()


def test_same_seed_same_data(tmp_path: Path) -> None:
    datasets = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        recipe = PointMazeRecipe(
            dataset_id="local/x-v0",
            steps=1,
            max_episode_steps=60,
            reference_episodes=10,
            seed=seed,
        )
        collect(recipe, tmp_path / name, progress_bar=False)
        datasets.append(load(tmp_path / name, "local/x-v0")[0])
    first, again, other = datasets
    np.testing.assert_array_equal(first.actions, again.actions)
    np.testing.assert_array_equal(
        first.observations["observation"], again.observations["observation"]
    )
    assert not np.array_equal(first.actions, other.actions)


def test_maze2d_starts_where_it_always_starts() -> None:
    env = make_env(PointMazeRecipe(dataset_id="x/y-v0", task="maze2d"))
    starts, goals = [], []
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        starts.append(observation["achieved_goal"].copy())
        goals.append(observation["desired_goal"].copy())
    env.close()
    assert np.ptp(starts, axis=0).max() <= 0.5  # one cell, with the environment's own noise
    assert np.ptp(goals, axis=0).max() > 1


def test_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    collect(RECIPE, Path("datasets"), progress_bar=False)
    assert load(Path("datasets")).total_steps == 120


def test_interrupted_collection_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        create(*args, **kwargs)
        raise KeyboardInterrupt

    create = minari.create_dataset_from_buffers
    monkeypatch.setattr(minari, "create_dataset_from_buffers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(RECIPE, tmp_path, progress_bar=False)
    assert files(tmp_path) == set()


def test_meaningless_references_are_refused(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, max_episode_steps=2, reference_episodes=1)
    with pytest.raises(ValueError, match="Raise reference_episodes or max_episode_steps"):
        collect(recipe, tmp_path, progress_bar=False)
    assert files(tmp_path) == set()


def test_existing_dataset_is_left_alone(tmp_path: Path) -> None:
    collect(RECIPE, tmp_path, progress_bar=False)
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="delete it"):
        collect(RECIPE, tmp_path, progress_bar=False)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("maze", "tiny"),
        ("task", "3d"),
        ("steps", 0),
        ("detours", -1),
        ("action_noise", -0.1),
        ("reference_episodes", 0),
    ],
)
def test_impossible_recipe_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        PointMazeRecipe(dataset_id="x/y-v0", **{field: value})


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["local/cli-v0", "--root", str(tmp_path), "--reference-episodes", "10"]
    main([*arguments, "--steps", "1", "--max-episode-steps", "60", "--task", "maze2d"])
    assert "saved" in capsys.readouterr().out
    assert load(tmp_path, "local/cli-v0").total_steps == 60
    with pytest.raises(SystemExit):
        main([*arguments, "--steps", "0"])
    assert "steps is 0" in capsys.readouterr().err
    for name in ("maze2d-foo-v1", "maze2d-umaze-dense-v1", "multi2d-umaze-v2"):
        with pytest.raises(SystemExit):
            main([name, *arguments[1:]])
        assert f"no recipe makes '{name}'; of {name[:6]}" in capsys.readouterr().err
