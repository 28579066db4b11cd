"""Numbers that the method gave once, to notice when it gives others.

``golden.safetensors`` holds what tiny models, one for each kind of preset, compute in float64 on
the CPU, their configurations beside it. Weights and data come from formulas, not from a random
generator, so that every machine and every release of torch builds the same models.
``tests/test_golden.py`` computes it all anew.

When that test fails, either the change that made it fail is a mistake, or the method is meant to
give other numbers from now on. In the second case, and only then:

1. look at which entries moved, and make sure that you can say of each why it had to;
2. run ``python -m tests.golden.make_golden`` from the root of the repository;
3. add one line to ``CHANGELOG.md`` that says why the numbers moved;
4. commit code, numbers and line together.
"""

import json
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor

from mage_agent import MAGEConfig, MAGELoss, MAGEModel, MAGETokenizerLoss
from tests.acting import GOAL_KEYS
from tests.tiny import ACTION, STATE, tiny_config

FILE = Path(__file__).with_name("golden.safetensors")
BATCH = 3


def wave(name: str, *shape: int) -> Tensor:
    """Numbers in [-1, 1] that look random and depend on nothing but name and shape."""
    phase = zlib.crc32(name.encode()) % 1000
    count = torch.Size(shape).numel()
    return torch.sin(phase + 1.7 * torch.arange(count, dtype=torch.float64).square()).view(shape)


def golden_model(config: MAGEConfig) -> MAGEModel:
    """A model in float64 whose weights are waves, large ones, so that inputs matter."""
    sizes = dict(zip(config.observation_keys or ("observation",), (STATE, 2, 2), strict=False))
    model = MAGEModel(config, observation_dim=sizes, action_dim=ACTION).double().eval()
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            value.copy_(0.8 * wave(name, *value.shape))
            if name.endswith(".std"):
                value.add_(1)
    state["units.action_low"].fill_(-10)
    state["units.action_high"].fill_(10)
    state["units.return_range"].copy_(torch.tensor([-2, 2]))
    return model


def compute(config: MAGEConfig) -> dict[str, Tensor]:
    """Every step of the method, from a window to an action, and both losses with gradients."""
    # Without a stage of its own, inverse dynamics is part of the second stage's numbers.
    model = golden_model(config.replace(inverse_dynamics_steps=0))
    td = TensorDict(
        {
            **{
                key: wave(key, BATCH, config.horizon, size)
                for key, size in model.observation_sizes.items()
            },
            "action": wave("action", BATCH, config.horizon, ACTION),
            "return_to_go": wave("return_to_go", BATCH, config.horizon, 1),
            ("collector", "mask"): torch.arange(config.horizon) < torch.tensor([[12], [7], [1]]),
        },
        batch_size=[BATCH, config.horizon],
    )
    stage_1, stage_2 = (
        cls(model, reduction="none").eval() for cls in (MAGETokenizerLoss, MAGELoss)
    )
    window = stage_1.window(td)
    encoding = model.tokenize(window)
    observation, target = window.observation[:, 0], window.return_to_go[:, 0]
    state, asked = model.units.standardize(observation, target)
    codes = [model.quantizer.lookup(ids) for ids in encoding.token_ids]
    plan = model.plan(observation, target, partial=True)
    result = {
        "token_ids": torch.cat(encoding.token_ids, dim=1),
        "latent": encoding.latent,
        "logits": torch.cat(model.logits(codes, state, asked), dim=1),
        "decoded": model.decode(encoding.latent, state, asked, guided=False),
        "plan.token_ids": torch.cat(plan.token_ids, dim=1),
        "plan.observation": torch.stack(plan.partial).nan_to_num(7.0),
        "plan.return_to_go": plan.return_to_go,
        "plan.action": plan.action,
    }
    torch.manual_seed(0)  # of the condition loss; torch keeps this generator's numbers
    losses = {**stage_1(td), **{f"generator.{key}": value for key, value in stage_2(td).items()}}
    torch.stack([value.mean() for value in losses.values()]).sum().backward()
    result |= losses
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            result[f"gradient.{name}"] = parameter.grad.norm()
    return {key: value.detach().clone().contiguous() for key, value in result.items()}


CONFIGS = {
    "adroit": tiny_config(num_blocks=2, code_temperature=1.0),
    "likeliest": tiny_config(num_blocks=2, return_expectile=0.9),
    "locomotion": tiny_config(
        code_temperature=1.0,
        inverse_dynamics_condition="state_and_return",
        inverse_dynamics_layers=3,
        plan_scale=0.07,
    ),
    "maze2d": tiny_config(
        return_expectile=0.95,
        bootstrap_steps=8,
        candidates=4,
        inverse_dynamics="displacement",
        plan_entries=(0, 1),
        inverse_dynamics_condition="state",
        data_scales=None,
    ),
    "antmaze": tiny_config(
        code_temperature=1.0,
        observation_keys=GOAL_KEYS,
        trajectory="RG",
        inverse_dynamics="direction",
        inverse_dynamics_condition="body",
        inverse_dynamics_layers=3,
        return_expectile=0.9,
    ),
}
"""One for each kind of preset, and one with the paper's likeliest codes."""


if __name__ == "__main__":
    numbers = {
        f"{name}/{key}": value
        for name, config in CONFIGS.items()
        for key, value in compute(config).items()
    }
    save_file(
        numbers,
        FILE,
        metadata={name: json.dumps(config.to_dict()) for name, config in CONFIGS.items()},
    )
