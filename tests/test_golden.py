"""The method gives the numbers it gave; ``golden/make_golden.py`` says what to do when not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mage_agent import AgentPolicy, MAGEConfig
from tests.golden.make_golden import CONFIGS, FILE, compute

FORMAT_1 = json.loads(FILE.with_name("format_1.json").read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_number_is_what_it_was(name: str) -> None:
    with safe_open(FILE, framework="pt") as file:
        config = MAGEConfig.from_dict(json.loads(file.metadata()[name]))
        golden = {
            key.removeprefix(f"{name}/"): file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118
            if key.startswith(f"{name}/")
        }
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
    assert FILE.stat().st_size < 100_000


@pytest.mark.parametrize("name", FORMAT_1)
def test_files_of_the_first_format_still_act(name: str) -> None:
    """They were written by the release before agents; so were the actions."""
    policy = AgentPolicy.load(FILE.with_name(f"format_1_{name}.mage"))
    kept: Any = FORMAT_1[name]["observation"]
    observation = (
        {key: np.float32(part) for key, part in kept.items()}
        if isinstance(kept, dict)
        else np.float32(kept)
    )
    action, _ = policy.predict(observation, deterministic=True)
    np.testing.assert_allclose(action, FORMAT_1[name]["action"], atol=1e-5)
    assert policy.target_return == pytest.approx(FORMAT_1[name]["target_return"])


def test_a_file_made_with_a_setting_that_is_gone_names_it(tmp_path: Path) -> None:
    from mage_agent.checkpoint import load_tensors, save_tensors

    tensors, header = load_tensors(FILE.with_name("format_1_small.mage"))
    header["config"]["guidance_scale"] = 2.0
    save_tensors(tensors, tmp_path / "guided.mage", header)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0, a setting that no longer exists"):
        AgentPolicy.load(tmp_path / "guided.mage")
