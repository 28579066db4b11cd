"""From records to a table and a picture: what each method scored, and whether asking for more pays.

python -m benchmarks.summarize benchmarks/results/records.jsonl
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from mage_agent.visualize import plot_asked_and_achieved

__all__ = ["draw_asked", "read_records", "score_table"]

_KINDS: dict[str, type | tuple[type, ...]] = {  # what every record has
    "method": str,
    "dataset": str,
    "seed": int,
    "score": (int, float),
    "scores": list,
    "training_seconds": (int, float),
}


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a line that an interruption cut short is left out.

    Raises:
        ValueError: a line other than the last is no record, or any lacks what a record has.
    """
    lines = path.read_text(errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"line {number} of {path} is no record: {error}") from error
            continue
        wrong = [
            key
            for key, kind in _KINDS.items()
            if not isinstance(record, dict) or not isinstance(record.get(key), kind)
        ]
        if wrong or not all(isinstance(score, (int, float)) for score in record["scores"]):
            raise ValueError(
                f"line {number} of {path} is no record: {wrong or ['scores']} is wrong"
            )
        records.append(record)
    return records


def score_table(records: Sequence[dict[str, Any]]) -> Table:
    """Mean score of every method on every dataset, over training seeds."""
    table = Table("dataset", "method", "seeds", "episodes", "score", "s.e. (episodes)", "seconds")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["dataset"], record["method"]].append(record)
    for (dataset, method), group in sorted(groups.items()):
        scores = np.concatenate([record["scores"] for record in group])
        table.add_row(
            dataset,
            method,
            str(len(group)),
            str(len(scores)),
            f"{np.mean([record['score'] for record in group]):.1f}",
            f"{scores.std(ddof=1) / len(scores) ** 0.5:.1f}",
            f"{np.mean([record['training_seconds'] for record in group]):.0f}",
        )
    return table


def draw_asked(records: Sequence[dict[str, Any]], dataset: str) -> tuple[Figure, float]:
    """Draw achieved score over asked return, one line per training seed.

    Returns:
        The picture, and Spearman's rank correlation over all seeds.

    Raises:
        ValueError: no record of the dataset asked for several returns.
    """
    chosen = [r for r in records if r["dataset"] == dataset and len(r.get("asked", {})) > 1]
    if not chosen:
        raise ValueError(f"no record of {dataset} has several asked returns (--targets).")
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    asked, achieved = [], []
    for record in chosen:
        pairs = [(float(target), score) for target, score in record["asked"].items()]
        plot_asked_and_achieved(axes, *zip(*pairs, strict=True), label=f"seed {record['seed']}")
        asked += [target for target, _ in pairs]
        achieved += [score for _, score in pairs]
    correlation = float(spearmanr(asked, achieved).statistic)
    axes.set_title(f"{dataset}: rank correlation {correlation:.2f}")
    axes.legend()
    return figure, correlation


def main() -> None:
    """Print the table and write a picture for every dataset with several asked returns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    path = parser.parse_args().records
    records = read_records(path)
    console = Console()
    console.print(score_table(records))
    for dataset in sorted({r["dataset"] for r in records if len(r.get("asked", {})) > 1}):
        figure, correlation = draw_asked(records, dataset)
        picture = path.parent / f"asked-{dataset.replace('/', '-')}.png"
        figure.savefig(picture, dpi=150)
        console.print(f"{dataset}: rank correlation {correlation:.2f}, {picture}")


if __name__ == "__main__":
    main()
