"""Budgets: how many gradient steps a method may take, so that all train equally long.

Learning-rate schedules need the number of steps in advance, so a budget of minutes is turned into
steps before training starts. Time is processor time, or on a GPU that of the wall clock (see
``seconds_on``). Crowded caches still make steps up to half as dear again, so the fastest of a few
timings counts.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tensordict import TensorDictBase

from benchmarks.clock import seconds_on
from benchmarks.protocol import AgentMethod, Method
from mage_agent import first_steps

__all__ = ["MINUTES", "Schedule", "make_schedule"]

MINUTES: dict[str, float | None] = {"quick": 2.0, "standard": 20.0, "long": 60.0, "paper": None}
"""Minutes of training by budget; None is the published number of steps, the most of any budget."""

_ROWS = 4096  # of the dataset, for the throw-away steps
_FEW = 24  # steps
_ENOUGH = 1.5  # seconds of steps that are timed
_FEWEST = 8  # steps of any training, however short: agents have several stages
_SHARE = 0.01  # of the budget, at most, for the steps that are timed
_REPEATS = 3  # the fastest counts: a busy machine makes steps dearer, never cheaper
_LARGER = 4  # times the rows, to tell what each row costs besides the steps


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a cell trains, fixed before it starts.

    Attributes:
        steps: gradient steps.
        hyperparameters: what is trained; another schedule is needed when they change.
        seconds_per_step: measured seconds; None if steps are the published number.
        fixed_seconds: measured seconds besides the steps, such as tokenizing the dataset.
    """

    steps: int
    hyperparameters: dict[str, Any]
    seconds_per_step: float | None = None
    fixed_seconds: float | None = None

    def steps_in(self, seconds: float) -> int:
        """Return about how many steps are taken in a time."""
        return max(1, round(seconds / self.seconds_per_step)) if self.seconds_per_step else 1000


def make_schedule(
    build: Callable[[], Method],
    dataset: TensorDictBase,
    minutes: float | None,
    device: str = "cpu",
) -> Schedule:
    """Turn minutes into steps, by timing a few steps that are thrown away.

    Args:
        build: makes the untrained method.
        dataset: what it will be trained on.
        minutes: time for training; None takes the published number of steps, which is also the
            most that any budget allows.
        device: where it is trained.
    """
    method = build()
    published, hyperparameters = method.published_steps, method.hyperparameters
    if minutes is None:
        return Schedule(steps=published, hyperparameters=hyperparameters)
    budget = 60 * minutes
    enough = min(_ENOUGH, _SHARE * budget)
    rows = _rows(method, dataset)
    samples = [_sample(dataset, times * rows) for times in (1, _LARGER)]
    fixed, per_row, per_step = _time_steps(build, samples, enough, published, device)
    fixed += per_row * (len(dataset) - len(samples[0]))
    steps = max(_FEWEST, int((budget - fixed) / per_step))
    return Schedule(
        steps=min(steps, published),
        hyperparameters=hyperparameters,
        seconds_per_step=per_step,
        fixed_seconds=fixed,
    )


def _rows(method: Method, dataset: TensorDictBase) -> int:
    """How many rows steps are timed on: as many as fill a batch."""
    if not isinstance(method, AgentMethod):
        return _ROWS
    with warnings.catch_warnings(action="ignore"):  # training gives them again
        return max(_ROWS, method.rows_per_batch(dataset))


def _sample(dataset: TensorDictBase, rows: int) -> TensorDictBase:
    """The first episodes of a dataset, or the first steps of an endless run, to time steps on.

    Whole episodes, for methods that learn from nothing else.
    """
    ends = dataset["next", "done"].flatten().nonzero().flatten() + 1
    whole = ends[ends <= rows]
    return first_steps(dataset, int(whole[-1]) if len(whole) else rows)


def _time_steps(
    build: Callable[[], Method],
    samples: Sequence[TensorDictBase],
    enough: float,
    most: int,
    device: str,
) -> tuple[float, float, float]:
    """Return the seconds of a training without steps, of each further row, and of each step.

    Steps are timed on the first sample. The second one, with more rows, tells what grows with them,
    such as plans that are made for the whole dataset, from what does not.
    """
    small, large = samples

    def seconds(steps: int, sample: TensorDictBase = small) -> float:
        method = build()
        began = seconds_on(device)
        with warnings.catch_warnings(action="ignore"):  # so few steps are bound to look bad
            method.learn(sample, steps=steps, progress_bar=False)
        return seconds_on(device) - began

    seconds(_FEWEST)  # the first steps of a process load libraries
    few, steps = seconds(_FEW), 2 * _FEW
    # A method whose training costs the same whatever the steps never gets to enough.
    while (many := seconds(steps)) - few < enough and steps < most:
        steps *= 2
    for _ in range(_REPEATS - 1):
        few, many = min(few, seconds(_FEW)), min(many, seconds(steps))
    per_step = max(many - few, enough / 2) / (steps - _FEW)  # noise may not make it vanish
    per_row = 0.0
    if len(large) > len(small):
        more = min(seconds(_FEW, large) for _ in range(_REPEATS - 1))
        per_row = max(0.0, more - few) / (len(large) - len(small))
    return max(0.0, few - _FEW * per_step), per_row, per_step
