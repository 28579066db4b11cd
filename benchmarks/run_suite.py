"""Train and score the agents beside bundled rivals: python benchmarks/run_suite.py --help."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The repository instead of this folder, whose names are no top-level modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    try:
        from benchmarks.command import main
    except ModuleNotFoundError as error:
        sys.exit(f"{error}. Install the suite: pip install '.[benchmarks]'")
    sys.exit(main())
