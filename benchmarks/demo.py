"""``make demo``: collect a maze dataset, train on it, compare with cloning, draw the plans."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tensordict import TensorDictBase

from benchmarks.baselines.bc import BehaviourCloning
from benchmarks.collect.pointmaze import PointMazeRecipe, collect
from benchmarks.collect.storage import minari_root
from mage_agent import MAGEConfig, MAGEPolicy, load_dataset
from mage_agent.d4rl import make_environment
from mage_agent.evaluation import evaluate, normalized_score
from mage_agent.visualize import plot_maze, plot_path, plot_plan

__all__ = ["run_demo"]

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
RECIPE = PointMazeRecipe(
    dataset_id="local/pointmaze/medium-v0", maze="medium", steps=40_000, max_episode_steps=300
)
# At the controller's speed 24 steps cross one cell; 48 make plans that turn corners.
CONFIG = MAGEConfig.preset("small", observation_keys=GOAL_KEYS, horizon=48)
EVALUATION_SEED = 100_000  # both methods meet the same starts and goals
ROUTE = {"reset_cell": np.array([6, 1]), "goal_cell": np.array([1, 6])}  # corner to corner

Env = gym.Env[Any, Any]


def run_demo(
    output: Path,
    *,
    recipe: PointMazeRecipe = RECIPE,
    config: MAGEConfig = CONFIG,
    cloning_steps: int = 10_000,
    episodes: int = 100,
    seed: int = 0,
    console: Console | None = None,
) -> None:
    """Run the demo; what ``output`` holds already is used again.

    Args:
        output: folder for the dataset, the trained policy, TensorBoard logs and the picture.
        recipe: what to collect.
        config: what to train.
        cloning_steps: gradient steps of behaviour cloning.
        episodes: evaluation episodes per method.
        seed: training seed.
        console: where to write.
    """
    console = console or Console()
    datasets = output / "datasets"

    console.rule("1. data")
    if (datasets / recipe.dataset_id).exists():
        console.print(f"using {datasets / recipe.dataset_id}; delete it to collect anew")
    else:
        collect(recipe, datasets)
    with minari_root(datasets):
        dataset = load_dataset(recipe.dataset_id, discount=config.discount)

    console.rule("2. training")
    cloning = BehaviourCloning(dataset, observation_keys=config.observation_keys, seed=seed)
    cloning.learn(dataset, steps=cloning_steps, seed=seed)
    policy = _trained_policy(dataset, config, output / "policy.mage", seed, console)

    console.rule("3. evaluation")
    table = _compare(dataset, policy, cloning, episodes)
    console.print(table)

    console.rule("4. picture")
    picture = output / "plan.png"
    _draw(make_environment(dataset), policy, cloning).savefig(picture, dpi=150)
    console.print(f"picture  {picture}\npolicy   {output / 'policy.mage'}\ndata     {datasets}")


def _trained_policy(
    dataset: TensorDictBase, config: MAGEConfig, path: Path, seed: int, console: Console
) -> MAGEPolicy:
    if path.exists():
        console.print(f"using {path}; delete it to train anew")
        return MAGEPolicy.load(path, device="cpu")
    policy = MAGEPolicy.from_dataset(dataset, config, device="cpu", seed=seed)
    policy.learn(dataset, progress_bar=True)
    policy.save(path)
    return policy


def _compare(
    dataset: TensorDictBase, policy: MAGEPolicy, cloning: BehaviourCloning, episodes: int
) -> Table:
    """Score the data, cloning, and MAGE asked for a middling and for the best return."""
    facts = dataset.get_non_tensor("metadata")
    reference = facts["ref_min_score"], facts["ref_max_score"]
    table = Table(
        "", "asked return", "return", "score", "reached the goal", title=facts["dataset_id"]
    )

    def add(name: str, returns: npt.NDArray[Any], reached: npt.NDArray[Any], asked: str) -> None:
        scores = normalized_score(returns, *reference)
        error = scores.std(ddof=1) / len(scores) ** 0.5
        table.add_row(
            name,
            asked,
            f"{returns.mean():.1f}",
            f"{scores.mean():.1f} ± {error:.1f}",
            f"{reached.mean():.0%}",
        )

    episode = dataset["episode"]
    returns = torch.zeros(int(episode[-1]) + 1).index_add(
        0, episode, dataset["next", "reward"].flatten()
    )
    add("data", returns.numpy(), (returns > 0).numpy(), "")

    starts = dataset["return_to_go"][dataset["step_count"] == 0]
    asked = {"MAGE, median asked": float(starts.median()), "MAGE": policy.target_return}
    for name, method in {"behaviour cloning": cloning, **dict.fromkeys(asked, policy)}.items():
        results = evaluate(
            method,
            partial(make_environment, dataset),
            episodes=episodes,
            seed=EVALUATION_SEED,
            num_envs=50,
            target_return=asked.get(name),
        )
        add(
            name,
            np.array([result.episode_return for result in results]),
            np.array([result.success for result in results]),
            f"{asked[name]:.1f}" if name in asked else "",
        )
    return table


def _path(
    env: Env, predict: Callable[[Any], npt.NDArray[Any]], seed: int
) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[Any]]]:
    """Run one episode corner to corner; return the positions (T, 2) and the first observation."""
    observation, _ = env.reset(seed=seed, options=ROUTE)
    first = {key: np.asarray(value).copy() for key, value in observation.items()}
    positions, done = [first["achieved_goal"]], False
    while not done:
        observation, _, terminated, truncated, _ = env.step(predict(observation))
        positions.append(observation["achieved_goal"].copy())
        done = terminated or truncated
    return np.array(positions), first


def _draw(env: Env, policy: MAGEPolicy, cloning: BehaviourCloning, rollouts: int = 8) -> Figure:
    """Draw rollouts of both methods above one plan, decoded scale by scale."""
    maze_map = env.get_wrapper_attr("maze").maze_map
    scales = policy.config.num_scales
    figure = Figure(figsize=(3.2 * scales, 9.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2, 1))
    wide, narrow = upper.subplots(1, 2), lower.subplots(1, scales, squeeze=False)[0]
    for axes in (*wide, *narrow):
        plot_maze(axes, maze_map)

    for axes, name, wrapped, method in (
        (wide[0], "behaviour cloning", env, cloning),
        (wide[1], "MAGE", policy.wrap(env), policy),
    ):
        for seed in range(rollouts):
            positions, first = _path(
                wrapped, lambda seen, act=method: act.predict(seen, deterministic=True)[0], seed
            )
            plot_path(axes, positions, goal=first["desired_goal"], alpha=0.8)
        axes.set_title(f"{name}: {rollouts} rollouts, corner to corner")

    start = np.concatenate([first[key] for key in policy.config.observation_keys])
    plan = policy.model.plan(
        torch.as_tensor(start, dtype=torch.float32)[None],
        torch.tensor([policy.target_return]),
        partial=True,
    )
    at = sum(first[key].size for key in policy.config.observation_keys[:1])
    plot_plan(narrow, plan, dimensions=(at, at + 1), goal=first["desired_goal"])
    lower.suptitle("one plan, coarse to fine")
    return figure


def main() -> None:
    """Run the demo as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    arguments = parser.parse_args()
    run_demo(arguments.output, seed=arguments.seed)


if __name__ == "__main__":
    main()
