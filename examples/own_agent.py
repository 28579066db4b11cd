r"""A method of your own: linear behaviour cloning, as an agent of one stage.

python examples/own_agent.py
python benchmarks/run_suite.py --datasets D4RL/pen/human-v2 \
    --methods mage,bc,examples.own_agent:LinearAgent --budget quick
"""

from dataclasses import dataclass

import gymnasium as gym
from tensordict import TensorDict
from torch import nn
from torchrl.envs import GymEnv

from mage_agent import Agent, AgentPolicy, Config, Stage, bounded, evaluate, load_dataset


@dataclass(frozen=True, kw_only=True)
class LinearConfig(Config):
    """What can be set, besides what every agent has."""

    steps: int = bounded(2_000, 1)
    learning_rate: float = bounded(1e-2, 1e-12)


class LinearAgent(Agent):
    """Actions are a linear function of the observation."""

    name, config_class, told_return = "linear", LinearConfig, False

    def __init__(self, config, **sizes):
        super().__init__(config, **sizes)
        self.policy = nn.Linear(self.observation_dim, self.action_dim)

    def stages(self, dataset):
        """How it is trained: in one stage, on batches of single steps."""
        columns = dataset.select(*self.observation_sizes, "action", "episode")
        rate, steps = self.config.learning_rate, self.config.steps
        options = {"columns": lambda: columns, "batch_size": 256, "learning_rate": rate}
        return [Stage(name="clone", loss=self, steps=steps, **options)]

    def forward(self, batch):
        """The loss of a batch; all entries that begin with "loss_" are summed."""
        observation = self.units.observation(self.units.concatenate(batch))
        error = self.policy(observation) - self.units.action(batch["action"])
        return TensorDict({"loss_action": error.square().mean()})

    def decide(self, observation, return_to_go, state, *, temperature=0.0, generator=None):
        """How it acts: inside the bounds of the actions, and without memory."""
        action = self.policy(self.units.observation(observation))
        return self.units.environment_action(action), None


if __name__ == "__main__":
    rollout = GymEnv("Pendulum-v1").rollout(4_000, break_when_any_done=False)
    dataset = load_dataset(rollout, action_low=-2, action_high=2)
    policy = AgentPolicy(LinearAgent.from_dataset(dataset, LinearConfig())).learn(dataset)
    print(evaluate(policy, lambda: gym.make("Pendulum-v1"), episodes=2))
