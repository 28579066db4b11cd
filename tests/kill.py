"""Kill a job at random moments and run it again, until it has been killed often enough.

A job is a function of a folder that does its work there and, run again, goes on with it. After
every kill the caller looks at what is on the disk; after every job that got through, at the result.
"""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

Job = Callable[[Path], None]
Look = Callable[[Path], None]
PATIENCE = 300.0
"""Seconds that a job may take."""

# Children of a server that has imported everything begin at once, and share no thread with us.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.test_kill"])


def kill_often(
    job: Job, root: Path, kills: int, *, after_kill: Look, after_end: Look, seed: int = 0
) -> int:
    """Kill a job ``kills`` times, at moments uniform over its duration.

    Args:
        job: what to kill.
        root: where its folders go; a new one whenever it has got through.
        kills: how often.
        after_kill: looks at a folder after a kill.
        after_end: looks at a folder after the job got through.
        seed: of the moments.

    Returns:
        How many times the job got through.
    """
    rng = np.random.default_rng(seed)
    duration = _run(job, root / "whole", None)
    after_end(root / "whole")
    killed, ended = 0, 0
    while killed < kills or ended == 0:
        folder = root / str(ended)
        moment = rng.uniform(0, duration) if killed < kills else None
        if _run(job, folder, moment) is None:
            killed += 1
            after_kill(folder)
        else:
            after_end(folder)
            ended += 1
    return ended


def _run(job: Job, folder: Path, moment: float | None) -> float | None:
    """Run a job in a process of its own; return its seconds, or None if it was killed."""
    folder.mkdir(exist_ok=True)
    here, there = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_begin, args=(job, folder, there))
    process.start()
    there.close()
    here.recv()  # imports are done, the work begins
    start = time.monotonic()
    process.join(PATIENCE if moment is None else moment)
    took = time.monotonic() - start
    if process.is_alive():
        process.kill()
        process.join()
        assert moment is not None, f"the job took more than {PATIENCE} seconds"
    code = process.exitcode
    process.close()
    assert code in (0, -9), f"the job failed with exit code {code}"
    return took if code == 0 else None


def _begin(job: Job, folder: Path, connection: Connection) -> None:
    connection.send(None)
    job(folder)
