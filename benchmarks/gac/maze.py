"""Figure 3, Tables 11 and 12: a maze by start cell, what a plan does in it, and how plans lie."""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from benchmarks.gac.trained import Trained
from mage_agent import Query, make_environment
from mage_agent.gac.queries import make_plan

__all__ = ["distances", "draw", "layout_of", "measure", "rollouts"]

Array = NDArray[np.float64]

_PALETTE = ("#3a86c8", "#e08a1e", "#5a9e3c", "#d1495b", "#8e6bbf", "#1f9e91", "#a87f3f")


def layout_of(trained: Trained) -> tuple[list[list[int]], list[list[float]]]:
    """The maze's rows, 1 where there is a wall, and its free places, positions (row, column).

    Raises:
        ValueError: the dataset's environment is no Maze2D with a fixed goal.
    """
    env = make_environment(trained.dataset, **trained.domain.environment)
    places = getattr(env.unwrapped, "places", None)
    if places is None or getattr(env.unwrapped, "fixed_goal", None) is None:
        raise ValueError(f"{env} is no Maze2D with a fixed goal; this figure is of such mazes.")
    rows, columns = places.max(0).astype(int) + 2
    maze = np.ones((rows, columns), dtype=int)
    maze[tuple(places.astype(int).T)] = 0
    env.close()
    return maze.tolist(), places.tolist()


def measure(
    trained: Trained, episodes: int = 10, clusters: int = 5, grid: int = 5, paths: int = 12
) -> dict[str, Any]:
    """All that the figure shows.

    Args:
        trained: the model.
        episodes: for each start cell.
        clusters: of the plans.
        grid: plans along each axis of a cell.
        paths: trajectories of the data, and of the last stage, to draw.
    """
    maze, places = layout_of(trained)
    first = min(1, trained.last)
    asked = [(first, "prior"), *((stage, "max") for stage in trained.stages if stage >= first)]
    heat = {}
    for stage, kind in asked:
        runs = trained.run(trained.asking(stage, kind), kind, episodes * len(places), starts=places)
        returns = np.array([result.episode_return for result in runs]).reshape(-1, len(places))
        heat[f"stage {stage}, {kind}"] = returns.mean(0).round(3).tolist()
    spread = np.linspace(-0.45, 0.45, grid)
    offsets = np.stack(np.meshgrid(spread, spread), -1).reshape(-1, 2)
    starts = (np.array(places)[:, None] + offsets).reshape(-1, 2)
    return {
        "maze": maze,
        "places": places,
        "heat": heat,
        "data": _of_the_data(trained, paths),
        "paths": rollouts(trained, places, paths),
        **_plans(trained, starts, clusters),
    }


def _of_the_data(trained: Trained, paths: int) -> list[Any]:
    """Positions along some trajectories of the data that reach the goal's reward."""
    dataset = trained.stages[0].model.trajectories(trained.dataset)
    number = dataset["episode"]
    count = int(number[-1]) + 1
    total = torch.zeros(count).index_add_(0, number, dataset["next", "reward"].flatten())
    rewarded = (total > 0).nonzero().flatten()
    chosen = (rewarded if len(rewarded) else torch.arange(count))[:paths]
    return [
        dataset["observation"][number == each][:, :2].double().numpy().round(2).tolist()
        for each in chosen
    ]


def rollouts(
    trained: Trained, starts: list[list[float]], paths: int, *, policy: Any = None
) -> list[Any]:
    """Positions along episodes of the last stage that ask for the most."""
    seen: list[Array] = []
    policy = trained.asking(trained.last, "max") if policy is None else policy

    class Watched:
        def predict(self, observation: Any, *rest: Any) -> Any:
            seen.append(np.array(observation)[:, :2])
            return policy.predict(observation, *rest)

    count = min(paths, 50)
    trained.run(Watched(), "max", count, starts=starts)
    walked: list[Any] = np.stack(seen, 1).round(2).tolist()
    return walked[:paths]


@torch.no_grad()
def _plans(trained: Trained, starts: Array, clusters: int) -> dict[str, Any]:
    """The plans that ask for the most from a grid of starts, their clusters and distances."""
    model = trained.stages[trained.last].model
    still = torch.zeros(len(starts), model.observation_dim)
    still[:, :2] = torch.as_tensor(starts)
    state = model.units.observation(still)
    generator = torch.Generator().manual_seed(0)
    query = Query.of(model.config, "max")
    best = make_plan(model, state, query, sample=True, generator=generator).latents.flatten(1)
    prior = make_plan(
        model, state, Query.of(model.config, "prior"), sample=True, generator=generator
    ).latents.flatten(1)
    vectors = best.double().numpy()
    _, label = kmeans2(vectors, clusters, minit="++", seed=0, missing="warn")
    both = np.concatenate([vectors, prior.double().numpy()])
    middle = both.mean(0)
    _, _, axes = np.linalg.svd(both - middle, full_matrices=False)
    flat = (both - middle) @ axes[:2].T
    return {
        "starts": starts.round(3).tolist(),
        "cluster": label.tolist(),
        "projected": flat[: len(vectors)].round(3).tolist(),
        "projected_prior": flat[len(vectors) :].round(3).tolist(),
        "distances": distances(vectors, prior.double().numpy(), label),
    }


def distances(best: Array, prior: Array, label: NDArray[np.integer[Any]]) -> dict[str, Any]:
    """Tables 11 and 12, in the space of z itself.

    Args:
        best: plans that ask for the most, one a row.
        prior: a sample of the prior from the same start each.
        label: number of the cluster of each plan.

    Returns:
        ``shift`` from prior to plan, mean and standard deviation; mean distance of two plans of a
        cluster, ``within``, and of two centres, ``between``; distances of all ``centres``.
    """
    shift = np.linalg.norm(best - prior, axis=1)
    groups = [best[label == number] for number in np.unique(label)]
    pairs = [_pairwise(group)[np.triu_indices(len(group), 1)] for group in groups]
    within = np.concatenate(pairs)
    centres = _pairwise(np.array([group.mean(0) for group in groups]))
    between = centres[np.triu_indices(len(groups), 1)]
    return {
        "shift": [float(shift.mean()), float(shift.std())],
        "within": float(within.mean()) if len(within) else 0.0,
        "between": float(between.mean()) if len(between) else 0.0,
        "centres": centres.round(3).tolist(),
    }


def _pairwise(points: Array) -> Array:
    gaps: Array = np.linalg.norm(points[:, None] - points, axis=-1)
    return gaps


def draw(found: dict[str, Any]) -> Figure:
    """Heat maps above; data, shortcuts, plans and their starts below."""
    heat = found["heat"]
    columns = max(4, len(heat))
    figure = Figure(figsize=(3.1 * columns, 6.2), layout="constrained")
    cells = figure.subplots(2, columns)
    most = max(max(values) for values in heat.values())
    for axes, (name, values) in zip(cells[0], heat.items(), strict=False):
        maze = np.array(found["maze"], dtype=float)
        shown = np.full_like(maze, np.nan)
        shown[tuple(np.array(found["places"]).astype(int).T)] = values
        _walls(axes, found["maze"])
        image = axes.imshow(shown, vmin=0, vmax=max(most, 1e-9), cmap="viridis")
        axes.set_title(f"{name}: {np.mean(values):.0f}", fontsize=10)
    figure.colorbar(image, ax=list(cells[0]), shrink=0.7, label="mean return")
    for axes in cells[0][len(heat) :]:
        axes.set_axis_off()
    data, shortcuts, latent, origin, *rest = cells[1]
    for axes, name, paths in ((data, "data", "data"), (shortcuts, "plans of the most", "paths")):
        _walls(axes, found["maze"])
        for number, path in enumerate(found[paths]):
            rows, places = np.array(path).T
            axes.plot(places, rows, linewidth=1, color=_PALETTE[number % len(_PALETTE)])
            axes.plot(places[0], rows[0], "k.", markersize=4)
        axes.set_title(name, fontsize=10)
    color = [_PALETTE[number % len(_PALETTE)] for number in found["cluster"]]
    gaps = found["distances"]
    latent.scatter(*np.array(found["projected_prior"]).T, c="#a8765a", s=6, label="prior")
    latent.scatter(*np.array(found["projected"]).T, c=color, s=8)
    latent.legend(frameon=False, fontsize=8)
    latent.set_title(
        f"z, two principal axes\nshift {gaps['shift'][0]:.1f}, within {gaps['within']:.1f}, "
        f"between {gaps['between']:.1f}",
        fontsize=9,
    )
    latent.set(xticks=[], yticks=[])
    _walls(origin, found["maze"])
    rows, places = np.array(found["starts"]).T
    origin.scatter(places, rows, c=color, s=10)
    origin.set_title("where the plans start", fontsize=10)
    for axes in rest:
        axes.set_axis_off()
    return figure


def _walls(axes: Axes, maze: list[list[int]]) -> None:
    """Walls in the coordinates of D4RL: rows down, columns to the right."""
    axes.imshow(np.where(np.array(maze) == 1, 0.35, np.nan), cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, len(maze[0]) - 0.5), ylim=(len(maze) - 0.5, -0.5))
