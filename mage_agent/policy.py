"""Agents as Stable-Baselines3 policies, trained on a dataset instead of an environment."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast, overload

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from mage_agent.agent import Agent
from mage_agent.callbacks import Callback, CallbackAdapter
from mage_agent.checkpoint import File, usable
from mage_agent.checkpoint import load as load_agent
from mage_agent.checkpoint import save as save_agent
from mage_agent.compatibility import check_target
from mage_agent.config import Config
from mage_agent.data import as_dataset
from mage_agent.entries import check_actions, check_observes, check_spaces, read_entries
from mage_agent.envs import ReturnToGoVecWrapper, ReturnToGoWrapper
from mage_agent.hardware import find_device
from mage_agent.memory import from_arrays, to_arrays
from mage_agent.online import OnlineStage, learn_online
from mage_agent.rewards import single_target
from mage_agent.training import fit

if TYPE_CHECKING:
    from tensordict import TensorDict, TensorDictBase

__all__ = ["AgentPolicy"]

State = tuple[NDArray[Any], ...]


class AgentPolicy(BasePolicy):
    """A policy that learns from a dataset, and acts for the return it is asked for.

    It works wherever Stable-Baselines3 takes a policy: ``predict``, ``evaluate_policy``,
    ``EvalCallback``, ``save`` and ``load``; it needs no algorithm of that library around it.
    Observations and actions are in environment units; Box and flat Dict observations, single and
    vectorised, are all right, and further entries of a Dict are ignored.

    ``predict`` never sees a reward. The return that is left to achieve is therefore part of the
    observation, which ``wrap(env)`` adds. **Without it the policy asks for ``target_return`` at
    every step**, which suits sparse rewards and is wrong for dense ones.

    Args:
        model: the agent that acts; shared, not copied.
        target_return: discounted return to ask for. None is the agent's default,
            ``model.units.default_target``: that of the data's best episode (or another quantile,
            ``config.target_quantile``), or 1e30, the best from every state, of models with values.
        seed: of training, and of sampled actions.

    Raises:
        TypeError: the agent is another one than the class is for, or the target is no number.
        ValueError: the target is not finite.
    """

    agent_class: ClassVar[type[Agent]] = Agent  # type: ignore[type-abstract]
    """Which agents the class takes, and which one ``from_dataset`` builds."""
    action_space: spaces.Box
    model: Agent

    def __init__(self, model: Agent, *, target_return: float | None = None, seed: int = 0) -> None:
        if not isinstance(model, self.agent_class):
            raise TypeError(
                f"model is a {type(model).__name__}; {type(self).__name__} drives a "
                f"{self.agent_class.__name__}."
            )
        units, sizes = model.units, model.observation_sizes
        actions = spaces.Box(units.action_low.cpu().numpy(), units.action_high.cpu().numpy())
        boxes: dict[str, spaces.Space[Any]] = {
            key: spaces.Box(-np.inf, np.inf, (size,)) for key, size in sizes.items()
        }
        observed = next(iter(boxes.values())) if len(boxes) == 1 else spaces.Dict(boxes)
        super().__init__(observed, actions, normalize_images=False)
        self.model = model
        self.seed = operator.index(seed)  # NumPy's integers, too
        self._target_return = None if target_return is None else single_target(target_return)
        check_target(self.model, target_return if self.told_return else None)
        self.set_random_seed(seed)
        self._dataset: TensorDictBase | None = None

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        config: Config | str,
        *,
        device: str | torch.device = "auto",
        seed: int = 0,
    ) -> Self:
        """Build an untrained policy that fits a dataset.

        Args:
            dataset: anything that ``load_dataset`` takes, such as a Minari id, or what it returns.
            config: the configuration, or the name of a preset; without ``observation_keys``, all
                observation entries of the dataset are taken.
            device: "auto" takes a GPU where there is one.
            seed: of the initial weights, of training, and of sampled actions.

        Raises:
            FileNotFoundError: the dataset is not there.
            KeyError, TypeError: the dataset or the configuration is of another kind.
            ValueError: the dataset lacks an observation entry, there is no such preset, or a GPU is
                asked for where there is none.
        """
        loaded = as_dataset(dataset)
        model = cls.agent_class.from_dataset(loaded, config, seed=seed).to(find_device(device))
        policy = cls(model, seed=seed)
        policy._dataset = loaded
        return policy

    def learn(
        self,
        dataset: Any = None,
        *,
        progress_bar: bool = True,
        steps: int | None = None,
        seed: int | None = None,
        callback: Callback = None,
        log_dir: str | Path | None = None,
        checkpoint_path: str | Path | None = None,
        checkpoint_interval: int = 1000,
        resume: bool = False,
        compiled: bool = False,
    ) -> Self:
        """Train all stages on a dataset.

        Args:
            dataset: anything that ``load_dataset`` takes; None is the dataset that the policy was
                built from.
            progress_bar: whether to show one.
            steps: gradient steps in all, shared out among the stages; None takes the
                configuration's.
            seed: of the training; None is the policy's.
            callback: what Stable-Baselines3's ``learn`` takes: a callback such as
                ``EvalCallback(policy.wrap(env))``, a list of them, or a function. A "step" is one
                in 50 gradient steps of the stages in which the agent can act already, and
                ``num_timesteps`` counts gradient steps. Training ends early when it returns False.
            log_dir: folder for TensorBoard logs, of the callback's records, too.
            checkpoint_path: file that keeps the state of training.
            checkpoint_interval: steps between two checkpoints.
            resume: go on from ``checkpoint_path`` if it exists.
            compiled: whether to compile the losses; see ``mage_agent.fit``.

        Returns:
            The policy itself.

        Raises:
            KeyError, TypeError: the dataset or the callback is of another kind.
            ValueError: the dataset does not fit the policy, or the checkpoint this run.
            OSError: the checkpoint cannot be written.
            TrainingError: a loss, its gradient or a weight is not finite.
        """
        if isinstance(dataset, int):
            raise TypeError(
                f"learn({dataset}) looks like a number of steps; policies here learn from a "
                "dataset: learn(dataset, steps=...)."
            )
        loaded = self._dataset if dataset is None else as_dataset(dataset)
        if loaded is None:
            raise ValueError("the policy was not built from a dataset; give one to learn from.")
        adapter = None if callback is None else CallbackAdapter(self, callback, log_dir)
        fit(
            self.model,
            loaded,
            seed=self.seed if seed is None else seed,
            steps=steps,
            device=self.device,
            progress_bar=progress_bar,
            log_dir=log_dir,
            checkpoint_path=checkpoint_path,
            checkpoint_interval=checkpoint_interval,
            resume=resume,
            compiled=compiled,
            callback=adapter,
        )
        self.set_training_mode(False)
        if adapter is not None:
            adapter.end()
        return self

    def learn_online(
        self, make_env: Callable[[], gym.Env[Any, Any]], dataset: Any = None, **options: Any
    ) -> list[OnlineStage]:
        """Collect episodes and learn from all data, in stages; see ``mage_agent.learn_online``.

        Args:
            make_env: makes one environment with the dataset's observations and actions.
            dataset: what the policy was trained on; None is what it was built from.
            **options: of ``mage_agent.learn_online``.

        Returns:
            What each stage came to.

        Raises:
            ValueError: there is no dataset, or see ``mage_agent.learn_online``.
        """
        loaded = self._dataset if dataset is None else as_dataset(dataset)
        if loaded is None:
            raise ValueError("the policy was not built from a dataset; give the one it knows.")
        return learn_online(self, make_env, dataset=loaded, **options)

    @property
    def config(self) -> Config:
        """The agent's configuration."""
        return self.model.config

    @property
    def told_return(self) -> bool:
        """Whether actions depend on the return that is asked for."""
        return self.model.told_return

    @property
    def target_return(self) -> float:
        """Discounted return to ask for at the start of an episode, in the dataset's units.

        A number, or None for the agent's default. Wrapped environments keep that of their time.
        """
        target = self._target_return
        return self.model.units.default_target if target is None else target

    @target_return.setter
    def target_return(self, value: float | None) -> None:
        self._target_return = None if value is None else single_target(value)
        check_target(self.model, value, for_later=True)

    def update_return_to_go(
        self, return_to_go: ArrayLike, reward: ArrayLike
    ) -> NDArray[np.float32]:
        """``clamp((R - r) / gamma)``; rewards (num_envs,) fit returns (num_envs, 1), too."""
        left, gained = np.asarray(return_to_go, np.float32), np.asarray(reward, np.float32)
        fits = gained.shape in (left.shape, left.shape[:-1]) or gained.size == left.size == 1
        if not fits or not np.isfinite(gained).all():
            raise ValueError(f"{reward!r} are no finite rewards, one for each of {return_to_go!r}.")
        return self.model.units.update_return_to_go(left, gained.reshape(left.shape))

    def set_random_seed(self, seed: int) -> None:
        """Seed the sampling of actions."""
        self._generator = torch.Generator(self.device).manual_seed(operator.index(seed))

    def optimize_for_inference(self, weights: str = "float32", *, compiled: bool = False) -> Self:
        """A copy of the policy that acts faster; it can be neither trained nor saved.

        Args:
            weights: of the agent's own choices; MAGE: ``mage_agent.optimize_for_inference``.
            compiled: whether to compile deterministic acting, at its first call.

        Raises:
            ValueError: this agent has no faster copy, or not with these weights.
        """
        fast = self.model.optimize_for_inference(weights, compiled=compiled)
        return type(self)(fast, target_return=self._target_return, seed=self.seed)

    def check_env(self, env: gym.Env[Any, Any] | VecEnv, target_return: float | None) -> None:
        """Can the policy act in this environment, asked for this return? As ``wrap`` checks it."""
        check_observes(env)
        sizes = self.model.observation_sizes
        check_spaces(env.observation_space, env.action_space, sizes, self.action_space)
        check_target(self.model, target_return)

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
            ValueError: the environment's spaces are not those the policy was made for, or the agent
                does not heed the target (a warning tells of normalised observations).
        """
        self.check_env(env, target_return)
        target = self.target_return if target_return is None else target_return
        discount, limits = self.config.discount, self.model.units.return_to_go_range
        if isinstance(env, VecEnv):
            return ReturnToGoVecWrapper(env, target, discount=discount, return_to_go_range=limits)
        return ReturnToGoWrapper(env, target, discount=discount, return_to_go_range=limits)

    @torch.inference_mode(False)
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
                or (num_envs, 1), is the return that is left to achieve, ``target_return`` where
                there is none.
            state: what the last call returned for the same environments; None at the start.
            episode_start: shape (num_envs,), which environments have begun an episode; their
                memory is emptied.
            deterministic: whether to act without sampling.

        Returns:
            Actions, shape (A,) or (num_envs, A), and the state for the next call, which is None
            where the agent keeps no memory.

        Raises:
            ValueError: the observation lacks an entry, has another shape or is not finite, the
                state is that of other environments, or no finite action comes of them.
        """
        if self.training or self.model.training:  # to visit every module takes a while
            self.set_training_mode(False)
        entries, single = read_entries(
            observation, self.model.observation_sizes, told_return=self.told_return
        )
        count = len(next(iter(entries.values())))
        memory = from_arrays(self.model.initial_state(count), state, episode_start)
        tensors = {key: torch.as_tensor(part, device=self.device) for key, part in entries.items()}
        action, memory = self._decide(tensors, memory, deterministic)
        actions: NDArray[np.float32] = action.cpu().numpy()
        check_actions(actions, (count, self.model.action_dim), observation, self.target_return)
        return actions[0] if single else actions, None if memory is None else to_arrays(memory)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        """Actions (B, A) for observation entries (B, size), at the first step of an episode."""
        count = len(next(iter(observation.values())))
        return self._decide(observation, self.model.initial_state(count), deterministic)[0]

    @torch.no_grad()
    def _decide(
        self, entries: Mapping[str, Tensor], memory: TensorDict | None, deterministic: bool
    ) -> tuple[Tensor, TensorDict | None]:
        """Actions (B, A) for observation entries (B, size) and ``return_to_go`` (B, 1)."""
        if self._generator.device != self.device:  # the model has moved
            self.set_random_seed(self.seed)
        observation = self.model.units.concatenate(entries)
        asked = entries.get("return_to_go")
        if asked is None:
            asked = observation.new_full((len(observation), 1), self.target_return)
        return self.model.decide(
            observation,
            asked,
            memory,
            temperature=0.0 if deterministic else self.config.temperature,
            generator=self._generator,
        )

    def save(self, path: File) -> None:
        """Write the policy to one file, whole or not at all, that ``load`` can read.

        Args:
            path: the file, or a binary file open for writing.

        Raises:
            OSError: the file cannot be written.
        """
        extra = {"target_return": self._target_return, "seed": self.seed}
        save_agent(self.model, path, extra=extra)

    @classmethod
    def load(cls, path: File, device: str | torch.device = "auto") -> Self:
        """Read a policy, ``AgentPolicy`` one of any agent; nothing in the file is executed.

        Args:
            path: file written by ``save``, or a binary file open for reading.
            device: "auto" takes a GPU where there is one.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: the file holds another agent than the class is for.
            ValueError: the file is damaged, no checkpoint of mage_agent, or none of a policy.
        """
        model, extra = load_agent(path, find_device(device))
        known = {key: extra[key] for key in ("target_return", "seed") if key in extra}
        if not isinstance(model, cls.agent_class):
            raise TypeError(
                f"{path} holds the agent {model.name!r}, a {type(model).__name__}; {cls.__name__} "
                f"drives a {cls.agent_class.__name__}, AgentPolicy any."
            )
        kind = model.policy_class if cls is AgentPolicy else None
        with usable(path, "policy"):
            return cast("type[Self]", kind or cls)(model, **known)
