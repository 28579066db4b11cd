"""How far goals are, in steps: learned from where the data got to, without any reward.

In goal environments, the goals of the data are few beside all pairs of a state and a goal, and a
value of the pair takes a goal behind a wall for near. Distances learn from every place that an
episode got to, and as differences of embeddings they hold for pairs that no episode has.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor

from mage_agent.data import rows_ahead
from mage_agent.losses import squared_error
from mage_agent.mage.goal_distance import LANDMARKS
from mage_agent.mage.values import BootstrappedLoss

if TYPE_CHECKING:
    from mage_agent.mage.model import MAGEModel

__all__ = ["Hindsight", "MAGEDistanceLoss"]

_EXPECTILE = 0.9
"""Weight of distances that are too long; that of too short ones is what is left to 1. At 0.99,
distances leak through the walls of the large maze (measured)."""
_HERE, _LATER, _STEPS = 0.2, 0.5, 100.0
"""Share of the goals in hindsight that are where the state is, and of those that lie ahead in its
own episode, after a geometric number of steps with this mean; others are spread over its places."""


class Hindsight:
    """Goals in hindsight, for distances and for plans: places that the data achieved.

    Args:
        model: whose goals they are.
        dataset: from ``load_dataset``.
    """

    def __init__(self, model: MAGEModel, dataset: TensorDictBase) -> None:
        self.model, self.dataset = model, dataset
        self.achieved = dataset["achieved_goal"].to(model.device)
        self.last = rows_ahead(dataset["episode"], len(dataset)).to(model.device)

    @cached_property
    def rows(self) -> Tensor:
        """Rows (N,) that are spread over the places of the data."""
        ahead = rows_ahead(self.dataset["episode"], self.model.config.lookahead)
        return spread(self.dataset["achieved_goal"], ahead).to(self.model.device)

    @cached_property
    def later(self) -> Tensor:
        """What distances see ``bootstrap_steps`` after each step, standardised, (N, S)."""
        model = self.model
        rows = rows_ahead(self.dataset["episode"], model.config.bootstrap_steps)
        observation = model.units.concatenate(self.dataset)[rows].to(model.device)
        return model.apart(model.units.observation(observation))[0]

    def draw(self, row: Tensor) -> Tensor:
        """Rows (B,) of goals for rows (B,): that row, one later in its episode, or a spread one."""
        last = self.last[row]
        chance, part = torch.rand(2, len(row), device=row.device)
        later = (row - (_STEPS * torch.log1p(-part)).long()).minimum(last)
        anywhere = self.rows[torch.randint(len(self.rows), (len(row),), device=row.device)]
        chosen = torch.where(chance < _HERE + _LATER, later, anywhere)
        return torch.where(chance < _HERE, row, chosen)

    @torch.no_grad()
    def relabel(self, windows: TensorDictBase) -> TensorDictBase:
        """Windows (B, T) with other goals, and the returns-to-go that go with these."""
        model, index = self.model, windows["index"]
        goal = self.achieved[self.draw(index[:, 0])][:, None]  # (B, 1, G)
        label = model.nearness(model.steps_to_goal(self.later[index], model.as_goal(goal)))
        windows["desired_goal"] = goal.expand(*index.shape, goal.shape[-1])
        windows["return_to_go"] = model.units.return_to_go.inverse(label)
        return windows


class MAGEDistanceLoss(BootstrappedLoss):
    """Expectile regression of the steps from a state to a goal, on goals in hindsight.

    The distance d(s_0, g) is regressed on k where the goal was achieved k steps later, at most n =
    ``horizon``, and else on n + d'(s_n, g), where d' is a moving average, which ``after_step``
    moves; shorter ways count nine times as much. Beside it, the distance after a move m within the
    ``lookahead`` of l steps is regressed on the mean of d'(s_l, g), so that passing a goal is worse
    than stopping there. The unit is n steps. Rows are spread over the places of the data. A batch
    holds states (B,) with a ``desired_goal`` in hindsight, how many steps ahead it and the end of
    the horizon are (B, 1), the observations at the ends of horizon and lookahead (B, S), and
    ``moves`` (B, E), as those of the stage do.

    Args:
        model: the model to train.
        reduction: "mean" (default), "sum" or "none" (one loss per state).

    Raises:
        ValueError: the model judges no plans by distances.

    Examples:
        >>> stage = model.stages(dataset)[0]  # its loss is a MAGEDistanceLoss
        >>> total_loss(MAGEDistanceLoss(model)(next(stage.batches()))).backward()
    """

    trains = ("goal_distance",)
    reads = ("goal_ahead", "horizon_ahead", "horizon_observation", "lookahead_observation", "moves")
    follows = "goal_distance"
    stage, optimizer, learning_rate = "distances", "muon", 5e-3

    def __init__(self, model: MAGEModel, *, reduction: str | None = None) -> None:
        if model.goal_distance is None:
            raise ValueError(
                "the model judges no plans by the distance to a goal: it takes candidates above 1, "
                "and observation_keys that end with the goals."
            )
        super().__init__(model, reduction=reduction)

    def written(self) -> list[str]:
        """The losses of states and of moves."""
        return ["loss_distance", "loss_move_distance"]

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Losses of a batch of states; the input stays as it is."""
        model, horizon = self.model, self.model.config.horizon
        distance = model.get_submodule("goal_distance")
        here, goal = model.apart(model.units.observation(self.observation(tensordict)))
        goal_ahead, steps = (self.read(tensordict, f"{end}_ahead") for end in ("goal", "horizon"))
        ends = [self.read(tensordict, f"{end}_observation") for end in ("horizon", "lookahead")]
        with torch.no_grad():
            there, _ = model.apart(model.units.observation(torch.stack(ends)))
            left = self.bootstrapped(there, goal)
            met = (goal_ahead >= 0) & (goal_ahead <= steps)
            wanted = torch.where(met, goal_ahead / horizon, steps / horizon + left[0])
        found = distance(here, goal, self.read(tensordict, "moves"))
        error = found[:, :1] - wanted
        weight = torch.where(error > 0, _EXPECTILE, 1 - _EXPECTILE)
        losses = {
            "loss_distance": (weight * error.square()).squeeze(-1),
            "loss_move_distance": squared_error(found[:, 1:], left[1]),
        }
        return self.reduced(losses, {})

    def columns(self, dataset: TensorDictBase) -> TensorDictBase:
        """A dataset's columns with what is the same for every goal, of spread rows, (N,)."""
        model, config = self.model, self.model.config
        self.hindsight = Hindsight(model, dataset)
        columns = super().columns(dataset)
        observation, episode = model.units.concatenate(dataset), dataset["episode"]
        ahead, row = rows_ahead(episode, config.horizon), torch.arange(len(dataset))
        columns["row"] = row[:, None]
        columns["horizon_ahead"] = (ahead - row).float()[:, None]
        columns["horizon_observation"] = observation[ahead]
        columns["lookahead_observation"] = observation[rows_ahead(episode, config.lookahead)]
        return columns[self.hindsight.rows.cpu()]

    def end(self) -> None:
        """Take spread places of the data that ``columns`` was given as landmarks."""
        model, hindsight = self.model, self.hindsight
        assert model.goal_distance is not None
        evenly = torch.arange(LANDMARKS) * (len(hindsight.rows) - 1) // (LANDMARKS - 1)
        row = hindsight.rows[evenly.to(model.device)]
        data = hindsight.dataset.select(*model.config.observation_keys)[row.cpu()]
        observation = model.units.concatenate(data).to(model.device)
        state, _ = model.apart(model.units.observation(observation))
        model.goal_distance.place_landmarks(state, model.as_goal(hindsight.achieved[row]))

    def prepare(self, batch: TensorDictBase) -> TensorDictBase:
        """A batch with goals in hindsight: achieved now, later in the episode, or anywhere.

        ``index`` is the dataset's, which errors name; ``goal_ahead`` is -1 where a goal is not
        ahead in the state's own episode.
        """
        row, hindsight = batch["row"].flatten(), self.hindsight
        chosen = hindsight.draw(row)
        own = (chosen >= row) & (chosen <= hindsight.last[row])
        ahead = torch.where(own, chosen - row, -1).float()[:, None]
        return batch.update(
            {"index": row, "desired_goal": hindsight.achieved[chosen], "goal_ahead": ahead}
        )


def spread(place: Tensor, ahead: Tensor) -> Tensor:
    """Rows (N,) of a dataset, in order, drawn so that where the data seldom are is drawn more.

    A row's chance is one over the root of how many are in the same box, whose sides are the
    standard deviations of how far the data get. Where they seldom are, in the dead ends of a
    maze, distances would else be taken from behind the wall (measured). The draws are the same for
    every training; some rows come often and some never.

    Args:
        place: where each step is, shape (N, G).
        ahead: of each step, the row to which it gets, shape (N,).
    """
    place = place.double()
    side = (place[ahead] - place).std(0, correction=0)
    boxes = torch.floor(place / torch.where(side > 0, side, 1.0)).long()
    _, box, count = boxes.unique(dim=0, return_inverse=True, return_counts=True)
    chances = count[box].double().rsqrt().cumsum(0)
    draws = torch.rand(len(place), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.searchsorted(chances, (draws * chances[-1]).sort().values)
