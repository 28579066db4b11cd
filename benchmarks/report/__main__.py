"""Write the report of a folder of records into it: python -m benchmarks.report DIR.

With ``--page docs/results.md``, the documentation's page of results as well.
"""

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.papers import PAPERS, find_paper
from benchmarks.report import read_records, write
from benchmarks.report.leaderboard import write_page


def main() -> None:
    """Read every ``*.jsonl`` of the folder that the command line names, and write its report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.partition(":")[0] + "."
    )
    parser.add_argument("directory", type=Path, help="folder with records, *.jsonl")
    parser.add_argument("--page", type=Path, help="write the page of results there as well")
    parser.add_argument("--paper", choices=tuple(PAPERS), default=find_paper().agent)
    args = parser.parse_args()
    paper = find_paper(args.paper)
    try:
        records = read_records(args.directory)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    path = write(records, args.directory, paper)
    if args.page is not None:
        line = f"python -m benchmarks.report {args.directory} --page {args.page}"
        write_page(records, args.page, line, paper)
    Console().print(f"Report: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
