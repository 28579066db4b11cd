"""Faster acting: the same actions within a tolerance, from one graph, and nothing but acting."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from mage_agent import Agent, MAGEActor, MAGEPolicy, checkpoint, fit, optimize_for_inference
from mage_agent.mage import inference
from mage_agent.mage.inference import Weights
from tests.acting import make_model

# Root mean square error of the actions, relative to their spread. Random networks, as here, amplify
# rounding; a trained one (door/cloned) was measured at 0.002 in bfloat16 and 0.015 in int8.
TOLERANCE: dict[Weights, float] = {
    "float32": 1e-4,
    "float16": 0.005,
    "bfloat16": 0.05,
    "int8": 0.2,
}


def ask(*lead: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*lead, 3, generator=generator), torch.linspace(-50, 20, lead[0])


@pytest.mark.filterwarnings("ignore:this processor has no bfloat16")
@pytest.mark.parametrize("weights", TOLERANCE)
@pytest.mark.parametrize(
    "changes", [{}, {"return_conditioning": ("finer_scales",)}, {"return_expectile": 0.9}], ids=str
)
def test_acts_as_the_model_does(weights: Weights, changes: dict[str, Any]) -> None:
    model = make_model(width=64, num_blocks=3, code_temperature=1.0, **changes)
    for parameter in model.transformer.parameters():
        parameter.data.mul_(0.2)
    model.units.action_low.fill_(-100)
    model.units.action_high.fill_(100)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = optimize_for_inference(model, weights)
    expected, found = (each.act(*ask(64)) for each in (model, fast))
    error = (found - expected).square().mean().sqrt() / expected.std()
    assert error <= TOLERANCE[weights]
    assert found.dtype == torch.float32
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_observation_and_many_give_the_same() -> None:
    fast = optimize_for_inference(make_model(code_temperature=1.0), "float32")
    observation, target = ask(5)
    single = [fast.act(o, t) for o, t in zip(observation, target, strict=True)]
    torch.testing.assert_close(torch.stack(single), fast.act(observation, target))


def test_compiled_acting_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    asked: list[dict[str, Any]] = []

    def without_a_compiler(function: Any, **options: Any) -> Any:
        asked.append(options)
        return compile_(function, backend="eager", fullgraph=True, dynamic=False)

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    model = make_model()
    fast = optimize_for_inference(model, compiled=True)
    torch.testing.assert_close(fast.act(*ask(4)), model.act(*ask(4)))
    assert asked[0]["fullgraph"]


def test_plans_and_samples_go_on_working() -> None:
    model = make_model()
    fast = optimize_for_inference(model, "int8")
    assert fast.plan(*ask(2), partial=True).observation.shape == (2, 24, 3)
    first, second = (
        fast.act(*ask(3), temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    )
    assert not torch.equal(first, second)


def test_policies_and_actors_take_it(tmp_path: Path) -> None:
    policy = MAGEPolicy(make_model(), target_return=3.0, seed=7)
    fast = policy.optimize_for_inference()
    assert fast.target_return == 3.0
    observation = np.ones((2, 3), dtype=np.float32)
    expected, _ = policy.predict(observation, deterministic=True)
    np.testing.assert_allclose(fast.predict(observation, deterministic=True)[0], expected)
    sampled = [each.predict(observation)[0] for each in (policy, fast)]
    np.testing.assert_allclose(*sampled)  # the seed is the same, too
    td = TensorDict(
        {"observation": torch.ones(2, 3), "return_to_go": torch.full((2, 1), 3.0)}, batch_size=[2]
    )
    assert MAGEActor(fast.model)(td)["action"].shape == (2, 1)
    with pytest.raises(ValueError, match="save the model itself"):
        fast.save(tmp_path / "policy.mage")


def test_it_is_neither_trained_nor_saved(toy_dataset: TensorDict, tmp_path: Path) -> None:
    fast = optimize_for_inference(make_model())
    with pytest.raises(ValueError, match="train the model itself"):
        fit(fast, toy_dataset)
    with pytest.raises(ValueError, match="this copy only acts; change the agent itself"):
        fast.changed(code_temperature=0.5)
    with pytest.raises(ValueError, match="save the model itself"):
        checkpoint.save(fast, tmp_path / "model.mage")
    assert not any(tmp_path.iterdir())


def test_a_copy_is_not_optimized_again() -> None:
    with pytest.raises(ValueError, match="optimized already; optimize the model itself"):
        optimize_for_inference(optimize_for_inference(make_model(), "int8"), "float16")


def test_wrong_weights_are_named() -> None:
    with pytest.raises(ValueError, match=r"weights is 'int4'; allowed: .*int8"):
        optimize_for_inference(make_model(), "int4")


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_packed_weights_are_not_compiled(weights: Weights) -> None:
    with pytest.raises(ValueError, match=f"'{weights}' cannot be compiled; allowed .*'bfloat16'"):
        optimize_for_inference(make_model(), weights, compiled=True)


def test_float16_names_the_engine_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")
    with pytest.raises(ValueError, match=r"needs .* 'fbgemm' or 'x86', and here .* is 'qnnpack'"):
        optimize_for_inference(make_model(), "float16")


def test_an_agent_that_knows_no_faster_way_says_so() -> None:
    with pytest.raises(ValueError, match="there is no copy of 'mage' that acts faster"):
        Agent.optimize_for_inference(make_model())  # what an agent of one's own inherits


def test_graphs_are_recorded_once_a_size_and_results_are_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = []

    def record(function: Any, inputs: Any) -> Any:
        """A graph without a GPU: what it replays reads and writes the same memory each time."""
        kept = tuple(part.clone() for part in inputs)
        result = function(*kept)
        recorded.append(len(result))
        replay = SimpleNamespace(replay=lambda: result.copy_(function(*kept)))
        return replay, kept, result

    monkeypatch.setattr(inference, "_record", record)
    model = make_model()
    graph = inference._Replayed(model.greedy_action)
    inputs = [model.condition(*ask(count)) for count in (4, 4, 2)]
    inputs[1] = (inputs[1][0] + 1, inputs[1][1])
    found = [graph(*given) for given in inputs]
    assert recorded == [4, 2]
    for result, given in zip(found, inputs, strict=True):
        torch.testing.assert_close(result, model.greedy_action(*given))
    assert not torch.equal(found[0], found[1])


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_on_a_gpu_it_is_a_graph(weights: Weights) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = make_model(width=64, code_temperature=1.0).cuda()
    fast = optimize_for_inference(model, weights)
    asked = [part.cuda() for part in ask(4)]
    expected = model.act(*asked)
    for _ in range(3):  # recorded, then replayed
        error = (fast.act(*asked) - expected).square().mean().sqrt() / expected.std()
        assert error < 0.1


def test_a_processor_without_bfloat16_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_onednn_has_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="no bfloat16, .* 'float16' and 'int8' are faster"):
        optimize_for_inference(make_model(), "bfloat16")


@pytest.mark.filterwarnings("ignore:this processor has no bfloat16")
@pytest.mark.skipif(not inference._onednn_has_bfloat16(), reason="the processor has no bfloat16")
def test_bfloat16_weights_are_packed_once_and_act_as_unpacked_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(code_temperature=1.0)
    packed = optimize_for_inference(model, "bfloat16")
    monkeypatch.setattr(inference, "_onednn_has_bfloat16", lambda: False)
    plain = optimize_for_inference(model, "bfloat16")
    kinds = [
        {type(part).__name__ for part in each.transformer.modules()} for each in (packed, plain)
    ]
    assert "_PackedLinear" in kinds[0] - kinds[1]
    assert "Linear" in kinds[1] - kinds[0]
    torch.testing.assert_close(packed.act(*ask(64)), plain.act(*ask(64)), atol=0.02, rtol=0.02)
