"""MAGE as a Stable-Baselines3 policy, trained on a dataset instead of an environment."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, overload

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from mage_agent.checkpoint import load as load_model
from mage_agent.checkpoint import save as save_model
from mage_agent.checkpoint import usable
from mage_agent.config import MAGEConfig
from mage_agent.envs import ReturnToGoVecWrapper, ReturnToGoWrapper
from mage_agent.hardware import find_device
from mage_agent.inference import Weights, optimize_for_inference
from mage_agent.model import MAGEModel
from mage_agent.training import Progress, build_model, fit

__all__ = ["MAGEPolicy"]

State = tuple[NDArray[np.float32], ...]


class MAGEPolicy(BasePolicy):
    """A policy that learns from a dataset and does what return it is asked for.

    It works wherever Stable-Baselines3 takes a policy: ``predict``, ``evaluate_policy``,
    ``EvalCallback``, ``save`` and ``load``. Observations and actions are in environment units;
    Box and flat Dict observations, single and vectorised, are all right, and further entries of a
    Dict are ignored.

    ``predict`` never sees a reward. The return that is left to achieve is therefore part of the
    observation, which ``wrap(env)`` adds. **Without it the policy asks for ``target_return`` at
    every step**, which suits sparse rewards and is wrong for dense ones.

    Args:
        model: the model that acts; shared, not copied.
        observation_sizes: size of each of ``config.observation_keys``; needed only where there
            are several, since the model knows their sum.
        target_return: discounted return to ask for; None is ``model.default_target_return``.
        seed: of training, and of sampled actions.

    Raises:
        ValueError: the sizes do not fit the model, or the target is not finite.

    Examples:
        >>> policy = MAGEPolicy.from_dataset(dataset, MAGEConfig.preset("small"))
        >>> policy.learn(dataset)
        >>> env = policy.wrap(gym.make("Pendulum-v1"))
        >>> action, state = policy.predict(env.reset()[0], deterministic=True)
    """

    action_space: spaces.Box

    def __init__(
        self,
        model: MAGEModel,
        *,
        observation_sizes: Mapping[str, int] | None = None,
        target_return: float | None = None,
        seed: int = 0,
    ) -> None:
        keys = model.config.observation_keys
        if observation_sizes is None and len(keys) == 1:
            observation_sizes = {keys[0]: model.observation_dim}
        sizes = {key: int((observation_sizes or {}).get(key, 0)) for key in keys}
        if min(sizes.values()) < 1 or sum(sizes.values()) != model.observation_dim:
            raise ValueError(
                f"observation_sizes is {observation_sizes}; it must name the size of each of "
                f"{keys}, and they must add up to {model.observation_dim}."
            )
        actions = spaces.Box(model.action_low.cpu().numpy(), model.action_high.cpu().numpy())
        boxes: dict[str, spaces.Space[Any]] = {
            key: spaces.Box(-np.inf, np.inf, (size,)) for key, size in sizes.items()
        }
        observations = boxes[keys[0]] if len(keys) == 1 else spaces.Dict(boxes)
        super().__init__(observations, actions, normalize_images=False)
        self.model = model
        self.observation_sizes = sizes
        self.seed = seed
        self.target_return = target_return
        self.set_random_seed(seed)

    @classmethod
    def from_dataset(
        cls, dataset: Any, config: MAGEConfig, *, device: str | torch.device = "auto", seed: int = 0
    ) -> MAGEPolicy:
        """Build an untrained policy that fits a dataset.

        Args:
            dataset: TensorDict from ``load_dataset``.
            config: the configuration; without ``observation_keys``, all observation entries of
                the dataset are taken.
            device: "auto" takes a GPU where there is one.
            seed: of the initial weights, of training, and of sampled actions.

        Raises:
            KeyError, TypeError: the dataset is not what ``load_dataset`` returns.
            ValueError: the dataset lacks an observation entry or was loaded for another discount,
                or a GPU is asked for where there is none.
        """
        model = build_model(dataset, config, seed=seed).to(find_device(device))
        sizes = {key: dataset[key].shape[-1] for key in model.config.observation_keys}
        return cls(model, observation_sizes=sizes, seed=seed)

    def learn(
        self,
        dataset: Any,
        progress_bar: bool = True,
        *,
        callback: BaseCallback | None = None,
        log_dir: str | Path | None = None,
        checkpoint_path: str | Path | None = None,
        resume: bool = False,
    ) -> MAGEPolicy:
        """Train all stages on a dataset.

        Args:
            dataset: TensorDict from ``load_dataset``.
            progress_bar: whether to show one.
            callback: a callback of Stable-Baselines3, such as ``EvalCallback(policy.wrap(env))``.
                A "step" is a logged step of the second stage (one in 50; before that stage there is
                nothing to evaluate), and ``num_timesteps`` counts gradient steps. Training ends
                early when it returns False.
            log_dir: folder for TensorBoard logs, of the callback's records, too.
            checkpoint_path: file that keeps the state of training.
            resume: go on from ``checkpoint_path`` if it exists.

        Returns:
            The policy itself.

        Raises:
            KeyError, TypeError: the dataset is not what ``load_dataset`` returns.
            ValueError: the dataset does not fit the policy, or the checkpoint this run.
            OSError: the checkpoint cannot be written.
            TrainingError: a loss or its gradient is not finite.
        """
        adapter = None if callback is None else _CallbackAdapter(self, callback, log_dir)
        try:
            fit(
                self.model,
                dataset,
                seed=self.seed,
                device=self.device,
                progress_bar=progress_bar,
                log_dir=log_dir,
                checkpoint_path=checkpoint_path,
                resume=resume,
                callback=adapter,
            )
        except _StopTrainingError:
            self.set_training_mode(False)
        if callback is not None:
            callback.on_training_end()
        return self

    @property
    def config(self) -> MAGEConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def target_return(self) -> float:
        """Discounted return to ask for at the start of an episode, in the dataset's units.

        Set it to a number, or to None for ``model.default_target_return``.
        """
        target = self._target_return
        return self.model.default_target_return if target is None else target

    @target_return.setter
    def target_return(self, value: float | None) -> None:
        if value is not None and not np.isfinite(value):
            raise ValueError(f"target_return is {value}; it must be finite.")
        self._target_return = None if value is None else float(value)

    def update_return_to_go(
        self, return_to_go: NDArray[np.float32], reward: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return to ask for after a reward, same shape: ``clamp((R - r) / gamma)``."""
        return self.model.update_return_to_go(return_to_go, reward)

    def set_random_seed(self, seed: int) -> None:
        """Start the randomness of sampled actions anew."""
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def optimize_for_inference(
        self, weights: Weights = "float32", *, compiled: bool | None = None
    ) -> MAGEPolicy:
        """A copy of the policy that acts faster; it can be neither trained nor saved.

        Args:
            weights: see ``mage_agent.inference.optimize_for_inference``.
            compiled: see there.
        """
        return MAGEPolicy(
            optimize_for_inference(self.model, weights, compiled=compiled),
            observation_sizes=self.observation_sizes,
            target_return=self._target_return,
            seed=self.seed,
        )

    @overload
    def wrap(self, env: VecEnv, target_return: float | None = None) -> ReturnToGoVecWrapper: ...

    @overload
    def wrap(
        self, env: gym.Env[Any, Any], target_return: float | None = None
    ) -> ReturnToGoWrapper[Any]: ...

    def wrap(
        self, env: VecEnv | gym.Env[Any, Any], target_return: float | None = None
    ) -> ReturnToGoVecWrapper | ReturnToGoWrapper[Any]:
        """Give an environment the ``return_to_go`` that this policy acts on.

        Args:
            env: a Gymnasium environment, or a vectorised one of Stable-Baselines3.
            target_return: discounted return to ask for; None is the policy's ``target_return``.

        Returns:
            The wrapped environment, with the policy's discount and range of returns.

        Raises:
            ValueError: the environment's spaces are not those the policy was made for.
        """
        self._check_spaces(env.observation_space, env.action_space)
        target = self.target_return if target_return is None else target_return
        discount, limits = self.config.discount, self.model.return_to_go_range
        if isinstance(env, VecEnv):
            return ReturnToGoVecWrapper(env, target, discount=discount, return_to_go_range=limits)
        return ReturnToGoWrapper(env, target, discount=discount, return_to_go_range=limits)

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], State | None]:
        """Choose actions.

        Args:
            observation: one observation or a batch of them; its entry ``return_to_go``, shape (1,)
                or (num_envs, 1), is the return that is left to achieve.
            state: where the observation has no ``return_to_go``: the returns asked for, as returned
                by the last call; None at the start.
            episode_start: shape (num_envs,), which environments have begun an episode; their
                state is set to ``target_return``.
            deterministic: whether to act without sampling tokens (see ``code_temperature``).

        Returns:
            Actions, shape (A,) or (num_envs, A), and the state for the next call.

        Raises:
            ValueError: the observation lacks an entry, has another shape or is not finite.
        """
        if self.training or self.model.training:  # to visit every module takes a while
            self.set_training_mode(False)
        entries, single = self._entries(observation)
        count = len(next(iter(entries.values())))
        if "return_to_go" not in entries:
            asked = np.full((count, 1), self.target_return, dtype=np.float32)
            if state is not None:
                if state[0].shape != asked.shape:
                    raise ValueError(
                        f"state holds returns of shape {state[0].shape} for {count} observations; "
                        "pass what predict returned for the same environments, or None."
                    )
                start = np.zeros(count, dtype=bool) if episode_start is None else episode_start
                asked = np.where(np.reshape(start, (-1, 1)), asked, state[0])
            entries["return_to_go"] = asked
            state = (asked,)
        tensors = {key: torch.as_tensor(part, device=self.device) for key, part in entries.items()}
        actions: NDArray[np.float32] = self._predict(tensors, deterministic).cpu().numpy()
        return (actions[0] if single else actions), state

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        """Act on observation entries (B, size) and ``return_to_go`` (B, 1); actions (B, A)."""
        if self._generator.device != self.device:  # the model has moved
            self.set_random_seed(self.seed)
        return self.model.act(
            torch.cat([observation[key] for key in self.observation_sizes], dim=-1),
            observation["return_to_go"],
            temperature=0.0 if deterministic else self.config.temperature,
            generator=self._generator,
        )

    def save(self, path: str | Path) -> None:
        """Write the policy to one file, whole or not at all, that ``load`` can read.

        Raises:
            OSError: the file cannot be written.
        """
        sizes, target = self.observation_sizes, self._target_return
        extra = {"observation_sizes": sizes, "target_return": target, "seed": self.seed}
        save_model(self.model, path, extra=extra)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "auto") -> MAGEPolicy:
        """Read a policy; nothing in the file is executed.

        Args:
            path: file written by ``save``.
            device: "auto" takes a GPU where there is one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or no MAGE checkpoint, or lacks what a policy needs.
        """
        model, extra = load_model(path, find_device(device))
        known = ("observation_sizes", "target_return", "seed")
        with usable(path, "policy"):
            return cls(model, **{key: extra[key] for key in known if key in extra})

    def _entries(self, observation: Any) -> tuple[dict[str, NDArray[np.float32]], bool]:
        """Check an observation; return its entries as batches, and whether it is a single one."""
        if isinstance(observation, tuple):
            raise ValueError(
                "the observation is a tuple; env.reset() of Gymnasium returns (observation, info), "
                "venv.reset() of Stable-Baselines3 the observation. Pass the observation alone."
            )
        given = self._named(observation)
        sizes = dict(self.observation_sizes)
        if "return_to_go" in given:
            sizes["return_to_go"] = 1
        missing = [key for key in sizes if key not in given]
        if missing:
            raise ValueError(
                f"the observation has the entries {list(given)}; the policy needs {list(sizes)}."
            )
        entries = {key: np.asarray(given[key], dtype=np.float32) for key in sizes}
        batch = next(iter(entries.values())).shape[:-1]
        shapes = {key: part.shape for key, part in entries.items()}
        if len(batch) > 1 or shapes != {key: (*batch, size) for key, size in sizes.items()}:
            raise ValueError(
                f"the observation has the shapes {shapes}; "
                f"expected are { {key: (size,) for key, size in sizes.items()} }, or the same with "
                "the number of environments in front."
            )
        infinite = [key for key, part in entries.items() if not np.isfinite(part).all()]
        if infinite:
            raise ValueError(f"the observation entries {infinite} are not finite: {entries}.")
        return {key: part.reshape(-1, sizes[key]) for key, part in entries.items()}, not batch

    def _check_spaces(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        """Compare an environment's spaces with the policy's."""
        own = self.action_space
        if not isinstance(action, spaces.Box):
            raise ValueError(
                f"the environment's action space is {action}; the policy's actions are "
                f"continuous, {own}, and so must be the environment's."
            )
        bounds = (action.low.astype(np.float32), action.high.astype(np.float32))  # as own are
        if action.shape != own.shape or (own.low < bounds[0]).any() or (own.high > bounds[1]).any():
            raise ValueError(
                f"the environment's action space is {action}, but the policy's actions lie in "
                f"{own}; use the environment the data comes from, or load the data with its "
                "action_low and action_high."
            )
        found = self._named(observation)
        for key, size in self.observation_sizes.items():
            if key not in found or found[key].shape != (size,):
                raise ValueError(
                    f"the environment's observation space is {observation}; the policy needs the "
                    f"entries {self.observation_sizes} (name: size)."
                )

    def _named(self, entries: Any) -> dict[str, Any]:
        """A lone observation, or a lone space, stands for the policy's first entry.

        Wrappers, which do not know the policy's name for a lone one, call it "observation".
        """
        first = next(iter(self.observation_sizes))
        if not isinstance(entries, Mapping):
            return {first: entries}
        named = dict(entries)
        if len(self.observation_sizes) == 1 and first not in named and "observation" in named:
            named[first] = named.pop("observation")
        return named


class _StopTrainingError(Exception):
    """A callback asked to stop."""


class _CallbackAdapter:
    """What Stable-Baselines3's callbacks expect of an algorithm, around training on a dataset."""

    num_timesteps = 0

    def __init__(self, policy: MAGEPolicy, callback: BaseCallback, log_dir: Any) -> None:
        self.policy, self.callback = policy, callback
        self.predict, self.save = policy.predict, policy.save
        self.logger = configure(str(log_dir), ["tensorboard"]) if log_dir else Logger(None, [])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Training and eval env are not of the same type")
            callback.init_callback(cast(Any, self))
        callback.on_training_start(locals(), globals())

    def get_env(self) -> object:
        """Training has no environment; callbacks ask only in order to compare it with theirs."""
        return self

    def get_vec_normalize_env(self) -> None:
        """There are no statistics to keep in step: the model holds its own."""

    def __call__(self, progress: Progress) -> None:
        """Pass a step of the second or third stage on to the callback."""
        if progress.stage == "tokenizer":
            return
        before = 0 if progress.stage == "generator" else self.policy.config.generator_steps
        self.num_timesteps = before + progress.step
        goes_on = self.callback.on_step()
        self.policy.set_training_mode(True)  # predict has switched dropout off
        if not goes_on:
            raise _StopTrainingError
