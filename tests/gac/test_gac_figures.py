"""The figures of GAC's paper: what they measure, on a tiny model in a real maze."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("matplotlib")

from benchmarks.gac import consistency, maze, replanning, returns
from benchmarks.gac.__main__ import FIGURES, main
from benchmarks.gac.trained import StartsAt, Trained
from benchmarks.sharing import stage_file
from mage_agent import GACModel, GACPolicy, make_environment
from mage_agent.data import dataset_from_arrays
from mage_agent.gac import stages
from tests.gac.tiny import tiny_config

SPEC = {
    "id": "mage_agent/Maze2D-v1",
    "entry_point": "mage_agent.maze2d:Maze2DEnv",
    "max_episode_steps": 12,
    "kwargs": {"maze": "umaze", "moving_goal": False},
}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """An untrained model of two stages, and a run through the maze of 10 pieces."""
    rng = np.random.default_rng(0)
    steps = 120
    places = np.cumsum(0.03 * rng.normal(size=(steps + 1, 4)), 0) + np.array([1, 1, 0, 0])
    last = np.arange(steps) == steps - 1
    dataset = dataset_from_arrays(
        places[:-1].astype(np.float32),
        rng.uniform(-1, 1, size=(steps, 2)).astype(np.float32),
        (rng.uniform(size=steps) < np.linspace(0, 1, steps)).astype(np.float32),
        np.zeros(steps, bool),
        last,
        next_observations=places[1:].astype(np.float32),
    )
    facts = {**dataset.get_non_tensor("metadata"), "env_spec": json.dumps(SPEC)}
    dataset.set_non_tensor("metadata", {**facts, "ref_min_score": 0.0, "ref_max_score": 12.0})
    for name in ("_PLANS", "_STEPS"):
        monkeypatch.setattr(consistency, name, 3)
    config = tiny_config(query_steps=3, replan_steps=2)
    policies = [
        GACPolicy(GACModel.from_dataset(dataset, config, seed=seed), seed=0) for seed in (0, 1)
    ]
    from benchmarks.domains import domain_of

    return Trained(
        dataset=dataset,
        held=dataset[:0],
        domain=domain_of("local/maze2d/umaze-v0"),
        stages=dict(enumerate(policies)),
        online=[{"asked": [12.0], "returns": [3.0, 9.0], "steps": 1}],
    )


def test_figure_2_holds_the_scores_of_every_query_and_stage(trained: Trained) -> None:
    found = returns.measure(trained, episodes=3)
    assert list(found["offline"]) == ["max", "plus", "target", "prior"]
    assert {len(scores) for scores in found["offline"].values()} == {3}
    assert [len(found["stages"][kind]) for kind in ("max", "plus")] == [2, 2]
    reward = trained.dataset["next", "reward"].flatten().view(10, 12).sum(1)
    assert found["data"][0] == pytest.approx((100 * reward / 12).tolist(), abs=1e-2)
    assert found["data"][1][10:] == [25.0, 75.0], "what the stage collected comes on top"
    left, middle, right = returns.draw(found).axes
    assert [text.get_text().split("\n")[0] for text in left.get_xticklabels()] == [
        "E[y]", "p(y+)", "y*", "prior",
    ]  # fmt: skip
    marks = [line.get_ydata()[0] for line in right.lines]
    assert marks == pytest.approx([np.mean(scores) for scores in found["data"]])
    assert len(middle.lines) >= 4


def test_episodes_start_where_they_are_told(trained: Trained) -> None:
    env = StartsAt(make_environment(trained.dataset), [[3.0, 1.0], [1.0, 2.0]])
    for number, place in enumerate([[3, 1], [1, 2], [3, 1]]):
        observation, _ = env.reset(seed=500_000 + number)
        assert observation[:2] == pytest.approx(place)


def test_figure_3_measures_every_start_cell(trained: Trained) -> None:
    layout, places = maze.layout_of(trained)
    assert np.array(layout).tolist() == [
        [1, 1, 1, 1, 1],
        [1, 0, 0, 0, 1],
        [1, 1, 1, 0, 1],
        [1, 0, 0, 0, 1],
        [1, 1, 1, 1, 1],
    ]
    found = maze.measure(trained, episodes=2, clusters=2, grid=2, paths=3)
    assert list(found["heat"]) == ["stage 1, prior", "stage 1, max"]
    most = found["heat"]["stage 1, max"]
    assert most[places.index([1.0, 1.0])] > 0, "who starts at the goal is rewarded"
    assert most[places.index([3.0, 1.0])] == 0, "from afar, 12 steps are too few"
    assert len(found["starts"]) == len(found["cluster"]) == 4 * len(places)
    assert [len(path) for path in found["paths"]] == [12, 12, 12]
    figure = maze.draw(found)
    image = figure.axes[1].images[1].get_array()
    assert image[1, 1] == pytest.approx(most[places.index([1.0, 1.0])])
    assert np.isnan(np.ma.filled(image, np.nan)[0, 0]), "a wall has no score"


def test_distances_are_those_of_tables_11_and_12() -> None:
    best = np.array([[0.0, 0], [0, 2], [10, 0], [10, 4]])
    found = maze.distances(best, best + np.array([3.0, 4.0]), np.array([0, 0, 1, 1]))
    assert found["shift"] == [5.0, 0.0]
    assert found["within"] == pytest.approx((2 + 4) / 2)
    between = np.hypot(10, 1)
    assert found["between"] == pytest.approx(between)
    assert np.array(found["centres"]) == pytest.approx(
        np.array([[0, between], [between, 0]]), abs=1e-3
    )


def test_figure_4_asks_a_critic_that_is_not_told(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    real = consistency.infer

    def infer(*args: Any, **options: Any) -> Any:
        told.append(options["know_value"])
        return real(*args, **options)

    monkeypatch.setattr(consistency, "infer", infer)
    found = consistency.measure_consistency(trained, episodes=2, targets=3, beyond=0.5)
    assert told == [False, False]
    assert list(found) == ["stage 0", "stage 1"]
    for one in found.values():
        low, high = min(one["actual"]), max(one["actual"])
        assert one["asked"] == pytest.approx(
            [low, low + 0.75 * (high - low), low + 1.5 * (high - low)]
        )
        assert len(one["achieved"]) == 3
        assert one["correlation"] == pytest.approx(
            np.corrcoef(one["actual"], one["predicted"])[0, 1], abs=1e-4
        )
    figure = consistency.draw_consistency(found)
    assert "correlation" in figure.axes[1].get_title()
    points = figure.axes[1].collections[0]
    assert len(points.get_offsets()) == 10
    clearest = int(np.argmax(found["stage 0"]["elbo"]))
    assert points.get_facecolors()[clearest, 3] == pytest.approx(1.0)


def test_figure_7_follows_the_inference(trained: Trained) -> None:
    model = trained.stages[1].model
    found = consistency.measure_growth(trained, steps=150, plans=6, increments=3)
    std = float(model.normalize_value.std)
    assert [float(dy) for dy in found["curves"]] == pytest.approx([0, std, 2 * std], rel=1e-3)
    ends = [curve["mean"][-1] for curve in found["curves"].values()]
    assert {len(curve["mean"]) for curve in found["curves"].values()} == {150}
    assert ends == sorted(ends), "who asks for more is promised more"
    (axes,) = consistency.draw_growth(found).axes
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(ends[0])
    assert axes.lines[-1].get_ydata()[0] == found["prior_max"]


def test_a_new_plan_is_made_once_near_the_place(trained: Trained) -> None:
    policy = trained.asking(1, "max")
    policy.model.remembers_episodes = True
    acting = replanning.Replanning(policy, np.array([1.0, 1.0]), "restart")
    far, half, near = (np.array([[*place, 0, 0]]) for place in ((3.0, 1), (2, 3), (1.2, 1)))
    start = np.array([True])
    _, state = acting.predict(far, None, start, True)
    go_on = np.array([False])
    begun = list(policy.model.initial_state(1).keys()).index("start")
    plans = []
    for observation in (half, near, near, far, near):
        _, state = acting.predict(observation, state, go_on, True)
        plans.append(state[begun].copy())  # where the plan was made
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(plans)]
    assert acting.count == 1
    assert changed == [True, False, False, False]


def test_figure_5_compares_a_plan_with_a_mended_one(trained: Trained) -> None:
    model = trained.stages[1].model
    model.surprise_limit.fill_(0.0)
    found = replanning.measure(trained, episodes=2)
    assert (found["A"], found["B"]) == ([3.0, 1.0], [2.0, 3.0])
    names = list(found["cases"])
    assert names[:4] == [
        "A, no new plan",
        "A, new plan at B (Eq. 3)",
        "A, new plan at B (restart)",
        "B",
    ]
    own = ["A, better", "A, surprise (Eq. 3)", "A, surprise (restart)"]
    assert names[4:] == own, "promise has no limit"
    assert list(found["alarms"]) == ["surprise"]
    assert 0 < found["alarms"]["surprise"] <= 1 / model.config.replan_interval, "the limit is 0"
    assert model.trigger == "never"
    left, right = replanning.draw(found).axes
    assert [text.get_text() for text in right.get_yticklabels()] == names
    assert found["paths"]["from A"][0] == pytest.approx([3, 1], abs=0.2)
    assert len(left.lines) == 3


def test_figure_5_calibrates_triggers_that_training_did_not(trained: Trained) -> None:
    found = replanning.measure(replace(trained, held=trained.dataset), episodes=1)
    assert list(found["alarms"]) == ["surprise", "promise"]
    assert all(0 <= share <= 1 for share in found["alarms"].values())


def test_ways_lead_around_walls() -> None:
    layout = [[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert replanning.way_to(layout, (1, 1)) == {(1, 1): 0, (2, 1): 1, (2, 2): 2}


def test_the_command_writes_a_picture_and_its_numbers(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.stages[0].save(stage_file(tmp_path, 0))
    monkeypatch.setattr(
        "benchmarks.gac.trained.load_split", lambda *_: (trained.dataset, trained.held)
    )
    monkeypatch.setattr(stages, "EVALUATION_STEPS", 2)
    line = ["figure", "4", "local/maze2d/umaze-v0", str(tmp_path), "--episodes", "2"]
    main(line)
    numbers = json.loads((tmp_path / "figure_4.json").read_text())
    assert list(numbers) == ["stage 0"]
    assert (tmp_path / "figure_4.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(FIGURES) == [2, 3, 4, 5, 7]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["figure", "4", "a/b-v0", "nowhere"], "name the folder of a GAC cell"),
        (["figure", "7", "a/b-v0", ".", "--episodes", "3"], "runs no episodes"),
    ],
)
def test_mistakes_are_named(
    line: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(line)
    assert words in capsys.readouterr().err
    assert torch.is_grad_enabled()
