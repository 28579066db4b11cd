"""The configuration and the paper's tables."""

from typing import Any

import pytest

from mage_agent.gac.config import GACConfig
from mage_agent.gac.presets import DATASETS, FINE_TUNING, PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid_and_survive_json(name: str) -> None:
    config = GACConfig.preset(name)
    assert GACConfig.from_dict(config.to_dict()) == config


def test_presets_are_those_of_tables_5_to_7() -> None:
    """Columns picked by hand from the paper, not from the presets' own tables."""
    columns: dict[str, dict[str, Any]] = {
        "hopper-medium": {
            **{"width": 192, "num_latents": 4, "num_heads": 4, "num_decoder_blocks": 3},
            **{"num_encoder_blocks": 4, "context": 4, "learning_rate": 0.001},
            **{"weight_decay": 0.0002, "outer_steps": 10, "inner_learning_rate": 0.2365},
            **{"batch_size": 700, "asked_return": 3600, "quantile": 0.8, "increment": 10},
        },
        "halfcheetah-medium-replay": {
            **{"width": 256, "num_latents": 4, "num_heads": 4, "num_decoder_blocks": 3},
            **{"num_encoder_blocks": 2, "context": 1, "learning_rate": 0.0012},
            **{"weight_decay": 0.0071, "outer_steps": 10, "inner_learning_rate": 0.0452},
            **{"batch_size": 700, "asked_return": 5000, "quantile": 0.6, "increment": 3},
        },
        "maze2d-medium": {
            **{"width": 256, "num_latents": 8, "num_heads": 2, "num_decoder_blocks": 2},
            **{"num_encoder_blocks": 3, "context": 16, "learning_rate": 0.0002},
            **{"weight_decay": 0.0002, "outer_steps": 1, "inner_learning_rate": 0.08777},
            **{"batch_size": 500, "asked_return": 280, "quantile": 0.8, "increment": 100},
        },
        "maze2d-large": {
            **{"width": 192, "num_latents": 2, "num_heads": 2, "num_decoder_blocks": 2},
            **{"num_encoder_blocks": 2, "context": 4, "learning_rate": 0.0009},
            **{"weight_decay": 0.0015, "outer_steps": 20, "inner_learning_rate": 0.1172},
            **{"batch_size": 500, "asked_return": 275},
        },
    }
    for name, expected in columns.items():
        found = GACConfig.preset(name).to_dict()
        assert {key: found[key] for key in expected} == expected
        assert found["inference"] == "fresh"
        assert found["window"] is None
        assert GACConfig.preset(name).max_inner_steps == 100


def test_fine_tuning_is_that_of_tables_6_and_7() -> None:
    assert set(FINE_TUNING) == set(DATASETS)
    stage_2 = FINE_TUNING["walker2d-medium-replay"][1]
    assert stage_2 == {
        **{"learning_rate": 0.0014, "weight_decay": 0.005, "outer_steps": 20},
        **{"inner_learning_rate": 0.1691, "batch_size": 500, "quantile": 0.6, "increment": 5},
    }
    assert FINE_TUNING["maze2d-large"][2]["inner_learning_rate"] == 0.1491
    ranges = {
        "learning_rate": (1e-4, 1e-2),
        "weight_decay": (1e-4, 1e-2),
        "inner_learning_rate": (0.01, 0.5),
    }
    for name, stages in FINE_TUNING.items():
        assert len(stages) == 3
        for stage in (PRESETS[name], *stages):
            GACConfig.preset(name, **stage)
            assert stage["outer_steps"] in (1, 5, 10, 20)
            for key, (low, high) in ranges.items():
                # Table 6 shows four decimals: 0.0001 may stand for a little less.
                assert low <= stage[key] <= high, (name, key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30, "num_heads": 4}, "width 30 is not a multiple of num_heads 4"),
        ({"discount": 0.99}, "not discounted"),
        ({"trigger": "surprise"}, "held_out is 0"),
        ({"inference": "fresh", "inner_steps": 0}, "fits q by them alone; take at least 1"),
        ({"query": "best of all"}, "allowed"),
        ({"inference": "exact"}, "allowed"),
        ({"window": 0}, "window is 0"),
        ({"batch_size": 2.5}, "must be an integer"),
        ({"held_out": 1.0}, "held_out is 1.0"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GACConfig(**changes)


def test_reach_grows_by_a_context_a_block() -> None:
    assert GACConfig(context=4, num_decoder_blocks=3).reach == 10
    assert GACConfig(context=1, num_decoder_blocks=4).reach == 1
