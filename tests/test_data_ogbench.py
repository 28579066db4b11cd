"""OGBench's .npz files: the last row of a trajectory is no step."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Arrays

from mage_agent.data import hdf5, load_dataset, metadata

WriteFile = Callable[..., Path]
ENDS = np.array([0, 0, 0, 1, 0, 0, 0, 0, 1])  # trajectories of three and of four steps


@pytest.fixture
def columns(rng: np.random.Generator) -> Arrays:
    return {
        "observations": rng.normal(size=(9, 2)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(9, 1)).astype(np.float32),
        "terminals": ENDS.astype(np.float32),
        "qpos": rng.normal(size=(9, 2)),
        "rewards": -np.ones(9),
        "masks": np.ones(9),
    }


@pytest.fixture
def write(tmp_path: Path, columns: Arrays) -> WriteFile:
    def write(**changes: Any) -> Path:
        present = {k: v for k, v in {**columns, **changes}.items() if v is not None}
        np.savez(tmp_path / "maze-v0.npz", **present)
        return tmp_path / "maze-v0.npz"

    return write


@pytest.mark.parametrize("cut", [False, True])
def test_as_published(write: WriteFile, columns: Arrays, cut: bool) -> None:
    terminals = columns["terminals"].copy()
    terminals[-1] = not cut
    dataset = load_dataset(str(write(terminals=terminals)))
    observations = columns["observations"]
    seen = [0, 1, 2, 4, 5, 6, 7]
    assert dataset["episode"].tolist() == [0] * 3 + [1] * 4
    assert np.array_equal(dataset["observation"], observations[seen])
    assert np.array_equal(dataset["next", "observation"], observations[np.add(seen, 1)])
    assert np.array_equal(dataset["action"], columns["actions"][seen])
    assert not dataset["next", "terminated"].any()
    assert metadata(dataset)["dataset_id"] == "maze-v0"


def test_compact_columns(write: WriteFile, columns: Arrays) -> None:
    terminals = np.array([0, 0, 1, 1, 0, 0, 0, 1, 1])
    compact = load_dataset(write(terminals=terminals, valids=1 - ENDS))
    assert (compact == load_dataset(write())).all()


def test_transitions_of_one_task(write: WriteFile, columns: Arrays) -> None:
    seen = np.flatnonzero(1 - ENDS)
    rows = {key: column[seen] for key, column in columns.items()}
    rows["next_observations"] = columns["observations"][seen + 1]
    rows["terminals"] = np.array([0, 0, 1, 0, 0, 0, 1])
    rows["masks"] = np.array([1, 1, 1, 1, 0, 1, 1])
    dataset = load_dataset(write(**rows))
    assert dataset["episode"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert dataset["next", "terminated"].flatten().nonzero().flatten().tolist() == [4]
    assert np.array_equal(dataset["next", "observation"], columns["observations"][seen + 1])


@pytest.mark.parametrize("given", [False, True])
def test_rows_that_stay_at_the_goal_are_no_episodes(
    write: WriteFile, columns: Arrays, given: bool
) -> None:
    """OGBench masks every row at the goal of a task, of which the first one ends the episode."""
    masks = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1])
    following = np.roll(columns["observations"], -1, axis=0) if given else None
    dataset = load_dataset(write(masks=masks, next_observations=following))
    seen = [0, 1, 4, 5, 6, 8] if given else [0, 1, 4, 5, 6]
    assert np.array_equal(dataset["observation"], columns["observations"][seen])
    assert dataset["episode"].tolist() == [0, 0, 1, 1, 1, 2][: len(seen)]
    assert dataset["next", "terminated"].flatten().nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": None}, "holds no rewards, since OGBench's data serve any goal.*singletask"),
        ({"terminals": None}, "lacks terminals and has observations, actions, qpos"),
        # A log with D4RL's columns, whose terminals mean something else.
        ({"masks": None, "timeouts": ENDS}, "lacks masks and has .*timeouts.* dataset_from_arrays"),
        ({"actions": np.zeros((8, 1))}, "have different lengths"),
        ({"terminals": ENDS - 2}, "terminals must hold booleans"),
        ({"observations": np.zeros((9, 4, 4, 3))}, "flatten observations"),
    ],
)
def test_unfit(write: WriteFile, changes: Arrays, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_dataset(write(**changes))


def test_bad_files(write: WriteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_dataset("none.npz")
    path = write()
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"is truncated or no \.npz file"):
        load_dataset(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("observations.npy", bytes(80 * 2**20))
    with monkeypatch.context() as patch:
        patch.setattr(hdf5.os, "sysconf", lambda name: 2**12)  # 4096 pages of 4096 bytes
        with pytest.raises(ValueError, match=r"declares \d+ bytes .* has 16777216 bytes of memory"):
            load_dataset(path)
    for folder in (str(tmp_path), tmp_path):
        with pytest.raises(ValueError, match=r"is a folder; .* use dataset_from_arrays"):
            load_dataset(folder)
    other = tmp_path / "log.pkl"
    other.write_bytes(b"\x80\x04")
    for name in (other, str(other)):
        with pytest.raises(ValueError, match=r"nor a file of a known kind .* dataset_from_arrays"):
            load_dataset(name)
