"""MAGE as a TorchRL actor."""

from __future__ import annotations

from typing import ClassVar

from mage_agent.actor import AgentActor
from mage_agent.agent import Agent
from mage_agent.mage.model import MAGEModel

__all__ = ["MAGEActor"]


class MAGEActor(AgentActor):
    """``AgentActor`` for MAGE: ``observation``, ``return_to_go`` -> ``action``; memoryless.

    ``set_exploration_type(ExplorationType.DETERMINISTIC)`` samples no tokens; any other exploration
    type, and none, samples them with ``config.temperature``, as ``DiffusionActor`` does.

    Examples:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> model = MAGEModel(MAGEConfig.preset("small"), observation_dim=3, action_dim=1)
        >>> actor = MAGEActor(model)
        >>> transforms = actor.make_env_transforms(target_return=-200.0)
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), transforms)
        >>> env.rollout(10, actor)["action"].shape
        torch.Size([10, 1])
    """

    agent_class: ClassVar[type[Agent]] = MAGEModel
