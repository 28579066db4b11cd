"""The demo, from nothing to the report, with methods that learn next to nothing."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("matplotlib")

from rich.console import Console

from benchmarks import demo
from benchmarks.demo import CHANGES, RECIPE, run_demo
from tests.test_suite import Inline

TINY = {
    **CHANGES,
    "num_scales": 2,
    "codebook_size": 8,
    "width": 16,
    "num_blocks": 1,
    "num_autoencoder_blocks": 1,
    "batch_size": 8,
    "value_steps": 3,
}
SHORT = dataclasses.replace(RECIPE, steps=700)


METHODS = ["mage", "bc", "dt"]  # one of each kind


def test_gymnasium_robotics_prints_nothing() -> None:
    line = [sys.executable, "-c", "import benchmarks.demo, mage_agent; print('ours')"]
    told = subprocess.run(line, capture_output=True, text=True, check=True)
    assert told.stdout == "ours\n"
    assert "gymnasium-robotics" not in told.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the codebook has collapsed")  # which it has not learnt not to
def test_demo_writes_what_it_says_and_uses_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LocalExecutor", Inline)
    monkeypatch.setattr(demo, "METHODS", METHODS)

    def run() -> list[str]:
        console = Console(file=io.StringIO(), width=200)
        run_demo(
            tmp_path,
            recipe=SHORT,
            changes=TINY,
            minutes=0.002,
            episodes=2,
            rollouts=1,
            console=console,
        )
        return console.file.getvalue().splitlines()

    first = run()
    rows = [line.split("│")[1].strip() for line in first if "│" in line]
    assert first[0].startswith("It collects a maze dataset")
    assert sorted(rows[:-1]) == sorted(METHODS)
    assert rows[-1] == "data"
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    assert first[-1] == f"{tmp_path / 'report.html'}: the report"
    report = (tmp_path / "report.html").read_text()
    second = run()
    assert any("delete it to collect anew" in line for line in second)
    assert [line for line in second if "│" in line] == [line for line in first if "│" in line]
    assert (tmp_path / "report.html").read_text() == report
