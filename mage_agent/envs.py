"""Return-to-go for environments: what a return-conditioned policy needs and no environment offers.

A policy never sees a reward, neither in TorchRL nor in Stable-Baselines3. The transform and the
wrappers here therefore track the return-to-go: they start an episode at the target return R_0 and,
after every step, write ``R <- clamp((R - r) / discount, low, high)`` into the observation. All
three apply the same rule, `mage_agent.types.next_return_to_go`, in float32, so that an episode
gives the same numbers whichever library drives it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, SupportsFloat, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from tensordict import NestedKey, TensorDictBase
from tensordict.utils import expand_as_right
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs.transforms import Compose, TargetReturn, VecNorm, VecNormV2
from torchrl.envs.transforms.utils import _get_reset

from mage_agent.rewards import check_own_rewards, single_reward, with_return_to_go
from mage_agent.types import next_return_to_go

__all__ = ["DiscountedTargetReturn", "ReturnToGoVecWrapper", "ReturnToGoWrapper"]

DEFAULT_DISCOUNT = 0.99
UNBOUNDED = (-math.inf, math.inf)
KEY = "return_to_go"

ActType = TypeVar("ActType")
ObservationDict = dict[str, Any]


class DiscountedTargetReturn(TargetReturn):  # type: ignore[misc]
    r"""Writes the return-to-go of a discounted target into a TorchRL environment.

    TorchRL's own ``TargetReturn`` subtracts the reward but does not divide by the discount, which
    is right only for undiscounted returns. This one follows :math:`R_t = r_t + \gamma R_{t+1}`:
    the entry ``return_to_go``, shape (\*B, 1), is the target after a reset, of the whole batch or
    of the environments that were reset, and :math:`\mathrm{clamp}((R - r) / \gamma)` after a step.

    Args:
        target_return: discounted return asked for at the start of an episode; a number, or one
            number per environment, of the environment's batch shape \*B or (\*B, 1).
        discount: discount factor in (0, 1], that of the agent, ``model.config.discount``: 0.99 in
            MAGE's presets but ``antmaze`` (0.998), 1 in GAC's.
        return_to_go_range: smallest and largest return-to-go a step may lead to, usually
            ``model.units.return_to_go_range``; the target itself is used as given.
        in_keys: reward entry; defaults to the environment's only one.
        out_keys: entry to write; defaults to ``return_to_go``.
        reset_key: entry that marks partial resets; defaults to the environment's only one.

    Raises:
        ValueError: a number is out of its range, or the targets do not fit the environment.

    Examples:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), DiscountedTargetReturn(-200.0))
        >>> env.reset()["return_to_go"]
        tensor([-200.])
    """

    def __init__(
        self,
        target_return: float | Sequence[float] | NDArray[Any] | Tensor,
        *,
        discount: float = DEFAULT_DISCOUNT,
        return_to_go_range: tuple[float, float] = UNBOUNDED,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        reset_key: NestedKey | None = None,
    ) -> None:
        target = torch.as_tensor(target_return, dtype=torch.float32)
        _check(target.detach().cpu().numpy(), discount, return_to_go_range)
        super().__init__(
            target,
            in_keys=in_keys,
            out_keys=[KEY] if out_keys is None else out_keys,
            reset_key=reset_key,
        )
        self.discount = discount
        self.low, self.high = return_to_go_range

    def __repr__(self) -> str:  # torchrl's own asks for keys that only an environment settles
        target, limits = self.target_return.tolist(), (self.low, self.high)
        return (
            f"{type(self).__name__}({target}, discount={self.discount}, "
            f"return_to_go_range={limits})"
        )

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        reset = _get_reset(self.reset_key, tensordict)
        for key in self.out_keys:
            target = self._target(tensordict_reset)
            before = tensordict.get(key, None)
            if before is not None:
                target = torch.where(expand_as_right(reset, before), target, before)
            tensordict_reset.set(key, target)
        return tensordict_reset

    def _target(self, tensordict: TensorDictBase) -> Tensor:
        """Return the targets of a whole batch, shape (*B, 1)."""
        batch = tensordict.batch_size
        target: Tensor = self.target_return.to(tensordict.device or "cpu")
        if target.ndim == 0:
            return target.expand(*batch, 1).clone()
        if target.shape not in (batch, (*batch, 1)):
            raise ValueError(
                f"target_return has shape {tuple(target.shape)}, but the environment's batch size "
                f"is {tuple(batch)}; give one number, or one per environment."
            )
        return target.reshape(*batch, 1).clone()

    def _apply_transform(self, reward: Tensor, target_return: Tensor) -> Tensor:
        if target_return.shape != reward.shape:
            raise ValueError(
                f"the reward has shape {tuple(reward.shape)} and the return-to-go "
                f"{tuple(target_return.shape)}; DiscountedTargetReturn handles one reward per "
                "environment, of shape (*batch, 1)."
            )
        _check_reward(reward.detach().cpu().numpy())
        left: Tensor = next_return_to_go(
            target_return,
            reward.to(target_return.dtype),
            discount=self.discount,
            low=self.low,
            high=self.high,
        )
        return left

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add the return-to-go, float32 whatever the reward's type, to the specification."""
        before = getattr(self.parent, "transform", Compose())
        for transform in before if isinstance(before, Compose) else [before]:
            if isinstance(transform, (VecNorm, VecNormV2)) and (
                {*transform.out_keys} & {*self.in_keys}
            ):
                raise ValueError(
                    f"{type(transform).__name__} normalises {self.in_keys} before this transform "
                    "reads them; put it behind, since returns are tracked in the environment's own "
                    "rewards."
                )
        for in_key, out_key in zip(self.in_keys, self.out_keys, strict=True):
            reward_spec = self.parent.full_reward_spec[in_key]
            observation_spec[out_key] = Unbounded(
                shape=reward_spec.shape, dtype=torch.float32, device=reward_spec.device
            )
        return observation_spec


class ReturnToGoWrapper(gym.Wrapper[ObservationDict, ActType, Any, ActType], RecordConstructorArgs):
    """Adds ``return_to_go`` to the observation of a Gymnasium environment.

    A Box observation becomes ``{"observation": ..., "return_to_go": ...}``; a flat Dict keeps its
    keys and gains one. Rewards, flags and infos pass through. ``MAGEPolicy.wrap(env)`` fills in all
    arguments from a trained policy.

    Args:
        env: environment with a Box observation or a flat Dict of them.
        target_return: discounted return asked for at the start of every episode.
        discount: discount factor in (0, 1], that of the agent, ``model.config.discount``: 0.99 in
            MAGE's presets but ``antmaze`` (0.998), 1 in GAC's.
        return_to_go_range: smallest and largest return-to-go a step may lead to, usually
            ``model.units.return_to_go_range``; unbounded by default.

    Raises:
        TypeError: the observation space is neither a Box nor a flat Dict of them.
        ValueError: a number is out of its range, ``return_to_go`` is already there, or the rewards
            of the environment are normalised.

    Examples:
        >>> env = ReturnToGoWrapper(gym.make("Pendulum-v1"), target_return=-200.0)
        >>> observation, info = env.reset(seed=0)
        >>> observation["return_to_go"]
        array([-200.], dtype=float32)
    """

    def __init__(
        self,
        env: gym.Env[Any, ActType],
        target_return: float,
        *,
        discount: float = DEFAULT_DISCOUNT,
        return_to_go_range: tuple[float, float] = UNBOUNDED,
    ) -> None:
        RecordConstructorArgs.__init__(
            self,
            target_return=target_return,
            discount=discount,
            return_to_go_range=return_to_go_range,
        )
        super().__init__(env)
        check_own_rewards(env)
        target = np.asarray(target_return, dtype=np.float32)
        _check(target, discount, return_to_go_range)
        if target.size != 1:
            raise ValueError(
                f"target_return has shape {target.shape}; a single environment takes one number."
            )
        self.observation_space = _extended_space(env.observation_space)
        self.target_return = target.item()
        self.discount = discount
        self.low, self.high = return_to_go_range
        self._return_to_go = target.reshape(1)
        self._over, self._resets = False, False  # by itself
        while isinstance(env, gym.Wrapper):
            self._resets = self._resets or isinstance(env, gym.wrappers.Autoreset)
            env = env.env

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationDict, dict[str, Any]]:
        """Start an episode at the target return."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._return_to_go = np.full(1, self.target_return, dtype=np.float32)
        self._over = False
        return with_return_to_go(observation, self._return_to_go), info

    def step(
        self, action: ActType
    ) -> tuple[ObservationDict, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and subtract the reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        left = next_return_to_go(
            self._return_to_go,
            np.full(1, single_reward(reward), dtype=np.float32),
            discount=self.discount,
            low=self.low,
            high=self.high,
        )
        # After an end, gymnasium.wrappers.Autoreset steps to the beginning of the next episode.
        self._return_to_go = np.full_like(left, self.target_return) if self._over else left
        self._over = self._resets and bool(terminated or truncated)
        entries = with_return_to_go(observation, self._return_to_go)
        return entries, reward, terminated, truncated, info


class ReturnToGoVecWrapper(VecEnvWrapper):
    """Adds ``return_to_go`` to the observations of a Stable-Baselines3 vectorised environment.

    A Box observation becomes ``{"observation": ..., "return_to_go": ...}``; a flat Dict keeps its
    keys and gains one. Every environment starts again at its target when it resets, and the
    ``terminal_observation`` in the infos holds the return-to-go that was left. Returns are tracked
    in the environment's own rewards, also around a ``VecNormalize``. One around this wrapper must
    not normalise the return-to-go (``norm_obs_keys``).

    Args:
        venv: vectorised environment with a Box observation or a flat Dict of them.
        target_return: discounted return asked for at the start of every episode; a number, or one
            per environment, shape (num_envs,).
        discount: discount factor in (0, 1], that of the agent, ``model.config.discount``: 0.99 in
            MAGE's presets but ``antmaze`` (0.998), 1 in GAC's.
        return_to_go_range: smallest and largest return-to-go a step may lead to, usually
            ``model.units.return_to_go_range``; unbounded by default.

    Raises:
        TypeError: the observation space is neither a Box nor a flat Dict of them.
        ValueError: a number is out of its range, ``return_to_go`` is already there, or the rewards
            of an environment within are normalised.

    Examples:
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> venv = ReturnToGoVecWrapper(make_vec_env("Pendulum-v1", n_envs=2), -200.0)
        >>> venv.reset()["return_to_go"].shape
        (2, 1)
    """

    def __init__(
        self,
        venv: VecEnv,
        target_return: float | ArrayLike,
        *,
        discount: float = DEFAULT_DISCOUNT,
        return_to_go_range: tuple[float, float] = UNBOUNDED,
    ) -> None:
        target = np.asarray(target_return, dtype=np.float32)
        _check(target, discount, return_to_go_range)
        if target.shape not in ((), (venv.num_envs,), (venv.num_envs, 1)):
            raise ValueError(
                f"target_return has shape {target.shape}, but there are {venv.num_envs} "
                "environments; give one number, or one per environment."
            )
        super().__init__(venv, observation_space=_extended_space(venv.observation_space))
        if any(venv.env_is_wrapped(gym.wrappers.NormalizeReward)):
            raise ValueError(
                "the environments are wrapped in NormalizeReward, so that their rewards are not "
                "their own; use Stable-Baselines3's VecNormalize, which keeps those."
            )
        shape = (venv.num_envs, 1)
        self.target_return: NDArray[np.float32] = np.broadcast_to(
            target.reshape(-1, 1), shape
        ).copy()
        self.discount = discount
        self.low, self.high = return_to_go_range
        self._return_to_go = self.target_return.copy()

    def reset(self) -> VecEnvObs:
        """Start all episodes at their targets."""
        observation = self.venv.reset()
        self._return_to_go = self.target_return.copy()
        return with_return_to_go(observation, self._return_to_go)

    def step_wait(self) -> VecEnvStepReturn:
        """Step, subtract the rewards, and start finished episodes at their targets again."""
        observation, reward, done, given = self.venv.step_wait()
        infos = list(given)  # SubprocVecEnv has a tuple
        normalizer = unwrap_vec_normalize(self.venv)
        own = reward if normalizer is None else normalizer.get_original_reward()
        _check_reward(own)
        left = next_return_to_go(
            self._return_to_go,
            own.astype(np.float32)[:, None],
            discount=self.discount,
            low=self.low,
            high=self.high,
        )  # (num_envs, 1)
        for i in np.flatnonzero(done):
            if "terminal_observation" in infos[i]:
                terminal = with_return_to_go(infos[i]["terminal_observation"], left[i])
                infos[i] = {**infos[i], "terminal_observation": terminal}
        # The observations of finished environments are already those of their next episodes.
        self._return_to_go = np.where(done[:, None], self.target_return, left)
        return with_return_to_go(observation, self._return_to_go), reward, done, infos

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the base class's record of its class members, which cannot be pickled."""
        return {k: v for k, v in self.__dict__.items() if k != "class_attributes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` left out."""
        self.__dict__.update(state)
        self.class_attributes = dict(inspect.getmembers(self.__class__))


def _check(
    target: NDArray[np.float32], discount: float, return_to_go_range: tuple[float, float]
) -> None:
    """Refuse numbers that no return-to-go can follow."""
    if not np.isfinite(target).all():
        raise ValueError(f"target_return is {target.tolist()}; it must be finite.")
    if not 0 < discount <= 1:
        raise ValueError(f"discount is {discount}; it must lie in (0, 1].")
    low, high = return_to_go_range
    if not low <= high:
        raise ValueError(
            f"return_to_go_range is {return_to_go_range}; the first number, the smallest "
            "return-to-go, must not exceed the second."
        )


def _check_reward(reward: NDArray[Any]) -> None:
    """Refuse a reward that would leave no return-to-go to follow."""
    bad = reward[~np.isfinite(reward)]
    if bad.size:
        raise ValueError(
            f"the environment returned the reward {bad.flat[0]}, which is not finite; a simulation "
            "that diverges cannot be followed."
        )


def _extended_space(space: spaces.Space[Any]) -> spaces.Dict:
    """Return the observation space with the return-to-go added."""
    entries: dict[str, spaces.Space[Any]] = {}
    if isinstance(space, spaces.Box):
        entries = {"observation": space}
    elif isinstance(space, spaces.Dict):
        entries = dict(space.spaces)
    if not entries or not all(isinstance(entry, spaces.Box) for entry in entries.values()):
        raise TypeError(
            f"the observation space is {space}; allowed are a Box, or a Dict of Boxes. Leave the "
            "other entries out with gymnasium.wrappers.FilterObservation, or flatten them with "
            "gymnasium.wrappers.FlattenObservation."
        )
    if KEY in entries:
        raise ValueError(
            f"the observation space already has an entry {KEY!r}: {list(entries)}; the environment "
            "seems to be wrapped twice."
        )
    return spaces.Dict({**entries, KEY: spaces.Box(-np.inf, np.inf, (1,), np.float32)})
