"""Encoder and decoder: lossless where they can be, and bent towards the condition by adapters."""

from typing import Any

import pytest
import torch

from mage_agent.mage.autoencoder import Adapter, TrajectoryDecoder, TrajectoryEncoder

BODY: dict[str, Any] = {
    "trajectory_dim": 4,
    "horizon": 6,
    "temporal_stride": 2,
    "code_dim": 8,
    "width": 16,
    "num_blocks": 1,
    "num_heads": 2,
}


def make_decoder(adapter_dim: int | None = 4, **changes: Any) -> TrajectoryDecoder:
    return TrajectoryDecoder(**{**BODY, **changes}, observation_dim=3, adapter_dim=adapter_dim)


@pytest.mark.parametrize("stride", [1, 2, 6])
def test_shapes(stride: int) -> None:
    encoder = TrajectoryEncoder(**{**BODY, "temporal_stride": stride})
    latent = encoder(torch.randn(5, 6, 4), torch.randn(5, 1))
    assert latent.shape == (5, 6 // stride, 8)
    decoder = make_decoder(temporal_stride=stride)
    assert decoder(latent, torch.randn(5, 1)).shape == (5, 6, 4)
    assert decoder(latent, torch.randn(5, 1), torch.randn(5, 4)).shape == (5, 6, 4)


def test_every_step_and_the_return_reach_the_latent() -> None:
    encoder = TrajectoryEncoder(**BODY)
    x, target = torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 1, requires_grad=True)
    encoder(x, target).square().sum().backward()
    assert (x.grad.abs().sum((0, 2)) > 0).all()
    assert (target.grad != 0).all()


def test_order_in_time_matters_and_order_in_the_batch_does_not() -> None:
    encoder, x, target = TrajectoryEncoder(**BODY), torch.randn(5, 6, 4), torch.randn(5, 1)
    order, latent = torch.randperm(5), encoder(x, target)
    torch.testing.assert_close(encoder(x[order], target[order]), latent[order])
    backwards = encoder(x.flip(1), target)
    assert not torch.allclose(backwards.flip(1), latent)


def test_patches_come_back_in_order() -> None:
    """A decoder whose projection copies its input writes step t where step t was read."""
    encoder, decoder = TrajectoryEncoder(**BODY), make_decoder(None)
    encoder.blocks, decoder.blocks = torch.nn.ModuleList(), torch.nn.ModuleList()
    for module in (encoder, decoder):
        module.embed_return = torch.nn.Linear(1, 8)
        torch.nn.init.zeros_(module.embed_return.weight)
        torch.nn.init.zeros_(module.embed_return.bias)
        module.position = torch.nn.Parameter(torch.zeros(3, 8))
        module.norm, module.embed = torch.nn.Identity(), torch.nn.Identity()
    encoder.project = decoder.project = torch.nn.Identity()
    x, target = torch.randn(5, 6, 4), torch.randn(5, 1)
    assert torch.equal(decoder(encoder(x, target), target), x)


def test_adapters_start_as_the_identity_and_learn() -> None:
    adapter, x, condition = Adapter(16, 4, 3), torch.randn(5, 6, 16), torch.randn(5, 4)
    assert torch.equal(adapter(x, condition), x)
    torch.nn.init.normal_(adapter.up.weight)
    assert (adapter(x, condition) != x).any()
    assert (adapter(x, condition) != adapter(x, -condition)).any()


def test_adapters_bend_the_first_latent_step_only() -> None:
    adapter, x, condition = Adapter(16, 4, 3), torch.randn(5, 6, 16), torch.randn(5, 4)
    torch.nn.init.normal_(adapter.up.weight)
    bent = adapter(x, condition)
    assert (bent[:, 0] != x[:, 0]).any(dim=-1).all()
    assert torch.equal(bent[:, 1:], x[:, 1:])


def test_only_adapters_hear_the_condition() -> None:
    latent, target, condition = torch.randn(5, 3, 8), torch.randn(5, 1), torch.randn(5, 4)
    plain = make_decoder(None)
    assert len(plain.adapters) == 0
    assert torch.equal(plain(latent, target, condition), plain(latent, target))
    decoder = make_decoder()
    assert torch.equal(decoder(latent, target, condition), decoder(latent, target))
    for adapter in decoder.adapters:
        torch.nn.init.normal_(adapter.up.weight)
    guided = decoder(latent, target, condition)
    assert (guided != decoder(latent, target)).any()
    assert (guided != decoder(latent, target, -condition)).any()


def test_together_they_learn_to_copy() -> None:
    encoder, decoder = TrajectoryEncoder(**BODY), make_decoder(None)
    x, target = torch.randn(16, 6, 4), torch.randn(16, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(150):
        loss = (decoder(encoder(x, target), target) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * x.square().mean()


def test_adapters_make_a_frozen_decoder_respect_the_first_state() -> None:
    decoder, latent = make_decoder(adapter_dim=16), torch.randn(32, 3, 8)
    target, condition = torch.randn(32, 1), torch.randn(32, 4)
    optimizer = torch.optim.Adam(decoder.adapters.parameters(), lr=1e-2)

    def error() -> torch.Tensor:
        first: torch.Tensor = decoder(latent, target, condition)[:, 0]
        return (first - condition).square().mean()

    before = error().item()
    for _ in range(100):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert error() < 0.6 * before
