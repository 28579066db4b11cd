"""Look into a trained model: plans, tokens, first states, and returns asked and achieved.

    pip install '.[visualize]'
    python examples/visualize_plan.py --output plan.png

The data is a walk through a maze in the shape of a U, by walkers of different haste.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tensordict import TensorDict

from mage_agent import MAGEConfig, MAGEPolicy, load_dataset
from mage_agent.visualize import (
    plot_asked_and_achieved,
    plot_curves,
    plot_first_state_error,
    plot_maze,
    plot_plan,
    plot_token_usage,
)

MAZE = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
CORNERS = np.array([[-1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])  # from start to goal
LENGTH = 60


def walk(action: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, float]:
    """Where a step leads, and its reward: 1 near the goal."""
    position = position + 0.25 * np.clip(action, -1, 1)
    return position, float(np.linalg.norm(position - CORNERS[-1]) < 0.4)


def record(episodes: int) -> TensorDict:
    """Let walkers walk from corner to corner, and log every step."""
    random = np.random.default_rng(0)
    observations, actions, rewards = [], [], []
    for haste in random.uniform(0.3, 1, size=episodes):
        position, corner = CORNERS[0] + random.uniform(-0.3, 0.3, size=2), 1
        for _ in range(LENGTH):
            if np.linalg.norm(CORNERS[corner] - position) < 0.3 and corner < len(CORNERS) - 1:
                corner += 1
            direction = CORNERS[corner] - position
            action = haste * direction / max(0.3, float(np.linalg.norm(direction)))
            action = np.clip(action + 0.2 * random.standard_normal(2), -1, 1)
            observations.append(position)
            actions.append(action)
            position, reward = walk(action, position)
            rewards.append(reward)
    steps = np.arange(1, episodes * LENGTH + 1)
    return TensorDict(
        {
            "observation": np.array(observations),  # (N, 2)
            "action": np.array(actions),  # (N, 2)
            "next": {
                "reward": np.array(rewards)[:, None],  # (N, 1)
                "truncated": (steps % LENGTH == 0)[:, None],
                "terminated": np.zeros((len(steps), 1), dtype=bool),
            },
        },
        batch_size=[len(steps)],
    )


def run(policy: MAGEPolicy, target: float) -> tuple[np.ndarray, float]:
    """Walk one episode, asking for a return; the path (T, 2) and its discounted return."""
    position, achieved = CORNERS[0], 0.0
    asked, path = np.array([target], dtype=np.float32), [position]
    for step in range(LENGTH):
        observation = {"observation": position, "return_to_go": asked}
        action, _ = policy.predict(observation, deterministic=True)
        position, reward = walk(action, position)
        asked = policy.update_return_to_go(asked, np.array([reward], dtype=np.float32))
        achieved += policy.config.discount**step * reward
        path.append(position)
    return np.array(path), achieved


def main() -> None:
    """Record, train, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2_000, help="gradient steps in all")
    parser.add_argument("--output", type=Path, default=Path("plan.png"))
    args = parser.parse_args()

    dataset = load_dataset(record(args.episodes), action_low=-1, action_high=1)
    config = MAGEConfig.preset("small", codebook_size=64, inverse_dynamics_steps=2_000)
    policy = MAGEPolicy.from_dataset(dataset, config, device="cpu").learn(steps=args.steps)

    scales = config.num_scales
    figure = Figure(figsize=(3.4 * scales, 10), layout="constrained")
    rows = figure.subfigures(3)
    starts = torch.as_tensor(CORNERS[:1]).float()
    target = torch.tensor([policy.target_return])

    # One plan from the start, decoded after 1, 2, ... K scales.
    plan = policy.model.plan(starts, target, partial=True)
    panels = rows[0].subplots(1, scales)
    for axes in panels:
        plot_maze(axes, MAZE)
    plot_plan(panels, plan, goal=CORNERS[-1])

    # The same plan over time, and what then happened.
    path, _ = run(policy, policy.target_return)
    curves = rows[1].subplots(1, 2)
    plot_curves(curves, plan, dimensions=(0, 1), names=("x", "y"), actual=path[: config.horizon])

    # How the scales use the codebook, where plans begin, and returns asked and achieved.
    usage, beginning, asking = rows[2].subplots(1, 3)
    every = max(1, len(dataset) // 200)
    some, returns = dataset[::every], policy.model.returns_to_go(dataset)
    plans = {
        name: policy.model.plan(some["observation"], returns[::every], guided=guided)
        for name, guided in (("guided", True), ("unguided", False))
    }
    plot_token_usage(usage, plans["guided"].token_ids, config.codebook_size)
    plot_first_state_error(beginning, some["observation"], plans)
    initial = returns[dataset["step_count"] == 0]
    targets = initial.quantile(torch.linspace(0, 1, 5)).tolist()
    plot_asked_and_achieved(asking, targets, [run(policy, asked)[1] for asked in targets])
    asking.set_ylabel("achieved return (discounted)")

    figure.savefig(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
