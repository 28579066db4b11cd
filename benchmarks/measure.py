"""Measuring a trained method: scores by the protocol, and how long a decision takes."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensordict import TensorDictBase

from benchmarks.domains import Domain
from benchmarks.protocol import Method
from benchmarks.records import Record
from mage_agent import evaluate, make_environment
from mage_agent.evaluation import EpisodeResult, is_told_return, normalized_score

__all__ = ["measure", "run_episodes", "scored_by", "scores_of", "to_scores"]

_FIRST_SEED = 100_000  # of the report; docs/benchmark.md says what tuning saw of them
_SEEDS_APART = 1_000  # each training seed has its own block of them, common to all methods

_REFERENCES = {"ref_min_score", "ref_max_score"}  # of a dataset's metadata
_WARM_UP = 10
_REPEATS = {1: 200, 64: 30}  # timed decisions by batch size


def measure(
    method: Method,
    dataset: TensorDictBase,
    domain: Domain,
    *,
    seed: int,
    episodes: int,
    targets: Sequence[float] = (),
) -> Record:
    """Measure a trained method by the protocol.

    Args:
        method: trained.
        dataset: tells the environment and the references.
        domain: says how they are run.
        seed: of the training.
        episodes: number of episodes.
        targets: returns to ask for as well, if the method can be asked.

    Returns:
        Part of a record.
    """
    first = _FIRST_SEED + _SEEDS_APART * seed
    results = run_episodes(method, dataset, domain, episodes=episodes, seed=first)
    scores = scores_of(results, dataset)
    successes = [result.success for result in results]
    asked = {}
    if is_told_return(method):
        for target in targets:
            achieved = run_episodes(
                method, dataset, domain, episodes=episodes, seed=first, target_return=target
            )
            asked[str(target)] = float(np.mean(scores_of(achieved, dataset)))
    return {
        "score": float(np.mean(scores)),
        "scored_by": scored_by(dataset),
        "scores": [round(score, 3) for score in scores],
        "returns": [round(result.episode_return, 4) for result in results],
        "success_rate": None if None in successes else float(np.mean([bool(s) for s in successes])),
        "episodes": episodes,
        "evaluation_seed": first,
        "deterministic": _is_deterministic(method, domain),
        "asked": asked,
        "latency_ms": _time_decisions(method, dataset),
    }


def run_episodes(
    method: Method,
    dataset: TensorDictBase,
    domain: Domain,
    *,
    episodes: int,
    seed: int,
    target_return: float | None = None,
) -> list[EpisodeResult]:
    """Run a method in the environment that its dataset is evaluated in.

    Args:
        method: trained.
        dataset: tells the environment.
        domain: says how they are run.
        episodes: number of episodes.
        seed: episode i is reset with ``seed + i``.
        target_return: return to ask for; None is the method's own.
    """
    return evaluate(
        method,
        lambda: make_environment(dataset, **domain.environment),
        episodes=episodes,
        seed=seed,
        num_envs=50,
        target_return=target_return,
        deterministic=_is_deterministic(method, domain),
        progress_bar=False,
    )


def _is_deterministic(method: Method, domain: Domain) -> bool:
    """Whether a method takes its best action; one that stands for a draw says so itself."""
    own = getattr(method, "deterministic", None)
    drawn = getattr(getattr(method, "model", None), "samples", False)  # as it was published
    return domain.deterministic and not drawn if own is None else bool(own)


def scores_of(results: Sequence[EpisodeResult], dataset: TensorDictBase) -> list[float]:
    """Return the score of each episode, in the unit that ``scored_by`` names."""
    if scored_by(dataset) == "success":
        return [100.0 * bool(result.success) for result in results]
    return to_scores([result.episode_return for result in results], dataset)


def to_scores(returns: Sequence[float], dataset: TensorDictBase) -> list[float]:
    """Returns as normalised scores; as they are where the dataset has no references."""
    facts = dataset.get_non_tensor("metadata")
    if not set(facts) >= _REFERENCES:
        return list(returns)
    scores = normalized_score(list(returns), facts["ref_min_score"], facts["ref_max_score"])
    return [float(score) for score in scores]


def scored_by(dataset: TensorDictBase) -> str:
    """What episodes are scored by, whatever they come to.

    Returns:
        "references" (D4RL's normalised score), where the dataset's metadata have them; else
        "success" (percent), where the first step in the environment reports whether there was any;
        else "return".
    """
    if set(dataset.get_non_tensor("metadata")) >= _REFERENCES:
        return "references"
    env = make_environment(dataset)
    env.reset(seed=0)
    env.action_space.seed(0)
    reported = {"success", "is_success"} & set(env.step(env.action_space.sample())[-1])
    env.close()
    return "success" if reported else "return"


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
