"""What all baselines share: published settings, statistics, training and acting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.baselines.loop import Loop
from benchmarks.tasks import TASKS, mage_config

__all__ = ["Baseline", "Settings", "State"]

Settings = dict[str, Any]
State = tuple[npt.NDArray[Any], ...] | None

LOG_INTERVAL = 100
"""Steps between two calls of the callback."""


class Baseline(nn.Module, ABC):
    """A method to compare with, trained on TorchRL's losses; it acts as SB3 policies do.

    Networks see standardised observations and act in [-1, 1]; environment units go in and out.

    Args:
        dataset: TED TensorDict, as ``mage_agent.load_dataset`` returns it; its statistics are
            taken, and its id selects what was published for one dataset in particular.
        domain: key of ``benchmarks.tasks.TASKS``; selects the published hyperparameters.
        observation_keys: observation entries, concatenated in this order.
        discount: discount factor where the publication names none for the domain.
        seed: of the initial weights.
        **changes: hyperparameters to set otherwise.

    Attributes:
        hyperparameters: all settings in force, JSON-ready.

    Raises:
        ValueError: the domain, an observation entry or a hyperparameter is not known.
    """

    published_steps: ClassVar[int] = 1_000_000
    """Gradient steps of the publication."""
    defaults: ClassVar[Settings]
    """Published hyperparameters."""
    published: ClassVar[dict[str, Settings]] = {}
    """Where the publication departs from them: by domain, or by ``domain/dataset``."""
    horizon: int = 1
    """Steps of the windows that the losses take."""

    policy: nn.Module
    """Best actions in [-1, 1], (B, A), for standardised observations (B, S)."""
    observation_mean: Tensor
    observation_std: Tensor
    action_low: Tensor
    action_high: Tensor

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
        super().__init__()
        self.seed, self.observation_keys = seed, tuple(observation_keys)
        facts = dict(dataset.get_non_tensor("metadata", None) or {})
        settings = self._settings(domain, facts.get("dataset_id", ""), discount)
        self.check(domain, changes)
        self.hyperparameters = settings | changes
        if missing := [key for key in observation_keys if key not in dataset]:
            raise ValueError(
                f"the dataset has no observation entries {missing}; it has "
                f"{sorted(map(str, dataset.keys()))}."
            )
        observation, action = self._concatenated(dataset), dataset["action"]
        self.observation_dim, self.action_dim = observation.shape[-1], action.shape[-1]
        self.register_buffer("observation_mean", observation.mean(0))
        # The summand is TD3+BC's: entries that hardly vary are not blown up.
        self.register_buffer("observation_std", observation.std(0, correction=0) + 1e-3)
        ones = torch.ones(self.action_dim)
        self.register_buffer("action_low", torch.as_tensor(facts.get("action_low", -ones)))
        self.register_buffer("action_high", torch.as_tensor(facts.get("action_high", ones)))
        with torch.random.fork_rng(devices=[]):  # initialisers know the global generator only
            torch.manual_seed(seed)
            self.build(dataset)

    @classmethod
    def check(cls, domain: str, changes: dict[str, Any]) -> None:
        """Refuse hyperparameters that the method does not have, by ``ValueError``."""
        if unknown := set(changes) - set(cls.defaults):
            raise ValueError(
                f"{cls.__name__} has no hyperparameters {sorted(unknown)}; known: "
                f"{sorted(cls.defaults)}."
            )

    @abstractmethod
    def build(self, dataset: TensorDictBase) -> None:
        """Make the networks and the loss, and set ``policy``."""

    @abstractmethod
    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Losses of a batch, to be summed; each is a scalar."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimiser of all that is trained."""

    @abstractmethod
    def schedule(self, step: int, steps: int) -> list[float]:
        """Factors of the learning rates, one per parameter group of the optimiser."""

    def after_backward(self) -> None:
        """Change gradients before the optimiser's step."""

    def after_step(self, step: int) -> None:
        """Follow up on the optimiser's step, such as by moving target networks."""

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """What batches are made of: standardised observations, actions in [-1, 1], episodes."""
        action = dataset["action"]
        middle, half = self._action_scale()
        columns = {
            "observation": self.standardized(dataset),
            "action": ((action - middle) / half).clamp(-1, 1),
            "episode": dataset.get("episode", torch.zeros(len(dataset), dtype=torch.int64)),
        }
        return TensorDict(columns, batch_size=[len(dataset)])

    def learn(
        self,
        dataset: TensorDictBase,
        *,
        steps: int,
        seed: int = 0,
        progress_bar: bool = True,
        checkpoint_path: Path | None = None,
        checkpoint_interval: int = 10_000,
        callback: Callable[[int, dict[str, float]], None] | None = None,
    ) -> Self:
        """Train, or go on from ``checkpoint_path`` if that file exists.

        A run that is interrupted and continued ends with the same bits as one that is not.

        Args:
            dataset: TED TensorDict with the sizes of the one given before.
            steps: gradient steps in all; learning rates that fall reach their end there.
            seed: of the batches, dropout and samples; torch's global generator stays untouched.
            progress_bar: whether to show one.
            checkpoint_path: file to keep the state in, replaced whole.
            checkpoint_interval: steps between two checkpoints; another is written at the end.
            callback: called with the number of finished steps and the last losses every 100 steps
                and at the end.

        Raises:
            ValueError: the dataset does not fit, or the checkpoint comes from another run.
            TrainingError: a loss or a weight is not finite.
        """
        sizes = self._concatenated(dataset).shape[-1], dataset["action"].shape[-1]
        if steps < 1 or sizes != (self.observation_dim, self.action_dim):
            raise ValueError(
                f"steps is {steps}, which must be at least 1, and the dataset has (observation, "
                f"action) sizes {sizes}, which must be {(self.observation_dim, self.action_dim)}."
            )
        self.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            loop = Loop(self, dataset, steps, seed, checkpoint_path)
            with tqdm(
                desc=type(self).__name__,
                total=steps,
                initial=loop.step,
                disable=not progress_bar,
                delay=2.0,
            ) as bar:
                while loop.step < steps:
                    losses = loop.advance()
                    bar.update()
                    last = loop.step == steps
                    if callback is not None and (last or loop.step % LOG_INTERVAL == 0):
                        callback(loop.step, {key: float(loss) for key, loss in losses.items()})
                    if last or loop.step % checkpoint_interval == 0:
                        loop.save()
        return self.eval()

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[np.float32], State]:
        """Return the actions for one observation or a batch; there is no state and no noise."""
        self.eval()
        return self.environment_action(self.policy(self.standardized(observation))), state

    @torch.no_grad()
    def describe(self, held: TensorDictBase) -> dict[str, float]:
        """Mean squared action error on a dataset, in environment units."""
        self.eval()
        actions = [self.policy(part) for part in self.standardized(held).split(4096)]
        error = self.environment_action(torch.cat(actions)) - held["action"].numpy()
        return {"action_error": float(np.square(error).mean())}

    def standardized(self, observation: Any) -> Tensor:
        """Standardise observations in environment units, of a dictionary, TensorDict or array."""
        return (self._concatenated(observation) - self.observation_mean) / self.observation_std

    def environment_action(self, action: Tensor) -> npt.NDArray[np.float32]:
        """Actions in environment units, within bounds, for actions in [-1, 1]."""
        middle, half = self._action_scale()
        bounded = torch.clamp(middle + half * action, self.action_low, self.action_high)
        array: npt.NDArray[np.float32] = bounded.float().numpy()
        return array

    def _action_scale(self) -> tuple[Tensor, Tensor]:
        half = (self.action_high - self.action_low) / 2
        return self.action_low + half, half

    def _concatenated(self, observation: Any) -> Tensor:
        if not isinstance(observation, (dict, TensorDictBase)):
            observation = {self.observation_keys[0]: observation}
        return torch.cat(
            [torch.as_tensor(observation[key]).float() for key in self.observation_keys], -1
        )

    def _settings(self, domain: str, dataset_id: str, discount: float) -> Settings:
        if domain not in TASKS:
            raise ValueError(f"domain is {domain!r}; known: {sorted(TASKS)}.")
        published: Settings = {}
        # "medium-expert-v0" and the like; D4RL's own names begin with the domain
        name = dataset_id.split("/")[-1].rpartition("-v")[0].removeprefix(f"{domain}-")
        for key in (domain, f"{domain}/{name}"):
            published |= self.published.get(key, {})
        settings = {**self.defaults, **published}
        # The publication's own discount gives way to one that was asked for, not to the domain's.
        asked = discount != mage_config(domain).discount
        if "discount" in settings and (asked or "discount" not in published):
            settings["discount"] = discount
        return settings
