"""The sections on who did how well: headline, score table and aggregates over datasets."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.report import figures
from benchmarks.report.document import Block, Entry, Figures, Paragraph, Points, Section, Table
from benchmarks.report.results import Results, Task, Trainings, display_name
from benchmarks.report.statistics import (
    RESAMPLES,
    Estimate,
    Verdict,
    best_and_tied,
    headline,
    interquartile_mean,
    largest_block,
    performance_profile,
)

__all__ = ["aggregate_section", "headline_section", "score_entry", "score_section"]

_STANDINGS = {
    "best": "best",
    "tied": "tied with",
    "behind": "behind",
    "untested": "not tested",
    "failed": "failed",
}


def headline_section(results: Results) -> Section:
    """Say on how many datasets the subject is best or statistically tied, and how sure that is."""
    section = Section(anchor="headline", title="Headline")
    verdicts, subject = headline(results), display_name(results.subject)
    if not verdicts:
        text = f"No dataset has scores of {subject} and of another method: nothing to compare yet."
        section.blocks = [Paragraph(text=text, lead=True)]
        return section
    section.blocks = [
        Paragraph(text=sentence(results, verdicts), lead=True),
        Paragraph(text=_power(verdicts)),
        Table(
            caption=(
                f"{subject} against the best of the other methods on each dataset: difference of "
                "means, 95% confidence interval, and p value of Welch's t test."
            ),
            header=["dataset", subject, "best other", "difference", "95% interval", "p", "verdict"],
            rows=[_verdict_row(results, verdict) for verdict in verdicts],
        ),
    ]
    return section


def sentence(results: Results, verdicts: Sequence[Verdict]) -> str:
    """Say who is best or tied with the best, at equal time and in the long run, how often."""
    parts = []
    for when, long in (("at equal time", False), ("in the long run", True)):
        of_time = [verdict for verdict in verdicts if verdict.task.long is long]
        minutes = " or ".join(f"{m:g}" for m in sorted({v.task.minutes for v in of_time}) if m)
        trained = {m for v in of_time for m, c in results.competing(v.task).items() if c.task.long}
        who = " and ".join(display_name(m) for m in results.methods if m in trained)
        if minutes:
            when += f" ({minutes} minutes{f' for {who}' if long else ''})"
        tested = [verdict.task for verdict in of_time if verdict.standing != "untested"]
        if tested:
            parts.append(f"{when}, {_count(results, tested)}")
        if others := [v for v in of_time if v.standing == "untested"]:
            highest = sum(v.difference is not None and v.difference.mean > 0 for v in others)
            lead, more = ("", " more") if tested else (f"{when}, ", "")
            parts.append(
                f"{lead}on {_datasets(len(others))}{more}, where single trainings do not allow a "
                f"test, {display_name(results.subject)} has the highest mean on {highest}"
            )
    return (text := "; ".join(parts))[:1].upper() + text[1:] + "."


def _datasets(count: int) -> str:
    return f"{count} {'dataset' if count == 1 else 'datasets'}"


def _count(results: Results, tasks: Sequence[Task]) -> str:
    """Who is best or tied with the best on how many tasks, and who comes second."""
    count = Counter(method for t in tasks for method in best_and_tied(results.competing(t)))
    first, *others = sorted(count, key=lambda m: (-count[m], results.methods.index(m)))
    second = [results.subject]
    if first == results.subject:  # all that follow it equally often
        second = [m for m in others if count[m] == count[others[0]]]
    names = " and ".join(map(display_name, second))
    return (
        f"{display_name(first)} is best or tied with the best on {count[first]} of "
        f"{_datasets(len(tasks))} with several trainings, "
        + (f"{names} on {count[second[0]]}" if second else "nobody else on any")
        + (" each" if len(second) > 1 else "")
    )


def _power(verdicts: Sequence[Verdict]) -> str:
    usual = [v for v in verdicts if not v.task.long] or verdicts  # long ones repeat some of them
    text = (
        "The test is Welch's t test (5%, two-sided, no correction for multiple tests, since a "
        "correction would only call more methods tied) on the mean scores of the training seeds. "
        "Tied means not significantly below the best; it does not mean equal. A method with one "
        "training is not tested: its ± is over episodes, and says nothing of other trainings."
    )
    gaps = [verdict.difference for verdict in usual if verdict.difference]
    reaches = [gap.high - gap.mean for gap in gaps if gap.tested]
    if reaches:
        text += (
            " With few seeds the test sees large differences only: against the best other method, "
            f"one of less than {np.median(reaches):.1f} points (median over datasets) would pass "
            "for a tie."
        )
    return text


def _verdict_row(results: Results, verdict: Verdict) -> list[Entry | str]:
    cells = results.competing(verdict.task)
    rival = cells[verdict.rival]
    name = results.label(verdict.task)
    best_other = Entry(f"{rival.mean:.1f}", note=display_name(verdict.rival))
    gap = verdict.difference
    if gap is None:
        missing = Entry("–", tone="missing")
        own: Entry | str = Entry("failed", tone="failed")
        return [name, own, best_other, missing, missing, missing, Entry("failed", tone="failed")]
    interval, p_value = "–", "–"
    if gap.tested:
        interval = f"{gap.low:+.1f} to {gap.high:+.1f}"
        p_value = "< 0.001" if gap.p_value < 0.001 else f"{gap.p_value:.3f}"
    standing = _STANDINGS[verdict.standing]
    if verdict.standing == "tied":
        standing += f" {', '.join(map(display_name, verdict.tied))}"
    return [
        name,
        Entry(f"{cells[results.subject].mean:.1f}", bold=verdict.standing in ("best", "tied")),
        best_other,
        f"{gap.mean:+.1f}",
        interval,
        p_value,
        Entry(standing, bold=verdict.standing == "best"),
    ]


def score_entry(
    cell: Trainings | None, usual_seeds: int, *, bold: bool = False, task: Task | None = None
) -> Entry:
    """Write mean and standard error of a cell, or why there are none; note another budget's."""
    if cell is None:
        return Entry("–", tone="missing")
    if not cell.finished:
        return Entry("failed", tone="failed") if cell.failed else Entry("n/a", tone="missing")
    text = f"{cell.mean:.1f}" + ("" if cell.error is None else f" ± {cell.error:.1f}")
    notes = []
    if len(cell.finished) == 1:
        text += " †"
    if len(cell.finished) != usual_seeds:
        notes.append(f"{len(cell.finished)} {'seed' if len(cell.finished) == 1 else 'seeds'}")
    if task is not None and cell.task != task:
        notes.append(f"{cell.task.budget}, {cell.task.minutes:g} min")
    if cell.failed:
        notes.append(f"{len(cell.failed)} failed")
    if cell.unavailable:
        notes.append(f"{len(cell.unavailable)} n/a")
    return Entry(text, bold=bold, note=", ".join(notes))


def usual_seeds(cells: Sequence[Trainings]) -> int:
    """Most frequent number of finished seeds, the larger of equally frequent ones."""
    counts = Counter(len(cell.finished) for cell in cells if cell.finished)
    return max(counts, key=lambda seeds: (counts[seeds], seeds), default=0)


def score_section(results: Results) -> Section:
    """Tabulate every method on every dataset."""
    section = Section(anchor="scores", title="Scores")
    main = [cell for (_, _, variant), cell in results.cells.items() if not variant]
    counts = Counter(cell.method for cell in main)
    tried = [method for method in results.methods if counts[method]]
    fewest = min(3, max(counts.values(), default=0) // 2)  # a table of gaps tells nobody anything
    methods = [method for method in tried if counts[method] >= fewest]
    seeds = usual_seeds([cell for cell in main if cell.method in methods])
    rows: list[list[Entry | str]] = []
    later: list[list[Entry | str]] = []
    for task in results.tasks:
        competing = results.competing(task)
        marked = best_and_tied(competing) if len(competing) > 1 else []  # alone is not best
        cells = {method: results.cell(task, method) for method in methods} | competing
        if any(cells.values()):
            row = [score_entry(cells[m], seeds, bold=m in marked, task=task) for m in methods]
            (later if task.long else rows).append([results.label(task), *row])
    if not rows:
        rows, later = later, rows
    if not rows:
        return section
    caption = (
        "Normalised score of the final weights, mean ± standard error over training seeds "
        f"({seeds} {'seed' if seeds == 1 else 'seeds'} unless noted). Bold: the best and, where "
        "both have several, those not significantly below it (Welch's t test over seeds, 5%)."
    )
    texts = [entry.text for row in rows for entry in row if isinstance(entry, Entry)]
    for mark, meaning in (
        ("†", "one seed, so ± is over its episodes and says nothing about other trainings"),
        ("–", "not run"),
        ("failed", "every training failed"),
        ("n/a", "could not be run, such as for want of the dataset"),
    ):
        if any(mark in text for text in texts):
            caption += f" {mark}: {meaning}."
    if rare := [display_name(method) for method in tried if method not in methods]:
        caption += f" Run on few datasets, and shown there below: {', '.join(rare)}."
    header = ["dataset", *(display_name(method) for method in methods)]
    section.blocks = [Table(caption=caption, header=header, rows=rows)]
    if later:
        caption = "In the long run; where a method has no longer training, its usual one stands."
        section.blocks.append(Table(caption=caption, header=header, rows=later))
    return section


def aggregate_section(results: Results) -> Section:
    """Aggregate over datasets: interquartile means and performance profiles."""
    section = Section(anchor="aggregates", title="Over all datasets")
    methods, tasks = largest_block(results)
    if len(methods) < 2 or len(tasks) < 2:
        return section
    names = ", ".join(results.label(task) for task in tasks)
    left_out = [
        f"{display_name(method)} (no score on {', '.join(missing)})"
        for method in results.methods
        if method not in methods
        and (missing := [results.label(t) for t in tasks if method not in results.competing(t)])
    ]
    without = [results.label(t) for t in results.tasks if t not in tasks and results.competing(t)]
    notes = [f"Aggregated are the {len(tasks)} datasets {names}."]
    if left_out:
        notes.append(f"Left out: {'; '.join(left_out)}.")
    if without:
        notes.append(f"Not every method has a score on {', '.join(without)}: left out.")
    cells = {method: [results.competing(task)[method] for task in tasks] for method in methods}
    counts = {len(cell.finished) for group in cells.values() for cell in group}
    if len(counts) > 1:
        fewest = min(counts)
        cells = {method: [cell.first(fewest) for cell in cells[method]] for method in methods}
        first = "training" if fewest == 1 else f"{fewest} trainings"
        notes.append(
            f"Of each method on each dataset, the first {first} alone went in here, as there are "
            "no more of some: methods and datasets weigh the same."
        )
    notes.append(
        "The interquartile mean is the mean of the middle half of all trainings on all datasets. "
        f"Intervals are 95% percentile intervals of a bootstrap ({RESAMPLES:,} resamples, seeded, "
        "scipy.stats.bootstrap) that draws training seeds within each dataset. With few seeds "
        "such intervals are too narrow."
    )
    means = {method: interquartile_mean(cells[method]) for method in methods}
    thresholds = _thresholds([cell for group in cells.values() for cell in group])
    shares = {m: performance_profile(cells[m], thresholds) for m in methods}
    blocks: list[Block] = [
        Points(items=notes),
        Table(
            caption="Aggregates over these datasets, with 95% intervals.",
            header=["method", "interquartile mean", "95% interval", "mean", "median", "trainings"],
            rows=[_aggregate_row(method, means[method], cells[method]) for method in methods],
        ),
        Figures(
            caption=(
                "Interquartile means with their intervals; and performance profiles, the share of "
                "trainings above each score (further up and right is better)."
            ),
            legend=figures.legend("aggregate-legend", methods, results.methods),
            panels=[
                figures.interquartile_means(means, results.methods),
                figures.profiles(shares, thresholds, results.methods),
            ],
        ),
    ]
    section.blocks = blocks
    return section


def _thresholds(cells: Sequence[Trainings]) -> np.ndarray:
    scores = np.concatenate([cell.scores for cell in cells])
    return np.linspace(min(0.0, float(scores.min())), float(scores.max()) * 1.02 + 1.0, 81)


def _aggregate_row(method: str, mean: Estimate, cells: Sequence[Trainings]) -> list[Entry | str]:
    over_tasks = [cell.mean for cell in cells]
    interval = "one seed only" if mean.low is None else f"{mean.low:.1f} to {mean.high:.1f}"
    return [
        display_name(method),
        f"{float(mean.value):.1f}",
        interval,
        f"{np.mean(over_tasks):.1f}",
        f"{np.median(over_tasks):.1f}",
        str(sum(len(cell.finished) for cell in cells)),
    ]
