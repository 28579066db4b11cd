"""Drawings: what lies where, and what is refused."""

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mage_agent.data.d4rl_tasks import MAZES
from mage_agent.types import Plan
from mage_agent.visualize import (
    plot_asked_and_achieved,
    plot_curves,
    plot_first_state_error,
    plot_maze,
    plot_path,
    plot_plan,
    plot_token_usage,
)

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
    assert plot_maze(axes, maze_map, cell_size=4) is axes
    centres = {(patch.get_x() + 2, patch.get_y() + 2) for patch in axes.patches}
    expected = {
        tuple(maze.cell_rowcol_to_xy(np.array([i, j])))
        for i in range(3)
        for j in range(4)
        if maze_map[i][j] == 1
    }
    assert centres == expected


def test_walls_lie_where_d4rls_positions_have_them() -> None:
    pytest.importorskip("gymnasium_robotics")
    from mage_agent.maze2d import Maze2DEnv

    env = Maze2DEnv("umaze")
    axes = plot_maze(Figure().subplots(), env.maze.maze_map, centre=env.origin)
    centres = {(round(p.get_x() + 0.5, 6), round(p.get_y() + 0.5, 6)) for p in axes.patches}
    walls = np.argwhere(np.array([list(row) for row in MAZES["umaze"]]) == "#") - 0.2
    assert centres == {(round(x, 6), round(y, 6)) for x, y in walls.tolist()}
    env.close()


def test_path_is_drawn_in_order() -> None:
    axes = Figure().subplots()
    positions = np.array([[0.0, 0.0], [1.0, 0.5], [2.0, 0.0]])
    assert plot_path(axes, positions, goal=(2.0, 0.1)) is axes
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
    assert plot_plan(axes, plan, row=1, dimensions=(2, 0)) is axes
    for panel, decoded in zip(axes, plan.partial, strict=True):
        starts = panel.collections[0].get_segments()
        np.testing.assert_allclose(np.array(starts)[:, 0], decoded[1, :-1][:, [2, 0]])
    assert [panel.get_title() for panel in axes] == [
        "scale 1\n1 token",
        "scales 1 to 2\n3 tokens",
        "scales 1 to 3\n7 tokens",
    ]


def test_plan_without_coarse_versions_is_refused() -> None:
    axes = Figure().subplots(1, len(SCALES))
    with pytest.raises(ValueError, match="partial=True"):
        plot_plan(axes, make_plan(partial=False))
    with pytest.raises(ValueError, match="2 panels for 3 scales"):
        plot_plan(axes[:2], make_plan())


def test_curves_fill_one_panel_per_dimension() -> None:
    axes = Figure().subplots(2)
    plan = make_plan()
    actual = np.arange(20.0).reshape(4, 5)
    assert plot_curves(axes, plan, row=1, dimensions=(4, 0), actual=actual) is axes
    for panel, index in zip(axes, (4, 0), strict=True):
        happened, *curves = panel.lines
        np.testing.assert_array_equal(happened.get_ydata(), actual[:, index])
        for curve, decoded in zip(curves, plan.partial, strict=True):
            np.testing.assert_array_equal(curve.get_ydata(), decoded[1, :, index])
    assert [panel.get_ylabel() for panel in axes] == ["observation[4]", "observation[0]"]
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels[:2] == ["actual", "scale 1, 1 token"]
    assert len(labels) == 1 + len(SCALES)


def test_curves_without_coarse_versions_or_panels_are_refused() -> None:
    axes = Figure().subplots(2)
    with pytest.raises(ValueError, match="partial=True"):
        plot_curves(axes, make_plan(partial=False), dimensions=(0, 1))
    with pytest.raises(ValueError, match="2 panels and 1 names for 1 dimensions"):
        plot_curves(axes, make_plan(), dimensions=(0,))


def test_token_usage_counts_codes_and_their_perplexity() -> None:
    axes = Figure().subplots()
    tokens = (torch.tensor([[3], [3], [3], [3]]), torch.tensor([[0, 0], [5, 5], [5, 0], [5, 0]]))
    assert plot_token_usage(axes, tokens, 8) is axes
    used, perplexity = axes.containers
    assert [bar.get_height() for bar in used] == [1, 2]
    assert [bar.get_height() for bar in perplexity] == pytest.approx([1, 2])
    plot_token_usage(axes, (torch.tensor([[0, 0, 0, 1]]),), 8)
    assert 1 < axes.containers[-1][0].get_height() < 2
    with pytest.raises(ValueError, match=r"from 0 to 8.*\[0, 7\]"):
        plot_token_usage(axes, (torch.tensor([[0, 8]]),), 8)


def test_first_state_error_is_the_distance_in_the_chosen_dimensions() -> None:
    plan = make_plan()
    observation = plan.observation[:, 0].numpy() + np.array([3.0, 4.0, 0.0, 0.0, 5.0])
    for dimensions, distance in ((None, 50**0.5), ((0, 1), 5.0)):
        axes = Figure().subplots()
        plans = {"guided": plan, "unguided": plan}
        assert plot_first_state_error(axes, observation, plans, dimensions=dimensions) is axes
        heights = np.concatenate([line.get_ydata() for line in axes.lines])
        np.testing.assert_allclose(heights, distance, rtol=1e-5)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["guided", "unguided"]


def test_first_state_error_leaves_out_what_plans_do_not_hold() -> None:
    plan = make_plan()
    observation = plan.observation[:, 0].numpy() + np.array([3.0, 4.0, 7.0, 7.0, 7.0])
    plan.observation[..., 2:] = torch.nan
    axes = plot_first_state_error(Figure().subplots(), observation, {"guided": plan})
    heights = np.concatenate([line.get_ydata() for line in axes.lines])
    np.testing.assert_allclose(heights, 5.0, rtol=1e-5)


def test_first_states_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'guided' begin at states of shape \(2, 5\)"):
        plot_first_state_error(Figure().subplots(), np.zeros((3, 5)), {"guided": make_plan()})


def test_asked_and_achieved_is_drawn_in_order_of_asking() -> None:
    axes = Figure().subplots()
    assert plot_asked_and_achieved(axes, [3.0, 1.0], [30.0, 10.0], label="MAGE") is axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 10], [3, 30]]
    with pytest.raises(ValueError, match=r"\(2,\) and achieved \(1,\)"):
        plot_asked_and_achieved(axes, [1.0, 2.0], [1.0])
