"""What a suite shows while it runs: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from benchmarks.cells import Cell
from benchmarks.records import Record

__all__ = ["View"]

_OVERHEAD = 60.0  # seconds of a cell besides its training, until one has been timed


class View:
    """Cells done, running, failed, and the time left.

    Args:
        cells: all cells that are to run.
        workers: how many run at a time.
        already: cells that were finished before.
        console: where to write.
    """

    def __init__(self, cells: Sequence[Cell], workers: int, already: int, console: Console) -> None:
        self.console, self.workers, self.already = console, workers, already
        self.waiting = list(cells)
        self.running: dict[Cell, float] = {}  # since when
        self.done: list[Record] = []
        self._live = Live(
            console=console, get_renderable=self.__rich__, refresh_per_second=1, transient=True
        )

    def __enter__(self) -> "View":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def started(self, cell: Cell) -> None:
        """Note that a cell began, perhaps not for the first time."""
        self.running[cell] = time.monotonic()
        if cell in self.waiting:
            self.waiting.remove(cell)

    def finished(self, cell: Cell, record: Record) -> None:
        """Note a record, and print its line."""
        since = self.running.pop(cell, time.monotonic())
        self.done.append(record)
        if record["status"] == "ok":
            result = f"score {record['score']:.1f}, {time.monotonic() - since:.0f} s"
        else:
            result = f"{record['status']}: {record['error'].splitlines()[0]}"
        count = f"{self.already + len(self.done)}/{self.total}"
        left = "" if self.console.is_terminal else f" ({_duration(self.seconds_left())} left)"
        self.console.print(Text(f"{count} {cell}: {result}{left}"), soft_wrap=True)

    @property
    def total(self) -> int:
        """All cells, those finished before included."""
        return self.already + len(self.done) + len(self.running) + len(self.waiting)

    @property
    def failed(self) -> int:
        """Cells that failed this time."""
        return sum(record["status"] == "failed" for record in self.done)

    def seconds_left(self) -> float:
        """Estimate the time left, from cells of this run where there are any."""
        times = [r["wall_seconds"] for r in self.done if r["status"] == "ok"]

        def expected(cell: Cell) -> float:
            if times:
                return float(sum(times) / len(times))
            return 60 * (cell.minutes or 0.0) + _OVERHEAD

        now = time.monotonic()
        running = [max(0.0, expected(cell) - now + since) for cell, since in self.running.items()]
        work = sum(running) + sum(map(expected, self.waiting))
        return max([work / self.workers, *running])

    def __rich__(self) -> RenderableType:
        """What runs now, and a line on all cells."""
        done = self.already + len(self.done) - self.failed
        summary = Text.assemble(
            (f"{done} done", "green"),
            f"  {len(self.running)} running  ",
            (f"{self.failed} failed", "red" if self.failed else ""),
            f"  {len(self.waiting)} waiting  {_duration(self.seconds_left())} left",
        )
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for cell, since in self.running.items():
            table.add_row(Text(str(cell)), _duration(now - since))
        return Group(table, summary)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
