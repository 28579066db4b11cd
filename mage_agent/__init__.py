"""Offline reinforcement learning by agents that generate plans."""

from mage_agent.actor import AgentActor
from mage_agent.agent import Agent, evaluating
from mage_agent.averages import averaged
from mage_agent.config import Config, bounded
from mage_agent.data import (
    cut_episodes,
    dataset_from_arrays,
    delayed_rewards,
    first_steps,
    load_dataset,
    relabel_goals,
    replay_buffer,
    returns_to_go,
    split_goals,
    step_limit,
)
from mage_agent.environment import make_environment
from mage_agent.envs import DiscountedTargetReturn, ReturnToGoVecWrapper, ReturnToGoWrapper
from mage_agent.evaluation import evaluate
from mage_agent.gac.actor import GACActor
from mage_agent.gac.config import GACConfig
from mage_agent.gac.losses import GACLoss
from mage_agent.gac.model import GACModel
from mage_agent.gac.policy import GACPolicy
from mage_agent.gac.queries import Query
from mage_agent.losses import AgentLoss
from mage_agent.mage.actor import MAGEActor
from mage_agent.mage.config import MAGEConfig
from mage_agent.mage.distances import MAGEDistanceLoss
from mage_agent.mage.inference import optimize_for_inference
from mage_agent.mage.losses import MAGEInverseDynamicsLoss, MAGELoss, MAGETokenizerLoss
from mage_agent.mage.model import MAGEModel
from mage_agent.mage.policy import MAGEPolicy
from mage_agent.mage.values import MAGEValueLoss
from mage_agent.online import OnlineStage, learn_online
from mage_agent.policy import AgentPolicy
from mage_agent.recording import record
from mage_agent.stage import Stage, TrainingError, total_loss
from mage_agent.training import Progress, fit

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentActor",
    "AgentLoss",
    "AgentPolicy",
    "Config",
    "DiscountedTargetReturn",
    "GACActor",
    "GACConfig",
    "GACLoss",
    "GACModel",
    "GACPolicy",
    "MAGEActor",
    "MAGEConfig",
    "MAGEDistanceLoss",
    "MAGEInverseDynamicsLoss",
    "MAGELoss",
    "MAGEModel",
    "MAGEPolicy",
    "MAGETokenizerLoss",
    "MAGEValueLoss",
    "OnlineStage",
    "Progress",
    "Query",
    "ReturnToGoVecWrapper",
    "ReturnToGoWrapper",
    "Stage",
    "TrainingError",
    "averaged",
    "bounded",
    "cut_episodes",
    "dataset_from_arrays",
    "delayed_rewards",
    "evaluate",
    "evaluating",
    "first_steps",
    "fit",
    "learn_online",
    "load_dataset",
    "make_environment",
    "optimize_for_inference",
    "record",
    "relabel_goals",
    "replay_buffer",
    "returns_to_go",
    "split_goals",
    "step_limit",
    "total_loss",
]
