"""From raw records to a report: tables, intervals and pictures; the same records, the same bytes.

python -m benchmarks.report benchmarks/results
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers import Paper
from benchmarks.report import details, published, scores
from benchmarks.report.document import render
from benchmarks.report.results import Results, read_records

__all__ = ["read_records", "write"]


def write(records: Sequence[dict[str, Any]], directory: Path, paper: Paper | None = None) -> Path:
    """Write ``report.md`` and the self-contained ``report.html``.

    Nothing in either depends on the time, the machine or the order of the records.

    Args:
        records: one for each training, as the suite writes them; what a record lacks is left out
            of the report.
        directory: where to write; made if it is not there.
        paper: whose agent is judged, with its numbers beside ours; by default the first.

    Returns:
        Path of ``report.html``.
    """
    results = Results.of(records, paper)
    sections = [
        scores.headline_section(results),
        scores.score_section(results),
        scores.aggregate_section(results),
        published.published_section(results),
        published.online_section(results),
        details.asked_section(results),
        published.ablation_section(results),
        details.curve_section(results),
        details.speed_section(results),
        details.failure_section(results),
        details.protocol_section(results),
        details.provenance_section(results),
    ]
    markdown, html = render(f"{results.paper.title} beside its baselines", sections)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.md").write_text(markdown, encoding="utf-8")
    path = directory / "report.html"
    path.write_text(html, encoding="utf-8")
    return path
