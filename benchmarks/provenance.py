"""What the numbers of a record may hang on besides the method: code, packages, machine."""

import platform
import re
import subprocess
from functools import cache
from pathlib import Path

import torch

from benchmarks.records import Record
from mage_agent.training import versions

__all__ = ["provenance"]


@cache
def provenance() -> Record:
    """Return the commit, the versions of packages and the name of the hardware."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"commit": _commit(), "versions": versions(), "hardware": device}


def _commit() -> str:
    """Return the commit of this checkout; empty where there is none, or no git."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return found.stdout.strip()


def _processor() -> str:
    """Return the name of the processor."""
    try:
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
