"""Diffuser's model of trajectories, on the U-Net and the noise schedule of ``diffusers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.planner import Generators

try:
    from diffusers import DDIMScheduler, DDPMScheduler, UNet1DModel
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps
    from diffusers.utils.torch_utils import randn_tensor
except ModuleNotFoundError as error:
    raise ImportError(
        "the baselines that plan need the package 'diffusers', which is not installed. Install it "
        "from your checkout of mage_agent: pip install '.[benchmarks]'"
    ) from error

__all__ = [
    "BasicTransformerBlock",
    "DDIMScheduler",
    "Denoiser",
    "TimestepEmbedding",
    "Timesteps",
    "randn_tensor",
]


class Denoiser(nn.Module):
    """A diffusion model of sequences (B, L, A + S) of actions and states, all in [-1, 1].

    The first state is known, and so are some entries of the last one.

    Args:
        length: steps L.
        actions: entries A of the actions of a step.
        states: entries S of its state.
        ends: entries of the last state that are known.
        width: channels of the U-Net's first level, a multiple of 8.
        multipliers: channels of its levels, as multiples; each level halves the length.
        steps: of diffusion.
        action_weight: of the first action in the loss.
        valued: whether there is a network of values.
    """

    fixed: Tensor
    weight: Tensor

    def __init__(
        self,
        length: int,
        actions: int,
        states: int,
        ends: Sequence[int],
        *,
        width: int,
        multipliers: Sequence[int],
        steps: int,
        action_weight: float = 1.0,
        valued: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.actions = (length, actions + states), actions
        channels = [width * each for each in multipliers]
        if width % 8 or (valued and channels[-1] % 64):
            raise ValueError(
                f"the U-Net's levels have {channels} channels; all must be multiples of 8, and "
                "where there are values, the last one a multiple of 64."
            )
        self.network = _unet(actions + states, channels)
        if valued:
            halvings = (length - 1).bit_length() - 2  # two more follow
            self.values = _unet(
                actions + states,
                channels + channels[-1:] * (halvings - len(channels)),
                mid_block_type="ValueFunctionMidBlock1D",
                up_block_types=(),
                out_block_type="ValueFunction",
                downsample_each_block=True,
            )
        self.schedule: Any = DDPMScheduler(
            steps, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=True
        )
        self._padding = -length % 2 ** (len(channels) - 1)
        fixed, weight = torch.zeros(self.shape, dtype=torch.bool), torch.ones(self.shape)
        fixed[0, actions:] = True
        fixed[-1, [actions + entry for entry in ends]] = True
        weight[0, :actions] = action_weight
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        """The predicted x_0, (B, L, X), of x_t after t steps, (B,) or a scalar."""
        padded = F.pad(noisy.mT, (0, self._padding), mode="replicate")
        predicted: Tensor = self.network(padded, step, return_dict=False)[0].mT
        return predicted[:, : self.shape[0]]

    def value(self, noisy: Tensor, step: Tensor) -> Tensor:
        """The value (B,) that is expected of x_t, (B, L, X), after t steps, (B,) or a scalar."""
        value: Tensor = self.values(noisy.mT, step.expand(len(noisy)), return_dict=False)[0]
        return value.squeeze(-1)

    def loss(self, clean: Tensor, mask: Tensor, value: Tensor | None = None) -> Tensor:
        """Weighted squared error of the predicted x_0 on real steps, and of its value.

        Args:
            clean: x_0, (B, L, X), of which known entries stay and count as predicted.
            mask: real steps, (B, L).
            value: of x_0, (B,), where values are learnt.
        """
        steps = self.schedule.config.num_train_timesteps
        step = torch.randint(steps, (len(clean),), device=clean.device)
        noisy = self.schedule.add_noise(clean, torch.randn_like(clean), step)
        noisy = torch.where(self.fixed, clean, noisy)
        error = torch.where(self.fixed, 0.0, self(noisy, step) - clean)
        loss = (self.weight * error.square() * mask.unsqueeze(-1)).mean()
        if value is None:
            return loss
        return loss + (self.value(noisy, step) - value).square().mean()

    def sample(
        self,
        known: Tensor,
        noise: Generators,
        *,
        guide_scale: float = 0.0,
        guide_steps: int = 0,
        unguided: int = 2,
    ) -> Tensor:
        """Denoise from pure noise (Algorithm 1 of Diffuser).

        Args:
            known: sequences (B, L, X) whose known entries hold.
            noise: where random numbers come from.
            guide_scale: see ``climb``.
            guide_steps: moves along the value's gradient before each step but the last ones.
            unguided: the last ones.

        Returns:
            Sequences, (B, L, X).
        """
        x = randn_tensor(known.shape, noise, known.device, known.dtype)
        for step in self.schedule.timesteps:
            x = torch.where(self.fixed, known, x)
            if step >= unguided:
                for _ in range(guide_steps):
                    x = self.climb(x, step, guide_scale)
            predicted = self(x, step.to(x.device))
            x = self.schedule.step(predicted, step, x, noise, return_dict=False)[0]
        return torch.where(self.fixed, known, x)

    def climb(self, noisy: Tensor, step: Tensor, scale: float) -> Tensor:
        """x_t moved along its value's gradient, times the variance of q(x_{t-1} | x_t, x_0)."""
        now, before = (self.schedule.alphas_cumprod[step - back] for back in (0, 1))
        variance = float((1 - before) / (1 - now) * (1 - now / before))
        with torch.enable_grad():
            noisy = noisy.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(noisy, step.to(noisy.device)).sum(), noisy)
        return torch.where(self.fixed, noisy, noisy + scale * variance * gradient).detach()

    def best(self, known: Tensor, noise: Generators, candidates: int, **guide: Any) -> Tensor:
        """The sample (B, L, X) of the highest value among some; without values, the first."""
        known = known.repeat_interleave(candidates, 0)
        samples: Tensor = self.sample(known, noise, **guide).unflatten(0, (-1, candidates))
        if not hasattr(self, "values"):
            return samples[:, 0]
        end = torch.zeros((), dtype=torch.int64, device=samples.device)
        chosen = self.value(samples.flatten(0, 1), end).view(-1, candidates).argmax(1)
        return samples[torch.arange(len(chosen), device=chosen.device), chosen]


def _unet(size: int, channels: Sequence[int], **changes: Any) -> nn.Module:
    """Diffuser's U-Net of sequences with ``size`` entries, (B, X, L)."""
    settings: dict[str, Any] = {
        "in_channels": size,
        "out_channels": size,
        "time_embedding_type": "positional",
        "flip_sin_to_cos": False,
        "use_timestep_embedding": True,
        "act_fn": "mish",
        "block_out_channels": tuple(channels),
        "down_block_types": ("DownResnetBlock1D",) * len(channels),
        "mid_block_type": "MidResTemporalBlock1D",
        "up_block_types": ("UpResnetBlock1D",) * (len(channels) - 1),
        "out_block_type": "OutConv1DBlock",
    }
    network: nn.Module = UNet1DModel(**{**settings, **changes})
    return network
