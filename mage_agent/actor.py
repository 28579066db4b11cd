"""MAGE as a TorchRL actor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from tensordict import NestedKey
from torch import Tensor, nn
from torchrl.data import Composite, TensorSpec
from torchrl.envs.transforms import Compose, DoubleToFloat, InitTracker, RewardSum
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import SafeModule

from mage_agent.envs import DiscountedTargetReturn
from mage_agent.model import MAGEModel

__all__ = ["MAGEActor"]

# torchrl maps the older MODE and MEAN to what a policy without a distribution can offer.
_DETERMINISTIC = (ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.MEAN)


class MAGEActor(SafeModule):  # type: ignore[misc]
    r"""Acts by MAGE: ``observation``, ``return_to_go`` -> ``action``.

    The actor is memoryless: the return that is left to achieve lives in the tensordict, where the
    environment's ``DiscountedTargetReturn`` keeps it (`make_env_transforms`), so that batched
    environments, partial resets and collectors need nothing else. Any leading batch shape \*B
    works. Entries are in environment units.

    ``set_exploration_type(ExplorationType.DETERMINISTIC)`` samples no tokens; any other
    exploration type, and none, samples them with ``config.temperature``, as ``DiffusionActor``
    does. The model acts without dropout and without gradients, also while it is being trained.

    Args:
        model: the model that acts; shared, not copied.
        in_keys: the observation entries in the order of ``config.observation_keys``, then the
            return-to-go; defaults to ``[*config.observation_keys, "return_to_go"]``. Each
            observation has shape (\*B, its size), and the sizes add up to S; the return-to-go has
            shape (\*B, 1).
        out_keys: the action entry, shape (\*B, A); defaults to ``["action"]``.
        spec: specification of the action, usually ``env.action_spec``.
        generator: source of the samples' randomness; None is torch's own, which
            ``torch.manual_seed`` seeds.

    Raises:
        ValueError: the keys are too few or too many, or ``spec`` is not that of A continuous
            actions; when called, an entry is not finite.

    Examples:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> model = MAGEModel(MAGEConfig.preset("small"), observation_dim=3, action_dim=1)
        >>> actor = MAGEActor(model)
        >>> transforms = actor.make_env_transforms(target_return=-200.0)
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), transforms)
        >>> env.rollout(10, actor)["action"].shape
        torch.Size([10, 1])
    """

    def __init__(
        self,
        model: MAGEModel,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        spec: TensorSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        observation_keys = model.config.observation_keys
        in_keys = [*observation_keys, "return_to_go"] if in_keys is None else list(in_keys)
        out_keys = ["action"] if out_keys is None else list(out_keys)
        if len(in_keys) != len(observation_keys) + 1 or len(out_keys) != 1:
            raise ValueError(
                f"in_keys is {in_keys} and out_keys is {out_keys}; the model needs one entry for "
                f"each of {observation_keys}, then the return-to-go, and writes one action."
            )
        if spec is not None:
            spec = spec if isinstance(spec, Composite) else Composite({out_keys[0]: spec})
            action_spec = spec[out_keys[0]]
            size = action_spec.shape[-1] if action_spec.shape else None
            if not action_spec.dtype.is_floating_point or size != model.action_dim:
                raise ValueError(
                    f"spec is {action_spec}; the model writes {model.action_dim} continuous "
                    "actions along the last axis."
                )
        super().__init__(_Act(model, generator), in_keys=in_keys, out_keys=out_keys, spec=spec)

    @property
    def model(self) -> MAGEModel:
        """The model that acts."""
        model: MAGEModel = self.module.model
        return model

    def make_env_transforms(
        self, target_return: float | Sequence[float] | Tensor | None = None
    ) -> Compose:
        """The transforms an environment needs for this actor, ready for ``TransformedEnv``.

        They cast to float32, keep the return-to-go by the model's discount and range, and mark
        (``is_init``) and sum up (``episode_reward``) episodes. The model's range and default
        target are taken now, so call this after training.

        Args:
            target_return: discounted return asked for at the start of an episode; a number, or one
                per environment; None is ``model.default_target_return``.

        Returns:
            New transforms, for one environment.
        """
        target = self.model.default_target_return if target_return is None else target_return
        return Compose(
            DoubleToFloat(),
            DiscountedTargetReturn(
                target,
                discount=self.model.config.discount,
                return_to_go_range=self.model.return_to_go_range,
                out_keys=[self.in_keys[-1]],
            ),
            InitTracker(),
            RewardSum(),
        )


class _Act(nn.Module):
    """Observations and return-to-go in, action out."""

    def __init__(self, model: MAGEModel, generator: torch.Generator | None) -> None:
        super().__init__()
        self.model = model
        self.generator = generator

    def forward(self, *inputs: Tensor) -> Tensor:
        """Act on the observation entries, each (*B, its size), and the return-to-go (*B, 1)."""
        *observations, return_to_go = inputs
        if not all(part.isfinite().all() for part in inputs):
            raise ValueError(
                "an observation or the return-to-go is not finite; a simulation that diverges "
                "cannot be acted in."
            )
        deterministic = exploration_type() in _DETERMINISTIC
        with _evaluating(self.model):
            return self.model.act(
                torch.cat(observations, dim=-1),
                return_to_go,
                temperature=0.0 if deterministic else self.model.config.temperature,
                generator=self.generator,
            )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and exactly what was on back on.

    A rollout in the middle of training must neither act with dropout nor end the training mode.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
