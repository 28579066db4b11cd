"""The sections that put a paper's numbers beside ours: scores and ablations."""

from collections.abc import Sequence

import numpy as np

from benchmarks.domains import FINAL_RETURN
from benchmarks.papers import Published, on_d4rl_scale
from benchmarks.report.document import Block, Entry, Paragraph, Points, Section, Table
from benchmarks.report.results import Results, Task, Trainings, display_name, numbers, stage_of
from benchmarks.report.scores import score_entry, usual_seeds
from benchmarks.report.statistics import blocked_difference, rising_trend

__all__ = ["ablation_section", "online_section", "published_section"]

_NOT_COMPARABLE = (
    "The paper's numbers were measured by its authors, or copied by them from the baselines' own "
    "papers, on D4RL's original data. They are context, not competitors: no number here is "
    "comparable with them one to one."
)


def _names(results: Results) -> dict[Task, str]:
    names = {task: results.paper.dataset_name(task.dataset) for task in results.tasks}
    return {task: name for task, name in names.items() if name is not None}


def _published(cell: Published | None) -> Entry:
    if cell is None or cell.value is None:
        return Entry("–", tone="missing")
    error = "" if cell.error is None else f" ± {cell.error:.1f}"
    return Entry(f"{cell.value:.1f}{error}", tone="published")


def published_section(results: Results) -> Section:
    """Put the paper's scores beside ours, and say why they do not compare."""
    section = Section(anchor="published", title="Published numbers")
    names, paper = _names(results), results.paper
    if not names:
        return section
    shared = [m for m in results.methods if any(paper.score(m, n) for n in names.values())]
    seeds = usual_seeds(list(results.cells.values()))
    ours: list[list[Entry | str]] = [  # scores on another scale stand in the table of scores alone
        [
            results.label(task),
            *(
                entry
                for method in shared
                for entry in (
                    score_entry(results.cell(task, method), seeds),
                    _published(paper.score(method, name, delayed=_is_delayed(task))),
                )
            ),
        ]
        for task, name in names.items()
        if all(on_d4rl_scale(r) for r in results.records if r["dataset"] == task.dataset)
    ]
    blocks: list[Block] = [Paragraph(text=_NOT_COMPARABLE)]
    if shared and ours:
        blocks.append(
            Table(
                caption=(
                    "Ours beside the paper's (in italics: published, on D4RL's original data, "
                    f"{paper.errors}). –: no number."
                ),
                header=[
                    "dataset",
                    *(f"{display_name(m)}{w}" for m in shared for w in ("", ", paper")),
                ],
                rows=ours,
            )
        )
    blocks += [_all_published(results, names), Paragraph(text="What differs from the originals:")]
    by_id = {task.dataset: name for task, name in names.items()}
    blocks.append(Points(items=paper.differences(by_id)))
    section.blocks = blocks
    return section


def _is_delayed(task: Task) -> bool:
    return task.dataset.endswith(FINAL_RETURN)


def online_section(results: Results) -> Section:
    """Tabulate scores after each stage of online fine-tuning, beside the paper's if it has any."""
    section = Section(anchor="online", title="Online fine-tuning")
    names, paper = _names(results), results.paper
    seeds = usual_seeds(list(results.cells.values()))
    stages = sorted({stage_of(variant) for _, _, variant in results.cells})
    if stages in ([], [0]):
        return section
    rows: list[list[Entry | str]] = []
    for task in results.tasks:
        for method in results.methods:
            found = {
                stage_of(variant): cell
                for (where, who, variant), cell in results.cells.items()
                if (where, who) == (task, method) and variant in ("", f"stage {stage_of(variant)}")
            }
            if not any(found):
                continue
            row: list[Entry | str] = [Entry(results.label(task), note=display_name(method))]
            for stage in stages:
                printed = None
                if task in names and stage:
                    where = (method, names[task], stage)
                    printed = paper.online(*where, delayed=_is_delayed(task))
                elif task in names:
                    printed = paper.score(method, names[task], delayed=_is_delayed(task))
                row.append(score_entry(found.get(stage), seeds))
                if names:
                    row.append(_published(printed))
            rows.append(row)
    of_paper = ("", ", paper") if names else ("",)
    caption = "Scores after each stage; stage 0 is the training on the dataset alone."
    section.blocks = [
        Table(
            caption=caption + " In italics: the paper's." * bool(names),
            header=["dataset", *(f"stage {n}{w}" for n in stages for w in of_paper)],
            rows=rows,
        )
    ]
    return section


def _all_published(results: Results, names: dict[Task, str]) -> Table:
    datasets, paper = list(dict.fromkeys(names.values())), results.paper
    whole = [c for c in paper.published if c.table in paper.score_tables and c.dataset in datasets]
    delayed = all(map(_is_delayed, names))
    columns = {cell.method: cell.column.replace("DQL", "D-QL") for cell in reversed(whole)}
    methods = sorted(columns, key=lambda m: (m != paper.agent, columns[m].lower()))
    rows: list[list[Entry | str]] = []
    for dataset in datasets:
        tables = sorted({cell.table for cell in whole if cell.dataset == dataset})
        source = f"Table {', '.join(map(str, tables))}"
        row = [_published(paper.score(m, dataset, delayed=delayed)) for m in methods]
        rows.append([Entry(dataset, note=source), *row])
    return Table(
        caption="All that the paper prints for these datasets, with its names and tables.",
        header=["dataset (source)", *(columns[method] for method in methods)],
        rows=rows,
    )


def ablation_section(results: Results) -> Section:
    """Tabulate variants of the agent with the paper's row beside ours, and all other variants."""
    section = Section(anchor="ablations", title="Ablations")
    subject, paper = results.subject, results.paper
    tried = {variant for _, method, variant in results.cells if variant and method == subject}
    shown: set[str] = set()
    blocks: list[Block] = []
    for number in paper.ablations:
        printed = [c for c in paper.published if c.table == number and c.method == subject]
        variants = list(dict.fromkeys(cell.variant for cell in printed))
        if tried & set(variants):
            shown |= set(variants)
            blocks.append(_ablation_table(results, number, printed, variants))
            if number == paper.rising:
                blocks += _trend(results, variants)
    others = sorted(
        {
            (method, variant)
            for _, method, variant in results.cells
            if variant and not stage_of(variant)
        }
        - {(subject, variant) for variant in shown}
    )
    if others:
        blocks.append(_other_variants(results, others))
    if blocks:
        text = (
            f"Differences are to the variant that is the paper's {paper.title} (named in the "
            "caption), on the same dataset, with their 95% intervals. Trainings of one seed meet "
            "the same evaluation episodes, some of them harder than another seed's, so a score "
            "is taken for the sum of an effect of the variant, one of the seed, and noise that "
            "is alike for all variants of the table (two-way analysis of variance). A direction "
            "counts as reproduced where our interval lies wholly on the paper's side of zero, as "
            "opposite where it lies wholly on the other, and is open where it holds zero; one "
            "training of either says nothing of others. Of differences that are none, one in "
            "twenty looks like one."
        )
        section.blocks = [Paragraph(text=text), *blocks]
    return section


def _ablation_table(
    results: Results, number: int, cells: Sequence[Published], variants: Sequence[str]
) -> Table:
    subject, reference = results.paper.ablations[number]
    names = _names(results)
    printed = {(cell.variant, cell.dataset): cell for cell in cells}
    seeds = usual_seeds(list(results.cells.values()))
    rows: list[list[Entry | str]] = []
    for task in results.tasks:
        if not any(results.cell(task, results.subject, each) for each in variants if each):
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


def _trend(results: Results, variants: Sequence[str]) -> list[Block]:
    """Say whether scores rise from variant to variant up to the agent as published."""
    table = results.paper.rising
    rising = variants[: variants.index(results.paper.ablations[table].reference) + 1]
    items = []
    for task in results.tasks:
        cells = [_variant(results, task, table, variant) for variant in rising]
        there = [cell for cell in cells if cell is not None]
        p_value = rising_trend(there) if len(there) == len(rising) else None
        if p_value is not None:
            items.append(
                f"{results.label(task)}: scores rise from {rising[0]} to {rising[-1]} with "
                f"p = {p_value:.3f} (Page's trend test over seeds, against no order)."
            )
    return [Points(items=items)] if items else []


def _variant(results: Results, task: Task, table: int, variant: str) -> Trainings | None:
    """Find a variant's cell; the whole method's where that has the variant's settings."""
    cell, whole = (results.cell(task, results.subject, name) for name in (variant, ""))
    if cell is not None or whole is None:
        return cell
    changes = results.paper.tables[table].variants.get(variant, {})
    settings = [record.get("hyperparameters") or {} for record in whole.finished]
    same = bool(changes) and all(
        own.get(key) == value for own in settings for key, value in changes.items()
    )
    return whole if same else None


def _steps(cell: Trainings | None) -> Entry | str:
    """Median number of steps of a cell's trainings."""
    steps = numbers(cell.finished, "steps") if cell else []
    return f"{np.median(steps):,.0f}" if steps else Entry("–", tone="missing")


def _ablation_difference(
    ours: Sequence[Trainings | None],
    papers: Sequence[Published | None],
    trained: Sequence[Trainings],
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
        interval = f"{gap.low:+.1f} to {gap.high:+.1f}" if gap.tested else ""
        entry = Entry(f"{gap.mean:+.1f}", note=interval)
    if paper and whole and paper is not whole and None not in (paper.value, whole.value):
        printed = float(paper.value or 0) - float(whole.value or 0)
    told = missing if printed is None else Entry(f"{printed:+.1f}", tone="published")
    direction: Entry | str = missing
    if gap is not None and printed is not None:
        direction = "reproduced" if gap.mean * printed > 0 else "opposite"
        direction = "open" if gap.low <= 0 <= gap.high else direction
        direction = direction if gap.tested else "one seed"
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
