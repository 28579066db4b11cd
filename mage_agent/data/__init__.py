"""Offline datasets: read from where they are, checked, and drawn from in windows."""

from mage_agent.data.arrays import dataset_from_arrays
from mage_agent.data.checks import check_dataset
from mage_agent.data.cutting import cut_episodes, first_steps, split_goals, step_limit
from mage_agent.data.delayed import delayed_rewards
from mage_agent.data.goals import relabel_goals
from mage_agent.data.load import as_dataset, load_dataset
from mage_agent.data.replay import Batches, Starts, WindowSampler, replay_buffer
from mage_agent.data.ted import (
    DatasetMetadata,
    episode_lengths,
    metadata,
    n_step_returns,
    observation_keys,
    returns_to_go,
    rows_ahead,
)

__all__ = [
    "Batches",
    "DatasetMetadata",
    "Starts",
    "WindowSampler",
    "as_dataset",
    "check_dataset",
    "cut_episodes",
    "dataset_from_arrays",
    "delayed_rewards",
    "episode_lengths",
    "first_steps",
    "load_dataset",
    "metadata",
    "n_step_returns",
    "observation_keys",
    "relabel_goals",
    "replay_buffer",
    "returns_to_go",
    "rows_ahead",
    "split_goals",
    "step_limit",
]
