"""Distances to goals: the equation row by row, goals in hindsight, a wall between neighbours."""

from pathlib import Path
from typing import Any

import pytest
import scipy.sparse.csgraph
import torch
from tensordict import TensorDict

from mage_agent import MAGEDistanceLoss, MAGEModel, MAGEPolicy, MAGEValueLoss, fit, total_loss
from mage_agent.mage.distances import Hindsight, spread
from mage_agent.mage.goal_distance import LANDMARKS
from mage_agent.mage.values import label_returns
from tests.averages import check_average_follows
from tests.tiny import tiny_config, tiny_goal_model, tiny_model

GOALS = ("observation", "achieved_goal", "desired_goal")


def walks(places: list[torch.Tensor]) -> TensorDict:
    """Episodes along places (L, 2), whose actions are the moves and whose goal is (9, 9)."""
    rows = []
    for number, place in enumerate(places):
        here, there, count = place[:-1], place[1:], len(place) - 1
        last = torch.arange(count)[:, None] == count - 1
        seen = [
            {"observation": part.clone(), "achieved_goal": part, "desired_goal": 0 * part + 9}
            for part in (here, there)
        ]
        outcome = {
            "reward": torch.zeros(count, 1),
            "terminated": torch.zeros_like(last),
            "truncated": last,
            "done": last,
        }
        row = {**seen[0], "action": there - here, "next": {**seen[1], **outcome}}
        row["episode"] = torch.full((count,), number)
        row["step_count"] = torch.arange(count)[:, None]
        rows.append(TensorDict(row, [count]))
    facts = {"dataset_id": "walks", "action_low": [-9.0] * 2, "action_high": [9.0] * 2}
    return torch.cat(rows).set_non_tensor("metadata", facts)


def build(data: TensorDict, **changes: Any) -> MAGEModel:
    settings = {
        "observation_keys": GOALS,
        "return_expectile": 0.9,
        "bootstrap_steps": 3,
        "candidates": 3,
        "lookahead": 2,
        "horizon": 6,
        "temporal_stride": 1,
        "num_scales": 2,
        "warmup_steps": 5,
        "gradient_clip": 10.0,
        "inverse_dynamics": "displacement",
        "inverse_dynamics_condition": "state",
        "plan_entries": (0, 1),
    }
    return MAGEModel.from_dataset(data, tiny_config(**{**settings, **changes}), seed=0)


def random_walks() -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    return walks([torch.randn(n, 2, generator=generator).cumsum(0) for n in (12, 5, 9)])


def test_the_equation_row_by_row() -> None:
    data = random_walks()
    model = build(data)
    loss = MAGEDistanceLoss(model, reduction="none")
    with torch.no_grad():
        for parameter in loss.target.parameters():
            parameter.mul_(0.7)  # d' is not d
    torch.manual_seed(0)
    batch = loss.prepare(loss.columns(data).repeat(4))
    index = batch["row"].flatten()
    found = loss(batch)
    assert [*found.keys()] == loss.out_keys == ["loss_distance", "loss_move_distance"]
    units, kinds = model.units.observation, set()
    states = units(model.units.concatenate(data))[:, :4]
    for row, start in enumerate(index.tolist()):
        last = int((data["episode"] == data["episode"][start]).nonzero()[-1])
        goal = batch["desired_goal"][row]
        hits = (data["achieved_goal"] == goal).all(1).nonzero().flatten().tolist()
        assert len(hits) == 1  # a place of the data
        later = start <= hits[0] <= last
        kinds.add(later)
        told = units(torch.cat([data["observation"][0], goal, goal]))[-2:]
        end = min(start + 6, last)
        if later and hits[0] <= end:
            wanted = torch.tensor([(hits[0] - start) / 6])
        else:
            wanted = (end - start) / 6 + loss.target(states[end], told)
        error = model.goal_distance(states[start], told) - wanted
        weight = 0.9 if error > 0 else 0.1
        torch.testing.assert_close(found["loss_distance"][row], (weight * error**2)[0])
        after = states[min(start + 2, last)]
        moves = model.displacement((after - states[start])[:2]).clamp(-5, 5)
        error = model.goal_distance(states[start], told, moves)[1:] - loss.target(after, told)
        torch.testing.assert_close(found["loss_move_distance"][row], (error**2)[0])
    assert kinds == {True, False}


def test_only_distances_are_trained_and_their_average_follows() -> None:
    model = build(random_walks())
    loss = MAGEDistanceLoss(model)
    assert {name.split(".")[1] for name, _ in loss.named_parameters()} == {"goal_distance"}
    check_average_follows(loss, model.goal_distance)


def test_a_batch_of_the_stage_is_what_it_reads() -> None:
    data = random_walks()
    model = build(data)
    stages = model.stages(data)
    assert [stage.name for stage in stages][:2] == ["distances", "tokenizer"]
    batch = next(stages[0].batches())
    loss = MAGEDistanceLoss(model)
    total_loss(loss(batch)).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    with pytest.raises(KeyError, match=r"lacks \['goal_ahead'\].*MAGEDistanceLoss reads"):
        loss(batch.exclude("goal_ahead"))


def test_rows_are_spread_over_the_places_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(10_000, 2, generator=generator)
    place[9_000:] += 10  # a tenth of the rows
    place[:, 1] = 3.0  # as all of them
    ahead = torch.randperm(10_000, generator=generator)
    rows = spread(place, ahead)
    assert torch.equal(rows, rows.sort().values)  # episodes stay together
    assert torch.equal(rows, spread(place, ahead))  # a training that is resumed draws the same
    share = (rows >= 9_000).float().mean()  # of two boxes with 9,000 and 1,000 rows
    assert share == pytest.approx(1_000**0.5 / (1_000**0.5 + 9_000**0.5), abs=0.02)


@torch.no_grad()
def test_plans_that_end_where_one_cannot_get_to_in_time_are_worth_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(random_walks()).eval()
    latent = torch.randn(3, model.config.latent_length, model.config.code_dim)
    state, target = torch.randn(3, 6), torch.zeros(3, 1)
    ends = model.planned_state(model.decode(latent, state, target, guided=True), state, 2)
    ends = model.units.observation.inverse(ends)[:, 2:4]  # as places

    def judged(*steps: float) -> torch.Tensor:
        def steps_to_goal(place: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
            torch.testing.assert_close(place, state[:, :4])
            units = model.units.observation
            torch.testing.assert_close(goal * units.std[4:] + units.mean[4:], ends)
            return torch.tensor(steps)[:, None]

        monkeypatch.setattr(model, "steps_to_goal", steps_to_goal)
        return model.judge(latent[:, None], state, target)[:, 0]

    lookahead, horizon = model.config.lookahead, model.config.horizon
    detour = judged(0.0, 0.0, lookahead) - judged(lookahead, lookahead + 1, lookahead + horizon)
    torch.testing.assert_close(detour, torch.tensor([0.0, 1 / horizon, 1.0]))


def test_states_and_goals_come_from_spread_rows_and_errors_name_the_datasets() -> None:
    steps = torch.randn(3_000, 2, generator=torch.Generator().manual_seed(0))
    data = walks([steps[:2_700].remainder(1.0), 50 + steps[2_700:].remainder(1.0)])
    data["achieved_goal"] = data["achieved_goal"].round().long()  # integers do, too
    model = build(walks([steps]))
    loss = MAGEDistanceLoss(model)
    batch = loss.prepare(loss.columns(data))
    rows = batch["row"].flatten()
    assert torch.equal(rows, loss.hindsight.rows)
    assert torch.equal(batch["index"], rows)
    assert torch.equal(batch["observation"], data["observation"][rows])
    rare = (data["observation"][:, 0] > 40).float()
    assert rare[rows].mean() > 2 * rare.mean()
    dense = torch.zeros(20_000, dtype=torch.int64)  # three tenths of the goals are any place's
    drawn = float(rare[loss.hindsight.draw(dense)].mean())
    assert drawn == pytest.approx(0.3 * float(rare[rows].mean()), abs=0.02)


def test_distances_follow_muon() -> None:
    data = random_walks()
    matrices = build(data).stages(data)[0].make_optimizer().matrices
    assert len(matrices) == 9  # of three networks of three layers


def test_it_takes_goals_and_several_candidates() -> None:
    for model in (tiny_model(), tiny_goal_model(), build(random_walks(), candidates=1)):
        assert model.goal_distance is None
        with pytest.raises(ValueError, match=r"candidates above 1, and observation_keys that end"):
            MAGEDistanceLoss(model)


@torch.no_grad()
def test_moves_to_the_goal_are_worth_more() -> None:
    model = build(random_walks()).eval()
    state, moves = torch.randn(5, 6), torch.randn(5, 2)
    distances = model.goal_distance(state[:, :4], state[:, 4:], moves)
    torch.testing.assert_close(model.value_of_moves(state, moves), -distances[:, 1:])
    alone = model.goal_distance(state[:, :4], state[:, 4:])
    torch.testing.assert_close(alone, distances[:, :1])
    assert model.plan_value is model.return_value is None
    with pytest.raises(ValueError, match="distances to goals in place of values"):
        MAGEValueLoss(model)


@torch.no_grad()
def test_far_goals_are_reached_over_landmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    distance = build(random_walks()).goal_distance
    # Embeddings are the places themselves, along a horseshoe: its ends are 4 apart, 24 by walking.
    steps = torch.linspace(0, 24, LANDMARKS)
    across = steps.clamp(0, 10) - (steps - 14).clamp(0, 10)
    way = torch.stack([across, (steps - 10).clamp(0, 4)], -1)

    def embedded(place: torch.Tensor, moves: torch.Tensor | None = None) -> torch.Tensor:
        moved = place if moves is None else place[:, None] + moves
        return torch.nn.functional.pad(moved / 2, (0, 30))  # the factor on distances is 2

    monkeypatch.setattr(distance, "here", embedded)
    monkeypatch.setattr(distance, "there", embedded)
    start, moves = way[:1], torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.5]]])

    def after(row: int) -> list[float]:
        return distance.way(start, way[[row]], moves)[0, :, 0].tolist()

    straight = [5, 3, 2.5]
    assert after(-1) == pytest.approx(straight)  # there are no landmarks yet
    distance.place_landmarks(way, way)
    found = after(-1)
    assert found[0] == pytest.approx(5 + 2 / 3 * (23 - 5), abs=0.5)  # along the horseshoe
    assert found[1:] == pytest.approx(straight[1:])  # what is near is not looked for
    middle = int((steps < 7.5).sum())
    assert after(middle) == pytest.approx([6.5, 8.5, 9], abs=0.1)
    assert distance.way(start, way[[-1]]).item() == pytest.approx(4 + 20 / 3, abs=0.5)


@torch.no_grad()
def test_the_way_over_landmarks_row_by_row() -> None:
    torch.manual_seed(0)
    data = random_walks()
    distance = build(data).goal_distance
    for block in distance.blocks.values():
        block[-1].weight.mul_(0.3)
        block[-1].bias.zero_()
    state, goal, moves = torch.randn(4, 4), 30 * torch.randn(4, 2), torch.randn(4, 3, 2)
    there, after = distance.there(goal), distance.here(state, moves)
    for buffer in (distance.starts, distance.ends):
        buffer.copy_(0.05 * torch.randn_like(buffer))
    distance.between.copy_(20 + torch.rand_like(distance.between)).fill_diagonal_(0)
    straight = torch.cat([distance(state, goal, moves[:, n])[:, 1:] for n in range(3)], 1)
    near, far = int(straight[:, 0].argmin()), int(straight[:, 0].argmax())
    for row, ends, starts in ((far, slice(0, 100), slice(450, 500)), (near, 100, 449)):
        distance.ends[ends] = after[row].mean(0) + 0.01 * distance.ends[ends]
        distance.starts[starts] = there[row] + 0.01 * distance.starts[starts]
    distance.between[:100, 450:] = straight[far].max() + torch.rand(100, 50)
    distance.between[450:, :100] = 0.1  # back

    def leg(steps: torch.Tensor) -> torch.Tensor:
        return torch.where(steps <= 3, steps, steps + 100 * (steps - 3))

    def found(place: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        straight = 2 * (place - there).abs().sum()
        to = torch.stack([leg(2 * (place - end).abs().sum()) for end in distance.ends])
        left = torch.stack([leg(2 * (start - there).abs().sum()) for start in distance.starts])
        over = (to[:, None] + distance.between + left).min()
        detour = torch.minimum(leg(straight), over)
        return straight + (straight / 3 - 1).clamp(0, 1) * (detour - straight)

    close = {"rtol": 1e-4, "atol": 1e-4}  # what is longer than a leg counts a hundredfold
    here = distance.here(state)
    for between in (distance.between.clone(), 0.0, 1e3):
        distance.between[:] = between
        wanted = [[found(after[row, n], there[row]) for n in range(3)] for row in range(4)]
        ways = distance.way(state, goal, moves)
        torch.testing.assert_close(ways[..., 0], torch.tensor(wanted), **close)
        torch.testing.assert_close(distance.way(state, goal, moves[:, 1]), ways[:, 1], **close)
        wanted = [[found(here[row], there[row])] for row in range(4)]
        torch.testing.assert_close(distance.way(state, goal), torch.tensor(wanted), **close)


@pytest.mark.filterwarnings("ignore:the codebook has collapsed")
def test_landmarks_are_placed_where_the_data_are_and_saved(tmp_path: Path) -> None:
    data = random_walks()
    policy = MAGEPolicy(build(data, value_steps=3, tokenizer_steps=1, generator_steps=1))
    model = policy.model
    assert torch.isinf(model.goal_distance.between).all()
    fit(model, data, progress_bar=False, device="cpu")
    distance, loss = model.goal_distance, model.stages(data)[0].loss
    loss.columns(data)
    rows = loss.hindsight.rows
    rows = rows[[n * (len(rows) - 1) // (LANDMARKS - 1) for n in range(LANDMARKS)]]
    state = model.units.observation(model.units.concatenate(data)[rows])
    with torch.no_grad():
        there = distance.there(model.as_goal(data["achieved_goal"][rows]))
        here = distance.here(state[:, :4])
    torch.testing.assert_close(distance.starts, here)
    torch.testing.assert_close(distance.ends, there)
    legs = 2 * torch.cdist(here, there, p=1)
    legs += 100 * (legs - 3).clamp_min(0)
    shortest = scipy.sparse.csgraph.shortest_path(legs.fill_diagonal_(0).numpy())
    torch.testing.assert_close(distance.between, torch.from_numpy(shortest).float())
    policy.save(tmp_path / "policy.mage")
    loaded = MAGEPolicy.load(tmp_path / "policy.mage").model
    for name in ("starts", "ends", "between"):
        assert torch.equal(getattr(loaded.goal_distance, name), getattr(distance, name))
    assert loaded.act(torch.zeros(0, 6), torch.zeros(0)).shape == (0, 2)  # no environments


@torch.no_grad()
def test_plans_of_goals_see_how_far_the_goal_is_in_units_of_a_window() -> None:
    data = random_walks()
    reading = {"inverse_dynamics": "direction", "inverse_dynamics_condition": "body"}
    model = build(data, candidates=1, trajectory="RG", plan_entries=(), **reading)
    place, episode = data["achieved_goal"], data["episode"].tolist()
    last = {number: row for row, number in enumerate(episode)}
    ahead = [min(row + 5, last[number]) for row, number in enumerate(episode)]
    reach = place[ahead] - place
    raw = model.units.concatenate(data)
    raw[::2, 4:] = place[::2] + 0.1  # every second goal is near
    state = model.units.observation(raw)
    offset = (raw[:, 4:] - place - reach.mean(0)) / reach.std(0, unbiased=False)
    seen = model.seen(state)
    torch.testing.assert_close(seen, torch.cat([state[:, 2:], offset.clamp(-5, 5)], dim=1))
    assert offset[1::2].abs().max() > 5
    assert torch.equal(build(data).seen(state), state)  # plans of states see them whole


@torch.no_grad()
def test_values_fall_with_the_distance() -> None:
    data = random_walks()
    data["next", "reward"][::2] = 3.0
    model = build(data).eval()
    state = torch.randn(5, 6)
    steps = 6 * model.goal_distance(state[:, :4], state[:, 4:])
    least = int(steps.median())  # some goals are nearer than that
    returns = model.returns_to_go(data)
    low, high = returns.min(), returns.max()
    model.config = model.config.replace(bootstrap_steps=least)  # the best is to be as much nearer
    expected = low + (high - low) * 0.99 ** (steps - least).clamp_min(0)
    torch.testing.assert_close(model.units.return_to_go.inverse(model.value(state)), expected)
    assert model.units.default_target == pytest.approx(1e30)
    raw = model.units.observation.inverse(state)
    _, asked = model.condition(raw, torch.full((5, 1), 1e30))
    torch.testing.assert_close(asked, model.value(model.units.observation(raw)))


@torch.no_grad()
def test_labels_say_how_near_the_goal_the_next_steps_lead() -> None:
    data = random_walks()
    data["next", "reward"][::2] = 3.0
    model = build(data).eval()  # 3 steps are bootstrapped
    low, high = model.units.return_range
    state = model.units.observation(model.units.concatenate(data))
    episode, found = data["episode"].tolist(), label_returns(model, data)
    for row, number in enumerate(episode):
        end = min(row + 3, len(episode) - 1 - episode[::-1].index(number))
        steps = 6 * model.goal_distance(*model.apart(state[end]))
        torch.testing.assert_close(found[row], low + (high - low) * 0.99**steps)


@torch.no_grad()
def test_distances_see_the_entries_that_are_named() -> None:
    model = build(random_walks(), value_entries=(0, 1)).eval()
    state = torch.randn(5, 6)
    other = state.clone()
    other[:, 2:4] += 1
    assert torch.equal(
        model.steps_to_goal(*model.apart(state)), model.steps_to_goal(*model.apart(other))
    )
    other[:, 0] += 1
    assert not torch.equal(
        model.steps_to_goal(*model.apart(state)), model.steps_to_goal(*model.apart(other))
    )


@pytest.mark.slow
def test_a_goal_behind_a_wall_is_far() -> None:
    """A corridor bent like a U: its ends are next to each other, and 40 steps apart."""
    along = torch.linspace(0, 4, 21)
    down = torch.stack([torch.zeros(21), -along], 1)
    across = torch.stack([torch.tensor([0.0, 0.5, 1.0]), torch.full((3,), -4.0)], 1)
    up = torch.stack([torch.ones(21), along - 4], 1)
    way = torch.cat([down[:-1], across[:-1], up])
    # Nobody walks all of it: each episode is a part, there or back.
    parts = [part for i in range(0, 31, 5) for part in (way[i : i + 14], way[i : i + 14].flip(0))]
    data = walks([part for part in parts for _ in range(4)])
    model = build(data, width=32, value_steps=2500, horizon=6)
    stage = model.stages(data)[0]
    stage.begin()
    optimizer, batches = stage.make_optimizer(), stage.batches()
    torch.manual_seed(0)
    for step in range(stage.steps):
        total_loss(stage.losses(next(batches))).backward()
        stage.step(optimizer, step)

    @torch.no_grad()
    def steps(start: torch.Tensor, goal: torch.Tensor) -> float:
        observation = torch.cat([start, start, goal])
        state = model.units.observation(observation[None])
        return 6 * float(model.goal_distance(*model.apart(state)))

    assert steps(way[0], way[-1]) > 25
    assert steps(way[0], way[8]) == pytest.approx(8, abs=4)
    assert steps(way[-1], way[-9]) == pytest.approx(8, abs=4)


def test_goals_of_two_sizes_are_refused() -> None:
    config = build(random_walks()).config
    sizes = {"observation": 2, "achieved_goal": 2, "desired_goal": 3}
    with pytest.raises(ValueError, match="achieved and desired goal must be of one size"):
        MAGEModel(config, observation_dim=sizes, action_dim=2)


@pytest.mark.filterwarnings("ignore:the codebook has collapsed")
@torch.no_grad()
def test_plans_learn_from_goals_in_hindsight() -> None:
    data = random_walks()
    data["next", "reward"][::2] = 3.0  # which the labels do not tell
    model = build(data, inverse_dynamics_steps=1).eval()  # 3 steps are bootstrapped
    stages = {stage.name: stage for stage in model.stages(data)}
    torch.manual_seed(0)
    low, high = model.units.return_range
    place, episode = data["achieved_goal"], data["episode"].tolist()
    last = {number: row for row, number in enumerate(episode)}
    for name in ("tokenizer", "generator"):
        batch = next(stages[name].batches())
        goal = batch["desired_goal"]
        assert torch.equal(goal, goal[:, :1].expand_as(goal))
        assert (goal[:, 0, None] == place).all(-1).any(-1).all()  # places that were achieved
        rows = torch.tensor(
            [
                [min(row + 3, last[episode[row]]) for row in window]
                for window in batch["index"].tolist()
            ]
        )
        later = torch.cat([data["observation"][rows], place[rows], goal], dim=-1)
        steps = model.steps_to_goal(*model.apart(model.units.observation(later)))
        torch.testing.assert_close(batch["return_to_go"], low + (high - low) * 0.99**steps)
    untouched = next(stages["inverse_dynamics"].batches())
    assert (untouched["desired_goal"] == 9).all()


def test_goals_in_hindsight_are_here_or_ahead_or_anywhere() -> None:
    data = walks([torch.rand(2001, 2), torch.rand(2001, 2)])
    hindsight = Hindsight(build(data), data)
    row = torch.full((30_000,), 2100)  # step 100 of the second episode of 2,000
    torch.manual_seed(0)
    ahead = hindsight.draw(row) - row
    assert float((ahead == 0).float().mean()) == pytest.approx(0.2 + 0.5 * 0.01, abs=0.01)
    assert float((ahead < -100).float().mean()) == pytest.approx(0.3 / 2, abs=0.01)
    near = ahead[(ahead > 0) & (ahead < 600)].float()
    assert float(near.mean()) == pytest.approx(110, abs=12)  # 100, and some of any
    assert hindsight.draw(torch.full((1000,), 1999)).max() > 2000  # anywhere, past the episode


@torch.no_grad()
def test_returns_that_are_all_alike_still_tell_near_from_far() -> None:
    model = build(random_walks()).eval()
    low, high = model.units.return_range
    assert low == high == 0
    near, far = model.nearness(torch.tensor([[0.0], [100.0]]))
    assert near - far == pytest.approx(1 - 0.99**100)


def test_distances_do_not_see_the_desired_goal_twice() -> None:
    with pytest.raises(ValueError, match=r"\(0, 1, 4\), but distances see the desired goal, from"):
        build(random_walks(), value_entries=(0, 1, 4))
