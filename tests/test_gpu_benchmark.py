"""The benchmark of the GPU path, run on the CPU at sizes that take seconds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.findings import Bench, Finding, judged, relative_error

QUICK = ["machine", "resume", "training", "acting", "planning", "numerics", "bfloat16"]


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    return command.main(["--device", "cpu", "--size", "tiny", "--output", str(folder), *arguments])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, and of agents trained for six steps
def test_every_section_runs_and_says_that_no_gpu_was_there(tmp_path: Path) -> None:
    record = run(tmp_path, "--sections", *QUICK)
    assert list(record["sections"]) == QUICK
    for name, section in record["sections"].items():
        assert section["error"] is None, name
        assert section["findings"], name
        assert all(finding["passed"] is not False for finding in section["findings"]), name
    assert json.loads((tmp_path / "gpu.json").read_text()) == record
    table = (tmp_path / "gpu.md").read_text()
    assert "no GPU was there" in table
    assert "| machine | CUDA devices | 0 |" in table or torch.cuda.is_available()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a codebook that was trained for so few steps
def test_agents_are_trained_and_scored(maze_dataset: str, tmp_path: Path) -> None:
    record = run(tmp_path, "--sections", "scores", "--datasets", maze_dataset, "--minutes", "0.1")
    section = record["sections"]["scores"]
    assert section["error"] is None
    assert any(finding["case"].startswith("score") for finding in section["findings"])


def test_a_section_that_fails_is_recorded_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(bench: Bench) -> Any:
        yield Finding("numerics", "before", 1.0, "")
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(command.SECTIONS, "numerics", fails)
    record = run(tmp_path, "--sections", "numerics", "machine")
    failed = record["sections"]["numerics"]
    assert failed["error"] == "RuntimeError: no such kernel"
    assert [finding["case"] for finding in failed["findings"]] == ["before"]
    assert record["sections"]["machine"]["error"] is None
    assert "no such kernel" in (tmp_path / "gpu.md").read_text()


def test_numbers_are_judged() -> None:
    assert judged("a", "b", 0.5, "", 1.0).passed
    assert not judged("a", "b", 2.0, "", 1.0).passed
    assert not judged("a", "b", float("nan"), "", 1.0).passed
    found, expected = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])
    assert relative_error(found, expected) == pytest.approx(0.75)
