"""The networks of GAC; they see standardised tensors only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mage_agent.nn.layers import MLP

__all__ = ["Deviation", "Encoder", "Generator", "Prior"]


class Attention(nn.Module):
    """Multi-head attention of one sequence to another, or to itself."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: who asks, shape (B, L, D).
            context: who is asked, shape (B, L', D).
            mask: True where a query may see a key, shape (B, L, L').
        """
        query = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = (
            self.key_value(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, L', D / heads)
        seen = None if mask is None else mask[:, None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        attended: Tensor = self.project(out.transpose(1, 2).flatten(2))
        return attended


class Block(nn.Module):
    """Pre-norm transformer block, with cross-attention between self-attention and MLP if asked."""

    def __init__(self, width: int, num_heads: int, *, cross: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.norm_cross = nn.LayerNorm(width) if cross else None
        self.cross = Attention(width, num_heads) if cross else None
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width, width)

    def forward(
        self, x: Tensor, latents: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Apply the block.

        Args:
            x: shape (B', L, D), where B' is a multiple of B.
            latents: what cross-attention asks, shape (B, K, D).
            mask: of self-attention, shape (B', L, L).
        """
        normed = self.norm(x)
        x = x + self.attention(normed, normed, mask)
        if self.cross is not None and self.norm_cross is not None and latents is not None:
            # All pieces of a trajectory ask the same latents.
            queries = self.norm_cross(x).reshape(len(latents), -1, x.shape[-1])
            x = x + self.cross(queries, latents).reshape(x.shape)
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


class Prior(nn.Module):
    """z = f_alpha(s_0, eps): a Transformer with a bidirectional mask (section 3.2).

    z_y has no eps of its own: it is read off those of z_rest, so that returns and trajectories are
    associated here, and nowhere else.

    Args:
        observation_dim: observation size S.
        num_latents: latents K of the trajectory.
        width: width D.
        num_blocks: blocks.
        num_heads: attention heads.
    """

    def __init__(
        self, observation_dim: int, num_latents: int, width: int, num_blocks: int, num_heads: int
    ) -> None:
        super().__init__()
        self.embed_state = nn.Linear(observation_dim, width)
        self.embed_noise = nn.Linear(width, width)
        self.return_token = nn.Parameter(0.02 * torch.randn(1, width))
        self.position = nn.Parameter(0.02 * torch.randn(num_latents + 1, width))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width)

    def forward(self, state: Tensor, noise: Tensor) -> Tensor:
        """Make latents (B, K + 1, D), z_y first, of s_0 (B, S) and eps (B, K, D)."""
        known = torch.cat([self.embed_state(state)[:, None], self.embed_noise(noise)], dim=1)
        # Deviation 34: z_y has no noise of its own.
        asking = self.return_token.expand(len(noise), -1, -1)
        x = torch.cat([known + self.position, asking], dim=1)
        for block in self.blocks:
            x = block(x)
        rest, value = self.project(self.norm(x[:, 1:])).split([noise.shape[1], 1], dim=1)
        return torch.cat([value, noise + rest], dim=1)


class Generator(nn.Module):
    """p_beta(tau | s_0, z_rest): means of actions and of changes of the state (section 3.2).

    A causal Transformer over s_0, a_0, s_1, a_1, ... whose blocks see the last M steps, and ask
    z_rest by cross-attention. The action is read at the state's token, the change of the state at
    the action's. There are no positions: what a plan does when is for the state to tell.

    Args:
        observation_dim: observation size S.
        action_dim: action size A.
        width: width D.
        num_blocks: blocks.
        num_heads: attention heads.
        context: steps M that a block sees.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        width: int,
        num_blocks: int,
        num_heads: int,
        context: int,
    ) -> None:
        super().__init__()
        self.context = context
        self.embed_state = nn.Linear(observation_dim, width)
        self.embed_action = nn.Linear(action_dim, width)
        self.norm_latents = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, num_heads, cross=True) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.action_head = nn.Linear(width, action_dim)
        self.change_head = nn.Linear(width, observation_dim)

    def mask(self, history: Tensor) -> Tensor:
        """Which token may see which: causal, and at most M - 1 steps back.

        Args:
            history: earlier steps that each step may look back on, shape (B', L).

        Returns:
            True where the token of the row sees that of the column, shape (B', 2 L, 2 L).
        """
        token = torch.arange(2 * history.shape[1], device=history.device)
        step = token // 2
        back = step[:, None] - step  # (2 L, 2 L)
        reach = history.clamp_max(self.context - 1).repeat_interleave(2, dim=1)
        return (token[:, None] >= token) & (back <= reach[..., None])

    def forward(
        self, observation: Tensor, action: Tensor, history: Tensor, latents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict each step from those before it.

        Args:
            observation: shape (B, N, L, S).
            action: shape (B, N, L, A).
            history: see ``Steps``, shape (B, N, L).
            latents: z_rest, shape (B, K, D).

        Returns:
            Means of a_t, (B, N, L, A), and of s_{t+1} - s_t, (B, N, L, S).
        """
        pair = torch.stack([self.embed_state(observation), self.embed_action(action)], dim=3)
        x = pair.flatten(0, 1).flatten(1, 2)  # (B N, 2 L, D)
        mask = self.mask(history.flatten(0, 1))
        known = self.norm_latents(latents)
        for block in self.blocks:
            x = block(x, known, mask)
        state_token, action_token = self.norm(x).view(pair.shape).unbind(3)
        return self.action_head(state_token), self.change_head(action_token)


class Deviation(nn.Module):
    """Learned standard deviations of independent entries, none below a floor.

    Args:
        size: number of entries.
        floor: smallest standard deviation; it is approached, and can be left again.
    """

    def __init__(self, size: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.scale = nn.Parameter(torch.zeros(size))

    def forward(self) -> Tensor:
        """The standard deviations, shape (size,)."""
        # Adam moves a parameter by about the learning rate a step, and these have far to go.
        return self.floor + F.softplus(10 * self.scale)


class Encoder(nn.Module):
    """q(eps | tau, y) in one pass: K queries that attend to steps of the trajectory and to y.

    Not the paper's inference, which fits q to every trajectory by gradient ascent.

    Args:
        observation_dim: observation size S.
        action_dim: action size A.
        num_latents: latents K of the trajectory.
        width: width D.
        num_heads: attention heads.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, num_latents: int, width: int, num_heads: int
    ) -> None:
        super().__init__()
        self.embed_step = MLP(observation_dim + action_dim + 1, width, width)
        self.embed_value = MLP(1, width, width)
        self.queries = nn.Parameter(torch.randn(num_latents, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, cross=True) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, observation: Tensor, action: Tensor, clock: Tensor, value: Tensor) -> Tensor:
        """Mean and log-variance of q, stacked, shape (B, 2, K, D).

        Args:
            observation: of some steps, shape (B, L, S).
            action: of the same, shape (B, L, A).
            clock: when they were, as a share of the episode, shape (B, L, 1).
            value: return y, shape (B,).
        """
        steps = self.embed_step(torch.cat([observation, action, clock], dim=-1))
        x = self.queries + self.embed_value(value[:, None])[:, None]
        for block in self.blocks:
            x = block(x, steps)
        phi: Tensor = self.project(self.norm(x)).unflatten(-1, (2, -1)).permute(0, 2, 1, 3)
        return phi
