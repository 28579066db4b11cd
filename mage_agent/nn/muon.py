"""Muon: the matrices of hidden layers follow their momentum, orthogonalised."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

__all__ = ["Muon"]

_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of a polynomial that brings singular values near 1 within five applications."""


class Muon(torch.optim.AdamW):
    """AdamW, except for the weights of linear layers within blocks.

    Of these, the momentum U S V^T is followed as U V^T (Jordan et al. 2024), scaled to the root
    mean square of Adam's updates, so that both share one learning rate (Liu et al. 2025). PyTorch's
    own Muon, in 2.9 and later, computes in bfloat16, which many CPUs emulate: slower by a multiple.

    Args:
        named: names and parameters, as ``Module.named_parameters`` gives them.
        lr: learning rate.
        weight_decay: decoupled weight decay.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], *, lr: float, weight_decay: float = 0.0
    ) -> None:
        parameters = dict(named)
        super().__init__(parameters.values(), lr=lr, weight_decay=weight_decay, fused=True)
        self.matrices = {
            each
            for name, each in parameters.items()
            if each.ndim == 2 and ".blocks." in name and name.endswith(".weight")
        }

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Take a step; it uses up the gradients of the matrices."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for each in group["params"]:
                if each in self.matrices and each.grad is not None:
                    alike[each.shape].append(each)
            for shape, matrices in alike.items():
                directions = orthogonalised(torch.stack([self._direction(m) for m in matrices]))
                rate = 0.2 * max(shape) ** 0.5 * group["lr"]
                for matrix, direction in zip(matrices, directions, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(direction, alpha=rate)
        super().step()  # passes over what has no gradient
        return loss

    def _direction(self, matrix: nn.Parameter) -> Tensor:
        """Nesterov's momentum of a matrix, whose gradient is taken away."""
        gradient, matrix.grad = matrix.grad, None
        assert gradient is not None, "only matrices with a gradient are asked for"
        state = self.state[matrix]
        if not state:  # by the names that AdamW reads; it has no use for the numbers
            number = torch.zeros((), device=matrix.device)
            state.update(step=number, exp_avg=torch.zeros_like(matrix), exp_avg_sq=number.clone())
        momentum: Tensor = state["exp_avg"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(momentum, _MOMENTUM)


def orthogonalised(matrices: Tensor) -> Tensor:
    """The matrices U S V^T (..., M, N) as about U V^T, by five steps of Newton and Schulz."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalised(matrices.mT).mT
    a, b, c = _NEWTON_SCHULZ
    x: Tensor = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        squared = x @ x.mT
        x = a * x + (b * squared + c * squared @ squared) @ x
    return x
