"""One cell of the benchmark, from a dataset to a record, and records to a table."""

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
from benchmarks.run_cell import hold_out, main
from benchmarks.summarize import draw_asked, read_records, score_table
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
    main([*common, "--method", "bc", "--steps", "3", "--config", '{"batch_size": 8}'])
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


def record(seed: int, scores: list[float], asked: dict[str, float]) -> str:
    mean = sum(scores) / len(scores)
    return json.dumps(
        {
            "method": "mage",
            "dataset": "a/b-v0",
            "seed": seed,
            "score": mean,
            "scores": scores,
            "asked": asked,
            "training_seconds": 1.0,
        }
    )


def test_table_and_picture_of_records(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    rows = [record(0, [1.0, 3.0], {"1": 5.0, "2": 6.0}), record(1, [4.0, 6.0], {"1": 5.5, "2": 7})]
    path.write_text("\n".join(rows) + '\n{"method": "ma')  # cut short by an interruption
    records = read_records(path)
    cells = [list(column.cells) for column in score_table(records).columns]
    # Mean of the seeds' means; standard error sqrt(13 / 3) / 2 over the four episodes.
    assert [column[0] for column in cells[2:6]] == ["2", "4", "3.5", "1.0"]
    figure, correlation = draw_asked(records, "a/b-v0")
    assert len(figure.axes[0].lines) == 2
    assert correlation == pytest.approx(0.8944, abs=1e-4)
    with pytest.raises(ValueError, match="several asked returns"):
        draw_asked(records, "c/d-v0")


def test_a_damaged_line_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"method": "ma\n' + record(0, [1.0], {}) + "\n")
    with pytest.raises(ValueError, match="line 1 of"):
        read_records(path)
