"""The README's picture, cut out of the maze game's: ``python -m benchmarks.mazegame.crop``."""

from pathlib import Path

import numpy as np
from matplotlib import image

__all__ = ["crop"]

SOURCE = Path("benchmarks/results/mazegame/mazegame.png")
TARGET = Path("docs/mazegame.png")

# Rows and columns of the panels, as shares of the whole picture.
EPISODES = (0.022, 0.352, 0.0, 0.666)
COUNTS = (0.402, 0.718, 0.0, 0.367)
PLAN = (0.714, 0.95, 0.0, 1.0)


def crop(source: Path = SOURCE, target: Path = TARGET) -> None:
    """Put episodes and counts above one plan, coarse to fine.

    Args:
        source: the picture that ``benchmarks.mazegame`` draws.
        target: where to write.
    """
    picture = image.imread(source)[..., :3]
    height, width, _ = picture.shape

    def panel(top: float, bottom: float, left: float, right: float) -> np.ndarray:
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        cut: np.ndarray = picture[rows, columns]
        return cut

    episodes, counts, plan = panel(*EPISODES), panel(*COUNTS), panel(*PLAN)
    columns = episodes.shape[1] + counts.shape[1]
    top = np.ones((max(len(episodes), len(counts)), columns, 3), dtype=picture.dtype)
    top[: len(episodes), : episodes.shape[1]] = episodes
    below = len(top) - len(counts)
    top[below:, episodes.shape[1] :] = counts
    bottom = np.ones((len(plan), columns, 3), dtype=picture.dtype)
    left = (columns - plan.shape[1]) // 2
    bottom[:, left : left + plan.shape[1]] = plan
    image.imsave(target, np.concatenate([top, bottom]))


if __name__ == "__main__":
    crop()
