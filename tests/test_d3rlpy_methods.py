"""The second implementation of the baselines, where d3rlpy is installed."""

from typing import Any

import numpy as np
import pytest
from tensordict import TensorDict

pytest.importorskip("d3rlpy", reason="the module's docstring says how d3rlpy is installed")

from benchmarks import d3rlpy_methods
from mage_agent.data import dataset_from_arrays


@pytest.fixture
def dataset(rng: np.random.Generator) -> TensorDict:
    """Episodes of 20 steps; rewards say how far from the best action each one is."""
    observation = rng.normal(size=(400, 3)).astype(np.float32)
    best = np.tanh(observation[:, :2])
    action = (best + 0.1 * rng.normal(size=best.shape)).clip(-1, 1)
    last = np.arange(1, 401) % 20 == 0
    reward = 1 - np.abs(action - best).sum(1)
    return dataset_from_arrays(
        observation,
        action,
        reward,
        np.zeros_like(last),
        last,
        next_observations=np.roll(observation, -1, axis=0),
        action_low=-1,
        action_high=1,
    )


def make(name: str, dataset: TensorDict, **changes: Any) -> Any:
    facts = {"domain": "pen", "observation_keys": ("observation",), "discount": 0.99, "seed": 0}
    return getattr(d3rlpy_methods, name)(dataset, **{**facts, **changes})


@pytest.mark.parametrize("name", d3rlpy_methods.__all__)
def test_each_trains_and_acts(name: str, dataset: TensorDict) -> None:
    seen: list[int] = []
    method = make(name, dataset).learn(dataset, steps=3, callback=lambda step, _: seen.append(step))
    assert seen == [3]
    observation, state = dataset["observation"][:4].numpy(), None
    for start in (True, False, True):
        action, state = method.predict(observation, state, np.full(4, start))
        assert action.shape == (4, 2)
        assert np.abs(action).max() <= 1
    assert method.hyperparameters["batch_size"] == method.batch_size


def test_cloning_learns_the_action(dataset: TensorDict) -> None:
    method = make("BC", dataset).learn(dataset, steps=300)
    assert method.describe(dataset)["action_error"] < 0.03


def test_the_transformer_forgets_past_episodes(dataset: TensorDict) -> None:
    method = make("DT", dataset).learn(dataset, steps=3)
    first, second = dataset["observation"][:2, None].numpy()
    asked = np.ones((1, 1), np.float32)
    fresh, _ = method.predict({"observation": second, "return_to_go": asked})
    _, state = method.predict({"observation": first, "return_to_go": asked})
    remembered, state = method.predict({"observation": second, "return_to_go": asked}, state)
    assert not np.allclose(remembered, fresh)
    forgot, _ = method.predict(
        {"observation": second, "return_to_go": asked}, state, np.ones(1, bool)
    )
    np.testing.assert_allclose(forgot, fresh, atol=1e-6)


def test_other_domains_are_refused(dataset: TensorDict) -> None:
    with pytest.raises(ValueError, match=r"'antmaze'; settings are here for Adroit only"):
        make("BC", dataset, domain="antmaze")
