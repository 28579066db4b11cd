"""The documentation's page of results: scores, intervals and the command behind every cell."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.budgets import MINUTES
from benchmarks.papers import Paper
from benchmarks.report import details, scores
from benchmarks.report.document import Block, Entry, Paragraph, Points, Section, Table, render
from benchmarks.report.results import LONG, Results, Task, Trainings, display_name, numbers

__all__ = ["write_page"]


def write_page(
    records: Sequence[dict[str, Any]], path: Path, command: str, paper: Paper | None = None
) -> None:
    """Write the page as Markdown.

    Args:
        records: see ``benchmarks.report.write``.
        path: file to write.
        command: makes this page, for its first line.
        paper: whose agent is judged; by default the first.
    """
    results = Results.of(records, paper)
    headline, table = scores.headline_section(results), scores.score_section(results)
    made = f"Made by `{command}`. What else was measured: [Experiments](experiments.md)."
    facts = _caveats(results)
    mark = "<!-- --8<-- [{}:scores] -->"  # the part that the home page shows as well
    table.blocks = [
        Paragraph(text=made),
        Paragraph(text=mark.format("start")),
        *headline.blocks[:1],
        *table.blocks,
        *([Points(items=facts[:2])] if facts else []),
        Paragraph(text=mark.format("end")),
        *([Points(items=facts[2:])] if facts[2:] else []),
        *headline.blocks[1:],
    ]
    sections = [
        table,
        *(_dataset_section(results, task) for task in results.tasks),
        details.speed_section(results),
        details.protocol_section(results),
        details.provenance_section(results),
    ]
    path.write_text(render("Results", sections)[0].rstrip() + "\n", encoding="utf-8")


def _caveats(results: Results) -> list[str]:
    """What must be known before a score is believed."""
    names = {t.dataset: results.paper.dataset_name(t.dataset) for t in results.tasks}
    facts = results.paper.differences({d: name for d, name in names.items() if name is not None})
    shares = defaultdict(list)
    for record in results.records:
        counts = record.get("steps") and record.get("published_steps") and not record["variant"]
        if counts and record["budget"] not in LONG:
            shares[record["method"]].append(record["steps"] / record["published_steps"])
    short = [m for m in results.methods if m in shares and max(shares[m]) < 0.1]
    if short:
        facts.insert(
            0,
            f"{', '.join(map(display_name, short))} took less than a tenth of their published "
            "steps at equal time, so their scores say little about what they can do.",
        )
    return facts


def _dataset_section(results: Results, task: Task) -> Section:
    """Rank the methods on one task, and say how each is run."""
    cells = sorted(results.competing(task).values(), key=lambda cell: -cell.mean)
    commands: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        commands[_command(cell)].append(cell.method)
    table = Table(
        caption=(
            "Mean score, 95% confidence interval by Student's t over trainings (†: one training, "
            "over its episodes), and medians of steps, minutes of training and milliseconds per "
            "action (of the calls; who follows a plan for many steps makes it in few of them)."
        ),
        header=["method", "score", "95% interval", "trainings", "steps", "minutes", "ms"],
        rows=[_row(cell) for cell in cells],
    )
    lines = [f"`{line.format(','.join(m))}`" for line, m in commands.items()]
    blocks: list[Block] = [
        table,
        Paragraph(text="Commands; one method alone is one row:"),
        Points(items=lines),
    ]
    anchor = f"task{results.tasks.index(task)}"
    return Section(anchor=anchor, title=results.label(task), blocks=blocks if cells else [])


def _row(cell: Trainings) -> list[Entry | str]:
    count = len(cell.finished) if len(cell.finished) > 1 else len(cell.episode_scores)
    interval: Entry | str = Entry("–", tone="missing")
    if cell.error is not None:
        reach = float(stats.t.ppf(0.975, count - 1)) * cell.error
        mark = " †" if len(cell.finished) == 1 else ""
        interval = f"{cell.mean - reach:.1f} to {cell.mean + reach:.1f}{mark}"
    medians = [
        (numbers(cell.finished, "steps"), "{:,.0f}"),
        ([seconds / 60 for seconds in numbers(cell.finished, "training_seconds")], "{:.1f}"),
        (numbers(cell.finished, "latency_ms", "batch_1", "median"), "{:.2f}"),
    ]
    found = [form.format(np.median(values)) if values else "–" for values, form in medians]
    return [
        display_name(cell.method),
        f"{cell.mean:.1f}",
        interval,
        str(len(cell.finished)),
        *found,
    ]


def _command(cell: Trainings) -> str:
    """The suite's command for a cell, with {} for the method."""
    first, task = cell.finished[0], cell.task
    options = {
        "datasets": task.dataset,
        "methods": "{}",
        "seeds": max(record["seed"] for record in cell.finished) + 1,
        "budget": task.budget,
        "minutes": f"{task.minutes:g}" if task.minutes != MINUTES.get(task.budget) else "",
        "episodes": first.get("episodes"),
        "device": first.get("device") if first.get("device") != "cpu" else "",
    }
    if not task.minutes:
        del options["minutes"]
    words = (f"--{name} {value}" for name, value in options.items() if value)
    return " ".join(["python benchmarks/run_suite.py", *words])
