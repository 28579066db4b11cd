"""HIQL: goals in hindsight, the paper's losses row by row, a plane to find goals in."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

pytest.importorskip("transformers")

from benchmarks import experiment
from benchmarks.baselines import BASELINES, UnsuitableError, configure
from benchmarks.baselines.goals import Hindsight
from benchmarks.cells import Cell, Settings
from benchmarks.methods import build_method
from benchmarks.methods import configure as configure_for
from mage_agent import AgentPolicy, Progress, dataset_from_arrays, fit

EPISODES, STEPS = 20, 40


@pytest.fixture
def dataset() -> TensorDict:
    """Points in a plane, which walk a tenth of their action; their goals were never reached."""
    generator = torch.Generator().manual_seed(3)
    place = torch.rand(EPISODES, 2, generator=generator) * 2 - 1
    places, actions = [place], []
    for step in range(STEPS):
        if step % 10 == 0:
            aim = torch.rand(EPISODES, 2, generator=generator) * 2 - 1
        noise = 0.3 * torch.randn(EPISODES, 2, generator=generator)
        action = (5 * (aim - place) + noise).clamp(-1, 1)
        place = place + 0.1 * action
        places.append(place)
        actions.append(action)
    walked = torch.stack(places, 1)  # (E, T + 1, 2)
    now, after = walked[:, :-1].reshape(-1, 2), walked[:, 1:].reshape(-1, 2)
    far = torch.full_like(now, 9.0)
    last = torch.arange(1, len(now) + 1) % STEPS == 0
    return dataset_from_arrays(
        {
            "observation": (10 * now).numpy(),
            "achieved_goal": now.numpy(),
            "desired_goal": far.numpy(),
        },
        torch.stack(actions, 1).reshape(-1, 2).numpy(),
        torch.zeros(len(now)).numpy(),
        (last & False).numpy(),
        last.numpy(),
        next_observations={
            "observation": (10 * after).numpy(),
            "achieved_goal": after.numpy(),
            "desired_goal": far.numpy(),
        },
    )


def make(dataset: TensorDict, **changes: Any) -> Any:
    cls = BASELINES["hiql"]
    small = {"hidden": [16, 16], "actor_hidden": [16], "batch_size": 64, "subgoal_steps": 5}
    config = configure(cls, "none", "", discount=0.9, **{**small, **changes})
    return cls.from_dataset(dataset, config, seed=0)


def train(agent: Any, dataset: TensorDict, steps: int, **options: Any) -> Any:
    return fit(agent, dataset, steps=steps, device="cpu", progress_bar=False, **options)


def test_it_finds_goals_that_no_episode_was_told(dataset: TensorDict) -> None:
    small = {"hidden": [32, 32], "actor_hidden": [32]}
    agent = make(dataset, **small, learning_rate=1e-2, target_rate=0.05)
    train(agent, dataset, 200)
    policy = AgentPolicy(agent)
    generator = torch.Generator().manual_seed(8)
    place, goal = (torch.rand(50, 2, generator=generator) * 1.6 - 0.8 for _ in range(2))
    before = (place - goal).norm(dim=1).mean()
    for _ in range(40):
        seen = {"observation": 10 * place, "achieved_goal": place, "desired_goal": goal}
        entries = {key: value.numpy() for key, value in seen.items()}
        action, _ = policy.predict(entries, deterministic=True)
        place = place + 0.1 * torch.as_tensor(action)
    distance = (place - goal).norm(dim=1)
    assert distance.mean() < 0.25 * before
    assert (distance < 0.3).float().mean() > 0.8


def test_resumed_equals_uninterrupted(dataset: TensorDict, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    whole = train(make(dataset), dataset, 60, seed=3)
    kept: dict[str, Any] = {"seed": 3, "checkpoint_path": tmp_path / "state"}
    with pytest.raises(KeyboardInterrupt):
        train(make(dataset), dataset, 60, checkpoint_interval=37, callback=interrupt, **kept)
    torch.manual_seed(17)  # of no influence
    resumed = train(make(dataset), dataset, 60, resume=True, **kept)
    expected, found = whole.state_dict(), resumed.state_dict()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    policy = AgentPolicy(resumed)
    policy.save(tmp_path / "policy")
    loaded = AgentPolicy.load(tmp_path / "policy", device="cpu")
    observation = {key: dataset[key][:9].numpy() for key in resumed.observation_sizes}
    one, other = (each.predict(observation, deterministic=True)[0] for each in (policy, loaded))
    assert (one == other).all()


def test_goals_lie_ahead_or_anywhere() -> None:
    """Rows stand for places, so that a goal names its row."""
    lengths, steps = [40, 3, 1, 400], 7
    episode = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    rows = torch.arange(len(episode)).unsqueeze(-1)
    last = torch.tensor(lengths).cumsum(0)[episode] - 1
    hindsight = Hindsight(0.9, steps, 0.3, torch.device("cpu"))
    columns = {"episode": episode, "observation": rows, "reached": rows}
    noted = hindsight.note(TensorDict(columns, [len(rows)]))
    assert "reached" not in noted
    index = torch.arange(len(rows)).repeat(300)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = hindsight.with_goals(TensorDict({"index": index}, [len(index)]))
    goal, aim, subgoal = (batch[key].flatten() for key in ("goal", "aim", "subgoal"))
    end, further = last[index], torch.minimum(index + steps, last[index])
    assert torch.equal(batch["low_goal"].flatten(), further)
    assert torch.equal(batch["subgoal_state"], batch["subgoal"])
    assert torch.equal(batch["at_goal"], goal == index)
    middle = (index > 60) & (index < 200)  # the end of its episode is far
    here = (goal == index)[middle].float().mean()
    ahead = ((goal > index) & (goal < index + 60))[middle].float().mean()
    assert float(here) == pytest.approx(0.2, abs=0.01)
    assert float(ahead) == pytest.approx(0.5 + 0.3 * 60 / len(rows), abs=0.02)
    distance = (goal - index)[middle & (goal > index) & (goal < index + 60)].float()
    geometric = (0.5 * 10 + 0.3 * 60 / len(rows) * 30) / (0.5 + 0.3 * 60 / len(rows))
    assert float(distance.mean()) == pytest.approx(geometric, rel=0.05)
    inside = (aim > index) & (aim <= end)
    assert float(inside[middle].float().mean()) == pytest.approx(0.7 + 0.3 * 0.6, abs=0.06)
    assert ((subgoal == further) | (subgoal == aim)).all()
    near = (aim > index) & (aim < further)
    assert (subgoal[near] == aim[near]).float().mean() > 0.8  # not beyond the goal
    assert (subgoal <= end).all()
    assert (subgoal >= index).all()


def test_ogbenchs_navigation_aims_within_the_episode() -> None:
    navigate, other = (
        configure_for(BASELINES["hiql"], name)
        for name in ("pointmaze/giant-navigate-v0", "local/multi2d/large-v0")
    )
    assert (navigate.discount, navigate.random_aims, other.random_aims) == (0.995, 0.0, 0.3)
    episode = torch.arange(8).repeat_interleave(50)
    rows = torch.arange(400).unsqueeze(-1)
    hindsight = Hindsight(0.9, 7, navigate.random_aims, torch.device("cpu"))
    columns = {"episode": episode, "observation": rows, "reached": rows}
    hindsight.note(TensorDict(columns, [400]))
    batch = hindsight.with_goals(TensorDict({"index": rows}, [400]))
    aim = batch["aim"].flatten()
    assert torch.equal(episode[aim], episode)
    assert (aim >= rows.flatten()).all()


def layers(network: Any, row: Tensor, activation: Any) -> Tensor:
    """A perceptron on one row; a layer norm follows each activation, where there are any."""
    linear = [layer for layer in network if hasattr(layer, "in_features")]
    norms = [layer for layer in network if hasattr(layer, "normalized_shape")]
    for index, layer in enumerate(linear):
        row = layer.weight @ row + layer.bias
        if index < len(linear) - 1:
            row = activation(row)
            if norms:
                row = (row - row.mean()) / (row.var(correction=0) + norms[index].eps).sqrt()
                row = row * norms[index].weight + norms[index].bias
    return row


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def code_of(value: Any, state: Tensor, goal: Tensor) -> Tensor:
    code = layers(value.phi, torch.cat([state, goal]), gelu)
    return code / code.square().sum().sqrt() * math.sqrt(len(code))


def values(value: Any, state: Tensor, goal: Tensor) -> list[Tensor]:
    row = torch.cat([state, code_of(value, state, goal)])
    return [layers(member, row, gelu)[0] for member in value.values.members]


def log_density(policy: Any, row: Tensor, chosen: Tensor) -> Tensor:
    mean = layers(policy.mean, row, torch.relu)
    deviation = policy.log_std.exp()
    squares = ((chosen - mean) / deviation).square()
    density: Tensor = -0.5 * squares - deviation.log() - 0.5 * math.log(2 * math.pi)
    return density.sum()


def test_losses_are_the_publications(dataset: TensorDict) -> None:
    agent = make(dataset, expectile=0.8, inverse_temperature=2.0, target_rate=0.3, batch_size=24)
    train(agent, dataset, 6)
    agent.train()
    (stage,) = agent.stages(dataset)
    batch = next(stage.batches(seed=1))
    losses = agent.losses(batch, 0)
    assert 0 < int(batch["at_goal"].sum()) < 24
    value_losses, high_losses, low_losses = [], [], []
    for row in range(24):
        part = batch[row]
        state, after, goal = part["observation"], part["next", "observation"], part["goal"]
        reward, mask = (0.0, 0.0) if part["at_goal"] else (-1.0, 1.0)
        with torch.no_grad():
            ahead = [reward + 0.9 * mask * v for v in values(agent.target, after, goal)]
            advantage = min(ahead) - sum(values(agent.target, state, goal)) / 2
        slope = 0.8 if advantage >= 0 else 0.2
        first, second = values(agent.value, state, goal)
        value_losses.append(slope * ((ahead[0] - first) ** 2 + (ahead[1] - second) ** 2))
        with torch.no_grad():
            low_goal, aim, later = part["low_goal"], part["aim"], part["subgoal_state"]

            def gain(there: Tensor, here: Tensor, goal: Tensor) -> Tensor:
                pairs = (values(agent.value, place, goal) for place in (there, here))
                found, left = (torch.stack(pair).mean() for pair in pairs)
                return (2.0 * (found - left)).exp().clamp(max=100)

            high, low = gain(later, state, aim), gain(after, state, low_goal)
            subgoal = code_of(agent.value, state, part["subgoal"])
            low_code = code_of(agent.value, state, low_goal)
        chosen = log_density(agent.high, torch.cat([state, aim]), subgoal)
        high_losses.append(-high * chosen)
        acted = log_density(agent.low, torch.cat([state, low_code]), part["action"])
        low_losses.append(-low * acted)
    found = {"value": value_losses, "high": high_losses, "low": low_losses}
    expected = {name: torch.stack(rows).mean() for name, rows in found.items()}
    weights = [weight for weight in agent.parameters() if weight.requires_grad]
    for name, wanted in expected.items():
        torch.testing.assert_close(losses[name], wanted, rtol=1e-5, atol=1e-5)
        ours, theirs = (
            torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            for loss in (losses[name], wanted)
        )
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None), name
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_goals_have_the_units_of_places(dataset: TensorDict) -> None:
    """The data's goals are all the same, which would blow others up."""
    agent = make(dataset)
    same = {key: torch.tensor([[0.3, -0.4]]) for key in agent.observation_sizes}
    seen = agent.units.observation(agent.units.concatenate(same))
    state, goal = agent.state_and_goal(seen)
    assert state.shape == (1, 4)
    torch.testing.assert_close(goal, state[:, :2])  # achieved_goal stands before observation
    assert goal.abs().max() < 3


def test_actions_are_sampled_or_not(dataset: TensorDict) -> None:
    agent = make(dataset).eval()
    observation = agent.units.concatenate(dataset[:7])
    generator = torch.Generator().manual_seed(1)
    drawn = [agent.act(observation, temperature=1.0, generator=generator) for _ in range(2)]
    assert not torch.allclose(*drawn)
    before = torch.get_rng_state(), generator.get_state()
    assert torch.equal(agent.act(observation), agent.act(observation, generator=generator))
    assert torch.equal(torch.get_rng_state(), before[0]), "nothing is drawn"
    assert torch.equal(generator.get_state(), before[1])


def test_data_without_goals_are_named(
    dataset: TensorDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clear line in the report, and no failure of the suite."""
    bare = dataset.select("observation", "action", "episode", "step_count", "next")
    bare.set_non_tensor("metadata", {"dataset_id": "local/pen/mine-v0"})
    message = r"local/pen/mine-v0 has no achieved_goal and no desired_goal .* hiql learns"
    with pytest.raises(UnsuitableError, match=message):
        build_method("hiql", bare, dataset_id="local/pen/mine-v0", seed=0)
    with pytest.raises(ValueError, match=r"observation_keys is \('observation',\); hiql needs"):
        make(dataset, observation_keys=("observation",))

    def run(cell: Cell, settings: Settings) -> Any:
        return build_method(cell.method, bare, dataset_id=cell.dataset, seed=cell.seed)

    monkeypatch.setattr(experiment, "run", run)
    cell = Cell(dataset="local/pen/mine-v0", method="hiql", seed=0, budget="quick", minutes=1.0)
    record = experiment.attempt(cell, Settings(output=tmp_path))
    assert record["status"] == "unavailable"
    assert "local/pen/mine-v0 has no achieved_goal" in record["error"]


def test_a_trajectory_that_goes_on_for_another_goal_is_one(dataset: TensorDict) -> None:
    cls = BASELINES["hiql"]
    config = configure(cls, "none", "", discount=0.99, hidden=(8,), actor_hidden=(8,))
    parted = dataset.copy()
    parted["episode"] = torch.arange(len(dataset)) // 10  # goals change every ten steps
    parted["desired_goal"] = parted["episode"][:, None].expand(-1, 2).float()
    ends = (torch.arange(1, len(dataset) + 1) % 10 == 0)[:, None]
    outcome = {"truncated": ends, "done": ends, "desired_goal": parted["desired_goal"]}
    parted["next"] = dataset["next"].copy().update(outcome)
    columns = cls.from_dataset(parted, config, seed=0).columns(parted)
    assert torch.equal(columns["episode"], dataset["episode"])
    parted["next", "observation"] *= 1 + 3e-7  # rounding
    again = cls.from_dataset(parted, config, seed=0).columns(parted)["episode"]
    assert torch.equal(again, parted["episode"])
