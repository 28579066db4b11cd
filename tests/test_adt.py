"""V-ADT: values that are learnt first, then told to a transformer."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

pytest.importorskip("transformers")

from benchmarks.baselines import BASELINES, configure
from mage_agent import dataset_from_arrays, fit


@pytest.fixture
def dataset() -> TensorDict:
    """Episodes of eight steps; windows of five reach past their ends."""
    generator = torch.Generator().manual_seed(5)
    observation = torch.randn(80, 3, generator=generator)
    last = torch.arange(1, 81) % 8 == 0
    return dataset_from_arrays(
        observation.numpy(),
        torch.rand(80, 2, generator=generator).mul(2).sub(1).numpy(),
        (5 * torch.randn(80, generator=generator)).numpy(),
        last.numpy(),
        (last & False).numpy(),
        next_observations=observation.roll(-1, 0).numpy(),
    )


@pytest.fixture
def agent(dataset: TensorDict) -> Any:
    cls = BASELINES["adt"]
    small = {"context": 5, "width": 16, "layers": 1, "batch_size": 12}
    steps = {"steps": 5, "critic_steps": 30, "expectile": 0.8, "inverse_temperature": 5.0}
    config = configure(cls, "none", "", discount=0.9, **small, **steps)
    agent = cls.from_dataset(dataset, config, seed=0)
    fit(agent, dataset, device="cpu", progress_bar=False)
    return agent.eval()  # the embeddings' dropout is not ours to set


def perceptron(weights: Any, row: Tensor) -> Tensor:
    """A network on one row, from its layers' weights and biases in order."""
    for index, (weight, bias) in enumerate(weights):
        row = weight @ row + bias
        row = row.relu() if index < len(weights) - 1 else row
    return row


def judged(agent: Any, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller target critic's Q(s, a), and V(s)."""
    loss = agent.values_of.loss
    stacked = loss.target_qvalue_network_params["layers"]
    names = sorted(stacked.keys(), key=int)
    critics = [
        [(stacked[name, "weight"][i], stacked[name, "bias"][i]) for name in names] for i in range(2)
    ]
    value = [(each.weight, each.bias) for each in loss.value_network.layers[::2]]
    row = torch.cat([state, action])
    return min(perceptron(critic, row)[0] for critic in critics), perceptron(value, state)[0]


def test_the_transformer_is_told_values_and_weighs_its_errors(
    dataset: TensorDict, agent: Any
) -> None:
    _, stage = agent.stages(dataset)
    batch = next(stage.batches(seed=4))
    columns = agent.columns(dataset)
    largest = max(
        abs(judged(agent, *pair)[0])
        for pair in zip(columns["observation"], columns["action"], strict=True)
    )
    total, count, weights = torch.zeros(()), 0, []
    for window in batch:
        tokens = torch.zeros(5, 1)
        for step in range(5):
            action_value, _ = judged(agent, window["observation"][step], window["action"][step])
            tokens[step] = action_value.detach() / largest
        torch.testing.assert_close(window["return_to_go"], tokens)
        predicted = agent.policy(window["observation"][None], window["action"][None], tokens[None])
        for step in range(5):
            if not window["collector", "mask"][step]:
                continue
            state, action = window["observation"][step], window["action"][step]
            action_value, value = judged(agent, state, action)
            weights.append(float((5.0 * (action_value - value)).exp().clamp(max=100).detach()))
            total = total + weights[-1] * (predicted[0, step] - action).square().mean()
            count += 1
    assert count < 60  # some steps lie past the ends of episodes
    assert max(weights) > 1.5 * min(weights)
    loss = agent.losses(batch, 0)["action"]
    torch.testing.assert_close(loss, total / count)
    ours, theirs = (
        torch.autograd.grad(each, list(agent.policy.parameters()), allow_unused=True)
        for each in (loss, total / count)
    )
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_values_are_iqls(dataset: TensorDict, agent: Any) -> None:
    """The values' losses are those of IQL with the same settings, whose policy is left out."""
    values, transformer = agent.stages(dataset)
    assert (values.name, values.acts, values.steps) == ("values", False, 30)
    assert (transformer.name, transformer.acts, transformer.steps) == ("adt", True, 5)
    iql = BASELINES["iql"].from_dataset(dataset, agent.values_of.config, seed=1)
    iql.load_state_dict(agent.values_of.state_dict())
    batch = next(values.batches(seed=2))
    ours, theirs = values.losses(batch.clone()), iql.losses(batch.clone(), 0)
    assert set(ours.keys()) == {"loss_qvalue", "loss_value"}
    for name in ("qvalue", "value"):
        torch.testing.assert_close(ours[f"loss_{name}"], theirs[name])


def test_it_acts_on_the_present_value(dataset: TensorDict, agent: Any) -> None:
    observation = dataset["observation"][:4]
    seen = agent.units.observation(observation)
    with torch.no_grad():
        values = torch.stack([judged(agent, state, torch.zeros(2))[1] for state in seen])
        tokens = (values / agent.units.return_to_go.std).view(4, 1, 1)
        expected = agent.policy(seen[:, None], torch.zeros(4, 1, 2), tokens)[:, 0]
        low, high = (agent.act(observation, asked) for asked in (-9.0, 9.0))
    torch.testing.assert_close(low, agent.units.environment_action(expected))
    assert torch.equal(low, high)  # it is not told a return


def test_values_see_states_as_the_transformer_does(dataset: TensorDict) -> None:
    cls = BASELINES["adt"]
    small = {"context": 5, "width": 16, "layers": 1, "critic_steps": 1}
    agent = cls.from_dataset(dataset, configure(cls, "none", "", discount=0.9, **small), seed=0)
    own, told = (each.units.observation for each in (agent, agent.values_of))
    assert torch.equal(own.mean, told.mean)
    assert torch.equal(own.std, told.std)
    (values, _) = agent.stages(dataset)
    seen = values.columns()["observation"]
    torch.testing.assert_close(seen, own(dataset["observation"]))
