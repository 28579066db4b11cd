"""A stage that ends with a moving average of the weights that it trained."""

import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from mage_agent import MAGEModel, averaged, fit, total_loss, training
from mage_agent.checkpoint import load_tensors
from tests.tiny import tiny_config

DECAY = 0.6
STEPS = {"tokenizer_steps": 5, "generator_steps": 6, "inverse_dynamics_steps": 7}


def make(dataset: TensorDict, **changes: Any) -> MAGEModel:
    return MAGEModel.from_dataset(dataset, tiny_config(**{**STEPS, **changes}))


def trained(dataset: TensorDict, **options: Any) -> dict[str, Tensor]:
    model = make(dataset, inverse_dynamics_average_decay=DECAY)
    fit(model, dataset, device="cpu", progress_bar=False, **options)
    return model.state_dict()


@pytest.mark.parametrize("own_stage", [True, False], ids=["own stage", "generator's"])
def test_inverse_dynamics_ends_with_the_average_of_its_weights(
    toy_dataset: TensorDict, own_stage: bool
) -> None:
    steps = {} if own_stage else {"inverse_dynamics_steps": 0}
    model = make(toy_dataset, inverse_dynamics_average_decay=DECAY, **steps)
    stages = model.stages(toy_dataset)
    for number, stage in enumerate(stages):
        stage.begin()
        optimizer, batches = stage.make_optimizer(), stage.batches(seed=number)
        parameters = dict(stage.loss.named_parameters())
        slow = {name: each.detach().double() for name, each in parameters.items()}
        for step in range(stage.steps):
            total_loss(stage.losses(next(batches))).backward()
            stage.step(optimizer, step)
            kept = min(DECAY, (1 + step) / (10 + step))
            for name, each in parameters.items():
                slow[name] = kept * slow[name] + (1 - kept) * each.detach().double()
        last = {name: each.detach().clone() for name, each in parameters.items()}
        stage.end()
        for name, each in parameters.items():
            averages = stage is stages[-1] and "inverse_dynamics" in name
            expected = slow[name].float() if averages else last[name]
            torch.testing.assert_close(each.detach(), expected, msg=f"{stage.name} {name}")


def test_all_that_a_stage_trains_is_averaged_unless_said_otherwise(
    toy_dataset: TensorDict,
) -> None:
    stage = averaged(make(toy_dataset).stages(toy_dataset)[1], DECAY)
    stage.begin()
    before = [each.detach().clone() for each in stage.loss.parameters()]
    with torch.no_grad():
        for each in stage.loss.parameters():
            each.add_(1.0)
    stage.after_step(0)  # moves by 1 - 1 / 10
    stage.end()
    for each, old in zip(stage.loss.parameters(), before, strict=True):
        torch.testing.assert_close(each.detach(), old + 0.9)


def test_an_average_changes_nothing_but_the_end(toy_dataset: TensorDict) -> None:
    ends: list[dict[str, Tensor]] = []
    for decay in (0.0, 1e-9):  # in effect none, but by way of the average
        model = make(toy_dataset, inverse_dynamics_average_decay=decay)
        fit(model, toy_dataset, device="cpu", progress_bar=False)
        ends.append(model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, msg=name)


@pytest.mark.parametrize("ended", ["by the callback", "by an error"])
def test_resumes_with_its_average(
    toy_dataset: TensorDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    monkeypatch.setattr(training, "LOG_INTERVAL", 1)
    whole, path = trained(toy_dataset), tmp_path / "training.mage"

    def stop(progress: training.Progress) -> bool:
        if progress.done == 15 and ended == "by an error":
            raise ZeroDivisionError
        return progress.done < 15

    with pytest.raises(ZeroDivisionError) if ended == "by an error" else nullcontext():
        early = trained(toy_dataset, checkpoint_path=path, checkpoint_interval=1, callback=stop)
        state, header = load_tensors(path)
        assert header["training"]["step"] == 4
        name = "inverse_dynamics.mlp.0.weight"
        assert torch.equal(early[name], state["loss.average.0"]), "who stops has the average"
        assert not torch.equal(early[name], state[f"model.{name}"])
    resumed = trained(toy_dataset, checkpoint_path=path, resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_who_interrupts_has_the_average(
    toy_dataset: TensorDict, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.setattr(training, "LOG_INTERVAL", 1)
    ends: list[dict[str, Tensor]] = []
    for press in (False, True):
        model = make(toy_dataset, inverse_dynamics_average_decay=DECAY)

        def stop(progress: training.Progress, press: bool = press) -> bool:
            if press and progress.done == 15:
                signal.raise_signal(signal.SIGINT)
            return press or progress.done < 15

        with pytest.raises(KeyboardInterrupt) if press else nullcontext():
            fit(model, toy_dataset, device="cpu", progress_bar=False, callback=stop)
        assert not model.training
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("last", [15, 18], ids=["stopped", "to the end"])
def test_callbacks_see_what_training_would_end_with(
    toy_dataset: TensorDict, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    monkeypatch.setattr(training, "LOG_INTERVAL", 1)
    model = make(toy_dataset, inverse_dynamics_average_decay=DECAY)
    weight = next(model.inverse_dynamics.parameters())
    seen: list[Tensor] = []

    def look(progress: training.Progress) -> bool:
        seen.append(weight.detach().clone())
        return progress.done < last

    fit(model, toy_dataset, device="cpu", progress_bar=False, callback=look)
    assert len(seen) == last
    assert torch.equal(seen[-1], weight)
    if last == sum(STEPS.values()):
        assert torch.equal(weight, trained(toy_dataset)["inverse_dynamics.mlp.0.weight"])


def test_trains_anew_from_where_it_is(toy_dataset: TensorDict) -> None:
    """A second training's average begins at the weights of then, not at those of the first one."""
    model = make(toy_dataset, inverse_dynamics_average_decay=DECAY)
    stage = model.stages(toy_dataset)[-1]
    stage.begin()
    with torch.no_grad():
        for each in stage.loss.parameters():
            each.fill_(3.0)
    stage.begin()
    stage.end()
    assert all((each == 3.0).all() for each in stage.loss.parameters())


def test_without_a_decay_there_is_none(toy_dataset: TensorDict) -> None:
    stage = make(toy_dataset).stages(toy_dataset)[1]
    assert averaged(stage, 0.0) is stage
    assert not stage.kept
