"""How fast the device acts, plans and trains, against what it can do at most."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.findings import Bench, Finding, judged, relative_error
from benchmarks.speed import OBSERVATION, Case, Step, decision_transformer, interleave
from mage_agent import Query, fit, optimize_for_inference

__all__ = ["acting", "machine", "planning", "training"]

AGREE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest relative error of a faster copy's actions against the model's own."""


def machine(bench: Bench) -> Iterator[Finding]:
    """What the device can do at most: a large product, and a large copy."""
    gpu = bench.device != "cpu"
    yield Finding("machine", "CUDA devices", torch.cuda.device_count(), "")
    size = 8192 if gpu else 256
    left, right = (torch.randn(size, size, device=bench.device).bfloat16() for _ in range(2))
    block = torch.randn(2**28 if gpu else 2**18, device=bench.device)
    cases: dict[str, Case] = {"product": partial(torch.mm, left, right), "copy": block.clone}
    timings = interleave(cases, 10, bench.device)
    bench.peak = 2e3 * size**3 / timings["product"].median
    case = f"bfloat16 product of {size} x {size}"
    yield Finding("machine", case, bench.peak / 1e12, "TFLOP/s")
    moved = 2e3 * block.numel() * block.element_size() / timings["copy"].median
    yield Finding("machine", "copy, bytes read and written", moved / 1e9, "GB/s")


def training(bench: Bench) -> Iterator[Finding]:
    """Training steps of MAGE's second stage as ``fit`` takes them."""
    batch = bench.mage_config().batch_size
    for size in (batch,) if bench.tiny else (batch, 4 * batch):
        yield from _steps(
            bench, "eager", Step(bench.mage().to(bench.device), plain=False, batch=size), size
        )


def training_compiled(bench: Bench, times: int = 1) -> Iterator[Finding]:
    """The same steps with a compiled loss, replayed as CUDA graphs.

    Args:
        bench: what the sections share.
        times: batch size, as a multiple of the configuration's.
    """
    options: dict[str, str] = {"mode": "reduce-overhead"}
    if bench.tiny:
        options = {"backend": "aot_eager"}  # a test waits for no compiler
    size = times * bench.mage_config().batch_size
    step = Step(bench.mage().to(bench.device), plain=False, batch=size)
    step.stage.loss.compile(dynamic=False, **options)
    began = time.perf_counter()
    step()
    seconds = time.perf_counter() - began
    yield Finding(f"training, batch {size}, compiled", "first step", seconds, "s")
    yield from _steps(bench, "compiled", step, size)


def _steps(bench: Bench, kind: str, step: Step, size: int) -> Iterator[Finding]:
    """Milliseconds of a step, and its share of the products' rate."""
    plain = Step(bench.mage().to(bench.device), plain=False, batch=size)
    with FlopCounterMode(display=False) as counter:  # sees nothing of what is compiled
        plain()
    cases: dict[str, Case] = {"step": step, "sampling alone": step.sample}
    timings = interleave(cases, 3 if bench.tiny else 20, bench.device)
    group = f"training, batch {size}, {kind}"
    for name, timing in timings.items():
        yield Finding(group, name, timing.median, "ms")
    rate = 1e3 * counter.get_total_flops() / timings["step"].median
    yield Finding(group, "rate", rate / 1e12, "TFLOP/s")
    yield Finding(group, "share of the bfloat16 product's rate", rate / bench.peak, "")


def acting(bench: Bench) -> Iterator[Finding]:
    """Latency of an action, and whether the faster copies act as the model does."""
    device = bench.device
    model = bench.mage()
    fit(model, bench.dataset(), steps=bench.few, device=device, progress_bar=False)
    equal = {"n_layer": 8, "n_embd": 512, "n_head": 4, "n_inner": 2048}
    if bench.tiny:
        equal = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_inner": 64}
    rivals = {
        "DTActor, equal size": decision_transformer(device, **equal),
        "DTActor, default size": decision_transformer(device),
    }
    for batch in (1, 2) if bench.tiny else (1, 64):
        given = torch.randn(batch, OBSERVATION, device=device), torch.zeros(batch, device=device)
        cases: dict[str, Case] = {"MAGE, eager": partial(model.act, *given)}
        cases |= {name: rival(batch) for name, rival in rivals.items()}
        yield from _latencies(bench, cases, batch)
        for weights, compiled in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
            if compiled and (device == "cpu" or batch > 1):  # it takes a minute
                continue
            name = f"MAGE, optimised, {weights}" + ", compiled" * compiled
            fast = optimize_for_inference(model, weights, compiled=compiled)
            for _ in range(3):  # the last call replays the graph on new numbers
                asked = torch.randn_like(given[0]), given[1]
                error = relative_error(fast.act(*asked), model.act(*asked))
            case = f"{name}: actions against eager float32"
            group = f"acting, batch {batch}"
            yield judged(group, case, error, "relative", AGREE[weights])
            yield from _latencies(bench, {name: partial(fast.act, *given)}, batch)


def _latencies(bench: Bench, cases: dict[str, Case], batch: int) -> Iterator[Finding]:
    """Milliseconds of a decision, and their ratio to a Decision Transformer of default size."""
    against = decision_transformer(bench.device)(batch)
    timings = interleave({**cases, "": against}, 3 if bench.tiny else 50, bench.device)
    default = timings.pop("").median
    for name, timing in timings.items():
        yield Finding(f"acting, batch {batch}", name, timing.median, "ms")
        case = f"{name}, over DTActor's default"
        yield Finding(f"acting, batch {batch}", case, timing.median / default, "ratio")


def planning(bench: Bench) -> Iterator[Finding]:
    """GAC's plans: 200 forward and backward passes of a small network."""
    steps = 10 if bench.tiny else 200
    model = bench.gac().to(bench.device)
    model.query = dataclasses.replace(Query.of(model.config, "max"), steps=steps, tolerance=0.0)
    for batch in (1, 2) if bench.tiny else (1, 64):
        observation = torch.randn(batch, OBSERVATION, device=bench.device)
        case: Case = partial(model.act, observation)  # an episode begins, so a plan is made
        timing = interleave({"plan": case}, 1 if bench.tiny else 3, bench.device)["plan"]
        group = f"planning, {steps} steps of the query"
        yield Finding(group, f"GAC, batch {batch}", timing.median, "ms")
        yield Finding(group, f"GAC, batch {batch}", 1e3 * batch / timing.median, "plans/s")
