"""Trainings that several cells are scored on: asked something else, or after online fine-tuning."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from tensordict import TensorDictBase

from benchmarks.cells import Cell, Settings
from benchmarks.clock import write_json
from benchmarks.domains import FINAL_RETURN, Domain, split_id
from benchmarks.methods import QUESTIONS, build_for
from benchmarks.protocol import AgentMethod
from benchmarks.records import Record
from mage_agent import AgentPolicy, Config, OnlineStage, make_environment

__all__ = ["SAVED", "digest", "stage_file", "take_up"]

SAVED = "policy.mage"
"""Name of the file in which a trained agent is kept, for ``AgentPolicy.load``."""
_FACTS = "training.json"


def digest(hyperparameters: dict[str, Any]) -> str:
    """What tells configurations apart in records."""
    text = json.dumps(hyperparameters, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:12]


class FinalReturn(gym.Wrapper[Any, Any, Any, Any]):
    """Tells the return of an episode as the reward of its last step, and nothing before."""

    def reset(self, **options: Any) -> Any:
        """Begin to count."""
        self.total = 0.0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        """Step, and keep the reward back."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.total += float(reward)
        told = self.total if terminated or truncated else 0.0
        return observation, told, terminated, truncated, info


def stage_file(folder: Path, stage: int) -> Path:
    """Where the policy after a stage of online fine-tuning is kept; stage 0 is the training."""
    return folder / (f"stage_{stage}.mage" if stage else SAVED)


def take_up(
    cell: Cell,
    settings: Settings,
    domain: Domain,
    dataset: TensorDictBase,
    folder: Path,
    train: Callable[[], tuple[Any, Record]],
) -> tuple[AgentMethod, Record]:
    """The method of a cell with the weights of a training that other cells are scored on, too.

    Args:
        cell: what is to be scored.
        settings: of the suite.
        domain: of the dataset.
        dataset: what was trained on.
        folder: of the training, where its model is kept from the first cell on.
        train: trains; called where no finished training of this configuration is there.

    Returns:
        The method, and what the record says about its training.
    """
    method: Any = build_for(cell, dataset, settings.device)
    about = _kept(folder, method, cell)
    if about is None:
        trained, about = train()
        shutil.rmtree(folder / "online", ignore_errors=True)  # of another training, as these are:
        for left in folder.glob("stage_*"):
            left.unlink()
        trained.save(folder / SAVED)
        write_json(folder / _FACTS, about)
    if cell.stage:
        about = {**about, "online": _fine_tune(cell, settings, domain, dataset, folder, about)}
    if cell.method in QUESTIONS or cell.stage:
        about = {**about, "learning_curve": []}  # of the question that was asked in training
    trained = AgentPolicy.load(stage_file(folder, cell.stage), settings.device)
    for row in _published(cell, domain, trained.config)[: cell.stage]:
        method.model.adopt(**row)
    method.model.load_state_dict(trained.model.state_dict())
    used = method.hyperparameters
    return method, {**about, "hyperparameters": used, "config_digest": digest(used)}


def _kept(folder: Path, method: AgentMethod, cell: Cell) -> Record | None:
    """What is known of the finished training in a folder; None without one, or with another."""
    if not (folder / SAVED).exists() or not (folder / _FACTS).exists():
        return None
    about: Record = json.loads((folder / _FACTS).read_text())
    question = QUESTIONS.get(cell.method)
    asked = question.changes if question else {}
    ours = json.loads(json.dumps(method.hyperparameters))
    theirs = about["hyperparameters"]
    same = {**ours, **{name: theirs.get(name) for name in asked}} == theirs
    return about if same else None


def _fine_tune(
    cell: Cell,
    settings: Settings,
    domain: Domain,
    dataset: TensorDictBase,
    folder: Path,
    about: Record,
) -> list[Record]:
    """Fine-tune online up to the cell's stage (Algorithm 2); what each stage came to."""
    notes = [folder / f"stage_{number}.json" for number in range(1, cell.stage + 1)]
    if not all(note.exists() for note in notes):
        policy = AgentPolicy.load(folder / SAVED, settings.device)

        def keep(policy: AgentPolicy, stage: OnlineStage) -> None:
            policy.save(stage_file(folder, stage.number))
            told = {"asked": stage.asked.tolist(), "returns": stage.returns.tolist()}
            write_json(notes[stage.number - 1], {**told, "steps": stage.steps})

        def make_env() -> gym.Env[Any, Any]:
            env = make_environment(dataset, **domain.environment)
            return FinalReturn(env) if cell.dataset.endswith(FINAL_RETURN) else env

        policy.learn_online(
            make_env,
            dataset,
            stages=cell.stage,
            episodes=domain.online_episodes,
            steps=max(1, about["steps"] // 5),
            seed=cell.seed,
            num_envs=50,
            folder=folder / "online",
            progress_bar=False,
            callback=keep,
            changes=_published(cell, domain, policy.config),
        )
    return [json.loads(note.read_text()) for note in notes]


def _published(cell: Cell, domain: Domain, config: Config) -> Sequence[dict[str, Any]]:
    """What the agent's paper changes by stage, at its size: q, dy and the optimisation."""
    known = config.FINE_TUNING
    names = domain.presets(split_id(cell.dataset)[1], paper_size=cell.budget == "paper")
    return next((known[name] for name in names if name in known), ())
