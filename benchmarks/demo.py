"""``make demo``: collect a maze dataset, train and score methods on it, draw plans, report."""

import argparse
from collections.abc import Sequence
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
from benchmarks.collect.maze2d import Maze2DRecipe, collect
from benchmarks.executors import LocalExecutor, fitting_workers
from benchmarks.experiment import SAVED
from benchmarks.papers import find_paper
from benchmarks.records import Record
from benchmarks.suite import SuiteError, run_suite
from mage_agent import (
    AgentPolicy,
    MAGEModel,
    MAGEPolicy,
    cut_episodes,
    load_dataset,
    make_environment,
    returns_to_go,
)
from mage_agent.evaluation import normalized_score
from mage_agent.recording import minari_root
from mage_agent.visualize import plot_maze, plot_path, plot_plan

__all__ = ["run_demo"]

# D4RL's maze2d-umaze by its own recipe, a tenth of its steps: a controller runs from place to
# place and never stays at the goal, so that what it did has to be put together anew.
RECIPE = Maze2DRecipe(maze="umaze", task="maze2d", steps=100_000)
# A smaller network than the preset's learns as much in so few minutes.
CHANGES: dict[str, Any] = {
    "width": 64,
    "batch_size": 64,
    "value_steps": 10_000,
    "tokenizer_steps": 1_200,
    "generator_steps": 1_500,
    "inverse_dynamics_steps": 6_000,
}
METHODS = (MAGEModel.name, "iql", "ten_percent_bc", "bc")  # the slowest are begun first
MINUTES = 1.75  # of training per method
EPISODES = 30  # of evaluation
ABOUT = (
    "It collects a maze dataset by D4RL's recipe, trains every method on it for a few minutes of "
    "one core, scores them in D4RL's protocol, and draws rollouts and a plan. Trainings so short "
    "do not rank methods; benchmarks/results does, and docs/benchmark.md says how that was run."
)
ROLLOUTS = 12
POSITION = (0, 1)  # where observations hold the position

Env = gym.Env[Any, Any]
Array = npt.NDArray[Any]


def run_demo(
    output: Path,
    *,
    recipe: Maze2DRecipe = RECIPE,
    changes: dict[str, Any] | None = None,
    minutes: float = MINUTES,
    episodes: int = EPISODES,
    seed: int = 0,
    rollouts: int = ROLLOUTS,
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
        rollouts: episodes of each method in the picture.
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
        settings = Settings(output=output, episodes=episodes, curve_points=0, save=True)
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
    _draw(make_environment(dataset), policy, cloning, rollouts).savefig(picture, dpi=150)
    for place, what in {
        picture: "the picture",
        path: "MAGE's policy, for MAGEPolicy.load",
        path.parent / "logs": "what its training logged, for tensorboard --logdir",
        datasets: "the dataset, for MINARI_DATASETS_PATH",
        report: "the report",
    }.items():
        console.print(f"{place}: {what}", soft_wrap=True)


def _table(dataset: TensorDictBase, records: list[Record]) -> Table:
    """Tabulate the scores of the data and of all methods, the best first."""
    facts = dataset.get_non_tensor("metadata")
    low, high = facts["ref_min_score"], facts["ref_max_score"]
    table = Table("", "score", "reached the goal", title=f"{facts['dataset_id']}, D4RL's scale")

    def add(name: str, scores: Array, reached: float) -> None:
        error = scores.std(ddof=1) / len(scores) ** 0.5
        table.add_row(name, f"{scores.mean():.1f} ± {error:.1f}", f"{reached:.0%}")

    for record in sorted(records, key=lambda record: -record["score"]):
        add(record["method"], np.array(record["scores"]), record["success_rate"])
    pieces = cut_episodes(dataset)  # of one endless run
    returns = returns_to_go(pieces["next", "reward"], pieces["episode"], discount=1)
    returns = returns[pieces["step_count"] == 0]
    add("data", normalized_score(returns.numpy(), low, high), float((returns > 0).float().mean()))
    return table


def _rollout(
    env: Env, policy: AgentPolicy, seed: int, start: Array | None = None
) -> list[dict[str, Array]]:
    """Run one episode from ``start``, or from anywhere; return every observation and success."""
    env = policy.wrap(env)
    observation, info = env.reset(seed=seed, options=None if start is None else {"start": start})
    seen, done = [{**observation, "success": info["success"]}], False
    while not done:
        action, _ = policy.predict(observation, deterministic=True)
        observation, _, terminated, truncated, info = env.step(action)
        copied = {key: np.copy(value) for key, value in observation.items()}
        seen.append({**copied, "success": info["success"]})
        done = terminated or truncated
    return seen


def _entries(seen: Sequence[dict[str, Array]], key: str) -> Array:
    """An entry of every observation, shape (T, ...)."""
    return np.array([observation[key] for observation in seen])


def _positions(seen: Sequence[dict[str, Array]]) -> Array:
    """Where the point was, shape (T, 2)."""
    return _entries(seen, "observation")[:, list(POSITION)]


def _draw(env: Env, policy: MAGEPolicy, cloning: AgentPolicy, rollouts: int) -> Figure:
    """Draw rollouts of both methods above one plan, decoded scale by scale."""
    scales = policy.config.num_scales
    figure = Figure(figsize=(3.2 * scales, 10), layout="constrained")
    # "A" and "B" hold rollouts; below them one panel per scale, named by a digit.
    panels = figure.subplot_mosaic(
        "A" * scales + "B" * scales + "\n" + "".join(f"{k}{k}" for k in range(scales)),
        height_ratios=(2, 1),
    )
    centre, goal = env.get_wrapper_attr("origin"), env.get_wrapper_attr("fixed_goal")
    for axes in panels.values():
        plot_maze(axes, env.get_wrapper_attr("maze").maze_map, centre=centre)

    for name, actor in (("A", cloning), ("B", policy)):
        for seed in range(rollouts):
            plot_path(panels[name], _positions(_rollout(env, actor, seed)), goal=goal)
    panels["A"].set_title(f"behaviour cloning: {rollouts} rollouts")
    panels["B"].set_title(f"MAGE: {rollouts} rollouts")

    places = env.get_wrapper_attr("places")
    far = places[np.linalg.norm(places - goal, axis=1).argmax()]
    seen = _rollout(env, policy, 0, far)
    arrived = int(_entries(seen, "success").argmax())  # 0: never
    under_way = seen[: arrived or None]
    observation = torch.as_tensor(_entries(under_way, "observation")).float()
    asked = torch.as_tensor(_entries(under_way, "return_to_go")).float()
    bent = _bend(policy.model.plan(observation, asked).observation[..., list(POSITION)]).argmax()
    plan = policy.model.plan(observation[bent, None], asked[bent, None], partial=True)
    small = [panels[str(k)] for k in range(scales)]
    then = _positions(seen)[bent : bent + policy.config.horizon]
    for axes in small:
        axes.plot(*then.T, color="0.8", linewidth=5)
    plot_plan(small, plan, dimensions=POSITION, goal=goal)
    figure.supxlabel(
        "on one rollout's way to the goal, the plan that turns most, coarse to fine; "
        "grey: where the point then went"
    )
    return figure


def _bend(paths: torch.Tensor) -> torch.Tensor:
    """How far to one side paths (N, T, 2) are of their first and last point's line, (N,)."""
    along = torch.nn.functional.normalize(paths[:, -1:] - paths[:, :1], dim=-1)
    across = torch.stack([-along[..., 1], along[..., 0]], dim=-1)
    return ((paths - paths[:, :1]) * across).sum(-1).mean(1).abs()  # zigzag cancels out


def main() -> None:
    """Run the demo as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    arguments = parser.parse_args()
    run_demo(arguments.output, seed=arguments.seed)


if __name__ == "__main__":
    main()
