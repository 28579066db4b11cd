"""Model: raw units in and out, plans that answer to what was asked, ablations that ablate."""

import operator
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mage_agent import MAGEModel
from mage_agent.mage.sampling import sample_ids, straight_through
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
        model.units.action.std.fill_(100.0)
        model.units.action_low.copy_(torch.tensor([-0.5, 0.0]))
        model.units.action_high.copy_(torch.tensor([0.25, 2.0]))
        action = model.act(*ask(100))
        assert (action >= model.units.action_low).all()
        assert (action <= model.units.action_high).all()
        assert (action == model.units.action_high).any()
        assert (action == model.units.action_low).any()

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

    @pytest.mark.parametrize("shape", [(2,), (5, 1), (6, 2)])
    def test_returns_that_do_not_go_with_the_observations_are_refused(
        self, shape: tuple[int, ...]
    ) -> None:
        message = rf"return_to_go has shape {re.escape(str(shape))}.*\(6, 3\)"
        with pytest.raises(ValueError, match=message):
            tiny_model().act(torch.randn(6, 3), torch.ones(shape))

    def test_one_return_is_asked_of_all(self) -> None:
        model, (observation, _) = tiny_model(), ask()
        expected = model.act(observation, torch.full((6, 1), 7.0))
        for asked in (7.0, 7, torch.tensor(7.0), torch.tensor([7.0])):
            assert torch.equal(model.act(observation, asked), expected)
        assert (model.act(observation, -7.0) != expected).any()

    @pytest.mark.parametrize(("observation", "action"), [(0, 2), (3, 0), (-1, 2)])
    def test_refuses_nonsensical_sizes(self, observation: int, action: int) -> None:
        message = f"observation_dim is {observation} and action_dim is {action}; all sizes must"
        with pytest.raises(ValueError, match=message):
            MAGEModel(tiny_config(), observation_dim=observation, action_dim=action)

    @pytest.mark.parametrize("sizes", [7, {"observation": 7}, {"observation": 3, "goal": 4}])
    def test_every_entry_of_the_observation_needs_its_size(self, sizes: Any) -> None:
        config = tiny_goal_model().config
        with pytest.raises(ValueError, match=r"must hold the size of each of .*desired_goal"):
            MAGEModel(config, observation_dim=sizes, action_dim=2)

    @pytest.mark.parametrize(("body", "achieved", "desired"), [(3, 2, 1), (3, 1, 2), (0, 2, 2)])
    def test_goals_must_be_alike_and_leave_a_body(
        self, body: int, achieved: int, desired: int
    ) -> None:
        config = tiny_goal_model().config
        sizes = {"observation": body, "achieved_goal": achieved, "desired_goal": desired}
        if not body:
            del sizes["observation"]
            config = config.replace(observation_keys=tuple(sizes))
        with pytest.raises(ValueError, match=r"'desired_goal': \d}; achieved and desired goal"):
            MAGEModel(config, observation_dim=sizes, action_dim=2)
        plain = tiny_config(observation_keys=tuple(sizes))
        model = MAGEModel(plain, observation_dim=sizes, action_dim=2)  # which plans no goals
        assert model.observation_dim == body + achieved + desired

    def test_a_model_says_what_it_takes_to_build_it(self) -> None:
        for model in (tiny_model(), tiny_goal_model()):
            again = MAGEModel(model.config, **model.sizes)
            again.load_state_dict(model.state_dict())
            assert again.sizes == model.sizes
            asked = torch.randn(6, model.observation_dim), torch.randn(6)
            assert torch.equal(again.eval().act(*asked), model.act(*asked))
        assert tiny_model().config.observation_keys == ("observation",)


class TestSampling:
    def test_samples_follow_the_softmax(self, generator: torch.Generator) -> None:
        logits = torch.randn(8)
        assert sample_ids(logits[None, None]) == logits.argmax()
        for temperature in (0.5, 1.0, 2.0):
            drawn = sample_ids(logits.expand(20_000, 1, 8), temperature, generator)
            share = torch.bincount(drawn.flatten(), minlength=8) / 20_000
            expected = (logits / temperature).softmax(-1)
            torch.testing.assert_close(share, expected, atol=0.015, rtol=0)

    def test_the_likeliest_code_or_the_mean_at_a_temperature(self) -> None:
        logits = torch.randn(5, 2, 8)
        model = tiny_model()
        codes = model.quantizer.codes
        torch.testing.assert_close(model.choose(logits), codes[logits.argmax(-1)])
        for temperature in (0.3, 1.0):
            model = tiny_model(code_temperature=temperature)
            torch.testing.assert_close(
                model.choose(logits), (logits / temperature).softmax(-1) @ codes
            )
        torch.testing.assert_close(
            tiny_model(code_temperature=1e-4).choose(logits), codes[logits.argmax(-1)]
        )
        sampled = model.quantizer.lookup(sample_ids(logits, 1.0)).flatten(0, 1)
        assert all((code == codes).all(-1).any() for code in sampled)

    def test_straight_through_is_a_code_forwards_and_soft_backwards(self) -> None:
        codes, logits = tiny_model().quantizer.codes, torch.randn(5, 2, 8, requires_grad=True)
        chosen = straight_through(logits, codes, 1.0)
        for code in chosen.flatten(0, 1):
            assert torch.isclose(code, codes).all(-1).any()
        chosen.square().sum().backward()
        assert (logits.grad.abs().sum(-1) > 0).all()

    def test_straight_through_draws_from_the_softmax(self) -> None:
        codes, logits = torch.eye(8), torch.randn(8)
        for temperature in (0.5, 2.0):  # of the gradients alone
            drawn = straight_through(logits.expand(20_000, 1, 8), codes, temperature).mean((0, 1))
            torch.testing.assert_close(drawn, logits.softmax(-1), atol=0.015, rtol=0)


class TestPlan:
    def test_takes_what_acting_takes(self) -> None:
        model, (observation, _) = tiny_model(), ask(3)
        expected = model.plan(observation, torch.full((3,), 0.5)).action
        for given, asked in ((observation.double(), 0.5), (observation, torch.full((3, 1), 0.5))):
            torch.testing.assert_close(model.plan(given, asked).action, expected)
        torch.testing.assert_close(model.plan(observation[0], 0.5).action, expected[:1])
        with pytest.raises(ValueError, match="must hold one number for each observation"):
            model.plan(observation, torch.zeros(2))
        with pytest.raises(ValueError, match=f"its last axis must be {STATE}"):
            model.plan(observation[:, :1], 0.5)

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
        model.units.observation.mean.mul_(1000).add_(5)
        model.units.observation.std.mul_(1000)
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
            asked = model.units.update_return_to_go(asked, torch.tensor([reward]))
            torch.testing.assert_close(asked, torch.tensor([left]), atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("shape", [(), (4,), (4, 1), (2, 3, 1)])
    def test_torch_and_numpy_agree_for_any_shape(self, shape: tuple[int, ...]) -> None:
        model = tiny_model()
        asked, reward = torch.rand(shape) * 10, torch.rand(shape)
        after = model.units.update_return_to_go(asked, reward)
        numpy = model.units.update_return_to_go(np.asarray(asked), np.asarray(reward))
        assert isinstance(numpy, np.ndarray | np.generic)
        assert after.shape == numpy.shape == shape
        np.testing.assert_allclose(numpy, after, rtol=1e-6)

    def test_stays_inside_what_the_data_holds(self) -> None:
        model = tiny_model()
        low, high = model.units.return_to_go_range
        assert (low, high) == (-50, 20)
        asked = model.units.update_return_to_go(torch.tensor([0.0, 0.0]), torch.tensor([1e6, -1e6]))
        assert asked.tolist() == [low, high]

    @pytest.mark.parametrize(("quantile", "expected"), [(1.0, 20), (0.5, -15), (0.0, -50)])
    def test_the_default_target_is_a_quantile_of_the_episodes(
        self, quantile: float, expected: float
    ) -> None:
        target = tiny_model(target_quantile=quantile).units.target_return
        assert float(target) == pytest.approx(expected)


class TestConditioning:
    """Where Table 7 removes the return, nothing of it is left."""

    @pytest.mark.parametrize("removed", SITES)
    def test_each_site_can_be_removed_alone(self, removed: str) -> None:
        sites = tuple(site for site in SITES if site != removed)
        model = tiny_model(return_conditioning=sites).double()
        latent = torch.randn(5, 4, 4).double()
        state, target = torch.randn(5, STATE).double(), torch.randn(5, 1).double()
        codes = [torch.randn(5, n, 4).double() for n in SCALES]
        model.transformer.blocks = torch.nn.ModuleList()  # or finer scales would hear the first
        td = tiny_windows(5).double()

        def heard(target: Tensor) -> dict[str, list[Tensor]]:
            """What depends on each site, and what the encoder, decoder and adapters were told."""
            told: dict[str, list[Tensor]] = {"encoder": [], "decoder": [], "adapters": []}

            def keep(name: str, at: int) -> Any:
                return lambda module, given: told[name].append(given[at])

            hooks = [
                model.encoder.register_forward_pre_hook(keep("encoder", 1)),
                model.decoder.register_forward_pre_hook(keep("decoder", 1)),
                *(a.register_forward_pre_hook(keep("adapters", 1)) for a in model.decoder.adapters),
            ]
            returns = td["return_to_go"].clone()
            returns[:, 0] = model.units.return_to_go.inverse(target)
            encoding = model.tokenize(
                TrajectoryWindow(
                    observation=td["observation"],
                    action=td["action"],
                    return_to_go=returns,
                    mask=torch.ones(5, HORIZON, dtype=torch.bool),
                )
            )
            unguided = model.decode(latent, state, target, guided=False)
            guided = model.decode(latent, state, target, guided=True)
            for hook in hooks:
                hook.remove()
            first, *finer = model.logits(codes, state, target)
            assert len(told["adapters"]) == 2
            assert torch.equal(told["adapters"][0][:, :STATE], state)
            assert encoding.latent.shape == latent.shape
            return {
                "autoencoder": [*told["encoder"], *told["decoder"], unguided],
                "first_scale": [first],
                "finer_scales": finer,
                "condition_loss": [
                    *told["adapters"],
                    *([guided] if removed == "autoencoder" else []),
                ],
            }

        before, after = heard(target), heard(-target)
        for site in SITES:
            pairs = zip(before[site], after[site], strict=True)
            changed = [not torch.equal(a, b) for a, b in pairs]
            assert changed == [site != removed] * len(changed), site

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

    def test_coarse_codes_that_are_given_are_followed(self) -> None:
        model, state, target = tiny_model(), torch.randn(5, STATE), torch.randn(5, 1)
        codes = [torch.randn(5, length, model.config.code_dim) for length in model.config.scales]
        for count in range(len(codes) + 1):
            chosen: list[Tensor] = []

            def choose(logits: Tensor, kept: list[Tensor] = chosen) -> Tensor:
                kept.append(logits)
                return model.choose(logits)

            scores, sums = model.generate(state, target, choose, codes[:count])
            assert all(map(operator.is_, chosen, scores[count:]))
            assert len(chosen) == len(codes) - count
            wanted = model.quantizer.partial_sums(codes)
            for ours, given in zip(sums[:count], wanted, strict=False):
                torch.testing.assert_close(ours, given)

    def test_a_condition_is_what_was_asked_standardised(self) -> None:
        model, (observation, target) = tiny_model(), ask()
        for shape in ((6,), (6, 1)):
            found = model.condition(observation, target.view(shape))
            assert all(map(torch.equal, found, model.units.standardize(observation, target)))
        bounded = tiny_model(return_expectile=0.9)
        state, asked = bounded.condition(observation, target)
        assert torch.equal(state, bounded.units.observation(observation))
        wanted = bounded.units.return_to_go(target).minimum(bounded.return_value(state))
        assert torch.equal(asked, wanted)

    def test_an_expectile_bounds_what_is_asked(self) -> None:
        model, (observation, _) = tiny_model(return_expectile=0.9), ask()
        assert model.return_value is not None
        ceiling = model.units.return_to_go.inverse(
            model.return_value(model.units.observation(observation))
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
        parts = model.split(channels, channels.new_zeros(6, STATE))
        assert list(parts) == list(trajectory)
        if "R" in parts:
            torch.testing.assert_close(
                model.units.return_to_go.inverse(parts["R"]), window.return_to_go
            )
        if "S" in parts:
            torch.testing.assert_close(
                model.units.observation.inverse(parts["S"]), window.observation
            )
        if "A" in parts:
            torch.testing.assert_close(model.units.action.inverse(parts["A"]), window.action)
        plan = model.plan(*ask())
        assert plan.observation.shape == (6, HORIZON, STATE if "S" in trajectory else 0)
        assert plan.return_to_go.shape == (6, HORIZON, 1 if "R" in trajectory else 0)
        assert plan.action.shape == (6, ACTION)

    def test_explicit_inverse_dynamics_reads_the_decoded_states(self) -> None:
        model, (observation, target) = tiny_model(inverse_dynamics="explicit"), ask()
        plan = model.plan(observation, target)
        first_two = model.units.observation(plan.observation[:, :2]).flatten(1)
        action = model.inverse_dynamics(first_two, model.units.observation(observation))
        torch.testing.assert_close(model.units.environment_action(action), plan.action)

    def test_direction_is_that_from_the_achieved_goal_to_the_end_of_the_plan(self) -> None:
        model = tiny_goal_model()
        observation, target = torch.randn(6, STATE + 4), torch.randn(6)
        plan = model.plan(observation, target)
        way = plan.observation[:, -1, STATE : STATE + 2] - observation[:, STATE : STATE + 2]
        direction = way / way.norm(dim=-1, keepdim=True)
        state = model.units.observation(observation)
        action = model.inverse_dynamics(direction, state)
        torch.testing.assert_close(model.units.environment_action(action), plan.action)
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

    def test_latent_inverse_dynamics_reads_the_latent(self) -> None:
        model, (observation, target) = tiny_model(), ask()
        plan = model.plan(observation, target)
        action = model.inverse_dynamics(plan.latent.flatten(1), observation)
        torch.testing.assert_close(model.units.environment_action(action), plan.action)

    @pytest.mark.parametrize("sees", ["none", "state_and_return"])
    def test_state_and_return_reach_inverse_dynamics_only_when_told_to(self, sees: str) -> None:
        model = tiny_model(inverse_dynamics_condition=sees)
        latent, state, target = torch.randn(6, 4, 4), torch.randn(6, STATE), torch.ones(6, 1)
        action = model.read_action(latent, state, target)
        with_other_state = model.read_action(latent, -state, target)
        with_other_return = model.read_action(latent, state, -target)
        assert bool((action != with_other_state).any()) == (sees != "none")
        assert bool((action != with_other_return).any()) == (sees != "none")

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
    assert other.units.target_return == model.units.target_return == 20
    assert other.units.return_to_go_range == model.units.return_to_go_range
