"""Hyperparameters by the evidence of held-out trajectories, never by returns (appendix B)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tensordict import TensorDictBase

from mage_agent.gac.config import GACConfig
from mage_agent.gac.model import GACModel
from mage_agent.gac.stages import hold_out, part
from mage_agent.optional import require
from mage_agent.stage import TrainingError
from mage_agent.training import fit

if TYPE_CHECKING:
    import optuna

__all__ = ["ARCHITECTURE", "OPTIMISATION", "tune"]

Choice = tuple[int, ...]
Interval = tuple[float, float]

ARCHITECTURE: dict[str, Choice | Interval] = {
    "width": (64, 128, 192, 256, 512),
    "num_latents": (1, 2, 4, 8),
    "num_heads": (1, 2, 4, 8),
    "num_decoder_blocks": (1, 2, 3, 4),
    "num_encoder_blocks": (1, 2, 3, 4),
    "context": (1, 4, 16, 32, 64),
}
"""Choices of Table 4."""
OPTIMISATION: dict[str, Choice | Interval] = {
    "learning_rate": (1e-4, 1e-2),
    "weight_decay": (1e-4, 1e-2),
    "outer_steps": (1, 5, 10, 20),
    "inner_learning_rate": (0.01, 0.5),
    "batch_size": (500, 600, 700, 800),
}
"""Choices (whole numbers) and intervals of Table 4."""


def tune(
    dataset: TensorDictBase,
    config: GACConfig,
    *,
    trials: int = 50,
    space: Mapping[str, Choice | Interval] | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    device: str = "auto",
    progress_bar: bool = True,
    callback: Callable[[GACConfig, float], None] | None = None,
) -> GACConfig:
    """Search the configuration whose model explains held-out trajectories best.

    Each trial trains a model on the other trajectories, and is worth the mean evidence lower bound
    of the held-out ones, with q fitted to them and without free bits. The objective compares
    likelihoods, so the floors of the standard deviations, and sigma_y, are not searched.

    Args:
        dataset: from ``load_dataset``.
        config: where the search begins, and what is not searched; its ``steps`` are the budget of a
            trial, counted in gradient steps.
        trials: models to train.
        space: field to choices, whole numbers, or to an interval, two fractions, searched on a
            logarithmic scale; None is Table 4.
        held_out: share of the episodes by which trials are judged.
        seed: of weights, training and search.
        device: "auto" takes a GPU where there is one.
        progress_bar: whether to show one.
        callback: called with the configuration and the bound of every trial that came to an end.

    Returns:
        The best configuration.

    Raises:
        ImportError: Optuna is not installed (the extra ``tune``).
        TypeError: ``config`` is none of GAC.
        ValueError: ``trials`` is below 1, ``space`` names the steps or what no configuration has,
            no trial came to an end, or nothing can be held out.
    """
    search: Any = require("optuna")
    if not isinstance(config, GACConfig):
        raise TypeError(f"config is {config!r}; it must be a GACConfig.")
    if trials < 1:
        raise ValueError(f"trials is {trials}; it must be at least 1.")
    fields = {**ARCHITECTURE, **OPTIMISATION} if space is None else dict(space)
    if "steps" in fields:
        raise ValueError("space names 'steps', the budget of a trial; it is config.steps for all.")
    config.replace(**{name: getattr(config, name, None) for name in fields})  # all known?
    training, judged = hold_out(part(dataset, config), held_out)
    if judged is None:
        raise ValueError(f"held_out is {held_out}; the search needs trajectories to judge by.")
    found: dict[int, GACConfig] = {}

    def objective(trial: optuna.Trial) -> float:
        changes = {name: _suggest(trial, name, values) for name, values in fields.items()}
        outer = changes.get("outer_steps", config.outer_steps)
        # The same number of gradient steps for all.
        tried = config.replace(**changes, steps=max(1, config.steps // outer))
        try:
            # A trial acts nowhere, so nothing more is held out to calibrate a trigger on.
            alone = tried.replace(trigger="never", held_out=0.0)
            model = GACModel.from_dataset(training, alone, seed=seed)
            fit(model, training, seed=seed, device=device, progress_bar=False)
        except TrainingError as error:  # it diverged
            raise search.TrialPruned(str(error)) from error
        found[trial.number] = tried
        bound = model.describe(judged)["elbo"]
        if callback is not None:
            callback(tried, bound)
        return bound

    search.logging.set_verbosity(search.logging.WARNING)
    sampler = search.samplers.TPESampler(seed=seed)
    study = search.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=trials, show_progress_bar=progress_bar)
    if not found:
        raise ValueError(f"all {trials} trials diverged; search smaller learning rates.")
    return found[study.best_trial.number]


def _suggest(trial: optuna.Trial, name: str, values: Choice | Interval) -> Any:
    if all(isinstance(value, int) for value in values):
        return trial.suggest_categorical(name, values)
    low, high = values
    return trial.suggest_float(name, low, high, log=True)
