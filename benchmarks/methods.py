"""The methods of the suite by name: the bundled agents, and classes of the user's own."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from benchmarks import baselines
from benchmarks.cells import Cell
from benchmarks.domains import domain_of, split_id
from benchmarks.protocol import AgentMethod, Method
from mage_agent import Agent, Config, GACModel, MAGEModel

__all__ = [
    "AGENTS",
    "QUESTIONS",
    "Question",
    "build_for",
    "build_method",
    "check_changes",
    "configure",
    "expand",
    "find_method",
    "is_agent",
    "is_told_return",
    "training_of",
]

AGENTS: dict[str, type[Agent]] = {
    MAGEModel.name: MAGEModel,
    GACModel.name: GACModel,
    **baselines.BASELINES,
}
"""Name on the command line and in records -> agent."""


class Question(NamedTuple):
    """A method without a training of its own: a trained agent that is asked something else.

    Attributes:
        agent: name of the agent that is trained.
        changes: settings that its decisions read, and its training does not.
        drawn: whether it is scored by draws, not by its best action.
    """

    agent: str
    changes: dict[str, Any]
    drawn: bool = False


QUESTIONS = {
    **{
        f"{GACModel.name}-{kind}": Question(GACModel.name, {"query": kind}, drawn=True)
        for kind in ("plus", "target", "prior")
    },
    **{f"{name}-open": Question(name, {"open_loop": True}) for name in ("diffuser", "hd", "dv")},
}
"""The queries that GAC's paper compares with its own, and planners that make one plan and follow it
by a PD law, as the published scores of point mazes have them."""


UNTIL_CONVERGENCE = {GACModel}
"""Bundled agents whose publication names no number of steps; the most that they take, as of agents
of the user's own, is their configuration's."""


def expand(names: Sequence[str]) -> list[str]:
    """Check names of methods; ``all`` stands for every bundled one with a training of its own.

    Raises:
        ValueError: a name is unknown; the message lists the known ones.
    """
    expanded = [known for name in names for known in (AGENTS if name == "all" else [name])]
    for name in expanded:
        find_method(name)
    return list(dict.fromkeys(expanded))


def find_method(name: str) -> Any:
    """Return the class of a method.

    Args:
        name: a bundled agent, or ``module:Class`` for an agent or another method of the user's own,
            which must be importable wherever a cell runs.

    Raises:
        ValueError: there is no such method.
    """
    if name in QUESTIONS:
        name = QUESTIONS[name].agent
    if name in AGENTS:
        return AGENTS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"unknown method {name!r}; known: {', '.join([*AGENTS, *QUESTIONS])}, and all. A class "
            "of your own is named by module:Class, for example my_module:MyPolicy."
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cannot import the method {name!r}: {error}. Its module must be on PYTHONPATH."
        ) from error
    needed = () if _is_agent(found) else ("learn", "predict", "describe")
    if lacking := [each for each in needed if not callable(getattr(found, each, None))]:
        raise ValueError(f"{name!r} is no method: no Agent, and without {', '.join(lacking)}.")
    return found


def is_agent(name: str) -> bool:
    """Whether a method is a ``mage_agent.Agent``."""
    return _is_agent(find_method(name))


def is_told_return(name: str) -> bool | None:
    """Whether a method can be asked for a return; None where its settings decide."""
    method = find_method(name)
    told = getattr(method, "told_return", hasattr(method, "update_return_to_go"))
    return None if isinstance(told, property) else bool(told)


def configure(
    agent: type[Agent], dataset_id: str, *, paper_size: bool = False, **changes: Any
) -> Config:
    """The configuration of an agent for a dataset: what is published, or the domain's preset.

    Args:
        agent: the agent's class.
        dataset_id: of the dataset.
        paper_size: whether to take the preset at the paper's size, not at the small one.
        **changes: settings that differ.

    Raises:
        ValueError: a setting is unknown, or its value is not allowed.
    """
    domain = domain_of(dataset_id)
    keys = {"observation_keys": domain.observation_keys}
    if issubclass(agent, baselines.Baseline):
        published = baselines.configure(
            agent, *split_id(dataset_id), discount=domain.discount, paper_size=paper_size
        )
        return published.replace(**{**keys, **changes})
    known, (_, kind) = agent.config_class.PRESETS, split_id(dataset_id)
    names = domain.presets(kind, paper_size=paper_size)
    preset = next((known[name] for name in names if name in known), {})
    return agent.config_class.from_dict({**preset, **keys, **changes})


def check_changes(name: str, dataset_id: str, changes: Mapping[str, Any]) -> None:
    """Check settings before anything is trained; a method that is no agent may do so itself.

    Raises:
        ValueError: a setting is unknown, or its value is not allowed.
    """
    method = find_method(name)
    if _is_agent(method):
        configure(method, dataset_id, **changes)
    elif hasattr(method, "check"):
        method.check(domain_of(dataset_id).name, changes)


def build_method(
    name: str,
    dataset: TensorDictBase,
    *,
    dataset_id: str,
    seed: int,
    paper_size: bool = False,
    changes: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Method:
    """Make an untrained method that fits a dataset.

    Args:
        name: see ``find_method``.
        dataset: what it will be trained on.
        dataset_id: says which domain's settings it takes.
        seed: of its initial weights.
        paper_size: whether agents that have presets of two sizes take the paper's.
        changes: settings that differ from the published ones.
        device: where an agent is trained and acts.
    """
    found, changes = find_method(name), changes or {}
    if _is_agent(found):
        question = QUESTIONS.get(name)
        changes = {**changes, **(question.changes if question else {})}
        config = configure(found, dataset_id, paper_size=paper_size, **changes)
        agent = found.from_dataset(dataset, config, seed=seed).to(device)
        paper = config
        if found in set(AGENTS.values()) - UNTIL_CONVERGENCE:
            paper = configure(found, dataset_id, paper_size=True)
        with torch.device("meta"):  # allocates nothing
            keys = agent.config.observation_keys
            published = found(paper.replace(observation_keys=keys), **agent.sizes)
        steps = sum(stage.steps for stage in published.stages(dataset))
        deterministic = False if question and question.drawn else None
        return AgentMethod(agent, published_steps=steps, seed=seed, deterministic=deterministic)
    domain = domain_of(dataset_id)
    entries = [k for k in dataset["next"].keys() if isinstance(dataset.get(k, None), Tensor)]  # noqa: SIM118
    own = {
        "observation_keys": domain.observation_keys or tuple(entries),
        "discount": domain.discount,
    }
    method: Method = found(dataset, seed=seed, domain=domain.name, **{**own, **changes})
    return method


def build_for(cell: Cell, dataset: TensorDictBase, device: str, **other: Any) -> Method:
    """Make the untrained method of a cell; ``other`` arguments replace what the cell says."""
    said = {
        "dataset_id": cell.dataset,
        "seed": cell.seed,
        "paper_size": cell.budget == "paper",
        "changes": cell.changes,
        "device": device,
    }
    return build_method(cell.method, dataset, **{**said, **other})


def training_of(cell: Cell) -> Cell:
    """The cell whose training another one is scored on: itself, but for questions and stages."""
    question = QUESTIONS.get(cell.method)
    return replace(cell, method=question.agent if question else cell.method, stage=0)


def _is_agent(method: Any) -> bool:
    return isinstance(method, type) and issubclass(method, Agent)
