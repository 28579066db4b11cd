"""The datasets that have to be collected, by their Minari ids, and how each is made.

The mazes of the paper's Tables 4 and 17 are made by D4RL's recipe: in Maze2D the goal is fixed and
cannot be seen, in Multi2D each episode has its own and sees it; the start is random in both.
Locomotion is that of its Table 18, OGBench's point mazes are of its Table 24.
"""

from pathlib import Path
from typing import Any

from benchmarks.collect import locomotion, maze2d, ogbench, pointmaze
from benchmarks.collect.locomotion import LEVELS, ROBOTS, LocomotionRecipe
from benchmarks.collect.maze2d import Maze2DRecipe, Task
from benchmarks.collect.ogbench import LENGTHS, OGBenchRecipe
from benchmarks.collect.pointmaze import Maze, PointMazeRecipe

__all__ = ["D4RL_STEPS", "MAZE2D", "RECIPES", "Recipe", "collect"]

Recipe = PointMazeRecipe | Maze2DRecipe | LocomotionRecipe | OGBenchRecipe

D4RL_STEPS: dict[Maze, int] = {"umaze": 1_000_000, "medium": 2_000_000, "large": 4_000_000}
"""Steps of D4RL's data; collected are a quarter of them by default, in 20 s to 2 minutes."""
_TASKS: tuple[Task, ...] = ("maze2d", "multi2d")
MAZE2D = {
    f"{task}-{maze}-v1": Maze2DRecipe(maze=maze, task=task, steps=steps // 4)
    for task in _TASKS
    for maze, steps in D4RL_STEPS.items()
}
"""Recipes by D4RL's name of the dataset; Multi2D, which D4RL does not have, is named likewise."""
_LOCOMOTION = [LocomotionRecipe(robot=robot, level=level) for robot in ROBOTS for level in LEVELS]
RECIPES: dict[str, Recipe] = {
    **{recipe.dataset_id: recipe for recipe in MAZE2D.values()},
    **{recipe.dataset_id: recipe for recipe in (OGBenchRecipe(maze=maze) for maze in LENGTHS)},
    **{name: recipe for recipe in _LOCOMOTION for name in recipe.dataset_ids},
}
"""Recipes by the id of the dataset; one training makes several of locomotion."""


def collect(recipe: Recipe, root: Path, **options: Any) -> Path:
    """Collect by a recipe; see the module that defines it."""
    if isinstance(recipe, Maze2DRecipe):
        return maze2d.collect(recipe, root, **options)
    if isinstance(recipe, LocomotionRecipe):
        return locomotion.collect(recipe, root, **options)
    if isinstance(recipe, OGBenchRecipe):
        return ogbench.collect(recipe, root, **options)
    return pointmaze.collect(recipe, root, **options)
