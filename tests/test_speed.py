"""The speed benchmark: what it compares, and how."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import speed
from benchmarks.methods import expand


def test_cases_take_turns_and_are_compared_with_one_of_them() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        began = time.process_time()
        while time.process_time() - began < 0.004:
            pass

    timings = speed.interleave({"slow": slow, "fast": lambda: order.append("fast")}, 3, "cpu")
    assert order == ["slow", "fast"] * 5
    rows = {row.case: row for row in speed.rows("a group", timings, "slow")}
    assert rows["slow"].median_ms >= 4
    assert rows["slow"].ratio == 1
    assert rows["fast"].ratio < 0.5


def test_methods_of_the_suite_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    build, names = speed.build_method, ["mage", "gac", "bc", "dt", "fql", "hiql"]
    assert set(names) <= set(expand(["all"]))
    monkeypatch.setattr(speed, "expand", lambda asked: names)  # planners take minutes

    def small(*args: Any, paper_size: bool, **settings: Any) -> Any:
        return build(*args, **settings, paper_size=False)

    monkeypatch.setattr(speed, "build_method", small)
    rows = list(speed.deciding("cpu", rounds=1))
    told_goals = {"hiql"}  # which the data of the timings lack
    cases = [name for name in names if name not in told_goals] + ["mage, paper size"]
    assert [row.case for row in rows] == cases * 2
    assert [row.group for row in rows] == [
        f"predict, batch {batch}" for batch in (1, 64) for _ in cases
    ]
    assert all(row.median_ms > 0 for row in rows)


def test_one_group_can_be_measured_alone(tmp_path: Path) -> None:
    speed.main(["--groups", "draw", "--rounds", "2", "--output", str(tmp_path)])
    table = (tmp_path / "speed.md").read_text()
    assert table.count("| draw 512 windows |") == 3
    assert "predict" not in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.csv", "speed.md"]


@pytest.mark.parametrize("plain", [False, True])
def test_a_step_of_training_is_one_of_the_second_stage(plain: bool) -> None:
    sizes = {"width": 16, "num_blocks": 1, "codebook_size": 8, "num_heads": 2}
    model = speed.make_model("adroit-small", "cpu", **sizes)
    step = speed.Step(model, plain=plain, batch=4)
    before = {name: value.clone() for name, value in model.named_parameters()}
    step()
    moved = {name for name, value in model.named_parameters() if not value.equal(before[name])}
    assert {name.partition(".")[0] for name in moved} >= {"transformer", "inverse_dynamics"}
    assert not any(name.startswith("encoder") for name in moved)


def test_acting_without_a_cache_equals_acting() -> None:
    model = speed.make_model("adroit-small", "cpu", width=16, num_blocks=1, num_heads=2)
    observation, target = torch.randn(3, speed.OBSERVATION), torch.zeros(3)
    expected = model.act(observation, target)
    torch.testing.assert_close(speed.act_plainly(model, observation, target), expected)
