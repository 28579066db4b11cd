"""Drawings of plans at growing resolution, of mazes, and of how a model uses its tokens.

Every function draws into Matplotlib axes that the caller made, and returns them, so that drawings
combine freely and nothing here touches Matplotlib's global state:

    >>> from matplotlib.figure import Figure
    >>> figure = Figure()
    >>> axes = plot_maze(figure.subplots(), [[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    >>> axes = plot_path(axes, [[-0.3, 0.0], [0.3, 0.2]])
    >>> figure.savefig("maze.png")  # doctest: +SKIP

`plot_plan` draws a plan over a maze, `plot_curves` as curves over time, both after 1, 2, ... K
scales; `plot_token_usage`, `plot_first_state_error` and `plot_asked_and_achieved` show whether the
scales, the condition guidance and the return conditioning work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mage_agent.optional import require
from mage_agent.types import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_asked_and_achieved",
    "plot_curves",
    "plot_first_state_error",
    "plot_maze",
    "plot_path",
    "plot_plan",
    "plot_token_usage",
]

WALL = 1
_WALL_COLOR = "#3d4451"
_START_COLOR = "#2a7ab9"
_GOAL_COLOR = "#d1495b"


def plot_maze(
    axes: Axes,
    maze_map: Sequence[Sequence[Any]],
    *,
    cell_size: float = 1.0,
    centre: ArrayLike = (0.0, 0.0),
) -> Axes:
    """Draw the walls of a Gymnasium-Robotics maze, in the coordinates of its observations.

    Args:
        axes: where to draw.
        maze_map: rows of cells from top to bottom; 1 is a wall
            (``env.get_wrapper_attr("maze").maze_map``).
        cell_size: side of a cell in metres (1 in PointMaze, 4 in AntMaze).
        centre: the maze's middle in the coordinates of the observations, shape (2,); in D4RL's
            Maze2D ``env.get_wrapper_attr("origin")``.
    """
    patches = require("matplotlib.patches")
    rows, columns = len(maze_map), len(maze_map[0])
    width, height = columns * cell_size, rows * cell_size
    x, y = np.asarray(centre, dtype=float)
    left, top = x - width / 2, y + height / 2
    for i, row in enumerate(maze_map):
        for j, cell in enumerate(row):
            if cell == WALL:
                corner = (left + j * cell_size, top - (i + 1) * cell_size)
                # A line of the same colour closes the hairline between neighbours.
                axes.add_patch(
                    patches.Rectangle(
                        corner, cell_size, cell_size, facecolor=_WALL_COLOR, edgecolor=_WALL_COLOR
                    )
                )
    edge = cell_size / 2  # half of the outer walls tells as much as the whole
    axes.set(xlim=(left + edge, left + width - edge), ylim=(top - height + edge, top - edge))
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def plot_path(
    axes: Axes,
    positions: ArrayLike,
    *,
    goal: ArrayLike | None = None,
    colormap: str = "viridis",
    width: float = 1.5,
    alpha: float = 1.0,
) -> Axes:
    """Draw a path whose colour runs from start to end, with a dot where it starts.

    Args:
        axes: where to draw.
        positions: path, shape (T, 2), in metres.
        goal: where it should lead, shape (2,); drawn as a star.
        colormap: name of a Matplotlib colour map.
        width: width of the line in points.
        alpha: opacity of the line in [0, 1].

    Raises:
        ValueError: ``positions`` is not (T, 2).
    """
    points = np.asarray(positions, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(
            f"positions has shape {points.shape}; it must be (T, 2): select the two coordinates "
            "of the plane, for example observation[:, :2]."
        )
    collections = require("matplotlib.collections")
    line = collections.LineCollection(
        np.stack([points[:-1], points[1:]], axis=1),  # (T - 1, 2, 2)
        array=np.linspace(0, 1, len(points) - 1),
        cmap=colormap,
        linewidths=width,
        capstyle="round",
        alpha=alpha,
    )
    axes.add_collection(line, autolim=True)
    axes.plot(*points[0], "o", color=_START_COLOR, markersize=4, zorder=3)
    if goal is not None:
        axes.plot(*np.asarray(goal), "*", color=_GOAL_COLOR, markersize=11, zorder=3)
    return axes


def plot_plan(
    axes: Sequence[Axes],
    plan: Plan,
    *,
    row: int = 0,
    dimensions: tuple[int, int] = (0, 1),
    goal: ArrayLike | None = None,
) -> Sequence[Axes]:
    """Draw one plan as it grows from coarse to fine: panel k decodes scales 1 to k.

    Args:
        axes: one panel per scale, in which a maze may be drawn already.
        plan: from ``model.plan(..., partial=True)``.
        row: which plan of the batch.
        dimensions: the two entries of the observation to draw.
        goal: where the plan should lead, shape (2,).

    Raises:
        ValueError: the plan has no partial decodings, or there are not as many panels as scales.
    """
    coarse = _coarse_versions(plan)
    if len(axes) != len(coarse):
        raise ValueError(
            f"there are {len(axes)} panels for {len(coarse)} scales; give one per scale."
        )
    for panel, (name, decoded) in zip(axes, coarse.items(), strict=True):
        plot_path(panel, decoded[row][:, list(dimensions)], goal=goal, width=1.8)
        panel.set_title(name.replace(", ", "\n"))
    return axes


def plot_curves(
    axes: Sequence[Axes],
    plan: Plan,
    *,
    row: int = 0,
    dimensions: Sequence[int],
    names: Sequence[str] | None = None,
    actual: ArrayLike | None = None,
) -> Sequence[Axes]:
    """Draw one plan over time: a panel per entry of the observation, a curve per resolution.

    Args:
        axes: one panel per dimension.
        plan: from ``model.plan(..., partial=True)``.
        row: which plan of the batch.
        dimensions: the entries of the observation to draw.
        names: what to call them; None numbers them.
        actual: what happened in the end, shape (T', S); drawn broad and grey.

    Raises:
        ValueError: the plan has no partial decodings, or panels, dimensions and names differ in
            number.
    """
    coarse = _coarse_versions(plan)
    names = [f"observation[{index}]" for index in dimensions] if names is None else names
    if not len(axes) == len(dimensions) == len(names):
        raise ValueError(
            f"there are {len(axes)} panels and {len(names)} names for {len(dimensions)} "
            "dimensions; give one of each per dimension."
        )
    shades = require("matplotlib").colormaps["viridis_r"](np.linspace(0.1, 1, len(coarse)))
    for panel, index, name in zip(axes, dimensions, names, strict=True):
        if actual is not None:
            panel.plot(np.asarray(actual)[:, index], color="0.8", linewidth=5, label="actual")
        for shade, (label, decoded) in zip(shades, coarse.items(), strict=True):
            panel.plot(decoded[row, :, index], color=shade, label=label)
        panel.set(xlabel="step", ylabel=name)
    axes[0].legend(fontsize="small")
    return axes


def plot_token_usage(axes: Axes, token_ids: Sequence[ArrayLike], codebook_size: int) -> Axes:
    """Draw how many codes each scale uses, and how many it would use if all alike.

    The latter is the perplexity, ``exp(-sum_v p_v log p_v)``: a scale that mostly repeats a few
    codes has a low one, however many others it uses now and then.

    Args:
        axes: where to draw.
        token_ids: tokens of every scale, K arrays (B, L_k), as in ``plan.token_ids``; the more
            plans, the better.
        codebook_size: number of codes V.

    Raises:
        ValueError: a token lies outside the codebook.
    """
    used, perplexities = [], []
    for tokens in token_ids:
        flat = np.asarray(tokens).ravel()
        if flat.min() < 0 or flat.max() >= codebook_size:
            raise ValueError(
                f"tokens run from {flat.min()} to {flat.max()}; with codebook_size "
                f"{codebook_size} they must lie in [0, {codebook_size - 1}]."
            )
        _, counts = np.unique(flat, return_counts=True)
        share = counts / counts.sum()
        used.append(len(counts))
        perplexities.append(float(np.exp(-(share * np.log(share)).sum())))
    scales = np.arange(1, len(used) + 1)
    axes.bar(scales, used, color="0.85", label="codes used")
    axes.bar(scales, perplexities, width=0.5, color=_START_COLOR, label="perplexity")
    axes.axhline(codebook_size, color="0.5", linestyle=":", label="codebook size")
    axes.set(xlabel="scale", ylabel="codes", xticks=scales)
    axes.legend(fontsize="small")
    return axes


def plot_first_state_error(
    axes: Axes,
    observation: ArrayLike,
    plans: Mapping[str, Plan],
    *,
    dimensions: Sequence[int] | None = None,
) -> Axes:
    """Draw how far plans begin from where the agent is, ``||s_hat_0 - s_0||``.

    With and without condition guidance (Eq. 7): ``plans={"guided": model.plan(s, R),
    "unguided": model.plan(s, R, guided=False)}``.

    Args:
        axes: where to draw.
        observation: s_0 of every plan, shape (B, S).
        plans: plans from there, by the name to show; each of batch size B.
        dimensions: the entries of the observation to compare; None takes all that plans hold.

    Raises:
        ValueError: a plan's first states have another shape than ``observation``.
    """
    given = np.asarray(observation, dtype=float)
    errors = []
    for name, plan in plans.items():
        first = plan.observation[:, 0].cpu().numpy()
        if first.shape != given.shape:
            raise ValueError(
                f"the plans {name!r} begin at states of shape {first.shape}, but observation has "
                f"shape {given.shape}; make the plans from these very observations."
            )
        missed = first - given
        held = ~np.isnan(first).all(axis=0) if dimensions is None else list(dimensions)
        missed = missed[:, held]
        errors.append(np.linalg.norm(missed, axis=1))
    axes.boxplot(errors, showfliers=False)
    axes.set_xticks(range(1, len(errors) + 1), list(plans))
    axes.set(ylabel="distance of the plan's first state from the agent", ylim=(0, None))
    return axes


def plot_asked_and_achieved(
    axes: Axes, asked: ArrayLike, achieved: ArrayLike, *, label: str | None = None
) -> Axes:
    """Draw the achieved score over the return asked for.

    Args:
        axes: where to draw.
        asked: discounted returns asked for, shape (N,).
        achieved: mean normalised score of each, shape (N,).
        label: name of the line.

    Raises:
        ValueError: the two differ in length.
    """
    asked, achieved = np.asarray(asked, dtype=float), np.asarray(achieved, dtype=float)
    if asked.shape != achieved.shape or asked.ndim != 1:
        raise ValueError(
            f"asked has shape {asked.shape} and achieved {achieved.shape}; both must be (N,)."
        )
    order = asked.argsort()
    axes.plot(asked[order], achieved[order], marker="o", label=label)
    axes.set_xlabel("asked return (discounted)")
    axes.set_ylabel("achieved score")
    return axes


def _coarse_versions(plan: Plan) -> dict[str, NDArray[Any]]:
    """Observations (B, T, S) decoded from scales 1 to k, for every k, by a name."""
    if not plan.partial:
        raise ValueError("the plan holds no coarse versions; ask for them: plan(partial=True).")
    versions, tokens = {}, 0
    for k, (ids, decoded) in enumerate(zip(plan.token_ids, plan.partial, strict=True), start=1):
        tokens += ids.shape[1]
        scales = "scale 1" if k == 1 else f"scales 1 to {k}"
        name = f"{scales}, {tokens} token{'s' if tokens > 1 else ''}"
        versions[name] = decoded.cpu().numpy()
    return versions
