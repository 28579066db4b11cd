"""A GAC whose generator and critic are linear: q(eps | tau, y) and log p(tau, y) are known."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from mage_agent.gac.model import GACModel
from mage_agent.gac.trajectory import Trajectories
from tests.gac.tiny import ACTION, STATE, tiny_config


class LinearGenerator(nn.Module):
    """Means of actions and changes: the same linear map of z_rest at every step."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.action = nn.Linear(size, ACTION)
        self.change = nn.Linear(size, STATE)

    def forward(
        self, observation: Tensor, action: Tensor, history: Tensor, latents: Tensor
    ) -> tuple[Tensor, Tensor]:
        shape = (*observation.shape[:3], -1)
        flat = latents.flatten(1)
        return (
            self.action(flat)[:, None, None].expand(shape),
            self.change(flat)[:, None, None].expand(shape),
        )


class LinearCritic(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(width, 1)


class Known(NamedTuple):
    """Exact answers for one trajectory: posterior N(mean, covariance), log p(tau, y | s_0)."""

    mean: Tensor
    covariance: Tensor
    evidence: Tensor


def linear_model(seed: int = 0, **changes: object) -> GACModel:
    """In double precision; z = eps, since the prior network starts as the identity."""
    torch.manual_seed(seed)
    small = {"width": 2, "num_latents": 2, "num_heads": 1, "window": None, "context": 1}
    config = tiny_config(**{**small, **changes})
    model = GACModel(config, observation_dim=STATE, action_dim=ACTION)
    model.generator = LinearGenerator(config.num_latents * config.width)  # type: ignore[assignment]
    model.critic = LinearCritic(config.width)  # type: ignore[assignment]
    return model.double().eval()


def design(model: GACModel, trajectories: Trajectories, row: int) -> tuple[Tensor, ...]:
    """y_all = X eps + b + noise of one trajectory: matrix X, target y_all - b, variances."""
    width = model.config.width
    length = int(trajectories.length[row])
    rest = model.config.num_latents * width
    generator, critic = model.generator, model.critic
    action = torch.cat([torch.zeros(ACTION, width), generator.action.weight], dim=1)
    change = torch.cat([torch.zeros(STATE, width), generator.change.weight], dim=1)
    value = torch.cat([critic.weight, torch.zeros(1, rest)], dim=1)
    matrix = torch.cat([*[action] * length, *[change] * length, value])
    target = torch.cat(
        [
            *(trajectories.action[row, :length] - generator.action.bias),
            *(trajectories.change[row, :length] - generator.change.bias),
            trajectories.value[row] - critic.bias,
        ]
    )
    variance = torch.cat(
        [
            model.action_std().square().repeat(length),
            model.change_std().square().repeat(length),
            torch.tensor([model.config.return_std**2]),
        ]
    )
    return matrix, target, variance


@torch.no_grad()
def known(model: GACModel, trajectories: Trajectories, row: int) -> Known:
    """Bayes' rule for a linear-Gaussian model, by matrices."""
    matrix, target, variance = design(model, trajectories, row)
    precision = torch.eye(matrix.shape[1]) + matrix.T @ (matrix / variance[:, None])
    covariance = torch.linalg.inv(precision)
    mean = covariance @ matrix.T @ (target / variance)
    marginal = matrix @ matrix.T + torch.diag(variance)
    evidence = MultivariateNormal(torch.zeros_like(target), marginal).log_prob(target)
    return Known(mean, covariance, evidence)
