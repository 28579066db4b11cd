"""Records of cells: one JSON line each, appended whole or not at all, read back without loss."""

import json
import math
import os
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

__all__ = [
    "KEY",
    "Key",
    "Record",
    "RecordError",
    "append",
    "key_of",
    "latest",
    "read",
    "reason",
    "renamed",
]

Record = dict[str, Any]
Key = tuple[Any, ...]

KEY = ("dataset", "method", "seed", "variant", "budget", "minutes")
"""What tells one cell from another."""

RENAMED = {"followed_scales": "data_scales", "target_return": "target_quantile"}
"""Old names of settings, in records and on the command line, and what they are called now."""

_ABSENT = {"variant": "", "budget": "", "minutes": None}  # in records of single trainings


class RecordError(RuntimeError):
    """A record could not be written; those written before are intact."""


def key_of(record: Record) -> Key:
    """Return what identifies the cell that a record is of."""
    return tuple(record.get(name, _ABSENT.get(name)) for name in KEY)


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names that they have now."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def reason(record: Record) -> str:
    """What went wrong with a cell, in a line: a traceback ends with it."""
    error = str(record.get("error") or "no message").strip()
    if error.startswith("Traceback"):
        error = error.splitlines()[-1]
    return textwrap.shorten(error, 400)


def latest(records: Iterable[Record]) -> list[Record]:
    """Keep the last record of each cell, in the order in which the cells first appear."""
    return list({key_of(record): record for record in records}.values())


def read(path: Path) -> list[Record]:
    """Read all complete records, past empty lines and a last line that was cut short.

    Settings have the names of today.

    Args:
        path: JSON lines; a file that is not there holds no records.

    Raises:
        ValueError: a line other than the last is no record.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append(_modern(record))
        elif line.strip() and number < len(lines):
            raise ValueError(
                f"line {number} of {path} is no record: {line[:60]!r}. Only a last line can be cut "
                "short by an interruption; mend or remove this one."
            )
    return records


def append(path: Path, record: Record) -> None:
    """Append a record as one line; mend a last line that an earlier interruption cut short.

    Args:
        path: file to append to; made if missing.
        record: anything JSON can hold; numbers that are not finite become null.

    Raises:
        RecordError: the line could not be written whole; the file is as it was before.
    """
    line = json.dumps(_finite(record), allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(path.with_name(f".{path.name}.lock")),
        path.open("rb+" if path.exists() else "xb+", 0) as file,
    ):
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        rest = content[len(whole) :]
        if rest and _parse(rest) is not None:  # only its line feed is missing
            whole, line = content, b"\n" + line
        file.truncate(len(whole))
        file.seek(len(whole))
        try:
            if file.write(line) != len(line):
                raise OSError("the line was written in part")
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(len(whole))
            raise RecordError(
                f"cannot write to {path} ({error}); the {len(read(path))} records in it are intact."
                " Make room and run the same command again."
            ) from error


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also of bytes that are no text
        return None
    if not isinstance(record, dict) or any(
        isinstance(part, dict | list) for part in key_of(record)
    ):
        return None
    return record


def _modern(record: Record) -> Record:
    """The record with today's names of settings, also in the name of a variant that spells them."""
    settings = ("changes", "hyperparameters")
    new: Record = {
        name: renamed(record[name]) for name in settings if isinstance(record.get(name), dict)
    }
    if isinstance(record.get("variant"), str):
        parts = [part.partition("=") for part in record["variant"].split("+")]
        new["variant"] = "+".join(RENAMED.get(name, name) + sep + v for name, sep, v in parts)
    return {**record, **new}


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not know."""
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
