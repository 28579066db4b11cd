"""One dataset, one method, one seed: train, evaluate, append one record.

python -m benchmarks.run_cell --dataset local/pen/expert-v0 --method mage --seed 0
"""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase

from benchmarks.baselines import BASELINES
from benchmarks.tasks import Task, domain_of, task_of
from mage_agent import MAGEConfig, MAGEPolicy, load_dataset
from mage_agent.d4rl import make_environment
from mage_agent.evaluation import evaluate, normalized_score
from mage_agent.training import describe, versions


def hold_out(dataset: TensorDictBase, share: float) -> tuple[TensorDictBase, TensorDictBase]:
    """Split whole episodes off the end of a fixed random order."""
    episodes = dataset["episode"].unique()
    count = max(1, round(share * len(episodes))) if share else 0
    order = np.random.default_rng(0).permutation(len(episodes))
    held = torch.isin(dataset["episode"], episodes[order[:count].tolist()])
    return dataset[~held], dataset[held]


def train(
    method: str, task: Task, dataset: TensorDictBase, args: argparse.Namespace
) -> tuple[Any, dict[str, Any]]:
    """Train a method; return its policy and what the record says about the training."""
    changes = json.loads(args.config)
    if method in BASELINES:
        preset = MAGEConfig.preset(task.preset)
        policy = BASELINES[method](
            dataset,
            domain=domain_of(args.dataset),
            observation_keys=preset.observation_keys,
            discount=preset.discount,
            seed=args.seed,
            **changes,
        )
        policy.learn(dataset, steps=args.steps, seed=args.seed, progress_bar=not args.quiet)
        return policy, {"config": policy.hyperparameters}
    config = MAGEConfig.preset(f"{task.preset}-small", **changes)
    mage = MAGEPolicy.from_dataset(dataset, config, device="cpu", seed=args.seed)
    mage.learn(dataset, progress_bar=not args.quiet)
    return mage, {"config_digest": mage.config.digest, "config": mage.config.to_dict()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cell that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="Minari id")
    parser.add_argument("--method", choices=("mage", *BASELINES), default="mage")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--episodes", type=int, help="evaluation episodes; default: the task's")
    parser.add_argument("--evaluation-seed", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=30_000, help="of a baseline's training")
    parser.add_argument("--targets", default="", help="comma-separated returns to ask for as well")
    parser.add_argument("--config", default="{}", help="JSON of settings to change")
    parser.add_argument("--hold-out", type=float, default=0.05, help="share of episodes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/records.jsonl"))
    parser.add_argument("--save", type=Path, help="where to keep the trained model")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(arguments)

    torch.set_num_threads(args.threads)
    task = task_of(args.dataset)
    discount = MAGEConfig.preset(task.preset).discount
    dataset = load_dataset(args.dataset, discount=discount)
    facts = dict(dataset.get_non_tensor("metadata"))
    training, held = hold_out(dataset, args.hold_out)
    began = time.perf_counter()
    policy, about = train(args.method, task, training, args)
    seconds = time.perf_counter() - began
    if args.save is not None and args.method == "mage":
        policy.save(args.save)
    diagnosis = describe(policy.model, held) if args.method == "mage" else policy.describe(held)

    def score(target: float | None = None) -> list[float]:
        results = evaluate(
            policy,
            lambda: make_environment(dataset, **task.environment),
            episodes=args.episodes or task.episodes,
            seed=args.evaluation_seed,
            num_envs=50,
            target_return=target,
            deterministic=task.deterministic,
            progress_bar=not args.quiet,
        )
        returns = [result.episode_return for result in results]
        scores = normalized_score(returns, facts["ref_min_score"], facts["ref_max_score"])
        return [float(value) for value in scores]

    scores = score()
    targets = [float(value) for value in args.targets.split(",") if value]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    record = {
        "method": args.method,
        "dataset": args.dataset,
        "seed": args.seed,
        "score": float(np.mean(scores)),
        "scores": [round(value, 3) for value in scores],
        "asked": {target: float(np.mean(score(target))) for target in targets},
        "held_out": diagnosis,
        "training_seconds": round(seconds, 1),
        "threads": args.threads,
        "hardware": platform.processor() or platform.machine(),
        "versions": versions(),
        "commit": commit.stdout.strip(),
        **about,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
