"""``make demo``: collect a maze dataset, run the quick suite on it, draw plans, and report.

A smoke run: it shows that every part works, in minutes; so short trainings rank no methods.
"""

import argparse
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

from benchmarks.cells import Cell, Settings, folder_of
from benchmarks.collect.pointmaze import PointMazeRecipe, collect
from benchmarks.domains import domain_of
from benchmarks.executors import LocalExecutor, fitting_workers
from benchmarks.experiment import SAVED
from benchmarks.papers import find_paper
from benchmarks.records import Record
from benchmarks.suite import SuiteError, run_suite
from mage_agent import (
    AgentPolicy,
    MAGEModel,
    MAGEPolicy,
    load_dataset,
    make_environment,
    returns_to_go,
)
from mage_agent.evaluation import normalized_score
from mage_agent.recording import minari_root
from mage_agent.visualize import plot_maze, plot_path, plot_plan

__all__ = ["run_demo"]

RECIPE = PointMazeRecipe(
    dataset_id="local/pointmaze/medium-v0", maze="medium", steps=40_000, max_episode_steps=300
)
# At the controller's speed 24 steps cross one cell; 48 make plans that turn corners. The stride
# keeps the number of tokens, and with it the time, the same. In so few minutes, most steps go to
# inverse dynamics, which is cheap to train, and the network is small.
CHANGES: dict[str, Any] = {
    "horizon": 48,
    "temporal_stride": 6,
    "width": 64,
    "batch_size": 64,
    "tokenizer_steps": 1_200,
    "generator_steps": 1_000,
    "inverse_dynamics_steps": 12_000,
    "value_steps": 3_000,
}
METHODS = ("dt", MAGEModel.name, "iql", "ten_percent_bc", "bc")  # the slowest are begun first
MINUTES = 1.3  # of training per method
EPISODES = 50  # of evaluation: the Decision Transformer would need two minutes for 100
ABOUT = (
    "A smoke run: it collects a maze dataset, trains and scores every method on it for a minute or "
    "two, and draws plans, which shows that all parts work together. So short trainings do not "
    "rank methods; benchmarks/results does, and docs/benchmark.md says how that was run."
)
ROUTE = {"reset_cell": np.array([6, 1]), "goal_cell": np.array([1, 6])}  # corner to corner

PLANNING_STEP = 20  # the plan drawn is made under way: a point at rest does not get far
POSITION = (0, 1)  # where the plan's observations hold the position

Env = gym.Env[Any, Any]
Observation = dict[str, npt.NDArray[Any]]


def run_demo(
    output: Path,
    *,
    recipe: PointMazeRecipe = RECIPE,
    changes: dict[str, Any] | None = None,
    minutes: float = MINUTES,
    episodes: int = EPISODES,
    seed: int = 0,
    workers: int | None = None,
    console: Console | None = None,
) -> None:
    """Run the demo; what ``output`` holds already is used again.

    Args:
        output: folder for the dataset, the trained methods, their records, the report and the
            picture.
        recipe: what to collect.
        changes: of MAGE's configuration; None is ``CHANGES``.
        minutes: processor minutes of training per method.
        episodes: evaluation episodes per method.
        seed: training seed.
        workers: methods to train at a time; None is as many as fit.
        console: where to write.

    Raises:
        SuiteError: a method failed, or another suite uses the folder.
    """
    console = console or Console()
    output = output.resolve()
    datasets, planner = output / "datasets", MAGEModel.name

    console.print(ABOUT)
    console.rule("1. data")
    if (datasets / recipe.dataset_id).exists():
        console.print(f"using {datasets / recipe.dataset_id}; delete it to collect anew")
    else:
        collect(recipe, datasets)
    with minari_root(datasets):
        dataset = load_dataset(recipe.dataset_id)
        discount = domain_of(recipe.dataset_id).discount
        returns = returns_to_go(dataset["next", "reward"], dataset["episode"], discount)
        middling = float(returns[dataset["step_count"] == 0].median())

        console.rule(f"2. training and evaluation, {minutes:g} minutes each")
        cells = {
            method: Cell(
                dataset=recipe.dataset_id,
                method=method,
                seed=seed,
                budget="quick",
                minutes=minutes,
                changes=(CHANGES if changes is None else changes) if method == planner else {},
            )
            for method in METHODS
        }
        settings = Settings(output=output, episodes=episodes, targets=(middling,), save=True)
        workers = workers or min(fitting_workers(settings.threads), len(cells))
        records, report = run_suite(
            list(cells.values()),
            settings,
            LocalExecutor(workers),
            workers=workers,
            retry_failed=True,
            console=console,
            paper=find_paper(planner),
        )
    if failed := [record["method"] for record in records if record["status"] != "ok"]:
        raise SuiteError(f"{', '.join(failed)} failed, why is told in {report}; try again.")
    console.print(_table(dataset, records))

    console.rule("3. picture")
    path, cloned = (folder_of(cells[name], settings) / SAVED for name in (planner, "bc"))
    policy = MAGEPolicy.load(path, device="cpu")
    cloning = AgentPolicy.load(cloned, device="cpu")
    picture = output / "plan.png"
    _draw(make_environment(dataset), policy, cloning).savefig(picture, dpi=150)
    for place, what in {
        picture: "the picture",
        path: "MAGE's policy, for MAGEPolicy.load",
        path.parent / "logs": "what its training logged, for tensorboard --logdir",
        datasets: "the dataset, for MINARI_DATASETS_PATH",
        report: "the report",
    }.items():
        console.print(f"{place}: {what}", soft_wrap=True)


def _table(dataset: TensorDictBase, records: list[Record]) -> Table:
    """Tabulate the data's score, all methods', and MAGE's when asked for a middling return."""
    facts = dataset.get_non_tensor("metadata")
    table = Table("", "score", "reached the goal", title=f"{facts['dataset_id']}, a smoke run")

    def add(name: str, scores: npt.NDArray[Any], reached: float) -> None:
        error = scores.std(ddof=1) / len(scores) ** 0.5
        table.add_row(name, f"{scores.mean():.1f} ± {error:.1f}", f"{reached:.0%}")

    episode = dataset["episode"]
    returns = torch.zeros(int(episode[-1]) + 1).index_add(
        0, episode, dataset["next", "reward"].flatten()
    )
    scores = normalized_score(returns.numpy(), facts["ref_min_score"], facts["ref_max_score"])
    add("data", scores, float((returns > 0).float().mean()))
    for record in records:
        add(record["method"], np.array(record["scores"]), record["success_rate"])
        for target, score in record["asked"].items():
            table.add_row(f"  asked for {float(target):.1f}, its median", f"{score:.1f}", "")
    return table


def _path(env: Env, policy: AgentPolicy, seed: int) -> list[Observation]:
    """Run one episode corner to corner; return every observation."""
    observation, _ = env.reset(seed=seed, options=ROUTE)
    seen, done = [observation], False
    while not done:
        action, _ = policy.predict(observation, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        seen.append({key: np.copy(value) for key, value in observation.items()})
        done = terminated or truncated
    return seen


def _draw(env: Env, policy: MAGEPolicy, cloning: AgentPolicy, rollouts: int = 8) -> Figure:
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
