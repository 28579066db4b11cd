"""Agents as TorchRL actors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec, Unbounded
from torchrl.envs.transforms import (
    Compose,
    DoubleToFloat,
    InitTracker,
    RewardSum,
    TensorDictPrimer,
)
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import SafeModule

from mage_agent.agent import Agent, evaluating
from mage_agent.compatibility import check_target
from mage_agent.envs import DiscountedTargetReturn
from mage_agent.memory import reset_rows
from mage_agent.types import MEMORY

__all__ = ["AgentActor"]

# torchrl maps the older MODE and MEAN to what a policy without a distribution can offer.
_DETERMINISTIC = (ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.MEAN)


class AgentActor(SafeModule):  # type: ignore[misc]
    r"""Acts by an agent, on entries of a tensordict, in environment units.

    Whatever a decision needs lives in the tensordict, so that batched environments, partial resets
    and collectors need nothing else: the return-to-go, which the environment's
    ``DiscountedTargetReturn`` tracks, and the agent's memory, if it has one, under
    ``"agent_memory"``. That is read at the root and written under ``next``, as TorchRL's
    ``LSTMModule`` does it; where ``is_init`` is True it starts anew. `make_env_transforms` adds all
    of it to an environment. Any leading batch shape \*B works.

    ``set_exploration_type(ExplorationType.DETERMINISTIC)`` switches sampling off, and so do the
    older MODE and MEAN; with any other exploration type, and none, the agent samples with
    ``config.temperature``. It acts without dropout and without gradients, also while it is being
    trained.

    Args:
        model: the agent that acts; shared, not copied.
        in_keys: the observation entries in the order of ``config.observation_keys``, then, if the
            agent is told the return, the return-to-go; defaults to these names. Each observation
            has shape (\*B, its size); the return-to-go has shape (\*B, 1).
        out_keys: the action entry, shape (\*B, A); defaults to ``["action"]``.
        spec: specification of the action, usually ``env.action_spec``.
        generator: source of the samples' randomness; None is torch's own, which
            ``torch.manual_seed`` seeds.

    Raises:
        TypeError: the agent is another one than the class is for.
        ValueError: the keys are too few or too many, or ``spec`` is not that of A continuous
            actions; when called outside a compiled graph, an entry is not finite.
    """

    agent_class: ClassVar[type[Agent]] = Agent  # type: ignore[type-abstract]

    def __init__(
        self,
        model: Agent,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        spec: TensorSpec | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model, self.agent_class):
            raise TypeError(
                f"model is a {type(model).__name__}; {type(self).__name__} takes a "
                f"{self.agent_class.__name__}."
            )
        named = [*model.config.observation_keys, *(["return_to_go"] if model.told_return else [])]
        in_keys = named if in_keys is None else list(in_keys)
        out_keys = ["action"] if out_keys is None else list(out_keys)
        if len(in_keys) != len(named) or len(out_keys) != 1:
            raise ValueError(
                f"in_keys is {in_keys} and out_keys is {out_keys}; the agent needs one entry for "
                f"each of {named}, and writes one action."
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
        memory = model.initial_state(1)
        names = [] if memory is None else sorted(memory.keys())
        memory_keys = [(MEMORY, name) for name in names]
        observed = len(model.config.observation_keys)
        super().__init__(
            _Act(model, generator, names, observed),
            in_keys=[*in_keys, *memory_keys, *(["is_init"] if names else [])],
            out_keys=[*out_keys, *(("next", *key) for key in memory_keys)],
            spec=spec,
        )

    @property
    def model(self) -> Agent:
        """The agent that acts."""
        model: Agent = self.module.model
        return model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Write the action, and the agent's memory under ``next``.

        Raises:
            KeyError: an entry is missing.
        """
        try:
            return super().forward(*args, **kwargs)
        except KeyError as error:
            given = args[0] if args and isinstance(args[0], TensorDictBase) else kwargs
            missing = [key for key in self.in_keys if given.get(key, None) is None]
            if not missing:
                raise
            raise KeyError(
                f"the actor lacks {missing}; what an environment does not have by itself, "
                "actor.make_env_transforms() adds to it."
            ) from error

    def make_env_transforms(
        self, target_return: float | Sequence[float] | Tensor | None = None
    ) -> Compose:
        """The transforms an environment needs for this actor, ready for ``TransformedEnv``.

        They cast to float32, track the return-to-go by the agent's discount and range, mark
        (``is_init``) and sum up (``episode_reward``) episodes, and make room for the agent's
        memory. The agent's range and target are taken now, so call this after training. Beside
        other transforms: ``Compose(*actor.make_env_transforms(), StepCounter(50))``.

        Args:
            target_return: discounted return asked for at the start of an episode; a number, or one
                per environment; None is the agent's default target, ``units.default_target``.

        Returns:
            New transforms, for one environment.

        Raises:
            ValueError: the agent does not heed the target.
        """
        check_target(self.model, target_return)
        units = self.model.units
        transforms = [DoubleToFloat(), InitTracker(), RewardSum()]
        if self.module.told_return:
            tracked = DiscountedTargetReturn(
                units.default_target if target_return is None else target_return,
                discount=units.discount,
                return_to_go_range=units.return_to_go_range,
                out_keys=[self.in_keys[len(self.model.config.observation_keys)]],
            )
            transforms.insert(1, tracked)
        memory = self.model.initial_state(1)
        if memory is not None:
            entries = {
                name: Unbounded(shape=part.shape[1:], dtype=part.dtype)
                for name, part in memory.items()
            }
            transforms.append(TensorDictPrimer({MEMORY: Composite(entries)}, expand_specs=True))
        return Compose(*transforms)


class _Act(torch.nn.Module):
    """Observations, return-to-go and memory in; action and memory out."""

    def __init__(
        self,
        model: Agent,
        generator: torch.Generator | None,
        memory_names: list[str],
        observed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.generator = generator
        self.told_return = model.told_return  # the keys are settled now
        self.memory_names = memory_names
        self.observed = observed

    @torch.inference_mode(False)
    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Act on entries of batch shape *B, in the order of the actor's ``in_keys``."""
        model, observed = self.model, self.observed
        if model.told_return != self.told_return:
            raise ValueError(
                "since this actor was made, the agent was set to "
                f"{'heed' if model.told_return else 'ignore'} the return that is asked for; make "
                "the actor anew, and its environment's transforms."
            )
        # GAC finds its plans by gradients.
        inputs = tuple(part.clone() if part.is_inference() else part for part in inputs)
        lead = inputs[0].shape[:-1]
        observation = model.rows(torch.cat(inputs[:observed], dim=-1))
        told = inputs[observed].reshape(-1, 1) if self.told_return else observation[:, :1]
        # A compiled graph would break here.
        compiling = torch.compiler.is_compiling()
        if not compiling and not all(part.isfinite().all() for part in (observation, told)):
            raise ValueError(
                "an observation or the return-to-go is not finite; a simulation that diverges "
                "cannot be acted in."
            )
        memory: TensorDictBase | None = None
        if self.memory_names:
            *parts, started = inputs[observed + self.told_return :]
            initial = model.initial_state(len(observation))
            assert initial is not None
            kept = {
                name: part.reshape(-1, *part.shape[len(lead) :]).to(initial[name])
                for name, part in zip(self.memory_names, parts, strict=True)
            }
            if other := [name for name, part in kept.items() if part.shape != initial[name].shape]:
                raise ValueError(
                    f"the agent's memory {other} has another size than when the environment's "
                    "transforms were made, since the agent was told to remember more or less; make "
                    "them anew."
                )
            memory = reset_rows(TensorDict(kept, initial.batch_size), initial, started.reshape(-1))
        deterministic = exploration_type() in _DETERMINISTIC
        with evaluating(model):
            action, memory = model.decide(
                observation,
                told.to(observation.dtype),
                memory,
                temperature=0.0 if deterministic else model.config.temperature,
                generator=self.generator,
            )
        action = action.view(*lead, model.action_dim)
        if memory is None:
            return action
        return (
            action,
            *(
                memory[name].unflatten(0, lead) if lead else memory[name][0]
                for name in self.memory_names
            ),
        )
