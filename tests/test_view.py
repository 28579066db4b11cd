"""What a suite shows while it runs."""

import io

import pytest

pytest.importorskip("rich")

from rich.console import Console

from benchmarks.cells import Cell
from benchmarks.view import View

CELLS = [
    Cell(dataset="a/pen/b-v0", method="bc", seed=seed, budget="quick", minutes=2.0)
    for seed in range(4)
]


def watched(terminal: bool) -> tuple[View, io.StringIO]:
    """Return the view of four cells, after one that is done and one that failed."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200, color_system=None)
    view = View(CELLS, workers=2, already=3, console=console)
    with view:
        for cell in CELLS[:3]:
            view.started(cell)
        view.finished(CELLS[0], {"status": "ok", "score": 12.34, "wall_seconds": 50.0})
        view.finished(CELLS[1], {"status": "failed", "error": "ValueError: no [luck]\nat all"})
    return view, text


def test_lines_name_cells_results_and_the_time_left() -> None:
    view, text = watched(terminal=False)
    first, second = text.getvalue().splitlines()
    assert first.startswith("4/7 a/pen/b-v0 bc seed 0: score 12.3, 0 s (")
    assert second.startswith("5/7 a/pen/b-v0 bc seed 1: failed: ValueError: no [luck] (")
    # One cell has just begun and one waits; the one that is done took 50 seconds.
    assert view.seconds_left() == pytest.approx(50, abs=2)
    assert second.endswith(" left)")


def test_a_terminal_shows_what_runs_and_how_many_are_left() -> None:
    view, text = watched(terminal=True)
    view.console.print(view)
    shown = text.getvalue()
    assert "a/pen/b-v0 bc seed 2" in shown
    assert "4 done  1 running  1 failed  1 waiting" in shown


def test_a_cell_that_begins_again_is_counted_once() -> None:
    view, _ = watched(terminal=False)
    view.started(CELLS[2])
    assert view.total == 7
