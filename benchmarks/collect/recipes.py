"""The maze datasets of the paper's Tables 4 and 17, which have to be collected: D4RL's recipe.

In Maze2D the goal is fixed and cannot be seen, in Multi2D each episode has its own and sees it; the
start is random in both.
"""

from benchmarks.collect.maze2d import Maze2DRecipe, Task, collect
from benchmarks.collect.pointmaze import Maze

__all__ = ["D4RL_STEPS", "MAZE2D", "RECIPES", "collect"]

D4RL_STEPS: dict[Maze, int] = {"umaze": 1_000_000, "medium": 2_000_000, "large": 4_000_000}
"""Steps of D4RL's data; collected are a quarter of them by default, in 20 s to 2 minutes."""
_TASKS: tuple[Task, ...] = ("maze2d", "multi2d")
MAZE2D = {
    f"{task}-{maze}-v1": Maze2DRecipe(maze=maze, task=task, steps=steps // 4)
    for task in _TASKS
    for maze, steps in D4RL_STEPS.items()
}
"""Recipes by D4RL's name of the dataset; Multi2D, which D4RL does not have, is named likewise."""
RECIPES = {recipe.dataset_id: recipe for recipe in MAZE2D.values()}
"""Recipes by the id of the dataset."""
