"""Every example runs, as a user would run it, only smaller."""

import runpy
import sys
from pathlib import Path

import pytest

# So few steps train no codebook.
pytestmark = pytest.mark.filterwarnings("ignore:the codebook has collapsed")

EXAMPLES = Path(__file__).parent.parent / "examples"
ARGUMENTS = {
    "torchrl_loop": ["--episodes", "2", "--steps", "2"],
    "sb3_evaluate": ["--episodes", "2", "--steps", "3", "--eval-episodes", "1"],
    "custom_dataset": ["--episodes", "4", "--steps", "3"],
    "own_environment": ["--episodes", "4", "--steps", "3", "--eval-episodes", "2"],
    "visualize_plan": ["--episodes", "4", "--steps", "3"],
}
LAST_LINE = {
    "torchrl_loop": "the controller earned",
    "sb3_evaluate": "asked for",
    "custom_dataset": "step 50: the cart is at",
    "own_environment": "MAGE: return",
    "visualize_plan": "wrote plan.png",
}


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_example_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run(name, ARGUMENTS[name], monkeypatch)
    assert LAST_LINE[name] in capsys.readouterr().out.splitlines()[-1]


def test_saved_policy_is_evaluated_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ARGUMENTS["sb3_evaluate"], "--policy", str(tmp_path / "pendulum.mage")]
    run("sb3_evaluate", arguments, monkeypatch)
    first = capsys.readouterr().out.splitlines()[-3:]
    run("sb3_evaluate", arguments, monkeypatch)
    assert capsys.readouterr().out.splitlines() == first


def test_there_is_a_test_for_every_example_and_the_loop_is_short() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*ARGUMENTS, "own_agent"}
    assert len((EXAMPLES / "torchrl_loop.py").read_text().splitlines()) < 60
