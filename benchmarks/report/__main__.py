"""Write the report of a folder of records into it: python -m benchmarks.report DIR."""

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.papers import PAPERS, find_paper
from benchmarks.report import read_records, write


def main() -> None:
    """Read every ``*.jsonl`` of the folder that the command line names, and write its report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.partition(":")[0] + "."
    )
    parser.add_argument("directory", type=Path, help="folder with records, *.jsonl")
    parser.add_argument("--paper", choices=tuple(PAPERS), default=find_paper().agent)
    args = parser.parse_args()
    path = write(read_records(args.directory), args.directory, find_paper(args.paper))
    Console().print(f"Report: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
