"""The demo, from nothing to the picture, with a model that learns nothing."""

import dataclasses
import io
from pathlib import Path

import pytest

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("matplotlib")

from rich.console import Console

from benchmarks.demo import CONFIG, RECIPE, run_demo

TINY = CONFIG.replace(
    num_scales=2,
    codebook_size=8,
    width=16,
    num_blocks=1,
    num_autoencoder_blocks=1,
    batch_size=8,
    tokenizer_steps=2,
    generator_steps=2,
    inverse_dynamics_steps=2,
)
SHORT = dataclasses.replace(RECIPE, steps=120, max_episode_steps=60, reference_episodes=10)


def test_demo_writes_what_it_says_and_uses_it_again(tmp_path: Path) -> None:
    def run() -> str:
        console = Console(file=io.StringIO(), width=200)
        run_demo(tmp_path, recipe=SHORT, config=TINY, cloning_steps=2, episodes=2, console=console)
        return console.file.getvalue()

    first = run()
    rows = [line.split("│")[1].strip() for line in first.splitlines() if "│" in line]
    assert rows == ["data", "behaviour cloning", "MAGE, median asked", "MAGE"]
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    trained = (tmp_path / "policy.mage").stat().st_mtime_ns
    second = run()
    assert "delete it to train anew" in second
    assert (tmp_path / "policy.mage").stat().st_mtime_ns == trained
    assert [line for line in second.splitlines() if "│" in line] == [
        line for line in first.splitlines() if "│" in line
    ]
