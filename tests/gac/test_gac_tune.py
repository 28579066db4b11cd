"""The search maximises the bound of held-out trajectories, and never reads an environment."""

import pytest

from mage_agent import MAGEConfig
from mage_agent.gac import stages
from mage_agent.gac.config import GACConfig
from mage_agent.gac.tune import ARCHITECTURE, OPTIMISATION, tune
from tests.gac.tiny import tiny_config, tiny_dataset

pytest.importorskip("optuna")


def test_the_best_trial_is_returned_and_bad_ones_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny_dataset((10,) * 12)
    monkeypatch.setattr(stages, "calibrate", None)  # trials act nowhere, and hold out nothing
    seen: list[tuple[GACConfig, float]] = []
    best = tune(
        dataset,
        tiny_config(steps=60, window=None, batch_size=12, trigger="surprise", held_out=0.1),
        trials=5,
        space={"learning_rate": (1e-6, 3e-2), "outer_steps": (1, 3)},
        held_out=0.25,
        device="cpu",
        progress_bar=False,
        callback=lambda config, bound: seen.append((config, bound)),
    )
    assert len(seen) == 5
    assert best == max(seen, key=lambda pair: pair[1])[0]
    for config, _ in seen:
        assert 1e-6 <= config.learning_rate <= 3e-2
        assert config.steps == 60 // config.outer_steps, "all with the same gradient steps"
    assert best.trigger == "surprise"
    # A model that hardly moves explains little.
    rates = sorted(seen, key=lambda pair: pair[0].learning_rate * pair[0].steps)
    assert rates[-1][1] > rates[0][1]


def test_the_space_is_table_4() -> None:
    for name, values in {**ARCHITECTURE, **OPTIMISATION}.items():
        for value in values:
            changes = {"num_heads": 1, name: value}
            assert getattr(GACConfig(**changes), name) == value


def test_bad_arguments_are_refused_before_the_first_trial() -> None:
    dataset, config = tiny_dataset(), tiny_config()
    with pytest.raises(ValueError, match="trials is 0; it must be at least 1"):
        tune(dataset, config, trials=0)
    with pytest.raises(ValueError, match=r"unknown configuration keys \['depth'\]"):
        tune(dataset, config, space={"depth": (1, 2)})
    with pytest.raises(ValueError, match="space names 'steps', the budget of a trial"):
        tune(dataset, config, space={"steps": (10, 20)})
    with pytest.raises(TypeError, match="it must be a GACConfig"):
        tune(dataset, MAGEConfig())  # type: ignore[arg-type]


def test_something_must_be_held_out() -> None:
    with pytest.raises(ValueError, match="held_out is 0"):
        tune(tiny_dataset(), tiny_config(), held_out=0.0, trials=1, progress_bar=False)


def test_an_endless_run_is_cut_before_anything_is_held_out() -> None:
    run = tiny_dataset((40,))
    config = tiny_config(steps=4, trajectory_steps=8)
    space = {"learning_rate": (1e-3, 1e-2)}
    found = tune(run, config, space=space, held_out=0.2, trials=1, progress_bar=False)
    assert found.trajectory_steps == 8
