"""The sections that put the paper's numbers beside ours: scores and ablations."""

from collections.abc import Sequence

from benchmarks.published import (
    ABLATION_TABLES,
    SCORE_TABLES,
    Published,
    paper_name,
    published_score,
)
from benchmarks.report.document import Block, Entry, Paragraph, Points, Section, Table
from benchmarks.report.records import Results, Task, display_name
from benchmarks.report.scores import score_entry, usual_seeds
from benchmarks.report.statistics import difference

__all__ = ["ablation_section", "published_section"]

_NOT_COMPARABLE = (
    "The paper's numbers were measured by its authors, or copied by them from the baselines' own "
    "papers, on D4RL's original data. They are context, not competitors: no number here is "
    "comparable with them one to one."
)
_EVERYWHERE = (
    "Data of ours (ids that begin with local/) were collected anew in today's Gymnasium "
    "environments, from published policies and demonstrations or by D4RL's recipes; they are "
    "fewer steps than D4RL's and of other quality.",
    "Simulators differ: D4RL ran on mujoco-py, today's environments on MuJoCo 3 with other "
    "contact physics.",
    "Scores use D4RL's reference returns, so that 100 is D4RL's expert and not the data's; mazes "
    "made here bring references of their own.",
    "The paper trains 5 seeds on GPUs; what was trained here, and for how long, is under Protocol.",
)
_BY_DOMAIN = {
    "pen": (
        "Adroit: today's reward adds the term for the distance of palm and object that D4RL "
        "subtracts, worth a few points of return.",
        "Pen: an episode no longer ends when the pen drops, so that a bad policy can score below "
        "zero; returns spread so widely (50 to 60 points) that 20 episodes are uncertain by 13.",
    ),
    "door": (
        "Adroit: today's reward adds the term for the distance of palm and object that D4RL "
        "subtracts, worth a few points of return.",
        "Door: the human demonstrations replayed today succeed in 8 cases of 25; the cloned data "
        "are 250 rollouts of a clone and 185 human episodes.",
    ),
    "halfcheetah": (
        "HalfCheetah: v5 in place of v2; the data come from PPO and TQC agents, half and half, "
        "and are a tenth to a twentieth of D4RL's.",
    ),
    "antmaze": (
        "AntMaze: the goal's radius is 0.45 (D4RL: 0.5), start and goal move by up to 1 m, and "
        "the goal is part of the observation; evaluation goes from corner to corner.",
    ),
    "pointmaze": (
        "PointMaze is today's Maze2D: other gears and time steps, and episodes that end at the "
        "goal where D4RL's stay on it and collect.",
    ),
}
_BY_DOMAIN["hammer"] = _BY_DOMAIN["relocate"] = _BY_DOMAIN["door"][:1]
_BY_DOMAIN["maze2d"] = _BY_DOMAIN["multi2d"] = _BY_DOMAIN["pointmaze"]


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
    domains = [task.dataset.split("/")[-2] for task in names if task.dataset.count("/")]
    facts = [fact for domain in domains for fact in _BY_DOMAIN.get(domain, ())]
    blocks.append(Points(items=list(dict.fromkeys([*_EVERYWHERE, *facts]))))
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
    for number, subject in ABLATION_TABLES.items():
        columns = {c.variant: c.column for c in cells if c.table == number and c.method == "mage"}
        if tried & set(columns):
            shown |= set(columns)
            blocks.append(_ablation_table(results, cells, number, subject, columns))
    others = sorted(
        {(method, variant) for _, method, variant in results.cells if variant}
        - {("mage", variant) for variant in shown}
    )
    if others:
        blocks.append(_other_variants(results, others))
    if blocks:
        text = (
            "Difference is to the whole method on the same dataset, with the 95% interval of "
            "Welch's t test over seeds. A direction counts as reproduced where our interval lies "
            "wholly on the paper's side of zero, as opposite where it lies wholly on the other, "
            "and is open where it holds zero."
        )
        section.blocks = [Paragraph(text=text), *blocks]
    return section


def _ablation_table(
    results: Results,
    cells: Sequence[Published],
    number: int,
    subject: str,
    columns: dict[str, str],
) -> Table:
    names = _names(results, cells)
    printed = {(c.variant, c.dataset): c for c in cells if c.table == number and c.method == "mage"}
    seeds = usual_seeds(list(results.cells.values()))
    rows: list[list[Entry | str]] = []
    for task in results.tasks:
        if not any(results.cell(task, "mage", variant) for variant in columns if variant):
            continue
        whole = printed.get(("", names.get(task, "")))
        for variant, column in columns.items():
            paper = printed.get((variant, names.get(task, "")))
            rows.append(
                [
                    Entry(results.label(task), note=variant or "whole method"),
                    column,
                    score_entry(results.cell(task, "mage", variant), seeds),
                    *_ablation_difference(results, task, variant, paper, whole),
                ]
            )
    return Table(
        caption=f"Table {number} of the paper, {subject}: ours and, in italics, the paper's.",
        header=[
            "dataset",
            "paper's column",
            "ours",
            "difference",
            "paper",
            "difference",
            "direction",
        ],
        rows=rows,
    )


def _ablation_difference(
    results: Results, task: Task, variant: str, paper: Published | None, whole: Published | None
) -> list[Entry | str]:
    missing = Entry("–", tone="missing")
    whole_value = whole.value if whole else None
    gap_paper = (
        paper.value - whole_value
        if variant and paper and paper.value is not None and whole_value is not None
        else None
    )
    told = Entry(f"{gap_paper:+.1f}", tone="published") if gap_paper is not None else missing
    full, changed = results.cell(task, "mage"), results.cell(task, "mage", variant)
    if not (variant and full and full.finished and changed and changed.finished):
        return [missing, _published(paper), told, missing]
    gap = difference(changed, full)
    ours = Entry(f"{gap.mean:+.1f}", note=f"{gap.low:+.1f} to {gap.high:+.1f}")
    if gap_paper is None:
        direction: Entry | str = missing
    elif gap.low <= 0 <= gap.high:
        direction = "open"
    else:
        direction = "reproduced" if gap.mean * gap_paper > 0 else "opposite"
    return [ours, _published(paper), told, direction]


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
