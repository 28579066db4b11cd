"""The base of every agent's configuration: frozen, checked, to and from JSON."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

__all__ = ["LARGEST", "Config", "bounded"]

LARGEST = 1e30
"""Of any weight, rate or temperature: what float32 can still compute with."""


def bounded(default: Any, low: float, high: float = math.inf) -> Any:
    """A field whose numbers lie in ``[low, high]``."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Config:
    """What an agent is and how it is trained; the fields here are those that all agents have.

    Every field is checked against its annotation and, where it is ``bounded``, its range.

    Attributes:
        observation_keys: observation entries, concatenated in this order into one vector; empty
            stands for all that the dataset has, in alphabetical order, but nested ones.
        discount: discount factor gamma per environment step, of the returns-to-go.
        target_quantile: quantile of the returns of episodes that is asked for when the user names
            no target; 1 is the best episode, or with MAGE's ``return_expectile`` the best from
            every state.
        temperature: of a stochastic policy; 0 makes it deterministic.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    """Named configurations, as changes to the defaults."""
    FINE_TUNING: ClassVar[dict[str, tuple[dict[str, Any], ...]]] = {}
    """By preset, what changes in each stage of online fine-tuning."""
    ADJUSTABLE: ClassVar[frozenset[str]] = frozenset(
        ("learning_rate", "warmup_steps", "weight_decay", "gradient_clip")
    )
    """What may change when training is taken up again: it helps training that diverged."""
    CHANGEABLE: ClassVar[frozenset[str]] = ADJUSTABLE | {"batch_size", "temperature"}
    """What may change of a trained agent: what decisions read, or training when it goes on."""

    observation_keys: tuple[str, ...] = ()
    discount: float = bounded(0.99, 1e-6, 1.0)
    target_quantile: float = bounded(1.0, 0.0, 1.0)
    temperature: float = bounded(1.0, 0.0, LARGEST)

    def __post_init__(self) -> None:
        """Check every field; raise ``ValueError`` before anything is built."""
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _plain(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            limits = {key: field.metadata[key] for key in ("low", "high") if key in field.metadata}
            _check(field.name, value, hints[field.name], **limits)
        if len(set(self.observation_keys)) < len(self.observation_keys):
            raise ValueError(
                f"observation_keys is {self.observation_keys}; each entry can be there only once."
            )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values; unknown names raise ``ValueError``."""
        return self.from_dict({**self.to_dict(), **changes})

    def changed(self, **changes: Any) -> Self:
        """Return a copy with other values of ``CHANGEABLE``, for an agent that is trained.

        Raises:
            ValueError: a name is unknown or not changeable, or a value is not allowed.
        """
        new = self.replace(**changes)
        differs = [name for name in changes if getattr(new, name) != getattr(self, name)]
        if fixed := sorted(set(differs) - self.CHANGEABLE):
            raise ValueError(
                f"{', '.join(fixed)} cannot change: the agent's networks, or what they have "
                f"learned, depend on it. What may change: {sorted(self.CHANGEABLE)}."
            )
        return new

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a configuration from ``to_dict``'s output.

        Raises:
            ValueError: a name is unknown, or a value is not allowed.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict):
            raise ValueError(f"a configuration is a dictionary with the keys {known}: {values!r}.")
        unknown = sorted(set(values) - set(known))
        if unknown:
            close = [name for key in unknown for name in difflib.get_close_matches(key, known, n=1)]
            hint = f" Did you mean {' and '.join(close)}?" if close else ""
            raise ValueError(f"unknown configuration keys {unknown}; known keys: {known}.{hint}")
        return cls(**values)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Return one of ``PRESETS``, with changes.

        Raises:
            ValueError: the name is unknown, or a value is not allowed.
        """
        if name not in cls.PRESETS:
            raise ValueError(f"unknown preset {name!r}; known presets: {sorted(cls.PRESETS)}.")
        return cls.from_dict({**cls.PRESETS[name], **changes})

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that identify this configuration in records."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """Tuples for lists, since JSON has no tuples, and Python's numbers for NumPy's."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def _check(
    name: str, value: Any, hint: Any, low: float = -math.inf, high: float = math.inf
) -> None:
    """Refuse a value that does not fit its annotation or lies outside ``[low, high]``."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
        if value is None:
            return
    kind, choices = get_origin(hint) or hint, get_args(hint)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is Literal:
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; allowed: {choices}.")
    elif kind is tuple:
        if not isinstance(value, tuple):
            raise ValueError(f"{name} is {value!r}; it must be a tuple.")
        for item in value:
            _check(f"an entry of {name}", item, choices[0], low, high)
    elif kind is int:
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            least = f" of at least {low:g}" if low > -math.inf else ""
            raise ValueError(f"{name} is {value!r}; it must be an integer{least}.")
        if value > high:
            raise ValueError(f"{name} is {value}; it must be at most {high:g}.")
    elif kind is float:
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise ValueError(
                f"{name} is {value!r}; it must be a finite number in [{low:g}, {high:g}]."
            )
    elif not isinstance(value, kind):
        allowed = {bool: "True or False", str: "a string"}.get(kind, str(kind))
        raise ValueError(f"{name} is {value!r}; it must be {allowed}.")
