"""Configuration: every constraint speaks, every field travels and changes something."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import set_interaction_type
from torch import Tensor
from torchrl.envs.utils import ExplorationType

from mage_agent import (
    Config,
    MAGEActor,
    MAGEConfig,
    MAGEModel,
    bounded,
    fit,
    load_dataset,
    returns_to_go,
)
from tests.tiny import tiny_config

FIELDS = [field.name for field in dataclasses.fields(MAGEConfig)]
PRESETS = MAGEConfig.PRESETS


@dataclass(frozen=True, kw_only=True)
class OwnConfig(Config):
    """One of everything that a method of one's own may be configured with."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"wide": {"width": 512, "discount": 0.9}}

    width: int = bounded(64, 1, 4096)
    layers: int = 2
    offset: int = bounded(0, -3)
    rate: float = bounded(0.5, 0.0, 1.0)
    shift: float = 0.0
    expectile: float | None = bounded(None, 0.5, 0.99)
    kind: Literal["plain", "fancy"] = "plain"
    parts: tuple[Literal["encoder", "decoder"], ...] = ("encoder",)
    lengths: tuple[int, ...] = bounded((1, 2), 1, 9)
    normed: bool = False
    label: str = dataclasses.field(default="", metadata={"help": "for the plots"})


INVALID: list[tuple[dict[str, Any], list[str]]] = [  # changes -> what the message must hold
    ({"horizon": 25}, ["horizon 25", "temporal_stride 3"]),
    ({"horizon": 24.0}, ["horizon is 24.0", "integer"]),
    ({"horizon": True}, ["horizon is True", "integer"]),
    ({"num_scales": 5}, ["num_scales is 5", "at most 4"]),
    ({"width": 18, "num_heads": 4}, ["width 18", "num_heads 4"]),
    ({"codebook_size": 0}, ["codebook_size is 0", "at least 1"]),
    ({"batch_size": -3}, ["batch_size is -3", "at least 1"]),
    ({"dropout": 1.0}, ["dropout is 1.0", "0.99"]),
    ({"dropout": float("nan")}, ["dropout is nan", "0.99"]),
    ({"discount": 0.0}, ["discount is 0.0", "[1e-06, 1]"]),
    ({"discount": 1.01}, ["discount is 1.01", "[1e-06, 1]"]),
    ({"target_quantile": 1.5}, ["target_quantile is 1.5", "[0, 1]"]),
    ({"target_quantile": -0.1}, ["target_quantile is -0.1", "[0, 1]"]),
    ({"learning_rate": 0}, ["learning_rate is 0"]),
    ({"learning_rate": "fast"}, ["learning_rate is 'fast'"]),
    ({"codebook_decay": 1.0}, ["codebook_decay is 1.0"]),
    ({"gumbel_temperature": 0.0}, ["gumbel_temperature is 0.0"]),
    ({"code_temperature": -0.1}, ["code_temperature is -0.1"]),
    ({"temperature": -1.0}, ["temperature is -1.0"]),
    ({"condition_weight": -0.1}, ["condition_weight is -0.1"]),
    ({"return_expectile": 1.0}, ["return_expectile is 1.0"]),
    ({"trajectory": "SR"}, ["trajectory is 'SR'", "'RS'"]),
    ({"inverse_dynamics": "none"}, ["inverse_dynamics is 'none'", "'explicit'"]),
    ({"inverse_dynamics": "explicit", "trajectory": "A"}, ["'explicit'", "trajectory='A'"]),
    ({"inverse_dynamics": "displacement", "trajectory": "A"}, ["'displacement'", "'RS'"]),
    ({"plan_entries": (0,)}, ["plan_entries is (0,)", "'latent'", "leave it empty"]),
    ({"plan_entries": (-1,)}, ["an entry of plan_entries is -1", "at least 0"]),
    ({"inverse_dynamics": "displacement", "lookahead": 24}, ["lookahead is 24", "0 to 11"]),
    (
        {"inverse_dynamics": "displacement", "inverse_dynamics_lookahead": 12},
        ["inverse_dynamics_lookahead is 12", "0 to 11"],
    ),
    ({"inverse_dynamics_lookahead": 2}, ["dynamics_lookahead is 2", "reads no displacement"]),
    ({"candidates": 4}, ["candidates is 4", "set return_expectile"]),
    ({"value_entries": (0,)}, ["value_entries is (0,)", "set return_expectile"]),
    ({"value_entries": (-1,)}, ["an entry of value_entries is -1", "at least 0"]),
    ({"bootstrap_steps": 8}, ["bootstrap_steps is 8", "set return_expectile"]),
    ({"relative_plans": True, "trajectory": "A"}, ["relative_plans", "trajectory='A'", "'RS'"]),
    (
        {
            **{"discount": 1.0, "return_expectile": 0.9, "candidates": 4},
            "observation_keys": ("observation", "achieved_goal", "desired_goal"),
        },
        ["discount is 1", "judge plans", "below 1"],
    ),
    ({"fourier_features": -1}, ["fourier_features is -1", "at least 0"]),
    (
        {"candidates": 4, "return_expectile": 0.9, "trajectory": "A"},
        ["candidates is 4", "trajectory='A'", "'RS'"],
    ),
    ({"inverse_dynamics": "direction"}, ["'direction'", "trajectory='RS'", "'RG'"]),
    ({"trajectory": "RG"}, ["observation_keys is ()", "('achieved_goal', 'desired_goal')"]),
    ({"inverse_dynamics_condition": "goal"}, ["is 'goal'", "'state_and_return'", "'body'"]),
    ({"inverse_dynamics_condition": "body"}, ["'body'", "('achieved_goal', 'desired_goal')"]),
    ({"condition_guidance": "prior"}, ["condition_guidance is 'prior'", "'adapter'"]),
    ({"context": "student"}, ["context is 'student'", "'teacher'"]),
    ({"return_conditioning": ("encoder",)}, ["'encoder'", "'autoencoder'"]),
    ({"horizon": 1}, ["horizon is 1", "at least 2"]),
    ({"return_conditioning": 5}, ["return_conditioning is 5", "tuple"]),
    ({"return_conditioning": [["autoencoder"]]}, ["entry of return_conditioning", "'autoencoder'"]),
    (
        {"return_conditioning": (), "inverse_dynamics_condition": "state_and_return"},
        ["return_conditioning is empty", "'state_and_return'", "take 'state'"],
    ),
    ({"return_reweighting": 1}, ["return_reweighting is 1", "True or False"]),
    ({"warmup_steps": 1.5}, ["warmup_steps is 1.5", "integer of at least 0"]),
    ({"inverse_dynamics_steps": float("inf")}, ["inverse_dynamics_steps is inf"]),
    ({"inverse_dynamics_steps": True}, ["inverse_dynamics_steps is True"]),
    ({"data_scales": -1}, ["data_scales is -1", "integer of at least 0"]),
    ({"data_scales": 4}, ["data_scales is 4", "num_scales, 3", "or None"]),
    ({"q_value_weight": 0.5}, ["q_value_weight is 0.5", "['first_scale', 'finer_scales']"]),
    ({"learning_rate": float("inf")}, ["learning_rate is inf"]),
    ({"commitment_weight": float("nan")}, ["commitment_weight is nan"]),
    ({"horizon": 3 * 10**9, "num_scales": 10**9}, ["horizon is 3000000000", "at most"]),
    ({"observation_keys": "observation"}, ["observation_keys is 'observation'", "tuple"]),
    ({"observation_keys": (1,)}, ["an entry of observation_keys is 1", "a string"]),
    ({"observation_keys": ("a", "b", "a")}, ["observation_keys is ('a', 'b', 'a')", "only once"]),
]


@pytest.mark.parametrize(("changes", "parts"), INVALID, ids=lambda value: str(value)[:40])
def test_each_constraint_says_what_is_wrong(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        tiny_config(**changes)
    for part in parts:
        assert part in str(caught.value)


def test_numbers_of_a_sweep_over_numpy_arrays() -> None:
    changes = {"width": np.int64(16), "learning_rate": np.float32(0.5), "observation_keys": ["a"]}
    config = tiny_config(
        **changes,
        return_reweighting=np.bool_(True),
        inverse_dynamics="displacement",
        plan_entries=tuple(np.arange(2)),
    )
    plain = tiny_config(
        width=16,
        learning_rate=0.5,
        observation_keys=("a",),
        return_reweighting=True,
        inverse_dynamics="displacement",
        plan_entries=(0, 1),
    )
    assert config == plain
    assert config.digest == plain.digest
    with pytest.raises(ValueError, match=r"width is 16\.5; it must be an integer"):
        tiny_config(width=np.float64(16.5))


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


class TestPresets:
    def test_names(self) -> None:
        domains = {"adroit", "kitchen", "antmaze", "pointmaze", "maze2d", "locomotion"}
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
            ("pointmaze", 256, 256, 4, 0.99),
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
        config = MAGEConfig.preset(name, return_expectile=0.9)
        assert MAGEConfig.from_dict(config.to_dict()) == config
        assert MAGEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_lists_become_tuples(self) -> None:
        config = tiny_config(observation_keys=["b", "a"], return_conditioning=["autoencoder"])
        assert config.observation_keys == ("b", "a")
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
    "observation_keys": {"observation_keys": ("place",)},
    "discount": {"discount": 0.9},
    "target_quantile": {"target_quantile": 0.1},
    "temperature": {"temperature": 0.1},
    "horizon": {"horizon": 6, "num_scales": 2},
    "temporal_stride": {"temporal_stride": 2},
    "num_scales": {"num_scales": 2},
    "codebook_size": {"codebook_size": 4},
    "code_dim": {"code_dim": 8},
    "width": {"width": 8},
    "num_blocks": {"num_blocks": 2},
    "num_heads": {"num_heads": 4},
    "num_autoencoder_blocks": {"num_autoencoder_blocks": 2},
    "dropout": {"dropout": 0.5},
    "trajectory": {"trajectory": "S"},
    "relative_plans": {"relative_plans": True},
    "fourier_features": {"fourier_features": 2},
    "return_conditioning": {"return_conditioning": ()},
    "return_reweighting": {"return_reweighting": True},
    "inverse_dynamics": {"inverse_dynamics": "explicit"},
    "plan_entries": {"inverse_dynamics": "displacement", "plan_entries": (0, 2)},
    "inverse_dynamics_condition": {"inverse_dynamics_condition": "state_and_return"},
    "inverse_dynamics_lookahead": {
        "inverse_dynamics": "displacement",
        "inverse_dynamics_lookahead": 2,
    },
    "inverse_dynamics_layers": {"inverse_dynamics_layers": 1},
    "plan_scale": {"plan_scale": 0.5},
    "plan_dropout": {"plan_dropout": 0.5},
    "condition_guidance": {"condition_guidance": "decoder"},
    "adapter_dim": {"adapter_dim": 2},
    "context": {"context": "own"},
    "return_expectile": {"return_expectile": 0.9},
    "value_entries": {"return_expectile": 0.9, "value_entries": (0,)},
    "bootstrap_steps": {"return_expectile": 0.9, "bootstrap_steps": 2},
    "gumbel_temperature": {"gumbel_temperature": 5.0},
    "commitment_weight": {"commitment_weight": 5.0},
    "q_value_weight": {"q_value_weight": 1.0, "return_conditioning": ()},
    "inverse_dynamics_weight": {"inverse_dynamics_weight": 5.0},
    "condition_weight": {"condition_weight": 5.0},
    "codebook_decay": {"codebook_decay": 0.5},
    "code_temperature": {"code_temperature": 1.0},
    "candidates": {"return_expectile": 0.9, "candidates": 3},
    "lookahead": {"return_expectile": 0.9, "candidates": 3, "lookahead": 2},
    "optimizer": {"optimizer": "muon"},
    "learning_rate": {"learning_rate": 1e-3},
    "inverse_dynamics_learning_rate": {"inverse_dynamics_learning_rate": 1e-4},
    "inverse_dynamics_weight_decay": {"inverse_dynamics_weight_decay": 0.5},
    "inverse_dynamics_average_decay": {"inverse_dynamics_average_decay": 0.5},
    "warmup_steps": {"warmup_steps": 5},
    "weight_decay": {"weight_decay": 0.5},
    "gradient_clip": {"gradient_clip": 1e-6},
    "batch_size": {"batch_size": 8},
    "value_steps": {"return_expectile": 0.9, "value_steps": 3},
    "tokenizer_steps": {"tokenizer_steps": 3},
    "generator_steps": {"generator_steps": 3},
    "inverse_dynamics_steps": {"inverse_dynamics_steps": 3},
    "data_scales": {"data_scales": 1},
}
# What these need beside them is not what is under test.
BESIDE: dict[str, dict[str, Any]] = {
    "q_value_weight": {"return_conditioning": ()},
    **{
        name: {"return_expectile": 0.9}
        for name in ("value_entries", "bootstrap_steps", "candidates", "value_steps")
    },
    "lookahead": {"return_expectile": 0.9, "candidates": 3},
    "warmup_steps": {"generator_steps": 12},  # it is a quarter of these at most
    **{
        name: {"inverse_dynamics": "displacement"}
        for name in ("plan_entries", "inverse_dynamics_lookahead")
    },
}


def outcome(config: MAGEConfig, dataset: TensorDict) -> dict[str, Tensor]:
    """What a configuration amounts to: trained weights, what is asked for, and actions."""
    dataset = dataset.copy()
    for where in (dataset, dataset["next"]):
        where["place"] = where["observation"][:, :1]
    model = MAGEModel.from_dataset(load_dataset(dataset), config)
    fit(model, dataset, progress_bar=False, device="cpu")
    returns = returns_to_go(dataset["next", "reward"], dataset["episode"], 0.99)
    steps = dataset.select(*model.config.observation_keys).set("return_to_go", returns)
    torch.manual_seed(0)
    with set_interaction_type(ExplorationType.RANDOM):
        sampled = MAGEActor(model)(steps.clone())["action"]
    return {
        **model.state_dict(),
        "action": model.act(model.units.concatenate(steps), returns),
        "next": model.units.update_return_to_go(torch.tensor([-3.0]), torch.tensor([-1.0])),
        "sampled": sampled,
    }


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[key].shape == second[key].shape and torch.equal(first[key], second[key])
        for key in first
    )


def test_the_table_of_fields_is_complete() -> None:
    assert list(ALIVE) == FIELDS


COLLAPSE = "ignore:the codebook has collapsed"  # after so few steps, it may


@pytest.mark.filterwarnings(COLLAPSE)
def test_nothing_changes_by_itself(toy_dataset: TensorDict) -> None:
    assert same(outcome(tiny_config(), toy_dataset), outcome(tiny_config(), toy_dataset))


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Tensor]]:
    """Outcomes of the configurations that others are compared with, by their digest."""
    return {}


@pytest.mark.filterwarnings(COLLAPSE)
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_alive(
    name: str, toy_dataset: TensorDict, outcomes: dict[str, dict[str, Tensor]]
) -> None:
    reference = tiny_config(**BESIDE.get(name, {}))
    if reference.digest not in outcomes:
        outcomes[reference.digest] = outcome(reference, toy_dataset)
    changed = outcome(tiny_config(**ALIVE[name]), toy_dataset)
    assert not same(outcomes[reference.digest], changed)


class TestBase:
    """What configurations of all methods have in common, by one of one's own."""

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"width": 0}, ["width is 0;", "an integer of at least 1"]),
            ({"width": 4097}, ["width is 4097;", "at most 4096"]),
            ({"width": 64.0}, ["width is 64.0;", "an integer of at least 1"]),
            ({"width": True}, ["width is True;", "an integer of at least 1"]),
            ({"width": None}, ["width is None;", "an integer of at least 1"]),
            ({"layers": "2"}, ["layers is '2';", "an integer."]),
            ({"offset": -4}, ["offset is -4;", "an integer of at least -3"]),
            ({"rate": 1.5}, ["rate is 1.5;", "[0, 1]"]),
            ({"rate": -1e-9}, ["rate is -1e-09;", "[0, 1]"]),
            ({"rate": math.nan}, ["rate is nan;", "[0, 1]"]),
            ({"rate": True}, ["rate is True;", "[0, 1]"]),
            ({"rate": "0.5"}, ["rate is '0.5';", "[0, 1]"]),
            ({"rate": None}, ["rate is None;", "[0, 1]"]),
            ({"shift": math.nan}, ["shift is nan;", "[-inf, inf]"]),
            ({"expectile": 0.4}, ["expectile is 0.4;", "[0.5, 0.99]"]),
            ({"expectile": "most"}, ["expectile is 'most';", "[0.5, 0.99]"]),
            ({"kind": "plane"}, ["kind is 'plane';", "('plain', 'fancy')"]),
            ({"kind": None}, ["kind is None;", "('plain', 'fancy')"]),
            ({"kind": ["plain"]}, ["kind is ('plain',);", "('plain', 'fancy')"]),
            ({"parts": "encoder"}, ["parts is 'encoder';", "a tuple"]),
            ({"parts": ("head",)}, ["an entry of parts is 'head';", "('encoder', 'decoder')"]),
            ({"lengths": (1, 10)}, ["an entry of lengths is 10;", "at most 9"]),
            ({"lengths": (0,)}, ["an entry of lengths is 0;", "an integer of at least 1"]),
            ({"lengths": (1, 2.0)}, ["an entry of lengths is 2.0;", "an integer"]),
            ({"lengths": 3}, ["lengths is 3;", "a tuple"]),
            ({"normed": 1}, ["normed is 1;", "True or False"]),
            ({"normed": "no"}, ["normed is 'no';", "True or False"]),
            ({"label": 3}, ["label is 3;", "a string"]),
            ({"discount": 0}, ["discount is 0;", "[1e-06, 1]"]),
            ({"temperature": math.inf}, ["temperature is inf;", "[0, 1e+30]"]),
            ({"observation_keys": ("a", "a")}, ["observation_keys is ('a', 'a');", "only once"]),
        ],
        ids=str,
    )
    def test_refused_are_values_by_name_with_what_is_allowed(
        self, changes: dict[str, Any], parts: list[str]
    ) -> None:
        for build in (OwnConfig, OwnConfig().replace, OwnConfig.from_dict):
            with pytest.raises(ValueError, match=r".") as caught:
                build(changes) if build == OwnConfig.from_dict else build(**changes)
            for part in parts:
                assert part in str(caught.value)

    @pytest.mark.parametrize(
        "changes",
        [
            {"width": 1},
            {"width": 4096},
            {"layers": -(10**9)},
            {"offset": -3},
            {"rate": 0},
            {"rate": 1},
            {"shift": -1e300},
            {"expectile": None},
            {"expectile": 0.99},
            {"kind": "fancy"},
            {"parts": ()},
            {"parts": ("decoder", "encoder")},
            {"lengths": (9, 1, 9)},
            {"normed": True},
            {"label": "x"},
            {"observation_keys": ("b", "a")},
            {"temperature": 0.0},
        ],
        ids=str,
    )
    def test_allowed_are_all_others_and_they_survive_json(self, changes: dict[str, Any]) -> None:
        config = OwnConfig(**changes)
        (name,) = changes
        assert getattr(config, name) == changes[name]
        again = OwnConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert hash(again) == hash(config)
        assert again.digest == config.digest

    def test_fields_of_all_methods_come_first_and_keep_their_defaults(self) -> None:
        names = [field.name for field in dataclasses.fields(Config)]
        assert [field.name for field in dataclasses.fields(OwnConfig)][: len(names)] == names
        for config in (Config(), OwnConfig(), MAGEConfig()):
            values = [getattr(config, name) for name in names]
            assert values == [(), 0.99, 1.0, 1.0]

    def test_unknown_keys_are_refused_and_the_likeliest_named(self) -> None:
        with pytest.raises(ValueError, match=r"\['widthh'\].*'width'.*Did you mean width\?"):
            OwnConfig.from_dict({"widthh": 3})
        with pytest.raises(ValueError, match=r"\['horizon'\]; known keys"):
            OwnConfig().replace(horizon=3)  # which is MAGE's
        with pytest.raises(TypeError, match="widthh"):
            OwnConfig(widthh=3)  # type: ignore[call-arg]

    @pytest.mark.parametrize("values", [[], None, "width", [("width", 3)]])
    def test_what_is_no_dictionary_is_refused(self, values: Any) -> None:
        with pytest.raises(ValueError, match=r"a configuration is a dictionary with the keys"):
            OwnConfig.from_dict(values)

    def test_presets_are_changes_to_the_defaults(self) -> None:
        config = OwnConfig.preset("wide", rate=0.25)
        assert (config.width, config.discount, config.rate) == (512, 0.9, 0.25)
        assert OwnConfig.preset("wide", width=3).width == 3
        with pytest.raises(ValueError, match=r"unknown preset 'small'; known presets: \['wide'\]"):
            OwnConfig.preset("small")
        with pytest.raises(ValueError, match=r"'wide'; known presets: \[\]"):
            Config.preset("wide")

    def test_is_frozen_and_lists_become_tuples(self) -> None:
        config = OwnConfig(parts=["decoder"], lengths=[3])  # type: ignore[arg-type]
        assert (config.parts, config.lengths) == (("decoder",), (3,))
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.width = 3  # type: ignore[misc]

    def test_what_may_change_in_the_middle_of_training_is_said(self) -> None:
        rates = {"learning_rate", "warmup_steps", "weight_decay", "gradient_clip"}
        assert Config.ADJUSTABLE == OwnConfig.ADJUSTABLE == rates
        own = {"inverse_dynamics_learning_rate", "inverse_dynamics_weight_decay"}
        assert rates | own == MAGEConfig.ADJUSTABLE
        assert set(FIELDS) >= MAGEConfig.ADJUSTABLE
