"""Faster acting: copies of a model that act and do nothing else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mage_agent.mage.model import MAGEModel

__all__ = ["Weights", "optimize_for_inference"]

Weights = Literal["float32", "bfloat16", "float16", "int8"]


def optimize_for_inference(
    model: MAGEModel, weights: str = "float32", *, compiled: bool = False
) -> MAGEModel:
    """A copy of a model that acts faster; it can be neither trained nor saved.

    The transformer's weights are what acting reads again for every scale, so they are what is made
    smaller. ``python -m benchmarks.speed`` measures what each choice gains on a machine.

    Args:
        model: the model; it stays as it is.
        weights: of the transformer. "float16" halves them and computes in float32, for CPUs of the
            x86 family. "bfloat16" halves them and computes in bfloat16, for GPUs and for CPUs with
            native bfloat16. "int8" quarters them, each row with a scale of its own, and rounds the
            layers' inputs as well; for CPUs only.
        compiled: whether to compile deterministic acting, for each batch size at its first call,
            which takes seconds at small sizes and minutes at the paper's; for "float32" and
            "bfloat16". On GPUs, where most of the time goes into launching kernels, it is replayed
            as a CUDA graph in either case.

    Returns:
        The copy, in evaluation mode, with float32 inputs and outputs.

    Raises:
        ValueError: the weights are unknown, are not for this device, or cannot be compiled, or the
            model is such a copy.

    Example:
        >>> model = MAGEModel(MAGEConfig.preset("small"), observation_dim=3, action_dim=1)
        >>> fast = optimize_for_inference(model, "int8")
        >>> fast.act(torch.randn(5, 3), torch.zeros(5)).shape
        torch.Size([5, 1])
    """
    if model.only_acts:
        raise ValueError("this copy is optimized already; optimize the model itself.")
    device = next(model.parameters()).device.type
    if weights not in get_args(Weights):
        raise ValueError(f"weights is {weights!r}; allowed: {get_args(Weights)}.")
    packed: type[nn.Module] | None = {"float16": _Float16Linear, "int8": _Int8Linear}.get(weights)
    if packed is not None and device != "cpu":
        raise ValueError(f"weights={weights!r} is for CPUs, and the model is on {device!r}.")
    if packed is not None and compiled:
        raise ValueError(
            f"weights={weights!r} cannot be compiled; allowed with compiled=True: 'float32' and "
            "'bfloat16'."
        )
    if weights == "float16" and torch.backends.quantized.engine not in {"fbgemm", "x86"}:
        raise ValueError(
            "weights='float16' needs the quantized engine 'fbgemm' or 'x86', and here "
            f"torch.backends.quantized.engine is {torch.backends.quantized.engine!r}."
        )
    if weights == "bfloat16" and device == "cpu":
        if not _onednn_has_bfloat16():
            warnings.warn(
                "this processor has no bfloat16, so acting gets no faster and large batches "
                "slower; 'float16' and 'int8' are faster here.",
                stacklevel=2,
            )
        elif not compiled:
            packed = _PackedLinear
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fast.only_acts = True
    if weights == "bfloat16":
        fast.transformer.bfloat16()
    if packed is not None:
        _replace_linear(fast.transformer, packed)
    decide: Callable[..., Tensor] = fast.greedy_action
    if compiled:
        decide = torch.compile(decide, fullgraph=True, dynamic=False)
    if device == "cuda":
        decide = _Replayed(decide)
    fast.greedy_action = decide  # type: ignore[method-assign]
    return fast


class _Replayed:
    """A function of tensors as CUDA graphs, one for each size of its inputs, from its first call.

    An action at the paper's size is some thousand kernels, each of which takes longer to launch
    than to run.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, _Kept, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the function makes of the inputs."""
        sizes = tuple(part.shape for part in inputs)
        if sizes not in self.graphs:
            self.graphs[sizes] = _record(self.function, inputs)
        graph, kept, result = self.graphs[sizes]
        for own, part in zip(kept, inputs, strict=True):
            own.copy_(part)
        graph.replay()
        return result.clone()  # the next replay overwrites it


_Kept = tuple[Tensor, ...]


def _record(
    function: Callable[..., Tensor], inputs: _Kept
) -> tuple[torch.cuda.CUDAGraph, _Kept, Tensor]:
    """A CUDA graph of a function, the inputs that it reads, and the result that it writes."""
    kept = tuple(part.clone() for part in inputs)
    with torch.cuda.device(inputs[0].device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up, which no graph may hold
            function(*kept)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function(*kept)
    return graph, kept, result


class _Float16Linear(nn.Module):
    """A linear layer of float16 weights, whose products and sums are float32.

    With the few rows of a scale they are read at the memory's rate. ``nn.Linear`` has twice as many
    bytes to read, and was measured at a half (one row) to a quarter (eight) of that rate.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack_fp16(layer.weight.detach(), layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, (..., size) to (..., size)."""
        result: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return result


class _Int8Linear(nn.Module):
    """A linear layer whose weights, row by row, and inputs are rounded to 8 bits.

    The kernel is PyTorch's own. Its plainer successor, ``torch.ops.onednn.qlinear_pointwise``, was
    measured at 1.6 times its time for one row, since the inputs are rounded in calls of their own.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach()
        scale = weight.abs().amax(1).clamp_min(torch.finfo(weight.dtype).eps) / 127.5
        zero = torch.zeros(len(scale), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*quantize_per_channel.* are deprecated")
            rounded = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, (..., size) to (..., size)."""
        result: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, reduce_range=True)
        return result


class _PackedLinear(nn.Module):
    """A linear layer whose bfloat16 weights lie in oneDNN's own order.

    ``nn.Linear`` brings them into that order anew at every call: a fifth of the time of an action
    at the paper's size (measured). Float32 weights gain nothing from it.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), 8)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, (..., size) to (..., size)."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, "none", [], ""
        )
        return result


def _onednn_has_bfloat16() -> bool:
    """Whether this processor has oneDNN's kernels for bfloat16."""
    available = torch.backends.mkldnn.is_available()
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _replace_linear(network: nn.Module, layer_class: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace all linear layers of a network, in place."""
    for name, layer in list(network.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(network, name, layer_class(layer))
        else:
            _replace_linear(layer, layer_class)
