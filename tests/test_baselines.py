"""The baselines: each learns, resumes to the bit, acts within bounds, and computes what it says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

pytest.importorskip("transformers")

from benchmarks.baselines import BASELINES, Baseline
from benchmarks.tasks import TASKS
from mage_agent.data import dataset_from_arrays
from mage_agent.training import TrainingError

LOW, HIGH = -0.5, 1.5
SMALL: dict[str, dict[str, Any]] = {  # what makes a method fast enough for a test
    "td3_bc": {"hidden": [64], "alpha": 0.5, "actor_learning_rate": 3e-3},
    "rebrac": {"hidden": [64], "actor_penalty": 1.0, "actor_learning_rate": 3e-3},
    "cql": {
        "hidden": [64],
        "critic_hidden": [64],
        "actor_learning_rate": 1e-2,
        "critic_learning_rate": 1e-2,
    },
    "iql": {"hidden": [64], "actor_learning_rate": 3e-3},
    "dt": {"context": 5, "width": 16, "layers": 1, "learning_rate": 1e-2},
}


def best_action(observation: NDArray[Any]) -> NDArray[Any]:
    """What earns most; the first entry is often exactly at a bound."""
    tilted = np.stack([3 * observation[:, 0], -observation[:, 1]], axis=1)
    bounded: NDArray[Any] = np.clip(0.5 + tilted, LOW, HIGH)
    return bounded


@pytest.fixture
def dataset(rng: np.random.Generator) -> TensorDict:
    """Episodes of 20 steps; actions scatter around the best one, rewards say how far."""
    steps = 800
    observation = rng.normal(size=(steps, 3)).astype(np.float32)
    best = best_action(observation)
    action = np.clip(best + 0.3 * rng.normal(size=best.shape), LOW, HIGH)
    last = np.arange(1, steps + 1) % 20 == 0
    terminated = last & (rng.random(steps) < 0.5)
    return dataset_from_arrays(
        observation,
        action,
        1 - np.abs(action - best).sum(1),
        terminated,
        last & ~terminated,
        next_observations=np.roll(observation, -1, axis=0),
        action_low=LOW,
        action_high=HIGH,
    )


def make(name: str, dataset: TensorDict, **changes: Any) -> Baseline:
    return BASELINES[name](
        dataset,
        domain="pen",
        observation_keys=("observation",),
        discount=0.9,
        seed=0,
        **{"batch_size": 32, **SMALL.get(name, {}), **changes},
    )


def tensors(method: Baseline) -> dict[str, Tensor]:
    return dict(method.named_parameters()) | dict(method.named_buffers())


@pytest.mark.parametrize("name", BASELINES)
def test_each_learns_and_acts_within_bounds(name: str, dataset: TensorDict) -> None:
    before = make(name, dataset).describe(dataset)["action_error"]
    method = make(name, dataset).learn(dataset, steps=150, progress_bar=False)
    assert method.describe(dataset)["action_error"] < 0.5 * before
    observation = 10 * dataset["observation"].numpy()
    action, _ = method.predict(observation, episode_start=np.ones(len(observation), dtype=bool))
    assert action.shape == (len(observation), 2)
    assert action.min() >= LOW
    assert action.max() <= HIGH
    assert action.max() > 1  # and reaches beyond the [-1, 1] that networks act in
    single, _ = method.predict(observation[0])
    np.testing.assert_allclose(single, action[0], atol=1e-5)


def interrupt(step: int, losses: dict[str, float]) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", BASELINES)
def test_resumed_equals_uninterrupted(
    name: str, dataset: TensorDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    whole = make(name, dataset).learn(dataset, steps=25, seed=3, progress_bar=False)

    monkeypatch.setattr("benchmarks.baselines.base.LOG_INTERVAL", 21)
    with pytest.raises(KeyboardInterrupt):
        make(name, dataset).learn(
            dataset,
            steps=25,
            seed=3,
            progress_bar=False,
            checkpoint_path=path,
            checkpoint_interval=19,
            callback=interrupt,
        )
    resumed, again = make(name, dataset), make(name, dataset)
    for method in (resumed, again):  # the second time, nothing is left to do
        torch.manual_seed(17)  # of no influence
        method.learn(dataset, steps=25, seed=3, progress_bar=False, checkpoint_path=path)
    expected = tensors(whole)
    for method in (resumed, again):
        found = tensors(method)
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_a_checkpoint_of_another_run_is_refused(dataset: TensorDict, tmp_path: Path) -> None:
    path = tmp_path / "state"
    make("bc", dataset).learn(dataset, steps=2, progress_bar=False, checkpoint_path=path)
    with pytest.raises(ValueError, match=r"another run: it has \{'seed': 0\}"):
        make("bc", dataset).learn(
            dataset, steps=2, seed=1, progress_bar=False, checkpoint_path=path
        )


def test_unknown_names_are_refused(dataset: TensorDict) -> None:
    with pytest.raises(ValueError, match=r"no hyperparameters \['depth'\]; known: .*'batch_size'"):
        make("bc", dataset, depth=3)
    common: dict[str, Any] = {"discount": 0.9, "seed": 0}
    with pytest.raises(ValueError, match=r"'chess'; known: \[.*'antmaze'"):
        BASELINES["bc"](dataset, domain="chess", observation_keys=("observation",), **common)
    with pytest.raises(ValueError, match=r"no observation entries \['goal'\]"):
        BASELINES["bc"](dataset, domain="pen", observation_keys=("goal",), **common)


def test_losses_that_are_not_finite_stop_training(dataset: TensorDict, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(TrainingError, match="BehaviourCloning is not finite at step"):
        make("bc", dataset, learning_rate=1e30).learn(
            dataset, steps=20, progress_bar=False, checkpoint_path=path
        )
    assert not path.exists()


def test_domain_and_dataset_select_what_was_published(dataset: TensorDict) -> None:
    def settings(name: str, domain: str, discount: float = 0.97) -> dict[str, Any]:
        common: dict[str, Any] = {"observation_keys": ("observation",), "seed": 0}
        method = BASELINES[name](dataset, domain=domain, discount=discount, **common)
        return method.hyperparameters

    assert settings("iql", "pen")["temperature"] == 0.5
    assert settings("iql", "pen")["discount"] == 0.97
    # The publication's discount stands in for the domain's, not for one that was asked for.
    assert settings("iql", "antmaze")["discount"] == 0.97
    antmaze = settings("iql", "antmaze", 0.998)
    assert (antmaze["expectile"], antmaze["discount"], antmaze["reward_shift"]) == (0.9, 0.99, -1)
    names = ("local/halfcheetah/medium-expert-v0", "halfcheetah-medium-expert-v2")
    ours, theirs = (make("rebrac", dataset)._settings("halfcheetah", name, 0.99) for name in names)
    assert ours == theirs != make("rebrac", dataset)._settings("halfcheetah", "", 0.99)


@pytest.mark.parametrize("name", BASELINES)
def test_each_trains_in_every_domain(name: str, dataset: TensorDict) -> None:
    published = {key for table in BASELINES[name].published.values() for key in table}
    assert published <= set(BASELINES[name].defaults)
    small = {key: value for key, value in SMALL.get(name, {}).items() if key not in published}
    for domain in TASKS:
        method = BASELINES[name](
            dataset,
            domain=domain,
            observation_keys=("observation",),
            discount=0.99,
            seed=0,
            **{**small, "batch_size": 4},
        )
        json.dumps(method.hyperparameters)
        method.learn(dataset, steps=2, progress_bar=False)


def test_ten_percent_are_the_best_episodes(dataset: TensorDict) -> None:
    columns = make("ten_percent_bc", dataset).columns(dataset)
    starts = dataset["step_count"].flatten() == 0
    returns, episodes = dataset["return_to_go"].flatten()[starts], dataset["episode"][starts]
    kept = torch.isin(episodes, columns["episode"])
    assert int(kept.sum()) == 4  # of forty
    assert returns[kept].min() >= returns[~kept].max()


def test_transitions_keep_truncation_and_termination_apart(dataset: TensorDict) -> None:
    columns = make("td3_bc", dataset, reward_scale=2.0, reward_shift=-1.0).columns(dataset)
    outcome = columns["next"]
    assert torch.equal(outcome["terminated"], dataset["next", "terminated"])
    assert int(outcome["terminated"].sum()) < int(outcome["done"].sum()) == 40
    torch.testing.assert_close(outcome["reward"], 2 * dataset["next", "reward"] - 1)
    torch.testing.assert_close(columns["observation"].mean(0), torch.zeros(3), atol=1e-5, rtol=0)


def fixed_batch(method: Baseline, dataset: TensorDict) -> TensorDict:
    """Sixteen transitions, the last of an episode of either kind among them."""
    columns = method.columns(dataset).exclude("episode")
    ends = dataset["next", "terminated"].flatten().nonzero()[0]
    cuts = dataset["next", "truncated"].flatten().nonzero()[0]
    return columns[torch.cat([torch.arange(14), ends, cuts])].clone()


def both(networks: Any, action: Tensor, observation: Tensor) -> list[Tensor]:
    """Q of either critic, computed from its own weights one matrix product after the other."""
    values = []
    for index in range(2):
        x = torch.cat([observation, action], -1)
        names = sorted({int(key[1]) for key in networks.keys(True, True) if key[-1] == "weight"})
        for name in names:
            layer = networks["layers", str(name)]
            weight, bias = layer["weight"][index], layer["bias"][index]
            if weight.ndim == 1:  # layer norm
                x = torch.nn.functional.layer_norm(x, weight.shape, weight, bias)
            else:
                x = x @ weight.T + bias
                if name != names[-1]:
                    x = x.relu()
        values.append(x.squeeze(-1))
    return values


def test_iql_losses_are_the_publications(dataset: TensorDict) -> None:
    method = make("iql", dataset, dropout=0.0, expectile=0.8, temperature=2.0)
    batch = fixed_batch(method, dataset)
    losses = method.losses(batch.clone(), 0)
    loss: Any = method.loss
    value_of = method.loss.value_network.layers  # one network, so its own weights are those used
    observation, action = batch["observation"], batch["action"]
    target = torch.stack(both(loss.target_qvalue_network_params, action, observation))
    advantage = target.min(0).values - value_of(observation).squeeze(-1)
    expectile = torch.where(advantage > 0, 0.8, 0.2) * advantage.square()
    following = value_of(batch["next", "observation"]).squeeze(-1)
    alive = 1.0 - batch["next", "terminated"].flatten().float()
    bootstrapped = (batch["next", "reward"].flatten() + 0.9 * alive * following).detach()
    current = both(loss.qvalue_network_params, action, observation)
    mean = method.policy(observation)
    density = torch.distributions.Normal(mean, torch.ones(2)).log_prob(action).sum(-1)
    weight = (2.0 * advantage).exp().clamp(max=100).detach()
    torch.testing.assert_close(losses["value"], expectile.mean())
    torch.testing.assert_close(
        losses["qvalue"], sum((q - bootstrapped).square().mean() for q in current)
    )
    torch.testing.assert_close(losses["actor"], -(weight * density).mean())


def test_rebrac_losses_are_the_publications(dataset: TensorDict) -> None:
    method = make(
        "rebrac", dataset, policy_noise=0.0, actor_penalty=0.3, critic_penalty=0.7, hidden=[16, 16]
    )
    batch = fixed_batch(method, dataset)
    batch["next", "reward"] += 5  # so that values are of some size
    for _ in range(3):  # until critics and targets differ
        method.learn(dataset, steps=3, progress_bar=False)
    losses = method.losses(batch.clone(), 0)
    loss: Any = method.loss
    following = batch["next"]
    target_actor = loss.target_actor_network_params["layers"]
    x = following["observation"]
    for name in ("0", "2", "4"):
        x = x @ target_actor[name, "weight"].T + target_actor[name, "bias"]
        x = x.relu() if name != "4" else x.tanh()
    values = both(loss.target_qvalue_network_params, x, following["observation"])
    distance = (x - following["action"]).square().sum(-1) * ~following["done"].flatten()
    alive = ~following["terminated"].flatten()
    backup = 0.9 * alive * (torch.minimum(*values) - 0.7 * distance)
    target = (following["reward"].flatten() + backup).detach()
    current = both(loss.qvalue_network_params, batch["action"], batch["observation"])
    action = method.policy(batch["observation"])
    value = torch.minimum(*both(loss.qvalue_network_params, action, batch["observation"]))
    cloning = (action - batch["action"]).square().sum(-1)
    torch.testing.assert_close(losses["qvalue"], sum((q - target).square().mean() for q in current))
    actor = (0.3 * cloning - value / value.abs().mean().detach()).mean()
    torch.testing.assert_close(losses["actor"], actor)
    ours = torch.autograd.grad(losses["actor"], list(method.policy.parameters()))
    oracle = torch.autograd.grad(actor, list(method.policy.parameters()))
    torch.testing.assert_close(ours, oracle)


def test_rebrac_knows_the_datas_next_action(dataset: TensorDict) -> None:
    columns = make("rebrac", dataset).columns(dataset)
    assert torch.equal(columns["next", "action"][:-1], columns["action"][1:])
    assert torch.equal(columns["next", "acted"], ~dataset["next", "done"])


@pytest.mark.parametrize("lagrange", [False, True])
def test_cql_pushes_all_sampled_actions_down(dataset: TensorDict, lagrange: bool) -> None:
    method = make(
        "cql",
        dataset,
        lagrange=lagrange,
        conservatism=3.0,
        target_gap=2.0,
        sampled_actions=4,
        critic_hidden=[16],
    )
    method.learn(dataset, steps=3, progress_bar=False)
    batch = fixed_batch(method, dataset)
    loss: Any = method.loss
    with torch.random.fork_rng():
        losses = method.losses(batch.clone(), 0)
    draws: list[tuple[Tensor, Tensor]] = []
    sampled = loss._sampled
    loss._sampled = lambda seen: draws.append(sampled(seen)) or draws[-1]
    uniforms: list[Tensor] = []
    uniform_ = Tensor.uniform_
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Tensor, "uniform_", lambda x, *bounds: uniforms.append(uniform_(x, *bounds)) or x
        )
        again = method.losses(batch.clone(), 0)
    torch.testing.assert_close(losses, again)
    (current, current_density), (following, following_density) = draws
    (uniform,) = uniforms
    observation = batch["observation"]
    gaps = torch.zeros(2)
    for row in range(len(batch)):
        terms = []
        for action, density in (
            (uniform[:, row], torch.full((4,), np.log(0.25))),
            (current[:, row], current_density[:, row]),
            (following[:, row], following_density[:, row]),
        ):
            values = both(loss.qvalue_network_params, action, observation[row].expand(4, -1))
            terms.append(torch.stack(values) - density)
        data = both(loss.qvalue_network_params, batch["action"][row], observation[row])
        gaps += (torch.cat(terms, 1).exp().sum(1).log() - torch.stack(data)) / len(batch)
    multiplier = float(loss.log_alpha_prime.detach().exp()) if lagrange else 1.0
    expected = 3.0 * multiplier * (gaps - 2.0 * lagrange).sum()
    torch.testing.assert_close(losses["conservative"], expected)
    if lagrange:
        torch.testing.assert_close(losses["multiplier"], -expected / 2)
        assert losses["multiplier"].requires_grad
    assert current.abs().max() <= 1


def test_dt_asks_for_undiscounted_returns(dataset: TensorDict) -> None:
    method: Any = make("dt", dataset)
    reward, episode = dataset["next", "reward"].flatten(), dataset["episode"]
    returns = torch.zeros(40).index_add(0, episode, reward)
    assert method.target_return == pytest.approx(float(returns.max()), abs=1e-4)
    first = method.columns(dataset)["return_to_go"][dataset["step_count"] == 0]
    torch.testing.assert_close(first * method.return_scale, returns, atol=1e-4, rtol=0)
    left = method.update_return_to_go(np.float32([[3.0], [1e6]]), np.float32([[0.5], [0.5]]))
    np.testing.assert_allclose(left, [[2.5], [method.highest]], rtol=1e-6)


def test_dt_remembers_one_context_per_environment(
    dataset: TensorDict, rng: np.random.Generator
) -> None:
    """Side by side with resets at different times equals one after the other."""
    method = make("dt", dataset).eval()
    observations = rng.normal(size=(11, 2, 3)).astype(np.float32)  # longer than the context
    starts = np.zeros((11, 2), dtype=bool)
    starts[0], starts[4, 1] = True, True

    def act(columns: slice) -> NDArray[Any]:
        state, actions = None, []
        for observation, start in zip(observations[:, columns], starts[:, columns], strict=True):
            asked = {"observation": observation, "return_to_go": 3 * observation[:, :1]}
            action, state = method.predict(asked, state, start)
            actions.append(action)
        return np.stack(actions)

    together = act(slice(None))
    np.testing.assert_allclose(together[:, :1], act(slice(1)), atol=1e-5)
    np.testing.assert_allclose(together[:, 1:], act(slice(1, 2)), atol=1e-5)
    fresh, _ = method.predict(
        {"observation": observations[4, 1], "return_to_go": 3 * observations[4, 1, :1]}
    )
    np.testing.assert_allclose(together[4, 1], fresh, atol=1e-5)
    # A full context is the last steps, as in a window of training.
    later: Any = method
    context = later.hyperparameters["context"]
    window = slice(11 - context, 11)
    seen = later.standardized(observations[window, 0])[None]
    wanted = torch.tensor(3 * observations[window, 0, :1])[None] / later.return_scale
    middle, half = later._action_scale()
    acted = ((torch.tensor(together[window, 0]) - middle) / half)[None]
    acted[0, -1] = 0.3  # hidden by the causal mask
    with torch.no_grad():
        expected = later.policy(seen, acted, wanted)[:, -1]
    np.testing.assert_allclose(together[-1, :1], later.environment_action(expected), atol=1e-4)
