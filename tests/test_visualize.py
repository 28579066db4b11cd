"""Drawings: what lies where, and what is refused."""

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mage_agent.types import Plan
from mage_agent.visualize import plot_maze, plot_path, plot_plan

SCALES = (1, 2, 4)
HORIZON = 12


def make_plan(*, partial: bool = True) -> Plan:
    generator = torch.Generator().manual_seed(0)
    decoded = tuple(torch.randn(2, HORIZON, 5, generator=generator) for _ in SCALES)
    return Plan(
        token_ids=tuple(torch.zeros(2, length, dtype=torch.long) for length in SCALES),
        latent=torch.zeros(2, SCALES[-1], 8),
        observation=decoded[-1],
        return_to_go=torch.zeros(2, HORIZON, 1),
        action=torch.zeros(2, 2),
        partial=decoded if partial else (),
    )


def test_walls_lie_where_the_environment_has_them() -> None:
    robotics = pytest.importorskip("gymnasium_robotics.envs.maze.maze_v4")
    maze_map = [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]
    maze = robotics.Maze(maze_map, maze_size_scaling=4, maze_height=0.5)
    axes = Figure().subplots()
    plot_maze(axes, maze_map, cell_size=4)
    centres = {(patch.get_x() + 2, patch.get_y() + 2) for patch in axes.patches}
    expected = {
        tuple(maze.cell_rowcol_to_xy(np.array([i, j])))
        for i in range(3)
        for j in range(4)
        if maze_map[i][j] == 1
    }
    assert centres == expected


def test_path_is_drawn_in_order() -> None:
    axes = Figure().subplots()
    positions = np.array([[0.0, 0.0], [1.0, 0.5], [2.0, 0.0]])
    plot_path(axes, positions, goal=(2.0, 0.1))
    (line,) = (item for item in axes.collections if isinstance(item, LineCollection))
    segments = np.array(line.get_segments())
    np.testing.assert_array_equal(segments[:, 0], positions[:-1])
    np.testing.assert_array_equal(segments[:, 1], positions[1:])
    assert len(axes.lines) == 2  # the start's dot, the goal's star


def test_path_of_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        plot_path(Figure().subplots(), np.zeros((5, 3)))


def test_plan_fills_one_panel_per_scale() -> None:
    axes = Figure().subplots(1, len(SCALES))
    plan = make_plan()
    plot_plan(axes, plan, row=1, dimensions=(2, 0))
    for panel, decoded in zip(axes, plan.partial, strict=True):
        starts = panel.collections[0].get_segments()
        np.testing.assert_allclose(np.array(starts)[:, 0], decoded[1, :-1][:, [2, 0]])
    assert [panel.get_title() for panel in axes] == [
        "scale 1, 1 token",
        "scales 1 to 2, 3 tokens",
        "scales 1 to 3, 7 tokens",
    ]


def test_plan_without_coarse_versions_is_refused() -> None:
    axes = Figure().subplots(1, len(SCALES))
    with pytest.raises(ValueError, match="partial=True"):
        plot_plan(axes, make_plan(partial=False))
    with pytest.raises(ValueError, match="2 panels for 3 scales"):
        plot_plan(axes[:2], make_plan())
