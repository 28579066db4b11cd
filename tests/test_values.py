"""Values of states: what they learn, the returns that they give, and the plans that they choose."""

from typing import Any, ClassVar

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torchrl.objectives import LossModule

from mage_agent import MAGEModel, MAGEValueLoss, dataset_from_arrays, fit
from mage_agent.data import n_step_returns, returns_to_go
from mage_agent.mage.sampling import hashed
from mage_agent.mage.values import label_returns
from mage_agent.nn.units import BEST
from tests.averages import check_average_follows
from tests.tiny import tiny_config, tiny_goal_model, tiny_model

VALUES: dict[str, Any] = {"return_expectile": 0.9, "bootstrap_steps": 3}


def episodes(*lengths: int, terminated: tuple[int, ...] = (), seed: int = 0) -> TensorDict:
    """Episodes of random numbers, of which some end by a termination."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    ends = torch.tensor(lengths).cumsum(0) - 1
    flags = torch.zeros(2, total, dtype=torch.bool)
    for number, end in enumerate(ends.tolist()):
        flags[int(number not in terminated), end] = True
    observation = torch.randn(total, 3, generator=generator)
    then = torch.randn(total, 3, generator=generator)
    within = ~flags.any(0)[:-1]
    then[:-1][within] = observation[1:][within]
    return dataset_from_arrays(
        observations=observation.numpy(),
        next_observations=then.numpy(),
        actions=(torch.rand(total, 2, generator=generator) * 1.8 - 0.9).numpy(),
        rewards=torch.randn(total, generator=generator).numpy(),
        terminations=flags[0].numpy(),
        truncations=flags[1].numpy(),
    )


class TestNStepReturns:
    @pytest.mark.parametrize("steps", [1, 3, 100])
    def test_step_by_step(self, steps: int) -> None:
        data = episodes(5, 1, 7, 2, terminated=(0, 3))
        total, factor, last = n_step_returns(data, 0.9, steps)
        reward, episode = data["next", "reward"].flatten().double(), data["episode"]
        for row in range(len(data)):
            wanted, k = 0.0, 0
            while k < steps and row + k < len(data) and episode[row + k] == episode[row]:
                wanted += 0.9**k * float(reward[row + k])
                k += 1
            over = bool(data["next", "terminated"][row + k - 1])
            assert last[row] == row + k - 1
            assert float(total[row]) == pytest.approx(wanted, abs=1e-5)
            assert float(factor[row]) == pytest.approx(0.0 if over else 0.9**k)

    def test_enough_steps_of_episodes_that_end_are_the_whole_return(self) -> None:
        data = episodes(5, 4, terminated=(0, 1))
        total, factor, _ = n_step_returns(data, 0.9, 5)
        torch.testing.assert_close(
            total, returns_to_go(data["next", "reward"], data["episode"], 0.9)
        )
        assert (factor == 0).all()

    def test_whole_number_rewards_are_not_cut(self) -> None:
        data = episodes(5, 4, terminated=(0, 1))
        data["next", "reward"] = torch.full((9, 1), 3)
        total, factor, _ = n_step_returns(data, 0.9, 2)
        assert (float(total[0]), float(factor[0])) == pytest.approx((5.7, 0.81))


def trained(data: TensorDict, **changes: Any) -> MAGEModel:
    config = tiny_config(**{**VALUES, "warmup_steps": 5, "gradient_clip": 10.0, **changes})
    return MAGEModel.from_dataset(data, config, seed=0)


class TestLoss:
    def test_the_equation_row_by_row(self) -> None:
        data = episodes(6, 5, terminated=(1,))
        model = trained(data)
        loss = MAGEValueLoss(model, reduction="none")
        with torch.no_grad():
            for parameter in loss.target.parameters():
                parameter.mul_(0.7)  # V' is not V
        columns = MAGEValueLoss(model).columns(data)
        found = loss(columns)["loss_value"]
        units = model.units
        total, factor, last = n_step_returns(data, 0.99, 3)
        for row in range(len(data)):
            then = units.observation(data["next", "observation"][last[row]])
            ahead = units.return_to_go.inverse(loss.target(then))
            wanted = units.return_to_go(total[row] + factor[row] * ahead)
            error = wanted - model.value(units.observation(data["observation"][row : row + 1]))[0]
            weight = 0.9 if error > 0 else 0.1
            torch.testing.assert_close(found[row], (weight * error.square()).squeeze())

    def test_moves_are_worth_the_mean_of_what_values_are_an_expectile_of(self) -> None:
        data = episodes(6, 5, terminated=(1,))
        model = trained(data, candidates=2, lookahead=4, plan_entries=(2, 0))
        loss = MAGEValueLoss(model, reduction="none")
        columns = MAGEValueLoss(model).columns(data)
        found = loss(columns)
        assert [*found.keys()] == loss.out_keys == ["loss_value", "loss_plan_value"]
        total, factor, last = n_step_returns(data, 0.99, 3)
        state = model.units.observation(data["observation"])
        then = model.units.observation(data["next", "observation"][last])
        ahead = model.units.return_to_go.inverse(loss.target(then))
        for row in range(len(data)):
            end = min(row + 4, 5 if row < 6 else 10)
            moves = model.displacement((state[end] - state[row])[[2, 0]]).clamp(-5, 5)
            worth = model.plan_value(torch.cat([state[row], moves]))
            wanted = model.units.return_to_go(total[row] + factor[row] * ahead[row])
            torch.testing.assert_close(found["loss_plan_value"][row], (worth - wanted).square()[0])
        names = {name.split(".")[1] for name, _ in loss.named_parameters()}
        assert names == {"return_value", "plan_value"}
        with pytest.raises(KeyError, match=r"lacks \['moves'\]"):
            loss(columns.exclude("moves"))

    def test_values_see_the_entries_they_are_given_and_no_others(self) -> None:
        data = episodes(6, 5)
        model = trained(data, candidates=2, value_entries=(2, 0))
        MAGEValueLoss(model)(MAGEValueLoss(model).columns(data))["loss_value"].backward()
        assert model.return_value[0].in_features == 2
        state = torch.randn(4, 3, requires_grad=True)
        moves = torch.zeros(4, 3)
        for worth in (model.value(state), model.value_of_moves(state, moves)):
            (gradient,) = torch.autograd.grad(worth.sum(), state)
            assert (gradient != 0).any(0).tolist() == [True, False, True]
        swapped = model.return_value(state[:, [2, 0]])
        torch.testing.assert_close(model.value(state), swapped)

    def test_what_states_are_indexed_by_lies_on_the_models_device(self) -> None:
        # Indices from the host's memory are a copy, which no CUDA graph can hold.
        model = trained(
            episodes(6, 5),
            candidates=2,
            inverse_dynamics="displacement",
            plan_entries=(2, 0),
            value_entries=(1,),
        )

        def act(state: Tensor) -> Tensor:
            return model.greedy_action(state, state[:, :1])

        graph = make_fx(act)(torch.zeros(3, 3)).graph
        assert not [node for node in graph.nodes if "lift_fresh" in str(node.target)]

    def test_values_that_could_not_see_the_goal_are_refused(self) -> None:
        keys = ("desired_goal", "observation")
        config = tiny_config(**VALUES, observation_keys=keys, value_entries=(1, 3))
        sizes = {"desired_goal": 2, "observation": 3}
        with pytest.raises(ValueError, match=r"leaves out the desired goal, the entries 0 to 1"):
            MAGEModel(config, observation_dim=sizes, action_dim=2)
        MAGEModel(config.replace(value_entries=(0, 1)), observation_dim=sizes, action_dim=2)
        with pytest.raises(ValueError, match=r"value_entries is \(9,\), but an observation has 3"):
            trained(episodes(4), value_entries=(9,))

    def test_without_bootstrapping_it_is_the_return_that_followed(self) -> None:
        data = episodes(6, 5)
        model = trained(data, bootstrap_steps=0)
        columns = MAGEValueLoss(model).columns(data)
        assert (columns["n_step_factor"] == 0).all()
        assert torch.equal(columns["n_step_return"], model.returns_to_go(data))
        assert torch.equal(label_returns(model, data), model.returns_to_go(data))

    def test_only_the_value_is_trained_and_its_average_follows(self) -> None:
        data = episodes(30)
        model = trained(data)
        loss = MAGEValueLoss(model)
        assert {name.split(".")[1] for name, _ in loss.named_parameters()} == {"return_value"}
        check_average_follows(loss, model.return_value)

    def test_torchrls_contract(self) -> None:
        """Keywords, other names, what is read and written, and the sum that the mean is of."""
        data = episodes(6, 5)
        model = trained(data)
        batch = MAGEValueLoss(model).columns(data)
        loss = MAGEValueLoss(model)
        assert isinstance(loss, LossModule)
        assert loss.in_keys == ["observation", *loss.reads]
        expected = loss(batch)
        assert [*expected.keys()] == loss.out_keys == ["loss_value"]
        assert torch.equal(
            loss(**{key: batch[key] for key in loss.in_keys}), expected["loss_value"]
        )
        torch.testing.assert_close(loss(batch.double()), expected)  # in the agent's own type
        each = MAGEValueLoss(model, reduction="none")(batch)["loss_value"]
        torch.testing.assert_close(each.mean(), expected["loss_value"])
        loss.set_keys(observation="seen")
        renamed = batch.rename_key_("observation", "seen")
        assert torch.equal(loss(renamed)["loss_value"], expected["loss_value"])
        with pytest.raises(KeyError, match=r"lacks \['n_step_return'\].*MAGEValueLoss reads"):
            loss(renamed.exclude("n_step_return"))

    def test_a_batch_of_the_stage_is_what_it_reads(self) -> None:
        data = episodes(6, 5)
        model = trained(data)
        stage = model.stages(data)[0]
        assert stage.name == "values"
        loss = MAGEValueLoss(model)
        loss(next(stage.batches()))["loss_value"].backward()
        assert all(parameter.grad is not None for parameter in loss.parameters())

    def test_a_model_without_values_has_no_such_loss(self) -> None:
        with pytest.raises(ValueError, match=r"return_expectile is None; set it.*0\.95"):
            MAGEValueLoss(tiny_model())


def fork() -> TensorDict:
    """Half of the episodes stop in a room where nothing is found, half begin there and find it.

    A corridor of states 0, 1, 2, 3; the first kind goes 0, 1, 2 and is cut off, the second starts
    at 2, goes to 3 and is paid 10. No episode both starts at 0 and is paid.
    """
    first = torch.tensor([[0.0, 1.0], [1.0, 2.0]])
    second = torch.tensor([[2.0, 3.0]])
    steps = torch.cat([first, second]).repeat(40, 1)
    paid = (steps[:, 1] == 3).float()
    place = torch.nn.functional.one_hot(steps.long(), 4).float()  # (N, 2, 4)
    ends = (steps[:, 1] >= 2).numpy()
    done = (steps[:, 1] == 3).numpy()
    return dataset_from_arrays(
        observations=place[:, 0].numpy(),
        next_observations=place[:, 1].numpy(),
        actions=torch.zeros(len(steps), 2).uniform_(-0.5, 0.5).numpy(),
        rewards=(10 * paid).numpy(),
        terminations=done,
        truncations=ends & ~done,
    )


@pytest.mark.filterwarnings("ignore:the codebook has collapsed")
def test_an_average_that_never_moves_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    data = episodes(12, 12)
    for changes, told in (({}, True), ({"bootstrap_steps": 0}, False)):
        model = tiny_model(**{**VALUES, **changes}).eval()
        stage = next(stage for stage in model.stages(data) if stage.name == "values")
        loss, batch = MAGEValueLoss(model), next(stage.batches())
        for _ in range(150):
            loss(batch)
        warned = [str(w.message) for w in recwarn if "after_step(step)" in str(w.message)]
        assert len(warned) == told
        recwarn.clear()
    loss = MAGEValueLoss(tiny_model(**VALUES))
    for step in range(150):
        loss(batch)
        loss.after_step(step)
    assert not [w for w in recwarn if "after_step(step)" in str(w.message)]


def test_good_parts_of_different_episodes_add_up() -> None:
    data = fork()
    config = tiny_config(
        **{**VALUES, "bootstrap_steps": 1, "value_steps": 600, "width": 32},
        gradient_clip=10.0,
    )
    model = MAGEModel.from_dataset(data, config, seed=0)
    stage = model.stages(data)[0]
    assert stage.name == "values"
    stage.begin()
    optimizer, batches = stage.make_optimizer(), stage.batches()
    for step in range(stage.steps):
        stage.losses(next(batches))["loss_value"].backward()
        stage.step(optimizer, step)
    labels = label_returns(model, data)[:3].flatten()  # from 0, from 1, from 2
    assert (model.returns_to_go(data)[:2] == 0).all()
    torch.testing.assert_close(labels, torch.tensor([9.8, 9.9, 10.0]), atol=0.3, rtol=0)


def test_hashed_states_spread_evenly() -> None:
    state = 1e-3 * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    for size in (7, 1024):
        share = hashed(state, size).bincount(minlength=size) / len(state)
        assert len(share) == size
        # Six standard deviations of a count.
        assert float((share - 1 / size).abs().max()) < 6 * (len(state) * size) ** -0.5
    assert torch.equal(hashed(state[5:9], 1024), hashed(state, 1024)[5:9])
    assert not torch.equal(hashed(state, 1024), hashed(state.flip(1), 1024))


class TestCandidates:
    def ask(self, count: int = 6, size: int = 3) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(3)
        return torch.randn(count, size, generator=generator), torch.zeros(count)

    @torch.no_grad()
    def test_the_most_valuable_move_wins(self) -> None:
        model = tiny_model(**VALUES, candidates=7, lookahead=5, data_scales=None).eval()
        observation, target = self.ask()
        state, asked = model.condition(observation, target)
        token_ids, _ = model.propose(state, asked)
        drawn = model._noise(state)
        for row in range(len(state)):
            scores = []
            for number in range(7):
                noise = tuple(part[7 * row + number] for part in drawn)
                chosen: list[Tensor] = []

                def choose(
                    logits: Tensor,
                    noise: tuple[Tensor, ...] = noise,
                    chosen: list[Tensor] = chosen,
                ) -> Tensor:
                    chosen.append((logits[0] + noise[len(chosen)]).argmax(-1))
                    return model.quantizer.lookup(chosen[-1])[None]

                here, wanted = state[row : row + 1], asked[row : row + 1]
                _, alone = model.generate(here, wanted, choose)
                path = model.split(model.decode(alone[-1], here, wanted, guided=True), here)["S"][0]
                moves = model.moves(path[5:6] - here)
                worth = float(model.plan_value(torch.cat([here, moves], 1)))
                scores.append((worth - float((path[0] - here[0]).square().mean()), chosen))
            best = max(scores, key=lambda score: score[0])[1]
            for found, own in zip(token_ids, best, strict=True):
                assert torch.equal(found[row], own)

    def test_decisions_do_not_depend_on_the_others_in_the_batch(self) -> None:
        model = tiny_model(**VALUES, candidates=4, lookahead=5).eval()
        observation, target = self.ask()
        together = model.act(observation, target)
        alone = torch.cat([model.act(observation[i : i + 1], target[i]) for i in range(6)])
        torch.testing.assert_close(together, alone)
        assert torch.equal(together, model.act(observation, target))

    def test_every_state_has_noise_of_its_own(self) -> None:
        model = tiny_model(**VALUES, candidates=4, lookahead=5).eval()

        def noise(state: Tensor) -> Tensor:
            return torch.cat([part.flatten(1) for part in model._noise(state)], dim=1)

        state, _ = self.ask()
        together = noise(state)
        assert len(together.unique(dim=0)) == 4 * len(state)
        assert torch.equal(noise(state[2:3]), together[8:12])
        nudged = state.clone()
        nudged[2, 1] = nudged[2, 1].nextafter(torch.tensor(torch.inf))
        other = noise(nudged)
        assert not torch.equal(other[8:12], together[8:12])
        assert torch.equal(other[12:], together[12:])

    def test_noise_is_that_of_gumbel_samples(self) -> None:
        model = tiny_model(**VALUES, candidates=50, lookahead=5).eval()
        state, _ = self.ask(400)
        noise = torch.cat([part.flatten() for part in model._noise(state)])
        assert abs(float(noise.mean()) - 0.5772) < 0.1
        assert abs(float(noise.std()) - 1.2825) < 0.1

    def test_plans_are_those_that_are_acted_on(self) -> None:
        model = tiny_model(**VALUES, candidates=4, lookahead=5).eval()
        observation, target = self.ask()
        plan = model.plan(observation, target)
        torch.testing.assert_close(plan.action, model.act(observation, target))
        codes = [model.quantizer.lookup(ids) for ids in plan.token_ids]
        torch.testing.assert_close(plan.latent, model.quantizer.partial_sums(codes)[-1])

    @torch.no_grad()
    def test_more_candidates_are_worth_no_less(self) -> None:
        worth = []
        for count in (2, 8, 32):
            model = tiny_model(**VALUES, candidates=count, lookahead=5).eval()
            observation, target = self.ask(50)
            state, asked = model.condition(observation, target)
            _, sums = model.propose(state, asked)
            worth.append(float(model.judge(sums[-1][:, None], state, asked).mean()))
        assert worth[0] < worth[1] < worth[2]

    def test_plans_of_goals_are_judged_by_the_move_of_the_goal(self) -> None:
        model = tiny_goal_model(return_expectile=0.9, candidates=3, lookahead=5).eval()
        observation, target = self.ask(4, 7)
        state, asked = model.condition(observation, target)
        latent = torch.randn(4, 4, 4)
        path = model.split(model.decode(latent, state, asked, guided=True), state)["G"]
        moves = model.displacement(path[:, 5] - state[:, 3:5]).clamp(-5, 5)
        distance = model.goal_distance(state[:, :5], state[:, 5:], moves)[:, 1]
        miss = (path[:, 0] - state[:, 3:5]).square().mean(1)
        units = model.units.observation
        end = path[:, 5] * units.std[3:5] + units.mean[3:5]
        goal = (end - units.mean[5:]) / units.std[5:]
        horizon = model.config.horizon
        far = (model.goal_distance(state[:, :5], goal)[:, 0] - 5 / horizon).clamp_min(0)
        judged = model.judge(latent[:, None], state, asked)[:, 0]
        torch.testing.assert_close(judged, -distance - miss - far)


@pytest.mark.filterwarnings("ignore:the codebook has collapsed")
def test_by_default_the_best_is_asked_for_everywhere() -> None:
    data = episodes(20, 20)
    model = MAGEModel.from_dataset(data, tiny_config(**VALUES, value_steps=3), seed=0)
    assert model.units.default_target == pytest.approx(BEST)
    asked = torch.tensor([BEST])
    for reward in (5.0, -5.0):
        assert model.units.update_return_to_go(asked, torch.tensor([reward])) == asked
    fit(model, data, progress_bar=False, device="cpu")
    observation = data["observation"][:4]
    state, asked = model.condition(observation, torch.full((4,), BEST))
    assert torch.equal(asked, model.value(state))
    low = MAGEModel.from_dataset(data, tiny_config(**VALUES, target_quantile=0.5), seed=0)
    assert low.units.default_target < 100


class TestDisplacement:
    CHANGES: ClassVar[dict[str, Any]] = {
        "inverse_dynamics": "displacement",
        "plan_entries": (2, 0),
        "inverse_dynamics_condition": "state",
        "lookahead": 4,
        "data_scales": None,
    }

    def test_of_the_data_row_by_row(self) -> None:
        data = episodes(9, 3, 7)
        model = MAGEModel.from_dataset(data, tiny_config(**self.CHANGES))
        found = model.displacements(data, 4)
        state = model.units.observation(data["observation"])
        for row in range(len(data)):
            last = int((data["episode"] == data["episode"][row]).nonzero()[-1])
            moved = state[min(row + 4, last)] - state[row]
            torch.testing.assert_close(found[row], moved[[2, 0]])
        torch.testing.assert_close(model.displacement(found).std(0, correction=0), torch.ones(2))

    def test_of_a_plan(self) -> None:
        data = episodes(9, 3, 7)
        model = MAGEModel.from_dataset(data, tiny_config(**self.CHANGES))
        state, asked, latent = torch.randn(5, 3), torch.randn(5, 1), torch.randn(5, 4, 4)
        path = model.split(model.decode(latent, state, asked, guided=True), state)["S"]
        wanted = model.displacement((path[:, 4] - state)[:, [2, 0]]).clamp(-5, 5)
        torch.testing.assert_close(model.read_plan(latent, state, asked), wanted)

    def test_of_a_plan_of_goals(self) -> None:
        model = tiny_goal_model(
            inverse_dynamics="displacement", inverse_dynamics_condition="body", lookahead=4
        )
        with torch.no_grad():
            model.displacement.std.copy_(torch.tensor([0.5, 2.0]))
        state, asked, latent = torch.randn(5, 7), torch.randn(5, 1), torch.randn(5, 4, 4)
        path = model.split(model.decode(latent, state, asked, guided=True), state)["G"]
        wanted = ((path[:, 4] - state[:, 3:5]) / torch.tensor([0.5, 2.0])).clamp(-5, 5)
        torch.testing.assert_close(model.read_plan(latent, state, asked), wanted)

    @pytest.mark.filterwarnings("ignore:the codebook has collapsed")
    def test_inverse_dynamics_learns_to_follow_the_data(self) -> None:
        """Actions are the first entry's moves, so that a displacement tells the action."""
        generator = torch.Generator().manual_seed(0)
        place = torch.zeros(400, 3)
        action = torch.rand(400, 2, generator=generator) * 1.6 - 0.8
        for step in range(399):
            place[step + 1] = place[step] * 0.5
            place[step + 1, 0] += action[step, 0]
        ends = torch.zeros(400, dtype=torch.bool).numpy()
        ends[-1] = True
        data = dataset_from_arrays(
            place.numpy(), action.numpy(), torch.zeros(400).numpy(), ends & False, ends
        )
        config = tiny_config(
            **self.CHANGES | {"lookahead": 1, "plan_entries": (0,)},
            inverse_dynamics_steps=400,
            batch_size=64,
            inverse_dynamics_learning_rate=1e-2,
            width=32,
        )
        model = MAGEModel.from_dataset(data, config, seed=0)
        fit(model, data, progress_bar=False, device="cpu")
        state = model.units.observation(place[:398])
        with torch.no_grad():
            moved = model.displacement(model.displacements(data, 1)[:398])
            found = model.inverse_dynamics(moved, torch.cat([state, torch.zeros(398, 1)], 1))
        error = (model.units.action.inverse(found)[:, 0] - action[:398, 0]).square().mean()
        assert error < 0.05 * action[:, 0].var()

    @torch.no_grad()
    def test_read_at_another_step_than_judged(self) -> None:
        changes = {**self.CHANGES, **VALUES, "candidates": 3, "inverse_dynamics_lookahead": 2}
        data = episodes(9, 3, 7)
        model = MAGEModel.from_dataset(data, tiny_config(**changes)).eval()
        state, asked = model.condition(data["observation"], torch.zeros(len(data), 1))
        latent = torch.randn(len(data), model.config.latent_length, model.config.code_dim)
        path = model.split(model.decode(latent, state, asked, guided=True), state)["S"]
        moved = {step: model.moves((path[:, step] - state)[:, [2, 0]]) for step in (2, 4)}
        torch.testing.assert_close(model.read_plan(latent, state, asked), moved[2])
        worth = model.value_of_moves(state, moved[4]).squeeze(1)
        miss = (path[:, 0] - state).square().mean(1)
        torch.testing.assert_close(model.judge(latent[:, None], state, asked)[:, 0], worth - miss)
        learned = model.stages(data)[-1].columns()["plan"]
        torch.testing.assert_close(learned[0], model.moves((state[2] - state[0])[None, [2, 0]])[0])

    def test_an_entry_that_there_is_not(self) -> None:
        with pytest.raises(ValueError, match=r"plan_entries is \(3,\).* has 3 entries"):
            tiny_model(inverse_dynamics="displacement", plan_entries=(3,))
