"""Locomotion datasets by D4RL's recipe: the replay buffer and the policy of SAC, in training."""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import tyro
from minari.data_collector import EpisodeBuffer
from rich.console import Console
from stable_baselines3 import SAC

from benchmarks.collect.common import check_choice, check_least, origin
from mage_agent.d4rl import ALL_TASKS, D4RLTask
from mage_agent.evaluation import evaluate, normalized_score
from mage_agent.recording import free_place, minari_root, record, save_minari

__all__ = ["LEVELS", "ROBOTS", "LocomotionRecipe", "collect", "episodes_of"]

LEVELS = {"medium": 100 / 3, "expert": 100.0}
"""D4RL-normalised score at which training stops; D4RL: medium is "about a third" of the expert."""
ROBOTS = tuple(name.removesuffix("-random-v2") for name in ALL_TASKS if "-random-" in name)
_KINDS = {
    "medium": ("medium-replay", "medium"),
    "expert": ("full-replay", "expert", "medium-expert"),
}
_COLUMNS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass(frozen=True, kw_only=True)
class LocomotionRecipe:
    """How the datasets of a level are made, such as ``local/hopper/medium-replay-v0``.

    SAC is trained with its published settings until its policy, sampled, scores the level. What it
    saw until then, in order, is the replay dataset (medium-replay, full-replay); medium and expert
    are recorded with the sampled policy; medium-expert is both. The expert's training goes on from
    that of medium, which is collected first.

    Attributes:
        robot: one of D4RL's: halfcheetah, hopper, walker2d, ant.
        level: which of ``LEVELS``.
        most_steps: environment steps in which it must be reached.
        steps: environment steps to record, rounded up to whole episodes; D4RL: a million.
        evaluate_every: environment steps between evaluations; each leaves a checkpoint, so that a
            training that was killed goes on from there.
        episodes: of each evaluation.
        learning_starts: environment steps of random actions before the first gradient step.
        seed: seeds everything.
    """

    robot: tyro.conf.Suppress[str]
    level: tyro.conf.Suppress[str] = "medium"
    most_steps: int = 1_000_000
    steps: int = 200_000
    evaluate_every: int = 5_000
    episodes: int = 10
    learning_starts: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be collected.

        Raises:
            ValueError: a value is not allowed.
        """
        check_choice(self, robot=ROBOTS, level=tuple(LEVELS))
        counts = ("most_steps", "steps", "evaluate_every", "episodes", "learning_starts")
        check_least(self, **dict.fromkeys(counts, 1))

    @property
    def dataset_ids(self) -> tuple[str, ...]:
        """Minari ids of the replay dataset, of the policy's, and of the expert's with medium."""
        return tuple(f"local/{self.robot}/{kind}-v0" for kind in _KINDS[self.level])

    @property
    def task(self) -> D4RLTask:
        """D4RL's task: environment and reference scores."""
        return ALL_TASKS[f"{self.robot}-{self.level}-v2"]


def collect(recipe: LocomotionRecipe, root: Path, *, progress_bar: bool = True) -> Path:
    """Train SAC and save the level's datasets under a Minari root, each all or nothing.

    Training starts from the last checkpoint in ``root / ".training"``, where one level's training
    leaves its last for the next level's.

    Args:
        recipe: what to collect.
        root: folder that holds Minari datasets.
        progress_bar: whether to show progress.

    Returns:
        The folder of all, ``root / "local" / recipe.robot``.

    Raises:
        FileExistsError: all datasets are there already.
        RuntimeError: the level was not reached within ``recipe.most_steps``.
    """
    replay, policy, *mixed = recipe.dataset_ids
    missing = [name for name in recipe.dataset_ids if not (root / name).exists()]
    for name in missing or [replay]:
        free_place(root, name)  # before the work, not after it
    medium = replace(recipe, level="medium")
    if mixed and not all((root / name).exists() for name in medium.dataset_ids):
        collect(medium, root, progress_bar=progress_bar)
    checkpoints = root / ".training" / f"{recipe.robot}-{recipe.seed}"
    sac, score, length = _train(recipe, checkpoints, progress_bar=progress_bar)
    facts: dict[str, Any] = {
        **origin("benchmarks/collect/locomotion.py", "mujoco", "stable-baselines3"),
        "algorithm_name": "SAC",
        "ref_min_score": recipe.task.ref_min_score,
        "ref_max_score": recipe.task.ref_max_score,
        "description": f"{recipe}. Score {score:.1f} after {sac.num_timesteps} steps of training.",
    }
    env = _make_env(recipe)
    if replay in missing:
        save_minari(root, replay, episodes_of(sac), env=env, eval_env=env.spec, **facts)
    if policy in missing:
        record(
            sac,
            lambda: _make_env(recipe),
            policy,
            episodes=math.ceil(recipe.steps / length),
            seed=1_000_000 + recipe.seed,  # starts that no evaluation has
            root=root,
            progress_bar=progress_bar,
            **facts,
        )
    for name in set(mixed) & set(missing):
        both = _stored(root, medium.dataset_ids[1]) + _stored(root, policy)
        episodes = [replace(episode, id=index) for index, episode in enumerate(both)]
        save_minari(root, name, episodes, env=env, eval_env=env.spec, **facts)
    env.close()
    return root / "local" / recipe.robot


def _stored(root: Path, dataset_id: str) -> list[EpisodeBuffer]:
    """Read the episodes of a saved dataset."""
    with minari_root(root):
        dataset = minari.load_dataset(dataset_id)
    return [
        EpisodeBuffer(
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
        )
        for episode in dataset
    ]


def episodes_of(sac: SAC) -> list[EpisodeBuffer]:
    """Cut an agent's replay buffer into episodes, in the order in which they were seen.

    A step without successor in the buffer, the last one or one before a resumed training, is
    truncated there.
    """
    buffer: Any = sac.replay_buffer
    size = buffer.size()
    seen, following = buffer.observations[:size, 0], buffer.next_observations[:size, 0]
    done, timeout = (column[:size, 0] > 0 for column in (buffer.dones, buffer.timeouts))
    follows = np.append((following[:-1] == seen[1:]).all(axis=1), False)
    truncated = timeout | ~(done | follows)
    actions = sac.policy.unscale_action(buffer.actions[:size, 0])
    stops = np.flatnonzero(done | truncated) + 1
    return [
        EpisodeBuffer(
            id=index,
            observations=np.concatenate([seen[first:stop], following[stop - 1 : stop]]),
            actions=actions[first:stop],
            rewards=buffer.rewards[first:stop, 0],
            terminations=(done & ~timeout)[first:stop],
            truncations=truncated[first:stop],
        )
        for index, (first, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True))
    ]


def _make_env(recipe: LocomotionRecipe) -> gym.Env[Any, Any]:
    return gym.make(recipe.task.environment_id, **recipe.task.environment_kwargs)


def _train(
    recipe: LocomotionRecipe, checkpoints: Path, *, progress_bar: bool
) -> tuple[SAC, float, float]:
    """Train until the level is reached, from the last checkpoint on.

    Returns:
        The agent with its buffer, its score, and its mean length of an episode.
    """
    sac = _restore(recipe, checkpoints)
    while True:
        results = evaluate(
            sac,
            lambda: _make_env(recipe),
            episodes=recipe.episodes,
            seed=recipe.seed,
            deterministic=False,
            progress_bar=False,
        )
        returns = [result.episode_return for result in results]
        references = recipe.task.ref_min_score, recipe.task.ref_max_score
        score = float(normalized_score(returns, *references).mean())
        if progress_bar:
            Console().print(f"{recipe.robot}: {score:.1f} after {sac.num_timesteps} steps")
        if sac.num_timesteps and score >= LEVELS[recipe.level]:
            return sac, score, float(np.mean([result.length for result in results]))
        if sac.num_timesteps >= recipe.most_steps:
            raise RuntimeError(
                f"{recipe.robot} scores {score:.1f} after {sac.num_timesteps} steps, and "
                f"{recipe.level} is {LEVELS[recipe.level]:.1f}; raise most_steps to go on."
            )
        sac.set_random_seed(recipe.seed + sac.num_timesteps)  # evaluation has set another
        left = recipe.most_steps - sac.num_timesteps
        sac.learn(min(recipe.evaluate_every, left), reset_num_timesteps=False)
        _save(sac, checkpoints)


def _save(sac: SAC, checkpoints: Path) -> None:
    """Write a checkpoint beside its place, move it there when it is whole, and drop the others."""
    staging = checkpoints / ".unfinished"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    sac.save(staging / "sac.zip")
    buffer: Any = sac.replay_buffer
    rows = {name: getattr(buffer, name)[: buffer.size()] for name in _COLUMNS}
    np.savez(staging / "buffer.npz", **rows)
    older = [path for path in checkpoints.iterdir() if path != staging]
    staging.rename(checkpoints / str(sac.num_timesteps))
    for path in older:
        shutil.rmtree(path)


def _restore(recipe: LocomotionRecipe, checkpoints: Path) -> SAC:
    """Return the agent of the last checkpoint, or else an untrained one."""
    size: dict[str, Any] = {"buffer_size": recipe.most_steps}  # all that is seen is kept
    steps = [int(path.name) for path in checkpoints.glob("[0-9]*")]
    env = _make_env(recipe)
    if not steps:
        starts = recipe.learning_starts
        return SAC("MlpPolicy", env, learning_starts=starts, seed=recipe.seed, **size)
    sac = SAC.load(checkpoints / str(max(steps)) / "sac.zip", env, **size)
    buffer: Any = sac.replay_buffer
    with np.load(checkpoints / str(max(steps)) / "buffer.npz") as file:
        for name in _COLUMNS:
            getattr(buffer, name)[: max(steps)] = file[name]
    buffer.pos, buffer.full = max(steps) % buffer.buffer_size, max(steps) == buffer.buffer_size
    return sac
