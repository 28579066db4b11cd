"""MAGE: multi-scale autoregressive generation for offline reinforcement learning."""

from mage_agent.actor import MAGEActor
from mage_agent.config import MAGEConfig
from mage_agent.data import dataset_from_arrays, load_dataset, replay_buffer
from mage_agent.envs import ReturnToGoVecWrapper, ReturnToGoWrapper
from mage_agent.losses import MAGELoss, MAGETokenizerLoss
from mage_agent.model import MAGEModel
from mage_agent.policy import MAGEPolicy

__version__ = "0.1.0"

__all__ = [
    "MAGEActor",
    "MAGEConfig",
    "MAGELoss",
    "MAGEModel",
    "MAGEPolicy",
    "MAGETokenizerLoss",
    "ReturnToGoVecWrapper",
    "ReturnToGoWrapper",
    "dataset_from_arrays",
    "load_dataset",
    "replay_buffer",
]
