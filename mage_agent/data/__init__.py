"""Offline datasets: read, checked, windowed."""

from mage_agent.data.checks import check_dataset
from mage_agent.data.load import load_dataset
from mage_agent.data.replay import WindowSampler, replay_buffer
from mage_agent.data.ted import DatasetMetadata, metadata

__all__ = [
    "DatasetMetadata",
    "WindowSampler",
    "check_dataset",
    "load_dataset",
    "metadata",
    "replay_buffer",
]
