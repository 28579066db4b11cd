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


class LinearPrior(nn.Module):
    """z_rest = eps, and z_y the first of them."""

    def forward(self, state: Tensor, noise: Tensor) -> Tensor:
        return torch.cat([noise[:, :1], noise], dim=1)


class LinearCritic(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(width, 1)


class Known(NamedTuple):
    """Exact answers for one trajectory: posterior N(mean, covariance), log p(tau, y | s_0)."""

    mean: Tensor
    covariance: Tensor
    evidence: Tensor


def linear_model(seed: int = 0, **changes: object) -> GACModel:
    """In double precision."""
    torch.manual_seed(seed)
    small = {"width": 2, "num_latents": 2, "num_heads": 1, "window": None, "context": 1}
    config = tiny_config(**{**small, **changes})
    model = GACModel(config, observation_dim=STATE, action_dim=ACTION)
    model.prior = LinearPrior()  # type: ignore[assignment]
    model.generator = LinearGenerator(config.num_latents * config.width)  # type: ignore[assignment]
    model.critic = LinearCritic(config.width)  # type: ignore[assignment]
    return model.double().eval()


def design(model: GACModel, trajectories: Trajectories, row: int) -> tuple[Tensor, ...]:
    """y_all = X eps + b + noise of one trajectory: matrix X, target y_all - b, variances."""
    length = int(trajectories.length[row])
    generator, critic = model.generator, model.critic
    action, change = generator.action.weight, generator.change.weight
    others = (model.config.num_latents - 1) * model.config.width
    value = torch.cat([critic.weight, torch.zeros(1, others)], dim=1)
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
