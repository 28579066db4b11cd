"""A method of your own, to be compared with MAGE and the bundled baselines by the suite.

    python examples/own_policy.py    # tries the class on random swings of a pendulum
    PYTHONPATH=examples python benchmarks/run_suite.py --datasets D4RL/pen/human-v2 \
        --methods mage,bc,own_policy:LinearCloning --seeds 3 --budget quick

The suite builds the class, gives it the same data, time and seeds as all others, and scores it on
the same episodes. This one fits a linear map from observations to actions.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs import GymEnv

from mage_agent import load_dataset
from mage_agent.evaluation import evaluate


class LinearCloning:
    """Everything the suite asks of a method.

    Args:
        dataset: as ``mage_agent.load_dataset`` returns it, some episodes held out.
        domain: name of the dataset's domain, for settings that depend on it.
        observation_keys: observation entries of that domain, to be concatenated in this order.
        discount: of the dataset's returns-to-go.
        seed: of the initial weights.
        learning_rate: settings of your own, ``--config '{"learning_rate": 0.01}'``.
    """

    published_steps = 20_000  # no budget gives more

    def __init__(
        self,
        dataset: TensorDictBase,
        *,
        domain: str,
        observation_keys: tuple[str, ...],
        discount: float,
        seed: int,
        learning_rate: float = 1e-3,
    ) -> None:
        self.observation_keys = observation_keys
        self.hyperparameters = {"learning_rate": learning_rate, "batch_size": 256}  # recorded
        inputs = sum(dataset[key].shape[-1] for key in observation_keys)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = torch.nn.Linear(inputs, dataset["action"].shape[-1])

    def learn(
        self,
        dataset: TensorDictBase,
        *,
        steps: int,
        seed: int = 0,
        progress_bar: bool = True,
        checkpoint_path: Path | None = None,
        checkpoint_interval: int = 1000,
        callback: Callable[[int, dict[str, float]], None] | None = None,
    ) -> "LinearCloning":
        """Train; a method that trains for long also keeps its state in ``checkpoint_path``."""
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.hyperparameters["learning_rate"]
        )
        for step in range(1, steps + 1):
            batch = dataset[torch.randint(len(dataset), (256,), generator=generator)]
            loss = (self._act(batch) - batch["action"]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if callback is not None and step % 100 == 0:
                callback(step, {"loss": loss.item()})
        return self

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Act on a batch of observations, as policies of Stable-Baselines3 do."""
        if not isinstance(observation, dict):
            observation = {self.observation_keys[0]: observation}
        with torch.no_grad():
            return self._act(observation).numpy(), state

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Errors on the episodes that were held out, for the record."""
        with torch.no_grad():
            error = (self._act(dataset) - dataset["action"]).square().mean()
        return {"action_error": error.item()}

    def _act(self, observation: Any) -> torch.Tensor:
        parts = [torch.as_tensor(observation[key]).float() for key in self.observation_keys]
        return self.network(torch.cat(parts, dim=-1))


def main() -> None:
    """Do by hand, on little data, what the suite does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2_000)
    args = parser.parse_args()

    recording = GymEnv("Pendulum-v1").rollout(200 * args.episodes, break_when_any_done=False)
    dataset = load_dataset(recording, action_low=-2, action_high=2)
    method = LinearCloning(
        dataset, domain="pendulum", observation_keys=("observation",), discount=0.99, seed=0
    )
    method.learn(dataset, steps=args.steps)
    results = evaluate(method, lambda: gym.make("Pendulum-v1"), episodes=4)
    returned = np.mean([result.episode_return for result in results])
    print(f"{method.describe(dataset)}, return {returned:.0f}")


if __name__ == "__main__":
    main()
