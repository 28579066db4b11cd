"""Where cells run: in worker processes of this machine."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol, cast

from benchmarks.cells import Cell, Settings
from benchmarks.experiment import DiskFullError, attempt, failure
from benchmarks.methods import training_of
from benchmarks.records import Record

__all__ = ["Executor", "LocalExecutor", "fitting_workers", "take_next"]

_RETRIES = 2  # of a cell whose worker died, which an error of Python does not do
_GIBIBYTES = 2.0  # of memory, for one cell with its dataset

Started = Callable[[Cell], None]


class Executor(Protocol):
    """Runs cells somewhere."""

    def run(
        self, cells: Sequence[Cell], settings: Settings, started: Started
    ) -> Iterator[tuple[Cell, Record]]:
        """Yield every cell with its record, as they finish.

        Args:
            cells: what to run.
            settings: common to all cells.
            started: called when a cell begins.

        Raises:
            DiskFullError: there is no room for checkpoints.
        """
        ...


def fitting_workers(threads: int) -> int:
    """Return how many cells of a number of threads this machine has cores and memory for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min((cores or 1) // threads, int(memory / _GIBIBYTES)))


class LocalExecutor:
    """Worker processes that each run one cell after the other.

    A worker that dies takes no other cell with it; its own is tried again.

    Args:
        workers: number of processes, at most.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(
        self, cells: Sequence[Cell], settings: Settings, started: Started
    ) -> Iterator[tuple[Cell, Record]]:
        """Run cells; see ``Executor.run``."""
        queue, deaths = deque(cells), Counter[Cell]()
        logs = settings.output / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        names = (f"worker-{i}" for i in range(min(self.workers, len(cells))))
        idle = [_Worker(settings, logs / f"{name}.log") for name in names]
        busy: dict[Connection, _Worker] = {}
        try:
            while queue or busy:
                while queue and idle:
                    worker = idle.pop()
                    worker.begin(take_next(queue, [each.cell for each in busy.values()]))
                    busy[worker.connection] = worker
                    started(worker.cell)
                for connection in multiprocessing.connection.wait(list(busy)):
                    worker = busy.pop(cast(Connection, connection))
                    cell = worker.cell
                    try:
                        record = worker.connection.recv()
                    except (EOFError, OSError):
                        worker.restart()
                        deaths[cell] += 1
                        if deaths[cell] <= _RETRIES:
                            queue.appendleft(cell)
                        else:
                            yield cell, failure(cell, _death(worker, deaths[cell]))
                    else:
                        if isinstance(record, DiskFullError):
                            raise record
                        yield cell, record
                    idle.append(worker)
        finally:
            for worker in idle:
                worker.stop()
            for worker in busy.values():
                worker.kill()


def take_next(queue: deque[Cell], running: Iterable[Cell]) -> Cell:
    """Take a cell from a queue: the first one that need not wait for a training that runs."""
    trained = {training_of(cell) for cell in running}
    cell = next((cell for cell in queue if training_of(cell) not in trained), queue[0])
    queue.remove(cell)
    return cell


class _Worker:
    """A process and the connection to it.

    Attributes:
        cell: what it runs, or ran last.
        connection: hands it cells, and records back.
        exit_code: of the process that died last.
    """

    cell: Cell
    exit_code: int | None = None

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings, self.log = settings, log
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # forks of threaded programs may hang
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._settings, self.log), daemon=True
        )
        self._process.start()
        theirs.close()  # its end is now the only one, so that its death can be noticed

    def begin(self, cell: Cell) -> None:
        """Hand over a cell; a process that has died meanwhile is noticed by who waits for it."""
        self.cell = cell
        try:
            self.connection.send(cell)
        except OSError:
            self.restart()
            self.connection.send(cell)

    def restart(self) -> None:
        """Replace a process that has died."""
        self.kill()
        self.exit_code = self._process.exitcode
        self._start()

    def stop(self) -> None:
        """Let the process end by itself."""
        self.connection.close()
        self._process.join()

    def kill(self) -> None:
        """End the process at once; what it had not finished, another one takes up."""
        self._process.kill()
        self.stop()


def _death(worker: _Worker, times: int) -> str:
    code = worker.exit_code
    how = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
    return (
        f"the worker process died {times} times ({how}). Perhaps memory ran out: try fewer "
        f"--workers. What it wrote last is in {worker.log}."
    )


def _serve(connection: Connection, settings: Settings, log: Path) -> None:
    """Run cells until told to stop, or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to deal with
    threading.Thread(target=_die_with_parent, daemon=True).start()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    while True:
        try:
            cell = connection.recv()
        except EOFError:
            return
        try:
            connection.send(attempt(cell, settings))
        except DiskFullError as error:
            connection.send(error)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
