"""As much training at the paper's size as the time allows, scored on all CPU cores."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.budgets import make_schedule
from benchmarks.domains import domain_of
from benchmarks.executors import fitting_workers
from benchmarks.gpu.findings import Bench, Finding
from benchmarks.measure import run_episodes, scored_by, scores_of
from benchmarks.methods import build_method
from benchmarks.protocol import AgentMethod
from mage_agent import load_dataset
from mage_agent.checkpoint import load

__all__ = ["scores"]

FIRST_SEED = 100_000
"""Of the episodes, as in the suite's protocol."""
OVERHEAD = 60.0
"""Seconds of each cell that no step of training may take: measuring, and the episodes."""


def scores(bench: Bench) -> Iterator[Finding]:
    """Train every method on every dataset, in equal shares of the time, and score it."""
    cells = [(dataset, method) for dataset in bench.datasets for method in bench.methods]
    ends = time.perf_counter() + bench.seconds
    for number, (dataset_id, name) in enumerate(cells):
        share = (ends - time.perf_counter()) / (len(cells) - number)
        yield from _cell(bench, dataset_id, name, share)


def _cell(bench: Bench, dataset_id: str, name: str, seconds: float) -> Iterator[Finding]:
    """Train and score one agent."""
    dataset, group = load_dataset(dataset_id), f"{name} on {dataset_id}"
    build = partial(
        build_method,
        name,
        dataset,
        dataset_id=dataset_id,
        seed=bench.seed,
        paper_size=not bench.tiny,
        device=bench.device,
    )
    minutes = max(seconds - OVERHEAD, 1.0 if bench.tiny else 30.0) / 60
    schedule = make_schedule(build, dataset, minutes, bench.device)
    method = build()
    began = time.perf_counter()
    method.learn(dataset, steps=schedule.steps, seed=bench.seed, progress_bar=False)
    trained = time.perf_counter() - began
    yield Finding(group, "steps", schedule.steps, f"of {method.published_steps}")
    yield Finding(group, "training", trained, "s")
    for key, value in method.describe(dataset).items():
        if key.startswith("action_error"):
            yield Finding(group, key, value, "squared error")
    path = bench.folder / "scored.mage"
    assert isinstance(method, AgentMethod)
    method.save(path)
    episodes = 2 if bench.tiny else domain_of(dataset_id).episodes
    workers = min(fitting_workers(1), episodes)
    began = time.perf_counter()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        starts = np.linspace(0, episodes, workers + 1).astype(int).tolist()
        parts = pool.map(partial(_episodes, path, dataset_id), starts[:-1], starts[1:])
        found = [score for part, _ in parts for score in part]
    yield Finding(group, f"score, {episodes} episodes", float(np.mean(found)), "points")
    error = float(np.std(found, ddof=1) / len(found) ** 0.5)
    yield Finding(group, "standard error over episodes", error, "points")
    yield Finding(group, f"episodes on {workers} cores", time.perf_counter() - began, "s")


def _episodes(path: Path, dataset_id: str, first: int, last: int) -> tuple[list[float], str]:
    """Scores of episodes ``first`` to ``last`` of a saved agent, on one thread of the CPU."""
    torch.set_num_threads(1)
    agent, _ = load(path)
    method, dataset = AgentMethod(agent, published_steps=1), load_dataset(dataset_id)
    results = run_episodes(
        method,
        dataset,
        domain_of(dataset_id),
        episodes=last - first,
        seed=FIRST_SEED + first,
    )
    return scores_of(results, dataset), scored_by(dataset)
