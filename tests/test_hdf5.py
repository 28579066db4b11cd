"""HDF5 files from strangers: nothing outside is read, nothing small unfolds to something huge."""

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import minari
import numpy as np
import pytest

from mage_agent import load_dataset, make_environment
from mage_agent.data import hdf5, load
from mage_agent.data.hdf5 import check_hdf5

Change = Callable[[h5py.File], None]


@pytest.fixture
def path(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "log.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(40, 3)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, size=(40, 2)).astype(np.float32)
        file["rewards"] = rng.normal(size=40)
        file["terminals"] = np.arange(1, 41) % 10 == 0
        file["timeouts"] = np.zeros(40, dtype=bool)
        file["metadata/algorithm/name"] = "SAC"
    return path


def link_out(file: h5py.File) -> None:
    del file["rewards"]
    file["rewards"] = h5py.ExternalLink("other.hdf5", "/rewards")


def link_in(file: h5py.File) -> None:
    del file["rewards"]
    file["rewards"] = h5py.SoftLink("/terminals")


def link_twice(file: h5py.File) -> None:
    file["metadata/again"] = file["metadata/algorithm"]


def store_outside(file: h5py.File) -> None:
    del file["rewards"]
    file.create_dataset("rewards", (40,), "f4", external=[("/etc/passwd", 0, 160)])


def map_outside(file: h5py.File) -> None:
    del file["rewards"]
    layout = h5py.VirtualLayout((40,), "f4")
    layout[:] = h5py.VirtualSource("other.hdf5", "rewards", (40,))
    file.create_virtual_dataset("rewards", layout)


def declare_much(file: h5py.File) -> None:
    del file["observations"]
    file.create_dataset("observations", (10**12, 3), "f4", chunks=True)


def nest(file: h5py.File) -> None:
    file.create_group("/".join("n" * 20))


HOSTILE: list[tuple[Change, str]] = [
    (link_out, "/rewards is a link to something else"),
    (link_in, "/rewards is a link to something else"),
    (link_twice, "is linked more than once"),
    (store_outside, "the data of /rewards lie in another file"),
    (map_outside, "the data of /rewards lie in another file"),
    (declare_much, r"declares 12000000\d+ bytes"),
    (nest, "is nested more than 16 deep"),
]


class TestFiles:
    def test_a_sound_one_passes(self, path: Path) -> None:
        check_hdf5(path)
        assert len(load_dataset(path)) == 40

    def test_any_compression_passes_that_memory_can_hold(self, path: Path) -> None:
        """Millions of steps with sparse rewards compress a thousandfold."""
        with h5py.File(path, "a") as file:
            zeros = np.zeros((2**24, 2), dtype="f4")
            file.create_dataset("infos/qvel", data=zeros, compression="gzip", chunks=(2**20, 2))
        assert 100 * path.stat().st_size < 2**27
        check_hdf5(path)
        assert len(load_dataset(path)) == 40

    @pytest.mark.parametrize(("change", "message"), HOSTILE, ids=lambda value: str(value)[:20])
    def test_a_hostile_one_is_refused(self, path: Path, change: Change, message: str) -> None:
        with h5py.File(path, "a") as file:
            change(file)
        with pytest.raises(ValueError, match=message) as caught:
            load_dataset(path)
        assert str(path) in str(caught.value)

    def test_columns_of_another_kind_are_refused(self, path: Path) -> None:
        for value in ("text", [b"a"] * 40, 3.0, np.zeros((40, 2, 2)), np.zeros(40, "c8, i4")):
            with h5py.File(path, "a") as file:
                del file["observations"]
                file["observations"] = value
            with pytest.raises((TypeError, ValueError), match=r"log\.hdf5"):
                load_dataset(path)


class TestMinari:
    @pytest.fixture
    def data(self, minari_dataset: minari.MinariDataset) -> Path:
        return Path(minari_dataset.storage.data_path)

    def change(self, data: Path, **changes: Any) -> None:
        stored = json.loads((data / "metadata.json").read_text())
        kept = {key: value for key, value in (stored | changes).items() if value is not None}
        (data / "metadata.json").write_text(json.dumps(kept))

    def test_hostile_data_are_refused(self, data: Path) -> None:
        with h5py.File(data / "main_data.hdf5", "a") as file:
            del file["episode_3/rewards"]
            file["episode_3/rewards"] = h5py.ExternalLink("other.hdf5", "/rewards")
        with pytest.raises(ValueError, match="/episode_3/rewards is a link to something else"):
            load_dataset("toy/point-v0")

    @pytest.mark.parametrize("count", [-1, 8, 10**15])
    def test_episodes_that_are_not_there(self, data: Path, count: int) -> None:
        self.change(data, total_episodes=count)
        with pytest.raises(ValueError, match=rf"point-v0.* counts {count} episodes and holds 7"):
            load_dataset("toy/point-v0")

    def test_a_space_that_would_not_fit_into_memory(self, data: Path) -> None:
        box = {"type": "Box", "dtype": "float32", "shape": [10**13], "low": 0.0, "high": 1.0}
        self.change(data, observation_space=json.dumps({"type": "Dict", "subspaces": {"a": box}}))
        with pytest.raises(ValueError, match="a space of the shape"):
            load_dataset("toy/point-v0")

    @pytest.mark.parametrize(
        "change",
        [{"data_format": "pickle"}, {"minari_version": "9"}, {"total_episodes": "many"}],
        ids=str,
    )
    def test_damaged_metadata_name_the_dataset(self, data: Path, change: dict[str, Any]) -> None:
        self.change(data, **change)
        with pytest.raises(ValueError, match="'toy/point-v0' cannot be loaded"):
            load_dataset("toy/point-v0")

    def test_a_missing_file(self, data: Path) -> None:
        (data / "main_data.hdf5").unlink()
        with pytest.raises(ValueError, match="'toy/point-v0' cannot be loaded"):
            load_dataset("toy/point-v0")


class Stored(NamedTuple):
    """A dataset's reader, what it is loaded by, its file, and the entry of actions in it."""

    reader: str
    name: str
    file: Path
    actions: str


class TestMemory:
    """Refused is what does not fit into the memory that this process may take, nothing else."""

    @pytest.fixture(params=["d4rl", "minari"])
    def stored(
        self, request: pytest.FixtureRequest, path: Path, minari_dataset: minari.MinariDataset
    ) -> Stored:
        """A dataset of each reader."""
        if request.param == "d4rl":
            return Stored("d4rl", str(path), path, "actions")
        file = Path(minari_dataset.storage.data_path) / "main_data.hdf5"
        return Stored("minari", minari_dataset.id, file, "episode_3/actions")

    def test_the_limit_of_the_process_holds(
        self, stored: Stored, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Actions that claim 160 MB, where the process may take 256 MiB more, as `ulimit -v`."""
        with h5py.File(stored.file, "a") as file:
            del file[stored.actions]
            file.create_dataset(stored.actions, (10**7, 2), "f8", chunks=True, compression="gzip")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**28
        monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, limit))
        message = (
            rf"declares 1600\d+ bytes of data, the largest part in /{stored.actions} of the shape "
            r"\(10000000, 2\); reading it takes 3200\d+ bytes, and this process has (\d+) bytes"
        )
        with pytest.raises(ValueError, match=message) as caught:
            load_dataset(stored.name)
        assert stored.name in str(caught.value)
        assert int(re.findall(r"has (\d+) bytes", str(caught.value))[0]) <= 2**28

    def test_copies_count(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each value read takes its own bytes and 8 more; those not copied take only their own."""
        with h5py.File(path, "a") as file:
            del file["metadata"]
            file["infos/goal"] = file["infos/qvel"] = np.zeros((40, 2), "f4")
            file["next_observations"] = np.roll(file["observations"][()], -1, axis=0)
        needed = 40 * (3 * 12 + 2 * 12 + 16 + 9 + 9 + 2 * 12 + 2 * 4 + 3 * 4)
        monkeypatch.setattr(hdf5, "available_memory", lambda: needed)
        assert len(load_dataset(path)) == 40
        monkeypatch.setattr(hdf5, "available_memory", lambda: needed - 1)
        with pytest.raises(ValueError, match=rf"takes {needed} bytes, .* has {needed - 1} bytes"):
            load_dataset(path)

    def test_an_allocation_that_fails_is_named(
        self, stored: Stored, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(load, f"read_{stored.reader}", lambda *_, **__: np.empty(2**55, "u1"))
        message = r"cannot be loaded: Unable to allocate 32.0 PiB .*; this process has \d+ bytes"
        with pytest.raises(ValueError, match=message) as caught:
            load_dataset(stored.name)
        assert stored.name in str(caught.value)


class TestCodeInData:
    """A dataset names the environment it comes from, and thereby code."""

    def spec(self, mark: Path) -> str:
        return json.dumps({"id": "X-v0", "entry_point": "os:mkdir", "kwargs": {"path": str(mark)}})

    def test_loading_never_runs_it(
        self, minari_dataset: minari.MinariDataset, tmp_path: Path
    ) -> None:
        mark = tmp_path / "was_here"
        file = Path(minari_dataset.storage.data_path) / "metadata.json"
        stored = json.loads(file.read_text()) | {"env_spec": self.spec(mark)}
        del stored["action_space"]
        file.write_text(json.dumps(stored))
        with pytest.raises(ValueError, match="does not say its action_space"):
            load_dataset("toy/point-v0")
        assert not mark.exists()

    def test_making_the_environment_never_runs_it(
        self, minari_dataset: minari.MinariDataset, tmp_path: Path
    ) -> None:
        mark = tmp_path / "was_here"
        dataset = load_dataset(minari_dataset)
        facts = dataset.get_non_tensor("metadata")
        wrapped = json.loads(facts["env_spec"])
        wrapped["additional_wrappers"] = [{"name": "x", "entry_point": "os:mkdir", "kwargs": {}}]
        for text in (self.spec(mark), json.dumps(wrapped)):
            dataset.set_non_tensor("metadata", {**facts, "eval_env_spec": text})
            with pytest.raises(ValueError, match="a dataset must not choose what runs"):
                make_environment(dataset)
        assert not mark.exists()

    @pytest.mark.parametrize("text", ["{", "[]", "3", "{}", '{"entry_point": 3, "id": "A-v0"}'])
    def test_text_that_names_nothing(self, minari_dataset: minari.MinariDataset, text: str) -> None:
        dataset = load_dataset(minari_dataset)
        dataset.set_non_tensor("metadata", {"env_spec": text})
        with pytest.raises(ValueError, match="names no environment that can be made"):
            make_environment(dataset)
