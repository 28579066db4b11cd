"""FQL and Diffusion-QL against their papers' equations, computed one row at a time."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

pytest.importorskip("transformers")

from benchmarks import measure
from benchmarks.baselines import BASELINES, configure
from benchmarks.domains import Domain
from benchmarks.measure import run_episodes
from benchmarks.protocol import AgentMethod
from mage_agent import dataset_from_arrays, fit

GAMMA = 0.9


@pytest.fixture
def dataset() -> TensorDict:
    """Eighty steps in eight episodes, half of which terminate."""
    generator = torch.Generator().manual_seed(5)
    observation = torch.randn(80, 3, generator=generator)
    last = torch.arange(1, 81) % 10 == 0
    terminated = last & (torch.arange(80) % 20 < 10)
    return dataset_from_arrays(
        observation.numpy(),
        torch.rand(80, 2, generator=generator).mul(2).sub(1).numpy(),
        torch.randn(80, generator=generator).numpy(),
        terminated.numpy(),
        (last & ~terminated).numpy(),
        next_observations=observation.roll(-1, 0).numpy(),
    )


def make(name: str, dataset: TensorDict, **changes: Any) -> Any:
    """A small agent that was trained for three steps, so that targets differ from critics."""
    cls = BASELINES[name]
    small = {"batch_size": 16, "hidden": [8, 8], "target_rate": 0.3, **changes}
    config = configure(cls, "none", "", discount=GAMMA, **small)
    agent = cls.from_dataset(dataset, config, seed=0)
    fit(agent, dataset, steps=3, device="cpu", progress_bar=False)
    return agent.train()


def batch_of(agent: Any, dataset: TensorDict) -> TensorDict:
    """Sixteen transitions, ends of either kind among them."""
    rows = torch.tensor([*range(2, 9), 9, 19, *range(40, 47)])
    batch: TensorDict = agent.columns(dataset).exclude("episode")[rows].clone()
    assert 0 < int(batch["next", "terminated"].sum()) < int(batch["next", "done"].sum())
    return batch


@contextmanager
def recorded() -> Iterator[list[Tensor]]:
    """All random tensors that are drawn inside, in order."""
    drawn: list[Tensor] = []

    def noting(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def draw_and_note(*args: Any, **options: Any) -> Tensor:
            drawn.append(draw(*args, **options))
            return drawn[-1]

        return draw_and_note

    with pytest.MonkeyPatch.context() as patch:
        for name in ("randn_like", "rand_like", "randn", "rand", "randint"):
            patch.setattr(torch, name, noting(getattr(torch, name)))
        yield drawn


def layers(network: Any, row: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """A perceptron on one row, one matrix product after the other."""
    linear = [layer for layer in network if hasattr(layer, "in_features")]
    norms = [layer for layer in network if hasattr(layer, "normalized_shape")]
    for index, layer in enumerate(linear):
        row = layer.weight @ row + layer.bias
        if index < len(linear) - 1:
            row = activation(row)
            if norms:
                centred = row - row.mean()
                row = centred / (centred.square().mean() + norms[index].eps).sqrt()
                row = row * norms[index].weight + norms[index].bias
    return row


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.log1p(x.exp()))


def values(ensemble: Any, state: Tensor, action: Tensor, activation: Any) -> list[Tensor]:
    row = torch.cat([state, action])
    return [layers(member, row, activation)[0] for member in ensemble.members]


def assert_gradients_equal(agent: Any, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Every loss and its gradient for every weight, where None is no gradient."""
    weights = [weight for weight in agent.parameters() if weight.requires_grad]
    assert len(weights) > 20
    for name in ours.keys() | theirs.keys():
        torch.testing.assert_close(ours[name], theirs[name])
        pairs = [
            torch.autograd.grad(losses[name], weights, retain_graph=True, allow_unused=True)
            for losses in (ours, theirs)
        ]
        for one, other in zip(*pairs, strict=True):
            assert (one is None) == (other is None), name
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pessimistic", [False, True])
@pytest.mark.parametrize("normalize_value", [False, True])
def test_fql_losses_are_the_publications(
    dataset: TensorDict, pessimistic: bool, normalize_value: bool
) -> None:
    agent = make(
        "fql",
        dataset,
        pessimistic=pessimistic,
        normalize_value=normalize_value,
        distillation=7.0,
        flow_steps=4,
    )
    batch = batch_of(agent, dataset)
    with recorded() as drawn:
        losses = agent.losses(batch.clone(), 0)
    following_noise, noise, start, time = drawn
    critic_errors, flow_errors, distances, reached = [], [], [], []
    for row in range(16):
        state, action = batch["observation"][row], batch["action"][row]
        outcome = batch["next"][row]
        with torch.no_grad():  # y = r + gamma Q(s', mu(s', z'))
            after = outcome["observation"]
            act = layers(agent.policy, torch.cat([after, following_noise[row]]), gelu).clamp(-1, 1)
            two = values(agent.target, after, act, gelu)
            value = min(two) if pessimistic else sum(two) / 2
            target = outcome["reward"][0] + GAMMA * value * (not outcome["terminated"][0])
        critic_errors.append(
            sum((q - target) ** 2 for q in values(agent.critic, state, action, gelu))
        )
        t = time[row]  # flow matching on the straight line from noise to action
        place = (1 - t) * start[row] + t * action
        velocity = layers(agent.flow, torch.cat([state, place, t]), gelu)
        flow_errors.append((velocity - (action - start[row])).square().mean())
        with torch.no_grad():
            place = noise[row]
            for step in range(4):
                now = torch.tensor([step / 4])
                place = place + 0.25 * layers(agent.flow, torch.cat([state, place, now]), gelu)
        act = layers(agent.policy, torch.cat([state, noise[row]]), gelu)
        distances.append((act - place.clamp(-1, 1)).square().mean())
        agent.critic.requires_grad_(False)
        reached.append(torch.stack(values(agent.critic, state, act.clamp(-1, 1), gelu)).mean())
        agent.critic.requires_grad_(True)
    found = torch.stack(reached)
    size = found.detach().abs().mean() if normalize_value else 1.0
    expected = {
        "qvalue": sum(critic_errors) / 16,
        "flow": sum(flow_errors) / 16,
        "distillation": 7.0 * sum(distances) / 16,
        "value": -found.mean() / size,
    }
    assert_gradients_equal(agent, losses, expected)


def schedule(steps: int) -> tuple[list[float], list[float]]:
    """beta_i and alpha-bar_i of the variance-preserving schedule, i = 1 ... T."""
    betas, left, product = [], [], 1.0
    for i in range(1, steps + 1):
        betas.append(1 - math.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * i - 1) / steps**2))
        product *= 1 - betas[-1]
        left.append(product)
    return betas, left


def embedding(network: Any, step: int) -> Tensor:
    """Sines and cosines of a step at eight frequencies, through a small perceptron."""
    angles = [step * 10_000 ** (-index / 7) for index in range(8)]
    waves = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
    return layers(network.time, waves, mish)


def denoised(network: Any, state: Tensor, draws: list[Tensor]) -> Tensor:
    """DDPM sampling of one action: posterior mean of the clipped estimate, and its variance."""
    steps = len(draws)
    betas, left = schedule(steps)
    place = draws[0]
    for i in reversed(range(steps)):
        noise = layers(network.network, torch.cat([place, embedding(network, i), state]), mish)
        clean = (place - math.sqrt(1 - left[i]) * noise) / math.sqrt(left[i])
        clean = clean.clamp(-1, 1)
        before = left[i - 1] if i else 1.0
        place = (
            math.sqrt(before) * betas[i] / (1 - left[i]) * clean
            + math.sqrt(1 - betas[i]) * (1 - before) / (1 - left[i]) * place
        )
        if i:
            deviation = math.sqrt(betas[i] * (1 - before) / (1 - left[i]))
            place = place + deviation * draws[steps - i]
    return place.clamp(-1, 1)


@pytest.mark.parametrize("max_backup", [False, True])
def test_diffusion_ql_losses_are_the_publications(dataset: TensorDict, max_backup: bool) -> None:
    agent = make("diffusion_ql", dataset, max_backup=max_backup, value_weight=0.7)
    with torch.no_grad():  # so that it differs from the actor
        for weight in agent.average.parameters():
            weight.mul_(0.9)
    batch = batch_of(agent, dataset)
    with recorded() as drawn:
        losses = agent.losses(batch.clone(), 0)
    following_draws, draws = drawn[:5], drawn[5:10]
    coin, step, noise = drawn[10:]
    assert following_draws[0].shape == (10 if max_backup else 1, 16, 2)
    _, left = schedule(5)
    critic_errors, noise_errors, reached = [], [], []
    for row in range(16):
        state, action = batch["observation"][row], batch["action"][row]
        outcome = batch["next"][row]
        with torch.no_grad():
            after = outcome["observation"]
            found = []
            for number in range(len(following_draws[0])):
                own = [draw[number, row] for draw in following_draws]
                act = denoised(agent.average, after, own)
                found.append(torch.stack(values(agent.target, after, act, mish)))
            value = torch.stack(found).max(0).values.min()
            target = outcome["reward"][0] + GAMMA * value * (not outcome["terminated"][0])
        critic_errors.append(
            sum((q - target) ** 2 for q in values(agent.critic, state, action, mish))
        )
        kept = left[int(step[row])]
        noisy = math.sqrt(kept) * action + math.sqrt(1 - kept) * noise[row]
        time = embedding(agent.actor, int(step[row]))
        guess = layers(agent.actor.network, torch.cat([noisy, time, state]), mish)
        noise_errors.append((guess - noise[row]).square().mean())
        act = denoised(agent.actor, state, [draw[row] for draw in draws])
        agent.critic.requires_grad_(False)
        reached.append(torch.stack(values(agent.critic, state, act, mish)))
        agent.critic.requires_grad_(True)
    both = torch.stack(reached)
    one, other = (0, 1) if coin < 0.5 else (1, 0)
    expected = {
        "qvalue": sum(critic_errors) / 16,
        "cloning": sum(noise_errors) / 16,
        "value": -0.7 * both[:, one].mean() / both[:, other].abs().mean().detach(),
    }
    assert_gradients_equal(agent, losses, expected)


def test_diffusion_ql_clips_actor_and_critics_apart(dataset: TensorDict) -> None:
    agent = make("diffusion_ql", dataset, gradient_clip=0.5)
    (stage,) = agent.stages(dataset)
    optimizer = stage.make_optimizer()
    for scale, network in ((1e3, agent.critic), (1e-3, agent.actor)):
        for weight in network.parameters():
            weight.grad = torch.full_like(weight, scale)
    optimizer.step()
    norms = [
        torch.cat([weight.grad.flatten() for weight in network.parameters()]).norm()
        for network in (agent.critic, agent.actor)
    ]
    assert float(norms[0]) == pytest.approx(0.5, rel=1e-4)
    assert all(bool((weight.grad == 1e-3).all()) for weight in agent.actor.parameters())


def test_diffusion_ql_follows_its_average_late_and_seldom(dataset: TensorDict) -> None:
    agent = make("diffusion_ql", dataset)
    before = agent.average.network[0].weight.clone()
    for step in (0, 5, 995, 1001):
        agent.after_step(step)
    assert torch.equal(agent.average.network[0].weight, before)
    agent.after_step(1005)
    expected = 0.995 * before + 0.005 * agent.actor.network[0].weight
    torch.testing.assert_close(agent.average.network[0].weight, expected)


@pytest.mark.parametrize("name", ["fql", "diffusion_ql"])
def test_actions_are_sampled_or_not(name: str, dataset: TensorDict) -> None:
    agent = make(name, dataset).eval()
    observation = dataset["observation"][:9]
    generator = torch.Generator().manual_seed(1)
    drawn = [agent.act(observation, temperature=1.0, generator=generator) for _ in range(2)]
    assert not torch.allclose(*drawn)
    best = [agent.act(observation) for _ in range(2)]
    assert torch.equal(*best)
    torch.testing.assert_close(agent.act(observation[3]), best[0][3])


def test_diffusion_ql_prefers_valued_candidates(dataset: TensorDict) -> None:
    """One draw has probability softmax(Q / temperature); a cold one is the best candidate."""
    agent = make("diffusion_ql", dataset).eval()
    observation = dataset["observation"][:6]
    seen = agent.units.observation(observation)

    def value(temperature: float) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        found = [
            agent.target(seen, agent.units.action(agent.act(observation, **options))).min(0).values
            for options in [{"temperature": temperature, "generator": generator}] * 40
        ]
        return torch.stack(found).mean(0)

    with torch.no_grad():
        warm, cold = value(1e6), value(1e-6)
        assert (cold > warm).all()


@pytest.mark.parametrize("name", ["fql", "diffusion_ql", "td3_bc"])
def test_the_suite_scores_as_published(
    name: str, dataset: TensorDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "evaluate", lambda *_, **options: options)
    method = AgentMethod(make(name, dataset), published_steps=1)
    options: Any = run_episodes(method, dataset, Domain(name="none"), episodes=1, seed=0)
    assert options["deterministic"] is (name == "td3_bc")
