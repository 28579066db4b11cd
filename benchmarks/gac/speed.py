"""Seconds of GAC: a gradient step, a plan and an action, beside MAGE's and the DT's in one run."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.methods import build_method
from benchmarks.speed import Case, Row, interleave, make_dataset, rows
from mage_agent import GACLoss, Stage, total_loss

__all__ = ["Outer", "measure"]

_DATASET = "door-human-v1"
_STEPS = 20_000
INFERENCE: dict[str, dict[str, Any]] = {
    "persistent": {},
    "amortised": {"inference": "amortised"},
    "fresh, 100 inner steps": {"inference": "fresh", "inner_steps": 100, "inner_tolerance": 0.0},
}


class Outer:
    """One gradient step of a stage, with all that its batch needs before."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.batches = stage, stage.batches()
        stage.begin()
        self.optimizer = stage.make_optimizer()

    def __call__(self) -> None:
        """Take the step."""
        total_loss(self.stage.losses(next(self.batches))).backward()
        self.stage.step(self.optimizer, 0)


def measure(device: str, rounds: int) -> Iterator[Row]:
    """A step of training of each inference, and decisions of each query, at the small size."""
    dataset = make_dataset(_STEPS)
    build = partial(build_method, dataset=dataset, dataset_id=_DATASET, seed=0, device=device)
    steps: dict[str, Case] = {}
    for name, changes in INFERENCE.items():
        (stage,) = build("gac", changes=changes).model.stages(dataset)  # type: ignore[attr-defined]
        stage.loss.to(device)
        kept = stage.loss.store if isinstance(stage.loss, GACLoss) else None
        told = "" if kept is None else f", {_mebibytes(kept):.1f} MiB for {len(kept)} episodes"
        steps[f"GAC, {name}{told}"] = Outer(stage)
    for name, number in (("mage", 1), ("dt", 0)):
        stage = build(name).model.stages(dataset)[number]  # type: ignore[attr-defined]
        stage.loss.to(device)
        steps[name] = Outer(stage)
    yield from rows("gradient step", interleave(steps, max(3, rounds // 10), device), "mage")
    for batch in (1, 50):
        observation = dataset["observation"][:batch].numpy()
        plans: dict[str, Case] = {}
        for kind in ("max", "plus", "best", "prior"):
            method = build("gac", changes={"query": kind})
            plans[f"plan, {kind}"] = partial(method.predict, observation, deterministic=True)
        _, state = method.predict(observation, deterministic=True)
        plans["action"] = partial(method.predict, observation, state, deterministic=True)
        timings = interleave(plans, max(3, rounds // 10), device)
        yield from rows(f"GAC decides, batch {batch}", timings, "action")


def _mebibytes(store: Any) -> float:
    """Size of the kept posteriors with Adam's moments."""
    return float(sum(part.numel() * part.element_size() for part in store.buffers())) / 2**20
