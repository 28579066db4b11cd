"""``make demo``: collect a maze dataset, train on it, compare with cloning, draw the plans."""

import argparse
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
from mage_agent import MAGEConfig, MAGEPolicy, load_dataset
from mage_agent.d4rl import make_environment
from mage_agent.evaluation import evaluate, normalized_score
from mage_agent.recording import minari_root
from mage_agent.visualize import plot_maze, plot_path, plot_plan

__all__ = ["run_demo"]

RECIPE = PointMazeRecipe(
    dataset_id="local/pointmaze/medium-v0", maze="medium", steps=40_000, max_episode_steps=300
)
# At the controller's speed 24 steps cross one cell; 48 make plans that turn corners. The stride
# keeps the number of tokens, and with it the time, the same.
CONFIG = MAGEConfig.preset(
    "maze2d-small",
    horizon=48,
    temporal_stride=6,
    batch_size=64,
    tokenizer_steps=3_000,
    generator_steps=2_500,
    inverse_dynamics_steps=3_000,
    return_expectile=0.9,  # from afar, the best return of the data is out of reach
)
EVALUATION_SEED = 100_000  # both methods meet the same starts and goals
ROUTE = {"reset_cell": np.array([6, 1]), "goal_cell": np.array([1, 6])}  # corner to corner

PLANNING_STEP = 20  # the plan drawn is made under way: a point at rest does not get far
POSITION = (0, 1)  # where the plan's observations hold the position

Env = gym.Env[Any, Any]
Observation = dict[str, npt.NDArray[Any]]


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
    policy = _trained_policy(dataset, config, output, seed, console)

    console.rule("3. evaluation")
    table = _compare(dataset, policy, cloning, episodes)
    console.print(table)

    console.rule("4. picture")
    picture = output / "plan.png"
    _draw(make_environment(dataset), policy, cloning).savefig(picture, dpi=150)
    console.print(f"{picture}: the picture")
    console.print(f"{output / 'policy.mage'}: the policy, for MAGEPolicy.load")
    console.print(f"{output / 'logs'}: the course of training, for tensorboard --logdir")
    console.print(f"{datasets}: the dataset, for MINARI_DATASETS_PATH")


def _trained_policy(
    dataset: TensorDictBase, config: MAGEConfig, output: Path, seed: int, console: Console
) -> MAGEPolicy:
    path = output / "policy.mage"
    if path.exists():
        policy = MAGEPolicy.load(path, device="cpu")
        if policy.config == config and policy.seed == seed:
            console.print(f"using {path}; delete it to train anew")
            return policy
    policy = MAGEPolicy.from_dataset(dataset, config, device="cpu", seed=seed)
    policy.learn(dataset, progress_bar=True, log_dir=output / "logs")
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


def _path(env: Env, method: MAGEPolicy | BehaviourCloning, seed: int) -> list[Observation]:
    """Run one episode corner to corner; return every observation."""
    observation, _ = env.reset(seed=seed, options=ROUTE)
    seen, done = [observation], False
    while not done:
        action, _ = method.predict(observation, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        seen.append({key: np.copy(value) for key, value in observation.items()})
        done = terminated or truncated
    return seen


def _draw(env: Env, policy: MAGEPolicy, cloning: BehaviourCloning, rollouts: int = 8) -> Figure:
    """Draw rollouts of both methods above one plan, decoded scale by scale."""
    scales = policy.config.num_scales
    figure = Figure(figsize=(3.2 * scales, 10), layout="constrained")
    # "A" and "B" hold rollouts; below them one panel per scale, named by a digit.
    panels = figure.subplot_mosaic(
        "A" * scales + "B" * scales + "\n" + "".join(f"{k}{k}" for k in range(scales)),
        height_ratios=(2, 1),
    )
    for axes in panels.values():
        plot_maze(axes, env.get_wrapper_attr("maze").maze_map)

    for seed in range(rollouts):
        cloned = _path(env, cloning, seed)
        planned = _path(policy.wrap(env), policy, seed)
        for axes, seen in ((panels["A"], cloned), (panels["B"], planned)):
            positions = [observation["achieved_goal"] for observation in seen]
            plot_path(axes, positions, goal=seen[0]["desired_goal"])
    panels["A"].set_title(f"behaviour cloning: {rollouts} rollouts, corner to corner")
    panels["B"].set_title(f"MAGE: {rollouts} rollouts, corner to corner")

    now = planned[PLANNING_STEP]
    parts = [torch.as_tensor(now[key]).float() for key in policy.config.observation_keys]
    plan = policy.model.plan(
        torch.cat(parts)[None],
        torch.as_tensor(now["return_to_go"])[None],
        partial=True,
    )
    went = [seen["achieved_goal"] for seen in planned[PLANNING_STEP:]][: policy.config.horizon]
    small = [panels[str(k)] for k in range(scales)]
    for axes in small:
        axes.plot(*np.transpose(went), color="0.8", linewidth=5)
    plot_plan(small, plan, dimensions=POSITION, goal=now["desired_goal"])
    figure.supxlabel("one plan, coarse to fine; grey: where the point then went")
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
