"""Write the report of a folder of records into it: python -m benchmarks.report DIR."""

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.report import read_records, write


def main() -> None:
    """Read every ``*.jsonl`` of the folder that the command line names, and write its report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.partition(":")[0] + "."
    )
    parser.add_argument("directory", type=Path, help="folder with records, *.jsonl")
    directory = parser.parse_args().directory
    Console().print(f"Report: {write(read_records(directory), directory)}", soft_wrap=True)


if __name__ == "__main__":
    main()
