"""Whatever moment training or collection is killed at, nothing is lost and nothing stays behind."""

import json
from functools import cache
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mage_agent import MAGEPolicy, checkpoint, dataset_from_arrays, fit, load_dataset
from tests.kill import kill_often
from tests.tiny import tiny_config

STEPS = 12


@cache
def dataset() -> TensorDict:
    rng = np.random.default_rng(0)
    ends = np.arange(1, 201) % 20 == 0
    observation, action = rng.normal(size=(200, 3)), rng.uniform(-1, 1, size=(200, 2))
    return dataset_from_arrays(observation, action, rng.normal(size=200), ends, ends & False)


def train(folder: Path) -> None:
    """Train with everything that draws random numbers, saving all the time, and save the policy."""
    torch.set_num_threads(1)
    config = tiny_config(
        dropout=0.3,
        plan_dropout=0.3,
        inverse_dynamics_condition="state_and_return",
        return_expectile=0.9,
        **{f"{stage}_steps": STEPS for stage in ("tokenizer", "generator", "inverse_dynamics")},
    )
    policy = MAGEPolicy.from_dataset(dataset(), config, device="cpu")
    path = folder / "training.mage"
    options = {"checkpoint_path": path, "resume": True, "progress_bar": False}
    fit(policy.model, dataset(), checkpoint_interval=2, device="cpu", **options)
    policy.learn(dataset(), **options)  # goes on where everything is done
    policy.save(folder / "policy.mage")


def check_training(folder: Path) -> None:
    """Every checkpoint loads."""
    if (folder / "training.mage").exists():
        checkpoint.load_tensors(folder / "training.mage")
    if (folder / "policy.mage").exists():
        MAGEPolicy.load(folder / "policy.mage", device="cpu")


def check_trained(folder: Path) -> None:
    """The weights are those of a run that nobody killed, and there is nothing else."""
    assert {path.name for path in folder.iterdir()} == {"training.mage", "policy.mage"}
    for name in ("training.mage", "policy.mage"):
        found, _ = checkpoint.load_tensors(folder / name)
        whole, _ = checkpoint.load_tensors(folder.with_name("whole") / name)
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[key], whole[key]) for key in found)


def collect_maze(folder: Path) -> None:
    """Collect a small dataset, as its command line does."""
    from benchmarks.collect.pointmaze import PointMazeRecipe, collect

    recipe = PointMazeRecipe(
        dataset_id="local/pointmaze/killed-v0", steps=60, max_episode_steps=20, detours=0
    )
    # The controller earns nothing in 20 steps, and random actions less than nothing.
    scores = pytest.MonkeyPatch()
    scores.setattr(
        "benchmarks.collect.pointmaze._mean_return", lambda *_, random_policy: -float(random_policy)
    )
    try:
        collect(recipe, folder, progress_bar=False)
    except FileExistsError:
        pass
    finally:
        scores.undo()


def load_maze(folder: Path) -> dict[str, minari.MinariDataset]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        return {name: minari.load_dataset(name) for name in minari.list_local_datasets()}


def check_collection(folder: Path) -> None:
    """Every dataset that Minari finds is whole."""
    for found in load_maze(folder).values():
        assert len(load_dataset(found)) == 60


def check_collected(folder: Path) -> None:
    """The data are those of a collection that nobody killed, and there is nothing else."""
    (found,) = load_maze(folder).values()
    (whole,) = load_maze(folder.with_name("whole")).values()
    first, second = load_dataset(found), load_dataset(whole)
    assert (first.exclude("metadata") == second.exclude("metadata")).all()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    name = "local/pointmaze"
    data = {f"{name}/killed-v0/data/{file}" for file in ("main_data.hdf5", "metadata.json")}
    assert files == data | {f"{name}/namespace_metadata.json", "local/namespace_metadata.json"}
    for file in files:
        if file.endswith(".json"):
            json.loads((folder / file).read_text())
        else:
            h5py.File(folder / file).close()
    assert {path.name for path in folder.iterdir()} == {"local"}


@pytest.mark.parametrize(
    "kills", [2, pytest.param(50, marks=pytest.mark.nightly)], ids="{} kills".format
)
class TestKilled:
    def test_training_goes_on_to_the_same_weights(self, tmp_path: Path, kills: int) -> None:
        kill_often(train, tmp_path, kills, after_kill=check_training, after_end=check_trained)

    def test_collection_leaves_whole_datasets(self, tmp_path: Path, kills: int) -> None:
        pytest.importorskip("gymnasium_robotics")
        kill_often(
            collect_maze, tmp_path, kills, after_kill=check_collection, after_end=check_collected
        )
