"""The suite, from the command line to the records, with methods that learn nothing."""

import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from filelock import FileLock
from tensordict import TensorDict

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("rich")

from benchmarks import command, datasets, executors, experiment, measure, records
from benchmarks.cells import Cell, Settings, folder_of
from benchmarks.clock import TrainingClock, preserve_state
from benchmarks.collect import recipes
from benchmarks.domains import domain_of
from benchmarks.executors import LocalExecutor, fitting_workers
from benchmarks.experiment import attempt, failure
from benchmarks.measure import run_episodes
from benchmarks.methods import build_method, find_method
from benchmarks.papers import find_paper, stand_in
from benchmarks.protocol import AgentMethod
from benchmarks.suite import run_suite
from mage_agent import AgentPolicy, MAGEConfig, MAGEPolicy, recording
from mage_agent.d4rl import TASKS
from tests.suite_methods import Still
from tests.tiny import CORE

ROOT = Path(__file__).parents[1]
OURS = "tests.suite_methods"
KEYS = ("observation", "achieved_goal", "desired_goal")


class Inline:
    """Runs cells in this process, so that a test is fast."""

    def __init__(self, workers: int) -> None:
        pass

    def run(
        self, cells: Sequence[Cell], settings: Settings, started: Callable[[Cell], None]
    ) -> Iterator[tuple[Cell, Any]]:
        for cell in cells:
            started(cell)
            yield cell, attempt(cell, settings)


@pytest.fixture
def suite(
    tmp_path: Path, maze_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    """Return a function that runs the command; it returns the exit status and all records."""
    monkeypatch.setattr(command, "LocalExecutor", Inline)
    datasets.load_split.cache_clear()

    def run(*arguments: str, methods: str = "Still") -> tuple[int, list[dict[str, Any]]]:
        named = ",".join(f"{OURS}:{name}" for name in methods.split(","))
        common = ("--datasets", maze_dataset, "--methods", named, "--budget", "paper")
        short = ("--seeds", "1", "--episodes", "2", "--curve-points", "0")
        status = command.main([*common, *short, "--output", str(tmp_path / "out"), *arguments])
        return status, records.read(tmp_path / "out" / "records.jsonl")

    return run


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_every_cell_has_one_record_and_runs_once(suite: Any, tmp_path: Path) -> None:
    status, found = suite("--seeds", "2", "--curve-points", "3")
    assert status == 0
    assert [record["seed"] for record in found] == [0, 1]
    for record in found:
        assert record["status"] == "ok"
        assert len(record["scores"]) == len(record["returns"]) == record["episodes"] == 2
        assert record["score"] == pytest.approx(sum(record["scores"]) / 2, abs=1e-3)
        assert record["evaluation_seed"] == 100_000 + 1_000 * record["seed"]
        assert [point["step"] for point in record["learning_curve"]] == [5, 10, 15, 20]
        assert record["latency_ms"]["batch_1"]["median"] > 0
        assert record["steps"] == Still.published_steps
        assert record["held_out"]["action_error"] > 0
    assert not list(tmp_path.rglob("checkpoint"))
    assert (tmp_path / "out" / "report.html").exists()
    assert suite("--seeds", "2")[1] == found
    assert len(suite("--seeds", "3")[1]) == 3


def test_a_suite_killed_before_it_cleaned_up_does_so_later(suite: Any, tmp_path: Path) -> None:
    _, found = suite()
    (folder,) = (tmp_path / "out" / "cells").iterdir()
    left = [folder / "checkpoint", folder / ".checkpoint.1.part"]
    for path in left:
        path.write_bytes(b"")
    assert suite() == (0, found)
    assert not any(path.exists() for path in left)


def test_a_checkpoint_that_another_cell_goes_on_from_stays(
    tmp_path: Path, maze_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that failed needs the training whose own question is answered."""
    from rich.console import Console

    done, failed = (
        replace(cell, method=method)
        for cell, method in zip(cells_of(maze_dataset, "", 0, 0), ("gac", "gac-prior"), strict=True)
    )
    settings = Settings(output=tmp_path)
    record = {**done.facts, "status": "ok", "score": 0.0, "scores": [0.0]}
    records.append(tmp_path / "records.jsonl", record)
    records.append(tmp_path / "records.jsonl", failure(failed, "cut off"))
    folder = folder_of(done, settings)
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_bytes(b"")

    def report(*_: Any) -> Path:
        return tmp_path

    monkeypatch.setattr("benchmarks.report.write", report)
    run_cells = partial(
        run_suite,
        settings=settings,
        executor=Inline(1),
        workers=1,
        console=Console(),
        paper=find_paper(),
    )
    for cells, kept in (([done, failed], True), ([done], False)):
        run_cells(cells)
        assert (folder / "checkpoint").exists() == kept


def test_failure_is_recorded_and_stops_nothing(
    suite: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = suite(methods="Failing,Still")
    assert status == 1
    said = "1 of 2 cells failed, the first with: RuntimeError: nothing can be learnt from this"
    assert said in capsys.readouterr().out
    assert [record["status"] for record in found] == ["failed", "ok"]
    assert found[0]["error"] == "RuntimeError: nothing can be learnt from this"
    assert "in step" in found[0]["traceback"]
    assert suite(methods="Failing,Still") == (1, found)

    monkeypatch.setenv("FAILING_IS_MENDED", "1")
    status, found = suite("--retry-failed", methods="Failing,Still")
    assert status == 0
    assert [record["status"] for record in records.latest(found)] == ["ok", "ok"]
    assert records.latest(found)[0]["interruptions"] == 1  # it went on from its checkpoint
    assert "to train them anew, delete" in capsys.readouterr().out


def test_records_cut_short_are_mended_by_going_on(suite: Any, tmp_path: Path) -> None:
    suite("--seeds", "2")
    path = tmp_path / "out" / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:50])
    _, found = suite("--seeds", "2")
    assert [record["seed"] for record in found] == [0, 1]


def test_two_suites_in_one_folder_are_refused(
    suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(SystemExit):
        suite()
    assert "another suite is writing to" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        suite("--hold-out", "0.2")
    assert "Use the same, or another --output" in capsys.readouterr().err
    for damaged in ("[1, 2]", "{bad"):
        (tmp_path / "out" / "suite.json").write_text(damaged)
        with pytest.raises(SystemExit):
            suite()
        assert "suite.json is damaged; restore it" in capsys.readouterr().err


def test_full_disk_stops_the_suite_and_keeps_its_records(
    suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        suite("--seeds", "3", methods="Full")
    message = capsys.readouterr().err
    assert "No space left" in message
    assert "run the same command again" in message
    assert [r["seed"] for r in records.read(tmp_path / "out" / "records.jsonl")] == [0]


def test_missing_dataset_is_a_line_and_a_record(
    suite: Any, capsys: pytest.CaptureFixture[str], maze_dataset: str
) -> None:
    gone = "local/pen/nowhere-v0"
    for _ in range(2):
        status, found = suite("--datasets", f"{gone},{maze_dataset}")
        assert status == 0
        assert sorted(record["status"] for record in found) == ["ok", "unavailable"]
        shown = capsys.readouterr().out
        assert f"{gone} is unavailable: " in shown
        assert "1 of 2 cells have no data" in shown


def test_a_suite_without_any_data_fails(suite: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = suite("--datasets", "local/pen/nowhere-v0")
    assert status == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "what begins with local/ is made, not downloaded" in shown
    assert "1 of 1 cells have no data" in shown


def test_variants_of_a_table_take_the_steps_of_the_whole_method(
    tmp_path: Path, maze_dataset: str
) -> None:
    settings = Settings(output=tmp_path, episodes=1, curve_points=0)

    def steps(variant: str, cost: float, *, equal: bool, seed: int = 0) -> int:
        cell = Cell(
            **{"dataset": maze_dataset, "method": f"{OURS}:Busy", "seed": seed, "budget": "quick"},
            **{"minutes": 0.02, "variant": variant, "changes": {"cost": cost}},
            equal_steps=equal,
        )
        return int(attempt(cell, settings)["steps"])

    whole = steps("as it is", 1.0, equal=False)
    assert steps("dear", 4.0, equal=False) < whole / 2
    ablation = steps("ablation", 4.0, equal=True)
    assert ablation > whole / 2
    assert steps("", 1.0, equal=True, seed=1) == ablation  # timed once, not for each cell

    def selected(*arguments: str) -> dict[str, bool]:
        cells = command.select(command.make_parser().parse_args(["--seeds", "1", *arguments]))
        return {cell.variant: cell.equal_steps for cell in cells}

    assert selected("--table", "19") == {"": True, "explicit": True}
    assert list(selected("--table", "20")) == ["V=128", "", "V=512", "V=1024"]  # 256 at this size
    one = ("--datasets", "a/pen/b-v0", "--methods", "mage", "--config")
    assert selected(*one, '{"num_scales": 1}') == {"K=1": False}  # by the paper's name
    assert selected(*one, '{"return_conditioning": []}') == {"no condition": False}
    assert selected(*one, '{"num_scales": 3}') == {"num_scales=3": False}


def test_a_method_is_kept_as_far_as_it_can_be_and_git_is_not_needed(
    suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.provenance import provenance

    monkeypatch.setenv("PATH", "")
    provenance.cache_clear()
    status, (record,) = suite("--save")  # Still has no save()
    provenance.cache_clear()
    assert (status, record["status"], record["commit"]) == (0, "ok", "")


def test_changed_settings_are_another_cell(suite: Any) -> None:
    suite()
    _, found = suite("--config", '{"batch_size": 8}')
    assert [record["variant"] for record in found] == ["", "batch_size=8"]
    assert found[1]["hyperparameters"]["batch_size"] == 8
    assert found[0]["config_digest"] != found[1]["config_digest"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--datasets, or a --table"),
        (("--datasets", ""), "'' names nothing; give names"),
        (("--datasets", "a/pen/b-v0", "--methods", ","), "',' names nothing; give names"),
        (("--table", "99"), "can be run are [1, 2, 3, 4, 5"),
        (("--paper", "gpt", "--table", "1"), "invalid choice: 'gpt'"),
        (("--datasets", "a/pen/b-v0", "--methods", "magic"), "known: mage, "),
        (("--datasets", "a/pen/b-v0", "--methods", "no_module:X"), "on PYTHONPATH"),
        (("--datasets", "a/pen/b-v0", "--methods", f"{OURS}:X"), "cannot import the method"),
        (
            ("--datasets", "a/pen/b-v0", "--methods", f"{OURS}:Config"),
            "is no method: no Agent, and without learn, predict, describe",
        ),
        (("--table", "5", "--config", '{"a": 1}'), "changes one method"),
        (("--datasets", "a/pen/b-v0", "--config", "{a: 1}"), "is no JSON"),
        (("--datasets", "a/pen/b-v0", "--config", "[]"), "must be an object"),
        (
            ("--datasets", "a/pen/b-v0", "--methods", "mage", "--config", '{"widths": 3}'),
            "unknown configuration keys ['widths']",
        ),
        (
            ("--datasets", "a/pen/b-v0", "--methods", "iql", "--config", '{"width": 3}'),
            "unknown configuration keys ['width']; known keys: ['",
        ),
        (
            ("--datasets", "a/pen/b-v0", "--methods", "bc,iql", "--targets", "0.5"),
            "none of bc, iql can be asked for a return",
        ),
        (
            ("--datasets", "a/pen/b-v0", "--methods", "mage", "--targets", "0.5,inf"),
            "--targets is '0.5,inf'; it must be finite numbers",
        ),
        (
            ("--datasets", "a/pen/b-v0", "--methods", f"mage,{OURS}:Still", "--stages", "1"),
            f"{OURS}:Still cannot be fine-tuned online",
        ),
        (("--datasets", "a/pen/b-v0", "--stages", "-1"), "-1 is below 0"),
        (("--datasets", "pen-exprt-v1"), "Did you mean 'pen-expert-v1'?"),
        (("--datasets", "a/pen/b-v0", "--minutes", "-1"), "-1.0 is not a finite number above 0"),
        (
            ("--datasets", "a/pen/b-v0", "--budget", "paper", "--minutes", "1"),
            "does not go with --budget paper",
        ),
        (("--datasets", "a/pen/b-v0", "--seeds", "0"), "0 is below 1"),
        (("--datasets", "a/pen/b-v0", "--device", "tpu"), "invalid choice: 'tpu'"),
        (("--datasets", "a/pen/b-v0", "--gpus", "-1"), "-1.0 is not a finite number above 0"),
        (("--datasets", "a/pen/b-v0", "--hold-out", "1"), "not in [0, 1)"),
    ],
)
def test_bad_input_names_what_is_allowed(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refusal(capsys, *arguments)


def test_long_cells_share_a_gpu(
    suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def run_suite(cells: Any, settings: Settings, executor: Any, **options: Any) -> Any:
        asked.update(options, cells=cells, settings=settings, executor=executor)
        return [], tmp_path

    monkeypatch.setattr(command, "run_suite", run_suite)
    monkeypatch.setattr(command, "fitting_workers", lambda threads: 16 // threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    line = ("--seeds", "9", "--budget", "long", "--device", "cuda", "--gpus")
    suite(*line, "0.25", "--threads", "2")
    assert {(cell.budget, cell.minutes) for cell in asked["cells"]} == {("long", 60.0)}
    assert asked["workers"] == 4
    assert (asked["settings"].device, asked["settings"].gpus) == ("cuda", 0.25)
    suite(*line, "0.05", "--threads", "4")
    assert asked["workers"] == 4  # no more than there are cores for


@pytest.mark.filterwarnings("ignore:the codebook has collapsed")  # which it has not learnt not to
def test_mage_is_trained_within_its_minutes_and_asked_and_saved(
    suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Observation keys are the preset's.
    tiny = {key: value for key, value in CORE.items() if key != "observation_keys"}
    common = ("--methods", "mage", "--config", json.dumps(tiny), "--targets", "0.1,0.9", "--save")
    _, (record,) = suite(*common, "--budget", "quick", "--minutes", "0.05")
    assert set(record["asked"]) == {"0.1", "0.9"}
    assert record["held_out"]["action_error_acting"] > 0
    assert 1.0 < record["training_seconds"] < 6.0  # of three
    used = record["hyperparameters"]
    assert used["tokenizer_steps"] == CORE["tokenizer_steps"]  # a share of record["steps"]
    assert (record["domain"], record["device"]) == ("pointmaze", "cpu")
    (folder,) = (tmp_path / "out" / "cells").iterdir()
    assert MAGEPolicy.load(folder / "policy.mage").config.to_dict() == used
    # What was finished stays as it is, and says so.
    capsys.readouterr()
    _, found = suite(*common, "--budget", "quick", "--minutes", "0.05", "--targets", "0.5")
    assert found == [record]
    shown = " ".join(capsys.readouterr().out.split())
    assert "finished before, 1 have not answers to all --targets; they stay" in shown
    # How fast the machine is makes no other configuration.
    _, (_, longer) = suite(*common, "--budget", "quick", "--minutes", "0.1")
    assert longer["steps"] > record["steps"]
    assert longer["config_digest"] == record["config_digest"]


@pytest.mark.filterwarnings("ignore:the codebook has collapsed")
def test_interim_evaluations_change_nothing(maze_dataset: str, tmp_path: Path) -> None:
    dataset, _ = datasets.load_split(maze_dataset, 0.0)
    domain = domain_of(maze_dataset)
    changes = {**CORE, "observation_keys": KEYS, "dropout": 0.3}
    weights = []
    for points in (0, 2):
        method = build_method(
            "mage", dataset, dataset_id=maze_dataset, seed=0, changes={**changes, "discount": 0.99}
        )
        assert isinstance(method, AgentMethod)

        def interim(method: AgentMethod = method) -> dict[str, Any]:
            with preserve_state(method):
                (result,) = run_episodes(method, dataset, domain, episodes=1, seed=0)
            return {"score": result.episode_return}

        clock = TrainingClock(tmp_path / str(points), steps=180, points=points, evaluate=interim)
        method.learn(dataset, steps=180, progress_bar=False, callback=clock)
        assert [point["step"] for point in clock.curve] == [170, 180][:points]
        weights.append(method.model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.parametrize(("name", "steps"), [("mage", 180_000), ("iql", 10**6), ("dt", 10**5)])
def test_published_steps_are_those_of_the_papers_size(
    maze_dataset: str, name: str, steps: int
) -> None:
    dataset, _ = datasets.load_split(maze_dataset, 0.0)
    method = build_method(name, dataset, dataset_id=maze_dataset, seed=0)
    assert method.published_steps == steps
    assert method.hyperparameters["observation_keys"] == list(KEYS)


def test_an_agent_of_ones_own_is_scored_and_goes_on(
    suite: Any, tmp_path: Path, maze_dataset: str
) -> None:
    status, (found,) = suite("--save", methods="Linear")
    assert (status, found["status"], found["steps"]) == (0, "ok", 60)
    assert found["hyperparameters"]["observation_keys"] == list(KEYS)
    assert found["samples_per_second"] > 0
    (kept,) = (tmp_path / "out" / "cells").rglob("policy.mage")
    assert AgentPolicy.load(kept).config.to_dict() == found["hyperparameters"]
    assert suite("--save", methods="Linear") == (0, [found])


def test_every_cell_knows_the_modules_of_all_methods(
    suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any of them may register the environment."""
    imported: list[str] = []

    def find(name: str) -> Any:
        imported.append(name)
        return find_method(name)

    monkeypatch.setattr(experiment, "find_method", find)
    status, _ = suite(methods="Still,Linear")
    assert status == 0
    assert Counter(imported) == {f"{OURS}:Still": 2, f"{OURS}:Linear": 2}


def record_pendulum(name: str, **facts: float) -> str:
    """Record a few episodes of an environment that the suite knows nothing of."""
    lean, make_env = lambda observation: observation[:, 1:2], lambda: gym.make("Pendulum-v1")
    recording.record(lean, make_env, name, episodes=3, **facts)
    return name


@pytest.mark.filterwarnings("ignore:the codebook has collapsed")
def test_a_dataset_of_no_known_domain_takes_the_generic_preset(
    suite: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = record_pendulum("mine/pendulum/lean-v0", ref_min_score=-1500.0, ref_max_score=-200.0)
    tiny = {"width": 16, "num_blocks": 1, "codebook_size": 8}
    common = ("--datasets", name, "--methods", "mage", "--config", json.dumps(tiny))
    status, (found,) = suite(*common, "--budget", "quick", "--minutes", "0.01")
    assert (status, found["status"]) == (0, "ok")
    assert (found["domain"], found["scored_by"]) == ("unknown", "references")
    used = found["hyperparameters"]
    assert MAGEConfig.preset("small", **tiny, observation_keys=["observation"]).to_dict() == used
    told = capsys.readouterr().out
    assert f"{name} belongs to no known domain (ant, antmaze," in told
    assert "their defaults; 2 evaluation episodes" in told


def test_data_made_anew_under_a_name_are_not_mixed_with_the_old_ones(
    suite: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = record_pendulum("mine/pendulum/anew-v0")
    _, (found,) = suite("--datasets", name)
    _, again = suite("--datasets", name, "--seeds", "2")
    assert {record["data"] for record in again} == {found["data"]}
    minari.delete_dataset(name)
    lean, make_env = lambda observation: observation[:, :1], lambda: gym.make("Pendulum-v1")
    recording.record(lean, make_env, name, episodes=3)
    assert suite("--datasets", name)[1] == again, "what is finished is looked up as ever"
    with pytest.raises(SystemExit):
        suite("--datasets", name, "--seeds", "3")
    assert f"{name} has been made anew since" in " ".join(capsys.readouterr().err.split())


def test_success_counts_where_every_step_reports_it() -> None:
    class Reporting(gym.Wrapper[Any, Any, Any, Any]):
        def __init__(self, env: gym.Env[Any, Any], always: bool) -> None:
            super().__init__(env)
            self.always = always

        def step(self, action: Any) -> Any:
            *step, _ = super().step(action)
            return (*step, {"success": False} if self.always else {})

    data = TensorDict({}, [0]).set_non_tensor("metadata", {})
    for always in (True, False):
        spec = gym.envs.registration.EnvSpec(
            "Reporting-v0",
            entry_point=lambda always=always: Reporting(gym.make("Pendulum-v1"), always),
        )
        made, measure.make_environment = measure.make_environment, lambda _, spec=spec: spec.make()
        try:
            assert measure.scored_by(data) == ("success" if always else "return")
        finally:
            measure.make_environment = made


def test_without_references_the_score_is_the_return(suite: Any, tmp_path: Path) -> None:
    _, (found,) = suite("--datasets", record_pendulum("mine/pendulum/bare-v0"))
    assert found["scored_by"] == "return"
    assert found["scores"] == pytest.approx(found["returns"], abs=1e-2)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "The score is the mean return, for want of references" in report


def test_an_environment_that_cannot_be_made_fails_before_the_training(
    suite: Any, tmp_path: Path, toy_episodes: Any, make_minari: Any
) -> None:
    space = gym.spaces.Box(-np.inf, np.inf, (3,))
    make_minari(toy_episodes, space, dataset_id="mine/point/lost-v0")
    _, (found,) = suite("--datasets", "mine/point/lost-v0")
    assert "does not say which environment it comes from" in found["error"]
    assert not list((tmp_path / "out").rglob("clock.json"))


def test_a_file_of_d4rl_that_is_here_is_not_read_before_its_cell() -> None:
    name = "halfcheetah-medium-v2"  # Minari does not have it
    file = TASKS[name].file
    file.parent.mkdir(parents=True)
    file.write_text("no HDF5 at all")
    assert datasets.fetch([name]) == {}


def test_held_out_episodes_are_whole_and_apart(toy_dataset: Any) -> None:
    training, held = datasets.hold_out(toy_dataset, 0.3)
    assert len(training) + len(held) == len(toy_dataset)
    assert not set(training["episode"].tolist()) & set(held["episode"].tolist())
    assert held["episode"].unique().numel() == 2  # 0.3 of seven
    with pytest.raises(ValueError, match="has 7 episodes, of which 7 would be held out"):
        datasets.hold_out(toy_dataset, 0.99)
    again, _ = datasets.hold_out(toy_dataset, 0.3)
    assert torch.equal(again["observation"], training["observation"])
    assert len(datasets.hold_out(toy_dataset, 0.0)[1]) == 0


def cells_of(dataset: str, method: str, *seeds: int) -> list[Cell]:
    return [
        Cell(dataset=dataset, method=f"{OURS}:{method}", seed=seed, budget="paper", minutes=None)
        for seed in seeds
    ]


@pytest.mark.slow
def test_dead_workers_take_no_other_cell_with_them(
    tmp_path: Path, maze_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "_RETRIES", 1)
    settings = Settings(output=tmp_path, episodes=1, curve_points=0)
    cells = cells_of(maze_dataset, "Dying", 0, 1, 2)
    begun: list[Cell] = []
    found = dict(LocalExecutor(2).run(cells, settings, begun.append))
    assert [found[cell]["status"] for cell in cells] == ["failed", "ok", "ok"]
    assert "died 2 times (SIGKILL)" in found[cells[0]]["error"]
    assert [begun.count(cell) for cell in cells] == [2, 2, 1]
    assert found[cells[1]]["interruptions"] == 1


def test_a_worker_does_not_wait_for_the_training_of_another(
    tmp_path: Path, maze_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two questions to one training, and another one: the second worker takes the other one."""
    first, second, other = (
        replace(cell, method=method)
        for cell, method in zip(
            cells_of(maze_dataset, "", 0, 0, 1), ("gac-prior", "gac", "gac"), strict=True
        )
    )
    running: list[Cell] = []

    class Instant:
        def __init__(self, *_: Any) -> None:
            self.connection, self.theirs = multiprocessing.Pipe()

        def begin(self, cell: Cell) -> None:
            self.cell = cell
            running.append(cell)
            if len(running) > 1:  # the first one ends last
                self.theirs.send({"seed": cell.seed})

        def stop(self) -> None: ...

        kill = stop

    monkeypatch.setattr(executors, "_Worker", Instant)
    found = LocalExecutor(2).run([first, second, other], Settings(output=tmp_path), lambda _: None)
    assert next(found)[0] == other
    assert running == [first, other]
    found.close()


def test_workers_fit_the_machine() -> None:
    assert 1 <= fitting_workers(1) <= (os.cpu_count() or 1)
    assert fitting_workers(10_000) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.nightly)])
def test_a_suite_killed_at_any_moment_goes_on(
    suite: Any, tmp_path: Path, maze_dataset: str, kills: int
) -> None:
    clock = random.Random(0)
    output = tmp_path / "out"
    settings = Settings(output=output)

    def killed_after(seconds: float) -> bool:
        child = os.fork()
        if child == 0:
            status, _ = suite("--seeds", "3", methods="Slow")
            os._exit(status)
        began = time.monotonic()
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() - began > seconds:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.01)
        assert os.WIFSIGNALED(ended[1]) or os.waitstatus_to_exitcode(ended[1]) == 0
        return os.WIFSIGNALED(ended[1])

    killed, ended = 0, 0
    while killed < kills or ended == 0:
        if killed_after(clock.uniform(0.1, 1.2) if killed < kills else math.inf):
            killed += 1
            found = records.read(output / "records.jsonl")
            assert [record["seed"] for record in found] == list(range(len(found)))
            continue
        ended += 1
        found = records.read(output / "records.jsonl")
        assert [record["seed"] for record in found] == [0, 1, 2]
        assert all(record["status"] == "ok" for record in found)
        assert not list(output.rglob("checkpoint"))
        for cell in cells_of(maze_dataset, "Slow", 0, 1, 2):
            steps = [
                int(line.split()[0])
                for line in (folder_of(cell, settings) / "steps").read_text().splitlines()
            ]
            # Every step was taken; none but the one in which it was killed was taken again.
            assert sorted(set(steps)) == list(range(1, 21))
            assert len(steps) <= 20 + killed
        output.rename(tmp_path / str(ended))


@pytest.mark.slow
def test_workers_end_with_an_interrupted_command_and_the_next_goes_on(
    tmp_path: Path, maze_dataset: str
) -> None:
    output = tmp_path / "out"
    line = [sys.executable, str(ROOT / "benchmarks" / "run_suite.py"), "--datasets", maze_dataset]
    line += ["--methods", f"{OURS}:Waiting", "--budget", "paper", "--seeds", "2", "--workers", "1"]
    line += ["--output", str(output), "--episodes", "1", "--curve-points", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    deadline = time.monotonic() + 600

    def interrupt(seed: int, by: signal.Signals) -> tuple[int, str]:
        """Start the command, and stop it in the midst of a cell; its worker must end, too."""
        command = subprocess.Popen(
            line,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            # Shells let what they start in the background ignore Ctrl-C, tests included.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not (notes := list(output.rglob(f"*seed{seed}*/waiting"))):
            assert command.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        command.send_signal(by)
        told, _ = command.communicate()
        worker = Path("/proc") / notes[0].read_text()
        while worker.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return command.returncode, told

    assert interrupt(0, signal.SIGKILL) == (-signal.SIGKILL, "")
    status, told = interrupt(1, signal.SIGINT)
    assert status == 130
    assert told.splitlines()[-1] == "interrupted; the same command goes on from here"

    last = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert last.stdout.splitlines()[-1] == f"report: {output / 'report.html'}"
    found = records.read(output / "records.jsonl")
    assert [record["seed"] for record in found] == [0, 1]
    assert [record["interruptions"] for record in found] == [1, 1]


def test_without_rich_the_extra_is_named() -> None:
    entry = str(ROOT / "benchmarks" / "run_suite.py")
    hide = "import runpy, sys; sys.modules['rich'] = sys.modules['rich.console'] = None; "
    run = f"runpy.run_path({entry!r}, run_name='__main__')"
    told = subprocess.run(
        [sys.executable, "-c", hide + run], capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    assert "pip install '.[benchmarks]'" in told.stderr


def test_maze_datasets_are_collected_on_demand(
    suite: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "local/maze2d/umaze-v0"
    short = replace(recipes.RECIPES[name], steps=2_000)
    monkeypatch.setitem(recipes.RECIPES, name, short)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for collected in (True, False):
        _, (record,) = suite("--datasets", name)
        assert (record["dataset"], record["status"]) == (name, "ok")
        assert (f"collected {name} into {tmp_path / name}" in capsys.readouterr().out) == collected


def test_tables_name_datasets_methods_and_variants_that_exist(maze_dataset: str) -> None:
    paper = find_paper()
    printed = {(cell.table, cell.variant) for cell in paper.published if cell.method == paper.agent}
    for number, table in paper.tables.items():
        for dataset in table.datasets:
            assert domain_of(dataset).known
            assert "/" in dataset or dataset in TASKS
            if dataset.startswith("local/"):
                assert dataset in recipes.RECIPES
        for name, changes in table.variants.items():
            for preset in ("adroit", "adroit-small"):
                config = MAGEConfig.preset(preset, **changes)
            own = MAGEConfig.preset("adroit") == config.preset("adroit", **changes)
            assert own or (number, name) in printed, (number, name)


def test_a_remake_stands_in_for_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    here: dict[str, Any] = {"local/pen/expert-v0": {}}
    monkeypatch.setattr("minari.list_local_datasets", lambda: here)
    assert stand_in("pen-expert-v1") == "local/pen/expert-v0"
    assert stand_in("pen-human-v1") == "D4RL/pen/human-v2"
    assert stand_in("walker2d-medium-v2") == "walker2d-medium-v2"
    here["D4RL/pen/expert-v2"] = {}
    assert stand_in("pen-expert-v1") == "D4RL/pen/expert-v2"
