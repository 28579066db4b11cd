"""The dataset layout that everything else reads: one TED TensorDict of shape (N,).

TED is TorchRL's episode data format: what the agent saw and did at the root, what came of it under
``next``. All episodes lie one after the other along the only batch dimension:

=================== ========= ======================================================================
key                 shape     content
=================== ========= ======================================================================
observation, ...    (N, S)    float32; goal environments: ``observation``, ``achieved_goal``,
                              ``desired_goal``, named as `torchrl.envs.GymEnv` names them
action              (N, A)    float32
episode             (N,)      int64, 0, 0, ..., 1, 1, ...: number of the episode
step_count          (N, 1)    int64, 0, 1, 2, ... in every episode
return_to_go        (N, 1)    float32, :math:`R_t = \\sum_{i \\ge t} \\gamma^{i-t} r_i` to the
                              end of the episode
next, observation   (N, S)    float32, likewise every other observation key
next, reward        (N, 1)    float32
next, terminated    (N, 1)    bool, the task ended here: there is no future reward
next, truncated     (N, 1)    bool, only the recording ended here
next, done          (N, 1)    bool, either of the two
metadata            non-tensor  plain dict, `metadata`
=================== ========= ======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

OUTCOME_KEYS = ("reward", "terminated", "truncated", "done")
"""What stands under ``next`` besides the observations."""

Bounds = float | ArrayLike | None


class DatasetMetadata(TypedDict, total=False):
    """Facts that travel with a dataset. All values are JSON-able, so that memory maps keep them."""

    dataset_id: str
    discount: float
    action_low: list[float]
    action_high: list[float]
    ref_min_score: float
    ref_max_score: float
    env_spec: str  # JSON of gymnasium.envs.registration.EnvSpec
    eval_env_spec: str  # likewise; only where evaluation differs from collection


def metadata(dataset: TensorDictBase) -> DatasetMetadata:
    """Return the facts that travel with a dataset (an empty dict if there are none).

    Args:
        dataset: Any TED TensorDict; slices and selections of a loaded dataset keep its metadata.
    """
    found = dataset.get_non_tensor("metadata", None)
    return cast(DatasetMetadata, dict(found) if found is not None else {})


def returns_to_go(reward: Tensor, episode: Tensor, discount: float) -> Tensor:
    r"""Discounted return from every step to the end of its episode.

    :math:`R_t = \sum_{i=t}^{T_e - 1} \gamma^{i-t} r_i`, the paper's conditioning variable.

    Every pass doubles the number of rewards summed, ``R_t += gamma^s R_{t+s}`` for s = 1, 2, 4, ...,
    so that the work is N log(longest episode). Measured against `torchrl`'s ``reward2go`` (a padded
    float32 convolution with a truncated kernel): 2 ms against 40 ms for 100,000 steps, and exact to
    1e-13 where that one is off by 4e-4 at a discount of 0.998.

    Args:
        reward: (N,) or (N, 1), any float dtype.
        episode: (N,) episode number of each step; episodes are contiguous.
        discount: Discount factor per step, in [0, 1].

    Returns:
        Same shape and dtype as `reward`; summed in float64.
    """
    total = reward.flatten().double()  # (N,)
    longest = int(torch.unique_consecutive(episode, return_counts=True)[1].max())
    span = 1
    while span < longest:
        same_episode = episode[span:] == episode[:-span]
        total = total.clone()
        total[:-span] += torch.where(same_episode, discount**span * total[span:], 0.0)
        span *= 2
    return total.to(reward.dtype).reshape(reward.shape)


def assemble(
    observation: Mapping[str, Tensor | TensorDictBase],
    next_observation: Mapping[str, Tensor | TensorDictBase],
    action: Tensor,
    reward: Tensor,
    terminated: Tensor,
    last: Tensor,
    *,
    discount: float,
    facts: Mapping[str, Any],
) -> TensorDict:
    """Put flat columns together into the layout of this module.

    Args:
        observation: Observation key -> (N, S).
        next_observation: The same keys.
        action: (N, A).
        reward: (N,).
        terminated: (N,) bool.
        last: (N,) bool, True on the last step of every episode. Last steps that did not terminate
            are truncations.
        discount: Discount factor per step.
        facts: The rest of the metadata.
    """
    last = last.clone()
    last[-1:] = True
    episode = last.long().cumsum(0) - last.long()  # (N,)
    steps = torch.arange(len(last))
    first = torch.cat([torch.ones(1, dtype=torch.bool), last[:-1]])
    start = (
        torch.where(first, steps, 0).cummax(0).values
    )  # row where the episode of each step began
    reward = reward.float()
    dataset = TensorDict(
        {
            **observation,
            "action": action.float(),
            "episode": episode,
            "step_count": (steps - start).unsqueeze(-1),
            "return_to_go": returns_to_go(reward, episode, discount).unsqueeze(-1),
            "next": {
                **next_observation,
                "reward": reward.unsqueeze(-1),
                "terminated": terminated.unsqueeze(-1),
                "truncated": (last & ~terminated).unsqueeze(-1),
                "done": last.unsqueeze(-1),
            },
        },
        batch_size=[len(last)],
    )
    dataset.set_non_tensor("metadata", {**facts, "discount": float(discount)})
    return dataset


def action_bounds(action: Tensor, low: Bounds, high: Bounds) -> dict[str, list[float]]:
    """Action bounds as metadata, one number per action dimension.

    Args:
        action: (N, A).
        low: Lower bound: a number, (A,) numbers, or None for -1, the convention of D4RL.
        high: Upper bound, None for 1.

    Returns:
        ``action_low`` and ``action_high``; where a bound is infinite, the extreme of the data.
    """

    def expand(bound: Bounds, default: float, extreme: Tensor) -> list[float]:
        values: NDArray[np.float64] = np.broadcast_to(
            np.asarray(default if bound is None else bound, dtype=np.float64).reshape(-1),
            (action.shape[-1],),
        )
        return [float(v) for v in np.where(np.isfinite(values), values, extreme.double().numpy())]

    return {
        "action_low": expand(low, -1.0, action.amin(0)),
        "action_high": expand(high, 1.0, action.amax(0)),
    }
