"""A small diffusion model of actions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.baselines.networks import mlp

__all__ = ["Denoiser"]


class Denoiser(nn.Module):
    """A diffusion model of actions, which predicts the noise that is in them.

    Its schedule preserves the variance: ``beta_i = 1 - exp(-b / T - (B - b)(2 i - 1) / (2 T^2))``
    with b = 0.1 and B = 10 (Song et al., 2021).

    Args:
        state: size S of the standardised observations.
        action: size A of the actions in [-1, 1].
        hidden: units of the hidden layers.
        steps: denoising steps T.
    """

    waves: Tensor
    alpha: Tensor
    left: Tensor
    before: Tensor

    def __init__(self, state: int, action: int, hidden: tuple[int, ...], steps: int) -> None:
        super().__init__()
        self.action = action
        self.network = mlp([action + 16 + state, *hidden, action], activation=nn.Mish)
        self.time = mlp([16, 32, 16], activation=nn.Mish)
        angles = torch.arange(steps).unsqueeze(-1) * 10_000 ** -torch.linspace(0, 1, 8)
        odd = 2 * torch.arange(1, steps + 1) - 1
        alpha = torch.exp(-0.1 / steps - 0.5 * 9.9 * odd / steps**2)  # 1 - beta
        left = alpha.cumprod(0)  # the action's part of the variance
        self.register_buffer("waves", torch.cat([angles.sin(), angles.cos()], -1))  # (T, 16)
        self.register_buffer("alpha", alpha)  # (T,)
        self.register_buffer("left", left)
        self.register_buffer("before", torch.cat([torch.ones(1), left[:-1]]))

    def forward(self, noisy: Tensor, step: Tensor | int, observation: Tensor) -> Tensor:
        """The noise (..., A) in actions (..., A) after a step from 0, one or (...)."""
        time = self.time(self.waves[step]).expand(*noisy.shape[:-1], -1)
        noise: Tensor = self.network(torch.cat([noisy, time, observation], -1))
        return noise

    def loss(self, observation: Tensor, action: Tensor) -> Tensor:
        """Mean squared error of the noise in actions after random steps."""
        step = torch.randint(len(self.left), action.shape[:1], device=action.device)
        noise, left = torch.randn_like(action), self.left[step].unsqueeze(-1)
        noisy = left.sqrt() * action + (1 - left).sqrt() * noise
        return nn.functional.mse_loss(self(noisy, step, observation), noise)

    def sample(self, observation: Tensor, draw: Callable[[], Tensor] | None = None) -> Tensor:
        """Actions in [-1, 1], (..., A), denoised step by step.

        Args:
            observation: standardised, (..., S).
            draw: returns standard normal noise that broadcasts to (..., A).
        """
        shape = (*observation.shape[:-1], self.action)
        draw = draw or (lambda: torch.randn(shape, device=observation.device))
        place = draw().expand(shape)
        for step in reversed(range(len(self.left))):
            alpha, left, before = self.alpha[step], self.left[step], self.before[step]
            noise = self(place, step, observation)
            clean = ((place - (1 - left).sqrt() * noise) / left.sqrt()).clamp(-1, 1)
            mean = before.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - before) * place
            place = mean / (1 - left)
            if step > 0:
                place = place + ((1 - alpha) * (1 - before) / (1 - left)).sqrt() * draw()
        return place.clamp(-1, 1)
