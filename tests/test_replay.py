"""Windows: all of them, none across episodes, the same ones again, and fit for TorchRL's losses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ACTION_SIZE, LENGTHS, OBSERVATION_SIZE
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import Bounded, RandomSampler, TensorDictReplayBuffer, TensorStorage
from torchrl.modules import ProbabilisticActor, TanhDelta, TanhNormal, ValueOperator
from torchrl.objectives import IQLLoss, LossModule, TD3BCLoss

from mage_agent.data import Batches, WindowSampler, load_dataset, replay_buffer, returns_to_go

HORIZONS = (1, 2, 24, 100)


def loop_window(last_row: int, start: int, horizon: int) -> tuple[list[int], list[bool]]:
    """The rows and the mask of one window, one step at a time."""
    rows, mask = [], []
    for step in range(horizon):
        rows.append(start + step if start + step <= last_row else last_row)
        mask.append(start + step <= last_row)
    return rows, mask


def test_only_steps_in_a_row_are_cut_into_windows(toy_dataset: TensorDict) -> None:
    with pytest.raises(ValueError, match=r"shape \(N,\) with N >= 1 steps, got \(1, 149\)"):
        replay_buffer(toy_dataset[None])
    toy_dataset["episode"] = toy_dataset["episode"][:, None]
    with pytest.raises(ValueError, match=r"episode has the shape \(149, 1\), .* \(149,\); load_"):
        replay_buffer(toy_dataset)


class TestWindows:
    @given(
        lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
        horizon=st.integers(1, 40),
        seed=st.integers(0, 100),
    )
    @settings(deadline=None, max_examples=50)
    def test_equal_the_loop(self, lengths: list[int], horizon: int, seed: int) -> None:
        episode = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        dataset = TensorDict({"episode": episode, "row": torch.arange(len(episode))}, len(episode))
        batch = replay_buffer(dataset, horizon=horizon, batch_size=64, seed=seed).sample()
        ends = torch.tensor(lengths).cumsum(0) - 1
        for window in batch:
            start = int(window["row"][0])
            last_row = int(ends[episode[start]])
            rows, mask = loop_window(last_row, start, horizon)
            assert window["row"].tolist() == window["index"].tolist() == rows
            assert window["collector", "mask"].tolist() == mask

    @pytest.mark.parametrize("horizon", HORIZONS)
    def test_shapes(self, toy_dataset: TensorDict, horizon: int) -> None:
        batch = replay_buffer(toy_dataset, horizon=horizon, batch_size=16).sample()
        assert batch.shape == (16, horizon)
        assert batch["observation"].shape == (16, horizon, OBSERVATION_SIZE)
        assert batch["next", "reward"].shape == (16, horizon, 1)
        assert batch["collector", "mask"].shape == (16, horizon)
        assert batch["collector", "mask"].dtype == torch.bool
        assert batch["collector", "mask"][:, 0].all()

    @pytest.mark.parametrize("horizon", HORIZONS)
    def test_every_step_of_every_episode_starts_windows(
        self, toy_dataset: TensorDict, horizon: int
    ) -> None:
        batch = replay_buffer(toy_dataset, horizon=horizon, batch_size=5000, seed=0).sample()
        starts = batch["index"][:, 0]
        counts = torch.bincount(starts, minlength=len(toy_dataset))
        assert (counts > 0).all()
        # Alike often: 5000 draws of 149 steps, chi-square of 148 degrees of freedom.
        expected = 5000 / len(toy_dataset)
        assert ((counts - expected) ** 2 / expected).sum() < 220

    @pytest.mark.parametrize("horizon", HORIZONS)
    def test_no_window_crosses_an_episode(self, toy_dataset: TensorDict, horizon: int) -> None:
        batch = replay_buffer(toy_dataset, horizon=horizon, batch_size=2000, seed=0).sample()
        assert (batch["episode"] == batch["episode"][:, :1]).all()

    @pytest.mark.parametrize("horizon", HORIZONS)
    def test_mask_counts_are_exact(self, toy_dataset: TensorDict, horizon: int) -> None:
        batch = replay_buffer(toy_dataset, horizon=horizon, batch_size=2000, seed=0).sample()
        left = torch.tensor(LENGTHS)[batch["episode"][:, 0]] - batch["step_count"][:, 0, 0]
        assert torch.equal(batch["collector", "mask"].sum(1), left.clamp(max=horizon))

    def test_padding_repeats_the_last_step(self, toy_dataset: TensorDict) -> None:
        batch = replay_buffer(toy_dataset, horizon=24, batch_size=2000, seed=0).sample()
        padding = ~batch["collector", "mask"]
        assert padding.any()
        assert batch["next", "done"][padding].all()
        lasts = toy_dataset["observation"][toy_dataset["next", "done"].flatten()]
        expected = lasts[batch["episode"][padding]]
        assert torch.equal(batch["observation"][padding], expected)

    def test_ends_are_the_true_ones(self, toy_dataset: TensorDict) -> None:
        batch = replay_buffer(toy_dataset, horizon=5, batch_size=500, seed=0).sample()
        for key in ("terminated", "truncated", "done"):
            assert torch.equal(batch["next", key], toy_dataset["next", key][batch["index"]])

    def test_only_the_keys_asked_for(self, toy_dataset: TensorDict) -> None:
        keys = ("observation", "return_to_go", ("next", "reward"))
        batch = replay_buffer(toy_dataset, keys=keys, batch_size=4, discount=0.9).sample()
        assert set(batch.keys(True, True)) == {*keys, ("collector", "mask"), "index"}


class TestStartsOfEpisodes:
    """Windows that begin where episodes do, for methods that model whole episodes."""

    FIRST = (0, 1, 8, 38, 40, 64, 89)  # rows, by the lengths of the episodes

    @given(
        lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
        horizon=st.integers(1, 40),
        seed=st.integers(0, 100),
    )
    @settings(deadline=None, max_examples=30)
    def test_equal_the_loop(self, lengths: list[int], horizon: int, seed: int) -> None:
        episode = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        dataset = TensorDict({"episode": episode, "row": torch.arange(len(episode))}, len(episode))
        buffer = replay_buffer(
            dataset, horizon=horizon, batch_size=64, starts="episodes", seed=seed
        )
        ends = torch.tensor(lengths).cumsum(0) - 1
        for window in buffer.sample():
            number = int(window["episode"][0])
            start = sum(lengths[:number])
            rows, mask = loop_window(int(ends[number]), start, horizon)
            assert window["row"].tolist() == window["index"].tolist() == rows
            assert window["collector", "mask"].tolist() == mask

    @pytest.mark.parametrize("horizon", HORIZONS)
    def test_every_episode_is_as_likely_as_any_other(
        self, toy_dataset: TensorDict, horizon: int
    ) -> None:
        buffer = replay_buffer(
            toy_dataset, horizon=horizon, batch_size=2, starts="episodes", seed=0
        )
        drawn = torch.cat([buffer.sample()["index"][:, 0] for _ in range(2500)])
        assert (toy_dataset["step_count"].flatten()[drawn] == 0).all()
        starts, counts = drawn.unique(return_counts=True)
        assert starts.tolist() == [*self.FIRST]
        # However long: 5000 draws of 7 episodes, chi-square of 6 degrees of freedom.
        expected = 5000 / len(LENGTHS)
        assert ((counts - expected) ** 2 / expected).sum() < 23

    @pytest.mark.parametrize("count", [1, 3, 7, 50])
    def test_no_episode_comes_twice_in_a_draw(self, toy_dataset: TensorDict, count: int) -> None:
        buffer = replay_buffer(toy_dataset, batch_size=count, starts="episodes", seed=0)
        batches = Batches(toy_dataset, horizon=24, batch_size=count, starts="episodes", seed=0)
        for _ in range(20):
            for batch in (buffer.sample(), next(batches)):
                starts = batch["index"][:, 0].tolist()
                assert len(starts) == len(set(starts)) == min(count, len(LENGTHS))

    def test_a_sampler_draws_them_as_the_buffer_does(self, toy_dataset: TensorDict) -> None:
        buffer = TensorDictReplayBuffer(
            storage=TensorStorage(toy_dataset.exclude("metadata")),
            sampler=WindowSampler(toy_dataset["episode"], 7, "episodes"),
            batch_size=3,
            generator=torch.Generator().manual_seed(0),
        )
        mine = replay_buffer(toy_dataset, horizon=7, batch_size=3, starts="episodes", seed=0)
        assert (buffer.sample() == mine.sample()).all()

    def test_its_state_continues_the_stream(self, toy_dataset: TensorDict) -> None:
        buffer = replay_buffer(toy_dataset, starts="episodes", seed=0)
        buffer.sample()
        other = replay_buffer(toy_dataset, starts="episodes", seed=99)
        other.sampler.load_state_dict(buffer.sampler.state_dict())
        assert torch.equal(other.sample()["index"], buffer.sample()["index"])

    def test_windows_of_given_rows(self, toy_dataset: TensorDict) -> None:
        for starts in ("steps", "episodes"):
            sampler = WindowSampler(toy_dataset["episode"], 3, starts)
            index, mask = sampler.windows(torch.tensor([0, 6, 36]))
            assert index.tolist() == [[0, 0, 0], [6, 7, 7], [36, 37, 37]]
            assert mask.tolist() == [[True, False, False], [True, True, False], [True, True, False]]


class TestReturnsToGo:
    @pytest.mark.parametrize("starts", ["steps", "episodes"])
    @pytest.mark.parametrize("discount", [0.5, 0.99, 1.0])
    def test_equal_the_loop(self, toy_dataset: TensorDict, starts: Any, discount: float) -> None:
        reward = toy_dataset["next", "reward"].flatten().double().tolist()
        done = toy_dataset["next", "done"].flatten().tolist()
        expected, total = [0.0] * len(reward), 0.0
        for row in reversed(range(len(reward))):
            total = reward[row] + (0.0 if done[row] else discount * total)
            expected[row] = total
        buffer = replay_buffer(
            toy_dataset, horizon=30, batch_size=64, starts=starts, discount=discount, seed=0
        )
        batch = buffer.sample()
        assert batch["return_to_go"].shape == (64 if starts == "steps" else 7, 30, 1)
        assert batch["return_to_go"].dtype == torch.float32
        wanted = torch.tensor(expected)[batch["index"]][..., None]
        torch.testing.assert_close(batch["return_to_go"], wanted)

    def test_are_those_of_the_dataset(self, toy_dataset: TensorDict) -> None:
        batch = replay_buffer(toy_dataset, discount=0.9, seed=0).sample()
        returns = returns_to_go(toy_dataset["next", "reward"], toy_dataset["episode"], 0.9)
        assert torch.equal(batch["return_to_go"], returns[batch["index"]])

    def test_are_there_only_where_asked_for_and_change_no_dataset(
        self, toy_dataset: TensorDict
    ) -> None:
        keys = set(toy_dataset.keys(True, True))
        plain = replay_buffer(toy_dataset, seed=0).sample()
        batch = replay_buffer(toy_dataset, discount=0.9, seed=0).sample()
        assert "return_to_go" not in plain
        assert (batch.exclude("return_to_go") == plain).all()
        assert set(toy_dataset.keys(True, True)) == keys

    def test_numbers_that_come_again_are_other_episodes(self) -> None:
        episode = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 0])
        returns = returns_to_go(torch.ones(9), episode, 1.0)
        assert returns.tolist() == [4, 3, 2, 1, 1, 4, 3, 2, 1]

    def test_neighbours_of_one_number_are_refused(self, toy_dataset: TensorDict) -> None:
        one = toy_dataset[toy_dataset["episode"] == 0].exclude("metadata")
        with pytest.raises(ValueError, match="two episodes have one number, one after the other"):
            replay_buffer(torch.cat([one, one]), horizon=4)

    def test_whole_rewards_have_returns_with_fractions(self) -> None:
        returns = returns_to_go(torch.ones(2, 1, dtype=torch.int64), torch.zeros(2), 0.5)
        assert returns.tolist() == [[1.5], [1.0]]
        assert returns.dtype == torch.float32

    def test_a_column_of_that_name_is_taken_as_it_is_without_a_discount(
        self, toy_dataset: TensorDict
    ) -> None:
        own = toy_dataset.copy().set("return_to_go", torch.full((len(toy_dataset), 1), 7.0))
        assert (replay_buffer(own).sample()["return_to_go"] == 7).all()
        assert (replay_buffer(own, discount=0.9).sample()["return_to_go"] != 7).all()


class TestBatches:
    """What training draws: transitions or windows, the same as a buffer draws one by one."""

    COUNT = 40  # more than two calls of the buffer give

    def stream(self, dataset: TensorDict, **changes: Any) -> Batches:
        arguments: dict[str, Any] = {"horizon": 5, "batch_size": 6, "seed": 3, **changes}
        return Batches(dataset, **arguments)

    @pytest.mark.parametrize("starts", ["steps", "episodes"])
    @pytest.mark.parametrize("horizon", HORIZONS)
    def test_equal_a_buffers(self, toy_dataset: TensorDict, horizon: int, starts: Any) -> None:
        buffer = replay_buffer(toy_dataset, horizon=horizon, batch_size=6, starts=starts, seed=3)
        batches = self.stream(toy_dataset, horizon=horizon, starts=starts)
        for _ in range(self.COUNT):
            batch, expected = next(batches), buffer.sample()
            if horizon == 1:
                expected = expected.squeeze(1).exclude("collector")
            assert batch.shape == ((6,) if horizon == 1 else (6, horizon))
            assert set(batch.keys(True, True)) == set(expected.keys(True, True))
            assert (batch == expected).all()
            assert torch.equal(batch["observation"], toy_dataset["observation"][batch["index"]])

    def test_transitions_have_no_mask_and_windows_do(self, toy_dataset: TensorDict) -> None:
        assert "collector" not in next(self.stream(toy_dataset, horizon=1))
        assert next(self.stream(toy_dataset))["collector", "mask"].shape == (6, 5)

    def test_the_seed_decides_and_the_global_generator_is_left_alone(
        self, toy_dataset: TensorDict
    ) -> None:
        before = torch.random.get_rng_state()
        one, again, other = (next(self.stream(toy_dataset, seed=seed)) for seed in (3, 3, 4))
        assert torch.equal(one["index"], again["index"])
        assert not torch.equal(one["index"], other["index"])
        assert torch.equal(torch.random.get_rng_state(), before)

    @pytest.mark.parametrize("horizon", [1, 5])
    @pytest.mark.parametrize("taken", [0, 1, 15, 16, 17, 32, 33])
    def test_its_state_continues_the_stream(
        self, toy_dataset: TensorDict, taken: int, horizon: int
    ) -> None:
        batches = self.stream(toy_dataset, horizon=horizon)
        for _ in range(taken):
            next(batches)
        state = batches.state_dict()
        expected = [next(batches)["index"] for _ in range(self.COUNT)]
        other = self.stream(toy_dataset, horizon=horizon, seed=99)
        next(other)
        for _ in range(2):  # the state is not used up
            other.load_state_dict(state)
            for index in expected:
                assert torch.equal(next(other)["index"], index)

    def test_a_stream_that_was_taken_up_can_be_taken_up_again(
        self, toy_dataset: TensorDict
    ) -> None:
        """As training is that is interrupted after every third step."""
        whole = self.stream(toy_dataset)
        state = self.stream(toy_dataset).state_dict()
        for _ in range(12):
            part = self.stream(toy_dataset, seed=99)
            part.load_state_dict(state)
            for _ in range(3):
                assert torch.equal(next(part)["index"], next(whole)["index"])
            state = part.state_dict()

    @pytest.mark.parametrize("left", [-1, 17])
    def test_a_state_that_cannot_be_is_refused_and_changes_nothing(
        self, toy_dataset: TensorDict, left: int
    ) -> None:
        batches, same = self.stream(toy_dataset), self.stream(toy_dataset)
        state = self.stream(toy_dataset, seed=99).state_dict()
        with pytest.raises(ValueError, match=f"{left} batches cannot be left"):
            batches.load_state_dict({**state, "left": left})
        assert torch.equal(next(batches)["index"], next(same)["index"])

    def test_is_endless_and_iterable(self, toy_dataset: TensorDict) -> None:
        drawn = [batch for batch, _ in zip(self.stream(toy_dataset), range(50), strict=False)]
        assert len(drawn) == 50
        assert len({tuple(batch["index"][:, 0].tolist()) for batch in drawn}) == 50

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"horizon": 0}, "horizon must be at least 1"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"starts": "ends"}, "starts must be one of"),
        ],
    )
    def test_unfit_arguments(
        self, toy_dataset: TensorDict, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            self.stream(toy_dataset, **arguments)


class TestRepetition:
    def test_same_seed_same_windows(self, toy_dataset: TensorDict) -> None:
        def stream(seed: int) -> torch.Tensor:
            buffer = replay_buffer(toy_dataset, batch_size=8, seed=seed)
            return torch.stack([buffer.sample()["index"] for _ in range(5)])

        assert torch.equal(stream(3), stream(3))
        assert not torch.equal(stream(3), stream(4))

    def test_no_seed_no_repetition(self, toy_dataset: TensorDict) -> None:
        first, second = (replay_buffer(toy_dataset).sample()["index"] for _ in range(2))
        assert not torch.equal(first, second)

    def test_global_generator_is_left_alone(self, toy_dataset: TensorDict) -> None:
        before = torch.random.get_rng_state()
        replay_buffer(toy_dataset, seed=0).sample()
        replay_buffer(toy_dataset).sample()
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_sampler_state_continues_the_stream(self, toy_dataset: TensorDict) -> None:
        buffer = replay_buffer(toy_dataset, seed=0)
        buffer.sample()
        state = buffer.sampler.state_dict()
        expected = [buffer.sample()["index"] for _ in range(3)]
        other = replay_buffer(toy_dataset, seed=99)
        other.sampler.load_state_dict(state)
        for index in expected:
            assert torch.equal(other.sample()["index"], index)
        buffer.sampler.load_state_dict(state)  # the state was not used up
        assert torch.equal(buffer.sample()["index"], expected[0])

    def test_buffer_state_continues_the_stream(self, toy_dataset: TensorDict) -> None:
        buffer = replay_buffer(toy_dataset, seed=0)
        buffer.sample()
        other = replay_buffer(toy_dataset.clone(), seed=99)
        other.load_state_dict(buffer.state_dict())
        assert torch.equal(other.sample()["index"], buffer.sample()["index"])

    # TorchRL says so of every storage that was not filled by a writer.
    @pytest.mark.filterwarnings("ignore:last_cursor is None:UserWarning")
    def test_saved_sampler_and_buffer(self, toy_dataset: TensorDict, tmp_path: Path) -> None:
        buffer = replay_buffer(toy_dataset, seed=0)
        buffer.sample()
        buffer.sampler.dumps(tmp_path / "sampler")
        buffer.dumps(tmp_path / "buffer")
        expected = buffer.sample()
        for load in ("sampler", "buffer"):
            other = replay_buffer(toy_dataset.clone(), seed=99)
            (other.sampler if load == "sampler" else other).loads(tmp_path / load)
            assert torch.equal(other.sample()["observation"], expected["observation"])

    def test_state_needs_a_generator(self, toy_dataset: TensorDict) -> None:
        state = replay_buffer(toy_dataset, seed=0).sampler.state_dict()
        with pytest.raises(RuntimeError, match="no generator"):
            WindowSampler(toy_dataset["episode"], 4).load_state_dict(state)


class TestBuffer:
    def test_does_not_copy(self, toy_dataset: TensorDict) -> None:
        buffer = replay_buffer(toy_dataset, seed=0)
        toy_dataset["action"].fill_(0.25)
        assert (buffer.sample()["action"] == 0.25).all()

    def test_is_read_only(self, toy_dataset: TensorDict) -> None:
        buffer = replay_buffer(toy_dataset)
        with pytest.raises(RuntimeError, match="doesn't allow writing"):
            buffer.extend(toy_dataset)
        with pytest.raises(RuntimeError):
            buffer.empty()

    def test_length_and_single_rows(self, toy_dataset: TensorDict) -> None:
        buffer = replay_buffer(toy_dataset)
        assert len(buffer) == len(toy_dataset)
        assert torch.equal(buffer[5]["observation"], toy_dataset["observation"][5])

    def test_sampler_in_a_plain_buffer(self, toy_dataset: TensorDict) -> None:
        buffer = TensorDictReplayBuffer(
            storage=TensorStorage(toy_dataset.exclude("metadata")),
            sampler=WindowSampler(toy_dataset["episode"], 7),
            batch_size=3,
            generator=torch.Generator().manual_seed(0),
        )
        mine = replay_buffer(toy_dataset, horizon=7, batch_size=3, seed=0)
        assert (buffer.sample() == mine.sample()).all()

    def test_sampler_of_another_dataset(self, toy_dataset: TensorDict) -> None:
        buffer = replay_buffer(toy_dataset)
        buffer.set_sampler(WindowSampler(toy_dataset["episode"][:50], 4))
        with pytest.raises(ValueError, match="made for 50 steps, the storage has 149"):
            buffer.sample()

    def test_other_samplers_work_on_its_storage(self, toy_dataset: TensorDict) -> None:
        buffer = replay_buffer(toy_dataset, batch_size=6)
        buffer.set_sampler(RandomSampler())
        assert buffer.sample().shape == (6,)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"horizon": 0}, "horizon must be at least 1"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"starts": "ends"}, r"starts must be one of \('steps', 'episodes'\), got 'ends'"),
            *(
                ({"discount": value}, r"discount must lie in \(0, 1\], got")
                for value in (0.0, -0.1, 1.01, float("nan"))
            ),
        ],
    )
    def test_unfit_arguments(
        self, toy_dataset: TensorDict, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            replay_buffer(toy_dataset, **arguments)

    def test_episodes_in_pieces(self, toy_dataset: TensorDict) -> None:
        joined = torch.cat([toy_dataset, toy_dataset]).exclude("metadata")
        with pytest.raises(ValueError, match=r"episode 0 lies in 2 pieces; .* several datasets"):
            replay_buffer(joined, discount=0.9)
        facts = toy_dataset.get_non_tensor("metadata")
        replay_buffer(load_dataset(joined.set_non_tensor("metadata", facts)), discount=0.9)

    def test_missing_keys(self, toy_dataset: TensorDict) -> None:
        with pytest.raises(KeyError, match="no 'episode'"):
            replay_buffer(toy_dataset.exclude("episode"))
        with pytest.raises(KeyError, match="nothing"):
            replay_buffer(toy_dataset, keys=["nothing"])
        with pytest.raises(TypeError, match=r"such as \('action',\), got 'action'"):
            replay_buffer(toy_dataset, keys="action")
        with pytest.raises(KeyError, match="return_to_go"):
            replay_buffer(toy_dataset, keys=["return_to_go"])  # for which there is no discount


class QNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(OBSERVATION_SIZE + ACTION_SIZE, 1)

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([observation, action], -1))


def q_network() -> ValueOperator:
    return ValueOperator(
        QNetwork(), in_keys=["observation", "action"], out_keys=["state_action_value"]
    )


def iql() -> LossModule:
    head = nn.Sequential(nn.Linear(OBSERVATION_SIZE, 2 * ACTION_SIZE), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(head, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    value = ValueOperator(nn.Linear(OBSERVATION_SIZE, 1), in_keys=["observation"])
    return IQLLoss(actor, q_network(), value, num_qvalue_nets=2)


def td3_bc() -> LossModule:
    actor = ProbabilisticActor(
        TensorDictModule(nn.Linear(OBSERVATION_SIZE, ACTION_SIZE), ["observation"], ["param"]),
        in_keys=["param"],
        distribution_class=TanhDelta,
        distribution_kwargs={"low": -1.0, "high": 1.0},
    )
    bounds = Bounded(-torch.ones(ACTION_SIZE), torch.ones(ACTION_SIZE))
    return TD3BCLoss(actor, q_network(), action_spec=bounds)


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
@pytest.mark.parametrize("make_loss", [iql, td3_bc])
@pytest.mark.parametrize("squeeze", [False, True])
def test_transitions_train_torchrl_losses(
    toy_dataset: TensorDict, make_loss: Any, squeeze: bool
) -> None:
    batch = replay_buffer(toy_dataset, horizon=1, batch_size=32, seed=0).sample()
    if squeeze:
        batch = batch.squeeze(1)
        assert batch.shape == (32,)
    loss = make_loss()
    loss.make_value_estimator(gamma=0.99)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in loss.parameters() if parameter.requires_grad]
    terms = loss(batch)
    sum(value for key, value in terms.items() if key.startswith("loss_")).backward()
    optimizer.step()
    after = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    assert all(torch.isfinite(parameter).all() for parameter in after)
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert all(moved)
