"""Measuring a trained method: scores by the protocol, and how long a decision takes."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensordict import TensorDictBase

from benchmarks.methods import Method
from benchmarks.records import Record
from benchmarks.tasks import Task
from mage_agent.d4rl import make_environment
from mage_agent.evaluation import EpisodeResult, ReturnConditionedPolicy, evaluate, normalized_score

__all__ = ["measure", "play", "scores_of"]

_FIRST_SEED = 100_000  # of the episodes of the report, which no tuning may meet
_SEEDS_APART = 1_000  # each training seed has its own block of them, common to all methods

_WARM_UP = 10
_REPEATS = {1: 200, 64: 30}  # timed decisions by batch size


def measure(
    method: Method,
    dataset: TensorDictBase,
    task: Task,
    *,
    seed: int,
    episodes: int,
    targets: Sequence[float] = (),
) -> Record:
    """Measure a trained method by the protocol.

    Args:
        method: trained.
        dataset: tells the environment and the references.
        task: the dataset's row in the task table.
        seed: of the training.
        episodes: number of episodes.
        targets: returns to ask for as well, if the method can be asked.

    Returns:
        Part of a record.
    """
    first = _FIRST_SEED + _SEEDS_APART * seed
    results = play(method, dataset, task, episodes=episodes, seed=first)
    scores = scores_of(results, dataset)
    successes = [result.success for result in results]
    asked = {}
    if isinstance(method, ReturnConditionedPolicy):
        for target in targets:
            achieved = play(
                method, dataset, task, episodes=episodes, seed=first, target_return=target
            )
            asked[str(target)] = float(np.mean(scores_of(achieved, dataset)))
    return {
        "score": float(np.mean(scores)),
        "scores": [round(score, 3) for score in scores],
        "returns": [round(result.episode_return, 4) for result in results],
        "success_rate": None if None in successes else float(np.mean([bool(s) for s in successes])),
        "episodes": episodes,
        "evaluation_seed": first,
        "deterministic": task.deterministic,
        "asked": asked,
        "latency_ms": _time_decisions(method, dataset),
    }


def play(
    method: Method,
    dataset: TensorDictBase,
    task: Task,
    *,
    episodes: int,
    seed: int,
    target_return: float | None = None,
) -> list[EpisodeResult]:
    """Run a method in the environment that its dataset is evaluated in.

    Args:
        method: trained.
        dataset: tells the environment.
        task: the dataset's row in the task table.
        episodes: number of episodes.
        seed: episode i is reset with ``seed + i``.
        target_return: return to ask for; None is the method's own.
    """
    return evaluate(
        method,
        lambda: make_environment(dataset, **task.environment),
        episodes=episodes,
        seed=seed,
        num_envs=50,
        target_return=target_return,
        deterministic=task.deterministic,
        progress_bar=False,
    )


def scores_of(results: Sequence[EpisodeResult], dataset: TensorDictBase) -> list[float]:
    """Return the normalised score of each episode; percent of successes without references.

    Raises:
        ValueError: the dataset has no reference scores, and its environment reports no success.
    """
    facts = dict(dataset.get_non_tensor("metadata"))
    if "ref_min_score" in facts and "ref_max_score" in facts:
        returns = [result.episode_return for result in results]
        scores = normalized_score(returns, facts["ref_min_score"], facts["ref_max_score"])
        return [float(score) for score in scores]
    successes = [result.success for result in results]
    if None in successes:
        raise ValueError(
            f"the dataset {facts.get('dataset_id')!r} has no ref_min_score and ref_max_score, and "
            "its environment reports no success, so episodes cannot be scored; add the references "
            "to its metadata."
        )
    return [100.0 * bool(success) for success in successes]


def _time_decisions(method: Method, dataset: TensorDictBase) -> dict[str, dict[str, float]]:
    """Time ``predict`` on observations of the data.

    Returns:
        By batch size, milliseconds per call: median and 99th percentile by the clock, and the
        median of processor time, which does not grow when the machine is busy.
    """
    keys = [key for key in dataset["next"].keys() if key in dataset.keys()]  # noqa: SIM118
    latencies = {}
    for batch, repeats in _REPEATS.items():
        rows = [dataset[key][np.arange(batch) % len(dataset)].numpy() for key in keys]
        observation: Any = dict(zip(keys, rows, strict=True)) if len(keys) > 1 else rows[0]
        clock, processor, state = [], [], None
        for _ in range(_WARM_UP + repeats):
            before = time.perf_counter(), time.process_time()
            _, state = method.predict(observation, state, None, True)
            clock.append(1e3 * (time.perf_counter() - before[0]))
            processor.append(1e3 * (time.process_time() - before[1]))
        latencies[f"batch_{batch}"] = {
            "median": float(np.median(clock[_WARM_UP:])),
            "p99": float(np.percentile(clock[_WARM_UP:], 99)),
            "processor_median": float(np.median(processor[_WARM_UP:])),
        }
    return latencies
