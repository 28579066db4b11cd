"""The command line of the suite."""

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.budgets import MINUTES
from benchmarks.cells import Cell, Settings
from benchmarks.cluster import RayExecutor
from benchmarks.datasets import check_name
from benchmarks.domains import DOMAINS, domain_of
from benchmarks.executors import Executor, LocalExecutor, fitting_workers
from benchmarks.methods import (
    QUESTIONS,
    check_changes,
    configure,
    expand,
    find_method,
    is_agent,
    is_told_return,
    training_of,
)
from benchmarks.papers import PAPERS, Paper, find_paper, stand_in
from benchmarks.records import reason, renamed
from benchmarks.suite import SuiteError, run_suite

__all__ = ["main", "select"]

_INTERRUPTED = 130  # what shells report for Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite that the command line names; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    console = Console()
    try:
        cells = select(args)
        for dataset in dict.fromkeys(cell.dataset for cell in cells):
            if not domain_of(dataset).known:
                console.print(_told_of_unknown(dataset, args.episodes), soft_wrap=True)
        fitting = fitting_workers(args.threads)
        if args.device == "cuda" and args.executor == "local":  # Ray knows where its GPUs are
            if not torch.cuda.is_available():
                raise ValueError("--device is cuda, but PyTorch sees no GPU here; use cpu.")
            fitting = min(fitting, max(1, int(1 / args.gpus)))  # they share the first one
        workers = args.workers or min(fitting, len(cells))
        executor: Executor = (
            RayExecutor(args.address, workers) if args.executor == "ray" else LocalExecutor(workers)
        )
        done, report = run_suite(
            cells,
            _settings(args),
            executor,
            workers=workers,
            retry_failed=args.retry_failed,
            console=console,
            paper=find_paper(args.paper),
        )
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        return _INTERRUPTED
    except (ValueError, ImportError, SuiteError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    failed = [record for record in done if record["status"] == "failed"]
    missing = [record for record in done if record["status"] == "unavailable"]
    if failed:
        console.print(
            f"{len(failed)} of {len(cells)} cells failed, the first with: {reason(failed[0])}\n"
            "--retry-failed runs them again",
            soft_wrap=True,
            markup=False,
        )
    if missing:
        console.print(f"{len(missing)} of {len(cells)} cells have no data")
    console.print(f"report: {report}", soft_wrap=True)
    # A table whose data are here in part is no failure; nothing at all is.
    return 1 if failed or len(missing) == len(cells) else 0


def _told_of_unknown(dataset: str, episodes: int | None) -> str:
    episodes = episodes or domain_of(dataset).episodes
    return (
        f"{dataset} belongs to no known domain ({', '.join(sorted(DOMAINS))}): agents take "
        f"their generic preset (small), baselines their defaults; {episodes} evaluation "
        "episodes in the dataset's own environment. A row in benchmarks/domains.py changes that."
    )


def select(args: argparse.Namespace) -> list[Cell]:
    """Return the cells that the command line selects, dataset by dataset.

    Raises:
        ValueError: a dataset, method or table is unknown, or settings do not go together.
    """
    paper = find_paper(args.paper)
    table = None if args.table is None else paper.find_table(args.table)
    if args.datasets is not None:
        datasets = _names(args.datasets)
    elif table is not None:
        datasets = [stand_in(dataset) for dataset in table.datasets]
    else:
        raise ValueError("give --datasets, or a --table of the paper.")
    for dataset in datasets:
        check_name(dataset)
    if args.methods is not None:
        methods = expand(_names(args.methods))
    else:
        methods = expand(table.methods if table is not None else ["all"])
    if args.targets and all(is_told_return(method) is False for method in methods):
        raise ValueError(
            f"--targets is {args.targets}, but none of {', '.join(methods)} can be asked for a "
            "return."
        )
    changes = _changes(args.config)
    variants: dict[str, dict[str, Any]] = {"": {}}
    if changes:
        if len(methods) > 1 or (table is not None and set(table.variants) != {""}):
            raise ValueError("--config changes one method: name it by --methods.")
        for dataset in datasets:
            check_changes(methods[0], dataset, changes)
        variants = {paper.variant_name(changes): changes}
    elif table is not None:
        variants = table.variants
    minutes = MINUTES[args.budget]
    if args.minutes is not None:
        if minutes is None:
            raise ValueError("--minutes does not go with --budget paper, which counts steps.")
        minutes = args.minutes
    stages = tuple(range(args.stages + 1)) if table is None or args.stages else table.stages
    if len(stages) > 1 and (others := [name for name in methods if not is_agent(name)]):
        raise ValueError(
            f"--stages is {stages[-1]}, but {', '.join(others)} cannot be fine-tuned online; only "
            "methods that are a mage_agent.Agent can."
        )
    cells = [
        Cell(
            dataset=dataset,
            method=method,
            seed=seed,
            budget=args.budget,
            minutes=minutes,
            variant=variant,
            stage=stage,
            changes=changed,
            equal_steps=method == paper.agent and len(variants) > 1,
            shared=len(stages) > 1 or method in {question.agent for question in QUESTIONS.values()},
        )
        for dataset in dict.fromkeys(datasets)
        for seed in range(args.seeds)
        for method in methods
        for variant, changed in _variants(paper, method, dataset, args.budget, variants).items()
        for stage in stages
    ]
    # Of a dataset, trainings come first, then the cells that are scored on one of them.
    order = list(dict.fromkeys(cell.dataset for cell in cells))
    cells.sort(key=lambda cell: (order.index(cell.dataset), training_of(cell) != cell))
    return cells


def _variants(
    paper: Paper, method: str, dataset: str, budget: str, variants: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the variants of a method that are different methods.

    An ablation changes the paper's agent; other methods of its table stand there as they are. Where
    a variant changes nothing, as K=4 at the small size, the whole agent stands for it.
    """
    if method != paper.agent:
        return variants if len(variants) == 1 else {"": {}}
    whole = configure(find_method(method), dataset, paper_size=budget == "paper")
    return {
        (name if whole.replace(**changes) != whole else ""): changes
        for name, changes in variants.items()
    }


def _changes(text: str) -> dict[str, Any]:
    try:
        changes = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--config is no JSON ({error}): {text!r}") from error
    if not isinstance(changes, dict):
        raise ValueError(f"--config is {text!r}; it must be an object of settings and values.")
    return renamed(changes)


def _settings(args: argparse.Namespace) -> Settings:
    names = [field.name for field in dataclasses.fields(Settings)]
    values = {name: getattr(args, name) for name in names}
    values |= {"output": args.output.resolve(), "targets": _numbers(args.targets)}
    return Settings(**{**values, "gpus": args.gpus if args.device == "cuda" else 0.0})


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in _words(text))
        if all(map(math.isfinite, numbers)):
            return numbers
    except ValueError:
        pass
    raise ValueError(f"--targets is {text!r}; it must be finite numbers, such as 0.5,1.")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _names(text: str) -> list[str]:
    """The words of a text, of which there must be some.

    Raises:
        ValueError: there is none.
    """
    if not (names := _words(text)):
        raise ValueError(f"{text!r} names nothing; give names, with commas between them.")
    return names


def make_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="run_suite.py",
        description="Train and score agents beside the bundled baselines, on the same data, seeds "
        "and evaluation. Interrupted at any moment, the same command goes on.",
    )
    add = parser.add_argument
    add("--datasets", help="comma-separated Minari ids or D4RL names; default: the table's")
    add("--methods", help="comma-separated: all, bundled ones, module:Class; default: all")
    add("--paper", choices=tuple(PAPERS), default=find_paper().agent, help="whose tables are meant")
    tables = "; ".join(f"{p.title}: {', '.join(map(str, p.tables))}" for p in PAPERS.values())
    add("--table", type=int, help=f"run a table of the paper ({tables})")
    add(
        "--stages",
        type=_from_zero,
        default=0,
        help="score after as many stages of online fine-tuning",
    )
    add("--seeds", type=_positive, default=5, help="number of training seeds (default: 5)")
    lengths = ", ".join(f"{name} {m:g} minutes" for name, m in MINUTES.items() if m)
    about = f"length of a training: {lengths}, paper its published steps (default: standard)"
    add("--budget", choices=tuple(MINUTES), default="standard", help=about)
    add("--minutes", type=_above_zero, help="of a training; default: the budget's")
    add("--output", type=Path, default=Path("runs/suite"), help="folder (default: runs/suite)")
    add("--executor", choices=("local", "ray"), default="local", help="where cells run")
    add("--workers", type=_positive, help="cells at a time; default: as many as fit")
    add("--threads", type=_positive, default=1, help="of each cell (default: 1)")
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where agents are trained and act; minutes are processor time on cpu (the default), "
        "and wall time on cuda",
    )
    add("--gpus", type=_above_zero, default=1.0, help="of each cell on cuda (default: 1)")
    add("--address", help="of a Ray cluster; default: one on this machine")
    add("--retry-failed", action="store_true", help="run failed cells again")
    add("--config", default="{}", help="JSON of settings to change, of one method")
    add("--targets", default="", help="comma-separated returns to ask for as well")
    add("--episodes", type=_positive, help="evaluation episodes; default: the domain's")
    add("--hold-out", type=_share, default=0.05, help="share of episodes (default: 0.05)")
    add("--curve-points", type=int, default=3, help="interim evaluations (default: 3)")
    add("--save", action="store_true", help="keep the trained models")
    return parser


def _from_zero(text: str, least: int = 0) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is below {least}")
    return value


def _positive(text: str) -> int:
    return _from_zero(text, least=1)


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a finite number above 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not in [0, 1)")
    return value
