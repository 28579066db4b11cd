"""MAGE as a Stable-Baselines3 policy."""

from __future__ import annotations

from typing import ClassVar

from mage_agent.agent import Agent
from mage_agent.mage.config import MAGEConfig
from mage_agent.mage.model import MAGEModel
from mage_agent.policy import AgentPolicy

__all__ = ["MAGEPolicy"]


class MAGEPolicy(AgentPolicy):
    """``AgentPolicy`` for MAGE: generates a plan for the return asked for, and acts on it.

    Stochastic, it samples tokens at ``config.temperature``; deterministic, it acts on the mean
    codes (``config.code_temperature``), or with ``config.candidates`` above 1 on the best of plans
    drawn with noise that follows from the state.

    Examples:
        >>> policy = MAGEPolicy.from_dataset(dataset, "small")
        >>> policy.learn()
        >>> env = policy.wrap(gym.make("Pendulum-v1"))
        >>> action, state = policy.predict(env.reset()[0], deterministic=True)
    """

    agent_class: ClassVar[type[Agent]] = MAGEModel
    model: MAGEModel

    @property
    def config(self) -> MAGEConfig:
        """The model's configuration."""
        return self.model.config


MAGEModel.policy_class = MAGEPolicy
