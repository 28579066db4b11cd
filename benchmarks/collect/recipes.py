"""The maze datasets of the paper's Tables 4 and 17, which have to be collected.

Maze2D starts in a fixed cell, Multi2D anywhere; the goal is random in both (appendix B.1).
"""

from benchmarks.collect.pointmaze import Maze, PointMazeRecipe, collect

__all__ = ["RECIPES", "collect"]

_STEPS: dict[Maze, int] = {"umaze": 100_000, "medium": 200_000, "large": 300_000}

RECIPES = {
    recipe.dataset_id: recipe
    for recipe in (
        PointMazeRecipe(
            dataset_id=f"local/pointmaze/{task}-{maze}-v0", maze=maze, task=task, steps=steps
        )
        for task in ("maze2d", "multi2d")
        for maze, steps in _STEPS.items()
    )
}
"""Recipes by the id of the dataset."""
