"""The baselines that plan: their samplers against slow oracles, their memory, what they inpaint."""

import importlib.util
import math
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from benchmarks.baselines import BASELINES, configure, unet
from benchmarks.baselines.planner import interpolated, sources, steps_left
from benchmarks.baselines.unet import Denoiser
from benchmarks.methods import QUESTIONS, expand, find_method
from benchmarks.methods import configure as configure_for
from mage_agent import AgentPolicy, dataset_from_arrays, fit
from mage_agent.memory import reset_rows

TINY: dict[str, dict[str, Any]] = {
    "diffuser": {"width": 8, "multipliers": [8], "horizon": 8, "diffusion_steps": 4},
    "hd": {"width": 8, "multipliers": [8], "horizon": 8, "jump": 4, "diffusion_steps": 4},
    "dv": {"width": 64, "depth": 1, "horizon": 3, "stride": 3, "candidates": 3, "planner_steps": 2},
}
TINY["tap"] = {
    "horizon": 6,
    "stride": 2,
    "codes": 4,
    "width": 32,
    "heads": 2,
    "layers": 1,
    "beam": 3,
    "expand": 2,
    "penalty": 1.0,
}
MAZES = ["diffuser", "hd"]


@pytest.fixture(scope="module")
def maze() -> TensorDict:
    """A point that drifts about; it is rewarded at some steps, and sees a goal."""
    rng, steps = np.random.default_rng(0), 240
    action = rng.uniform(-1, 1, size=(steps, 2)).astype(np.float32)
    last = np.arange(1, steps + 1) % 40 == 0
    state = np.zeros((steps, 4), dtype=np.float32)
    for t in range(1, steps):
        velocity = 0.9 * state[t - 1, 2:] + 0.3 * action[t - 1]
        state[t] = [*(state[t - 1, :2] + velocity), *velocity]
        state[t] *= 0 if last[t - 1] else 1
    goal = np.repeat(rng.normal(size=(steps // 40, 2)), 40, 0).astype(np.float32)
    entries = {"observation": state, "achieved_goal": state[:, :2], "desired_goal": goal}
    following = {key: np.roll(value, -1, 0) for key, value in entries.items()}
    reward = np.isin(np.arange(steps) % 40, (10, 11, 25)).astype(np.float32)
    none = np.zeros(steps, dtype=bool)
    return dataset_from_arrays(
        entries,
        action,
        reward,
        none,
        last,
        next_observations=following,
        action_low=-1,
        action_high=1,
    )


def make(name: str, maze: TensorDict, domain: str, kind: str = "umaze", **changes: Any) -> Any:
    """An untrained planner."""
    keys = ("observation",) if domain == "maze2d" else ()
    small = {**TINY[name], "observation_keys": keys, **changes}
    cls = BASELINES[name]
    return cls.from_dataset(maze, configure(cls, domain, kind, discount=0.9, **small), seed=0)


def alpha_bars(steps: int) -> list[float]:
    """Products of 1 - beta of the cosine schedule, as Nichol and Dhariwal define it."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    products, product = [], 1.0
    for t in range(steps):
        product *= 1 - min(1 - f((t + 1) / steps) / f(t / steps), 0.999)
        products.append(product)
    return products


def oracle_sample(model: Denoiser, known: Tensor, noise: list[Tensor], scale: float) -> Tensor:
    """One sequence after Algorithm 1 of Diffuser, entry by entry; ``noise`` is used in order."""
    products = alpha_bars(len(noise))
    x = noise[0].clone()
    for t in reversed(range(len(noise))):
        now, before = products[t], products[t - 1] if t else 1.0
        beta = 1 - now / before
        variance = beta * (1 - before) / (1 - now)
        x = torch.where(model.fixed, known, x)
        if scale and t >= 2:
            for _ in range(2):
                moved = x.clone().requires_grad_()
                model.value(moved[None], torch.tensor(t)).sum().backward()
                x = torch.where(model.fixed, x, x + scale * variance * moved.grad)
        with torch.no_grad():
            clean = model(x[None], torch.tensor(t))[0].clamp(-1, 1)
        # q(x_{t-1} | x_t, x_0), Eq. 6 and 7 of Ho et al., 2020
        mean = math.sqrt(before) * beta / (1 - now) * clean
        mean = mean + math.sqrt(now / before) * (1 - before) / (1 - now) * x
        x = mean + (math.sqrt(variance) * noise[len(noise) - t] if t else 0)
    return torch.where(model.fixed, known, x)


def tap(maze: TensorDict, **changes: Any) -> Any:
    """An untrained TAP of four tokens, three in a row, whose codes differ."""
    method = make("tap", maze, "maze2d", **changes)
    with torch.no_grad():
        codebook = method.autoencoder.codebook._codebook
        codebook.embed.copy_(torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(7)))
        codebook.initted.fill_(True)
    return method.eval()


def tap_score(method: Any, first: Tensor, tokens: tuple[int, ...]) -> tuple[float, Tensor]:
    """Section 3.3 of TAP, term by term: the score of tokens, and the trajectory they stand for."""
    codes = method.autoencoder.codes[torch.tensor([tokens])]
    steps = method.autoencoder.decode(codes, first)[0]
    mean, spread = method.reward_units.tolist()
    returns = method.units.return_to_go
    score = 0.0
    for t in range(len(steps) - 1):
        score += 0.9**t * (float(steps[t, -2]) * spread + mean)
    last = float(steps[-1, -1]) * float(returns.std) + float(returns.mean)
    score += 0.9 ** (len(steps) - 1) * last
    logp = 0.0
    for place, token in enumerate(tokens):
        logits = method.prior(codes[:, :place], first)[0, -1]
        logp += float(logits[token] - logits.exp().sum().log())
    penalty = method.config.penalty * min(logp, len(tokens) * math.log(method.config.likely))
    return score + penalty, steps


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_a_wide_beam_is_an_exhaustive_search(penalty: float, maze: TensorDict) -> None:
    method = tap(maze, penalty=penalty, beam=64, expand=4, likely=0.3)
    observation = method.units.concatenate(maze)[[3, 70]]
    with torch.no_grad():
        found = method.plan(observation, sources(observation, 0.0, None))
        for row in range(2):
            first = method.units.observation(observation[row : row + 1])
            scored = [tap_score(method, first, each) for each in product(range(4), repeat=3)]
            best = max(scored, key=lambda pair: pair[0])
            torch.testing.assert_close(found[row], best[1], atol=1e-5, rtol=1e-4)
        narrow = tap(maze, penalty=penalty, beam=1, expand=1, likely=0.3)
        greedy = narrow.plan(observation[:1], sources(observation[:1], 0.0, None))
        tokens: tuple[int, ...] = ()
        for _ in range(3):
            codes = narrow.autoencoder.codes[torch.tensor([tokens], dtype=torch.int64)]
            logits = narrow.prior(codes, narrow.units.observation(observation[:1]))
            tokens = (*tokens, int(logits[0, -1].argmax()))
        first = narrow.units.observation(observation[:1])
        torch.testing.assert_close(
            greedy[0], tap_score(narrow, first, tokens)[1], atol=1e-5, rtol=1e-4
        )


def test_taps_beam_begins_as_wide_as_it_goes_on(
    maze: TensorDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = tap(maze, beam=2, expand=2)
    observation = method.units.concatenate(maze)[[3, 70]]
    widths, decoded = [], method.decoded

    def spy(tokens: Tensor, first: Tensor) -> Tensor:
        widths.append((tokens.shape[1], len(tokens[0, :, 0].unique())))
        found: Tensor = decoded(tokens, first)
        return found

    monkeypatch.setattr(method, "decoded", spy)
    with torch.no_grad():
        method.plan(observation, sources(observation, 0.0, None))
    assert widths[0] == (4, 4)  # all of the four tokens that there are
    assert [count for count, _ in widths[1:]] == [4, 4]


def test_tap_sees_no_token_before_its_turn(maze: TensorDict) -> None:
    method = tap(maze)
    first, codes = torch.randn(2, 4), torch.randn(2, 2, 32)
    other = codes.clone()
    other[:, 1] += 1
    with torch.no_grad():
        for network, early in ((method.prior, 2), (method.autoencoder.decode, 2)):
            one, two = network(codes, first), network(other, first)
            torch.testing.assert_close(one[:, :early], two[:, :early])
            assert not torch.isclose(one[:, early:], two[:, early:]).all(-1).any()
    steps = torch.randn(2, 6, 8)
    with torch.no_grad():
        codes, tokens, _ = method.autoencoder.encode(steps)
    assert tokens.shape == (2, 3)
    torch.testing.assert_close(codes, method.autoencoder.codes[tokens])


def test_tap_weighs_actions_by_how_little_they_vary(maze: TensorDict) -> None:
    still = maze.copy()
    still["action"] = 0.01 * maze["action"]
    losses = []
    for data in (maze, still):
        method = tap(data)
        method.fit_units(data)
        method.autoencoder.decode = lambda codes, first: torch.zeros(len(codes), 6, 8)
        spread = data["action"].std(0, correction=0)
        step = torch.zeros(2, 6, 8)
        step[..., :2] = spread  # one standard deviation off
        batch = {"step": step, "observation": torch.zeros(2, 6, 4)}
        batch |= {"collector": {"mask": torch.ones(2, 6, dtype=torch.bool)}}
        loss = method.autoencoder_losses(TensorDict(batch, [2]), 0)["autoencoder"]
        losses.append(float(loss.detach()))
        codes = method.autoencoder.encode(step)[2]
        assert losses[-1] - float(codes.detach()) == pytest.approx(5.0 * 2 / 8, rel=1e-3)


def test_tap_trains_one_network_at_a_time(maze: TensorDict) -> None:
    method = make("tap", maze, "maze2d", batch_size=8)
    seen: dict[str, dict[str, Tensor]] = {}
    before = {key: value.clone() for key, value in method.state_dict().items()}

    def watch(progress: Any) -> None:
        seen[progress.stage] = {k: v.clone() for k, v in method.state_dict().items()}

    fit(method, maze, steps=8, device="cpu", progress_bar=False, callback=watch)
    after = method.state_dict()
    moved = {
        key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])
    }
    assert moved == {"autoencoder", "prior"}
    halfway = seen["tap/autoencoder"]
    for key, value in after.items():
        if key.startswith("autoencoder"):
            assert torch.equal(value, halfway[key])  # the codebook, too, stays for the prior
        elif key.startswith("prior"):
            assert torch.equal(before[key], halfway[key])


@pytest.mark.parametrize("scale", [0.0, 5.0])
def test_denoising_is_the_publications_algorithm(scale: float) -> None:
    torch.manual_seed(0)
    steps, shape = 6, (8, 5)
    model = Denoiser(
        8, 2, 3, [1], width=8, multipliers=[1, 8], steps=steps, valued=scale > 0
    ).eval()
    known, observation = torch.zeros(3, *shape).uniform_(-1, 1), torch.rand(3, 4)
    guide = {"guide_scale": scale, "guide_steps": 2} if scale else {}
    found = model.sample(known, sources(observation, 0.0, None), **guide).detach()
    for row in range(3):
        (generator,) = sources(observation[row : row + 1], 0.0, None)
        noise = [torch.randn(1, *shape, generator=generator)[0] for _ in range(steps)]
        expected = oracle_sample(model, known[row], noise, scale)
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-3)
    fixed = torch.zeros(shape, dtype=torch.bool)
    fixed[0, 2:] = fixed[-1, 3] = True
    assert torch.equal(found[:, fixed], known[:, fixed])  # to the bit
    assert not torch.isclose(found[:, ~fixed], known[:, ~fixed]).any()


def test_guidance_raises_the_value_and_the_best_candidate_is_kept() -> None:
    torch.manual_seed(1)
    model = Denoiser(8, 2, 3, [], width=8, multipliers=[1, 8], steps=6, valued=True).eval()
    known, observation, end = torch.zeros(2, 8, 5), torch.rand(2, 4), torch.tensor(0)
    climbed = model.climb(known, torch.tensor(4), 50.0)
    assert (model.value(climbed, torch.tensor(4)) > model.value(known, torch.tensor(4))).all()
    with torch.no_grad():
        best = model.best(known, sources(observation, 0.0, None, candidates=5), 5)
        noise = sources(observation, 0.0, None, candidates=5)
        one_by_one = [model.sample(known, noise[number::5]) for number in range(5)]
        values = torch.stack([model.value(each, end) for each in one_by_one])
    torch.testing.assert_close(model.value(best, end), values.max(0).values)
    assert values.std() > 0


def test_losses_leave_out_what_is_known_and_what_is_padding() -> None:
    torch.manual_seed(2)
    model = Denoiser(
        4, 1, 2, [0, 1], width=8, multipliers=[1], steps=3, action_weight=7.0, valued=False
    )
    clean, mask = torch.rand(5, 4, 3), torch.ones(5, 4, dtype=torch.bool)
    mask[2, 2:] = False

    class Constant(nn.Module):
        def forward(self, x: Tensor, step: Tensor, return_dict: bool) -> tuple[Tensor]:
            return (torch.full_like(x, 0.25),)

    model.network = Constant()
    total = 0.0
    for row in range(5):
        for t in range(4):
            for entry in range(3):
                known = entry > 0 and t in (0, 3)
                weight = 7.0 if (t, entry) == (0, 0) else 1.0
                real = bool(mask[row, t]) and not known
                total += weight * real * float(clean[row, t, entry] - 0.25) ** 2
    torch.testing.assert_close(model.loss(clean, mask), torch.tensor(total / clean.numel()))


@pytest.mark.parametrize("name", MAZES)
@pytest.mark.parametrize("domain", ["maze2d", "pointmaze"])
def test_plans_begin_here_and_end_at_the_goal(name: str, domain: str, maze: TensorDict) -> None:
    method = make(name, maze, domain)
    units = method.units
    observation = units.concatenate(maze)[5:9]
    with torch.no_grad():
        plan = method.plan(observation, method.sources(observation, 0.0, None))
    assert plan.shape[1:] == method.plan_shape
    states = method.states(plan)
    seen = 4 if domain == "maze2d" else 6  # the goal is not planned
    order = [key for key, size in units.observation_sizes.items() for _ in range(size)]
    kept = [i for i, key in enumerate(order) if key != "desired_goal"]
    assert states.shape[-1] == len(kept) == seen
    torch.testing.assert_close(states[:, 0], observation[:, kept], atol=1e-4, rtol=1e-4)
    if domain == "maze2d":
        goal = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(4, 4)
        torch.testing.assert_close(states[:, -1], goal, atol=1e-4, rtol=1e-4)
    else:
        ends = [place for place, i in enumerate(kept) if order[i] == "achieved_goal"]
        torch.testing.assert_close(
            states[:, -1, ends], maze["desired_goal"][5:9], atol=1e-4, rtol=1e-4
        )


def test_hd_joins_its_segments_at_the_subgoals(maze: TensorDict) -> None:
    method = make("hd", maze, "maze2d")
    observation = method.units.concatenate(maze)[:3]
    noise = method.sources(observation, 0.0, None)
    with torch.no_grad():
        subgoals = method.best(observation, method.sources(observation, 0.0, None))
        plan = method.plan(observation, noise)
    assert subgoals.shape == (3, 3, 4)
    assert torch.equal(plan[:, ::4, 2:], subgoals)
    segments = method.trained["segments"]
    known = torch.zeros(1, 5, 6)  # one segment, denoised alone
    known[0, 0, 2:], known[0, -1, 2:] = subgoals[1, 1], subgoals[1, 2]
    with torch.no_grad():
        seeds = sources(observation[1:2], 0.0, None, candidates=2)  # a plan has two segments
        alone = segments.sample(known, seeds[1:])
    torch.testing.assert_close(plan[1, 4:9], alone[0], atol=1e-5, rtol=1e-4)


def test_the_pd_law_follows_one_plan(maze: TensorDict) -> None:
    method = make("diffuser", maze, "maze2d", open_loop=True)
    calls = []
    sampler, method.plan = method.plan, lambda *given: calls.append(1) or sampler(*given)
    policy, state = AgentPolicy(method), None
    observed = maze["observation"].numpy()
    planned: Any = None
    for t in range(11):  # the plan has eight states
        action, state = policy.predict(observed[t : t + 1], state, deterministic=True)
        if planned is None:
            planned = method.states(torch.tensor(state[0]))[0].numpy()
        target = planned[min(t + 1, 7)].copy()
        if t + 1 > 7:
            target[2:] = 0
        error = target - observed[t]
        np.testing.assert_allclose(action[0], np.clip(error[:2] + error[2:], -1, 1), atol=1e-5)
    assert len(calls) == 1
    for wrong in ({"observation_keys": ("achieved_goal",)}, {"observation_keys": ()}):
        with pytest.raises(ValueError, match="open_loop needs two actions, and observations"):
            make("diffuser", maze, "kitchen", open_loop=True, **wrong)


@pytest.mark.parametrize("name", TINY)
def test_episodes_side_by_side_keep_plans_of_their_own(name: str, maze: TensorDict) -> None:
    method = make(name, maze, "maze2d", replan_every=3)
    observation = method.units.concatenate(maze)
    none = torch.zeros(2, 1)

    def roll(rows: list[int], resets: dict[int, int]) -> Tensor:
        state, actions = method.initial_state(len(rows)), []
        for t in range(7):
            if t in resets and resets[t] in rows:
                begins = torch.tensor([row == resets[t] for row in rows])
                state = reset_rows(state, method.initial_state(len(rows)), begins)
            now = torch.stack([observation[50 * row + t] for row in rows])
            with torch.no_grad():
                action, state = method.decide(now, none[: len(rows)], state)
            actions.append(torch.cat([action, state["plan"].flatten(1)], 1))
        return torch.stack(actions, 1)

    together = roll([0, 1], {4: 1})
    torch.testing.assert_close(together[:1], roll([0], {}), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(together[1:], roll([1], {4: 1}), atol=1e-4, rtol=1e-3)
    assert not torch.equal(together[1:], roll([1], {}))


def test_noise_follows_from_the_observation_without_temperature_only(maze: TensorDict) -> None:
    method = make("diffuser", maze, "maze2d").eval()
    observation = method.units.concatenate(maze)[:4]
    generator = torch.Generator().manual_seed(3)
    drawn = [method.act(observation, temperature=1.0, generator=generator) for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(*(method.act(observation) for _ in range(2)))
    first = [
        torch.rand(2, generator=each) for each in sources(observation, 0.0, None, candidates=2)
    ]
    assert len({tuple(each.tolist()) for each in first}) == 8  # in no two states the same


def test_dv_learns_plans_that_end_at_the_reward(maze: TensorDict) -> None:
    reward, episode = maze["next", "reward"].flatten(), maze["episode"]
    left = steps_left(reward, episode)
    for row in range(len(reward)):
        expected = -1
        for ahead in range(len(reward) - row):
            if episode[row + ahead] != episode[row]:
                break
            if reward[row + ahead] > 0:
                expected = ahead
                break
        assert int(left[row]) == expected
    assert {int(each) for each in left.sign()} == {-1, 0, 1}
    method = make("dv", maze, "maze2d", longest=8)
    columns = method.columns(maze)
    known = columns["known"] > 0
    assert torch.equal(known, (left >= 0) & (left <= 8))
    assert torch.equal(columns["value"][left == 0], torch.ones(int((left == 0).sum())))
    order = columns["value"][known]
    torch.testing.assert_close(
        order[None] - order[:, None], (left[known][:, None] - left[known]) / 4
    )


def test_dv_losses_are_the_publications(maze: TensorDict) -> None:
    """Given the noise that it draws: strided states that stand still from the reward on."""
    method = make("dv", maze, "maze2d").train()
    columns = method.columns(maze)
    starts = (columns["left"] == 4).nonzero().flatten()[:1]
    starts = torch.cat([starts, (columns["left"] < 0).nonzero().flatten()[:1]])
    index = starts[:, None] + torch.arange(7)
    assert (columns["episode"][index] == columns["episode"][index[:, :1]]).all()
    batch = columns[index]
    torch.manual_seed(5)
    found = method.losses(batch, 0)
    torch.manual_seed(5)
    seen, networks = batch["observation"], method.trained
    states = torch.stack([seen[0, [0, 3, 4]], seen[1, [0, 0, 0]]])
    noise = torch.randn_like(states)
    at = torch.randint(1000, (2,))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = (1 - betas).cumprod(0)[at].float()[:, None, None]
    noisy = bars.sqrt() * states + (1 - bars).sqrt() * noise
    noisy[:, 0] = states[:, 0]
    error = (networks["planner"](noisy, at) - noise)[0, 1:].square().mean()
    value = (networks["critic"](states)[0] - batch["value"][0, 0]).square()
    torch.testing.assert_close(found["planner"], error / 2)  # the second row has no reward to come
    torch.testing.assert_close(found["critic"], value / 2)
    drawn = torch.randn(2, 2)
    at = torch.randint(10, (2,))
    bars = torch.tensor(alpha_bars(10))[at][:, None]
    now, then = seen[:, 0].clone(), seen[:, 3].clone()
    then[:, :2] -= now[:, :2]
    now[:, :2] = 0
    noisy = bars.sqrt() * batch["action"][:, 0] + (1 - bars).sqrt() * drawn
    moved = networks["inverse"](noisy, at, torch.cat([now, then], -1))
    torch.testing.assert_close(found["inverse"], (moved - drawn).square().mean())


def test_dv_weighs_plans_by_their_value_and_failures_cost(maze: TensorDict) -> None:
    method = make("dv", maze, "hopper").train()
    assert (method.config.value_weight, method.config.termination_penalty) == (2.0, -100.0)
    failed = maze.clone()
    failed["next", "terminated"][39] = True
    plain, fallen = method.columns(maze), method.columns(failed)
    assert float(fallen["value"][39]) == float(fallen["value"].min()) == -1
    assert plain["value"][0] > fallen["value"][0]
    assert float(maze["next", "reward"].min()) == 0  # the data stay as they are
    batch = fallen[torch.stack([torch.arange(30, 37), torch.arange(3, 10)])]
    torch.manual_seed(5)
    weighed = method.losses(batch, 0)["planner"]
    errors = []
    for row in range(2):
        torch.manual_seed(5)
        only = batch.clone()
        only["known"][1 - row] = 0
        only["value"][:] = 1  # of weight 1
        errors.append(method.losses(only, 0)["planner"])
    weights = (2 * (batch["value"][:, 0] - 1)).exp()
    torch.testing.assert_close(weighed, weights[0] * errors[0] + weights[1] * errors[1])


def test_dv_averages_its_planner_for_longest(maze: TensorDict) -> None:
    method = make("dv", maze, "maze2d")
    (stage,) = method.stages(maze)
    with torch.no_grad():
        for parameter in method.trained.parameters():
            parameter.zero_()
        stage.begin()
        for step in range(3000):
            stage.after_step(step)
        for parameter in method.trained.parameters():
            parameter.fill_(1.0)
        stage.after_step(3000)
    stage.end()
    moved = {
        name: float(next(network.parameters()).detach().mean())
        for name, network in method.trained.items()
    }
    expected = {"planner": 1 - 3001 / 3010, "critic": 1.0, "inverse": 0.005}
    assert moved == pytest.approx(expected, rel=1e-3)


def test_guidance_is_of_raw_returns(maze: TensorDict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The publication's ``normed: False``: where rewards are 10 times as large, so are moves."""
    scales = []

    def climb(self: Denoiser, noisy: Tensor, step: Tensor, scale: float) -> Tensor:
        scales.append(scale)
        return noisy

    monkeypatch.setattr(Denoiser, "climb", climb)
    richer = maze.clone()
    richer["next", "reward"] *= 10
    for data in (maze, richer):
        method = make("diffuser", data, "hopper", "medium", candidates=1)
        observation = method.units.concatenate(data)[:2]
        with torch.no_grad():
            method.plan(observation, sources(observation, 0.0, None, candidates=1))
    returns = make("diffuser", maze, "hopper").returns_to_go(maze)
    span = float(returns.max() - returns.min()) / 2
    assert [min(scales), max(scales)] == pytest.approx([0.1 * span, span])


def test_dv_chooses_the_best_of_its_samples(maze: TensorDict) -> None:
    method = make("dv", maze, "maze2d")
    observation = method.units.concatenate(maze)[3:5]
    now, networks = method.units.observation(observation), method.trained
    bars = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    with torch.no_grad():
        plan = method.plan(observation, method.sources(observation, 0.0, None))
        for row in range(2):
            plans = []
            for generator in sources(observation[row : row + 1], 0.0, None, candidates=3):
                x = torch.randn(1, 3, 4, generator=generator)
                for t, before in ((999, 499), (499, None)):  # DDIM, Eq. 12 of Song et al., 2021
                    x[:, 0] = now[row]
                    noise = networks["planner"](x, torch.tensor([t]))
                    bar = float(bars[t])
                    clean = (x - math.sqrt(1 - bar) * noise) / math.sqrt(bar)
                    bar = 1.0 if before is None else float(bars[before])
                    x = math.sqrt(bar) * clean + math.sqrt(1 - bar) * noise
                x[:, 0] = now[row]
                plans.append(x[0])
            values = networks["critic"](torch.stack(plans))
            expected = plans[int(values.argmax())]
            torch.testing.assert_close(plan[row], expected, atol=1e-2, rtol=1e-3)
    dense = interpolated(plan, 3)
    assert dense.shape == (2, 7, 4)
    torch.testing.assert_close(dense[:, ::3], plan)
    torch.testing.assert_close(dense[:, 4], (2 * plan[:, 1] + plan[:, 2]) / 3)


def test_open_loop_has_names_of_its_own_that_all_leaves_out() -> None:
    for name in ("diffuser", "hd", "dv"):
        closed, opened = find_method(name), find_method(f"{name}-open")
        changes = QUESTIONS[f"{name}-open"].changes
        ours = configure_for(closed, "local/maze2d/umaze-v0")
        theirs = configure_for(opened, "local/maze2d/umaze-v0", **changes)
        assert ours.to_dict() == {**theirs.to_dict(), "open_loop": False}
        assert theirs.open_loop
        assert name in expand(["all"])
        assert f"{name}-open" not in expand(["all"])
        assert expand([f"{name}-open"]) == [f"{name}-open"]


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    path = Path(unet.__file__)
    copy = importlib.util.module_from_spec(
        found := importlib.util.spec_from_file_location("copy_of_unet", path)
    )
    with pytest.raises(ImportError, match=r"'diffusers'.* pip install '\.\[benchmarks\]'"):
        found.loader.exec_module(copy)


def test_sizes_are_published_or_small() -> None:
    cls = BASELINES["diffuser"]
    paper = configure_for(cls, "local/maze2d/large-v0", paper_size=True)
    small = configure_for(cls, "local/maze2d/large-v0")
    assert (paper.horizon, paper.diffusion_steps, paper.width) == (384, 256, 32)
    assert (small.horizon, small.width) == (384, 16)
    assert paper.goal == small.goal == (7.0, 9.0, 0.0, 0.0)
    for name in ("ogbench/pointmaze/large-navigate-v0", "maze2d-large-dense-v1"):
        assert configure_for(cls, name, paper_size=True).horizon == 384
        assert configure_for(BASELINES["hd"], name, paper_size=True).horizon == 390
    hopper = configure_for(cls, "hopper-medium-v2", paper_size=True)
    assert (hopper.candidates, hopper.guide_scale, hopper.multipliers) == (64, 0.1, (1, 2, 4, 8))
    hd = configure_for(BASELINES["hd"], "local/maze2d/medium-v0", paper_size=True)
    assert (hd.horizon, hd.jump, hd.goal[0], hd.diffusion_steps) == (255, 15, 6.0, 256)
    assert (hd.segment_diffusion_steps, hd.segment_action_weight) == (128, 10.0)
    expert = configure_for(cls, "hopper-medium-expert-v2", paper_size=True)
    assert (expert.guide_scale, expert.unguided, expert.termination_penalty) == (1e-4, 4, -100.0)
    dv = configure_for(BASELINES["dv"], "D4RL/antmaze/large-play-v1", paper_size=True)
    assert (dv.horizon, dv.stride, dv.depth, dv.average_decay) == (40, 25, 8, 0.9999)
    uneven = configure(BASELINES["hd"], "pen", "", discount=0.9, horizon=7, jump=2)
    with pytest.raises(ValueError, match="multiple of jump"):
        BASELINES["hd"](uneven, observation_dim=3, action_dim=2)
