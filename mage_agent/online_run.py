"""The folder that keeps a run of online fine-tuning, so that it goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from mage_agent.agent import Agent
from mage_agent.checkpoint import agent_header, digest, load_tensors, save_tensors
from mage_agent.data import metadata

__all__ = ["Run"]

_WITHIN = "\x1f"
"""Between the parts of nested names; observations may have a "/" in theirs."""


class Run:
    """A run of ``learn_online``: the agent as it was at the beginning, and each stage's episodes.

    Args:
        folder: where it is kept; None keeps nothing.
        agent: what is fine-tuned.
    """

    def __init__(self, folder: str | Path | None, agent: Agent) -> None:
        self.folder = None if folder is None else Path(folder).absolute()
        self.agent = agent
        self.tensors: dict[str, Tensor] = {}
        self.header: dict[str, Any] = {}  # none where nothing has been collected
        if self.folder is not None and any(self.folder.glob("stage_*")):
            path = self.folder / "run"
            self.tensors, self.header = (
                load_tensors(path) if path.is_file() else ({}, {"runs": [{}]})
            )

    def file(self, name: str) -> Path | None:
        """A file in the folder, if there is one."""
        return None if self.folder is None else self.folder / name

    def checked(self, changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What changes in each stage from where the run began, ready for JSON.

        Raises:
            ValueError: an agent that is trained cannot change it.
        """
        config, checked = self.agent.config, []
        if self.header.get("method") == self.agent.name:
            config = type(config).from_dict(self.header["config"])
        for change in changes:
            config = config.changed(**change)
            checked.append({name: config.to_dict()[name] for name in change})
        return checked

    @contextmanager
    def of(self, runs: list[dict[str, Any]]) -> Iterator[None]:
        """Take the agent back to where the run began; ``runs`` says of what data, and how.

        Raises:
            ValueError: the folder holds another run.
        """
        path = self.file("run")
        if path is None:
            yield
            return
        now = _name(self.agent)
        if not self.header:
            self.tensors = {name: part.clone() for name, part in self.agent.state_dict().items()}
            self.header = agent_header(self.agent) | {"weights": [now], "runs": runs}
            save_tensors(self.tensors, path, self.header)
        if "dataset" not in self.header["runs"][0]:
            raise ValueError(
                f"{str(self.folder)!r} holds a run of an earlier version; give another folder."
            )
        weights, earlier = self.header["weights"], self.header["runs"]
        was = [{"weights": weights[0]}, *earlier]
        told = [{"weights": weights[0] if now in weights else now}, *runs]
        for old, new in zip(was, told, strict=False):
            for name in new:
                if old[name] != new[name]:
                    raise ValueError(
                        f"{str(self.folder)!r} comes from another run: {name} was {old[name]} and "
                        f"is {new[name]}; give the same, or another folder."
                    )
        self.header["runs"] = runs + earlier[len(runs) :]
        if self.header["runs"] != earlier:
            save_tensors(self.tensors, path, self.header)
        self.agent.load_state_dict(self.tensors)
        self.agent.config = type(self.agent.config).from_dict(self.header["config"])
        self.agent.ask(self.header["asks"])
        try:
            yield
        finally:
            left = {"weights": [*weights, _name(self.agent)]}
            save_tensors(self.tensors, path, self.header | left)

    def keep(self, number: int, new: TensorDict, returns: NDArray[np.float64]) -> None:
        """Write what a stage has collected, whole or not at all."""
        if (path := self.file(f"stage_{number}.episodes")) is None:
            return
        flat = new.exclude("metadata").flatten_keys(_WITHIN)
        tensors: dict[str, Tensor] = {key: flat[key] for key in flat.keys()}  # noqa: SIM118
        save_tensors(
            tensors,
            path,
            {"returns": returns.tolist(), "metadata": dict(metadata(new)), "within": _WITHIN},
        )

    def collected(self, number: int) -> tuple[TensorDict | None, NDArray[np.float64]]:
        """What a stage collected in an earlier call, or nothing."""
        path = self.file(f"stage_{number}.episodes")
        if path is None or not path.is_file():
            return None, np.zeros(0)
        tensors, header = load_tensors(path)
        within = header.get("within", "/")  # that of earlier versions
        new = TensorDict(tensors, batch_size=[len(tensors["action"])]).unflatten_keys(within)
        new.set_non_tensor("metadata", header["metadata"])
        return new, np.array(header["returns"])


def _name(agent: Agent) -> str:
    """A name of an agent's weights."""
    return digest(agent.state_dict())[:12]
