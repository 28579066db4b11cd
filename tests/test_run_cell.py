"""One cell of the benchmark, from a dataset to a record."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("matplotlib")

from benchmarks.collect.pointmaze import collect
from benchmarks.demo import RECIPE
from benchmarks.report import read_records
from benchmarks.run_cell import hold_out, main
from tests.tiny import CORE

SHORT = dataclasses.replace(
    RECIPE,
    dataset_id="local/pointmaze/tiny-v0",
    maze="umaze",
    steps=120,
    max_episode_steps=40,
    reference_episodes=5,
)


def test_held_out_episodes_are_whole_and_apart(toy_dataset: TensorDict) -> None:
    training, held = hold_out(toy_dataset, 0.3)
    assert len(training) + len(held) == len(toy_dataset)
    assert not set(training["episode"].tolist()) & set(held["episode"].tolist())
    assert held["episode"].unique().numel() == 2  # 0.3 of seven
    again, _ = hold_out(toy_dataset, 0.3)
    assert torch.equal(again["observation"], training["observation"])


def test_cells_append_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(SHORT, tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    output = tmp_path / "records.jsonl"
    common = ["--dataset", SHORT.dataset_id, "--output", str(output), "--quiet", "--episodes", "2"]
    main([*common, "--method", "bc", "--config", json.dumps({"steps": 3})])
    # Observation keys are the preset's.
    tiny = {key: value for key, value in CORE.items() if key != "observation_keys"}
    main([*common, "--config", json.dumps(tiny), "--targets", "0.1,0.9"])
    cloning, mage = read_records(output)
    for record in (cloning, mage):
        assert record["score"] == pytest.approx(sum(record["scores"]) / 2, abs=1e-2)
    assert (cloning["method"], mage["method"]) == ("bc", "mage")
    assert set(mage["asked"]) == {"0.1", "0.9"}
    assert mage["held_out"]["action_error_acting"] > 0
    assert cloning["held_out"]["action_error"] > 0
    assert mage["config"]["codebook_size"] == tiny["codebook_size"]
