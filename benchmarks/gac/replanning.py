"""Figure 5: from A to the goal, with and without a new plan on the way."""

from collections import deque
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.gac.maze import _PALETTE, _walls, layout_of, rollouts
from benchmarks.gac.trained import Trained
from mage_agent import GACPolicy, make_environment
from mage_agent.gac.stages import calibrate

__all__ = ["Replanning", "draw", "measure", "way_to"]

NEAR = 0.5
"""Distance from B at which a new plan is made by hand, metres."""
_NO_LIMIT = 1e9
"""What no trigger's limit reaches that was calibrated, on episodes held out."""


class Replanning:
    """A policy that makes a new plan once, where it first comes near a place.

    Args:
        policy: acts.
        place: position, shape (2,).
        mode: see ``GACModel.replan``.
    """

    def __init__(
        self, policy: GACPolicy, place: NDArray[np.float64], mode: Literal["posterior", "restart"]
    ) -> None:
        self.policy, self.place, self.mode = policy, place, mode
        self.due = np.zeros(0, dtype=bool)
        self.count = 0

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = 0
    ) -> tuple[Any, Any]:
        """Act, after a new plan where one is due."""
        count = len(observation)
        begins = np.ones(count, dtype=bool) if state is None else np.asarray(episode_start)
        self.due = begins if len(self.due) != count else self.due | begins
        near = np.linalg.norm(np.asarray(observation)[:, :2] - self.place, axis=1) < NEAR
        rows = np.flatnonzero(near & self.due & ~begins)
        if state is not None and len(rows):
            state = self.policy.replan(state, rows.tolist(), mode=self.mode)
            self.due[rows] = False
            self.count += len(rows)
        return self.policy.predict(observation, state, episode_start, bool(deterministic))


class Watched:
    """A policy whose new plans within episodes are counted, those made by hand left out."""

    def __init__(self, policy: GACPolicy) -> None:
        self.policy = policy
        self.since = list(policy.model.initial_state(1).keys()).index("since")
        self.steps = self.plans = 0

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = 0
    ) -> tuple[Any, Any]:
        """Act, and count."""
        begins = np.ones(len(observation), dtype=bool) if state is None else episode_start
        action, state = self.policy.predict(observation, state, episode_start, deterministic)
        since = state[self.since][~np.asarray(begins)]
        self.steps += len(since)
        self.plans += int((since == 0).sum())
        return action, state


def way_to(maze: list[list[int]], goal: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Steps from cell to cell to the goal, for every cell that can reach it."""
    steps, queue = {goal: 0}, deque([goal])
    while queue:
        row, column = queue.popleft()
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if not maze[cell[0]][cell[1]] and cell not in steps:
                steps[cell] = steps[row, column] + 1
                queue.append(cell)
    return steps


def measure(trained: Trained, episodes: int = 50, query: str = "max") -> dict[str, Any]:
    """Success rates from A, the cell farthest from the goal, and from B, half way.

    Args:
        trained: the model, of which the last stage acts.
        episodes: for each case.
        query: what plans are asked for.

    Returns:
        By case, the rate of ``success`` and the mean ``return``; ``alarms``, the share of the steps
        of usual episodes at which a trigger fires; ``A``, ``B``, the ``maze``; and ``paths`` of a
        plan from A, one mended at B, and one from B.
    """
    maze, _ = layout_of(trained)
    env = make_environment(trained.dataset, **trained.domain.environment)
    goal = tuple(int(x) for x in env.get_wrapper_attr("fixed_goal"))
    env.close()
    steps = way_to(maze, (goal[0], goal[1]))
    cells = sorted(steps, key=lambda cell: (steps[cell], cell))
    far = cells[-1]
    half, cell = steps[far] // 2, far
    while steps[cell] > half:  # along a shortest way
        row, column = cell
        beside = ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1))
        cell = min((c for c in beside if c in steps), key=lambda c: (steps[c], c))
    start, middle = np.array(far, dtype=float), np.array(cell, dtype=float)
    plain = trained.asking(trained.last, query)
    model = plain.model
    model.trigger = "never"
    cases: dict[str, Any] = {
        "A, no new plan": (plain, start),
        "A, new plan at B (Eq. 3)": (Replanning(plain, middle, "posterior"), start),
        "A, new plan at B (restart)": (Replanning(plain, middle, "restart"), start),
        "B": (plain, middle),
    }
    found: dict[str, Any] = {"cases": {}, "alarms": {}, "maze": maze}
    found |= {"A": start.tolist(), "B": middle.tolist()}
    model.remembers_episodes = True  # Eq. 3 explains the whole way since A
    for name, (policy, place) in cases.items():
        found["cases"][name] = _outcome(trained, policy, query, episodes, place)
    if query in ("max", "best"):
        model.trigger = "better"
        found["cases"]["A, better"] = _outcome(trained, plain, query, episodes, start)
    if len(trained.held) and float(model.surprise_limit) >= _NO_LIMIT:  # training held none out
        calibrate(model, trained.held)
    for trigger in ("surprise", "promise"):
        limit = model.surprise_limit if trigger == "surprise" else model.shortfall_limit
        if float(limit) < _NO_LIMIT:
            model.trigger = trigger
            watched = Watched(plain)
            trained.run(watched, query, episodes)
            found["alarms"][trigger] = watched.plans / watched.steps
            for mode in ("posterior", "restart"):
                config, model.config = model.config, model.config.replace(replan=mode)
                name = f"A, {trigger} ({'Eq. 3' if mode == 'posterior' else mode})"
                found["cases"][name] = _outcome(trained, plain, query, episodes, start)
                model.config = config
    model.trigger = "never"
    mended = Replanning(plain, middle, "restart")
    found["paths"] = {
        name: rollouts(trained, [place.tolist()], 1, policy=policy)[0]
        for name, policy, place in (
            ("from A", plain, start),
            ("from A, mended at B", mended, start),
            ("from B", plain, middle),
        )
    }
    return found


def _outcome(
    trained: Trained, policy: Any, query: str, episodes: int, place: NDArray[np.float64]
) -> dict[str, float]:
    results = trained.run(policy, query, episodes, starts=[place.tolist()])
    success = float(np.mean([bool(result.success) for result in results]))
    total = float(np.mean([result.episode_return for result in results]))
    return {"success": success, "return": round(total, 3), "episodes": float(episodes)}


def draw(found: dict[str, Any]) -> Figure:
    """Three paths in the maze, and the success rates."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _walls(left, found["maze"])
    for number, (name, path) in enumerate(found["paths"].items()):
        rows, columns = np.array(path).T
        left.plot(columns, rows, color=_PALETTE[number], label=name, linewidth=1.5)
    for name in ("A", "B"):
        row, column = found[name]
        left.annotate(name, (column, row), ha="center", va="center", weight="bold")
    left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    names = list(found["cases"])
    rates = [100 * found["cases"][name]["success"] for name in names]
    right.barh(range(len(names)), rates, color="#3a86c8")
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set(xlim=(0, 100), xlabel="episodes that reach the goal (%)")
    for row, (name, rate) in enumerate(zip(names, rates, strict=True)):
        mean = found["cases"][name]["return"]
        right.annotate(f" {rate:.0f}%, return {mean:.0f}", (0, row), va="center", fontsize=8)
    alarms = [f"{name} fires at {share:.1%}" for name, share in found["alarms"].items()]
    if alarms:
        right.set_title(f"of usual episodes' steps, {', '.join(alarms)}", fontsize=8)
    right.spines[["top", "right"]].set_visible(False)
    return figure
