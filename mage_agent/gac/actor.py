"""GAC as a TorchRL actor."""

from __future__ import annotations

from typing import ClassVar

from mage_agent.actor import AgentActor
from mage_agent.agent import Agent
from mage_agent.gac.model import GACModel

__all__ = ["GACActor"]


class GACActor(AgentActor):
    """``AgentActor`` for GAC: ``observation`` and ``"agent_memory"`` -> ``action``.

    The plan and the last steps travel in the tensordict; a plan is made where ``is_init`` is True,
    for these environments alone. With ``ExplorationType.DETERMINISTIC`` it is the mean of the plans
    that answer ``model.query``, else a sample.

    Examples:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> model = GACModel(GACConfig.preset("small"), observation_dim=3, action_dim=1)
        >>> actor = GACActor(model)
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), actor.make_env_transforms())
        >>> env.rollout(10, actor)["action"].shape
        torch.Size([10, 1])
    """

    agent_class: ClassVar[type[Agent]] = GACModel
