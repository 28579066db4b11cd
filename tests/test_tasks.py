"""The task table."""

import pytest

from benchmarks.tasks import TASKS, task_of
from mage_agent import MAGEConfig


@pytest.mark.parametrize("dataset_id", ["local/pen/expert-v0", "D4RL/pen/human-v2", "pen/x-v0"])
def test_task_follows_from_the_middle_of_the_id(dataset_id: str) -> None:
    assert task_of(dataset_id) is TASKS["pen"]


def test_every_task_has_its_preset_in_both_sizes() -> None:
    for task in TASKS.values():
        assert MAGEConfig.preset(task.preset) != MAGEConfig.preset(f"{task.preset}-small")


def test_unknown_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="no known domain"):
        task_of("local/chess/expert-v0")
