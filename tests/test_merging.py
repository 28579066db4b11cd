"""Joined datasets have one set of metadata: what they agree on, and the wider bounds."""

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mage_agent.data import dataset_from_arrays, load_dataset, metadata, observation_keys


def with_facts(dataset: TensorDict, **facts: Any) -> TensorDict:
    other = dataset.clone()
    other.set_non_tensor("metadata", {**metadata(dataset), **facts})
    return other


@pytest.fixture
def joined(toy_dataset: TensorDict) -> TensorDict:
    one = with_facts(toy_dataset, dataset_id="a", ref_min_score=1.0, discount=0.9)
    other = with_facts(toy_dataset, dataset_id="b", action_low=[-2.0, -0.5], env_spec="{}")
    return torch.cat([one, other])


def test_merged(joined: TensorDict) -> None:
    facts = metadata(load_dataset(joined))
    assert facts["dataset_id"] == "a + b"
    assert (facts["action_low"], facts["action_high"]) == ([-2.0, -1.0], [1.0, 1.0])
    assert facts["ref_min_score"] == 1.0
    assert facts["env_spec"] == "{}"
    assert metadata(joined)["dataset_id"] == "a + b"


def test_parts_keep_their_own(joined: TensorDict) -> None:
    assert metadata(joined[:10])["dataset_id"] == "a"
    assert metadata(joined[150:])["dataset_id"] == "b"


def test_entries_of_any_name_are_read_again() -> None:
    rng, last = np.random.default_rng(0), np.arange(20) % 10 == 9
    names = ("time_step", "target_return", "is_init", "pos")
    one = dataset_from_arrays(
        {name: rng.normal(size=(20, 1)) for name in names},
        rng.uniform(-1, 1, (20, 1)),
        rng.normal(size=20),
        np.zeros(20, bool),
        last,
    )
    again = load_dataset(torch.cat([one, one]))
    assert set(observation_keys(again)) == set(names)


def test_stacked(toy_dataset: TensorDict) -> None:
    rows = [with_facts(toy_dataset[-60:], dataset_id=name) for name in "ab"]
    dataset = load_dataset(torch.stack(rows).exclude("episode"))
    assert metadata(dataset)["dataset_id"] == "a + b"
    assert len(dataset) == 120


@pytest.mark.parametrize("facts", [{"ref_max_score": 9.0}, {"action_high": [1.0]}])
def test_contradictions_are_named(toy_dataset: TensorDict, facts: dict[str, Any]) -> None:
    one = with_facts(toy_dataset, ref_max_score=5.0)
    joined = torch.cat([one, with_facts(one, **facts)])
    with pytest.raises(ValueError, match=f"contradict each other in {next(iter(facts))}: .* and "):
        load_dataset(joined)
    without = torch.cat([part.exclude("metadata") for part in (one, one)])
    assert len(load_dataset(without, action_low=-1, action_high=1)) == 2 * len(one)
