"""Offline datasets: read from where they are, checked, and drawn from in windows."""

from mage_agent.data.checks import check_dataset
from mage_agent.data.hindsight import add_hindsight_goals
from mage_agent.data.load import dataset_from_arrays, load_dataset
from mage_agent.data.replay import WindowSampler, replay_buffer
from mage_agent.data.ted import DatasetMetadata, metadata, observation_keys

__all__ = [
    "DatasetMetadata",
    "WindowSampler",
    "add_hindsight_goals",
    "check_dataset",
    "dataset_from_arrays",
    "load_dataset",
    "metadata",
    "observation_keys",
    "replay_buffer",
]
