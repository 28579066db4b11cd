"""Minutes of the processor, turned into steps."""

from typing import Any

import pytest
from tensordict import TensorDict

from benchmarks.budgets import Plan, make_plan
from tests.suite_methods import Busy, Still


def build(kind: type[Still], dataset: TensorDict, **changes: Any) -> Still:
    keys = ("observation",)
    return kind(dataset, domain="pen", observation_keys=keys, discount=0.99, seed=0, **changes)


def test_minutes_become_steps_of_processor_time(toy_dataset: TensorDict) -> None:
    plan = make_plan(lambda: build(Busy, toy_dataset), toy_dataset, minutes=0.1)
    assert plan.seconds_per_step == pytest.approx(1e-3, rel=0.5)
    assert plan.steps == pytest.approx(6_000, rel=0.5)
    assert plan.hyperparameters == build(Busy, toy_dataset).hyperparameters
    assert plan.steps_in(1.0) == round(1.0 / plan.seconds_per_step)


def test_no_budget_exceeds_the_published_steps(toy_dataset: TensorDict) -> None:
    plan = make_plan(lambda: build(Still, toy_dataset), toy_dataset, minutes=0.001)
    assert plan.steps == Still.published_steps
    assert make_plan(lambda: build(Still, toy_dataset), toy_dataset, None).steps == 20


def test_steps_that_cost_nothing_are_not_timed_forever(toy_dataset: TensorDict) -> None:
    plan = make_plan(lambda: build(Still, toy_dataset), toy_dataset, minutes=1e6)
    assert plan.steps == Still.published_steps


def test_a_plan_survives_being_written_down() -> None:
    plan = Plan(steps=3, hyperparameters={"a": 1}, seconds_per_step=0.1)
    assert Plan(**plan.to_dict()) == plan
