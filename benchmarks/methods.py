"""The methods of the suite by name: MAGE, the bundled baselines, and classes of the user's own."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDictBase

from benchmarks.baselines import BASELINES
from benchmarks.tasks import mage_config
from mage_agent import MAGEConfig, MAGEPolicy
from mage_agent.training import STAGES, Progress, describe, fit

__all__ = [
    "MAGE",
    "Callback",
    "Method",
    "MethodFactory",
    "build_method",
    "check_changes",
    "expand",
    "find_method",
]

Callback = Callable[[int, dict[str, float]], None]
"""Called now and then during training, with the number of steps taken and some metrics."""


class Method(Protocol):
    """What the suite asks of a method, whether bundled or a user's own."""

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

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], tuple[NDArray[Any], ...] | None]:
        """Act, as policies of Stable-Baselines3 do."""
        ...

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Return errors on data that was held out."""
        ...


class MethodFactory(Protocol):
    """What stands behind a name: the class of a method."""

    def __call__(
        self,
        dataset: TensorDictBase,
        *,
        domain: str,
        observation_keys: tuple[str, ...],
        discount: float,
        seed: int,
        **changes: Any,
    ) -> Method:
        """Make an untrained method that fits a dataset."""
        ...


class MAGE:
    """``MAGEPolicy`` as a method of the suite.

    Args:
        dataset: TED TensorDict, as ``mage_agent.load_dataset`` returns it.
        domain: key of ``benchmarks.tasks.TASKS``; selects the preset.
        observation_keys: observation entries, concatenated in this order.
        discount: of the dataset's returns-to-go.
        seed: of the initial weights, and of sampled actions.
        paper_size: whether to take the preset at the paper's size, not the small one.
        **changes: fields of ``MAGEConfig`` to set differently.
    """

    def __init__(
        self,
        dataset: TensorDictBase,
        *,
        domain: str,
        observation_keys: tuple[str, ...],
        discount: float,
        seed: int,
        paper_size: bool = False,
        **changes: Any,
    ) -> None:
        given = {"observation_keys": observation_keys, "discount": discount, **changes}
        self.config = mage_config(domain, paper_size=paper_size, **given)
        self.published_steps = _total_steps(mage_config(domain))
        self.seed = seed
        self.policy = MAGEPolicy.from_dataset(dataset, self.config, seed=seed)

    @staticmethod
    def check(domain: str, changes: dict[str, Any]) -> None:
        """Refuse settings that no configuration has, by ``ValueError``."""
        mage_config(domain, paper_size=False, **changes)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The configuration."""
        return self.policy.config.to_dict()

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
    ) -> "MAGE":
        """Train all stages, each with its share of the steps; return self."""
        counts = self._share(steps)
        config = self.config.replace(**counts)
        self.policy = MAGEPolicy.from_dataset(dataset, config, seed=self.seed)

        def report(progress: Progress) -> None:
            assert callback is not None
            before = STAGES[: STAGES.index(progress.stage)]
            done = sum(counts[f"{stage}_steps"] for stage in before)
            callback(done + progress.step, progress.metrics)

        fit(
            self.policy.model,
            dataset,
            seed=seed,
            device=self.policy.device,
            progress_bar=progress_bar,
            log_dir=None if checkpoint_path is None else checkpoint_path.parent / "logs",
            checkpoint_path=checkpoint_path,
            checkpoint_interval=checkpoint_interval,
            resume=True,
            callback=None if callback is None else report,
        )
        return self

    def _share(self, steps: int) -> dict[str, int]:
        """Divide steps among the stages as the preset does."""
        names = [f"{stage}_steps" for stage in STAGES]
        total = _total_steps(self.config)
        shares = {name: getattr(self.config, name) / total for name in names}
        # A stage that the preset leaves out stays out; each other one has at least one step.
        return {name: max(int(share > 0), round(share * steps)) for name, share in shares.items()}

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], tuple[NDArray[Any], ...] | None]:
        """Act; see ``MAGEPolicy.predict``."""
        return self.policy.predict(observation, state, episode_start, deterministic)

    @property
    def target_return(self) -> float:
        """Discounted return to ask for at the start of an episode."""
        return self.policy.target_return

    def update_return_to_go(
        self, return_to_go: NDArray[np.float32], reward: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return to ask for after a reward."""
        return self.policy.update_return_to_go(return_to_go, reward)

    def set_random_seed(self, seed: int) -> None:
        """Start the randomness of sampled actions anew."""
        self.policy.set_random_seed(seed)

    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Errors on data; see ``mage_agent.training.describe``."""
        return describe(self.policy.model, dataset)

    def modules(self) -> Any:
        """All parts of the network."""
        return self.policy.modules()

    def save(self, path: Path) -> None:
        """Write the policy to a file that ``MAGEPolicy.load`` reads."""
        self.policy.save(path)


def _total_steps(config: MAGEConfig) -> int:
    return sum(getattr(config, f"{stage}_steps") for stage in STAGES)


_METHODS: dict[str, MethodFactory] = {"mage": MAGE, **BASELINES}


def expand(names: Sequence[str]) -> list[str]:
    """Check names of methods; ``all`` stands for every bundled one.

    Raises:
        ValueError: a name is unknown; the message lists the known ones.
    """
    expanded = [known for name in names for known in (_METHODS if name == "all" else [name])]
    for name in expanded:
        find_method(name)
    return list(dict.fromkeys(expanded))


def find_method(name: str) -> MethodFactory:
    """Return the class of a method.

    Args:
        name: a bundled method, or ``module:Class`` for one of the user's own, which must be
            importable wherever a cell runs.

    Raises:
        ValueError: there is no such method.
    """
    if name in _METHODS:
        return _METHODS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"unknown method {name!r}; known: {', '.join(_METHODS)}, and all. A class of your own "
            "is named by module:Class, for example my_module:MyPolicy."
        )
    try:
        found: MethodFactory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cannot import the method {name!r}: {error}. Its module must be on PYTHONPATH."
        ) from error
    return found


def check_changes(name: str, domain: str, changes: dict[str, Any]) -> None:
    """Check settings before anything is trained; a class of the user's own may do so itself.

    Raises:
        ValueError: a setting is unknown, or its value is not allowed.
    """
    check = getattr(find_method(name), "check", None)
    if check is not None:
        check(domain, changes)


def build_method(
    name: str,
    dataset: TensorDictBase,
    *,
    domain: str,
    seed: int,
    paper_size: bool,
    changes: dict[str, Any],
) -> Method:
    """Make an untrained method that fits a dataset.

    Args:
        name: see ``find_method``.
        dataset: what it will be trained on.
        domain: the dataset's row in the task table.
        seed: of its initial weights.
        paper_size: whether MAGE has the paper's size; the others always have.
        changes: settings that differ from the published ones.
    """
    preset = mage_config(domain)
    settings: dict[str, Any] = {
        "observation_keys": preset.observation_keys or ("observation",),
        "discount": preset.discount,
        **({"paper_size": paper_size} if name == "mage" else {}),
        **changes,
    }
    return find_method(name)(dataset, domain=domain, seed=seed, **settings)
