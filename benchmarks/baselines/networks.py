"""Networks of the baselines, for TorchRL's losses and for those written out here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.distributions import Normal

__all__ = ["Ensemble", "Gaussian", "Network", "critics", "follow", "frozen", "mlp", "xavier"]


class Network(TensorDictModuleBase):  # type: ignore[misc]
    """Layers on the concatenation of some entries of a TensorDict.

    ``TensorDictModule`` would do; but it searches the disk for an optional package each time it
    writes, which costs as much as a layer (0.2 ms, five times per step of TD3+BC).

    Args:
        layers: from (B, sum of input sizes) to one output or a tuple of outputs.
        in_keys: entries to read, concatenated in this order.
        out_keys: entries to write, one per output.
    """

    def __init__(self, layers: nn.Module, in_keys: Sequence[str], out_keys: Sequence[str]) -> None:
        super().__init__()
        self.layers = layers
        self.in_keys = list(in_keys)
        self.out_keys = list(out_keys)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the outputs into the TensorDict."""
        outputs = self.layers(torch.cat([tensordict.get(key) for key in self.in_keys], -1))
        if isinstance(outputs, Tensor):
            outputs = (outputs,)
        for key, output in zip(self.out_keys, outputs, strict=True):
            tensordict.set(key, output)
        return tensordict


def mlp(
    sizes: Sequence[int],
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    layer_norm: bool = False,
    dropout: float = 0.0,
    tanh: bool = False,
) -> nn.Sequential:
    """A perceptron.

    Args:
        sizes: units of the input, of each hidden layer, and of the output.
        activation: makes what stands between its layers.
        layer_norm: whether each activation is followed by a layer norm (ReBRAC).
        dropout: probability with which hidden units are dropped in training (IQL on Adroit).
        tanh: whether the output is squashed to (-1, 1).
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), activation()]
        layers += [nn.LayerNorm(after)] if layer_norm else []
        layers += [nn.Dropout(dropout)] if dropout else []
    layers.append(nn.Linear(sizes[-2], sizes[-1]))
    return nn.Sequential(*layers, nn.Tanh()) if tanh else nn.Sequential(*layers)


def critics(make: Callable[[], nn.Module], count: int = 2) -> list[Network]:
    """Independent critics Q(s, a).

    TorchRL can make copies of one by itself, but redraws their weights uniformly between the
    smallest and the largest, whatever the initialisation was.

    Args:
        make: returns new layers from (B, S + A) to (B, 1).
        count: how many.
    """
    return [
        Network(make(), ["observation", "action"], ["state_action_value"]) for _ in range(count)
    ]


class Ensemble(nn.Module):
    """Independent scalar networks on the concatenation of their inputs.

    Args:
        make: returns new layers from (..., sum of input sizes) to (..., 1).
        count: how many networks E.
    """

    def __init__(self, make: Callable[[], nn.Module], count: int = 2) -> None:
        super().__init__()
        self.members = nn.ModuleList(make() for _ in range(count))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Values (E, ...) of inputs (..., size)."""
        joined = torch.cat(inputs, -1)
        return torch.stack([member(joined).squeeze(-1) for member in self.members])


class Gaussian(nn.Module):
    """Mean and standard deviation, which does not depend on the state, of a Gaussian policy."""

    def __init__(self, mean: nn.Module, action_dim: int) -> None:
        super().__init__()
        self.mean = mean
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Both (..., A), for observations (..., S)."""
        mean = self.mean(observation)
        return mean, self.log_std.clamp(-5.0, 2.0).exp().expand_as(mean)

    def log_prob(self, observation: Tensor, action: Tensor) -> Tensor:
        """Log-densities (...) of actions (..., A)."""
        mean, deviation = self(observation)
        density: Tensor = Normal(mean, deviation, validate_args=False).log_prob(action)
        return density.sum(-1)

    def draw(
        self, observation: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Actions (..., A), whose deviation ``temperature`` scales; at 0, nothing is drawn."""
        mean: Tensor
        mean, deviation = self(observation)
        if temperature == 0:
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        drawn: Tensor = mean + temperature * deviation * noise
        return drawn


def xavier(layers: nn.Sequential) -> nn.Sequential:
    """Start from Xavier's uniform weights and no biases, as JAX's libraries do."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return layers


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move a network's weights towards another's, by a part ``rate`` of the distance, in place."""
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        ours.lerp_(theirs, rate)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients flow through the module's outputs made inside, not into its weights."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
