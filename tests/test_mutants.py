"""Damaged files of every kind load or are refused, and nothing else ever happens."""

import pytest

from tests.mutants import KINDS, judge


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [8, pytest.param(150, marks=pytest.mark.nightly)])
def test_mutants_load_or_are_refused(kind: str, count: int) -> None:
    verdicts = judge(kind, range(count))
    assert set(verdicts) <= {"loaded", "refused"}, verdicts
    assert verdicts.total() == count
    assert verdicts["refused"] > 0
