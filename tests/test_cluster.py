"""Cells as tasks of a Ray cluster, whose workers are killed."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("gymnasium_robotics")

from benchmarks import cluster
from benchmarks.cells import Cell, Settings
from benchmarks.cluster import RayExecutor
from tests.test_suite import cells_of


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[cluster\]'"):
        RayExecutor(None, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_killed_workers_lose_no_cell_and_double_none(
    tmp_path: Path, maze_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(cluster, "_RETRIES", 1)
    settings = Settings(output=tmp_path / "out", episodes=1, curve_points=0)
    # In mid-cell, the first kills its worker every time, the second once, the third never.
    cells = cells_of(maze_dataset, "Dying", 0, 1, 2) + cells_of(maze_dataset, "Failing", 0)
    begun: list[Cell] = []
    finished = list(RayExecutor(None, 2).run(cells, settings, begun.append))
    assert len(finished) == len(cells) == len(begun)
    found = dict(finished)
    assert [found[cell]["status"] for cell in cells] == ["failed", "ok", "ok", "failed"]
    assert "WorkerCrashedError" in found[cells[0]]["error"]
    assert [found[cell]["interruptions"] for cell in cells[1:3]] == [1, 0]
    assert found[cells[3]]["error"] == "RuntimeError: nothing can be learnt from this"
