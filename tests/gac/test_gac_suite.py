"""GAC in the suite: one training, several questions, online stages, and the paper's tables."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("rich")

from benchmarks import command, datasets, measure, records
from benchmarks.cells import Settings, folder_of
from benchmarks.domains import DOMAINS, FINAL_RETURN, domain_of, split_id
from benchmarks.methods import QUESTIONS, build_method, training_of
from benchmarks.papers import find_paper
from benchmarks.report import results
from benchmarks.sharing import FinalReturn
from mage_agent import GACConfig, evaluate, load_dataset
from mage_agent.gac import stages
from tests.gac.point import PointEnv
from tests.gac.tiny import CORE
from tests.test_suite import Inline

pytestmark = pytest.mark.filterwarnings("ignore:all .* episodes have the return")
METHODS = "gac,gac-plus,gac-target,gac-prior"
SMALL = {**CORE, "width": 8, "query_steps": 3, "steps": 30, "window": 10}


@pytest.fixture
def suite(tmp_path: Path, maze_dataset: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on a small maze dataset, in this process; counts trainings."""
    monkeypatch.setattr(command, "LocalExecutor", Inline)
    monkeypatch.setitem(GACConfig.PRESETS, "pointmaze", SMALL)
    few = replace(DOMAINS["pointmaze"], online_episodes=3)
    monkeypatch.setitem(DOMAINS, "pointmaze", few)
    monkeypatch.setattr(stages, "EVALUATION_STEPS", 2)
    monkeypatch.setattr(measure, "_REPEATS", {1: 2, 64: 1})
    monkeypatch.setattr(measure, "_WARM_UP", 1)
    datasets.load_split.cache_clear()
    fits: list[int] = []
    from benchmarks import protocol

    real = protocol.AgentMethod.learn

    def learn(self: Any, dataset: Any, **options: Any) -> Any:
        if options.get("checkpoint_path") is not None:
            fits.append(options["steps"])
        return real(self, dataset, **options)

    monkeypatch.setattr(protocol.AgentMethod, "learn", learn)

    def run(*arguments: str) -> tuple[int, list[Any], int]:
        common = ["--datasets", maze_dataset, "--paper", "gac", "--budget", "paper"]
        short = ["--seeds", "1", "--episodes", "2", "--curve-points", "1"]
        output = ["--output", str(tmp_path / "out")]
        status = command.main([*common, *short, *output, *arguments])
        return status, records.read(tmp_path / "out" / "records.jsonl"), len(fits)

    return run


def test_four_questions_are_put_to_one_training(suite: Any, tmp_path: Path) -> None:
    status, found, trainings = suite("--methods", METHODS)
    assert status == 0, found
    assert trainings == 1
    by_method = {record["method"]: record for record in found}
    assert list(by_method) == METHODS.split(",")
    assert len({record["training_seconds"] for record in found}) == 1
    asked = {method: record["hyperparameters"]["query"] for method, record in by_method.items()}
    assert asked == {"gac": "max", "gac-plus": "plus", "gac-target": "target", "gac-prior": "prior"}
    assert {record["deterministic"] for record in found[1:]} == {False}
    assert found[0]["deterministic"]
    assert len({record["evaluation_seed"] for record in found}) == 1, "the same episodes"
    assert len(found[0]["learning_curve"]) == 2
    assert len(found[1]["learning_curve"]) == 1, "only its own score"
    page = (tmp_path / "out" / "report.md").read_text()
    assert "GAC p(z)" in page


def test_a_question_alone_trains_and_the_others_take_that_up(suite: Any) -> None:
    assert suite("--methods", "gac-prior")[2] == 1
    status, found, trainings = suite("--methods", "gac,gac-prior")
    assert (status, trainings) == (0, 1)
    assert [record["method"] for record in found] == ["gac-prior", "gac"]


def test_another_configuration_is_trained_anew(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert suite("--methods", "gac")[2] == 1
    monkeypatch.setitem(GACConfig.PRESETS, "pointmaze", {**SMALL, "num_latents": 1})
    assert suite("--methods", "gac-plus")[2] == 2


def test_stages_of_another_training_are_fine_tuned_anew(
    suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert suite("--methods", "gac", "--stages", "1")[2] == 1
    monkeypatch.setitem(GACConfig.PRESETS, "pointmaze", {**SMALL, "num_latents": 1})
    status, found, trainings = suite("--methods", "gac-plus", "--stages", "1")
    assert (status, trainings) == (0, 2), found


def test_stages_of_fine_tuning_are_scored_one_by_one(suite: Any) -> None:
    status, found, trainings = suite("--methods", "gac,gac-prior", "--stages", "2")
    assert status == 0, found
    assert trainings == 1
    names = [(record["method"], record["variant"]) for record in found]
    assert sorted(names) == sorted(
        (method, variant)
        for method in ("gac", "gac-prior")
        for variant in ("", "stage 1", "stage 2")
    )
    last = next(r for r in found if (r["method"], r["variant"]) == ("gac-prior", "stage 2"))
    assert [len(stage["returns"]) for stage in last["online"]] == [3, 3]
    assert {stage["steps"] for stage in last["online"]} == {6}, "a fifth of the training"
    assert results.stage_of(last["variant"]) == 2


def test_a_stage_is_recorded_with_its_own_settings(
    suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ({"quantile": 0.6, "learning_rate": 1e-4}, {"quantile": 0.5})
    monkeypatch.setitem(GACConfig.FINE_TUNING, "pointmaze", rows)
    status, found, _ = suite("--methods", "gac,gac-prior", "--stages", "2")
    assert status == 0, found
    told = {(r["method"], r["variant"]): r["hyperparameters"] for r in found}
    for method, query in (("gac", "max"), ("gac-prior", "prior")):
        assert told[method, ""]["quantile"] == 0.8
        assert told[method, "stage 1"]["quantile"] == 0.6
        last = told[method, "stage 2"]
        assert (last["quantile"], last["learning_rate"], last["query"]) == (0.5, 1e-4, query)
    digests = {(r["method"], r["variant"]): r["config_digest"] for r in found}
    assert digests["gac", "stage 1"] != digests["gac", "stage 2"]


def test_any_agent_is_fine_tuned_by_stages_and_trained_once(suite: Any) -> None:
    status, found, trainings = suite("--methods", "tests.suite_methods:Linear", "--stages", "1")
    assert status == 0, found
    assert trainings == 1
    assert [record["variant"] for record in found] == ["", "stage 1"]


def test_final_returns_only(suite: Any, maze_dataset: str) -> None:
    name = maze_dataset + FINAL_RETURN
    delayed, held = datasets.load_split(name, 0.2)
    plain = [datasets.load_split(maze_dataset, 0.2)[part] for part in (0, 1)]
    for ours, theirs in zip((delayed, held), plain, strict=True):
        last = ours["next", "done"].flatten()
        assert (ours["next", "reward"].flatten()[~last] == 0).all()
        total = ours["next", "reward"].sum()
        torch.testing.assert_close(total, theirs["next", "reward"].sum())
    assert split_id(name) == split_id(maze_dataset)
    assert domain_of(name) == domain_of(maze_dataset)
    status, found, _ = suite("--datasets", name, "--methods", "gac")
    assert status == 0, found
    assert found[0]["dataset"] == name


def test_a_run_without_an_end_is_cut_before_its_returns_are_told(monkeypatch: Any) -> None:
    from tests.test_cutting import endless

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: endless(25, limit=10))
    delayed, _ = datasets.load_split.__wrapped__("local/maze2d/umaze-v0" + FINAL_RETURN, 0.0)
    assert len(delayed) == 20
    assert delayed["next", "reward"].flatten().nonzero().flatten().tolist() == [9, 19]


def test_environments_keep_their_rewards_back() -> None:
    rest = lambda observation: np.full((len(observation), 2), 0.5, dtype=np.float32)  # noqa: E731
    told: list[float] = []

    def make() -> Any:
        env = FinalReturn(PointEnv(length=4))
        real = env.step

        def step(action: Any) -> Any:
            out = real(action)
            told.append(out[1])
            return out

        env.step = step  # type: ignore[method-assign]
        return env

    (result,) = evaluate(rest, make, episodes=1)
    assert told == [0, 0, 0, 2.0]
    assert result.episode_return == 2.0


def test_the_papers_tables_can_be_run(maze_dataset: str) -> None:
    paper = find_paper("gac")
    parser = command.make_parser()
    counts = {1: 9 * 7, 2: 9 * 4 * 2, 8: 9 * 3, 9: 9 * 3 * 2, 10: 3 * 4 * 4}
    assert sorted(paper.tables) == sorted(counts)
    for number, count in counts.items():
        line = ["--paper", "gac", "--table", str(number), "--seeds", "1"]
        cells = command.select(parser.parse_args(line))
        assert len(cells) == count
        assert len({cell.key for cell in cells}) == count
        for cell in cells:
            name = paper.dataset_name(cell.dataset)
            assert name is not None
            delayed = cell.dataset.endswith(FINAL_RETURN)
            if cell.stage == 0:
                assert paper.score(cell.method, name, delayed=delayed) is not None
    shared = command.select(parser.parse_args(["--paper", "gac", "--table", "10", "--seeds", "1"]))
    assert len({training_of(cell).key for cell in shared}) == 3
    assert all(cell.shared for cell in shared)
    first = [training_of(cell) == cell for cell in shared]
    assert first == [True, *[False] * 15] * 3, "a dataset's training comes first"


def test_printed_numbers_stand_beside_ours() -> None:
    paper = find_paper("gac")

    def value(cell: Any) -> float | None:
        return None if cell is None else cell.value

    assert value(paper.score("iql", "hopper/medium-replay")) == 92.1
    assert value(paper.score("iql", "hopper/medium-replay", delayed=True)) == 13.9
    assert value(paper.score("gac", "maze2d/large")) == 50.3, "it never reads step rewards"
    assert value(paper.score("gac-prior", "maze2d/large", delayed=True)) == -0.4
    assert value(paper.online("gac-target", "maze2d/medium", 1, delayed=True)) == 100.6
    assert value(paper.online("gac", "hopper/medium", 3, delayed=True)) == 93.3
    assert value(paper.online("gac", "hopper/medium", 1, delayed=True)) is None
    assert value(paper.online("iql", "maze2d/umaze", 3)) == 98.6
    assert value(paper.online("iql", "maze2d/umaze", 3, delayed=True)) == 29.3


def test_the_report_puts_stages_and_queries_beside_the_papers(tmp_path: Path) -> None:
    from benchmarks.report import write

    common = {"dataset": "local/maze2d/umaze-v0" + FINAL_RETURN, "seed": 0, "status": "ok"}
    scored = {"episodes": 2, "asked": {}, "learning_curve": [], "budget": "standard", "minutes": 20}
    rows = [("gac", "", 61.5), ("gac", "stage 3", 88.25), ("gac-prior", "stage 3", 12.5)]
    rows.append(("gac-plus", "stage 3", 80.0))
    made = [
        {**common, **scored, "method": m, "variant": v, "score": s, "scores": [s - 1, s + 1]}
        for m, v, s in rows
    ]
    write(made, tmp_path, find_paper("gac"))
    page = (tmp_path / "report.md").read_text()
    table = page[page.index("## Online fine-tuning") :].split("\n\n")[2]
    gac, plus, prior = [line for line in table.splitlines() if "maze2d/umaze" in line]
    assert r"(GAC p(z \| y+))" in plus, "a bar within a cell would end it"
    for text in ("61.5", "67.8", "88.2", "83.5"):
        assert text in gac, table
    for text in ("35.7", "12.5", "64.0"):
        assert text in prior, table
    assert "Variants without a counterpart" not in page


def test_questions_name_agents_and_settings_that_exist(maze_dataset: str) -> None:
    dataset = load_dataset(maze_dataset)
    for name in [each for each in QUESTIONS if QUESTIONS[each].agent == "gac"]:
        method = build_method(name, dataset, dataset_id=maze_dataset, seed=0)
        assert method.model.query.kind == name.removeprefix("gac-")
        assert method.deterministic is False
    settings = Settings(output=Path("out"))
    parser = command.make_parser()
    line = ["--datasets", maze_dataset, "--methods", METHODS, "--seeds", "1"]
    cells = command.select(parser.parse_args(line))
    assert len({folder_of(training_of(cell), settings) for cell in cells}) == 1
