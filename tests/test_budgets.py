"""Minutes of the processor, turned into steps."""

from dataclasses import asdict
from typing import Any

import pytest
from tensordict import TensorDict

from benchmarks import budgets
from benchmarks.budgets import Schedule, make_schedule
from benchmarks.protocol import AgentMethod
from mage_agent import GACModel, MAGEModel
from tests import tiny
from tests.gac.tiny import tiny_config, tiny_dataset
from tests.suite_methods import Busy, Still


def build(kind: type[Still], dataset: TensorDict, **changes: Any) -> Still:
    keys = ("observation",)
    return kind(dataset, domain="pen", observation_keys=keys, discount=0.99, seed=0, **changes)


def test_minutes_become_steps_of_processor_time(toy_dataset: TensorDict) -> None:
    schedule = make_schedule(lambda: build(Busy, toy_dataset), toy_dataset, minutes=0.1)
    assert schedule.seconds_per_step == pytest.approx(1e-3, rel=0.5)
    assert schedule.steps == pytest.approx(6_000, rel=0.5)
    assert schedule.hyperparameters == build(Busy, toy_dataset).hyperparameters
    assert schedule.steps_in(1.0) == round(1.0 / schedule.seconds_per_step)


def test_what_a_training_costs_once_is_told_from_what_each_row_costs(
    toy_dataset: TensorDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy_dataset[:1].expand(100_000).clone()
    run["episode"][:] = 0
    for flag in ("done", "terminated", "truncated"):
        run["next", flag][:] = False
    clock = 0.0

    class Timed(Still):
        published_steps = 10**6

        def learn(self, dataset: TensorDict, *, steps: int, **options: Any) -> Any:
            nonlocal clock
            clock += 0.5 + 1e-4 * len(dataset) + 0.01 * steps
            return self

    monkeypatch.setattr(budgets, "seconds_on", lambda device: clock)
    schedule = make_schedule(lambda: build(Timed, toy_dataset), run, minutes=1)
    assert schedule.seconds_per_step == pytest.approx(0.01)
    assert schedule.fixed_seconds == pytest.approx(0.5 + 10.0)
    assert schedule.steps == pytest.approx((60 - 10.5) / 0.01, abs=1)


def test_no_budget_exceeds_the_published_steps(toy_dataset: TensorDict) -> None:
    schedule = make_schedule(lambda: build(Still, toy_dataset), toy_dataset, minutes=0.001)
    assert schedule.steps == Still.published_steps
    assert make_schedule(lambda: build(Still, toy_dataset), toy_dataset, None).steps == 20


def test_steps_that_cost_nothing_are_not_timed_forever(toy_dataset: TensorDict) -> None:
    schedule = make_schedule(lambda: build(Still, toy_dataset), toy_dataset, minutes=1e6)
    assert schedule.steps == Still.published_steps


def test_a_schedule_survives_being_written_down() -> None:
    schedule = Schedule(steps=3, hyperparameters={"a": 1}, seconds_per_step=0.1)
    assert Schedule(**asdict(schedule)) == schedule


def test_an_endless_run_is_timed_on_its_first_steps(toy_dataset: TensorDict) -> None:
    run = toy_dataset[:1].expand(10_000).clone()
    run["episode"][:] = 0
    for flag in ("done", "terminated", "truncated"):
        run["next", flag][:] = False
    sizes = set()

    class Noting(Still):
        def learn(self, dataset: TensorDict, **options: Any) -> Any:
            assert dataset["next", "done"].sum() == 1
            assert dataset["next", "truncated"][-1]
            sizes.add(len(dataset))
            return super().learn(dataset, **options)

    schedule = make_schedule(lambda: build(Noting, toy_dataset), run, minutes=0.001)
    assert schedule.steps == Still.published_steps
    assert sizes == {4096, 10_000}


def test_batches_of_whole_episodes_are_timed_at_their_size() -> None:
    data = tiny_dataset((1000,) * 8)
    model = GACModel.from_dataset(data, tiny_config(batch_size=6))
    sizes = set()

    class Noting(AgentMethod):
        def learn(self, dataset: TensorDict, **options: Any) -> Any:
            sizes.add(int(dataset["next", "done"].sum()))
            return self

    make_schedule(lambda: Noting(model, published_steps=100), data, minutes=0.001)
    assert sizes == {6, 8}
    windows = AgentMethod(MAGEModel.from_dataset(data, tiny.tiny_config()), published_steps=100)
    assert windows.rows_per_batch(data) == 0
