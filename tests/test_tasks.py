"""The task table and behaviour cloning."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from benchmarks.baselines.bc import BehaviourCloning
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


def linear_dataset(generator: torch.Generator) -> TensorDict:
    observation = torch.randn(2000, 3, generator=generator)
    action = observation @ torch.tensor([[0.2, 0.0], [0.0, -0.3], [0.1, 0.1]])
    dataset = TensorDict({"observation": observation, "action": action}, batch_size=2000)
    dataset.set_non_tensor("metadata", {"action_low": [-0.5, -0.5], "action_high": [0.5, 0.5]})
    return dataset


def test_cloning_recovers_a_linear_policy_within_bounds(generator: torch.Generator) -> None:
    dataset = linear_dataset(generator)
    cloning = BehaviourCloning(dataset, seed=0).learn(dataset, steps=400, progress_bar=False)
    action, state = cloning.predict(dataset["observation"].numpy())
    assert state is None
    expected = dataset["action"].clamp(-0.5, 0.5).numpy()
    assert np.abs(action - expected).mean() < 0.02
    assert np.abs(action).max() <= 0.5


def test_cloning_with_one_seed_is_one_policy(generator: torch.Generator) -> None:
    dataset = linear_dataset(generator)
    first, again, other = (
        BehaviourCloning(dataset, seed=seed).learn(dataset, steps=5, seed=seed, progress_bar=False)
        for seed in (1, 1, 2)
    )
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )
