"""Prove the GPU path on this machine: numerics, resume, rates, and paper-size training, scored.

python -m benchmarks.gpu --datasets local/pen/expert-v0 local/maze2d/medium-v0 --output runs/gpu
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.checks import bfloat16, numerics, resume
from benchmarks.gpu.findings import Bench, Finding
from benchmarks.gpu.rates import acting, machine, planning, training, training_compiled
from benchmarks.gpu.scores import scores
from benchmarks.provenance import provenance

__all__ = ["main"]

SECTIONS: dict[str, Callable[[Bench], Iterator[Finding]]] = {
    "machine": machine,
    "resume": resume,
    "training": training,
    "compiled": training_compiled,
    "acting": acting,
    "planning": planning,
    "compiled-large": partial(training_compiled, times=4),
    "numerics": numerics,
    "bfloat16": bfloat16,
    "scores": scores,
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the sections, one after the other, and write the record and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=found)
    parser.add_argument("--size", choices=("paper", "tiny"), default="paper", help="tiny: a test")
    parser.add_argument("--minutes", type=float, default=9.0, help="of everything together")
    parser.add_argument("--datasets", nargs="*", default=[], help="to train on and be scored")
    parser.add_argument("--methods", nargs="+", default=["mage"], help="to be scored")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    args = parser.parse_args(arguments)
    # Without it, cuBLAS has no deterministic products; it is read when CUDA begins.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    began, device = time.perf_counter(), args.device
    args.output.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "size": args.size,
        **provenance(),
        "sections": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, args.size, Path(folder))
        bench.datasets, bench.methods = tuple(args.datasets), tuple(args.methods)
        for name in SECTIONS:
            if name not in args.sections:
                continue
            bench.seconds = 60 * args.minutes - (time.perf_counter() - began)
            for state in _run(SECTIONS[name], bench):
                record["sections"][name] = state
                # After every finding, so that it survives a time limit.
                (args.output / "gpu.json").write_text(json.dumps(record, indent=1))
                (args.output / "gpu.md").write_text(markdown(record))
    print(markdown(record))  # noqa: T201  # the command shows its result
    return record


def _run(section: Callable[[Bench], Iterator[Finding]], bench: Bench) -> Iterator[dict[str, Any]]:
    """One section, after each finding: all of them, the seconds, and the error that ended it."""
    began = time.perf_counter()
    state: dict[str, Any] = {"seconds": 0.0, "error": None, "findings": []}
    try:
        for finding in section(bench):
            state["findings"].append(finding._asdict())
            state["seconds"] = time.perf_counter() - began
            yield state
    except Exception as failure:
        state["error"] = f"{type(failure).__name__}: {failure}"
        traceback.print_exc()
    state["seconds"] = time.perf_counter() - began
    yield state


def markdown(record: dict[str, Any]) -> str:
    """The record as a table for people."""
    where = record["gpu"] or f"no GPU was there; on the CPU ({record['hardware']}), as a test"
    lines = [
        f"# GPU path: {where}",
        "",
        f"`python -m benchmarks.gpu --size {record['size']}`, torch {record['versions']['torch']}",
        "",
        "| section | case | value | unit | limit | verdict |",
        "|---|---|---|---|---|---|",
    ]
    verdicts = {None: "", True: "passed", False: "**failed**"}
    for name, section in record["sections"].items():
        for finding in section["findings"]:
            row = Finding(**finding)
            limit = "" if row.limit is None else f"{row.limit:g}"
            lines.append(
                f"| {row.section} | {row.case} | {row.value:.4g} | {row.unit} | {limit} "
                f"| {verdicts[row.passed]} |"
            )
        if section["error"]:
            message = " ".join(section["error"].split())[:300].replace("|", "/")
            lines.append(f"| {name} | ended by an error | | {message} | | **failed** |")
        lines.append(f"| {name} | whole section | {section['seconds']:.1f} | s | | |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
