"""A GAC that the suite trained, with its stages of online fine-tuning, asked anything anywhere."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDictBase

from benchmarks.datasets import load_split
from benchmarks.domains import Domain, domain_of
from benchmarks.measure import scored_by, scores_of, to_scores
from benchmarks.records import Record
from benchmarks.sharing import stage_file
from mage_agent import AgentPolicy, GACModel, GACPolicy, Query, evaluate, make_environment
from mage_agent.evaluation import EpisodeResult
from mage_agent.types import PredictingPolicy

__all__ = ["DRAWN", "StartsAt", "Trained"]

Array = NDArray[np.float64]

DRAWN = ("plus", "target", "prior")
"""Queries whose plans are drawn; the others take the best one."""
_FIRST_SEED = 500_000  # of the episodes of figures


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the figures are about.

    Attributes:
        dataset: what was trained on.
        held: episodes that were not; empty where none were held out.
        domain: how it is evaluated.
        stages: policy before fine-tuning and after each stage that is there, by number.
        online: what each stage came to, in order.
    """

    dataset: TensorDictBase
    held: TensorDictBase
    domain: Domain
    stages: dict[int, GACPolicy]
    online: list[Record]

    @classmethod
    def load(cls, dataset_id: str, folder: Path, hold_out: float = 0.05) -> "Trained":
        """Read the folder of a cell, or any that holds ``policy.mage``.

        Raises:
            FileNotFoundError: there is no trained policy.
            TypeError: it is no GAC.
        """
        if not stage_file(folder, 0).exists():
            raise FileNotFoundError(
                f"{stage_file(folder, 0)} is not there; name the folder of a GAC cell of the suite "
                "(below cells/ of its --output), or one with a policy.mage."
            )
        stages: dict[int, GACPolicy] = {}
        while (path := stage_file(folder, len(stages))).exists():
            policy = AgentPolicy.load(path, device="cpu")
            if not isinstance(policy.model, GACModel):
                raise TypeError(f"{path} holds {policy.model.name!r}; these figures are of GAC.")
            stages[len(stages)] = GACPolicy(policy.model, seed=policy.seed)
        notes = [folder / f"stage_{number}.json" for number in range(1, len(stages))]
        online = [json.loads(note.read_text()) for note in notes if note.exists()]
        dataset, held = load_split(dataset_id, hold_out)
        domain = domain_of(dataset_id)
        return cls(dataset=dataset, held=held, domain=domain, stages=stages, online=online)

    @property
    def last(self) -> int:
        """Number of the last stage."""
        return max(self.stages)

    def asking(self, stage: int, kind: Any, **settings: Any) -> GACPolicy:
        """The policy of a stage with another question."""
        policy = self.stages[stage]
        policy.query = replace(Query.of(policy.config, kind), **settings)
        return policy

    def run(
        self,
        policy: PredictingPolicy,
        kind: str,
        episodes: int,
        *,
        starts: Sequence[Sequence[float]] | None = None,
    ) -> list[EpisodeResult]:
        """Run episodes, the same ones for every question.

        Args:
            policy: from ``asking``, or one that wraps it.
            kind: of its query: whether it is drawn.
            episodes: how many.
            starts: positions that they start at, in turn; a maze's alone can be told.
        """

        def make_env() -> gym.Env[Any, Any]:
            env = make_environment(self.dataset, **self.domain.environment)
            return env if starts is None else StartsAt(env, starts)

        return evaluate(
            policy,
            make_env,
            episodes=episodes,
            seed=_FIRST_SEED,
            num_envs=50,
            deterministic=kind not in DRAWN,
            progress_bar=False,
        )

    def scores(self, stage: int, kind: Any, episodes: int, **settings: Any) -> list[float]:
        """Scores of a question, one an episode."""
        policy = self.asking(stage, kind, **settings)
        return [round(s, 3) for s in scores_of(self.run(policy, kind, episodes), self.dataset)]

    def to_scores(self, returns: Sequence[float]) -> list[float]:
        """Returns as normalised scores; as they are where there are no references."""
        return [round(score, 3) for score in to_scores(returns, self.dataset)]

    @property
    def unit(self) -> str:
        """What scores are counted in."""
        return "normalised score" if scored_by(self.dataset) == "references" else "return"


class StartsAt(gym.Wrapper[Any, Any, Any, Any]):
    """Starts the episode of seed s at the s-th of some positions, in turn."""

    def __init__(self, env: gym.Env[Any, Any], starts: Sequence[Sequence[float]]) -> None:
        super().__init__(env)
        self.starts = [np.asarray(start, dtype=np.float64) for start in starts]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Start there."""
        assert seed is not None
        start = self.starts[(seed - _FIRST_SEED) % len(self.starts)]
        return self.env.reset(seed=seed, options={**(options or {}), "start": start})
