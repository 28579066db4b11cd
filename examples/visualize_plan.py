"""See what the model intends: one plan, decoded after 1, 2, ... K scales, coarse to fine.

    python examples/visualize_plan.py --output plan.png

The data are walks around a pillar, some tidy and some not; a return asks for the tidy ones.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mage_agent import MAGEConfig, MAGEPolicy, dataset_from_arrays
from mage_agent.visualize import plot_path, plot_plan


def walks(count: int, length: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Positions and moves of half circles, left or right, both of shape (count, length, 2)."""
    random = np.random.default_rng(0)
    angles = np.linspace(-np.pi / 2, np.pi / 2, length + 1)
    side = random.choice([-1.0, 1.0], size=(count, 1))
    path = np.stack([side * np.cos(angles), np.broadcast_to(np.sin(angles), (count, length + 1))])
    noise = random.uniform(0, 0.1, size=(count, 1)) * random.normal(size=path.shape)
    positions = np.moveaxis(path + noise, 0, -1)
    return positions[:, :-1], np.diff(positions, axis=1)


def main() -> None:
    """Train on walks, plan one, draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--walks", type=int, default=300)
    parser.add_argument("--steps", type=int, default=500, help="gradient steps per stage")
    parser.add_argument("--output", type=Path, default=Path("plan.png"))
    args = parser.parse_args()

    positions, moves = walks(args.walks)
    last = np.arange(positions.shape[1]) == positions.shape[1] - 1
    dataset = dataset_from_arrays(
        positions.reshape(-1, 2),
        moves.reshape(-1, 2),
        -np.abs(moves).sum(-1).reshape(-1),  # a tidy walk is a short one
        terminations=np.tile(last, args.walks),
        truncations=np.zeros(positions[..., 0].size, dtype=bool),
    )
    stages = ("tokenizer_steps", "generator_steps")
    config = MAGEConfig.preset("small", **dict.fromkeys(stages, args.steps))
    policy = MAGEPolicy.from_dataset(dataset, config).learn(dataset)

    start = torch.tensor([[0.0, -1.0]])
    asked = torch.tensor([[policy.target_return]])
    plan = policy.model.plan(start, asked, partial=True)

    figure = Figure(figsize=(3 * len(plan.partial), 3), layout="constrained")
    axes = figure.subplots(1, len(plan.partial), sharex=True, sharey=True)
    for panel in axes:
        for walk in positions[:20]:
            plot_path(panel, walk, colormap="Greys", width=0.5, alpha=0.5)
    plot_plan(axes, plan)
    figure.savefig(args.output, dpi=120)
    print(f"drew a plan of {config.horizon} steps in {len(plan.partial)} scales: {args.output}")


if __name__ == "__main__":
    main()
