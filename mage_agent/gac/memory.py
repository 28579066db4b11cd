"""What GAC remembers of an episode: its plan, and the steps since the plan's beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict
from torch import Tensor

from mage_agent.config import LARGEST
from mage_agent.gac.evidence import log_normal
from mage_agent.gac.queries import Plan
from mage_agent.gac.trajectory import Trajectories

if TYPE_CHECKING:
    from mage_agent.gac.model import GACModel

__all__ = ["Memory"]


class Memory:
    """Memory of B episodes, read and written by name; the TensorDict it was made from stays.

    Entries, all standardised:

    ============ ============= ============================================================
    noise        (B, K, D)     eps of the plan
    latents      (B, K + 1, D) z of the plan
    promise      (B, 1)        E[y | z] of the plan
    asked        (B, 1)        return asked for when the episode began, in units of the data
    start        (B, S)        s_0, which the plan was made for
    observation  (B, H, S)     the last H observations, the newest at the end
    action       (B, H, A)     what was done there; zero for the newest
    length       (B, 1)        observations so far, 0 before an episode begins
    since        (B, 1)        steps since the last plan
    surprise     (B, I)        -log p(s_{t+1}) of the last I steps
    ============ ============= ============================================================

    H is the reach W of the generator, one more with the trigger "surprise", or, if the model
    ``remembers_episodes``, one more than the data's longest episode has steps; what lies further
    back is forgotten.
    """

    def __init__(self, model: GACModel, state: TensorDict) -> None:
        self.model = model
        self.state = state.copy()  # a new record of the same tensors, of which none is written to

    @staticmethod
    def empty(model: GACModel, count: int) -> TensorDict:
        """Memory of ``count`` episodes that have not begun.

        Raises:
            ValueError: the trigger has no limit, since it has not been calibrated.
        """
        limits = {"surprise": model.surprise_limit, "promise": model.shortfall_limit}
        if model.trigger in limits and model.trained and limits[model.trigger] >= LARGEST:
            raise ValueError(
                f"the trigger {model.trigger!r} has no limit: training held out no episodes to "
                "calibrate it on (held_out), or replan_interval has changed since. Calibrate it by "
                "mage_agent.gac.stages.calibrate(model, dataset), on data that it has not seen."
            )
        config, like = model.config, model.units.action_low
        size = config.reach
        if model.trigger == "surprise":
            size += 1
        if model.remembers_episodes:
            size = max(size, int(model.longest) + 1)
        shapes = {
            "noise": model.noise_shape,
            "latents": (config.num_latents + 1, config.width),
            "promise": (1,),
            "asked": (1,),
            "start": (model.observation_dim,),
            "observation": (size, model.observation_dim),
            "action": (size, model.action_dim),
            "surprise": (config.replan_interval,),
        }
        entries = {name: like.new_zeros(count, *shape) for name, shape in shapes.items()}
        for name in ("length", "since"):
            entries[name] = torch.zeros(count, 1, dtype=torch.long, device=like.device)
        return TensorDict(entries, batch_size=[count], device=like.device)

    def __getattr__(self, name: str) -> Tensor:
        """An entry, without the last axis where that is one number."""
        if name in ("promise", "asked", "length", "since"):
            entry: Tensor = self.state[name].squeeze(-1)
            return entry
        if name in ("noise", "latents", "start", "observation", "action", "surprise"):
            entry = self.state[name]
            return entry
        raise AttributeError(name)

    @property
    def begun(self) -> Tensor:
        """True where the newest observation is the first one, shape (B,)."""
        return self.length == 1

    def put(self, rows: Tensor, **values: Tensor) -> None:
        """Write entries of some rows."""
        for name, value in values.items():
            entry = self.state[name].clone()
            entry[rows] = value.view(len(rows), *entry.shape[1:]).to(entry.dtype)
            self.state[name] = entry

    def chosen(self, rows: Tensor | Sequence[int] | None) -> Tensor:
        """Numbers (n,) of the rows that are named by numbers or a mask (B,); of all if None.

        Raises:
            ValueError: there are no such rows.
        """
        count = len(self.state)
        named = torch.as_tensor(range(count) if rows is None else rows, device=self.state.device)
        if named.dtype == torch.bool and named.shape == (count,):
            return named.nonzero().squeeze(-1)
        numbers = named.dtype != torch.bool and torch.can_cast(named.dtype, torch.int64)
        known = named.ndim == 1 and (numbers or not len(named))  # an empty list is of floats
        if not known or ((named < 0) | (named >= count)).any():
            raise ValueError(
                f"rows is {rows!r}; it must be numbers of the {count} environments, or {count} "
                "times True or False."
            )
        return named.long()

    def observe(self, observation: Tensor, asked: Tensor) -> None:
        """Take in new observations, (B, S), and the return that is asked for, (B, 1)."""
        begins = self.state["length"] == 0
        self.state["asked"] = torch.where(begins, asked, self.state["asked"])
        self.state["observation"] = _push(self.observation, observation)
        self.state["action"] = _push(self.action, torch.zeros_like(self.action[:, 0]))
        self.state["start"] = torch.where(begins, observation, self.start)
        self.state["length"] = self.state["length"] + 1
        self.state["since"] = self.state["since"] + 1

    def wonder(self, expected: Tensor) -> None:
        """Note how much the newest observation surprises, given the expected change (B, S)."""
        model = self.model
        change = self._change(self.observation[:, -1] - self.observation[:, -2])
        log_likelihood = log_normal(change, expected, model.change_std())[:, model.moves].sum(-1)
        surprise = torch.where(self.length > 1, -log_likelihood, 0.0)
        self.state["surprise"] = _push(self.surprise, surprise)

    def follow(self, plan: Plan, rows: Tensor) -> None:
        """Take new plans for some rows."""
        zeros = torch.zeros_like(rows)
        self.put(rows, noise=plan.noise, latents=plan.latents, promise=plan.value, since=zeros)

    def restart(self, rows: Tensor) -> None:
        """Forget what came before the newest observation, as if an episode began with it."""
        ones = torch.ones_like(rows)
        self.put(rows, start=self.observation[rows, -1], length=ones)

    def act(self, action: Tensor) -> None:
        """Note what is done now, standardised, shape (B, A)."""
        known = self.action.clone()
        known[:, -1] = action
        self.state["action"] = known

    def window(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """The last L steps as the generator takes them: observation, action and history.

        Shapes (B, 1, L, S), (B, 1, L, A) and (B, 1, L).
        """
        place = torch.arange(size, device=self.length.device)
        first = (size - self.length.clamp_max(size))[:, None]
        history = (place - first).clamp_min(0)
        observation, action = self.observation[:, -size:], self.action[:, -size:]
        return observation[:, None], action[:, None], history[:, None]

    def trajectories(self, rows: Tensor) -> Trajectories:
        """What happened so far in some rows, tau_t of Eq. 3; their returns are not known yet."""
        observation, action = self.observation[rows], self.action[rows]
        size = observation.shape[1]
        seen = self.length[rows].clamp_max(size)
        place = torch.arange(size, device=rows.device)
        index = (size - seen[:, None] + place).clamp_max(size - 1)  # the oldest one first

        def gather(values: Tensor) -> Tensor:
            return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))

        observation = gather(observation)
        change = torch.zeros_like(observation)
        change[:, :-1] = self._change(observation[:, 1:] - observation[:, :-1])
        return Trajectories(
            observation=observation,
            action=gather(action),
            change=change,
            value=torch.zeros_like(self.promise[rows]),
            length=(seen - 1).clamp_min(1),
        )

    def _change(self, difference: Tensor) -> Tensor:
        """Standardised change of the state from a difference of standardised observations."""
        change: Tensor = self.model.normalize_change(difference * self.model.units.observation.std)
        return change


def _push(entries: Tensor, newest: Tensor) -> Tensor:
    """Drop the oldest of (B, H, ...), add the newest, (B, ...)."""
    return torch.cat([entries[:, 1:], newest[:, None]], dim=1)
