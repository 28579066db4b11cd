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
pytest.importorskip("diffusers")

from benchmarks import methods
from benchmarks.baselines import BASELINES, Baseline, configure
from benchmarks.domains import DOMAINS
from mage_agent import (
    AgentPolicy,
    Progress,
    TrainingError,
    dataset_from_arrays,
    fit,
    replay_buffer,
    returns_to_go,
)

LOW, HIGH = -0.5, 1.5
FLAT = [name for name in BASELINES if name != "hiql"]  # which learns from data with goals alone
TOKENS: dict[str, Any] = {
    "horizon": 2,
    "stride": 1,
    "codes": 64,
    "width": 32,
    "layers": 1,
    "heads": 2,
    "dropout": 0.0,
    "beam": 2,
    "penalty": 1.0,
    "learning_rate": 3e-3,
}
UNET: dict[str, Any] = {
    "width": 8,
    "multipliers": [8],
    "diffusion_steps": 5,
    "candidates": 1,
    "guide_steps": 1,
    "learning_rate": 1e-2,
}
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
    "adt": {
        **{"context": 5, "width": 16, "layers": 1, "learning_rate": 1e-2},
        **{"critic_steps": 50, "steps": 100},
    },
    "fql": {"hidden": [64], "distillation": 30.0, "actor_learning_rate": 1e-2},
    "diffusion_ql": {"hidden": [64], "actor_learning_rate": 1e-2},
    "diffuser": {**UNET, "horizon": 2},
    "hd": {**UNET, "horizon": 2, "jump": 2},
    "tap": TOKENS,
    "dv": {
        "horizon": 3,
        "stride": 1,
        "width": 64,
        "depth": 1,
        "candidates": 2,
        "planner_steps": 2,
        "hidden": 64,
        "learning_rate": 3e-3,
        "critic_learning_rate": 3e-3,
    },
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


def make(name: str, dataset: TensorDict, **changes: Any) -> Any:
    """An untrained baseline, small, whose discount is 0.9 where it has one."""
    cls = BASELINES[name]
    small = {"batch_size": 32, **SMALL.get(name, {}), **changes}
    return cls.from_dataset(dataset, configure(cls, "pen", "", discount=0.9, **small), seed=0)


def train(method: Baseline, dataset: TensorDict, steps: int, **options: Any) -> Baseline:
    fit(method, dataset, steps=steps, device="cpu", progress_bar=False, **options)
    return method


@pytest.mark.parametrize("name", FLAT)
def test_each_learns_and_acts_within_bounds(name: str, dataset: TensorDict) -> None:
    before = make(name, dataset).describe(dataset)["action_error"]
    method = train(make(name, dataset), dataset, 150)
    assert method.describe(dataset)["action_error"] < 0.5 * before
    policy = AgentPolicy(method)
    observation = 10 * dataset["observation"].numpy()
    start = np.ones(len(observation), dtype=bool)
    action, _ = policy.predict(observation, episode_start=start, deterministic=True)
    assert action.shape == (len(observation), 2)
    assert action.min() >= LOW
    assert action.max() <= HIGH
    assert action.max() > 1  # and reaches beyond the [-1, 1] that networks act in
    single, _ = policy.predict(observation[0], deterministic=True)
    np.testing.assert_allclose(single, action[0], atol=1e-5)


@pytest.mark.parametrize("name", ["dt", "adt"])
def test_sequences_end_with_their_episodes(name: str, dataset: TensorDict) -> None:
    method = make(name, dataset).eval()
    stage = method.stages(dataset)[-1]
    stage.begin()
    batch = next(stage.batches(seed=0))
    beyond = ~batch["collector", "mask"]
    assert beyond.any()
    other = batch.clone()
    other["action"][beyond] = 5.0
    losses = [float(method.losses(each, 0)["action"].detach()) for each in (batch, other)]
    assert losses[0] == losses[1]


def interrupt(progress: Progress) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", FLAT)
def test_resumed_equals_uninterrupted(name: str, dataset: TensorDict, tmp_path: Path) -> None:
    path = tmp_path / "state"
    whole = train(make(name, dataset), dataset, 60, seed=3)

    kept: dict[str, Any] = {"seed": 3, "checkpoint_path": path}
    with pytest.raises(KeyboardInterrupt):  # at step 50
        train(make(name, dataset), dataset, 60, checkpoint_interval=37, callback=interrupt, **kept)
    resumed, again = make(name, dataset), make(name, dataset)
    for method in (resumed, again):  # the second time, nothing is left to do
        torch.manual_seed(17)  # of no influence
        train(method, dataset, 60, resume=True, **kept)
    expected = whole.state_dict()
    for method in (resumed, again):
        found = method.state_dict()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("name", FLAT)
def test_each_is_saved_and_loaded(name: str, dataset: TensorDict, tmp_path: Path) -> None:
    policy = AgentPolicy(train(make(name, dataset), dataset, 5))
    policy.save(tmp_path / "policy")
    loaded = AgentPolicy.load(tmp_path / "policy", device="cpu")
    assert type(loaded.model) is BASELINES[name]
    assert loaded.config == policy.config
    observation = dataset["observation"][:9].numpy()
    states: list[Any] = [None, None]
    for _ in range(3):
        (one, states[0]), (other, states[1]) = (
            each.predict(observation, state, deterministic=True)
            for each, state in zip((policy, loaded), states, strict=True)
        )
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_of_another_run_is_refused(dataset: TensorDict, tmp_path: Path) -> None:
    kept: dict[str, Any] = {"checkpoint_path": tmp_path / "state", "resume": True}
    train(make("bc", dataset), dataset, 2, **kept)
    with pytest.raises(ValueError, match="comes from another run: seed 0 against 1"):
        train(make("bc", dataset), dataset, 2, seed=1, **kept)


def test_unknown_names_are_refused(dataset: TensorDict) -> None:
    with pytest.raises(ValueError, match=r"unknown .* \['depth'\]; known keys: .*'batch_size'"):
        make("bc", dataset, depth=3)
    with pytest.raises(ValueError, match=r"no observation entries \['goal'\]"):
        make("bc", dataset, observation_keys=("goal",))


def test_losses_that_are_not_finite_stop_training(dataset: TensorDict, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(TrainingError, match=r"not finite at step \d of stage 'bc'"):
        train(make("bc", dataset, learning_rate=1e30), dataset, 20, checkpoint_path=path)
    assert not path.exists()


def test_domain_and_dataset_select_what_was_published() -> None:
    def settings(name: str, domain: str, kind: str = "", discount: float = 0.97) -> Any:
        return configure(BASELINES[name], domain, kind, discount=discount)

    assert settings("iql", "pen").inverse_temperature == 0.5
    assert settings("iql", "pen").discount == 0.97
    assert settings("dt", "pen").discount == 1  # which is no discount of the method
    # The publication's discount stands in for the domain's, not for one that is asked for.
    antmaze = settings("iql", "antmaze", discount=0.998)
    assert (antmaze.expectile, antmaze.discount, antmaze.reward_shift) == (0.9, 0.99, -1)
    asked = methods.configure(BASELINES["iql"], "D4RL/antmaze/umaze-v1", discount=0.97)
    assert (asked.discount, asked.observation_keys[-1]) == (0.97, "desired_goal")
    names = ("local/halfcheetah/medium-expert-v0", "halfcheetah-medium-expert-v2")
    ours, theirs = (methods.configure(BASELINES["rebrac"], name) for name in names)
    other = methods.configure(BASELINES["rebrac"], "local/halfcheetah/mine-v0")
    assert ours == theirs != other
    assert other == settings("rebrac", "halfcheetah", discount=0.99).replace(
        observation_keys=("observation",)
    )


@pytest.mark.parametrize("name", FLAT)
def test_each_trains_in_every_domain(name: str, dataset: TensorDict) -> None:
    cls = BASELINES[name]
    published = {key for table in cls.config_class.PRESETS.values() for key in table}
    published.discard("multipliers")  # which go with the width
    small = {key: value for key, value in SMALL.get(name, {}).items() if key not in published}
    for domain in DOMAINS:
        config = configure(cls, domain, "", discount=0.99, **{**small, "batch_size": 4})
        json.dumps(config.to_dict())
        train(cls.from_dataset(dataset, config), dataset, 2)


def test_ten_percent_are_the_best_episodes(dataset: TensorDict) -> None:
    columns = make("ten_percent_bc", dataset).columns(dataset)
    starts = dataset["step_count"].flatten() == 0
    returns = returns_to_go(dataset["next", "reward"], dataset["episode"], 0.9).flatten()[starts]
    episodes = dataset["episode"][starts]
    kept = torch.isin(episodes, columns["episode"])
    assert int(kept.sum()) == 4  # of forty
    assert returns[kept].min() >= returns[~kept].max()


def endless_run(rng: np.random.Generator) -> TensorDict:
    """20,300 steps without an end; from 3,000 to 5,000 they are rewarded."""
    count = 20_300
    reward = np.zeros(count, dtype=np.float32)
    reward[3_000:5_000] = 1
    ends = np.zeros(count, dtype=bool)
    ends[-1] = True
    return dataset_from_arrays(
        rng.normal(size=(count, 3)).astype(np.float32),
        rng.uniform(LOW, HIGH, size=(count, 2)).astype(np.float32),
        reward,
        np.zeros(count, dtype=bool),
        ends,
        action_low=LOW,
        action_high=HIGH,
    )


def test_ten_percent_of_an_endless_run_are_its_best_pieces(rng: np.random.Generator) -> None:
    run = endless_run(rng)
    columns = make("ten_percent_bc", run).columns(run)
    assert len(columns) == 2_000
    assert columns["episode"].unique().tolist() == [3, 4]


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
    method = make("iql", dataset, dropout=0.0, expectile=0.8, inverse_temperature=2.0)
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
        train(method, dataset, 3)
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
    assert not lagrange or method.loss.log_alpha_prime.item() == 1  # as in CORL
    train(method, dataset, 3)
    batch = fixed_batch(method, dataset)
    loss: Any = method.loss
    with torch.random.fork_rng():
        losses = method.losses(batch.clone(), 0)
    draws: list[tuple[Tensor, Tensor]] = []
    sampled = loss.sample
    loss.sample = lambda seen: draws.append(sampled(seen)) or draws[-1]
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
    method = make("dt", dataset)
    policy = AgentPolicy(method)
    reward, episode = dataset["next", "reward"].flatten(), dataset["episode"]
    returns = torch.zeros(40).index_add(0, episode, reward)
    assert policy.target_return == pytest.approx(float(returns.max()), abs=1e-4)
    first = method.columns(dataset)["return_to_go"][dataset["step_count"] == 0]
    torch.testing.assert_close(first, method.units.return_to_go(returns), atol=1e-5, rtol=0)
    _, highest = method.units.return_to_go_range
    left = policy.update_return_to_go(np.float32([[3.0], [1e6]]), np.float32([[0.5], [0.5]]))
    np.testing.assert_allclose(left, [[2.5], [highest]], rtol=1e-6)


def test_dt_asks_for_what_an_episode_can_reach_in_an_endless_run(rng: np.random.Generator) -> None:
    run = endless_run(rng)
    metadata = {**run.get_non_tensor("metadata"), "dataset_id": "maze2d-umaze-v1"}
    run.set_non_tensor("metadata", metadata)
    method = make("dt", run)
    assert AgentPolicy(method).target_return == 300  # the environment's limit
    asked = method.columns(run)["return_to_go"].flatten()
    assert float(asked[0]) == 0  # not the 2,000 that are to come
    assert float(asked.max()) == 1
    fit(method, run, steps=2, progress_bar=False)  # without a word of returns beyond the units


def test_dt_learns_nothing_from_steps_past_an_episodes_end(dataset: TensorDict) -> None:
    """TorchRL's loss reads the mask of the windows."""
    method = make("dt", dataset).eval()
    horizon = method.horizon
    buffer = replay_buffer(method.columns(dataset), horizon=horizon, batch_size=64, seed=0)
    batch = buffer.sample()
    inside = batch["collector", "mask"]
    assert 0 < inside.sum() < inside.numel()
    expected = method.losses(batch, 0)["action"]
    batch["action"] = torch.where(inside.unsqueeze(-1), batch["action"], 0.3)
    torch.testing.assert_close(method.losses(batch, 0)["action"], expected)


def test_dt_remembers_one_context_per_environment(
    dataset: TensorDict, rng: np.random.Generator
) -> None:
    """Side by side with resets at different times equals one after the other."""
    method = make("dt", dataset).eval()
    policy = AgentPolicy(method)
    observations = rng.normal(size=(11, 2, 3)).astype(np.float32)  # longer than the context
    starts = np.zeros((11, 2), dtype=bool)
    starts[0], starts[4, 1] = True, True

    def act(columns: slice) -> NDArray[Any]:
        state, actions = None, []
        for observation, start in zip(observations[:, columns], starts[:, columns], strict=True):
            asked = {"observation": observation, "return_to_go": 3 * observation[:, :1]}
            action, state = policy.predict(asked, state, start)
            actions.append(action)
        return np.stack(actions)

    together = act(slice(None))
    np.testing.assert_allclose(together[:, :1], act(slice(1)), atol=1e-5)
    np.testing.assert_allclose(together[:, 1:], act(slice(1, 2)), atol=1e-5)
    fresh, _ = policy.predict(
        {"observation": observations[4, 1], "return_to_go": 3 * observations[4, 1, :1]}
    )
    np.testing.assert_allclose(together[4, 1], fresh, atol=1e-5)
    alone, _ = policy.predict(
        {"observation": observations[10, 0], "return_to_go": 3 * observations[10, 0, :1]}
    )
    assert not np.allclose(together[-1, 0], alone)  # it does remember
    # A full context is the last steps, as in a window of training.
    window = slice(11 - method.config.context, 11)
    seen = method.units.observation(torch.tensor(observations[window, 0]))[None]
    wanted = method.units.return_to_go(torch.tensor(3 * observations[window, 0, :1]))[None]
    acted = method.units.action(torch.tensor(together[window, 0]))[None]
    acted[0, -1] = 0.3  # hidden by the causal mask
    with torch.no_grad():
        expected = method.policy(seen, acted, wanted)[:, -1]
    np.testing.assert_allclose(
        together[-1, :1], method.units.environment_action(expected), atol=1e-4
    )
