"""Online fine-tuning in stages: collect episodes with what is known, learn from all data, repeat.

Algorithm 2 of the GAC paper, for any agent that can be asked for a return: each episode asks for
y+ = y + dy, with y drawn from the upper quantile of the returns collected so far. The policy's
objective, statistics and units stay those of its offline training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase

from mage_agent.agent import Agent
from mage_agent.compatibility import check_fits
from mage_agent.data import dataset_from_arrays, episode_lengths, metadata
from mage_agent.entries import named
from mage_agent.envs import ReturnToGoWrapper
from mage_agent.evaluation import evaluate, new_env
from mage_agent.online_run import Run
from mage_agent.recording import Recorder
from mage_agent.training import dataset_digest, fit

if TYPE_CHECKING:
    from mage_agent.policy import AgentPolicy

__all__ = ["OnlineStage", "learn_online"]


@dataclass(frozen=True, kw_only=True)
class OnlineStage:
    """What a stage of online fine-tuning came to.

    Attributes:
        number: of the stage, from 1.
        asked: discounted returns asked for, shape (episodes,).
        returns: undiscounted returns of the collected episodes, shape (episodes,).
        steps: gradient steps taken.
        data: the collected episodes, a dataset such as ``load_dataset`` returns.
    """

    number: int
    asked: NDArray[np.float64]
    returns: NDArray[np.float64]
    steps: int
    data: TensorDict = field(repr=False, compare=False)


def learn_online(
    policy: AgentPolicy,
    make_env: Callable[[], gym.Env[Any, Any]],
    *,
    dataset: TensorDictBase,
    stages: int = 3,
    episodes: int = 100,
    steps: int | None = None,
    quantile: float | Sequence[float] | None = None,
    increment: float | Sequence[float] | None = None,
    elite_fraction: float = 0.25,
    changes: Sequence[Mapping[str, Any]] = (),
    num_envs: int = 16,
    seed: int = 0,
    folder: str | Path | None = None,
    progress_bar: bool = True,
    callback: Callable[[AgentPolicy, OnlineStage], None] | None = None,
) -> list[OnlineStage]:
    """Fine-tune a trained policy online, in place.

    Args:
        policy: trained on ``dataset``.
        make_env: makes one environment with the dataset's observations and actions.
        dataset: what it was trained on, which the collected episodes are added to.
        stages: rounds of collecting and learning (the paper: 3).
        episodes: to collect in each (the paper: 100 on MuJoCo, 500 in mazes).
        steps: gradient steps of each; None is a fifth of those of the configuration.
        quantile: returns above it are asked for; one number, or one for each stage. None is the
            configuration's, as the stage before left it, or 0.8 where it names none.
        increment: what is added to them, in the data's units; one number, or one for each stage.
            None is the configuration's, or a tenth of their standard deviation.
        elite_fraction: share of the buffer's episodes, those with the largest returns, that a stage
            learns from; 1 is all of them. The paper's buffer is prioritised by no formula it gives;
            on Maze2D, stages that learn from all lose what they had, from a quarter they gain.
        changes: of the configuration, for each stage, such as ``FINE_TUNING["hopper-medium"]`` of
            ``mage_agent.gac.presets``; only of ``config.CHANGEABLE``.
        num_envs: environments to run side by side.
        seed: of the environments, of what is asked for, and of training.
        folder: keeps the state: whoever calls again with the same arguments and the policy, as it
            was when the run began or as the last call left it, goes on where that was stopped, at
            the last checkpoint of a stage's training or among the episodes that it collects, of
            which at most the last ``4 * num_envs`` are run again.
        progress_bar: whether to show one.
        callback: called after each stage, for instance to evaluate.

    Returns:
        One result a stage.

    Raises:
        TypeError: ``make_env`` is no function, or ``changes`` no list of dictionaries.
        ValueError: a number is out of range, the environment does not fit the policy, or the folder
            holds another run.
    """
    numbers = {"stages": stages, "episodes": episodes, "num_envs": num_envs, "steps": steps}
    if low := [name for name, value in numbers.items() if value is not None and value < 1]:
        raise ValueError(f"{low[0]} is {numbers[low[0]]}; it must be at least 1.")
    if isinstance(changes, Mapping):
        raise TypeError(f"changes is {changes!r}; give one such dictionary for each stage, a list.")
    if not 0 < elite_fraction <= 1:
        raise ValueError(f"elite_fraction is {elite_fraction}; it must lie in (0, 1].")
    quantiles = _by_stage("quantile", quantile, stages)
    if wrong := [q for q in quantiles if q is not None and not 0 <= q <= 1]:
        raise ValueError(f"quantile is {wrong[0]} in a stage; it must lie in [0, 1].")
    increments = _by_stage("increment", increment, stages)
    if wrong := [dy for dy in increments if dy is not None and not np.isfinite(dy)]:
        raise ValueError(f"increment is {wrong[0]} in a stage; it must be finite.")
    agent = policy.model
    check_fits(agent, dataset)
    run = Run(folder, agent)
    changed = run.checked(changes)  # before the work, not after it
    counts = {"episodes": int(episodes), "seed": int(seed), "elite_fraction": float(elite_fraction)}
    told: list[dict[str, Any]] = [
        {**counts, "quantile": q, "increment": dy, "changes": change}
        for q, dy, change in zip(quantiles, increments, [*changed, *[{}] * stages], strict=False)
    ]
    source = {"dataset": "" if folder is None else dataset_digest(agent, dataset)[:12]}
    results = []
    with run.of([source, *told]):
        buffer = _columns(agent, agent.trajectories(dataset))
        if steps is None:
            steps = max(1, sum(each.steps for each in agent.stages(buffer)) // 5)
        for number, stage in enumerate(told, 1):
            new, returns = run.collected(number)
            asking = {name: stage[name] for name in ("quantile", "increment")}
            asked = _asked(agent, buffer, episodes, seed=seed + 1000 * number, **asking)
            while len(returns) < episodes:  # some at a time, so that few are lost
                first = 10**6 * number + seed + len(returns)  # other starts than an evaluation's
                some = asked[len(returns) :][: 4 * num_envs]
                more, earned = _collect(policy, make_env, some, first, num_envs, progress_bar)
                new, returns = _append(new, more), np.concatenate([returns, earned])
                run.keep(number, new, returns)
            assert new is not None
            result = OnlineStage(number=number, asked=asked, returns=returns, steps=steps, data=new)
            buffer = _append(buffer, _columns(agent, agent.trajectories(new)))
            agent.know_returns(buffer)
            agent.adopt(**stage["changes"])
            # Deviation 32: the buffer is prioritised by leaving out all but the best episodes.
            fit(
                agent,
                _elite(agent, buffer, elite_fraction),
                seed=seed + number,
                steps=steps,
                device=agent.device,
                progress_bar=progress_bar,
                checkpoint_path=run.file(f"stage_{number}.training"),
                resume=folder is not None,
            )
            agent.know_returns(buffer)  # of all, where training has taken those of the elite
            results.append(result)
            if callback is not None:
                callback(policy, result)
    return results


def _by_stage(name: str, value: Any, stages: int) -> list[Any]:
    """One number for all stages, or one for each."""
    values = [value] * stages if value is None or np.ndim(value) == 0 else list(value)
    if len(values) < stages:
        raise ValueError(f"{name} is {value}; it must be one number, or one for each stage.")
    return [None if each is None else float(each) for each in values[:stages]]


def _asked(
    agent: Agent,
    buffer: TensorDictBase,
    count: int,
    quantile: float | None,
    increment: float | None,
    seed: int,
) -> NDArray[np.float64]:
    """Discounted y+ of every episode (section 3.3), shape (count,)."""
    config = agent.config
    quantile = getattr(config, "quantile", 0.8) if quantile is None else quantile
    increment = getattr(config, "increment", None) if increment is None else increment
    starts = buffer["step_count"].flatten() == 0
    returns = agent.returns_to_go(buffer)[starts].flatten().double().numpy()
    upper = returns[returns > np.quantile(returns, quantile)]
    upper = upper if len(upper) else returns.max(keepdims=True)
    step = 0.1 * returns.std() if increment is None else increment
    drawn: NDArray[np.float64] = np.random.default_rng(seed).choice(upper, count) + step
    return drawn


def _collect(
    policy: AgentPolicy,
    make_env: Callable[[], gym.Env[Any, Any]],
    asked: NDArray[np.float64],
    first: int,
    num_envs: int,
    progress_bar: bool,
) -> tuple[TensorDict, NDArray[np.float64]]:
    """Run an episode for each return that is asked for, by the seeds from ``first`` on.

    Returns:
        The data, and what the episodes came to.
    """
    agent = policy.model
    recorded: list[EpisodeBuffer] = []

    def make() -> gym.Env[Any, Any]:
        env = new_env(make_env)
        if isinstance(env.observation_space, gym.spaces.Dict):  # images, say, would fill memory
            kept = [key for key in env.observation_space if key in agent.observation_sizes]
            env = gym.wrappers.FilterObservation(env, kept) if kept else env  # evaluate refuses it
        return _Asked(Recorder(env, recorded), asked, first, agent)

    exploring = getattr(agent, "exploring", nullcontext)
    with exploring():
        results = evaluate(
            policy,
            make,
            episodes=len(asked),
            seed=first,
            num_envs=num_envs,
            deterministic=False,
            progress_bar=progress_bar,
        )
    recorded.sort(key=lambda episode: episode.seed or 0)
    returns = np.array([result.episode_return for result in results])
    return _dataset(agent, recorded), returns


class _Asked(ReturnToGoWrapper[Any]):
    """Tells the policy what is asked for in the episode of a seed."""

    def __init__(
        self, env: gym.Env[Any, Any], asked: NDArray[np.float64], first: int, agent: Agent
    ) -> None:
        units = agent.units
        super().__init__(
            env,
            float(asked[0]),
            discount=agent.config.discount,
            return_to_go_range=units.return_to_go_range,
        )
        self.asked, self.first = asked, first

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Start an episode at its own target return."""
        assert seed is not None
        self.target_return = float(self.asked[seed - self.first])
        return super().reset(seed=seed, options=options)


def _dataset(agent: Agent, episodes: Sequence[EpisodeBuffer]) -> TensorDict:
    """The columns of recorded episodes."""

    def rows(part: slice) -> dict[str, NDArray[np.float32]]:
        seen = [named(one.observations, agent.observation_sizes) for one in episodes]
        return {
            key: np.concatenate([np.stack(one[key][part]) for one in seen]).astype(np.float32)
            for key in agent.observation_sizes
        }

    terminated = np.concatenate([one.terminations for one in episodes])
    last = np.concatenate([np.arange(len(one.actions)) == len(one.actions) - 1 for one in episodes])
    new = dataset_from_arrays(
        rows(slice(None, -1)),
        np.concatenate([np.stack(one.actions) for one in episodes]).astype(np.float32),
        np.concatenate([one.rewards for one in episodes]).astype(np.float32),
        terminated,
        last & ~terminated,
        next_observations=rows(slice(1, None)),
        action_low=agent.units.action_low.cpu().numpy(),
        action_high=agent.units.action_high.cpu().numpy(),
    )
    return _columns(agent, new)


def _columns(agent: Agent, dataset: TensorDictBase) -> TensorDict:
    """What agents read of a dataset, so that those of several sources can be joined."""
    keys = agent.config.observation_keys
    outcomes = [("next", name) for name in ("reward", "terminated", "truncated", "done")]
    following = [("next", key) for key in keys]
    columns = dataset.select(*keys, *following, *outcomes, "action", "episode", "step_count")
    chosen: TensorDict = columns.copy()
    chosen.set_non_tensor("metadata", dict(metadata(dataset)))
    return chosen


def _elite(agent: Agent, buffer: TensorDict, share: float) -> TensorDict:
    """The episodes with the largest returns, a share of all and at least one, in their order."""
    if share == 1:
        return buffer
    lengths = episode_lengths(buffer["episode"])
    returns = agent.returns_to_go(buffer)[lengths.cumsum(0) - lengths].flatten()
    chosen = torch.zeros(len(returns), dtype=torch.bool)
    count = max(1, round(share * len(returns)))
    chosen[returns.argsort(descending=True, stable=True)[:count]] = True
    return buffer[chosen.repeat_interleave(lengths)]


def _append(buffer: TensorDict | None, new: TensorDict) -> TensorDict:
    """Both, the new episodes last and numbered on."""
    if buffer is None:
        return new
    later = new.exclude("metadata")
    later["episode"] = later["episode"] + int(buffer["episode"].max()) + 1
    joined: TensorDict = torch.cat([buffer.exclude("metadata"), later])
    joined.set_non_tensor("metadata", dict(metadata(buffer)))
    return joined
