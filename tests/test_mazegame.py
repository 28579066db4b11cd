"""The maze game: its rules, its maze, and its dataset maker."""

import io
import itertools
import json
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from rich.console import Console

import benchmarks.mazegame  # noqa: F401  (registers the environment)
from benchmarks.collect.waypoints import WaypointController, next_cells
from benchmarks.mazegame.collect import MazeGameRecipe, collect, main
from benchmarks.mazegame.episodes import Episode, count, record_episodes, wall_statistics
from benchmarks.mazegame.game import MazeGame, flat
from benchmarks.mazegame.maze import COINS, GOAL, MAZE, POSITION, GridMaze
from mage_agent import MAGEConfig, load_dataset, make_environment
from mage_agent.recording import minari_root

RECIPE = MazeGameRecipe(dataset_id="local/mazegame/test-v0", episodes=12, reference_episodes=4)
SQUARE = GridMaze(["####", "#  #", "# ##", "####"])
START, END = {"start": (1, 1)}, {"goal": (9, 9)}


def walk(env: gym.Env, stops: list[tuple[int, int]], **cells: tuple[int, int]) -> list[dict]:
    """Visit the centres of cells in order; return the steps' rewards and information."""
    observation, _ = env.reset(seed=0, options=cells)
    places = [MAZE.cell_rowcol_to_xy(cell) for cell in stops]
    controller = WaypointController(
        MAZE, places, proportional_gain=3.0, derivative_gain=0.0, last_is_end=True
    )
    steps: list[dict] = []
    for _ in range(300):
        action = controller.act(observation["observation"].astype(float), np.zeros(2)).clip(-1, 1)
        observation, reward, terminated, _, info = env.step(action.astype(np.float32))
        steps.append(
            {"observation": observation, "reward": reward, "terminated": terminated, **info}
        )
        if terminated:
            break
    return steps


def test_environment_keeps_gymnasiums_contract() -> None:
    check_env(gym.make("MazeGame-v0").unwrapped, skip_render_check=True)
    assert gym.spec("MazeGame-v0").max_episode_steps == 300


def test_frame_shows_the_game() -> None:
    pytest.importorskip("matplotlib")
    env = gym.make("MazeGame-v0", render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (400, 400, 3)
    assert frame.dtype == np.uint8
    env.step(np.ones(2, dtype=np.float32))
    assert (env.render() != frame).any()


def test_silver_then_gold_then_goal_wins() -> None:
    steps = walk(MazeGame(), [*COINS.values(), (9, 9)], **START, **END)
    assert [step["reward"] for step in steps if step["reward"]] == [1, 1, 1]
    order = [next(i for i, step in enumerate(steps) if step[name]) for name in (*COINS, "goal")]
    assert order == sorted(order)
    assert steps[-1]["success"]
    assert steps[-1]["terminated"]
    assert not any(step["success"] or step["terminated"] for step in steps[:-1])


def test_gold_before_silver_pays_nothing() -> None:
    steps = walk(MazeGame(), [COINS["gold"], COINS["silver"], (9, 9)], **START, **END)
    assert [step["reward"] for step in steps if step["reward"]] == [1, 1]
    assert not any(step["gold"] for step in steps)
    assert not steps[-1]["success"]


def test_goal_ends_the_game_and_coins_are_lost() -> None:
    steps = walk(MazeGame(), [(9, 9)], **START, **END)
    assert sum(step["reward"] for step in steps) == 1
    assert steps[-1]["terminated"]
    assert not steps[-1]["success"]


def test_observation_tells_all_but_where_the_coins_are() -> None:
    env = MazeGame()
    first, _ = env.reset(seed=0, options={"start": (1, 1), "goal": (9, 9)})
    assert first["desired_goal"].tolist() == [*MAZE.cell_rowcol_to_xy((9, 9)), 1, 1]
    assert np.abs(first["observation"] - MAZE.cell_rowcol_to_xy((1, 1))).max() <= 0.25
    steps = walk(env, [COINS["silver"], (1, 1)], **START, **END)
    assert steps[-1]["silver"]
    assert first["achieved_goal"].tolist() == [*first["observation"], 0, 0]
    last = steps[-1]["observation"]
    assert last["achieved_goal"].tolist() == [*last["observation"], 1, 0]


def test_flat_observation_is_what_policies_read() -> None:
    observation, _ = MazeGame().reset(seed=0)
    laid = flat(observation)
    assert laid.shape == (10,)
    np.testing.assert_array_equal(laid[POSITION], observation["observation"])
    np.testing.assert_array_equal(laid[GOAL], observation["desired_goal"][:2])
    assert tuple(MAGEConfig.preset("pointmaze").observation_keys) == tuple(observation)


def test_starts_and_goals_are_random_and_free() -> None:
    env = MazeGame()
    observations = np.array([flat(env.reset(seed=seed)[0]) for seed in range(200)])
    for part in (POSITION, GOAL):
        cells = {tuple(MAZE.cell_xy_to_rowcol(place)) for place in observations[:, part]}
        assert len(cells) > 30
        assert cells <= set(MAZE.free_cells) - set(COINS.values())
    assert (np.abs(observations[:, POSITION] - observations[:, GOAL]).max(1) > 0.5).all()


def test_walls_block_and_let_slide() -> None:
    env, rng = MazeGame(), np.random.default_rng(0)
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        path, push = [observation["observation"]], rng.uniform(-1, 1, size=2)
        for step in range(200):
            if step % 10 == 0:
                push = rng.uniform(-1, 1, size=2)
            observation, *_ = env.step(push.astype(np.float32))
            path.append(observation["observation"])
        assert not any(MAZE.is_wall(x, y) for x, y in np.array(path).tolist())
        assert MAZE.crossed_walls(path) < 0.2  # corners, cut by the straight line between steps
    env.reset(options={"start": (1, 1)})
    for _ in range(20):
        observation, *_ = env.step(np.array([1.0, 1.0], dtype=np.float32))  # into the ceiling
    assert observation["observation"][0] > 0
    assert observation["observation"][1] == pytest.approx(
        MAZE.cell_rowcol_to_xy((1, 1))[1] + 0.4, abs=1e-4
    )


def test_no_cell_of_the_maze_bars_the_way() -> None:
    for goal in MAZE.free_cells:
        ways = next_cells(MAZE.maze_map, COINS["silver"], avoid=goal)
        assert set(ways) == set(MAZE.free_cells)
        assert goal == COINS["silver"] or goal not in ways.values()


def test_crossed_walls_measures_the_length_inside() -> None:
    row = [SQUARE.cell_rowcol_to_xy(cell) for cell in ((1, 1), (2, 2), (1, 2))]
    assert SQUARE.crossed_walls([row[0], row[2]]) == 0
    assert SQUARE.crossed_walls([row[2], row[1]]) == pytest.approx(0.5, abs=0.05)
    assert SQUARE.crossed_walls([row[0], row[1], row[2]]) == pytest.approx(1.207, abs=0.05)
    assert SQUARE.crossed_walls([[5.0, 5.0], [6.0, 5.0]]) == 1  # outside is wall


@pytest.mark.parametrize("rows", [["###", "# ##", "###"], ["###", "#  ", "###"]])
def test_leaking_maze_is_refused(rows: list[str]) -> None:
    with pytest.raises(ValueError, match="border"):
        GridMaze(rows)


def test_cells_and_positions_are_inverse() -> None:
    for cell in itertools.product(range(11), range(11)):
        assert tuple(MAZE.cell_xy_to_rowcol(MAZE.cell_rowcol_to_xy(cell))) == cell


def test_dataset_holds_wins_and_failures_that_the_environment_repeats(tmp_path: Path) -> None:
    path = collect(RECIPE, tmp_path, progress_bar=False)
    assert path == tmp_path / RECIPE.dataset_id
    with minari_root(tmp_path):
        dataset = minari.load_dataset(RECIPE.dataset_id)
        loaded = load_dataset(RECIPE.dataset_id)
    facts = dataset.storage.metadata
    assert facts["ref_min_score"] < 1
    assert facts["ref_max_score"] == 3
    returns = {float(episode.rewards.sum()) for episode in dataset}
    assert len(returns) > 1
    assert 3 in returns
    env = make_environment(loaded)
    for episode in dataset:
        (recorded,) = dataset.storage.get_episode_metadata([episode.id])
        observation, _ = env.reset(seed=recorded["seed"])
        for step, action in enumerate(episode.actions):
            for name, value in observation.items():
                np.testing.assert_array_equal(value, episode.observations[name][step])
            observation, reward, _, _, _ = env.step(action)
            assert reward == episode.rewards[step]


def test_same_seed_same_data(tmp_path: Path) -> None:
    actions = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        recipe = MazeGameRecipe(
            dataset_id="local/x-v0", episodes=1, reference_episodes=4, seed=seed
        )
        collect(recipe, tmp_path / name, progress_bar=False)
        with minari_root(tmp_path / name):
            actions.append(minari.load_dataset("local/x-v0")[0].actions)
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("episodes", 0),
        ("complete_share", 1.5),
        ("detours", -1),
        ("action_noise", -0.1),
        ("reference_episodes", 0),
    ],
)
def test_impossible_recipe_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        MazeGameRecipe(dataset_id="x/y-v0", **{field: value})


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["local/cli-v0", "--root", str(tmp_path), "--reference-episodes", "4"]
    main([*arguments, "--episodes", "1"])
    assert "saved" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--episodes", "1"])
    assert "delete it" in capsys.readouterr().err


def test_counts_are_shares_of_the_episodes() -> None:
    done = dict.fromkeys(("silver", "gold", "goal", "success"), True)
    steps = [np.zeros(10, dtype=np.float32)] * 3
    episodes = [Episode(steps, [], done), Episode(steps[:2], [], {**done, "success": False})]
    assert count(episodes) == {
        "silver": 1.0,
        "gold": 1.0,
        "goal": 1.0,
        "success": 0.5,
        "length": 1.5,
    }


def test_played_episodes_are_whole_and_in_order() -> None:
    right = np.array([1.0, 0.0], dtype=np.float32)
    episodes = record_episodes(
        lambda observation: np.tile(right, (len(observation["observation"]), 1)),
        lambda: gym.make("MazeGame-v0", max_episode_steps=5),
        episodes=3,
        seed=7,
    )
    for index, episode in enumerate(episodes):
        env = gym.make("MazeGame-v0")
        path = [flat(env.reset(seed=7 + index)[0])] + [flat(env.step(right)[0]) for _ in range(5)]
        np.testing.assert_array_equal(episode.path, np.array(path)[:, POSITION])
        assert set(episode.info) >= {"silver", "gold", "goal", "success"}


def test_wall_statistics_tell_good_plans_from_bad() -> None:
    along = np.linspace(*(MAZE.cell_rowcol_to_xy(cell) for cell in ((1, 1), (1, 9))), 20)
    across = np.linspace(*(MAZE.cell_rowcol_to_xy(cell) for cell in ((1, 2), (3, 2))), 20)
    good = wall_statistics(along[None], along[:1])
    assert good["cross_walls"] == good["length_in_walls"] == good["first_state_error"] == 0
    assert good["roughness"] == pytest.approx(0, abs=1e-9)
    bad = wall_statistics(across[None], across[:1] + np.array([3.0, 4.0]))
    assert bad["cross_walls"] == 1
    assert bad["length_in_walls"] == pytest.approx(1.5, abs=0.1)
    assert bad["first_state_error"] == pytest.approx(5)
    zigzag = along + np.array([0.0, 0.2]) * (np.arange(20) % 2)[:, None]
    assert wall_statistics(zigzag[None], along[:1])["roughness"] == pytest.approx(0.2)


def test_experiment_writes_counts_and_picture_and_trains_once(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.mazegame.__main__ import CONFIG, WITHOUT, run

    config = CONFIG.replace(
        num_scales=2,
        codebook_size=8,
        width=16,
        num_blocks=1,
        batch_size=8,
        tokenizer_steps=2,
        generator_steps=2,
        inverse_dynamics_steps=2,
    )

    def experiment() -> dict:
        return run(
            tmp_path / "results",
            tmp_path / "models",
            root=tmp_path,
            recipe=RECIPE,
            config=config,
            transformer_steps=2,
            transformer_settings={"context": 4, "width": 16, "layers": 1},
            episodes=2,
            console=Console(file=io.StringIO()),
        )

    first = experiment()
    assert json.loads((tmp_path / "results" / "counts.json").read_text()) == first
    assert (tmp_path / "results" / "mazegame.png").stat().st_size > 10_000
    assert set(first["methods"]) == {"DT", "MAGE", WITHOUT}
    for name, numbers in first["methods"].items():
        assert {"silver", "gold", "goal", "success", "length"} <= set(numbers)
        assert ("plans" in numbers) == (name != "DT")
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").glob("*.mage")}
    assert len(trained) == 3
    assert experiment()["methods"] == first["methods"]
    assert trained == {path: path.stat().st_mtime_ns for path in trained}
