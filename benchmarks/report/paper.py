"""The sections that put the paper's numbers beside ours: scores and ablations."""

from collections.abc import Sequence

import numpy as np

from benchmarks.published import (
    ABLATION_TABLES,
    SCORE_TABLES,
    Published,
    paper_name,
    published_score,
)
from benchmarks.report.differences import differences
from benchmarks.report.document import Block, Entry, Paragraph, Points, Section, Table
from benchmarks.report.results import Cell, Results, Task, display_name, numbers
from benchmarks.report.scores import score_entry, usual_seeds
from benchmarks.report.statistics import blocked_difference, rising_trend
from benchmarks.tables import TABLES

__all__ = ["ablation_section", "published_section"]

_NOT_COMPARABLE = (
    "The paper's numbers were measured by its authors, or copied by them from the baselines' own "
    "papers, on D4RL's original data. They are context, not competitors: no number here is "
    "comparable with them one to one."
)


_SCALES = 5  # number of the table over the number of scales


def _names(results: Results, cells: Sequence[Published]) -> dict[Task, str]:
    known = sorted({cell.dataset for cell in cells if cell.table in SCORE_TABLES})
    names = {task: paper_name(task.dataset, known) for task in results.tasks}
    return {task: name for task, name in names.items() if name is not None}


def _published(cell: Published | None) -> Entry:
    if cell is None or cell.value is None:
        return Entry("–", tone="missing")
    error = "" if cell.error is None else f" ± {cell.error:.1f}"
    return Entry(f"{cell.value:.1f}{error}", tone="published")


def published_section(results: Results, cells: Sequence[Published]) -> Section:
    """Put the paper's scores beside ours, and say why they do not compare."""
    section = Section(anchor="published", title="Published numbers")
    names = _names(results, cells)
    if not names:
        return section
    shared = [
        m for m in results.methods if any(published_score(cells, m, n) for n in names.values())
    ]
    seeds = usual_seeds(list(results.cells.values()))
    ours: list[list[Entry | str]] = [
        [
            results.label(task),
            *(
                entry
                for method in shared
                for entry in (
                    score_entry(results.cell(task, method), seeds),
                    _published(published_score(cells, method, name)),
                )
            ),
        ]
        for task, name in names.items()
    ]
    blocks: list[Block] = [Paragraph(text=_NOT_COMPARABLE)]
    if shared:
        blocks.append(
            Table(
                caption=(
                    "Ours beside the paper's (in italics: published, on D4RL's original data, 5 "
                    "seeds, mean ± standard error). –: no number."
                ),
                header=[
                    "dataset",
                    *(f"{display_name(m)}{w}" for m in shared for w in ("", ", paper")),
                ],
                rows=ours,
            )
        )
    blocks += [_all_published(names, cells), Paragraph(text="What differs from the originals:")]
    blocks.append(Points(items=differences(names)))
    section.blocks = blocks
    return section


def _all_published(names: dict[Task, str], cells: Sequence[Published]) -> Table:
    datasets = list(dict.fromkeys(names.values()))
    whole = [c for c in cells if c.table in SCORE_TABLES and c.dataset in datasets]
    columns = {cell.method: cell.column.replace("DQL", "D-QL") for cell in reversed(whole)}
    methods = sorted(columns, key=lambda method: (method != "mage", columns[method].lower()))
    rows: list[list[Entry | str]] = []
    for dataset in datasets:
        tables = sorted({cell.table for cell in whole if cell.dataset == dataset})
        source = f"Table {', '.join(map(str, tables))}"
        row = [_published(published_score(cells, method, dataset)) for method in methods]
        rows.append([Entry(dataset, note=source), *row])
    return Table(
        caption="All that the paper prints for these datasets, with its names and tables.",
        header=["dataset (source)", *(columns[method] for method in methods)],
        rows=rows,
    )


def ablation_section(results: Results, cells: Sequence[Published]) -> Section:
    """Tabulate variants of MAGE with the paper's row beside ours, and all other variants."""
    section = Section(anchor="ablations", title="Ablations")
    tried = {variant for _, method, variant in results.cells if variant and method == "mage"}
    shown: set[str] = set()
    blocks: list[Block] = []
    for number in ABLATION_TABLES:
        variants = list(
            dict.fromkeys(c.variant for c in cells if c.table == number and c.method == "mage")
        )
        if tried & set(variants):
            shown |= set(variants)
            blocks.append(_ablation_table(results, cells, number, variants))
            if number == _SCALES:
                blocks += _trend_over_scales(results, variants)
    others = sorted(
        {(method, variant) for _, method, variant in results.cells if variant}
        - {("mage", variant) for variant in shown}
    )
    if others:
        blocks.append(_other_variants(results, others))
    if blocks:
        text = (
            "Differences are to the variant that is the paper's MAGE (named in the caption), on "
            "the same dataset, with their 95% intervals. Trainings of one seed meet the same "
            "evaluation episodes, some of them harder than another seed's, so a score is taken "
            "for the sum of an effect of the variant, one of the seed, and noise that is alike "
            "for all variants of the table (two-way analysis of variance). A direction "
            "counts as reproduced where our interval lies wholly on the paper's side of zero, as "
            "opposite where it lies wholly on the other, and is open where it holds zero; one "
            "training of either says nothing of others. Of differences that are none, one in "
            "twenty looks like one."
        )
        section.blocks = [Paragraph(text=text), *blocks]
    return section


def _ablation_table(
    results: Results,
    cells: Sequence[Published],
    number: int,
    variants: Sequence[str],
) -> Table:
    subject, reference = ABLATION_TABLES[number]
    names = _names(results, cells)
    printed = {(c.variant, c.dataset): c for c in cells if c.table == number and c.method == "mage"}
    seeds = usual_seeds(list(results.cells.values()))
    rows: list[list[Entry | str]] = []
    for task in results.tasks:
        if not any(results.cell(task, "mage", variant) for variant in variants if variant):
            continue
        found = {name: _variant(results, task, number, name) for name in variants}
        trained = [cell for cell in found.values() if cell is not None]
        for variant in variants:
            pair = (variant, reference)
            ours = [found.get(name) for name in pair]
            papers = [printed.get((name, names.get(task, ""))) for name in pair]
            rows.append(
                [
                    results.label(task),
                    variant or "whole method",
                    score_entry(ours[0], seeds),
                    _steps(ours[0]),
                    *_ablation_difference(ours, papers, trained),
                ]
            )
    return Table(
        caption=(
            f"Table {number} of the paper, {subject}: ours and, in italics, the paper's. "
            f"Differences are to {reference or 'the whole method'}."
        ),
        header=[
            "dataset",
            "variant",
            "ours",
            "steps",
            "difference",
            "paper",
            "difference",
            "direction",
        ],
        rows=rows,
    )


def _trend_over_scales(results: Results, variants: Sequence[str]) -> list[Block]:
    """Say whether scores rise with the number of scales up to the paper's best."""
    rising = variants[: variants.index(ABLATION_TABLES[_SCALES][1]) + 1]
    items = []
    for task in results.tasks:
        cells = [_variant(results, task, _SCALES, variant) for variant in rising]
        there = [cell for cell in cells if cell is not None]
        p_value = rising_trend(there) if len(there) == len(rising) else None
        if p_value is not None:
            items.append(
                f"{results.label(task)}: scores rise from {rising[0]} to {rising[-1]} with "
                f"p = {p_value:.3f} (Page's trend test over seeds, against no order)."
            )
    return [Points(items=items)] if items else []


def _variant(results: Results, task: Task, table: int, variant: str) -> Cell | None:
    """Find a variant's cell; the whole method's where that has the variant's settings."""
    cell, whole = (results.cell(task, "mage", name) for name in (variant, ""))
    if cell is not None or whole is None:
        return cell
    changes = TABLES[table].variants.get(variant, {})
    settings = [record.get("hyperparameters") or {} for record in whole.finished]
    same = bool(changes) and all(
        own.get(key) == value for own in settings for key, value in changes.items()
    )
    return whole if same else None


def _steps(cell: Cell | None) -> Entry | str:
    """Median number of steps of a cell's trainings."""
    steps = numbers(cell.finished, "steps") if cell else []
    return f"{np.median(steps):,.0f}" if steps else Entry("–", tone="missing")


def _ablation_difference(
    ours: Sequence[Cell | None], papers: Sequence[Published | None], trained: Sequence[Cell]
) -> list[Entry | str]:
    """Differences to the reference, ours and the paper's, and whether they agree.

    Args:
        ours: cells of the variant and of the reference.
        papers: the same, printed.
        trained: cells of all variants of the table.
    """
    missing = Entry("–", tone="missing")
    entry, gap, printed = missing, None, None
    (changed, full), (paper, whole) = ours, papers
    if changed and full and changed is not full and changed.finished and full.finished:
        gap = blocked_difference(changed, full, trained)
        entry = Entry(f"{gap.mean:+.1f}", note=f"{gap.low:+.1f} to {gap.high:+.1f}")
    if paper and whole and paper is not whole and None not in (paper.value, whole.value):
        printed = float(paper.value or 0) - float(whole.value or 0)
    told = missing if printed is None else Entry(f"{printed:+.1f}", tone="published")
    direction: Entry | str = missing
    if gap is not None and printed is not None:
        direction = "reproduced" if gap.mean * printed > 0 else "opposite"
        direction = "open" if gap.low <= 0 <= gap.high else direction
        direction = direction if gap.over == "seeds" else "one seed"
    return [entry, _published(paper), told, direction]


def _other_variants(results: Results, variants: Sequence[tuple[str, str]]) -> Table:
    tasks = [t for t in results.tasks if any((t, m, v) in results.cells for m, v in variants)]
    seeds = usual_seeds(list(results.cells.values()))
    return Table(
        caption="Variants without a counterpart in the paper.",
        header=["variant", *(results.label(task) for task in tasks)],
        rows=[
            [
                Entry(variant, note=display_name(method)),
                *(score_entry(results.cell(task, method, variant), seeds) for task in tasks),
            ]
            for method, variant in variants
        ],
    )
