"""Records on the disk are whole, or it is said which line is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.summarize import read_records

RECORD: dict[str, Any] = {
    "method": "mage",
    "dataset": "pen",
    "seed": 0,
    "score": 2.0,
    "scores": [1.0, 3],
    "training_seconds": 9,
}


def write(path: Path, *lines: Any) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", RECORD, RECORD, json.dumps(RECORD)[:-9])
    assert read_records(path) == [RECORD, RECORD]
    path = write(path, RECORD, json.dumps(RECORD)[:-9], RECORD)
    with pytest.raises(ValueError, match=r"line 2 of .*records\.jsonl is no record"):
        read_records(path)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (5, "method"),
        ([RECORD], "method"),
        ({**RECORD, "dataset": None}, r"\['dataset'\]"),
        ({**RECORD, "score": "2.0"}, r"\['score'\]"),
        ({**RECORD, "scores": [1.0, None]}, r"\['scores'\]"),
        ({key: value for key, value in RECORD.items() if key != "seed"}, r"\['seed'\]"),
    ],
    ids=str,
)
def test_what_is_no_record_is_refused(tmp_path: Path, line: Any, wrong: str) -> None:
    path = write(tmp_path / "records.jsonl", RECORD, line)
    with pytest.raises(ValueError, match=rf"line 2 of .*records\.jsonl is no record: .*{wrong}"):
        read_records(path)
