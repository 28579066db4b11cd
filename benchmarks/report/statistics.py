"""What the scores allow to say: differences, ties, aggregates and their intervals.

The bootstrap is SciPy's with a seeded generator. rliable computes the same estimates, but draws its
samples from NumPy's global generator, whatever random state it is given, so that its intervals are
not repeatable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.report.results import Results, Task, Trainings, is_own

__all__ = [
    "Difference",
    "Estimate",
    "Verdict",
    "best_and_tied",
    "blocked_difference",
    "difference",
    "headline",
    "interquartile_mean",
    "largest_block",
    "performance_profile",
    "rising_trend",
]

SIGNIFICANCE = 0.05
RESAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of two means by a t test.

    Attributes:
        mean: first mean less second.
        low: lower end of the 95% confidence interval.
        high: upper end.
        p_value: of the two-sided test that the means are equal; NaN where none was made.
    """

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def tested(self) -> bool:
        """Whether there were trainings enough for a test."""
        return not np.isnan(self.p_value)

    @property
    def significant(self) -> bool:
        """Whether the means differ at the 5% level."""
        return self.p_value < SIGNIFICANCE


def difference(first: Trainings, second: Trainings) -> Difference:
    """Compare two cells by Welch's t test over training seeds.

    One training says nothing of others, so a cell that has no more is not tested. Where the seeds
    of each score alike but not those of the other, the test is over the episodes of both: a few
    successes of as many episodes coincide easily.
    """
    a, b = first.scores, second.scores
    gap = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Difference(mean=gap, low=-np.inf, high=np.inf, p_value=np.nan)
    if a.min() == a.max() != b.min() == b.max():
        a, b = first.episode_scores, second.episode_scores
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])  # squared standard errors
    error = float(parts.sum() ** 0.5)
    if error == 0:
        return _t_test(gap, error, 1)
    # Welch and Satterthwaite; scaled first, since tiny variances squared would underflow.
    shares = parts / parts.sum()
    freedom = 1 / float((shares**2 / np.array([len(a) - 1, len(b) - 1])).sum())
    return _t_test(gap, error, freedom)


def _t_test(gap: float, error: float, freedom: float) -> Difference:
    """Test and interval of a difference with its standard error and degrees of freedom."""
    if error == 0:  # every seed scored the same, such as 0 throughout a maze
        return Difference(mean=gap, low=gap, high=gap, p_value=float(gap == 0))
    reach = float(stats.t.ppf(1 - SIGNIFICANCE / 2, freedom)) * error
    return Difference(
        mean=gap,
        low=gap - reach,
        high=gap + reach,
        p_value=2 * float(stats.t.sf(abs(gap) / error, freedom)),
    )


def blocked_difference(
    first: Trainings, second: Trainings, cells: Sequence[Trainings]
) -> Difference:
    """Compare two cells seed by seed, with the noise of a training estimated from all cells.

    Trainings of one seed meet the same evaluation episodes, some of them harder than another
    seed's. So a score is the sum of an effect of its cell, one of its seed and noise (two-way
    analysis of variance without interaction; for two cells alone, the paired t test).

    Args:
        first: one of ``cells``.
        second: another; where the two share fewer than two seeds, ``difference`` compares them.
        cells: variants of one method on one task.
    """
    shared = {r["seed"] for r in first.finished} & {r["seed"] for r in second.finished}
    if len(shared) < 2:
        return difference(first, second)
    trainings = [(n, r["seed"], r["score"]) for n, c in enumerate(cells) for r in c.finished]
    numbers, seeds, scores = (np.array(column) for column in zip(*trainings, strict=True))
    columns = [numbers == n for n in range(len(cells))]
    columns += [seeds == seed for seed in np.unique(seeds)[1:]]
    design = np.stack(columns, axis=1).astype(float)
    effects, _, rank, _ = np.linalg.lstsq(design, scores)
    contrast = np.zeros(len(effects))
    contrast[[cells.index(first), cells.index(second)]] = 1, -1
    freedom = len(scores) - int(rank)
    variance = float(((scores - design @ effects) ** 2).sum() / freedom)
    variance *= variance > 1e-20  # which is rounding
    unit = float(contrast @ np.linalg.pinv(design.T @ design) @ contrast)
    return _t_test(float(contrast @ effects), (variance * unit) ** 0.5, freedom)


def rising_trend(cells: Sequence[Trainings]) -> float | None:
    """Test by Page's trend test, seed by seed, that scores rise in the order of the cells.

    Returns:
        The p value against no order; None where the cells share fewer than two seeds.
    """
    scores = [{r["seed"]: r["score"] for r in cell.finished} for cell in cells]
    shared = set.intersection(*map(set, scores))
    if len(shared) < 2:
        return None
    rows = [[of_cell[seed] for of_cell in scores] for seed in shared]
    return float(stats.page_trend_test(rows).pvalue)


def best_and_tied(cells: Mapping[str, Trainings]) -> list[str]:
    """Name the method with the highest mean, first, and those that a test finds no lower."""
    if not cells:
        return []
    best = max(cells, key=lambda method: cells[method].mean)
    gaps = {m: difference(cells[best], cell) for m, cell in cells.items() if m != best}
    return [best, *(m for m, gap in gaps.items() if gap.tested and not gap.significant)]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one method stands on one task.

    Attributes:
        task: dataset and budget.
        standing: ``best`` (significantly above every other that can be tested, and higher than all
            of one training), ``tied`` (the best or not significantly below it), ``behind``,
            ``untested`` (for want of trainings: its own, all rivals' or the best one's; the
            library's agents are no rivals, nor is, in the long run, who has trained no longer), or
            ``failed``.
        tied: the other methods that are the best or tied with it.
        rival: the best of the other methods.
        difference: to that rival; None where the method failed.
    """

    task: Task
    standing: Literal["best", "tied", "behind", "untested", "failed"]
    tied: tuple[str, ...]
    rival: str
    difference: Difference | None


def contests(method: str, cells: Mapping[str, Trainings], task: Task) -> bool:
    """Whether a method is a rival, in a long task one that has trained for long."""
    return not is_own(method) and cells[method].task.long is task.long


def headline(results: Results) -> list[Verdict]:
    """Judge the subject on every task on which it was tried and another method finished."""
    verdicts, method = [], results.subject
    for task in results.tasks:
        cells = results.competing(task)
        own = cells.pop(method, None)
        if not cells or (own is None and results.cell(task, method) is None):
            continue
        rival = max(cells, key=lambda name: cells[name].mean)
        gaps = {name: difference(own, cell) for name, cell in cells.items()} if own else {}
        first, *_ = top = best_and_tied({method: own, **cells} if own else cells)
        others = tuple(name for name in top if name != method)
        standing: Literal["best", "tied", "behind", "untested", "failed"] = "behind"
        if not own:
            standing = "failed"
        elif not any(gap.tested for name, gap in gaps.items() if contests(name, cells, task)):
            standing = "untested"
        elif method in top:
            standing = "tied" if others else "best"
        elif not gaps[first].tested:
            standing = "untested"
        verdicts.append(
            Verdict(
                task=task, standing=standing, tied=others, rival=rival, difference=gaps.get(rival)
            )
        )
    return verdicts


def largest_block(results: Results) -> tuple[list[str], list[Task]]:
    """Find the largest complete block of the score table, methods by tasks.

    Aggregates need a normalised score in every cell. Candidates are the tasks that some method
    shares with the subject; the block with most cells wins, of equal ones that with more tasks.

    Returns:
        Methods in the order of the tables, and sorted tasks; both empty without any score.
    """
    usual = [task for task in results.tasks if not task.long] or results.tasks
    tasks = [task for task in usual if task not in results.by_return]
    covered = {
        method: frozenset(task for task in tasks if method in results.competing(task))
        for method in results.methods
    }
    base = covered.get(results.subject) or frozenset(tasks)
    candidates = {some & base for some in covered.values()} - {frozenset()}
    if not candidates:
        return [], []

    def methods(tasks: frozenset[Task]) -> list[str]:
        return [method for method in results.methods if tasks <= covered[method]]

    block = max(
        candidates, key=lambda tasks: (len(methods(tasks)) * len(tasks), len(tasks), sorted(tasks))
    )
    return methods(block), sorted(block)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An aggregate with its 95% stratified bootstrap interval.

    Attributes:
        value: of the scores as they are.
        low: lower end; None where a task has one seed, so that nothing can be resampled.
        high: upper end, or None.
    """

    value: Any
    low: Any
    high: Any


def _bootstrap(cells: Sequence[Trainings], statistic: Any) -> Estimate:
    """Resample seeds within every task (the strata), as rliable does."""
    samples = [cell.scores for cell in cells]
    value = statistic(*samples, axis=-1)
    if min(len(sample) for sample in samples) < 2:
        return Estimate(value=value, low=None, high=None)
    interval = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value=value, low=interval.low, high=interval.high)


def interquartile_mean(cells: Sequence[Trainings]) -> Estimate:
    """Mean of the middle half of all trainings on all tasks (Agarwal et al., 2021)."""

    def statistic(*samples: Floats, axis: int) -> Any:
        return stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)

    return _bootstrap(cells, statistic)


def performance_profile(cells: Sequence[Trainings], thresholds: Floats) -> Estimate:
    """Share of trainings, over all tasks, that score above each threshold.

    Args:
        cells: one method on every task.
        thresholds: scores, shape (N,).

    Returns:
        Shares with pointwise intervals, shape (N,) each.
    """

    def statistic(*samples: Floats, axis: int) -> Floats:
        scores = np.concatenate(samples, axis=axis)  # (..., trainings)
        return np.stack([(scores > threshold).mean(axis=axis) for threshold in thresholds])

    return _bootstrap(cells, statistic)
