"""D4RL files: timeouts are not terminations, and nothing leaks from one episode into the next."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import LENGTHS, TERMINATED, Arrays

from mage_agent.data import load_dataset, metadata, returns_to_go
from mage_agent.data.d4rl_tasks import TASKS

WriteFile = Callable[..., Path]


@pytest.fixture
def columns(toy_episodes: list[Arrays]) -> Arrays:
    """What D4RL would have logged of the toy episodes: no observation after the last action."""
    return {
        "observations": np.concatenate([e["observations"][:-1] for e in toy_episodes]),
        "actions": np.concatenate([e["actions"] for e in toy_episodes]),
        "rewards": np.concatenate([e["rewards"] for e in toy_episodes]).astype(np.float32),
        "terminals": np.concatenate([e["terminations"] for e in toy_episodes]),
        "timeouts": np.concatenate([e["truncations"] for e in toy_episodes]),
    }


@pytest.fixture
def write(tmp_path: Path, columns: Arrays) -> WriteFile:
    """Return a function that writes the columns, some changed or left out, to a D4RL file."""

    def write(name: str = "toy.hdf5", **changes: Any) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            for key, column in {**columns, **changes}.items():
                if column is not None:
                    file[key] = column
            file["metadata/algorithm"] = "random"
            file["infos/qpos"] = np.zeros((len(columns["rewards"]), 2))
        return tmp_path / name

    return write


class TestRead:
    def test_timeouts_are_not_terminations(self, write: WriteFile) -> None:
        dataset = load_dataset(write())
        ends = dataset["next", "done"].flatten()
        lengths = dataset["episode"].unique(return_counts=True)[1].tolist()
        assert lengths == [*LENGTHS]
        assert dataset["next", "terminated"][ends].flatten().tolist() == [*TERMINATED]
        assert dataset["next", "truncated"][ends].flatten().tolist() == [not t for t in TERMINATED]

    def test_nothing_leaks_across_episodes(self, write: WriteFile, columns: Arrays) -> None:
        dataset = load_dataset(write())
        observation, following = dataset["observation"], dataset["next", "observation"]
        ends = dataset["next", "done"].flatten()
        assert np.array_equal(observation, columns["observations"])
        assert torch.equal(following[~ends], observation[1:][~ends[:-1]])
        assert torch.equal(following[ends], observation[ends])

    def test_recorded_next_observations_are_used(
        self, write: WriteFile, toy_episodes: list[Arrays]
    ) -> None:
        following = np.concatenate([e["observations"][1:] for e in toy_episodes])
        dataset = load_dataset(write(next_observations=following))
        assert np.array_equal(dataset["next", "observation"], following)

    def test_returns_are_those_of_the_complete_data(
        self, write: WriteFile, toy_dataset: Any
    ) -> None:
        dataset = load_dataset(write())
        for key in ("step_count", "episode", "action", ("next", "reward")):
            torch.testing.assert_close(dataset[key], toy_dataset[key])
        found, expected = (
            returns_to_go(data["next", "reward"], data["episode"], 0.99)
            for data in (dataset, toy_dataset)
        )
        torch.testing.assert_close(found, expected)

    def test_columns_of_width_one(self, write: WriteFile, columns: Arrays) -> None:
        wide = {key: columns[key][:, None] for key in ("rewards", "terminals", "timeouts")}
        same = load_dataset(write("wide.hdf5", **wide)) == load_dataset(write())
        assert same.exclude("metadata").all()

    def test_unfinished_last_episode(self, write: WriteFile, columns: Arrays) -> None:
        columns["terminals"][-1] = columns["timeouts"][-1] = False
        dataset = load_dataset(write(**columns))
        assert dataset["next", "truncated"][-1]

    def test_a_file_that_marks_no_end_says_so(self, write: WriteFile, columns: Arrays) -> None:
        nothing = {name: np.zeros_like(columns[name]) for name in ("terminals", "timeouts")}
        with pytest.warns(UserWarning, match=r"mark an end: .* pass max_episode_steps"):
            dataset = load_dataset(write(**nothing))
        assert dataset["episode"].max() == 0
        load_dataset(write(**nothing), max_episode_steps=20)

    def test_path_object_and_string(self, write: WriteFile) -> None:
        assert len(load_dataset(str(write()))) == len(load_dataset(write())) == sum(LENGTHS)

    def test_termination_and_timeout_at_once(self, write: WriteFile, columns: Arrays) -> None:
        timeouts = columns["timeouts"] | columns["terminals"]
        dataset = load_dataset(write(timeouts=timeouts))
        assert not (dataset["next", "terminated"] & dataset["next", "truncated"]).any()
        assert dataset["next", "terminated"].sum() == sum(TERMINATED)


class TestWithoutTimeouts:
    def test_step_limit_is_needed(self, write: WriteFile) -> None:
        with pytest.raises(ValueError, match="pass max_episode_steps"):
            load_dataset(write(timeouts=None))

    @pytest.mark.parametrize("limit", [0, -5])
    def test_step_limit_is_positive(self, write: WriteFile, limit: int) -> None:
        with pytest.raises(ValueError, match=f"max_episode_steps is {limit}; .* at least 1"):
            load_dataset(write(timeouts=None), max_episode_steps=limit)

    def test_step_limit_counts_from_each_start(self, write: WriteFile) -> None:
        terminals = np.zeros(sum(LENGTHS), dtype=bool)
        terminals[[9, 30]] = True
        dataset = load_dataset(write(timeouts=None, terminals=terminals), max_episode_steps=20)
        lengths = dataset["episode"].unique(return_counts=True)[1].tolist()
        assert lengths == [10, 20, 1, 20, 20, 20, 20, 20, 18]
        assert dataset["next", "terminated"].flatten().nonzero().flatten().tolist() == [9, 30]

    def test_timeouts_that_mark_nothing_are_none(self, write: WriteFile) -> None:
        path = write(timeouts=np.zeros(149, dtype=bool), terminals=np.zeros(149, dtype=bool))
        dataset = load_dataset(path, max_episode_steps=20)
        assert dataset["episode"].unique(return_counts=True)[1].tolist() == [20] * 7 + [9]

    def test_a_step_limit_that_nothing_heeds_is_refused(self, write: WriteFile) -> None:
        dataset = load_dataset(write())
        with pytest.raises(ValueError, match="max_episode_steps is 20, but a TensorDict says"):
            load_dataset(dataset, max_episode_steps=20)
        with pytest.raises(ValueError, match="20, but a file whose timeouts are marked says"):
            load_dataset(write(), max_episode_steps=20)

    def test_step_limit_of_a_known_file(self, write: WriteFile) -> None:
        path = write("pen-expert-v1.hdf5", timeouts=None, terminals=np.zeros(149, dtype=bool))
        dataset = load_dataset(path)
        assert dataset["episode"].unique(return_counts=True)[1].tolist() == [100, 49]


class TestUnmarkedEnds:
    """D4RL's replay files do not mark every timeout."""

    @pytest.fixture
    def changes(self, columns: Arrays, toy_episodes: list[Arrays]) -> Arrays:
        ends = columns["timeouts"].copy()
        ends[LENGTHS[0] + LENGTHS[1] - 1] = False
        following = np.concatenate([e["observations"][1:] for e in toy_episodes])
        return {"timeouts": ends, "next_observations": following}

    def test_next_observations_show_them(self, write: WriteFile, changes: Arrays) -> None:
        with pytest.warns(UserWarning, match="1 steps are not followed .* in row 7; .* truncated"):
            dataset = load_dataset(write("hopper_medium_replay-v2.hdf5", **changes))
        assert dataset["episode"].unique(return_counts=True)[1].tolist() == [*LENGTHS]
        assert dataset["next", "truncated"][7].item()

    def test_other_files_have_to_mark_them(self, write: WriteFile, changes: Arrays) -> None:
        with pytest.raises(ValueError, match=r"1 of 143 steps jump.* episode 1, step 6"):
            load_dataset(write(**changes))

    @pytest.mark.parametrize("key", ["terminals", "timeouts"])
    def test_flags(self, write: WriteFile, columns: Arrays, key: str) -> None:
        with pytest.raises(ValueError, match="must hold booleans, or 0 and 1"):
            load_dataset(write(**{key: np.where(columns[key], 1, -1)}))


class TestMetadata:
    def test_known_file(self, write: WriteFile) -> None:
        facts = metadata(load_dataset(write("door-cloned-v1.hdf5")))
        assert facts["dataset_id"] == "door-cloned-v1"
        assert facts["ref_min_score"] == TASKS["door-cloned-v1"].ref_min_score
        assert facts["ref_max_score"] == TASKS["door-cloned-v1"].ref_max_score

    def test_other_file(self, write: WriteFile) -> None:
        facts = metadata(load_dataset(write("mine.hdf5")))
        assert facts["dataset_id"] == "mine"
        assert "ref_min_score" not in facts
        assert facts["action_low"] == [-1.0, -1.0]


class TestBadFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="there is no file"):
            load_dataset(tmp_path / "none.hdf5")

    def test_truncated(self, write: WriteFile) -> None:
        path = write()
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"is truncated or no HDF5 file.*download it again"):
            load_dataset(path)

    @pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>"])
    def test_no_hdf5(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "page.hdf5"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is truncated or no HDF5 file"):
            load_dataset(path)

    def test_foreign(self, write: WriteFile) -> None:
        with pytest.raises(ValueError, match="is not a D4RL file: it lacks actions, rewards"):
            load_dataset(write(actions=None, rewards=None))

    def test_a_group_in_place_of_an_array(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "own.hdf5", "w") as file:
            for name in ("actions", "rewards", "terminals"):
                file[name] = np.zeros((4, 2))
            file["observations/position"] = np.zeros((4, 2))
        with pytest.raises(ValueError, match="; observations must be one array, not a group of"):
            load_dataset(tmp_path / "own.hdf5")

    def test_minari_file(self, minari_dataset: Any) -> None:
        path = Path(minari_dataset.storage.data_path) / "main_data.hdf5"
        with pytest.raises(ValueError, match="a Minari dataset: load it by its id"):
            load_dataset(path)

    def test_different_lengths(self, write: WriteFile, columns: Arrays) -> None:
        with pytest.raises(ValueError, match="different lengths"):
            load_dataset(write(rewards=columns["rewards"][:-1]))

    def test_values_are_checked(self, write: WriteFile, columns: Arrays) -> None:
        rewards = columns["rewards"].copy()
        rewards[40] = np.nan
        with pytest.raises(ValueError, match=r"next/reward .* episode 4, step 0"):
            load_dataset(write(rewards=rewards))
        with pytest.raises(ValueError, match="lies outside the bounds"):
            load_dataset(write(), action_high=0.1)

    def test_no_steps(self, write: WriteFile, columns: Arrays) -> None:
        with pytest.raises(ValueError, match="holds no steps"):
            load_dataset(write(**{key: column[:0] for key, column in columns.items()}))
