"""What every method is: an agent, the stages in which it is trained, and how it acts.

A method of one's own is a subclass of ``Agent`` with three things: networks, ``stages`` and
``decide`` (``examples/own_agent.py`` is a whole one). ``fit`` trains it, ``checkpoint`` keeps it,
``AgentPolicy`` and ``AgentActor`` drive it, and the suite scores it, all without knowing its name.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar, Self

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from mage_agent.bounds import inner_bounds
from mage_agent.config import Config
from mage_agent.data import check_dataset, metadata, observation_keys, returns_to_go
from mage_agent.hardware import seeded
from mage_agent.nn.units import Units
from mage_agent.stage import Stage

__all__ = ["Agent", "evaluating", "find_agent"]

_AGENTS: dict[str, type[Agent]] = {}


class Agent(nn.Module, ABC):
    """A method of offline reinforcement learning: networks, how they are trained, how they act.

    Environment units go in and out of every public method; statistics of the dataset are buffers
    of the agent (``units``).

    Args:
        config: everything else.
        observation_dim: observation size S, or the size of each of ``config.observation_keys``.
        action_dim: action size A.

    Raises:
        ValueError: a size is missing or below 1.
    """

    name: ClassVar[str]
    """By which checkpoints, the command line and the suite find the class."""
    config_class: ClassVar[type[Config]]
    policy_class: ClassVar[Any] = None
    """The class of the agent's own policies, which ``AgentPolicy.load`` then gives."""
    told_return: ClassVar[bool] = True
    """Whether actions depend on the return-to-go that is asked for."""
    only_acts: bool = False
    """True for copies that were made to act fast, and can be neither trained nor saved."""

    config: Config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            known = _AGENTS.get(cls.name, cls)
            if known.__module__.startswith("mage_agent.") and known.__module__ != cls.__module__:
                raise ValueError(
                    f"{cls.__qualname__}.name is {cls.name!r}, which is the name of "
                    f"{known.__qualname__}; choose another one."
                )
            _AGENTS[cls.name] = cls

    def __init__(
        self, config: Config, *, observation_dim: int | Mapping[str, int], action_dim: int
    ) -> None:
        super().__init__()
        # Without names, there is one entry, called "observation".
        keys = config.observation_keys or ("observation",)
        given = {keys[0]: observation_dim} if isinstance(observation_dim, int) else observation_dim
        if set(given) != set(keys):
            raise ValueError(
                f"observation_dim is {observation_dim}; it must hold the size of each of {keys}."
            )
        if min(*given.values(), action_dim) < 1:
            sizes = f"observation_dim is {observation_dim} and action_dim is {action_dim}"
            raise ValueError(f"{sizes}; all sizes must be at least 1.")
        self.config = config.replace(observation_keys=keys)
        self.units = Units({k: given[k] for k in keys}, action_dim, discount=config.discount)

    @property
    def sizes(self) -> dict[str, Any]:
        """Arguments besides the configuration that build the agent again."""
        return {"observation_dim": self.observation_sizes, "action_dim": self.action_dim}

    @property
    def observation_sizes(self) -> dict[str, int]:
        """Size of each observation entry, in the order in which they are concatenated."""
        return self.units.observation_sizes

    @property
    def observation_dim(self) -> int:
        """Observation size S: that of all entries together."""
        return sum(self.observation_sizes.values())

    @property
    def action_dim(self) -> int:
        """Action size A."""
        return len(self.units.action_low)

    def optimize_for_inference(self, weights: str = "float32", *, compiled: bool = False) -> Self:
        """A copy that acts faster, and can be neither trained nor saved.

        Raises:
            ValueError: this agent has no faster copy, or not with these weights.
        """
        raise ValueError(f"there is no copy of {self.name!r} that acts faster than the agent.")

    def adopt(self, **settings: Any) -> None:
        """Take other settings in place, as ``Config.changed`` allows."""
        self.config = self.config.changed(**settings)

    def changed(self, **settings: Any) -> Self:
        """A copy that has adopted other settings."""
        if self.only_acts:
            raise ValueError("this copy only acts; change the agent itself, and copy that anew.")
        copy = deepcopy(self).eval()
        copy.adopt(**settings)
        return copy

    def know_returns(self, dataset: TensorDictBase) -> None:
        """Take the returns of more data into what may be asked for, in place."""
        self.units.widen(self.returns_to_go(dataset).to(self.device))

    def asks(self) -> dict[str, Any]:
        """What is asked for beyond the configuration, JSON-ready, to be saved with it."""
        return {}

    def ask(self, saved: dict[str, Any]) -> None:
        """Ask for what ``asks`` returned; an empty dictionary changes nothing."""

    @property
    def device(self) -> torch.device:
        """Where the agent's statistics are, and so all of it."""
        return self.units.action_low.device

    @classmethod
    def upgrade(
        cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """What a file of the first format held, in today's form.

        Raises:
            ValueError: no such files of this agent were ever written.
        """
        raise ValueError(f"there are no files of the first format of {cls.name!r}")

    # ------------------------------------------------------------------------------- to be built

    @classmethod
    def from_dataset(cls, dataset: TensorDictBase, config: Config | str, *, seed: int = 0) -> Self:
        """Build an untrained agent that fits a dataset, and take the dataset's statistics.

        Where the configuration names no ``observation_keys``, the agent takes all entries that the
        dataset has, but nested ones.

        Args:
            dataset: from ``load_dataset``.
            config: the configuration, or the name of a preset.
            seed: of the initial weights.

        Raises:
            KeyError, TypeError: the dataset is not what ``load_dataset`` returns.
            TypeError: the configuration is another agent's.
            ValueError: the dataset lacks an observation entry, or there is no such preset.
        """
        if not hasattr(cls, "config_class"):
            raise TypeError(
                f"{cls.__name__} is what all agents have in common; take one of them, such as "
                "MAGEPolicy or GACPolicy."
            )
        check_dataset(dataset)
        if isinstance(config, str):
            config = cls.config_class.preset(config)
        if not isinstance(config, cls.config_class):
            raise TypeError(
                f"config is a {type(config).__name__}; {cls.__name__} takes a "
                f"{cls.config_class.__name__}, or the name of one of its presets, "
                f"{sorted(cls.config_class.PRESETS)}."
            )
        available = [key for key in observation_keys(dataset) if isinstance(dataset[key], Tensor)]
        nested = sorted({*observation_keys(dataset)} - {*available})
        if nested and available and not config.observation_keys:
            warnings.warn(
                f"the nested observation entries {nested} are not read, only {available}; flatten "
                "them with gymnasium.wrappers.FlattenObservation, or name observation_keys.",
                stacklevel=3,
            )
        config = config.replace(observation_keys=config.observation_keys or available)
        missing = [key for key in config.observation_keys if key not in available]
        if missing or not available:
            raise ValueError(
                f"the dataset has no observation entries {missing}; it has {available}, nested "
                "ones apart, which are not read. Set observation_keys in the configuration."
            )
        with seeded(seed, torch.device("cpu")):  # initialisers know the global generator only
            agent = cls(
                config,
                observation_dim={k: dataset[k].shape[-1] for k in config.observation_keys},
                action_dim=dataset["action"].shape[-1],
            )
        agent.fit_units(dataset)
        return agent.eval()

    def fit_units(self, dataset: TensorDictBase) -> None:
        """Take statistics, bounds and ranges from a dataset, in place.

        Raises:
            ValueError: the dataset holds no first step of an episode.
        """
        starts = dataset["step_count"].flatten() == 0
        if not starts.any():
            raise ValueError("the dataset holds the first step of no episode; take whole episodes.")
        facts = metadata(dataset)
        low = facts.get("action_low", [-1.0] * self.action_dim)
        high = facts.get("action_high", [1.0] * self.action_dim)
        inner_low, inner_high = inner_bounds(low, high)
        returns = self.returns_to_go(dataset)
        self.units.fit(
            observation=self.units.concatenate(dataset),
            action=dataset["action"],
            return_to_go=returns,
            initial_return=returns[starts],
            action_low=torch.as_tensor(inner_low),
            action_high=torch.as_tensor(inner_high),
            target_quantile=self.config.target_quantile,
        )

    def returns_to_go(self, dataset: TensorDictBase) -> Tensor:
        """Returns-to-go of every step for the agent's discount, shape (N, 1)."""
        return returns_to_go(dataset["next", "reward"], dataset["episode"], self.config.discount)

    def trajectories(self, dataset: TensorDictBase) -> TensorDictBase:
        """A dataset in the episodes that the agent learns from; here its own."""
        return dataset

    # -------------------------------------------------------------------------------- to be trained

    @abstractmethod
    def stages(self, dataset: TensorDictBase) -> Sequence[Stage]:
        """How the agent is trained on a dataset: its stages, in order."""

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Errors on data, best data that the agent has not seen; scalars by name.

        Here the mean squared error of the actions, in environment units, of decisions without
        memory that ask for the return that followed.
        """
        with evaluating(self):
            chunks = zip(
                self.units.concatenate(dataset).split(4096),
                self.returns_to_go(dataset).split(4096),
                strict=True,
            )
            acted = [
                self.act(part.to(self.device), asked.to(self.device)) for part, asked in chunks
            ]
        error = torch.cat(acted).cpu() - dataset["action"]
        return {"action_error": float(error.square().mean())}

    # ------------------------------------------------------------------------------------ to act

    def initial_state(self, count: int) -> TensorDict | None:
        """Memory of ``count`` episodes that have not begun, batch size [count].

        None where every decision depends on the present observation alone.
        """
        return None

    @abstractmethod
    def decide(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        state: TensorDict | None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorDict | None]:
        """The actions to execute now, and the memory after them.

        Args:
            observation: raw observations, shape (B, S).
            return_to_go: discounted return asked for, shape (B, 1).
            state: memory from ``initial_state`` or the last call, batch size [B].
            temperature: 0 is deterministic.
            generator: source of randomness; None is torch's own.

        Returns:
            Actions inside the bounds, shape (B, A), and the memory for the next call.
        """

    @torch.no_grad()
    def act(
        self,
        observation: Tensor,
        return_to_go: Tensor | float = 0.0,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The action to execute now, at the first step of an episode or without memory.

        Args:
            observation: raw observations, shape (..., S).
            return_to_go: discounted return asked for, shape (...) or (..., 1), or one number.
            temperature: 0 is deterministic.
            generator: source of randomness.

        Returns:
            Actions inside the bounds, shape (..., A).

        Raises:
            ValueError: the shapes do not fit.
        """
        rows, lead = self.rows(observation), observation.shape[:-1]
        asked = self.asked(return_to_go, observation)
        action, _ = self.decide(
            rows, asked, self.initial_state(len(rows)), temperature=temperature, generator=generator
        )
        return action.view(*lead, self.action_dim)

    def rows(self, observation: Tensor) -> Tensor:
        """Observations (..., S) as ``decide`` takes them, (B, S) in the agent's own type.

        Raises:
            ValueError: the last axis is not S.
        """
        if observation.shape[-1:] != (self.observation_dim,):
            raise ValueError(
                f"observation has shape {tuple(observation.shape)}; its last axis must be "
                f"{self.observation_dim}."
            )
        return observation.reshape(-1, self.observation_dim).to(self.units.action_low.dtype)

    def asked(self, return_to_go: Tensor | float, observation: Tensor) -> Tensor:
        """The return asked for at each observation (..., S) as ``decide`` takes it, (B, 1).

        Raises:
            ValueError: there are neither one nor B.
        """
        count = observation.shape[:-1].numel()
        asked = torch.as_tensor(return_to_go, device=observation.device)
        if asked.numel() not in (1, count):
            raise ValueError(
                f"return_to_go has shape {tuple(asked.shape)}; it must hold one number for each "
                f"observation of {tuple(observation.shape)}."
            )
        return asked.reshape(-1, 1).to(self.units.action_low.dtype).expand(count, 1)


def find_agent(name: str) -> type[Agent]:
    """The class of an agent by its name.

    Raises:
        ValueError: no such class has been defined; the message lists those that have.
    """
    if name not in _AGENTS:
        raise ValueError(
            f"there is no agent {name!r}; known: {sorted(_AGENTS)}. Import the module that defines "
            "it first."
        )
    return _AGENTS[name]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode it was in before.

    Acting in the middle of training must neither use dropout nor end the training mode.
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
