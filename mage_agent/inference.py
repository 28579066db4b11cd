"""Faster acting: copies of a model that act and do nothing else."""

from __future__ import annotations

import copy
import warnings
from typing import Literal, get_args

import torch
from torch import nn

from mage_agent.model import MAGEModel
from mage_agent.nn.transformer import MultiScaleTransformer

__all__ = ["Weights", "optimize_for_inference"]

Weights = Literal["float32", "bfloat16", "int8"]


def optimize_for_inference(
    model: MAGEModel, weights: Weights = "float32", *, compiled: bool | None = None
) -> MAGEModel:
    """A copy of a model that acts faster; it can be neither trained nor saved.

    The transformer's weights are what acting reads again for every scale, so they are what is made
    smaller. ``python -m benchmarks.speed`` measures what each choice gains on a machine.

    Args:
        model: the model; it stays as it is.
        weights: of the transformer. "bfloat16" halves them, for GPUs. "int8" quarters them, each
            row with a scale of its own, and rounds the layers' inputs as well; for CPUs only.
        compiled: whether to compile deterministic acting into one graph (for each batch size, at
            its first call, which takes a minute), replayed as a CUDA graph on a GPU. None does so
            on GPUs, where launching the kernels one by one is what takes the time.

    Returns:
        The copy, in evaluation mode, with float32 inputs and outputs.

    Raises:
        ValueError: the weights are unknown, or int8 was asked for off the CPU.

    Example:
        >>> model = MAGEModel(MAGEConfig.preset("small"), observation_dim=3, action_dim=1)
        >>> fast = optimize_for_inference(model, "int8")
        >>> fast.act(torch.randn(5, 3), torch.zeros(5)).shape
        torch.Size([5, 1])
    """
    device = next(model.parameters()).device.type
    if weights not in get_args(Weights):
        raise ValueError(f"weights is {weights!r}; allowed: {get_args(Weights)}.")
    if weights == "int8" and device != "cpu":
        raise ValueError(f"weights='int8' is for CPUs, and the model is on {device!r}.")
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fast.only_acts = True
    if weights == "bfloat16":
        fast.transformer.bfloat16()
    elif weights == "int8":
        fast.transformer = _quantize(fast.transformer)
    if device == "cuda" if compiled is None else compiled:
        compile_mode = "reduce-overhead" if device == "cuda" else "default"
        fast.greedy_action = torch.compile(  # type: ignore[method-assign]
            fast.greedy_action, mode=compile_mode, fullgraph=True, dynamic=False
        )
    return fast


def _quantize(network: MultiScaleTransformer) -> MultiScaleTransformer:
    """Linear layers with 8-bit weights and inputs."""
    # torchao, its successor, needs compilation to be as fast on CPUs.
    quantization = torch.ao.quantization
    layers = {nn.Linear: quantization.per_channel_dynamic_qconfig}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized: MultiScaleTransformer = quantization.quantize_dynamic(network, layers)
    return quantized
