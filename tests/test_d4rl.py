"""D4RL's interface: the table of tasks, the environments, and D4RL's own dictionaries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from conftest import LENGTHS, TERMINATED, Arrays
from torchrl.data.datasets.d4rl_infos import D4RL_DATASETS

from mage_agent import d4rl, make_environment, optional
from mage_agent.d4rl import (
    ALL_TASKS,
    TASKS,
    get_normalized_score,
    make,
    qlearning_dataset,
    sequence_dataset,
)
from mage_agent.data import load_dataset

# Registering gymnasium-robotics logs a notice about environments that are not used here.
robotics = pytest.importorskip("gymnasium_robotics")

PAPER = {
    *(
        f"{name}-{data}-v1"
        for name in ("pen", "door", "hammer", "relocate")
        for data in ("expert", "human", "cloned")
    ),
    *(f"kitchen-{data}-v0" for data in ("complete", "partial", "mixed")),
    *(f"antmaze-{data}-v2" for data in ("umaze", "umaze-diverse", "medium-play")),
    *(f"antmaze-{data}-v2" for data in ("medium-diverse", "large-play", "large-diverse")),
    *(f"maze2d-{data}-v1" for data in ("umaze", "medium", "large")),
    *(
        f"{name}-{data}-v2"
        for name in ("halfcheetah", "walker2d", "ant")
        for data in ("medium-expert", "medium", "medium-replay")
    ),
}


class TestTable:
    def test_holds_every_task_of_the_paper(self) -> None:
        assert set(TASKS) == PAPER

    @pytest.mark.parametrize("task_id", sorted(PAPER))
    def test_files_are_where_torchrl_finds_them(self, task_id: str) -> None:
        assert TASKS[task_id].file_url == D4RL_DATASETS[task_id]

    @pytest.mark.parametrize(
        ("task_id", "limit", "low", "high"),
        [
            ("pen-human-v1", 100, 96.262799, 3076.8331017826877),
            ("hammer-cloned-v1", 200, -274.856578, 12794.134825156867),
            ("relocate-expert-v1", 200, -6.425911, 4233.877797728884),
            ("kitchen-mixed-v0", 280, 0.0, 4.0),
            ("antmaze-umaze-v2", 700, 0.0, 1.0),
            ("antmaze-large-play-v2", 1000, 0.0, 1.0),
            ("maze2d-medium-v1", 600, 13.13, 277.39),
            ("walker2d-medium-replay-v2", 1000, 1.629008, 4592.3),
            ("ant-medium-v2", 1000, -325.6, 3879.7),
        ],
    )
    def test_limits_and_scores(self, task_id: str, limit: int, low: float, high: float) -> None:
        task = TASKS[task_id]
        assert task.max_episode_steps == limit
        assert (task.ref_min_score, task.ref_max_score) == (low, high)
        assert task.note

    def test_holds_the_rest_of_the_locomotion_tasks(self) -> None:
        rest = {
            f"{name}-{data}-v2"
            for name in ("halfcheetah", "hopper", "walker2d", "ant")
            for data in ("random", "medium", "expert", "medium-replay", "full-replay")
        } | {"hopper-medium-expert-v2"}
        assert set(ALL_TASKS) == PAPER | rest
        for task_id in rest & set(D4RL_DATASETS):
            assert ALL_TASKS[task_id].file_url == D4RL_DATASETS[task_id]
        hopper = ALL_TASKS["hopper-medium-v2"]
        assert (hopper.ref_min_score, hopper.ref_max_score) == (-20.272305, 3234.3)

    def test_data_without_an_equal_on_minari_says_so(self) -> None:
        for task in TASKS.values():
            assert (task.minari_id is None) == (task.domain in ("maze2d", "locomotion"))
            assert task.minari_id is not None or "is no equal" in task.note


class TestMake:
    @pytest.mark.parametrize(
        ("task_id", "size"),
        [
            ("pen-expert-v1", 45),
            ("door-human-v1", 39),
            ("hammer-cloned-v1", 46),
            ("relocate-human-v1", 39),
            ("kitchen-mixed-v0", 59),
            ("antmaze-umaze-v2", 29),
            ("antmaze-large-diverse-v2", 29),
            ("maze2d-umaze-v1", 4),
            ("halfcheetah-medium-v2", 17),
            ("halfcheetah-random-v2", 17),
            ("hopper-medium-replay-v2", 11),
            ("walker2d-medium-v2", 17),
            ("ant-medium-v2", 111),
        ],
    )
    def test_steps(self, task_id: str, size: int) -> None:
        env = make(task_id)
        assert env.observation_space.shape == (size,)
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        env.action_space.seed(0)
        observation, reward, terminated, _, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert np.isfinite(float(reward))
        assert not terminated
        assert env.spec is not None
        assert env.spec.max_episode_steps == ALL_TASKS[task_id].max_episode_steps
        env.close()

    def test_unknown(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'pen-expert-v1'") as caught:
            make("pen-expert-v3")
        assert "maze2d-large-v1" in str(caught.value)

    def test_step_limit(self) -> None:
        env = make("pen-expert-v1")
        env.reset(seed=0)
        truncated, steps = False, 0
        while not truncated:
            truncated = env.step(np.zeros(24, dtype=np.float32))[3]
            steps += 1
        assert steps == env._max_episode_steps == 100
        assert make("pen-expert-v1", max_episode_steps=7)._max_episode_steps == 7

    def test_missing_simulator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(package: str) -> None:
            raise ModuleNotFoundError(package, name=package)

        monkeypatch.setattr(optional.importlib, "import_module", missing)
        with pytest.raises(ImportError, match=r"pip install '\.\[robotics\]'"):
            make("pen-expert-v1")

    def test_scores_are_fractions(self) -> None:
        env = make("halfcheetah-medium-v2")
        assert env.get_normalized_score(-280.178953) == 0.0
        assert get_normalized_score("halfcheetah-medium-v2", -280.178953) == 0.0
        assert get_normalized_score("hopper-random-v2", 3234.3) == 1.0
        with pytest.raises(ValueError, match="did you mean 'hopper-random-v2'"):
            get_normalized_score("hopper-random-v1", 0.0)
        assert env.get_normalized_score(12135.0) == 1.0
        assert np.allclose(env.get_normalized_score(np.array([12135.0, -280.178953])), [1, 0])

    def test_ant_contact_forces_are_zero_as_in_the_data(self) -> None:
        env = make("ant-medium-v2")
        env.reset(seed=0)
        env.action_space.seed(0)
        for _ in range(20):
            observation = env.step(env.action_space.sample())[0]
        assert not observation[27:].any()
        assert observation[:27].all()

    def test_antmaze_begins_with_the_position(self) -> None:
        env = make("antmaze-umaze-v2")
        observation, _ = env.reset(seed=0)
        np.testing.assert_allclose(observation[:2], env.unwrapped.ant_env.data.qpos[:2])
        np.testing.assert_allclose(observation[:15], env.unwrapped.ant_env.data.qpos)


@pytest.fixture
def pen_columns(rng: np.random.Generator) -> Arrays:
    lengths, terminated = np.array(LENGTHS), np.array(TERMINATED)
    ends = np.zeros(sum(LENGTHS), dtype=bool)
    ends[lengths.cumsum() - 1] = True
    terminals, timeouts = ends.copy(), ends.copy()
    terminals[ends], timeouts[ends] = terminated, ~terminated
    return {
        "observations": rng.normal(size=(sum(LENGTHS), 45)),
        "actions": rng.uniform(-1, 1, size=(sum(LENGTHS), 24)).astype(np.float32),
        "rewards": rng.normal(size=sum(LENGTHS)).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


def write_file(path: Path, columns: Arrays) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, column in columns.items():
            file[key] = column
    return path


def loop_transitions(columns: Arrays, limit: int, terminate_on_end: bool) -> Arrays:
    """D4RL's definition, one row at a time."""
    result: dict[str, list[Any]] = {
        key: [] for key in ("observations", "actions", "next_observations", "rewards", "terminals")
    }
    step = 0
    for row in range(len(columns["rewards"]) - 1):
        terminal = bool(columns["terminals"][row])
        final = columns["timeouts"][row] if "timeouts" in columns else step == limit - 1
        if final and not terminate_on_end:
            step = 0
            continue
        if terminal or final:
            step = 0
        result["observations"].append(columns["observations"][row].astype(np.float32))
        result["actions"].append(columns["actions"][row].astype(np.float32))
        result["next_observations"].append(columns["observations"][row + 1].astype(np.float32))
        result["rewards"].append(columns["rewards"][row].astype(np.float32))
        result["terminals"].append(terminal)
        step += 1
    return {key: np.array(rows) for key, rows in result.items()}


class TestDatasets:
    @pytest.mark.parametrize("terminate_on_end", [False, True])
    @pytest.mark.parametrize("timeouts", [False, True])
    def test_transitions_equal_the_loop(
        self, pen_columns: Arrays, timeouts: bool, terminate_on_end: bool
    ) -> None:
        env = make("pen-expert-v1")
        if not timeouts:
            del pen_columns["timeouts"]
            pen_columns["terminals"][120:] = False  # and from there on, only the limit of 100
        mine = qlearning_dataset(env, pen_columns, terminate_on_end=terminate_on_end)
        expected = loop_transitions(pen_columns, 100, terminate_on_end)
        assert set(mine) == set(expected)
        for key, column in expected.items():
            assert np.array_equal(mine[key], column), key
            assert mine[key].dtype == column.dtype

    def test_wrapped_environments_and_lists_do_as_well(self, pen_columns: Arrays) -> None:
        env = make("pen-expert-v1")
        expected = qlearning_dataset(env, pen_columns)
        wrapped = gym.wrappers.RecordEpisodeStatistics(env)
        lists = {name: column.tolist() for name, column in pen_columns.items()}
        for key, column in qlearning_dataset(wrapped, lists).items():
            np.testing.assert_allclose(column, expected[key], rtol=1e-6)
        assert len([*sequence_dataset(wrapped, lists)]) == len(LENGTHS)
        assert wrapped.get_wrapper_attr("get_normalized_score")(env.ref_max_score) == 1.0
        with pytest.raises(TypeError, match=r"it must be what d4rl\.make returns, or wraps it"):
            qlearning_dataset(gym.make("Pendulum-v1"), lists)

    def test_counting_over_many_limits(self, rng: np.random.Generator) -> None:
        env = make("pen-expert-v1")
        columns = {
            "observations": rng.normal(size=(1500, 45)),
            "actions": np.zeros((1500, 24)),
            "rewards": np.arange(1500.0),
            "terminals": rng.random(1500) < 0.01,
        }
        for terminate_on_end in (False, True):
            mine = qlearning_dataset(env, columns, terminate_on_end=terminate_on_end)
            expected = loop_transitions(columns, 100, terminate_on_end)
            assert np.array_equal(mine["rewards"], expected["rewards"])

    def test_file_given(self, pen_columns: Arrays, tmp_path: Path) -> None:
        path = write_file(tmp_path / "any.hdf5", pen_columns)
        env = make("pen-expert-v1")
        columns = env.get_dataset(path)
        assert set(columns) == set(pen_columns)
        for key, column in pen_columns.items():
            assert np.array_equal(columns[key], column)
        transitions = qlearning_dataset(env, h5path=path)
        assert len(transitions["rewards"]) == sum(LENGTHS) - 1 - TERMINATED[:-1].count(False)

    def test_file_with_more_columns(self, pen_columns: Arrays, tmp_path: Path) -> None:
        more = {"infos/qpos": np.ones((sum(LENGTHS), 30)), "metadata/policy/bias": np.ones(3)}
        path = write_file(tmp_path / "any.hdf5", pen_columns | more)
        columns = make("pen-expert-v1").get_dataset(path)
        assert set(columns) == set(pen_columns) | set(more)
        assert np.array_equal(columns["infos/qpos"], more["infos/qpos"])

    def test_file_with_other_actions(self, pen_columns: Arrays, tmp_path: Path) -> None:
        pen_columns["actions"] = pen_columns["actions"][:, :3]
        path = write_file(tmp_path / "any.hdf5", pen_columns)
        with pytest.raises(ValueError, match=r"actions in .*, \(3,\), are not .*, \(24,\)"):
            make("pen-expert-v1").get_dataset(path)

    @pytest.mark.parametrize("timeouts", [False, True])
    def test_episodes(self, pen_columns: Arrays, timeouts: bool) -> None:
        env = make("pen-expert-v1")
        columns = {**pen_columns, "infos/qpos": np.arange(149.0), "metadata/policy": np.ones(3)}
        lengths = [*LENGTHS]
        if not timeouts:  # D4RL counts to one step less after the first episode
            del columns["timeouts"]
            lengths = [1, 37, 2, 99, 10]
        episodes = list(sequence_dataset(env, columns))
        assert [len(episode["rewards"]) for episode in episodes] == lengths
        assert set(episodes[0]) == set(columns) - {"metadata/policy"}
        for key in episodes[0]:
            assert np.array_equal(np.concatenate([e[key] for e in episodes]), columns[key])
        columns["terminals"] = columns["terminals"] & (np.arange(149) < 100)
        assert sum(len(e["rewards"]) for e in sequence_dataset(env, columns)) < 149

    def test_columns_that_do_not_fit_are_refused(self, pen_columns: Arrays) -> None:
        env = make("pen-expert-v1")
        for read in (sequence_dataset, qlearning_dataset):
            with pytest.raises(ValueError, match="the columns have different lengths"):
                list(read(env, {**pen_columns, "rewards": np.zeros(148)}))
            with pytest.raises(KeyError, match=r"lacks the columns \['terminals'\]"):
                list(read(env, {k: v for k, v in pen_columns.items() if k != "terminals"}))

    def test_no_episode_that_ends_is_none(self, pen_columns: Arrays) -> None:
        none = np.zeros(149, dtype=bool)
        columns = {**pen_columns, "terminals": none, "timeouts": none}
        assert list(sequence_dataset(make("pen-expert-v1"), columns)) == []

    def test_file_where_d4rl_keeps_it(self, pen_columns: Arrays, tmp_path: Path) -> None:
        write_file(tmp_path / "d4rl" / "pen-expert-v1.hdf5", pen_columns)
        columns = make("pen-expert-v1").get_dataset()
        assert np.array_equal(columns["actions"], pen_columns["actions"])

    def test_minari(
        self, pen_columns: Arrays, make_minari: Callable[..., minari.MinariDataset]
    ) -> None:
        ends = np.cumsum(LENGTHS)[:-1]
        names = {"terminals": "terminations", "timeouts": "truncations"}
        parts = {names.get(k, k): np.split(column, ends) for k, column in pen_columns.items()}
        episodes = [{key: part[i] for key, part in parts.items()} for i in range(len(LENGTHS))]
        for episode in episodes:
            episode["observations"] = np.concatenate([episode["observations"], np.ones((1, 45))])
        make_minari(
            episodes,
            gym.spaces.Box(-np.inf, np.inf, (45,), dtype=np.float64),
            gym.spaces.Box(-1, 1, (24,)),
            dataset_id="D4RL/pen/expert-v2",
        )
        columns = make("pen-expert-v1").get_dataset()
        for key, column in pen_columns.items():
            np.testing.assert_allclose(columns[key], column, rtol=1e-6)

    def test_antmaze_from_minari_is_flat(
        self, rng: np.random.Generator, make_minari: Callable[..., minari.MinariDataset]
    ) -> None:
        sizes = {"observation": 27, "achieved_goal": 2, "desired_goal": 2}
        named = {key: rng.normal(size=(6, size)) for key, size in sizes.items()}
        boxes = {key: gym.spaces.Box(-9, 9, (size,), np.float64) for key, size in sizes.items()}
        episode = {
            "observations": named,
            "actions": rng.uniform(-1, 1, size=(5, 8)),
            "rewards": np.zeros(5),
            "terminations": np.zeros(5, dtype=bool),
            "truncations": np.arange(5) == 4,
        }
        make_minari(
            [episode],
            gym.spaces.Dict(boxes),
            gym.spaces.Box(-1, 1, (8,), np.float64),
            dataset_id="D4RL/antmaze/umaze-v1",
        )
        columns = make("antmaze-umaze-v2").get_dataset()
        flat = np.concatenate([named["achieved_goal"], named["observation"]], axis=1)[:-1]
        np.testing.assert_allclose(columns["observations"], flat, rtol=1e-6)

    def test_file_of_another_task(self, pen_columns: Arrays, tmp_path: Path) -> None:
        path = write_file(tmp_path / "pen.hdf5", pen_columns)
        with pytest.raises(ValueError, match=r"\(45,\), are not those of .*AdroitHandDoor-v1"):
            make("door-expert-v1").get_dataset(path)

    def test_file_that_does_not_fit(self, pen_columns: Arrays, tmp_path: Path) -> None:
        pen_columns["observations"] = pen_columns["observations"][:, :29]
        path = write_file(tmp_path / "antmaze.hdf5", pen_columns)
        with pytest.raises(ValueError, match="origin into the middle of the maze"):
            make("antmaze-umaze-v2").get_dataset(path)

    def test_failed_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(*_: Any) -> None:
            raise OSError("no network")

        monkeypatch.setattr("torch.hub.download_url_to_file", offline)
        with pytest.raises(FileNotFoundError, match=r"halfcheetah_medium-v2.hdf5 failed \(no net"):
            make("halfcheetah-medium-v2").get_dataset()

    def test_download(self, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
        columns = {
            "observations": rng.normal(size=(9, 17)),
            "actions": np.zeros((9, 6)),
            "rewards": np.ones(9),
            "terminals": np.zeros(9, dtype=bool),
        }

        def download(url: str, path: str) -> None:
            assert url == D4RL_DATASETS["halfcheetah-medium-v2"]
            write_file(Path(path), columns)

        monkeypatch.setattr("torch.hub.download_url_to_file", download)
        assert len(make("halfcheetah-medium-v2").get_dataset()["rewards"]) == 9


class TestMakeEnvironment:
    def test_of_a_dataset(self, minari_dataset: minari.MinariDataset) -> None:
        for source in (minari_dataset, "toy/point-v0", load_dataset(minari_dataset)):
            for evaluation, limit in ((True, 33), (False, 200)):
                env = make_environment(source, evaluation=evaluation)
                assert env.spec is not None
                assert (env.spec.id, env.spec.max_episode_steps) == ("Pendulum-v1", limit)

    def test_of_a_task(self) -> None:
        env = make_environment("halfcheetah-medium-v2")
        assert isinstance(env, d4rl.D4RLEnv)

    def test_of_a_d4rl_file(self, pen_columns: Arrays, tmp_path: Path) -> None:
        dataset = load_dataset(write_file(tmp_path / "pen-human-v1.hdf5", pen_columns))
        env = make_environment(dataset)
        assert isinstance(env, d4rl.D4RLEnv)
        assert env.task.id == "pen-human-v1"

    def test_data_of_other_coordinates_have_no_environment(self, toy_dataset: Any) -> None:
        task = next(task for task in ALL_TASKS.values() if not task.file_fits)
        toy_dataset.set_non_tensor("metadata", {"dataset_id": task.id})
        with pytest.raises(ValueError, match=f"'{task.id}' has no environment for its data: "):
            make_environment(toy_dataset)

    def test_unknown(self, toy_dataset: Any) -> None:
        with pytest.raises(ValueError, match="does not say which environment"):
            make_environment(toy_dataset)

    def test_missing(self) -> None:
        with pytest.raises(FileNotFoundError, match="minari download"):
            make_environment("toy/none-v0", download=False)

    @pytest.mark.parametrize(
        ("dataset_id", "limit"),
        [
            ("local/pen/expert-v0", 100),
            ("local/door/human-v0", 200),
            ("local/door/cloned-v0", 200),
            ("local/halfcheetah/medium-expert-v0", 1000),
            ("local/antmaze/umaze-v0", 700),
            ("local/antmaze/medium-diverse-v0", 1000),
        ],
    )
    def test_real(
        self, dataset_id: str, limit: int, real_dataset: Callable[[str], minari.MinariDataset]
    ) -> None:
        env = make_environment(real_dataset(dataset_id))
        assert env.spec is not None
        assert env.spec.max_episode_steps == limit
        env.reset(seed=0)
        env.step(np.zeros(env.action_space.shape or (), dtype=np.float32))
        if dataset_id == "local/antmaze/medium-diverse-v0":  # fixed corners, not random cells
            collected = make_environment(dataset_id, evaluation=False)
            assert len(env.unwrapped.maze.unique_goal_locations) == 1
            assert len(collected.unwrapped.maze.unique_goal_locations) > 1


class TestOptional:
    def test_everything_named_is_in_the_extras(self) -> None:
        with pytest.raises(KeyError, match="in none of the extras"):
            optional.require("nothing_of_the_kind")

    def test_installed(self) -> None:
        assert optional.require("gymnasium_robotics") is robotics

    def test_broken_dependency_is_not_called_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(_: str) -> None:
            raise ModuleNotFoundError("no glfw", name="glfw")

        monkeypatch.setattr(optional.importlib, "import_module", broken)
        with pytest.raises(ModuleNotFoundError, match="no glfw"):
            optional.require("mujoco")
