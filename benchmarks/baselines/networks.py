"""Networks of the baselines, as TorchRL's losses take them."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

__all__ = ["Network", "critics", "mlp"]


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
    sizes: Sequence[int], *, layer_norm: bool = False, dropout: float = 0.0, tanh: bool = False
) -> nn.Sequential:
    """A perceptron with ReLU between its layers.

    Args:
        sizes: units of the input, of each hidden layer, and of the output.
        layer_norm: whether each ReLU is followed by a layer norm (ReBRAC).
        dropout: probability with which hidden units are dropped in training (IQL on Adroit).
        tanh: whether the output is squashed to (-1, 1).
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), nn.ReLU()]
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
