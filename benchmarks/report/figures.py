"""Drawings of the report, as SVG that stands inside a page and takes on its colour of text."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.papers import PAPERS
from benchmarks.report.document import Panel
from benchmarks.report.results import NAMES, Trainings, display_name
from benchmarks.report.statistics import Estimate
from mage_agent.visualize import plot_asked_and_achieved

__all__ = [
    "asked_and_achieved",
    "interquartile_means",
    "learning_curves",
    "legend",
    "profiles",
    "rank_correlation",
]

_INK = "#010203"  # stands for the page's colour of text
_COLORS = dict(  # mid tones, which show on white as on black
    zip(
        NAMES,
        (
            *("#d1495b", "#2f6f4f", "#8a8f98", "#a87f3f", "#3a86c8"),
            *("#1f9e91", "#8e6bbf", "#e08a1e", "#5a9e3c"),
        ),
        strict=False,
    )
)
_MARKERS = "osD^vPX*"
_OTHERS = ("#c2569b", "#6b7fd7", "#7a9a01", "#b5651d")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def _look(method: str, methods: Sequence[str]) -> dict[str, Any]:
    others = [name for name in methods if name not in _COLORS]
    place = [*_COLORS, *others].index(method)
    color = _COLORS.get(method) or _OTHERS[others.index(method) % len(_OTHERS)]
    width = 2.4 if method in PAPERS else 1.5
    return {"color": color, "marker": _MARKERS[place % len(_MARKERS)], "linewidth": width}


def _draw(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, name: str) -> str:
    """Write a figure as an SVG element that can stand with others in one page."""
    buffer = io.StringIO()
    # Without these four, Matplotlib writes the date and its web address.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (xmlns(:xlink)?|version|width|height)="[^"]*"', "", text, count=5)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)  # ids are the page's
    return text.replace(_INK, "currentColor").strip()


def legend(name: str, drawn: Sequence[str], methods: Sequence[str]) -> str:
    """Draw the names, colours and marks of the methods drawn.

    Args:
        name: for the ids of the drawing, unique in the report.
        drawn: methods in the drawings that the legend is for.
        methods: all methods of the report, which decide the colours.
    """
    with matplotlib.rc_context(_STYLE):
        rows = -(-len(drawn) // 4)
        figure = Figure(figsize=(5, 0.08 + 0.24 * rows))
        axes = figure.subplots()
        axes.set_axis_off()
        for method in drawn:
            axes.plot([], [], label=display_name(method), **_look(method, methods))
        figure.legend(loc="center", ncols=4, handlelength=1.6, columnspacing=1.4)
        return _svg(figure, name)


def interquartile_means(estimates: Mapping[str, Estimate], methods: Sequence[str]) -> Panel:
    """Draw interquartile means with their intervals, one line per method."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _draw(5, 0.9 + 0.32 * len(estimates))
        for row, (method, estimate) in enumerate(estimates.items()):
            look = _look(method, methods)
            if estimate.low is not None:
                ends = [float(estimate.low), float(estimate.high)]
                axes.plot(ends, [row, row], color=look["color"], linewidth=5, alpha=0.45)
            axes.plot(float(estimate.value), row, color=look["color"], marker=look["marker"])
        axes.set_yticks(range(len(estimates)), [display_name(method) for method in estimates])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("interquartile mean of normalised scores")
        best = max(estimates, key=lambda method: float(estimates[method].value))
        return Panel(
            svg=_svg(figure, "iqm"),
            title="Interquartile means",
            description=f"{display_name(best)} is highest with {float(estimates[best].value):.1f}.",
        )


def profiles(
    estimates: Mapping[str, Estimate], thresholds: NDArray[np.float64], methods: Sequence[str]
) -> Panel:
    """Draw performance profiles: the share of trainings above each score."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _draw(5, 3.4)
        for method in reversed(list(estimates)):  # the first lies on top
            estimate = estimates[method]
            look = _look(method, methods) | {"marker": ""}
            axes.plot(thresholds, estimate.value, **look)
            if estimate.low is not None:
                axes.fill_between(
                    thresholds,
                    estimate.low,
                    estimate.high,
                    color=look["color"],
                    alpha=0.1,
                    linewidth=0,
                )
        axes.set(xlabel="score τ", ylabel="share of trainings above τ", ylim=(-0.02, 1.02))
        return Panel(
            svg=_svg(figure, "profiles"),
            title="Performance profiles",
            description="share of trainings, over all datasets, that score above a threshold.",
        )


def learning_curves(
    name: str, label: str, cells: Sequence[Trainings], methods: Sequence[str]
) -> Panel:
    """Draw score over training, thin for every seed and thick for the mean of seeds.

    Args:
        name: for the ids of the drawing, unique in the report.
        label: title of the panel.
        cells: methods on one task, each with at least one curve.
        methods: all methods of the report, which decide the colours.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _draw(5, 3.2)
        for cell in reversed(cells):
            look = _look(cell.method, methods)
            curves = [_curve(r["learning_curve"]) for r in cell.finished if r["learning_curve"]]
            for minutes, score in curves:
                axes.plot(minutes, score, color=look["color"], linewidth=0.7, alpha=0.45)
            grid = np.unique(np.concatenate([minutes for minutes, _ in curves]))
            grid = grid[grid >= max(minutes[0] for minutes, _ in curves)]
            mean = np.mean([np.interp(grid, minutes, score) for minutes, score in curves], axis=0)
            axes.plot(grid, mean, markersize=4, **look)
        axes.set(title=label, xlabel="minutes of training", ylabel="score")
        finals = ", ".join(f"{display_name(cell.method)} {cell.mean:.1f}" for cell in cells)
        return Panel(svg=_svg(figure, name), title=label, description=f"final scores {finals}.")


def _curve(points: Sequence[Mapping[str, float]]) -> tuple[NDArray[np.float64], ...]:
    """Minutes and scores; steps of methods do not compare."""
    seconds, scores = np.array(sorted((p["seconds"], p["score"]) for p in points), dtype=float).T
    return seconds / 60, scores


def rank_correlation(cell: Trainings) -> float | None:
    """Spearman's correlation of asked return and achieved score, over all seeds.

    None where either is constant.
    """
    pairs = [pair for record in cell.finished for pair in _asked(record)]
    asked, achieved = zip(*pairs, strict=True)
    if len(set(asked)) < 2 or len(set(achieved)) < 2:
        return None
    return float(spearmanr(asked, achieved).statistic)


def _asked(record: Mapping[str, Mapping[str, float]]) -> list[tuple[float, float]]:
    return [(float(target), float(score)) for target, score in (record.get("asked") or {}).items()]


def asked_and_achieved(
    name: str, label: str, cells: Sequence[Trainings], methods: Sequence[str]
) -> Panel:
    """Draw achieved score over asked return, one line per seed; arguments as for curves."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _draw(5, 3.2)
        words: list[str] = []
        for cell in reversed(cells):
            look = _look(cell.method, methods)
            for record in cell.finished:
                if pairs := _asked(record):
                    plot_asked_and_achieved(axes, *zip(*pairs, strict=True))
                    axes.lines[-1].set(**look, markersize=4, alpha=0.8)
            correlation = rank_correlation(cell)
            told = "undefined" if correlation is None else f"{correlation:.2f}"
            words.insert(0, f"{display_name(cell.method)} {told}")
        described = ", ".join(words)
        axes.set_title(f"{label}\nrank correlation {described}", fontsize=10)
        return Panel(
            svg=_svg(figure, name), title=label, description=f"rank correlation {described}."
        )
