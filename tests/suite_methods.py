"""Methods of a user's own for the tests of the suite: most learn nothing, in many ways."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mage_agent import Agent, Config, Stage


class Still:
    """Does nothing for a number of steps, which a checkpoint counts, then acts by zeros."""

    published_steps = 20

    def __init__(
        self,
        dataset: TensorDictBase,
        *,
        domain: str,
        observation_keys: tuple[str, ...],
        discount: float,
        seed: int,
        **changes: Any,
    ) -> None:
        self.actions = dataset["action"].shape[1]
        self.hyperparameters = {"domain": domain, "discount": discount, "batch_size": 4, **changes}

    def learn(
        self,
        dataset: TensorDictBase,
        *,
        steps: int,
        seed: int = 0,
        progress_bar: bool = True,
        checkpoint_path: Path | None = None,
        checkpoint_interval: int = 1000,
        callback: Any = None,
    ) -> "Still":
        done = 0
        if checkpoint_path is not None and checkpoint_path.exists():
            done = json.loads(checkpoint_path.read_text())
        for step in range(done + 1, steps + 1):
            self.step(step, seed, checkpoint_path)
            if checkpoint_path is not None:
                part = checkpoint_path.with_name("part")
                part.write_text(json.dumps(step))
                os.replace(part, checkpoint_path)
            if callback is not None:
                callback(step, {"loss": 0.0})
        return self

    def step(self, step: int, seed: int, checkpoint_path: Path | None) -> None:
        """Do nothing."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = 0
    ) -> tuple[Any, Any]:
        if isinstance(observation, dict):
            observation = observation["observation"]
        return np.zeros((len(observation), self.actions), dtype=np.float32), state

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        return {"action_error": float(dataset["action"].square().mean())}


class Slow(Still):
    """Takes half a second, most of it by the clock, and notes where it is begun."""

    def step(self, step: int, seed: int, checkpoint_path: Path | None) -> None:
        time.sleep(0.025)
        if checkpoint_path is not None:
            with checkpoint_path.with_name("steps").open("a") as file:
                file.write(f"{step} {os.getpid()}\n")


class Busy(Still):
    """Takes a millisecond of the processor per step, or another cost."""

    published_steps = 100_000

    def step(self, step: int, seed: int, checkpoint_path: Path | None) -> None:
        until = time.process_time() + 0.001 * self.hyperparameters.get("cost", 1.0)
        while time.process_time() < until:
            pass


class Failing(Still):
    """Raises in mid-training, once its fault is not mended."""

    def step(self, step: int, seed: int, checkpoint_path: Path | None) -> None:
        if step == 10 and "FAILING_IS_MENDED" not in os.environ:
            raise RuntimeError("nothing can be learnt from this")


class Full(Still):
    """Finds the disk full."""

    def step(self, step: int, seed: int, checkpoint_path: Path | None) -> None:
        if step == 10 and seed == 1:
            raise OSError(28, "No space left on device")


class Waiting(Still):
    """The first time, says which process it is and waits to be killed in mid-training."""

    def step(self, step: int, seed: int, checkpoint_path: Path | None) -> None:
        if step != 10 or checkpoint_path is None:
            return
        place = checkpoint_path.with_name("waiting")
        if not place.exists():
            part = place.with_name("waiting-part")
            part.write_text(str(os.getpid()))
            os.replace(part, place)
            time.sleep(600)


class Dying(Still):
    """Kills its process: with seed 0 always, with seed 1 the first time."""

    def step(self, step: int, seed: int, checkpoint_path: Path | None) -> None:
        if step != 10 or checkpoint_path is None:
            return
        died = checkpoint_path.with_name("died")
        if seed == 0 or (seed == 1 and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class LinearConfig(Config):
    """Defaults that suffice."""

    batch_size: int = 16


class Linear(Agent):
    """An agent: a linear map, fitted in one stage."""

    name = "linear_of_tests"
    config_class = LinearConfig
    told_return = False

    def __init__(self, config: Config, **sizes: Any) -> None:
        super().__init__(config, **sizes)
        self.layer = nn.Linear(self.observation_dim, self.action_dim)

    def stages(self, dataset: TensorDictBase) -> list[Stage]:
        return [
            Stage(
                name="fit",
                loss=LinearLoss(self),
                steps=60,
                columns=lambda: dataset.select(*self.config.observation_keys, "action", "episode"),
                batch_size=16,
            )
        ]

    def decide(
        self, observation: Tensor, return_to_go: Tensor, state: Any, **options: Any
    ) -> tuple[Tensor, None]:
        acted = self.layer(self.units.observation(observation))
        return self.units.environment_action(acted), None


class LinearLoss(nn.Module):
    """Squared error of the actions."""

    def __init__(self, agent: Linear) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, batch: TensorDictBase) -> TensorDict:
        units = self.agent.units
        acted = self.agent.layer(units.observation(units.concatenate(batch)))
        return TensorDict({"loss_action": (acted - units.action(batch["action"])).square().mean()})
