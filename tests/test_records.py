"""Records: appended whole, mended, and never lost."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.records import RecordError, append, key_of, latest, read


def record(seed: int, **more: Any) -> dict[str, Any]:
    return {"dataset": "a/b-v0", "method": "mage", "seed": seed, "score": 1.5, **more}


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "records.jsonl"
    assert read(path) == []
    for seed in range(3):
        append(path, record(seed))
    assert read(path) == [record(seed) for seed in range(3)]


def test_settings_have_the_names_of_today(tmp_path: Path) -> None:
    old = {"followed_scales": 2, "target_return": 0.9, "width": 64}
    variant = "followed_scales=2+target_return=0.9+width=64"
    append(tmp_path / "r", record(0, variant=variant, changes=old, hyperparameters=old))
    (found,) = read(tmp_path / "r")
    assert found["variant"] == "data_scales=2+target_quantile=0.9+width=64"
    new = {"data_scales": 2, "target_quantile": 0.9, "width": 64}
    assert found["changes"] == found["hyperparameters"] == new


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    append(tmp_path / "r", record(0, held_out={"error": float("nan")}, scores=(1.0, float("inf"))))
    (found,) = read(tmp_path / "r")
    assert found["held_out"] == {"error": None}
    assert found["scores"] == [1.0, None]


@pytest.mark.parametrize("cut", [b'{"dataset": "a', b"{", b"\xc3", b'"text"', b"12"])
def test_truncated_last_line_is_left_out_and_mended(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record(0))
    whole = path.read_bytes()
    path.write_bytes(whole + cut)
    assert read(path) == [record(0)]
    append(path, record(1))
    assert read(path) == [record(0), record(1)]
    assert path.read_bytes().startswith(whole)


def test_whole_last_line_without_its_line_feed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record(0)))
    append(path, record(1))
    assert read(path) == [record(0), record(1)]


def test_damaged_line_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"method": "ma\n' + json.dumps(record(0)) + "\n")
    with pytest.raises(ValueError, match="line 1 of"):
        read(path)


def test_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record(0))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"No space left.*the 1 records in it are intact"):
        append(path, record(1))
    assert path.read_bytes() == before


def test_last_record_of_a_cell_counts(tmp_path: Path) -> None:
    failed = record(0, status="failed")
    done = record(0, status="ok")
    assert latest([failed, record(1), done]) == [done, record(1)]
    assert key_of(record(0)) != key_of(record(0, variant="num_scales=1"))
    assert key_of(record(0, budget="quick", minutes=2.0)) != key_of(record(0, budget="quick"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_writers_leave_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    clock = random.Random(0)
    for writer in range(8):
        before = read(path)
        child = os.fork()
        if child == 0:
            for number in range(10_000):
                append(path, record(writer, number=number, text="x" * 5_000))
            os._exit(1)
        time.sleep(clock.uniform(0.02, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = read(path)
        assert found[: len(before)] == before
        mine = [one["number"] for one in found if one["seed"] == writer]
        assert mine == list(range(len(mine)))
    assert len({one["seed"] for one in read(path)}) > 4
