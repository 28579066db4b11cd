"""A check of the moving averages that losses bootstrap from."""

import torch
from torch import nn

from mage_agent.mage.values import BootstrappedLoss


def check_average_follows(loss: BootstrappedLoss, network: nn.Module) -> None:
    """The moving average goes a hundredth of the way in a step, and all of it at the start."""
    before = [each.clone() for each in loss.target.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    loss.after_step(0)
    for old, new in zip(before, loss.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.01)
    loss.begin()
    pairs = zip(loss.target.parameters(), network.parameters(), strict=True)
    assert all(torch.equal(slow, fast) for slow, fast in pairs)
