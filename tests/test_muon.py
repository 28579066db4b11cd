"""Muon: against singular values, and against AdamW where it does nothing of its own."""

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from mage_agent.nn.layers import Block
from mage_agent.nn.muon import Muon, orthogonalised
from mage_agent.stage import Stage


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(Block(8, 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x, _ = block(x)
        return x.square().mean()


def through_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """Five applications of the polynomial to the singular values alone."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return (u * s) @ v


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrices = 100 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrices)
    for matrix, result in zip(matrices, found, strict=True):
        torch.testing.assert_close(
            result.double(), through_singular_values(matrix), atol=1e-4, rtol=0
        )
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_no_momentum_is_no_direction() -> None:
    assert torch.equal(orthogonalised(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_matrices_of_blocks_follow_momentum_and_all_else_adam() -> None:
    torch.manual_seed(0)
    network, twin = Network(), Network()
    twin.load_state_dict(network.state_dict())
    muon = Muon([(f"it.{n}", p) for n, p in network.named_parameters()], lr=0.1, weight_decay=0.5)
    adam = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.5)
    matrices = {n for n, p in network.named_parameters() if p in muon.matrices}
    linear = ("attention.qkv", "attention.project", "mlp.0", "mlp.2")
    assert matrices == {f"blocks.{k}.{part}.weight" for k in (0, 1) for part in linear}
    expected = {n: p.detach().double() for n, p in network.named_parameters()}
    momentum = {n: torch.zeros_like(p) for n, p in expected.items()}
    for _ in range(3):
        x = torch.randn(5, 4, 3)
        network(x).backward()
        gradients = {n: p.grad.clone() for n, p in network.named_parameters()}
        for name, parameter in twin.named_parameters():  # the same gradients for both
            parameter.grad = gradients[name].clone()
        muon.step()
        adam.step()
        muon.zero_grad()
        for name in matrices:
            rows, columns = expected[name].shape
            slope = gradients[name].double()
            momentum[name] = 0.95 * momentum[name] + 0.05 * slope
            direction = through_singular_values(0.95 * momentum[name] + 0.05 * slope)
            kept = (1 - 0.1 * 0.5) * expected[name]
            expected[name] = kept - 0.1 * 0.2 * max(rows, columns) ** 0.5 * direction
    for name, parameter in network.named_parameters():
        other = expected[name] if name in matrices else dict(twin.named_parameters())[name].double()
        torch.testing.assert_close(parameter.double(), other, atol=1e-5, rtol=1e-4)


def test_a_step_uses_gradients_up_and_passes_over_what_has_none() -> None:
    network = Network()
    muon = Muon(network.named_parameters(prefix="it"), lr=0.1)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    muon.step()
    assert all(torch.equal(before[n], p) for n, p in network.named_parameters())
    assert not muon.state
    network(torch.ones(2, 4, 3)).backward()
    muon.step()
    assert all(matrix.grad is None for matrix in muon.matrices)


def test_a_closure_is_evaluated_first() -> None:
    weights = []
    for closed in (False, True):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
        layer = model["blocks"][0]  # type: ignore[index]
        optimizer = Muon(model.named_parameters("net"), lr=0.1)

        def loss(layer: Any = layer, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value: torch.Tensor = layer(torch.ones(2, 4)).square().sum()
            value.backward()
            return value

        if closed:
            assert optimizer.step(loss) > 0  # type: ignore[arg-type]
        else:
            loss()
            optimizer.step()
        weights.append(layer.weight.detach().clone())
    assert torch.equal(*weights)


def test_a_stage_knows_its_optimisers_by_name() -> None:
    stage = partial(Stage, name="all", loss=Network(), steps=1, columns=TensorDict, batch_size=1)
    made = [type(stage(optimizer=name).make_optimizer()) for name in ("adam", "muon")]
    assert made == [torch.optim.AdamW, Muon]
    for wrong in ("Muon", "sgd", None):
        with pytest.raises(ValueError, match=rf"of stage 'all' is {wrong!r}; it must be 'adam'"):
            stage(optimizer=wrong).make_optimizer()
