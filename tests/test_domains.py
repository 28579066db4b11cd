"""Domains: which datasets belong to them, and what they take."""

import pytest

from benchmarks.domains import DOMAINS, domain_of, split_id
from benchmarks.methods import configure
from mage_agent import GACConfig, GACModel, MAGEConfig, MAGEModel


@pytest.mark.parametrize("dataset_id", ["local/pen/expert-v0", "D4RL/pen/human-v2", "pen/x-v0"])
def test_the_domain_follows_from_the_middle_of_the_id(dataset_id: str) -> None:
    assert domain_of(dataset_id) is DOMAINS["pen"]


@pytest.mark.parametrize(
    ("dataset_id", "parts"),
    [
        ("local/halfcheetah/medium-expert-v0", ("halfcheetah", "medium-expert")),
        ("halfcheetah-medium-expert-v2", ("halfcheetah", "medium-expert")),
        ("D4RL/antmaze/umaze-v1", ("antmaze", "umaze")),
        ("mine-v0", ("mine", "")),
        ("mine", ("mine", "")),
    ],
)
def test_ids_of_either_kind_name_domain_and_kind(dataset_id: str, parts: tuple[str, str]) -> None:
    assert split_id(dataset_id) == parts


def test_every_domain_has_a_preset_in_both_sizes_that_agrees_with_it() -> None:
    for domain in DOMAINS.values():
        paper, small = (
            configure(MAGEModel, f"{domain.name}-x-v0", paper_size=size) for size in (True, False)
        )
        assert paper != small
        for config in (paper, small):
            assert config.discount == domain.discount
            assert config.observation_keys == domain.observation_keys


def test_the_most_particular_preset_is_taken() -> None:
    assert DOMAINS["maze2d"].presets("umaze", paper_size=True) == [
        "maze2d-umaze",
        "maze2d",
        "maze2d",
    ]
    paper = configure(GACModel, "maze2d-umaze-v1", paper_size=True)
    assert paper == GACConfig.preset("maze2d-umaze", observation_keys=["observation"])
    small = configure(GACModel, "maze2d-umaze-v1")
    assert small == GACConfig.preset("maze2d-small", observation_keys=["observation"])


def test_an_unknown_domain_takes_the_generic_preset() -> None:
    domain = domain_of("local/chess/expert-v0")
    assert (domain.name, domain.known, domain.episodes) == ("chess", False, 20)
    assert configure(MAGEModel, "local/chess/expert-v0") == MAGEConfig.preset("small")
    assert configure(MAGEModel, "local/chess/expert-v0", paper_size=True) == MAGEConfig()
    assert domain.observation_keys == ()
