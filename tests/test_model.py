"""Model: raw units in and out, plans that answer to what was asked, ablations that ablate."""

import operator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mage_agent.model import MAGEModel
from mage_agent.types import TrajectoryWindow
from tests.tiny import (
    ACTION,
    HORIZON,
    SCALES,
    STATE,
    tiny_config,
    tiny_goal_model,
    tiny_model,
    tiny_windows,
)

SITES = ("autoencoder", "first_scale", "finer_scales", "condition_loss")


def ask(batch: int = 6, low: float = -50, high: float = 20) -> tuple[Tensor, Tensor]:
    """Observations, and returns between the smallest and the largest of the data."""
    return torch.randn(batch, STATE), torch.empty(batch, 1).uniform_(low, high)


def windows(batch: int = 6) -> TrajectoryWindow:
    td = tiny_windows(batch)
    return TrajectoryWindow(
        observation=td["observation"],
        action=td["action"],
        return_to_go=td["return_to_go"],
        mask=td["collector", "mask"],
    )


class TestAct:
    @pytest.mark.parametrize("lead", [(), (1,), (6,), (2, 3), (3, 1, 2)])
    @pytest.mark.parametrize("last", [(), (1,)])
    def test_any_leading_axes(self, lead: tuple[int, ...], last: tuple[int, ...]) -> None:
        model = tiny_model().double()
        observation = torch.randn(*lead, STATE).double()
        target = torch.empty(*lead, 1).uniform_(-50, 20).double()
        action = model.act(observation, target.view((*lead, *last)))
        assert action.shape == (*lead, ACTION)
        rows = [
            model.act(o, r)
            for o, r in zip(observation.reshape(-1, STATE), target.reshape(-1, 1), strict=True)
        ]
        torch.testing.assert_close(action.reshape(-1, ACTION), torch.stack(rows))

    def test_stays_inside_the_bounds(self) -> None:
        model = tiny_model()
        model.normalize_action.std.fill_(100.0)
        model.action_low.copy_(torch.tensor([-0.5, 0.0]))
        model.action_high.copy_(torch.tensor([0.25, 2.0]))
        action = model.act(*ask(100))
        assert (action >= model.action_low).all()
        assert (action <= model.action_high).all()
        assert (action == model.action_high).any()
        assert (action == model.action_low).any()

    def test_takes_environments_dtypes_and_gives_its_own(self) -> None:
        model, (observation, target) = tiny_model(), ask()
        action = model.act(observation, target)
        assert action.dtype == torch.float32
        torch.testing.assert_close(model.act(observation.double(), target.double()), action)
        assert model.act(observation.int(), target.int()).dtype == torch.float32

    def test_moves_nothing_and_builds_no_graph(self) -> None:
        model, observation_and_return = tiny_model(), ask()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        assert not model.act(*observation_and_return).requires_grad
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    @pytest.mark.parametrize("code_temperature", [0.0, 0.3, 1.0])
    def test_temperature_zero_is_deterministic_and_draws_nothing(
        self, code_temperature: float
    ) -> None:
        model, (observation, target) = tiny_model(code_temperature=code_temperature), ask()
        before = torch.get_rng_state()
        first = model.act(observation, target)
        assert torch.equal(first, model.act(observation, target))
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_generator_decides_the_samples_and_spares_the_global_one(self) -> None:
        model, (observation, target) = tiny_model(), ask()
        before = torch.get_rng_state()

        def sample(seed: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return model.act(observation, target, temperature=1.0, generator=generator)

        assert torch.equal(sample(1), sample(1))
        assert not torch.equal(sample(1), sample(2))
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_wrong_observation_says_what_was_expected(self) -> None:
        with pytest.raises(ValueError, match=r"\(6, 4\).*3"):
            tiny_model().act(torch.randn(6, 4), torch.zeros(6))

    def test_returns_that_do_not_go_with_the_observations_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"return_to_go has shape \(\).*\(6, 3\)"):
            tiny_model().act(torch.randn(6, 3), torch.tensor(1.0))

    def test_refuses_nonsensical_sizes(self) -> None:
        with pytest.raises(ValueError, match=r"observation_dim is 0 and action_dim is 2"):
            MAGEModel(tiny_config(), observation_dim=0, action_dim=2)


class TestSampling:
    def test_samples_follow_the_softmax(self, generator: torch.Generator) -> None:
        model, logits = tiny_model(), torch.randn(8)
        for temperature in (0.5, 1.0, 2.0):
            drawn = model.sample(logits.expand(20_000, 1, 8), temperature, generator)
            share = torch.bincount(drawn.flatten(), minlength=8) / 20_000
            expected = (logits / temperature).softmax(-1)
            torch.testing.assert_close(share, expected, atol=0.015, rtol=0)

    def test_the_likeliest_code_or_the_mean_at_a_temperature(self) -> None:
        logits = torch.randn(5, 2, 8)
        model = tiny_model()
        codes = model.quantizer.codes
        torch.testing.assert_close(model.pick(logits), codes[logits.argmax(-1)])
        for temperature in (0.3, 1.0):
            model = tiny_model(code_temperature=temperature)
            torch.testing.assert_close(
                model.pick(logits), (logits / temperature).softmax(-1) @ codes
            )
        torch.testing.assert_close(
            tiny_model(code_temperature=1e-4).pick(logits), codes[logits.argmax(-1)]
        )
        sampled = model.pick(logits, temperature=1.0).flatten(0, 1)
        assert all((code == codes).all(-1).any() for code in sampled)

    def test_straight_through_is_a_code_forwards_and_soft_backwards(self) -> None:
        model, logits = tiny_model(), torch.randn(5, 2, 8, requires_grad=True)
        chosen = model.straight_through(logits)
        for code in chosen.flatten(0, 1):
            assert torch.isclose(code, model.quantizer.codes).all(-1).any()
        chosen.square().sum().backward()
        assert (logits.grad.abs().sum(-1) > 0).all()


class TestPlan:
    @pytest.mark.parametrize("lead", [(6,), (1,)])
    def test_shapes(self, lead: tuple[int]) -> None:
        plan = tiny_model().plan(*ask(*lead))
        assert [ids.shape for ids in plan.token_ids] == [(*lead, length) for length in SCALES]
        assert all(ids.dtype == torch.int64 for ids in plan.token_ids)
        assert plan.latent.shape == (*lead, SCALES[-1], 4)
        assert plan.observation.shape == (*lead, HORIZON, STATE)
        assert plan.return_to_go.shape == (*lead, HORIZON, 1)
        assert plan.action.shape == (*lead, ACTION)
        assert plan.partial == ()

    @pytest.mark.parametrize("code_temperature", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_is_what_acting_does(self, code_temperature: float, temperature: float) -> None:
        model, (observation, target) = tiny_model(code_temperature=code_temperature), ask()

        def seeded() -> dict[str, Any]:
            return {"temperature": temperature, "generator": torch.Generator().manual_seed(3)}

        plan = model.plan(observation, target, **seeded())
        torch.testing.assert_close(plan.action, model.act(observation, target, **seeded()))
        if code_temperature == 0 or temperature:
            codes = [model.quantizer.lookup(ids) for ids in plan.token_ids]
            torch.testing.assert_close(plan.latent, model.quantizer.partial_sums(codes)[-1])

    def test_partial_plans_end_in_the_whole_one(self) -> None:
        model, (observation, target) = tiny_model(), ask()
        plan = model.plan(observation, target, partial=True)
        assert len(plan.partial) == len(SCALES)
        assert torch.equal(plan.partial[-1], plan.observation)
        assert (plan.partial[0] != plan.observation).any()
        torch.testing.assert_close(plan.observation, model.plan(observation, target).observation)

    def test_guided_and_unguided_differ_once_adapters_moved(self) -> None:
        model, (observation, target) = tiny_model(), ask()
        plain = model.plan(observation, target, guided=False)
        guided = model.plan(observation, target)
        assert (guided.observation != plain.observation).any()
        assert torch.equal(guided.latent, plain.latent)
        for adapter in model.decoder.adapters:
            torch.nn.init.zeros_(adapter.up.weight)
        assert torch.equal(model.plan(observation, target).observation, plain.observation)

    def test_units_are_the_environments(self) -> None:
        """The same plan in other units: scale the data, and what comes out scales with it."""
        observation, target = torch.randn(6, STATE), torch.zeros(6, 1)
        model = tiny_model()
        before = model.plan(observation, target)
        model.normalize_observation.mean.mul_(1000).add_(5)
        model.normalize_observation.std.mul_(1000)
        after = model.plan(1000 * observation + 5, target)
        expected = 1000 * before.observation + 5
        torch.testing.assert_close(after.observation, expected, rtol=1e-3, atol=1e-1)
        torch.testing.assert_close(after.action, before.action, rtol=1e-3, atol=1e-4)


class TestReturnToGo:
    def test_update_inverts_the_discounted_sum(self) -> None:
        model = tiny_model(discount=0.9)
        rewards, returns = [1.0, -2.0, 3.0], [0.0]
        for reward in reversed(rewards):
            returns.insert(0, reward + 0.9 * returns[0])
        asked = torch.tensor([returns[0]])
        for reward, left in zip(rewards, returns[1:], strict=True):
            asked = model.update_return_to_go(asked, torch.tensor([reward]))
            torch.testing.assert_close(asked, torch.tensor([left]), atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("shape", [(), (4,), (4, 1), (2, 3, 1)])
    def test_torch_and_numpy_agree_for_any_shape(self, shape: tuple[int, ...]) -> None:
        model = tiny_model()
        asked, reward = torch.rand(shape) * 10, torch.rand(shape)
        after = model.update_return_to_go(asked, reward)
        numpy = model.update_return_to_go(np.asarray(asked), np.asarray(reward))
        assert isinstance(numpy, np.ndarray | np.generic)
        assert after.shape == numpy.shape == shape
        np.testing.assert_allclose(numpy, after, rtol=1e-6)

    def test_stays_inside_what_the_data_holds(self) -> None:
        model = tiny_model()
        low, high = model.return_to_go_range
        assert (low, high) == (-50, 20)
        asked = model.update_return_to_go(torch.tensor([0.0, 0.0]), torch.tensor([1e6, -1e6]))
        assert asked.tolist() == [low, high]

    @pytest.mark.parametrize(("quantile", "expected"), [(1.0, 20), (0.5, -15), (0.0, -50)])
    def test_the_default_target_is_a_quantile_of_the_episodes(
        self, quantile: float, expected: float
    ) -> None:
        assert tiny_model(target_return=quantile).default_target_return == pytest.approx(expected)


class TestConditioning:
    """Where Table 7 removes the return, nothing of it is left."""

    @pytest.mark.parametrize("removed", SITES)
    def test_each_site_can_be_removed_alone(self, removed: str) -> None:
        sites = tuple(site for site in SITES if site != removed)
        model = tiny_model(return_conditioning=sites).double()
        latent = torch.randn(5, 4, 4).double()
        state, target = torch.randn(5, STATE).double(), torch.randn(5, 1).double()
        trajectory = torch.randn(5, HORIZON, STATE + 1).double()
        known, codes = torch.ones_like(target), [torch.randn(5, n, 4).double() for n in SCALES]
        model.transformer.blocks = torch.nn.ModuleList()  # or finer scales would hear the first

        def outputs(target: Tensor) -> dict[str, list[Tensor]]:
            first, *finer = model.logits(codes, state, target, known)
            unguided = model.decode(latent, state, target, guided=False)
            decoder_only = model._decoder_return(target)
            return {
                "autoencoder": [unguided, model.encoder(trajectory, decoder_only)],
                "first_scale": [first],
                "finer_scales": finer,
                "condition_loss": [
                    model.decode(latent, state, target, guided=True)
                    if removed == "autoencoder"
                    else adapter(torch.ones(5, 4, 16).double(), condition(target))
                    for adapter in model.decoder.adapters
                ],
            }

        def condition(target: Tensor) -> Tensor:
            return torch.cat([state, model._condition_return(target)], dim=-1)

        before, after = outputs(target), outputs(-target)
        for site in SITES:
            pairs = zip(before[site], after[site], strict=True)
            assert all(torch.equal(a, b) for a, b in pairs) == (site == removed), site

    def test_without_any_site_the_return_asked_for_changes_nothing(self) -> None:
        changes = {"return_conditioning": (), "trajectory": "S"}
        model, (observation, target) = tiny_model(**changes), ask()
        for part in ("action", "observation", "latent"):
            one = getattr(model.plan(observation, target), part)
            assert torch.equal(one, getattr(model.plan(observation, -target), part))
        tokens = model.tokenize(windows()).token_ids
        richer = windows()
        richer.return_to_go.neg_()
        assert all(map(torch.equal, tokens, model.tokenize(richer).token_ids))

    def test_with_all_sites_it_changes_the_action(self) -> None:
        model, (observation, target) = tiny_model(), ask()
        assert (model.act(observation, target) != model.act(observation, -target)).any()

    def test_guidance_strengthens_what_the_return_changes(self) -> None:
        state, target = torch.randn(6, STATE), torch.randn(6, 1)
        first: dict[float, Tensor] = {}
        for scale in (0.0, 1.0, 3.0):
            model = tiny_model(guidance_scale=scale, return_dropout=0.1)
            scores, _ = model.generate(state, target, model.pick)
            first[scale] = scores[0]
        torch.testing.assert_close(first[3.0] - first[0.0], 3 * (first[1.0] - first[0.0]))
        untold = tiny_model(guidance_scale=0.0, return_dropout=0.1)
        one, other = untold.plan(state, target), untold.plan(state, -target)
        assert all(map(torch.equal, one.token_ids, other.token_ids))

    def test_coarse_codes_that_are_given_are_followed(self) -> None:
        model, state, target = tiny_model(), torch.randn(5, STATE), torch.randn(5, 1)
        codes = [torch.randn(5, length, model.config.code_dim) for length in model.config.scales]
        for count in range(len(codes) + 1):
            picked: list[Tensor] = []

            def pick(logits: Tensor, kept: list[Tensor] = picked) -> Tensor:
                kept.append(logits)
                return model.pick(logits)

            scores, sums = model.generate(state, target, pick, codes[:count])
            assert all(map(operator.is_, picked, scores[count:]))
            assert len(picked) == len(codes) - count
            wanted = model.quantizer.partial_sums(codes)
            for ours, given in zip(sums[:count], wanted, strict=False):
                torch.testing.assert_close(ours, given)

    def test_an_expectile_bounds_what_is_asked(self) -> None:
        model, (observation, _) = tiny_model(return_expectile=0.9), ask()
        assert model.return_ceiling is not None
        ceiling = model.normalize_return.inverse(
            model.return_ceiling(model.normalize_observation(observation))
        )
        bounded = model.act(observation, ceiling)
        assert torch.equal(bounded, model.act(observation, ceiling + 1000))
        assert (model.act(observation, ceiling - 30) != bounded).any()
        free = tiny_model()
        assert (free.act(observation, ceiling) != free.act(observation, ceiling + 1000)).any()


class TestVariants:
    @pytest.mark.parametrize("trajectory", ["S", "A", "RS", "RSA"])
    def test_what_a_trajectory_holds(self, trajectory: str) -> None:
        model, window = tiny_model(trajectory=trajectory), windows()
        channels = model.trajectory(window)
        sizes = {"R": 1, "S": STATE, "A": ACTION}
        assert channels.shape == (6, HORIZON, sum(sizes[name] for name in trajectory))
        parts = model.split(channels)
        assert list(parts) == list(trajectory)
        if "R" in parts:
            torch.testing.assert_close(
                model.normalize_return.inverse(parts["R"]), window.return_to_go
            )
        if "S" in parts:
            torch.testing.assert_close(
                model.normalize_observation.inverse(parts["S"]), window.observation
            )
        if "A" in parts:
            torch.testing.assert_close(model.normalize_action.inverse(parts["A"]), window.action)
        plan = model.plan(*ask())
        assert plan.observation.shape == (6, HORIZON, STATE if "S" in trajectory else 0)
        assert plan.return_to_go.shape == (6, HORIZON, 1 if "R" in trajectory else 0)
        assert plan.action.shape == (6, ACTION)

    def test_explicit_inverse_dynamics_reads_the_decoded_states(self) -> None:
        model, (observation, target) = tiny_model(inverse_dynamics="explicit"), ask()
        plan = model.plan(observation, target)
        first_two = model.normalize_observation(plan.observation[:, :2]).flatten(1)
        action = model.inverse_dynamics(first_two, model.normalize_observation(observation))
        torch.testing.assert_close(model.denormalize_action(action), plan.action)

    def test_direction_is_that_from_the_achieved_goal_to_the_end_of_the_plan(self) -> None:
        model = tiny_goal_model()
        observation, target = torch.randn(6, STATE + 4), torch.randn(6)
        plan = model.plan(observation, target)
        way = plan.observation[:, -1, STATE : STATE + 2] - observation[:, STATE : STATE + 2]
        direction = way / way.norm(dim=-1, keepdim=True)
        state = model.normalize_observation(observation)
        action = model.inverse_dynamics(direction, state)
        torch.testing.assert_close(model.denormalize_action(action), plan.action)
        torch.testing.assert_close(model.act(observation, target), plan.action)

    def test_a_plan_of_goals_holds_nothing_else_of_the_observation(self) -> None:
        plan = tiny_goal_model().plan(torch.randn(6, STATE + 4), torch.randn(6), partial=True)
        for observation in (plan.observation, *plan.partial):
            assert observation.shape == (6, HORIZON, STATE + 4)
            goals = observation[..., STATE : STATE + 2]
            assert goals.isfinite().all()
            assert observation.isnan().sum() == observation.numel() - goals.numel()

    def test_the_goals_reach_inverse_dynamics_by_the_plan_alone(self) -> None:
        model = tiny_goal_model()
        direction, state = torch.randn(6, 2), torch.randn(6, STATE + 4)
        action = model.inverse_dynamics(direction, state)
        elsewhere, other_body = state.clone(), state.clone()
        elsewhere[:, STATE:] += 1
        other_body[:, :STATE] += 1
        assert torch.equal(action, model.inverse_dynamics(direction, elsewhere))
        assert (action != model.inverse_dynamics(direction, other_body)).any()

    @pytest.mark.parametrize(("observation_dim", "goal_dim"), [(7, 0), (4, 2)])
    def test_goals_must_leave_a_body(self, observation_dim: int, goal_dim: int) -> None:
        config = tiny_goal_model().config
        with pytest.raises(ValueError, match=f"goal_dim is {goal_dim}; of {observation_dim} ent"):
            MAGEModel(config, observation_dim=observation_dim, action_dim=2, goal_dim=goal_dim)

    def test_latent_inverse_dynamics_reads_the_latent(self) -> None:
        model, (observation, target) = tiny_model(), ask()
        plan = model.plan(observation, target)
        action = model.inverse_dynamics(plan.latent.flatten(1), observation)
        torch.testing.assert_close(model.denormalize_action(action), plan.action)

    @pytest.mark.parametrize("sees", ["none", "state", "state_and_return"])
    def test_state_and_return_reach_inverse_dynamics_only_when_told_to(self, sees: str) -> None:
        model = tiny_model(inverse_dynamics_condition=sees)
        latent, state, target = torch.randn(6, 4, 4), torch.randn(6, STATE), torch.ones(6, 1)
        action = model.read_action(latent, state, target)
        with_other_state = model.read_action(latent, -state, target)
        with_other_return = model.read_action(latent, state, -target)
        assert bool((action != with_other_state).any()) == (sees != "none")
        assert bool((action != with_other_return).any()) == (sees == "state_and_return")

    def test_one_scale_does_the_whole_thing(self) -> None:
        model, (observation, target) = tiny_model(num_scales=1), ask()
        assert model.config.scales == (4,)
        encoding = model.tokenize(windows())
        assert [ids.shape for ids in encoding.token_ids] == [(6, 4)]
        plan = model.plan(observation, target, partial=True)
        assert len(plan.partial) == len(plan.token_ids) == 1
        torch.testing.assert_close(plan.action, model.act(observation, target))

    @pytest.mark.parametrize("guidance", ["adapter", "decoder", "none"])
    def test_adapters_exist_where_they_guide(self, guidance: str) -> None:
        model = tiny_model(condition_guidance=guidance)
        assert len(model.decoder.adapters) == (2 if guidance == "adapter" else 0)

    def test_hidden_states_are_as_frequent_as_told_and_only_in_training(self) -> None:
        model = tiny_model(state_dropout=0.3, inverse_dynamics_condition="state")
        state = torch.randn(5000, STATE)
        assert model.hide_state(state) is None
        visible = model.train().hide_state(state)
        assert visible is not None
        assert set(visible.flatten().tolist()) == {0.0, 1.0}
        assert float(visible.mean()) == pytest.approx(0.7, abs=0.03)


class TestTokenize:
    def test_padding_changes_nothing(self) -> None:
        model = tiny_model()
        lengths = torch.tensor([1, 2, 5, 7, 11, 12])
        clean = tiny_windows(6, lengths=lengths)
        mask = clean["collector", "mask"][..., None]

        def tokens(filler: float) -> list[Tensor]:
            window = TrajectoryWindow(
                observation=clean["observation"].where(mask, torch.tensor(filler)),
                action=clean["action"].where(mask, torch.tensor(filler)),
                return_to_go=clean["return_to_go"].where(mask, torch.tensor(filler)),
                mask=mask[..., 0],
            )
            encoding = model.tokenize(window)
            return [*encoding.token_ids, encoding.latent, encoding.commitment]

        for filler in (1e6, torch.nan, torch.inf):
            for one, other in zip(tokens(0.0), tokens(filler), strict=True):
                assert torch.equal(one, other)

    def test_decoding_the_tokens_gives_what_encoding_gave(self) -> None:
        model = tiny_model()
        encoding = model.tokenize(windows())
        codes = [model.quantizer.lookup(ids) for ids in encoding.token_ids]
        torch.testing.assert_close(model.quantizer.partial_sums(codes)[-1], encoding.latent)
        assert encoding.latent.requires_grad


def test_statistics_travel_in_the_state() -> None:
    model, other = tiny_model(seed=1), tiny_model(seed=2)
    other.load_state_dict(model.state_dict())
    observation, target = ask()
    assert torch.equal(model.act(observation, target), other.act(observation, target))
    assert other.default_target_return == model.default_target_return
    assert other.return_to_go_range == model.return_to_go_range
