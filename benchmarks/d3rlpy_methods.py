r"""The bundled baselines in a second implementation, d3rlpy's, as methods of the suite.

They are there to check the bundled ones against: the same data, budget, hyperparameters and
episodes, another author's code. Only their settings for Adroit are here::

    python benchmarks/run_suite.py --datasets D4RL/pen/expert-v2 --budget standard \
        --methods iql,benchmarks.d3rlpy_methods:IQL

d3rlpy asks for an older Gymnasium than this project, and works with its own; hence::

    pip install --no-deps d3rlpy gym==0.26.2 gym-notices structlog dataclasses-json marshmallow \
        typing-inspect mypy-extensions colorama scikit-learn joblib threadpoolctl narwhals
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import d3rlpy
import numpy as np
import numpy.typing as npt
import torch
from d3rlpy.algos import TransformerInput
from d3rlpy.models import VectorEncoderFactory
from d3rlpy.optimizers import (
    AdamFactory,
    CosineAnnealingLRFactory,
    GPTAdamWFactory,
    WarmupSchedulerFactory,
)
from tensordict import TensorDictBase

from benchmarks.domains import ADROIT
from benchmarks.protocol import Callback
from mage_agent import returns_to_go

__all__ = ["BC", "CQL", "DT", "IQL", "TD3BC", "ReBRAC"]

Array = npt.NDArray[np.float32]

_THREE_LAYERS = [256, 256, 256]
_INTERVAL = 50  # steps between two calls of a callback


class _Method(ABC):
    """What d3rlpy's algorithms share here: standardised observations, actions in [-1, 1].

    A run that is interrupted starts anew.
    """

    published_steps: ClassVar[int] = 1_000_000
    batch_size: ClassVar[int] = 256

    def __init__(
        self,
        dataset: TensorDictBase,
        *,
        domain: str,
        observation_keys: tuple[str, ...],
        discount: float,
        seed: int,
    ) -> None:
        if domain not in ADROIT:
            raise ValueError(f"the domain is {domain!r}; settings are here for Adroit only.")
        self.observation_keys = observation_keys
        observation = self._concatenated(dataset)
        self._mean, self._std = observation.mean(0), observation.std(0) + 1e-3

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """d3rlpy's configuration, of a run of one step."""
        settings: dict[str, Any] = json.loads(self.config(1).serialize())
        return settings

    @abstractmethod
    def config(self, steps: int) -> Any:
        """Return d3rlpy's configuration for a number of gradient steps."""

    def learn(
        self,
        dataset: TensorDictBase,
        *,
        steps: int,
        seed: int = 0,
        progress_bar: bool = True,
        checkpoint_path: Path | None = None,
        checkpoint_interval: int = 1000,
        callback: Callback | None = None,
    ) -> Self:
        """Train."""
        d3rlpy.seed(seed)
        observation, action = self._standardized(dataset), dataset["action"].clamp(-1, 1).numpy()
        following = dataset["next"]
        terminated = following["terminated"].flatten().numpy()
        buffer = d3rlpy.dataset.MDPDataset(
            observation,
            action,
            following["reward"].numpy(),
            terminals=terminated.astype(np.float32),
            timeouts=(following["done"].flatten().numpy() & ~terminated).astype(np.float32),
        )
        self.algorithm = self.config(steps).create(device=False)
        self.algorithm.create_impl(observation.shape[1:], action.shape[-1])
        for step in range(1, steps + 1):
            losses = self.algorithm.update(self.sample(buffer))
            if callback is not None and (step % _INTERVAL == 0 or step == steps):
                callback(step, losses)
        return self

    def sample(self, buffer: Any) -> Any:
        """Return a batch of transitions."""
        return buffer.sample_transition_batch(self.batch_size)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, Any]:
        """Return the best actions for a batch of observations."""
        action: Array = self.algorithm.predict(self._standardized(observation))
        return action.clip(-1, 1), state

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Mean squared action error on a dataset."""
        error = self.predict(dataset)[0] - dataset["action"].numpy()
        return {"action_error": float(np.square(error).mean())}

    def _concatenated(self, observation: Any) -> torch.Tensor:
        if isinstance(observation, np.ndarray):
            return torch.as_tensor(observation).float()
        parts = [torch.as_tensor(observation[key]).float() for key in self.observation_keys]
        return torch.cat(parts, dim=-1)

    def _standardized(self, observation: Any) -> Array:
        result: Array = ((self._concatenated(observation) - self._mean) / self._std).numpy()
        return result


def _falling(steps: int) -> AdamFactory:
    return AdamFactory(lr_scheduler_factory=CosineAnnealingLRFactory(T_max=steps))


class BC(_Method):
    """Behaviour cloning."""

    def config(self, steps: int) -> Any:
        """Two layers; the rate falls to zero."""
        return d3rlpy.algos.BCConfig(
            batch_size=self.batch_size, learning_rate=1e-3, optim_factory=_falling(steps)
        )


class TD3BC(_Method):
    """TD3+BC."""

    def config(self, steps: int) -> Any:
        """The publication's."""
        return d3rlpy.algos.TD3PlusBCConfig(batch_size=self.batch_size, alpha=2.5)


class ReBRAC(_Method):
    """ReBRAC."""

    def config(self, steps: int) -> Any:
        """The publication's for pen/expert; d3rlpy multiplies penalties of summed squares."""
        return d3rlpy.algos.ReBRACConfig(
            batch_size=self.batch_size,
            actor_learning_rate=3e-4,
            critic_learning_rate=3e-4,
            actor_beta=0.01,
            critic_beta=0.01,
            actor_encoder_factory=VectorEncoderFactory(_THREE_LAYERS),
            critic_encoder_factory=VectorEncoderFactory(_THREE_LAYERS, use_layer_norm=True),
        )


class CQL(_Method):
    """CQL with its Lagrange multiplier."""

    def config(self, steps: int) -> Any:
        """CORL's for pen/expert."""
        layers = VectorEncoderFactory(_THREE_LAYERS)
        return d3rlpy.algos.CQLConfig(
            batch_size=self.batch_size,
            actor_learning_rate=3e-5,
            temp_learning_rate=3e-5,
            alpha_learning_rate=3e-4,
            conservative_weight=1.0,
            alpha_threshold=5.0,
            n_action_samples=10,
            actor_encoder_factory=layers,
            critic_encoder_factory=layers,
        )


class IQL(_Method):
    """IQL."""

    def config(self, steps: int) -> Any:
        """The publication's for Adroit."""
        return d3rlpy.algos.IQLConfig(
            batch_size=self.batch_size,
            weight_temp=0.5,
            actor_encoder_factory=VectorEncoderFactory(dropout_rate=0.1),
            actor_optim_factory=_falling(steps),
        )


class DT(_Method):
    """Decision Transformer."""

    published_steps = 100_000
    batch_size = 64
    context = 20

    def __init__(self, dataset: TensorDictBase, **facts: Any) -> None:
        super().__init__(dataset, **facts)
        returns = returns_to_go(dataset["next", "reward"], dataset["episode"], 1.0)
        self.target_return = float(returns[dataset["step_count"] == 0].max())
        self._scale = float(returns.abs().max())

    def config(self, steps: int) -> Any:
        """The publication's, with returns divided by the largest."""
        return d3rlpy.algos.DecisionTransformerConfig(
            batch_size=self.batch_size,
            context_size=self.context,
            encoder_factory=VectorEncoderFactory([128], exclude_last_activation=True),
            reward_scaler=d3rlpy.preprocessing.MultiplyRewardScaler(1 / self._scale),
            optim_factory=GPTAdamWFactory(
                weight_decay=1e-4,
                clip_grad_norm=0.25,
                lr_scheduler_factory=WarmupSchedulerFactory(warmup_steps=max(1, steps // 10)),
            ),
        )

    def sample(self, buffer: Any) -> Any:
        """Return a batch of pieces of episodes."""
        return buffer.sample_trajectory_batch(self.batch_size, self.context)

    def update_return_to_go(self, return_to_go: Array, reward: Array) -> Array:
        """Return to ask for after a reward; both (num_envs, 1)."""
        return return_to_go - reward

    def predict(
        self,
        observation: Any,
        state: list[list[tuple[Array, Array, Array]]] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, Any]:
        """Return the actions, and what was met and done in each environment so far."""
        now = self._standardized(observation)
        asked = np.full((len(now), 1), self.target_return, np.float32)
        if isinstance(observation, dict):
            asked = observation.get("return_to_go", asked)
        state = [[] for _ in now] if state is None else state
        actions = []
        for row, met in enumerate(state):
            if episode_start is not None and episode_start[row]:
                met.clear()
            met.append(
                (now[row], np.zeros(self.algorithm.impl.action_size, np.float32), asked[row])
            )
            seen, acted, wanted = (np.array(part) for part in zip(*met, strict=True))
            steps = 1 + np.arange(len(met))
            zeros = np.zeros_like(wanted)
            actions.append(
                self.algorithm.predict(TransformerInput(seen, acted, zeros, wanted, steps))
            )
            met[-1] = (now[row], actions[-1], asked[row])
        return np.array(actions).clip(-1, 1), state

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Nothing: its errors are not comparable."""
        return {}
