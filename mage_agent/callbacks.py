"""Stable-Baselines3's callbacks around training on a dataset."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.policies import BasePolicy

from mage_agent.training import Progress

__all__ = ["Callback", "CallbackAdapter"]

Callback: TypeAlias = (
    BaseCallback | Sequence[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None
)
"""As the ``learn`` of Stable-Baselines3 takes it: a callback, a list of them, or a function of the
local and global variables that returns False to stop."""


class CallbackAdapter:
    """What callbacks expect of an algorithm, around the training of a policy.

    Training starts, to callbacks, when the agent can act. A "step" is a logged one (one in 50), and
    ``num_timesteps`` counts gradient steps. What callbacks ask of an algorithm besides (``device``,
    ``predict``, ``save``, ...) is the policy's.

    Args:
        policy: the policy that is trained.
        callback: what ``learn`` was given.
        log_dir: folder for TensorBoard logs of what callbacks record, or None.

    Raises:
        TypeError: the callback is none of what is allowed.
    """

    num_timesteps = 0
    num_envs = 0
    """Gradient steps since the last call, by which progress bars advance."""

    def __init__(
        self, policy: BasePolicy, callback: Callback, log_dir: str | Path | None = None
    ) -> None:
        self.policy = policy
        self._started = False
        self.logger = configure(str(log_dir), ["tensorboard"]) if log_dir else Logger(None, [])
        if isinstance(callback, list | tuple):
            callback = CallbackList(list(callback))
        elif callable(callback) and not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        if not isinstance(callback, BaseCallback) or (
            isinstance(callback, CallbackList)
            and not all(isinstance(each, BaseCallback) for each in callback.callbacks)
        ):
            raise TypeError(
                f"callback is {callback!r}; it must be a callback of Stable-Baselines3, a list of "
                "them, or a function of (locals, globals)."
            )
        self.callback = callback
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Training and eval env are not of the same type")
            callback.init_callback(cast(Any, self))

    def __getattr__(self, name: str) -> Any:
        """Every other attribute is the policy's."""
        return getattr(self.policy, name)

    def get_env(self) -> object:
        """Training has no environment; callbacks ask only in order to compare it with theirs."""
        return self

    def get_vec_normalize_env(self) -> None:
        """There are no statistics to keep in step: the agent holds its own."""

    def __call__(self, progress: Progress) -> bool:
        """Pass a step on to the callback; False where it asks to stop."""
        if not progress.acts:
            return True
        if not self._started:
            self._started = True
            total = progress.total - progress.before
            self.callback.on_training_start({"total_timesteps": total}, globals())
        self.callback.update_locals({"stage": progress.stage, "metrics": progress.metrics})
        done = progress.done - progress.before
        self.num_envs, self.num_timesteps = done - self.num_timesteps, done
        return bool(self.callback.on_step())

    def end(self) -> None:
        """Training is over; callbacks that have not seen it begin are not told."""
        if self._started:
            self.callback.on_training_end()
