"""Statistics, bounds and ranges of a dataset, kept inside an agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mage_agent.types import ArrayT, next_return_to_go

__all__ = ["BEST", "Normalizer", "Units"]

BEST = 1e30
"""Return to ask for that stands for the best to be had from every state; a finite number, which
observations may hold, and more than any data reach."""

CONSTANT = 1e-6
"""Standard deviation, as a part of the largest value, up to which values count as constant."""


class Normalizer(nn.Module):
    """Standardises values by statistics that travel with an agent's weights.

    Dimensions that never vary, but for rounding errors, are shifted only, so that noise is not
    blown up. Variation counts relative to the size of the values, so that units do not matter.

    Args:
        size: number of dimensions.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take the statistics of ``values``, shape (N, size), in place."""
        flat = values.reshape(-1, self.mean.shape[0]).double()
        std = flat.std(dim=0, unbiased=False)
        self.mean.copy_(flat.mean(dim=0))
        self.std.copy_(torch.where(std > CONSTANT * flat.abs().amax(dim=0), std, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """Standardise, shape (..., size)."""
        return (values - self.mean) / self.std

    def inverse(self, values: Tensor) -> Tensor:
        """Undo ``forward``, shape (..., size)."""
        return values * self.std + self.mean


class Units(nn.Module):
    """What an agent must know of a dataset to read its numbers and to act in its environment.

    Args:
        observation_sizes: size of each observation entry, in the order of concatenation.
        action_dim: action size A.
        discount: discount factor of the returns-to-go.

    Attributes:
        observation, action, return_to_go: normalisers of S, A and 1 dimensions.
        action_low, action_high: bounds of the action space, shape (A,).
        return_range: smallest and largest return-to-go of the data, shape (2,).
        target_return: discounted return to ask for when the user names none, a scalar; ``BEST``
            asks for the best that the data reached from every state.
    """

    action_low: Tensor
    action_high: Tensor
    return_range: Tensor
    target_return: Tensor

    def __init__(
        self, observation_sizes: Mapping[str, int], action_dim: int, *, discount: float
    ) -> None:
        super().__init__()
        self.observation_sizes = dict(observation_sizes)
        self.discount = discount
        self.observation = Normalizer(sum(self.observation_sizes.values()))
        self.action = Normalizer(action_dim)
        self.return_to_go = Normalizer(1)
        self.register_buffer("action_low", torch.full((action_dim,), -torch.inf))
        self.register_buffer("action_high", torch.full((action_dim,), torch.inf))
        self.register_buffer("return_range", torch.tensor([-torch.inf, torch.inf]))
        self.register_buffer("target_return", torch.tensor(0.0))
        self._known = (0.0, -torch.inf, torch.inf)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._note()

    def _note(self) -> None:
        """Keep target and range as numbers, too.

        TorchRL's collectors send actors to their workers without values, while the function that
        makes an environment there may ask for these.
        """
        if not self.return_range.is_meta:
            target, (low, high) = float(self.target_return), self.return_range.tolist()
            self._known = (target, low, target if target >= BEST / 2 else high)

    @torch.no_grad()
    def fit(
        self,
        *,
        observation: Tensor,
        action: Tensor,
        return_to_go: Tensor,
        initial_return: Tensor,
        action_low: Tensor,
        action_high: Tensor,
        target_quantile: float = 1.0,
    ) -> None:
        """Take statistics, bounds and ranges from a dataset, in place.

        Args:
            observation: all observations, shape (N, S).
            action: all actions, shape (N, A).
            return_to_go: all returns-to-go, shape (N, 1).
            initial_return: returns-to-go at the episodes' starts, shape (E, 1).
            action_low: lower bounds of the action space, shape (A,).
            action_high: upper bounds, shape (A,).
            target_quantile: of the initial returns, what is asked for by default.
        """
        self.observation.fit(observation)
        self.action.fit(action)
        self.return_to_go.fit(return_to_go)
        self.action_low.copy_(action_low)
        self.action_high.copy_(action_high)
        self.return_range.copy_(torch.stack([return_to_go.min(), return_to_go.max()]))
        self.target_return.copy_(initial_return.quantile(target_quantile))
        self._note()

    @torch.no_grad()
    def ask_for_the_best(self) -> None:
        """Ask for ``BEST`` by default, of agents that cap by themselves what is asked for.

        Rewards take nothing away from it, so that an episode never asks for less than the best.
        """
        self.target_return.fill_(BEST)
        self._note()

    @torch.no_grad()
    def widen(self, return_to_go: Tensor) -> None:
        """Take returns-to-go (N, 1) into the range of what may be asked for, in place."""
        low, high = self.return_range
        found = torch.stack([low.minimum(return_to_go.min()), high.maximum(return_to_go.max())])
        self.return_range.copy_(found)
        self._note()

    def concatenate(self, entries: Mapping[str, Any]) -> Tensor:
        """One observation vector (..., S) of entries (..., size) of a mapping or TensorDict."""
        return torch.cat([entries[key] for key in self.observation_sizes], dim=-1)

    def standardize(self, observation: Tensor, return_to_go: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised observations (..., S) and returns-to-go (..., 1)."""
        return self.observation(observation), self.return_to_go(return_to_go)

    def environment_action(self, action: Tensor) -> Tensor:
        """Standardised actions to environment units, inside the bounds, shape (..., A)."""
        raw: Tensor = self.action.inverse(action)
        return raw.clamp(self.action_low, self.action_high)

    @property
    def return_to_go_range(self) -> tuple[float, float]:
        """Smallest and largest return-to-go to ask for: of the data, or of the default target."""
        self._note()
        return self._known[1:]

    @property
    def default_target(self) -> float:
        """``target_return`` as a number."""
        self._note()
        return self._known[0]

    def update_return_to_go(self, return_to_go: ArrayT, reward: ArrayT) -> ArrayT:
        """What to ask for after a reward: ``(R - r) / gamma``, inside ``return_to_go_range``."""
        low, high = self.return_to_go_range
        return next_return_to_go(return_to_go, reward, discount=self.discount, low=low, high=high)
