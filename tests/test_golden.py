"""The method gives the numbers it gave; ``golden/make_golden.py`` says what to do when not."""

import json

import pytest
import torch
from safetensors import safe_open

from mage_agent.config import MAGEConfig
from tests.golden.make_golden import FILE, compute


def test_every_number_is_what_it_was() -> None:
    with safe_open(FILE, framework="pt") as file:
        config = MAGEConfig.from_dict(json.loads(file.metadata()["config"]))
        golden = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    found = compute(config)
    assert found.keys() == golden.keys()
    moved = []
    for key, value in golden.items():
        try:
            torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-9)
        except AssertionError as error:
            moved.append(f"{key}: {str(error).splitlines()[-2]}")
    if moved:
        pytest.fail("\n".join([*moved, "tests/golden/make_golden.py says what to do."]))


def test_the_file_is_small() -> None:
    assert FILE.stat().st_size < 50_000
