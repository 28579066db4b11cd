"""Behaviour cloning: a plain network that repeats what the data did."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from tqdm import trange

__all__ = ["BehaviourCloning"]


class BehaviourCloning(nn.Module):
    """A multi-layer perceptron fitted to actions by least squares; acts as an SB3 policy does.

    Args:
        dataset: TED TensorDict, as ``mage_agent.load_dataset`` returns it.
        observation_keys: observation entries, concatenated in this order.
        width: units of each of the two hidden layers.
        seed: seeds the initial weights.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        dataset: TensorDictBase,
        *,
        observation_keys: tuple[str, ...] = ("observation",),
        width: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.observation_keys = observation_keys
        observation = self._concatenate(dataset)
        facts = dataset.get_non_tensor("metadata")
        self.register_buffer("mean", observation.mean(0))
        self.register_buffer("std", observation.std(0).clamp_min(1e-6))
        self.register_buffer("low", torch.tensor(facts["action_low"]))
        self.register_buffer("high", torch.tensor(facts["action_high"]))
        with torch.random.fork_rng(devices=[]):  # initialisers know the global generator only
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                nn.Linear(observation.shape[1], width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, dataset["action"].shape[1]),
            )

    def _concatenate(self, observation: Any) -> Tensor:
        return torch.cat(
            [torch.as_tensor(observation[key]).float() for key in self.observation_keys], -1
        )

    def forward(self, observation: Tensor) -> Tensor:
        """Actions (B, A) for observations (B, S), not yet clipped."""
        action: Tensor = self.network((observation - self.mean) / self.std)
        return action

    def learn(
        self,
        dataset: TensorDictBase,
        *,
        steps: int = 30_000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        seed: int = 0,
        progress_bar: bool = True,
    ) -> "BehaviourCloning":
        """Fit the network with Adam, its rate falling to zero along a cosine; return self."""
        observation, action = self._concatenate(dataset), dataset["action"]
        optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(seed)
        self.train()
        for _ in trange(steps, desc="behaviour cloning", disable=not progress_bar):
            rows = torch.randint(len(action), (batch_size,), generator=generator)
            loss = nn.functional.mse_loss(self(observation[rows]), action[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return self.eval()

    @torch.no_grad()
    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Mean squared action error on a dataset, in environment units."""
        action = self(self._concatenate(dataset)).clamp(self.low, self.high)
        return {"action_error": float((action - dataset["action"]).square().mean())}

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[np.float32], tuple[npt.NDArray[Any], ...] | None]:
        """Return the actions for a batch of observations; there is no state and no noise."""
        if not isinstance(observation, dict):
            observation = {"observation": observation}
        action = self(self._concatenate(observation))
        return action.clamp(self.low, self.high).numpy(), state
