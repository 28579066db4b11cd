"""The paper's maze game (Figures 3 and 4, appendix B.4); importing it registers MazeGame-v0."""

import gymnasium as gym

gym.register(
    "MazeGame-v0",
    entry_point="benchmarks.mazegame.game:MazeGame",
    max_episode_steps=300,
)
