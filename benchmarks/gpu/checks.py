"""Whether the GPU computes what the CPU does: numerics, bfloat16, and training taken up again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.findings import Bench, Finding, judged, relative_error
from mage_agent import (
    Agent,
    GACLoss,
    GACModel,
    MAGELoss,
    MAGEModel,
    MAGETokenizerLoss,
    Progress,
    fit,
    total_loss,
)
from mage_agent.checkpoint import load_tensors

__all__ = ["bfloat16", "numerics", "resume"]

CLOSE = 1e-3
"""Largest relative error of float32 against float32 on another device."""
DRAWN = "loss_condition"
"""Depends on samples, and devices draw different ones from the same seed."""


def numerics(bench: Bench) -> Iterator[Finding]:
    """Decisions, losses and gradients of trained agents, on the device against the CPU."""
    dataset = bench.dataset()
    agents: list[tuple[Agent, int]] = [
        (bench.mage(), bench.few),
        (_whole_episodes(bench), 4),
    ]
    for agent, count in agents:
        fit(agent, dataset, steps=count, device=bench.device, progress_bar=False)
        expected, found = (
            _outputs(copy.deepcopy(agent).to(device), bench) for device in ("cpu", bench.device)
        )
        for name, value in expected.items():
            case = f"{agent.name}, {name}, against CPU float32"
            yield judged("numerics", case, relative_error(found[name], value), "relative", CLOSE)


def _whole_episodes(bench: Bench) -> GACModel:
    """A GAC that learns from whole episodes: which windows are drawn differs between devices."""
    return bench.gac(
        window=None, inference="amortised", outer_steps=1, batch_size=16, query_steps=50
    )


def _outputs(agent: Agent, bench: Bench) -> dict[str, Tensor]:
    """What an agent decides on a few observations, and its losses and gradients on a batch."""
    dataset = bench.dataset()[:400]
    rows, device = (4, 64)[not bench.tiny], agent.device
    observation = dataset["observation"][:: 400 // rows][:rows].to(device)
    asked = agent.units.target_return.expand(rows)
    found = {"action": agent.act(observation, asked)}
    if isinstance(agent, MAGEModel):
        found["plan"] = agent.plan(observation, asked).observation
        stages = agent.stages(dataset)
        for stage, loss in zip(stages, (MAGETokenizerLoss(agent), MAGELoss(agent)), strict=False):
            batch = next(replace(stage, batch_size=rows).make_batches(0)).to(device)
            losses = loss.eval()(batch).exclude(DRAWN)
            parameters = [each for _, each in loss.named_parameters()]
            gradient = torch.autograd.grad(total_loss(losses), parameters, allow_unused=True)
            found[f"{stage.name} loss"] = total_loss(losses)
            found[f"{stage.name} gradient"] = _flat(gradient)
    elif isinstance(agent, GACModel):
        loss = GACLoss(agent, num_trajectories=len(dataset))
        (stage,) = agent.stages(dataset)
        batch = next(replace(stage, batch_size=2).make_batches(0)).to(device)
        trajectories = loss.trajectories(batch)
        noise = torch.randn(2, *agent.noise_shape, generator=torch.Generator().manual_seed(0))
        posterior, steps = agent.encode(trajectories), agent.draw(trajectories)
        bound = agent.evidence(trajectories, posterior, noise.to(device), steps).bound()
        gradient = torch.autograd.grad(bound.sum(), list(agent.parameters()), allow_unused=True)
        found |= {"bound": bound, "gradient": _flat(gradient)}
    return found


def _flat(gradient: tuple[Tensor | None, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in gradient if part is not None])


def bfloat16(bench: Bench) -> Iterator[Finding]:
    """Training in bfloat16 against training in float32: how far apart the losses end."""
    steps = 6 if bench.tiny else 80
    ends: dict[bool, dict[str, float]] = {}
    for narrow in (False, True):
        model = bench.mage(batch_size=8 if bench.tiny else 128).to(bench.device)
        ends[narrow] = {}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for stage in model.stages(bench.dataset())[:2]:
                stage = replace(stage, steps=steps)
                stage.begin()
                optimizer, batches, losses = stage.make_optimizer(), stage.batches(), []
                for step in range(steps):
                    with torch.autocast(model.device.type, torch.bfloat16, enabled=narrow):
                        loss = total_loss(stage.loss(next(batches)))
                    loss.backward()
                    stage.step(optimizer, step)
                    losses.append(loss.detach())
                stage.end()
                ends[narrow][stage.name] = float(torch.stack(losses[-steps // 4 :]).mean())
    for name, expected in ends[False].items():
        yield Finding("bfloat16", f"{name}, loss in float32 after {steps} steps", expected, "")
        error = abs(ends[True][name] / expected - 1)
        case = f"{name}, loss in bfloat16 against float32"
        yield judged("bfloat16", case, error, "relative", 0.05)


def resume(bench: Bench) -> Iterator[Finding]:
    """Training that was interrupted in its second stage, against training that was not.

    On a GPU, some of PyTorch's kernels add in no fixed order: without its deterministic
    algorithms, no two trainings are alike.
    """
    dataset, batch_size = bench.dataset(), 8 if bench.tiny else 64

    def trained(name: str, *, interrupted: bool = False) -> dict[str, Tensor]:
        path = bench.folder / f"{name}.state"

        def train(callback: Callable[[Progress], bool]) -> None:
            fit(
                bench.mage(batch_size=batch_size),
                dataset,
                seed=1,
                steps=90,
                device=bench.device,
                progress_bar=False,
                checkpoint_path=path,
                resume=True,
                callback=callback,
            )

        if interrupted:
            train(lambda progress: progress.stage == "tokenizer")
            _, header = load_tensors(path)
            place = header["training"]
            assert (place["stage"], place["step"]) == ("generator", 50), place
        train(lambda progress: True)
        return load_tensors(path)[0]

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole, again = trained("whole"), trained("again")
        parts = trained("parts", interrupted=True)
    finally:
        torch.use_deterministic_algorithms(False)
    for case, other in (("the same run twice", again), ("interrupted and resumed", parts)):
        differ = sum(not torch.equal(value, other[key]) for key, value in whole.items())
        case = f"deterministic algorithms, {case}"
        yield judged("resume", f"{case}: tensors that differ", differ, f"of {len(whole)}", 0)
        yield Finding("resume", f"{case}: weights", _apart(other, whole), "relative")
    case = "default algorithms, against the deterministic ones: weights"
    yield Finding("resume", case, _apart(trained("default"), whole), "relative")


def _apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """How far apart two trainings' weights are."""
    names = [key for key in expected if key.startswith("model.")]
    first, second = (
        torch.cat([each[key].flatten().double() for key in names]) for each in (found, expected)
    )
    return relative_error(first, second)
