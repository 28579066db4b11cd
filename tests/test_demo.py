"""The demo, from nothing to the report, with methods that learn next to nothing."""

import dataclasses
import io
from pathlib import Path

import pytest

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("matplotlib")

from rich.console import Console

from benchmarks import demo
from benchmarks.demo import CHANGES, RECIPE, run_demo
from benchmarks.methods import expand
from tests.test_suite import Inline

TINY = {
    **CHANGES,
    "num_scales": 2,
    "codebook_size": 8,
    "width": 16,
    "num_blocks": 1,
    "num_autoencoder_blocks": 1,
    "batch_size": 8,
}
SHORT = dataclasses.replace(RECIPE, steps=300, max_episode_steps=60, reference_episodes=10)


@pytest.mark.slow
def test_demo_writes_what_it_says_and_uses_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LocalExecutor", Inline)

    def run() -> list[str]:
        console = Console(file=io.StringIO(), width=200)
        run_demo(tmp_path, recipe=SHORT, changes=TINY, minutes=0.002, episodes=2, console=console)
        return console.file.getvalue().splitlines()

    first = run()
    rows = [line.split("│")[1].strip() for line in first if "│" in line]
    assert rows[0] == "data"
    assert set(expand(["all"])) <= set(rows)
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    assert first[-1] == f"{tmp_path / 'report.html'}: the report"
    report = (tmp_path / "report.html").read_text()
    second = run()
    assert any("delete it to collect anew" in line for line in second)
    assert [line for line in second if "│" in line] == [line for line in first if "│" in line]
    assert (tmp_path / "report.html").read_text() == report
