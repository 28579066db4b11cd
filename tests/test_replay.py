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

from mage_agent.data import WindowSampler, replay_buffer

HORIZONS = (1, 2, 24, 100)


def loop_window(last_row: int, start: int, horizon: int) -> tuple[list[int], list[bool]]:
    """The rows and the mask of one window, one step at a time."""
    rows, mask = [], []
    for step in range(horizon):
        rows.append(start + step if start + step <= last_row else last_row)
        mask.append(start + step <= last_row)
    return rows, mask


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
        batch = replay_buffer(toy_dataset, keys=keys, batch_size=4).sample()
        assert set(batch.keys(True, True)) == {*keys, ("collector", "mask"), "index"}


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
    def test_memory_map_holds_the_same(self, toy_dataset: TensorDict, tmp_path: Path) -> None:
        in_memory = replay_buffer(toy_dataset, seed=0).sample()
        for folder in (None, tmp_path / "new"):
            mapped = replay_buffer(toy_dataset, seed=0, storage="memmap", scratch_dir=folder)
            batch = mapped.sample()
            assert (batch == in_memory).all()
            assert type(batch["observation"]) is torch.Tensor
        assert any((tmp_path / "new").iterdir())

    def test_memory_map_overwrites_nothing(self, toy_dataset: TensorDict, tmp_path: Path) -> None:
        (tmp_path / "precious").touch()
        with pytest.raises(ValueError, match="is not empty"):
            replay_buffer(toy_dataset, storage="memmap", scratch_dir=tmp_path)

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
            ({"storage": "disk"}, "storage must be one of"),
            ({"scratch_dir": "x"}, "scratch_dir is for storage='memmap'"),
        ],
    )
    def test_unfit_arguments(
        self, toy_dataset: TensorDict, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            replay_buffer(toy_dataset, **arguments)

    def test_missing_keys(self, toy_dataset: TensorDict) -> None:
        with pytest.raises(KeyError, match="no 'episode'"):
            replay_buffer(toy_dataset.exclude("episode"))
        with pytest.raises(KeyError, match="nothing"):
            replay_buffer(toy_dataset, keys=["nothing"])


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
