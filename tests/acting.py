"""Small untrained models and a goal environment, for the tests of what acts."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict

from mage_agent import Agent, Config, MAGEConfig, MAGEModel
from mage_agent.memory import empty_memory, remember

TINY: dict[str, Any] = {
    "width": 16,
    "num_blocks": 1,
    "num_heads": 2,
    "codebook_size": 16,
    "code_dim": 8,
    "dropout": 0.5,
}
GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


def make_model(
    observation_dim: int | dict[str, int] = 3,
    action_dim: int = 1,
    *,
    seed: int = 0,
    **changes: Any,
) -> MAGEModel:
    """A small untrained model, with weights and codes large enough that its inputs matter.

    Its data has actions in [-1, 1] and returns-to-go in [-50, 20].
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        config = MAGEConfig.preset("adroit-small", **{**TINY, **changes})
        model = MAGEModel(config, observation_dim=observation_dim, action_dim=action_dim)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5)
        codes = model.quantizer.codes
        codes.copy_(torch.randn_like(codes))
        model.units.fit(
            observation=torch.randn(100, model.observation_dim),
            action=torch.rand(100, action_dim) * 2 - 1,
            return_to_go=torch.linspace(-50, 20, 100)[:, None],
            initial_return=torch.linspace(-50, 20, 11)[:, None],
            action_low=-torch.ones(action_dim),
            action_high=torch.ones(action_dim),
            target_quantile=config.target_quantile,
        )
    return model.eval()


class Reach(gym.Env[Any, Any]):
    """A goal environment whose episodes end after ``length`` steps; step t pays t."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)
    observation_space = spaces.Dict(
        {
            "observation": spaces.Box(-10, 10, (3,)),
            "achieved_goal": spaces.Box(-10, 10, (2,)),
            "desired_goal": spaces.Box(-10, 10, (2,)),
        }
    )

    def __init__(self, length: int) -> None:
        self.length = length

    def observe(self) -> dict[str, Any]:
        return {
            key: self.np_random.uniform(-1, 1, space.shape).astype(np.float32)
            for key, space in self.observation_space.items()
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.observe(), float(self.t), self.t == self.length, False, {}


class Echo(Agent):
    """Acts on the mean of the first entries of what it has seen, at most three steps ago."""

    name = "echo"
    config_class = Config
    told_return = False

    def stages(self, dataset: Any) -> Any:
        return []

    def initial_state(self, count: int) -> TensorDict:
        return empty_memory(count, 3, {"observation": self.observation_dim}, self.device)

    def decide(self, observation: Any, return_to_go: Any, state: Any, **_: Any) -> Any:
        state, _ = remember(state, observation=observation)
        seen = state["observation"][..., 0].sum(1, keepdim=True)
        return (seen / state["length"]).expand(-1, self.action_dim), state
