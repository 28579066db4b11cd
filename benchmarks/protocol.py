"""What the suite asks of a method, and how agents answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tensordict import TensorDictBase

from mage_agent import Agent, AgentPolicy, Progress, fit
from mage_agent.types import PredictingPolicy

__all__ = ["AgentMethod", "Callback", "Method"]

Callback = Callable[[int, dict[str, float]], None]
"""Called now and then during training, with the number of steps taken and some metrics; where the
metric ``acts`` is 0, the method cannot act yet."""


class Method(PredictingPolicy, Protocol):
    """What the suite asks of a method that is no ``mage_agent.Agent``; ``save(path)`` is optional.

    Its class is called with the dataset, ``domain``, ``observation_keys``, ``discount``, ``seed``
    and the settings of ``--config``.
    """

    @property
    def published_steps(self) -> int:
        """Gradient steps of its publication: the budget ``paper``, and the most of any other."""
        ...

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Everything that was chosen, as JSON-ready values."""
        ...

    def learn(
        self,
        dataset: TensorDictBase,
        *,
        steps: int,
        seed: int = 0,
        progress_bar: bool = True,
        checkpoint_path: Path | None = None,
        checkpoint_interval: int = 1000,
        callback: Callback | None = None,
    ) -> Any:
        """Train; go on from ``checkpoint_path`` if it exists, and keep the state there."""
        ...

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Return errors on data that was held out."""
        ...


class AgentMethod(AgentPolicy):
    """An agent as a method of the suite: trained by ``fit``, acting by ``AgentPolicy``.

    Args:
        model: the untrained agent.
        published_steps: gradient steps of its publication.
        seed: of sampled actions.
        deterministic: whether it is scored by its best action; None leaves that to the domain.
    """

    def __init__(
        self,
        model: Agent,
        *,
        published_steps: int,
        seed: int = 0,
        deterministic: bool | None = None,
    ) -> None:
        super().__init__(model, seed=seed)
        self.published_steps = published_steps
        self.deterministic = deterministic

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The configuration."""
        return self.config.to_dict()

    def rows_per_batch(self, dataset: TensorDictBase) -> int:
        """Steps of data that a batch of whole episodes may hold; 0 where windows are drawn."""
        whole = (s for s in self.model.stages(dataset) if s.starts == "episodes")
        return max((stage.batch_size * stage.horizon for stage in whole), default=0)

    def learn(  # type: ignore[override]  # the suite's callback counts steps
        self,
        dataset: TensorDictBase,
        *,
        steps: int,
        seed: int = 0,
        progress_bar: bool = True,
        checkpoint_path: Path | None = None,
        checkpoint_interval: int = 1000,
        callback: Callback | None = None,
    ) -> "AgentMethod":
        """Train all stages, each with its share of the steps, from where the checkpoint is."""

        def report(progress: Progress) -> None:
            if callback is not None:
                callback(progress.done, {**progress.metrics, "acts": float(progress.acts)})

        fit(
            self.model,
            dataset,
            seed=seed,
            steps=steps,
            device=self.device,
            progress_bar=progress_bar,
            log_dir=None if checkpoint_path is None else checkpoint_path.parent / "logs",
            checkpoint_path=checkpoint_path,
            checkpoint_interval=checkpoint_interval,
            resume=checkpoint_path is not None,
            callback=report,
        )
        return self

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Errors on data; see ``Agent.describe``."""
        return self.model.describe(dataset)
