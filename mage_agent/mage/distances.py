"""How far goals are, in steps: learned from where the data got to, without any reward.

In goal environments, the goals of the data are few beside all pairs of a state and a goal, and a
value of the pair takes a goal behind a wall for near. Distances learn from every place that an
episode got to, and as lengths between embeddings they hold for pairs that no episode has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch

from mage_agent.data import rows_ahead
from mage_agent.losses import squared_error
from mage_agent.mage.values import BootstrappedLoss

if TYPE_CHECKING:
    from mage_agent.mage.model import MAGEModel

__all__ = ["MAGEDistanceLoss"]

_ENDS, _PARTS = ("horizon", "lookahead"), ("ahead", "observation")
_EXPECTILE = 0.9
"""Weight of distances that are too long; that of too short ones is what is left to 1. At 0.99,
distances leak through the walls of the large maze (measured)."""
_LATER = 0.5
"""Share of the goals that lie ahead in the state's own episode; the others are any of the data."""


class MAGEDistanceLoss(BootstrappedLoss):
    """Expectile regression of the steps from a state to a goal, on goals in hindsight.

    The distance d(s_0, g) is regressed on k where the goal was achieved k steps later, at most n =
    ``horizon``, and else on n + d'(s_n, g), where d' is a moving average; shorter ways count
    nine times as much. Beside it, the distance after a move m within the ``lookahead`` of l steps
    is regressed on the mean of l + d'(s_l, g). The unit is n steps. A batch holds states (B,)
    with a ``desired_goal`` in hindsight, how many steps ahead it, the end of the horizon and that
    of the lookahead are (B, 1), the observations at these ends (B, S), and ``moves`` (B, E), as
    those of the stage do.

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
    reads = ("goal_ahead", "moves", *(f"{end}_{part}" for end in _ENDS for part in _PARTS))
    follows = "goal_distance"

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
        goal_ahead, wanted = tensordict["goal_ahead"], {}
        for end in _ENDS:
            steps, observation = (tensordict[f"{end}_{part}"] for part in _PARTS)
            with torch.no_grad():
                there, _ = model.apart(model.units.observation(observation))
                met = (goal_ahead >= 0) & (goal_ahead <= steps)
                ahead = torch.where(met, goal_ahead, steps) / horizon
                wanted[end] = ahead + torch.where(met, 0.0, self.target(there, goal))
        error = distance(here, goal) - wanted["horizon"]
        weight = torch.where(error > 0, _EXPECTILE, 1 - _EXPECTILE)
        after = distance(here, goal, tensordict["moves"])
        losses = {
            "loss_distance": (weight * error.square()).squeeze(-1),
            "loss_move_distance": squared_error(after, wanted["lookahead"]),
        }
        return self.reduced(losses, {})

    def columns(self, dataset: TensorDictBase) -> TensorDictBase:
        """A dataset's columns (N,) with what is the same for every goal."""
        model, config = self.model, self.model.config
        self.achieved = dataset["achieved_goal"].to(model.device)
        self.last = rows_ahead(dataset["episode"], len(dataset)).to(model.device)
        columns = super().columns(dataset)
        observation = model.units.concatenate(dataset)
        rows = torch.arange(len(dataset))
        for end in _ENDS:
            row = rows_ahead(dataset["episode"], getattr(config, end))
            columns[f"{end}_observation"] = observation[row]
            columns[f"{end}_ahead"] = (row - rows).float()[:, None]
        return columns

    def prepare(self, batch: TensorDictBase) -> TensorDictBase:
        """A batch with goals in hindsight: achieved later in the episode, or anywhere.

        ``goal_ahead`` is -1 where a goal is not ahead in the state's own episode.
        """
        row = batch["index"].flatten()
        last = self.last[row]
        chance, part = torch.rand(2, len(row), device=row.device)
        later = row + ((last - row + 1) * part).long()
        anywhere = torch.randint(len(self.last), (len(row),), device=row.device)
        chosen = torch.where(chance < _LATER, later, anywhere)
        ahead = torch.where((chosen >= row) & (chosen <= last), chosen - row, -1)
        return batch.update(
            {"desired_goal": self.achieved[chosen], "goal_ahead": ahead.float()[:, None]}
        )
