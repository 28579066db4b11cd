"""Figure 2: distributions of returns, by query and by stage, and of the growing data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.gac.trained import Trained
from mage_agent import returns_to_go

__all__ = ["draw", "measure"]

QUERIES = {"max": "E[y]", "plus": "p(y+)", "target": "y*", "prior": "prior"}
_COLORS = {"max": "#d1495b", "plus": "#3a86c8", "target": "#e08a1e", "prior": "#8a8f98"}
_DATA = "#5a9e3c"


def measure(trained: Trained, episodes: int = 100) -> dict[str, Any]:
    """Scores of every episode.

    Returns:
        ``offline``, by query, before fine-tuning; ``stages``, by query and stage; ``data``, by
        stage, of the dataset and all that was collected up to it; and the ``unit`` of all.
    """
    dataset = trained.stages[0].model.trajectories(trained.dataset)
    first = dataset["step_count"].flatten() == 0
    returns = returns_to_go(dataset["next", "reward"], dataset["episode"], 1.0)[first].flatten()
    data, offline = [trained.to_scores(returns.tolist())], {}
    for stage in trained.online:
        data.append(data[-1] + trained.to_scores(stage["returns"]))
    for kind in QUERIES:
        offline[kind] = trained.scores(0, kind, episodes)
    stages = {
        kind: [offline[kind]] + [trained.scores(n, kind, episodes) for n in trained.stages if n]
        for kind in ("max", "plus")
    }
    return {"offline": offline, "stages": stages, "data": data, "unit": trained.unit}


def draw(found: dict[str, Any]) -> Figure:
    """Three panels: queries offline, two queries by stage, the data by stage."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    offline = found["offline"]
    for place, (kind, scores) in enumerate(offline.items()):
        _violin(left, scores, place, _COLORS[kind])
    means = [f"{QUERIES[kind]}\n{np.mean(scores):.1f}" for kind, scores in offline.items()]
    left.set_xticks(range(len(offline)), means)
    left.set(title="after offline training", ylabel=found["unit"])
    for kind, side in (("max", "low"), ("plus", "high")):
        for stage, scores in enumerate(found["stages"][kind]):
            _violin(middle, scores, stage, _COLORS[kind], side)
        middle.plot([], [], color=_COLORS[kind], linewidth=6, alpha=0.6, label=QUERIES[kind])
    middle.legend(frameon=False)
    middle.set(title="by stage of fine-tuning", xlabel="stage")
    for stage, scores in enumerate(found["data"]):
        _violin(right, scores, stage, _DATA)
    right.set(title="the data", xlabel="stage")
    for axes, count in ((middle, len(found["stages"]["max"])), (right, len(found["data"]))):
        axes.set_xticks(range(count))
        axes.set_xlim(-0.6, count - 0.4)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _violin(
    axes: Axes, scores: Sequence[float], place: float, color: str, side: Any = "both"
) -> None:
    """A violin, or one side of it, with a mark at the mean."""
    if np.ptp(scores) > 0:  # of one number there is no density
        parts: Any = axes.violinplot(scores, [place], showextrema=False, side=side, widths=0.8)
        for body in parts["bodies"]:
            body.set(facecolor=color, alpha=0.6)
    shift = {"both": 0.0, "low": -0.06, "high": 0.06}[side]
    axes.plot(place + shift, np.mean(scores), "o", color=color, markersize=4)
