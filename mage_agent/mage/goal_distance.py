"""How far a goal is: the sum of absolute differences of embeddings; far ones over landmarks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mage_agent.nn.layers import MLP, FourierFeatures

__all__ = ["LANDMARKS", "GoalDistance", "beside"]

_EMBEDDING = 32
_FEATURES = 64
_SCALE = 2.0
"""Factor on distances, which so begin at about what the data's are: too small ones leak from goal
to goal, and grow slowly."""
LANDMARKS = 500
_LEG, _DETOUR = 3.0, 100.0
"""Horizons up to which distances are trusted, and how many more each further one counts."""
_CHUNK = 50
"""Landmarks whose ways to all others are looked up at once."""


class GoalDistance(nn.Module):
    """``c |phi(s) - psi(g)|_1``, and ``c |chi(s, m) - psi(g)|_1`` for a move m, in horizons.

    Short distances are right, but far goals behind a wall are taken for nearer than they are, so
    that some places seem nearer than all around them. Once landmarks are placed, there is a longer
    ``way``: a far goal is as far as the shortest way to it over landmarks, of legs that are short.

    Args:
        state_dim: entries of a state that are seen.
        goal_dim: entries G of a goal.
        moved_dim: entries E of a move.
        width: hidden width.
    """

    starts: Tensor
    ends: Tensor
    between: Tensor

    def __init__(self, state_dim: int, goal_dim: int, moved_dim: int, width: int) -> None:
        super().__init__()
        self.state_features = FourierFeatures(state_dim, _FEATURES)
        self.goal_features = FourierFeatures(goal_dim, _FEATURES)
        seen = self.state_features.size
        sizes = {"state": seen, "move": seen + moved_dim, "goal": self.goal_features.size}
        # By the name of blocks, for Muon: Adam fits the rarest places last.
        self.blocks = nn.ModuleDict(
            {name: MLP(size, width, width, _EMBEDDING) for name, size in sizes.items()}
        )
        for name in ("starts", "ends"):  # phi and psi of every landmark
            self.register_buffer(name, torch.zeros(LANDMARKS, _EMBEDDING))
        # From landmark to landmark, by way of others; infinite until they are placed.
        self.register_buffer("between", torch.full((LANDMARKS, LANDMARKS), torch.inf))

    def forward(self, state: Tensor, goal: Tensor, moves: Tensor | None = None) -> Tensor:
        """Distance to a goal (..., G) from a state (..., S), and after moves (..., E) from there.

        Returns:
            Shape (..., 1), with moves (..., 2).
        """
        there = self.there(goal)
        places = [self.here(state)]
        if moves is not None:
            places.append(self.here(state, moves))
        return torch.cat([_apart(place, there)[..., None] for place in places], dim=-1)

    def way(self, state: Tensor, goal: Tensor, moves: Tensor | None = None) -> Tensor:
        """Distance to a goal from a state, or after moves from it, in horizons, by landmarks.

        It is the straight distance up to three horizons, and where no landmarks are placed, and
        from six horizons on that over landmarks; in between it passes from one to the other.

        Args:
            state: (B, S).
            goal: (B, G).
            moves: (B, E), or n from each state, (B, n, E).

        Returns:
            Shape (B, 1), with n moves (B, n, 1).
        """
        place, there = self.here(state, moves), self.there(goal)
        ends = _leg(_between(there, self.starts))  # (B, N): from landmarks to the goal
        left = torch.full_like(ends, torch.inf)
        for chunk in range(0, LANDMARKS, _CHUNK):
            part = slice(chunk, chunk + _CHUNK)
            ways = self.between[:, part] + ends[:, None, part]  # (B, N, chunk)
            left = left.minimum(ways.amin(-1))
        if place.dim() == 3:
            there, left = there[:, None], left[:, None]
        straight = _apart(place, there)
        detour = (_leg(_between(place, self.ends)) + left).amin(-1).minimum(_leg(straight))
        share = (straight / _LEG - 1).clamp(0, 1)  # a jump would make a place seem the nearest
        near = (share == 0) | self.between[0, 0].isinf()
        return torch.where(near, straight, straight.lerp(detour, share))[..., None]

    @torch.no_grad()
    def place_landmarks(self, state: Tensor, goal: Tensor) -> None:
        """Take states (N, S) as landmarks, which are also goals (N, G)."""
        self.starts.copy_(self.here(state))
        self.ends.copy_(self.there(goal))
        ways = _leg(_between(self.starts, self.ends))
        for by in range(LANDMARKS):  # Floyd and Warshall's shortest ways
            torch.minimum(ways, ways[:, by, None] + ways[by], out=ways)
        self.between.copy_(ways.fill_diagonal_(0))

    def here(self, state: Tensor, moves: Tensor | None = None) -> Tensor:
        """Embedding of states (..., S), or of where moves lead, as ``beside`` takes both."""
        seen = self.state_features(state)
        if moves is None:
            place: Tensor = self.blocks["state"](seen)
        else:
            place = self.blocks["move"](beside(seen, moves))
        return place

    def there(self, goal: Tensor) -> Tensor:
        """Embedding of goals (..., G)."""
        place: Tensor = self.blocks["goal"](self.goal_features(goal))
        return place


def beside(seen: Tensor, moves: Tensor) -> Tensor:
    """What is seen (B, S) beside moves (B, E), or each of n, (B, n, E); (..., S + E)."""
    if moves.dim() > seen.dim():
        seen = seen[:, None].expand(-1, moves.shape[1], -1)
    return torch.cat([seen, moves], dim=-1)


def _apart(place: Tensor, there: Tensor) -> Tensor:
    """Distance between embeddings (..., D), in horizons."""
    return _SCALE * (place - there).abs().sum(-1)


def _between(places: Tensor, landmarks: Tensor) -> Tensor:
    """Distances between embeddings (..., D) and those of landmarks (N, D), (..., N)."""
    return _SCALE * torch.cdist(places, landmarks, p=1)


def _leg(distance: Tensor) -> Tensor:
    """What a distance counts on the way over landmarks: itself, far more where it is long."""
    return distance + _DETOUR * (distance - _LEG).clamp_min(0)
