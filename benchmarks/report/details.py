"""The sections behind the scores: curves, steering, speed, failures, protocol, provenance."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.papers import PAPERS
from benchmarks.records import Record, reason
from benchmarks.report import figures
from benchmarks.report.document import Block, Entry, Figures, Panel, Points, Section, Table
from benchmarks.report.results import Results, Trainings, display_name, numbers

__all__ = [
    "asked_section",
    "curve_section",
    "failure_section",
    "protocol_section",
    "provenance_section",
    "speed_section",
]

_MISSING = Entry("–", tone="missing")
_LONGEST_ERROR = 300


def _drawings(
    results: Results,
    section: Section,
    caption: str,
    chosen: Callable[[Record], bool],
    draw: Callable[[str, str, Sequence[Trainings], Sequence[str]], Panel],
) -> Section:
    """Fill a section with a panel for every task with a chosen record, if there is any."""
    panels, drawn = [], set()
    for number, task in enumerate(results.tasks):
        cells = [
            cell
            for cell in results.competing(task).values()
            if any(chosen(record) for record in cell.finished)
        ]
        if cells:
            drawn |= {cell.method for cell in cells}
            name = f"{section.anchor}{number}"
            panels.append(draw(name, results.label(task), cells, results.methods))
    if panels:
        methods = [method for method in results.methods if method in drawn]
        legend = figures.legend(f"{section.anchor}-legend", methods, results.methods)
        section.blocks = [Figures(caption=caption, panels=panels, legend=legend)]
    return section


def asked_section(results: Results) -> Section:
    """Show whether asking for more return gets more."""
    return _drawings(
        results,
        Section(anchor="asked", title="Asking for more"),
        "Methods that are told how much return to achieve: mean score achieved, over the return "
        "asked for; one line per training seed. The rank correlation is Spearman's over all "
        "points; 1 means that asking for more always gets more.",
        lambda record: len(record["asked"]) > 1,
        figures.asked_and_achieved,
    )


def curve_section(results: Results) -> Section:
    """Show scores over training."""
    return _drawings(
        results,
        Section(anchor="curves", title="Learning curves"),
        "Score over the minutes of training (processor time; on a GPU, wall time), measured in "
        "fewer episodes than the final one and used for nothing but this picture. Thin: one seed; "
        "thick: mean of the seeds.",
        lambda record: len(record["learning_curve"]) > 1,
        figures.learning_curves,
    )


def speed_section(results: Results) -> Section:
    """Tabulate time per action, training throughput and training time."""
    section = Section(anchor="speed", title="Speed")
    groups: dict[tuple[int, str, str], list[Record]] = defaultdict(list)
    for record in results.records:
        if record["status"] == "ok" and not record["variant"]:
            where = f"{record.get('hardware') or 'unknown'}, {_threads(record)}"
            groups[results.methods.index(record["method"]), record["method"], where].append(record)
    rows: list[list[Entry | str]] = []
    for (_, method, where), group in sorted(groups.items()):
        values = [
            *(numbers(group, "latency_ms", f"batch_{n}", q) for n in (1, 64) for q in _QUANTILES),
            [a / max(b, 1e-9) for a, b in _pairs(group, "steps", "training_seconds")],
            numbers(group, "samples_per_second"),
            [seconds / 60 for seconds in numbers(group, "training_seconds")],
            numbers(group, "steps"),
            # The stages of our small presets share out their steps as no publication does.
            [100 * a / max(b, 1) for a, b in _pairs(group, "steps", "published_steps")]
            if method.partition("-")[0] not in PAPERS
            else [],
        ]
        if any(values):
            row = [_number(float(np.median(v))) if v else _MISSING for v in values]
            rows.append([Entry(display_name(method), note=where), *row])
    if rows:
        caption = (
            "Medians over trainings. Milliseconds to act on one observation and on a batch of 64 "
            "(median and 99th percentile of the calls); gradient steps and samples per second of "
            "training; minutes of training, gradient steps, and what percentage they are of the "
            "published number, for which each method's learning rates were chosen. "
            + results.paper.latency
        )
        header = [
            "method (hardware)",
            "1 obs.",
            "p99",
            "64 obs.",
            "p99",
            "steps/s",
            "samples/s",
            "minutes",
            "steps",
            "% of published",
        ]
        section.blocks = [Table(caption=caption, header=header, rows=rows)]
    return section


def _pairs(records: Sequence[Record], first: str, second: str) -> list[tuple[float, float]]:
    """Two numbers of every training that has both."""
    pairs = [(numbers([record], first), numbers([record], second)) for record in records]
    return [(a[0], b[0]) for a, b in pairs if a and b]


_QUANTILES = ("median", "p99")


def _threads(record: Record) -> str:
    threads = record.get("threads")
    return f"{threads} {'thread' if threads == 1 else 'threads'}" if threads else "threads unknown"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def failure_section(results: Results) -> Section:
    """List what failed, what could not be run, and records that could not be used."""
    section = Section(anchor="failures", title="Failures and gaps")
    seeds: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for cell in results.cells.values():
        name = display_name(cell.method) + (f" ({cell.variant})" if cell.variant else "")
        for record in [*cell.failed, *cell.unavailable]:
            key = (name, results.label(cell.task), record["status"], _error(record))
            seeds[key].append(record["seed"])
    blocks: list[Block] = []
    if seeds:
        caption = "Trainings without a score, and why."
        header = ["method", "dataset", "seeds", "status", "error"]
        rows: list[list[Entry | str]] = [
            [
                name,
                label,
                ", ".join(map(str, which)),
                Entry(status, tone="failed"),
                Entry(error, tone="code"),
            ]
            for (name, label, status, error), which in seeds.items()
        ]
        blocks.append(Table(caption=caption, header=header, rows=rows, text=True))
    tried = [task for task in results.tasks if any(results.cell(task, m) for m in results.methods)]
    gaps = [
        f"{display_name(method)} was not run on {', '.join(missing)}."
        for method in results.methods
        if (missing := [results.label(task) for task in tried if not results.cell(task, method)])
    ]
    mixed = [
        f"The seeds of {' '.join(filter(None, (display_name(cell.method), cell.variant)))} on "
        f"{results.label(cell.task)} were trained with {len(digests)} different configurations"
        f"{_differing(cell.finished)}."
        for cell in results.cells.values()
        if len(digests := {r["config_digest"] for r in cell.finished if r.get("config_digest")}) > 1
    ]
    remarks = [*gaps, *mixed, *results.problems]
    if not remarks and not seeds:
        remarks = ["No gaps: every method was run on every dataset."]
    blocks.append(Points(items=remarks))
    section.blocks = blocks
    return section


def _differing(trainings: Sequence[Record]) -> str:
    """Name the settings in which trainings differ; one that a record lacks came or went since."""
    settings = [record.get("hyperparameters") or {} for record in trainings]
    names = sorted(
        name
        for name in set().union(*settings)
        if any(one.get(name, ...) != settings[0].get(name, ...) for one in settings)
    )
    return f": they differ in {', '.join(names)}" if names else ""


def _error(record: Record) -> str:
    last = reason(record)
    return last if len(last) <= _LONGEST_ERROR else last[: _LONGEST_ERROR - 1] + "…"


def protocol_section(results: Results) -> Section:
    """Say in words how the numbers came about."""
    budgets = Counter(task.budget for task in results.tasks)
    minutes = sorted({task.minutes for task in results.tasks if task.minutes})
    items = [
        "A score is 100 (return − reference minimum) / (reference maximum − reference minimum), "
        "with the references in the dataset's metadata (D4RL's, where D4RL has the task).",
        "Every method trains on the same data (of which "
        f"{sum('data' in record for record in results.records)} of {len(results.records)} records "
        "hold a fingerprint) and is scored with its final weights, never with the best of a "
        "training. All methods meet the same evaluation episodes in the same order "
        "(some more of them than others), every episode started is counted, and the error is over "
        "training seeds.",
        "Every method uses its published hyperparameters, but that planners, FQL and HIQL are "
        "smaller, and DT's batches on Adroit and in mazes, in trainings of minutes, and but for "
        "what the documentation of the protocol lists. "
        f"{display_name(results.subject)} has one configuration per domain, not per dataset, made "
        "for such minutes and in part on such data; Decision Transformer and it alone train in "
        "bfloat16, on processors that have it.",
    ]
    if results.by_success:
        items.append(
            "The score is the percentage of episodes that succeed, for want of references, on "
            f"{', '.join(map(results.label, results.by_success))}."
        )
    if results.by_return:
        items.append(
            "The score is the mean return, for want of references and reports of success, on "
            f"{', '.join(map(results.label, results.by_return))}."
        )
    if any(budgets):
        named = ", ".join(sorted(filter(None, budgets)))
        same = len({record.get("hardware") for record in results.records}) == 1
        hardware = " on the same hardware" if same else " (the hardware differs, see below)"
        items.append(
            f"Budget: {named}. "
            + (
                f"Every method trains for the same processor time{hardware}, "
                f"{' or '.join(f'{m:g}' for m in minutes)} minutes a training (less if its "
                "published number of steps is reached before), so that none wins by training "
                "longer."
                if minutes
                else "Every method trains for its own number of steps."
            )
        )
    items += _evaluation(results)
    return Section(anchor="protocol", title="Protocol", blocks=[Points(items=items)])


def _evaluation(results: Results) -> list[str]:
    finished = [record for record in results.records if record["status"] == "ok"]
    seeds = sorted({r["evaluation_seed"] for r in finished if r.get("evaluation_seed") is not None})
    items = []
    if seeds:
        items.append(
            f"Episodes are reset with evaluation seeds that count up from "
            f"{', '.join(map(str, seeds))}"
            + (
                " (a block for each training seed, the same for all methods)." * (len(seeds) > 1)
                or "."
            )
        )
    episodes: dict[int, list[str]] = defaultdict(list)
    for task in results.tasks:
        counts = {
            int(r.get("episodes") or len(r.get("scores") or []))
            for (t, _, _), cell in results.cells.items()
            if t == task
            for r in cell.finished
        }
        for count in sorted(counts):
            episodes[count].append(results.label(task))
    items += [
        f"{count} evaluation episodes a seed: {', '.join(names)}."
        for count, names in sorted(episodes.items())
    ]
    acting: dict[bool, dict[str, set[str]]] = {True: defaultdict(set), False: defaultdict(set)}
    for record in finished:
        if isinstance(record.get("deterministic"), bool):
            acting[record["deterministic"]][results.label_of(record)].add(record["method"])
    sampling = [
        label
        if label not in acting[True]
        else f"{label} ({', '.join(map(display_name, sorted(methods)))})"
        for label, methods in sorted(acting[False].items())
    ]
    if sampling:
        items.append(
            f"Policies that can sample do so on {', '.join(sampling)}; elsewhere they take their "
            "likeliest action."
        )
    return items


def provenance_section(results: Results) -> Section:
    """Tabulate versions, hardware, commits and configurations."""
    facts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in results.records:
        versions = record.get("versions")
        for package, version in (versions if isinstance(versions, dict) else {}).items():
            facts[f"version of {package}"][str(version)] += 1
        facts["hardware"][str(record.get("hardware") or "unknown")] += 1
        facts["threads"][str(record.get("threads") or "unknown")] += 1
        facts["commit"][str(record.get("commit") or "unknown")[:12]] += 1
    rows: list[list[Entry | str]] = [[name, _spread(facts[name])] for name in sorted(facts)]
    rows += _configurations(results)
    table = Table(
        caption="What the records were made with; where they differ, with the number of records.",
        header=["what", "value"],
        rows=rows,
        text=True,
    )
    blocks: list[Block] = [table] if rows else []
    return Section(anchor="provenance", title="Versions and hardware", blocks=blocks)


def _configurations(results: Results) -> list[list[Entry | str]]:
    """One row for each method: digests of its configurations, with their datasets."""
    digests: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for (task, method, variant), cell in results.cells.items():
        name = display_name(method) + (f" ({variant})" if variant else "")
        for record in cell.finished:
            if digest := record.get("config_digest"):
                digests[name][str(digest)].add(results.label(task))
    return [
        [
            f"configuration of {name}",
            "; ".join(f"{digest}: {', '.join(sorted(on))}" for digest, on in sorted(found.items())),
        ]
        for name, found in digests.items()
    ]


def _spread(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return ", ".join(f"{value} ({count})" for value, count in sorted(values.items()))
