"""Training whole episodes, statistics of a dataset, and bad data."""

import warnings
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase

from mage_agent.config import LARGEST
from mage_agent.gac.losses import GACLoss
from mage_agent.gac.model import GACModel
from mage_agent.gac.stages import calibrate, hold_out
from mage_agent.nn.muon import Muon
from mage_agent.stage import Stage, total_loss
from tests.gac.tiny import tiny_config, tiny_dataset

LENGTHS = (1, 7, 12, 2, 20, 9, 15, 11)


def build(dataset: TensorDictBase, **changes: Any) -> tuple[GACModel, Stage]:
    model = GACModel.from_dataset(dataset, tiny_config(**changes), seed=0)
    torch.manual_seed(0)
    (stage,) = model.stages(dataset)
    return model, stage


def train(stage: Stage) -> list[float]:
    """What the stage says in its own words; the loss of every step."""
    torch.manual_seed(0)
    stage.begin()
    optimizer, found = stage.make_optimizer(), []
    for step, batch in zip(range(stage.steps), stage.batches(seed=0), strict=False):
        losses = stage.losses(batch)
        total_loss(losses).backward()
        stage.step(optimizer, step)
        found.append(float(total_loss(losses).detach()))
    stage.end()
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("inference", ["persistent", "fresh", "amortised"])
def test_training_lowers_the_loss(inference: str) -> None:
    dataset = tiny_dataset()
    steps = 40 if inference == "fresh" else 80
    inner = 20 if inference == "fresh" else None
    changes = {"inference": inference, "steps": steps, "inner_steps": inner, "batch_size": 8}
    _, stage = build(dataset, **changes)
    losses = train(stage)
    assert mean(losses[-5:]) < mean(losses[:5]) - 1


def test_muon_takes_the_matrices_of_prior_and_generator() -> None:
    model, stage = build(tiny_dataset(), optimizer="muon")
    optimizer = stage.make_optimizer()
    assert isinstance(optimizer, Muon)
    followed = {n for n, p in model.named_parameters() if p in optimizer.matrices}
    blocks = {"prior.blocks.0", "generator.blocks.0", "generator.blocks.1"}
    assert {name[: name.index("blocks") + 8] for name in followed} == blocks
    assert all(p.ndim == 2 for n, p in model.named_parameters() if n in followed)
    assert len(followed) == 5 + 2 * 8  # attention, cross-attention and MLP


def test_outer_steps_share_a_batch_and_its_q() -> None:
    _, stage = build(tiny_dataset(), inference="fresh", inner_steps=3, steps=4, outer_steps=3)
    assert stage.steps == 12
    batches = [batch for _, batch in zip(range(6), stage.batches(), strict=False)]
    for first in (0, 3):
        for batch in batches[first : first + 3]:
            assert torch.equal(batch["posterior", "mean"], batches[first]["posterior", "mean"])
    assert not torch.equal(batches[0]["posterior", "mean"], batches[3]["posterior", "mean"])


def test_batches_are_whole_episodes_with_their_returns() -> None:
    dataset = tiny_dataset()
    _, stage = build(dataset, batch_size=5)
    rewards = dataset["next", "reward"].flatten()
    sums = [float(rewards[dataset["episode"] == number].sum()) for number in range(8)]
    for _, batch in zip(range(5), stage.batches(), strict=False):
        assert batch["step_count"][:, 0].sum() == 0
        lengths = batch["collector", "mask"].sum(1)
        numbers = batch["episode"][:, 0]
        assert lengths.tolist() == [LENGTHS[number] for number in numbers.tolist()]
        returns = batch["return_to_go"][:, 0].flatten().tolist()
        assert returns == pytest.approx([sums[number] for number in numbers.tolist()], abs=1e-5)


def test_step_rewards_are_never_read() -> None:
    dataset = tiny_dataset()
    delayed = dataset.clone()
    last = delayed["next", "done"].flatten()
    totals = [dataset["next", "reward"][dataset["episode"] == number].sum() for number in range(8)]
    delayed["next", "reward"] = torch.zeros_like(delayed["next", "reward"])
    delayed["next", "reward"][last] = torch.stack(totals)[:, None]
    runs = [train(build(data, steps=10)[1]) for data in (dataset, delayed)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_statistics_of_changes_returns_and_lengths() -> None:
    dataset = tiny_dataset()
    dataset["goal"] = torch.ones(len(dataset), 2)
    dataset["next", "goal"] = torch.ones(len(dataset), 2)
    model, _ = build(dataset)
    keys = model.config.observation_keys
    assert keys == ("goal", "observation")
    assert model.moves.tolist() == [False, False, True, True, True]
    change = dataset["next", "observation"] - dataset["observation"]
    torch.testing.assert_close(model.normalize_change.mean[2:], change.mean(0))
    starts = dataset["step_count"].flatten() == 0
    returns = model.returns_to_go(dataset)[starts].flatten()
    torch.testing.assert_close(model.normalize_value.mean, returns.mean()[None])
    torch.testing.assert_close(model.normalize_value.std, returns.std(unbiased=False)[None])
    assert set(model.returns.tolist()) == set(returns.tolist())
    assert int(model.longest) == 20


def test_fewer_trajectories_than_a_batch_and_episodes_of_one_step() -> None:
    _, stage = build(tiny_dataset((1, 1, 3)), batch_size=500, steps=3)
    assert stage.batch_size == 3
    losses = train(stage)
    assert all(loss == loss for loss in losses)
    _, stage = build(tiny_dataset((1, 1)), batch_size=2, steps=3)
    assert len(train(stage)) == 3


def test_constant_returns_are_pointed_out() -> None:
    dataset = tiny_dataset()
    dataset["next", "reward"] = torch.zeros_like(dataset["next", "reward"])
    model = GACModel.from_dataset(dataset, tiny_config(), seed=0)
    with pytest.warns(UserWarning, match="8 episodes have the return 0: the critic has nothing"):
        model.stages(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(tiny_dataset())


def test_observations_that_never_change_are_refused() -> None:
    dataset = tiny_dataset()
    still = torch.randn(8, 3)[dataset["episode"]]  # another place in each episode
    dataset["observation"] = still
    dataset["next"] = dataset["next"].clone().set("observation", still.clone())
    with pytest.raises(ValueError, match=r"\['observation'\] never change"):
        build(dataset)


def test_a_dataset_that_begins_inside_an_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="begins in the middle of an episode"):
        build(tiny_dataset()[3:])
    dataset = tiny_dataset()
    torn = (dataset["episode"] == 4) & (dataset["step_count"].flatten() < 2)
    with pytest.raises(ValueError, match="of episode 4 begins in the middle of an episode"):
        build(dataset[~torn])


def test_holding_out_parts_episodes() -> None:
    dataset = tiny_dataset()
    training, held_out = hold_out(dataset, 0.25)
    assert held_out is not None
    numbers = [set(part["episode"].tolist()) for part in (training, held_out)]
    assert len(numbers[1]) == 2
    assert numbers[0] | numbers[1] == set(range(8))
    assert not numbers[0] & numbers[1]
    assert len(training) + len(held_out) == len(dataset)
    assert hold_out(dataset, 0.0)[1] is None
    among = hold_out(dataset[dataset["episode"] > 0], 0.25)[1]  # as online, of fewer episodes
    assert among is not None
    assert set(among["episode"].tolist()) == numbers[1] - {0}
    with pytest.raises(ValueError, match="leaves none to train on"):
        hold_out(tiny_dataset((4,)), 0.5)
    _, stage = build(dataset, held_out=0.25)
    assert isinstance(stage.loss, GACLoss)
    assert stage.loss.store is not None
    assert len(stage.loss.store) == 6
    assert sorted(set(stage.columns()["episode"].tolist())) == list(range(6))


def test_posteriors_are_kept_by_one_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mage_agent.parallel.processes", lambda: 2)
    with pytest.raises(ValueError, match="in one process; train in several with 'fresh'"):
        build(tiny_dataset())
    build(tiny_dataset(), inference="fresh")


def test_describe_reports_the_bound_and_the_errors() -> None:
    dataset = tiny_dataset((12,) * 12)
    model, stage = build(dataset, steps=100, batch_size=12, window=None)
    before = model.describe(dataset)
    train(stage)
    state = torch.get_rng_state()
    after = model.describe(dataset)
    assert torch.equal(state, torch.get_rng_state())
    assert after == model.describe(dataset)
    assert model.training, "as it was"
    assert after["elbo"] > before["elbo"] + 10
    parts = ("log_action", "log_state", "log_return")
    assert after["elbo"] == pytest.approx(sum(after[key] for key in parts) - after["kl"], rel=1e-4)
    assert after["action_error"] < before["action_error"]
    assert -1 <= after["return_correlation"] <= 1


def test_limits_are_set_when_training_ends() -> None:
    dataset = tiny_dataset((12,) * 10)
    model, stage = build(dataset, held_out=0.3, steps=4)
    assert model.surprise_limit == model.shortfall_limit == LARGEST, "never"
    train(stage)
    assert model.surprise_limit < 1e6
    assert model.shortfall_limit < 1e6


def test_calibration_is_the_quantile_over_held_out_steps() -> None:
    """By a loop: means over ``replan_interval`` steps of -log p(s_{t+1}), each with its own q."""
    dataset = tiny_dataset((12, 3, 8, 12))
    model, _ = build(dataset, window=None, replan_interval=4)
    calibrate(model, dataset)
    from mage_agent.gac import stages
    from mage_agent.gac.inference import Ascent, infer
    from mage_agent.hardware import seeded

    model.eval()
    with seeded(0, model.device):
        data = stages.sample_trajectories(model, dataset)
        start = Ascent.start(torch.zeros(4, 2, *model.noise_shape))
        ascent, _ = infer(model, data, start, steps=150)
    means = []
    with torch.no_grad():
        latents = model.latents(data.observation[:, 0], ascent.posterior.mean)
        for row, length in enumerate(data.length.tolist()):
            history = torch.arange(length)[None, None]
            _, change = model.generator(
                data.observation[row : row + 1, None, :length],
                data.action[row : row + 1, None, :length],
                history,
                latents[row : row + 1, 1:],
            )
            std = model.change_std()
            error = (data.change[row, :length] - change[0, 0]) / std
            surprise = (0.5 * error**2 + std.log() + 0.5 * torch.tensor(6.283185307).log()).sum(-1)
            means += [float(surprise[t : t + 4].mean()) for t in range(length - 3)]
    expected = torch.tensor(means).quantile(0.99)
    torch.testing.assert_close(model.surprise_limit, expected, atol=1e-3, rtol=1e-3)
