"""robomimic's files: demonstrations in order, their observations by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mage_agent.data import load_dataset, metadata, observation_keys

WriteFile = Callable[..., Path]
ORDER = (0, 1, 2, 10)  # h5py lists demo_10 before demo_2


@pytest.fixture
def write(tmp_path: Path, rng: np.random.Generator) -> WriteFile:
    """Return a function that writes demonstrations of four steps, the last two in the goal."""

    def write(*, left_out: str = "", following: bool = True, **observations: Any) -> Path:
        with h5py.File(tmp_path / "can.hdf5", "w") as file:
            for number in ORDER:
                demo = file.create_group(f"data/demo_{number}")
                walk = number + 0.1 * np.arange(5.0)
                for name, part in {"pose": np.stack([walk, -walk], 1), "width": walk}.items():
                    demo[f"obs/{name}"] = part[:-1]
                    if following:
                        demo[f"next_obs/{name}"] = part[1:]
                for name, part in observations.items():
                    demo[f"obs/{name}"] = part
                demo["actions"] = rng.uniform(-1, 1, size=(4, 7))
                demo["rewards"] = demo["dones"] = np.array([0, 0, 1, 1])
                demo["states"] = rng.normal(size=(4, 30))
                if left_out:
                    del demo[left_out]
        return tmp_path / "can.hdf5"

    return write


@pytest.mark.parametrize("following", [False, True])
def test_read(write: WriteFile, following: bool) -> None:
    dataset = load_dataset(write(following=following))
    assert observation_keys(dataset) == ("pose", "width")
    assert dataset["episode"].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert dataset["width"][::4].flatten().tolist() == [*ORDER]
    assert dataset["pose"].shape == (16, 2)
    assert dataset["next", "terminated"].flatten().tolist() == [False, False, False, True] * 4
    assert dataset["next", "width"][3].item() == pytest.approx(0.4 if following else 0.3)
    assert metadata(dataset)["dataset_id"] == "can"


@pytest.mark.parametrize("part", ["obs", "rewards", "dones", "actions"])
def test_incomplete(write: WriteFile, part: str) -> None:
    with pytest.raises(ValueError, match=rf"demo_0 lacks {part} .*dataset_states_to_obs"):
        load_dataset(write(left_out=part))


def test_images(write: WriteFile) -> None:
    with pytest.raises(ValueError, match=r"obs/view has the shape \(4, 8, 8, 3\), an image"):
        load_dataset(write(following=False, view=np.zeros((4, 8, 8, 3), dtype=np.uint8)))


def test_other_demonstrations(write: WriteFile) -> None:
    path = write()
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs/width"]
    with pytest.raises(ValueError, match=r"demo_2 has the observations \['pose'\], demo_0 has"):
        load_dataset(path)
    with h5py.File(path, "w") as file:
        file.create_group("data")
    with pytest.raises(ValueError, match="holds no demonstrations"):
        load_dataset(path)


def test_links_are_refused(write: WriteFile) -> None:
    path = write()
    with h5py.File(path, "a") as file:
        file["data/demo_3"] = h5py.ExternalLink("other.hdf5", "/")
    with pytest.raises(ValueError, match="is a link to something else"):
        load_dataset(path)
