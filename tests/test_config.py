"""Configuration: every constraint speaks, every field travels and changes something."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import set_interaction_type
from torch import Tensor
from torchrl.envs.utils import ExplorationType

from mage_agent.actor import MAGEActor
from mage_agent.config import PRESETS, MAGEConfig
from mage_agent.training import build_model, fit
from tests.tiny import tiny_config

FIELDS = [field.name for field in dataclasses.fields(MAGEConfig)]

INVALID: list[tuple[dict[str, Any], list[str]]] = [  # changes -> what the message must hold
    ({"horizon": 25}, ["horizon 25", "temporal_stride 3"]),
    ({"horizon": 0}, ["horizon is 0", "at least 1"]),
    ({"horizon": 24.0}, ["horizon is 24.0", "integer"]),
    ({"horizon": True}, ["horizon is True", "integer"]),
    ({"num_scales": 5}, ["num_scales is 5", "at most 4"]),
    ({"num_scales": 2, "scale_lengths": (1, 2, 4)}, ["num_scales is 2", "(1, 2, 4) has 3"]),
    ({"scale_lengths": (1, 4, 2)}, ["(1, 4, 2)", "strictly increasing"]),
    ({"scale_lengths": (1, 1, 4)}, ["(1, 1, 4)", "strictly increasing"]),
    ({"scale_lengths": (0, 1, 4)}, ["(0, 1, 4)", "from 1"]),
    ({"scale_lengths": (1, 2, 3)}, ["(1, 2, 3)", "= 4"]),
    ({"scale_lengths": (1.0, 2.0, 4.0)}, ["(1.0, 2.0, 4.0)", "integers"]),
    ({"width": 18, "num_heads": 4}, ["width 18", "num_heads 4"]),
    ({"codebook_size": 0}, ["codebook_size is 0", "at least 1"]),
    ({"batch_size": -3}, ["batch_size is -3", "at least 1"]),
    ({"dropout": 1.0}, ["dropout is 1.0", "0.99"]),
    ({"dropout": float("nan")}, ["dropout is nan", "0.99"]),
    ({"discount": 0.0}, ["discount is 0.0", "1.0"]),
    ({"discount": 1.01}, ["discount is 1.01", "1.0"]),
    ({"target_return": 1.5}, ["target_return is 1.5", "1.0"]),
    ({"learning_rate": 0}, ["learning_rate is 0"]),
    ({"learning_rate": "fast"}, ["learning_rate is 'fast'"]),
    ({"codebook_decay": 1.0}, ["codebook_decay is 1.0"]),
    ({"gumbel_temperature": 0.0}, ["gumbel_temperature is 0.0"]),
    ({"code_temperature": -0.1}, ["code_temperature is -0.1"]),
    ({"temperature": -1.0}, ["temperature is -1.0"]),
    ({"condition_weight": -0.1}, ["condition_weight is -0.1"]),
    ({"return_expectile": 1.0}, ["return_expectile is 1.0"]),
    ({"guidance_scale": 2.0}, ["guidance_scale is 2.0", "return_dropout is 0"]),
    ({"context": "own", "return_dropout": 0.1}, ["return_dropout is 0.1", "context='own'"]),
    ({"trajectory": "SR"}, ["trajectory is 'SR'", "'RS'"]),
    ({"inverse_dynamics": "none"}, ["inverse_dynamics is 'none'", "'explicit'"]),
    ({"inverse_dynamics": "explicit", "trajectory": "A"}, ["'explicit'", "trajectory='A'"]),
    ({"inverse_dynamics": "direction"}, ["'direction'", "trajectory='RS'", "'RG'"]),
    ({"trajectory": "RG"}, ["observation_keys is ()", "('achieved_goal', 'desired_goal')"]),
    ({"inverse_dynamics_condition": "body"}, ["'body'", "('achieved_goal', 'desired_goal')"]),
    ({"condition_guidance": "prior"}, ["condition_guidance is 'prior'", "'adapter'"]),
    ({"context": "student"}, ["context is 'student'", "'teacher'"]),
    ({"return_conditioning": ("encoder",)}, ["'encoder'", "'autoencoder'"]),
    ({"return_conditioning": 5}, ["return_conditioning is 5", "tuple"]),
    ({"return_conditioning": [["autoencoder"]]}, ["must be a tuple of some of"]),
    ({"scale_lengths": 5}, ["scale_lengths is 5", "tuple of integers"]),
    ({"scale_lengths": ()}, ["scale_lengths is ()"]),
    ({"return_reweighting": 1}, ["return_reweighting is 1", "True or False"]),
    ({"warmup_steps": 1.5}, ["warmup_steps is 1.5", "integer of at least 0"]),
    ({"inverse_dynamics_steps": float("inf")}, ["inverse_dynamics_steps is inf"]),
    ({"inverse_dynamics_steps": True}, ["inverse_dynamics_steps is True"]),
    ({"followed_scales": -1}, ["followed_scales is -1", "integer of at least 0"]),
    ({"followed_scales": 4}, ["followed_scales is 4", "3 scales"]),
    ({"q_value_weight": 0.5}, ["q_value_weight is 0.5", "['first_scale', 'finer_scales']"]),
    ({"learning_rate": float("inf")}, ["learning_rate is inf"]),
    ({"commitment_weight": float("nan")}, ["commitment_weight is nan"]),
    ({"horizon": 3 * 10**9, "num_scales": 10**9}, ["horizon is 3000000000", "at most"]),
    ({"observation_keys": "observation"}, ["observation_keys is 'observation'", "tuple"]),
    ({"observation_keys": (1,)}, ["observation_keys is (1,)", "tuple"]),
]


@pytest.mark.parametrize(("changes", "parts"), INVALID, ids=lambda value: str(value)[:40])
def test_each_constraint_says_what_is_wrong(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        tiny_config(**changes)
    for part in parts:
        assert part in str(caught.value)


class TestScales:
    @pytest.mark.parametrize(
        ("horizon", "num_scales"),
        [(24, count) for count in range(1, 11)] + [(3, 1), (3, 3), (48, 7), (10, 10)],
    )
    def test_run_from_one_to_the_latents_length(self, horizon: int, num_scales: int) -> None:
        config = MAGEConfig(horizon=horizon, temporal_stride=1, num_scales=num_scales)
        assert len(config.scales) == num_scales
        assert config.scales[-1] == config.latent_length == horizon
        assert list(config.scales) == sorted(set(config.scales))
        assert num_scales == 1 or config.scales[0] == 1

    def test_are_geometric_where_there_is_room(self) -> None:
        assert MAGEConfig(horizon=24, temporal_stride=3, num_scales=4).scales == (1, 2, 4, 8)
        assert MAGEConfig(horizon=24, temporal_stride=3, num_scales=8).scales == tuple(range(1, 9))

    def test_can_be_given(self) -> None:
        assert tiny_config(scale_lengths=(1, 3, 4)).scales == (1, 3, 4)


class TestPresets:
    def test_names(self) -> None:
        domains = {"adroit", "kitchen", "antmaze", "maze2d", "locomotion"}
        assert set(PRESETS) == domains | {f"{name}-small" for name in domains} | {"small"}

    @pytest.mark.parametrize("name", PRESETS)
    def test_are_valid(self, name: str) -> None:
        assert MAGEConfig.preset(name).to_dict()["horizon"] == 24

    @pytest.mark.parametrize(
        ("name", "codebook_size", "width", "num_blocks", "discount"),
        [  # Tables 10-14 of the paper
            ("adroit", 512, 512, 8, 0.99),
            ("kitchen", 2048, 512, 8, 0.99),
            ("antmaze", 1024, 512, 8, 0.998),
            ("maze2d", 256, 256, 4, 0.99),
            ("locomotion", 512, 512, 8, 0.99),
        ],
    )
    def test_domains_have_the_papers_sizes(
        self, name: str, codebook_size: int, width: int, num_blocks: int, discount: float
    ) -> None:
        config = MAGEConfig.preset(name)
        assert (config.codebook_size, config.width) == (codebook_size, width)
        assert (config.num_blocks, config.discount) == (num_blocks, discount)
        assert (config.num_heads, config.dropout, config.num_scales) == (4, 0.1, 8)
        assert (config.learning_rate, config.batch_size) == (2e-4, 512)

    def test_take_changes(self) -> None:
        assert MAGEConfig.preset("small", width=64).width == 64
        with pytest.raises(ValueError, match="widthh"):
            MAGEConfig.preset("small", widthh=64)

    def test_unknown_names_list_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"'pen'.*'adroit'.*'small'"):
            MAGEConfig.preset("pen")


class TestRoundTrip:
    @pytest.mark.parametrize("name", PRESETS)
    def test_through_a_dict_and_json(self, name: str) -> None:
        config = MAGEConfig.preset(name, scale_lengths=None, return_expectile=0.9)
        assert MAGEConfig.from_dict(config.to_dict()) == config
        assert MAGEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_lists_become_tuples(self) -> None:
        config = tiny_config(scale_lengths=[1, 2, 4], return_conditioning=["autoencoder"])
        assert config.scale_lengths == (1, 2, 4)
        assert config.return_conditioning == ("autoencoder",)
        assert hash(config) == hash(MAGEConfig.from_dict(config.to_dict()))

    def test_unknown_keys_are_refused_and_the_known_listed(self) -> None:
        with pytest.raises(ValueError, match=r"\['horizons'\].*'horizon'"):
            MAGEConfig.from_dict({"horizons": 24})
        with pytest.raises(ValueError, match="horizons"):
            tiny_config().replace(horizons=24)

    def test_replace_changes_and_checks(self) -> None:
        config = tiny_config()
        assert config.replace(width=32) == tiny_config(width=32)
        with pytest.raises(ValueError, match="width 33"):
            config.replace(width=33)

    def test_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            tiny_config().width = 3  # type: ignore[misc]

    def test_the_digest_names_the_contents(self) -> None:
        assert tiny_config().digest == tiny_config().digest
        assert tiny_config().digest != tiny_config(width=32).digest
        assert len(tiny_config().digest) == 12


# Every field once, with another value, and what it takes to see the difference.
ALIVE: dict[str, dict[str, Any]] = {
    "observation_keys": {"observation_keys": ("observation", "observation")},
    "horizon": {"horizon": 6, "num_scales": 2},
    "temporal_stride": {"temporal_stride": 2},
    "num_scales": {"num_scales": 2},
    "scale_lengths": {"scale_lengths": (1, 3, 4)},
    "codebook_size": {"codebook_size": 4},
    "code_dim": {"code_dim": 8},
    "width": {"width": 8},
    "num_blocks": {"num_blocks": 2},
    "num_heads": {"num_heads": 4},
    "num_autoencoder_blocks": {"num_autoencoder_blocks": 2},
    "dropout": {"dropout": 0.5},
    "trajectory": {"trajectory": "S"},
    "return_conditioning": {"return_conditioning": ()},
    "return_reweighting": {"return_reweighting": True},
    "inverse_dynamics": {"inverse_dynamics": "explicit"},
    "inverse_dynamics_condition": {"inverse_dynamics_condition": "state"},
    "inverse_dynamics_layers": {"inverse_dynamics_layers": 1},
    "plan_scale": {"plan_scale": 0.5},
    "plan_dropout": {"plan_dropout": 0.5},
    "condition_guidance": {"condition_guidance": "decoder"},
    "adapter_dim": {"adapter_dim": 2},
    "context": {"context": "own"},
    "code_temperature": {"code_temperature": 1.0},
    "state_dropout": {"state_dropout": 0.5, "inverse_dynamics_condition": "state"},
    "return_dropout": {"return_dropout": 0.5},
    "guidance_scale": {"guidance_scale": 3.0, "return_dropout": 0.1},
    "return_expectile": {"return_expectile": 0.9},
    "gumbel_temperature": {"gumbel_temperature": 5.0},
    "commitment_weight": {"commitment_weight": 5.0},
    "q_value_weight": {"q_value_weight": 1.0, "return_conditioning": ()},
    "inverse_dynamics_weight": {"inverse_dynamics_weight": 5.0},
    "condition_weight": {"condition_weight": 5.0},
    "codebook_decay": {"codebook_decay": 0.5},
    "discount": {"discount": 0.9},
    "target_return": {"target_return": 0.1},
    "temperature": {"temperature": 0.1},
    "learning_rate": {"learning_rate": 1e-3},
    "inverse_dynamics_learning_rate": {"inverse_dynamics_learning_rate": 1e-4},
    "warmup_steps": {"warmup_steps": 5},
    "weight_decay": {"weight_decay": 0.5},
    "gradient_clip": {"gradient_clip": 1e-6},
    "batch_size": {"batch_size": 8},
    "tokenizer_steps": {"tokenizer_steps": 3},
    "generator_steps": {"generator_steps": 3},
    "inverse_dynamics_steps": {"inverse_dynamics_steps": 3},
    "followed_scales": {"followed_scales": 1},
}
# What these need beside them is not what is under test.
BESIDE: dict[str, dict[str, Any]] = {
    "q_value_weight": {"return_conditioning": ()},
    "state_dropout": {"inverse_dynamics_condition": "state"},
    "guidance_scale": {"return_dropout": 0.1},
}


def outcome(config: MAGEConfig, dataset: TensorDict) -> dict[str, Tensor]:
    """What a configuration amounts to: trained weights, what is asked for, and actions."""
    dataset = dataset.exclude("metadata")  # which would insist on its own discount
    model = fit(build_model(dataset, config), dataset, progress_bar=False, device="cpu")
    config = model.config  # with all observation entries of a goal environment
    actor = MAGEActor(model)
    torch.manual_seed(0)
    with set_interaction_type(ExplorationType.RANDOM):
        steps = TensorDict(
            {
                "observation": dataset["observation"],
                "return_to_go": dataset["return_to_go"],
            },
            batch_size=[len(dataset)],
        )
        sampled = actor(steps)["action"] if config.observation_keys == ("observation",) else None
    numbers = {
        "action": model.act(
            torch.cat([dataset[key] for key in config.observation_keys], dim=-1),
            dataset["return_to_go"],
        ),
        "next": model.update_return_to_go(torch.tensor([-3.0]), torch.tensor([-1.0])),
        "target": torch.tensor(model.default_target_return),
        **({} if sampled is None else {"sampled": sampled}),
    }
    return {**model.state_dict(), **numbers}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[key].shape == second[key].shape and torch.equal(first[key], second[key])
        for key in first
    )


def test_the_table_of_fields_is_complete() -> None:
    assert list(ALIVE) == FIELDS


def test_nothing_changes_by_itself(toy_dataset: TensorDict) -> None:
    assert same(outcome(tiny_config(), toy_dataset), outcome(tiny_config(), toy_dataset))


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Tensor]]:
    """Outcomes of the configurations that others are compared with, by their digest."""
    return {}


@pytest.mark.filterwarnings("ignore:the codebook has collapsed")  # after so few steps, it may
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_alive(
    name: str, toy_dataset: TensorDict, outcomes: dict[str, dict[str, Tensor]]
) -> None:
    reference = tiny_config(**BESIDE.get(name, {}))
    if reference.digest not in outcomes:
        outcomes[reference.digest] = outcome(reference, toy_dataset)
    changed = outcome(tiny_config(**ALIVE[name]), toy_dataset)
    assert not same(outcomes[reference.digest], changed)
