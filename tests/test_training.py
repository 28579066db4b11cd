"""Training: repeatable, resumable to the bit, and quiet about nothing that goes wrong."""

import itertools
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensordict import TensorDict
from torch import Tensor

from mage_agent import (
    Agent,
    Config,
    MAGELoss,
    MAGEModel,
    Progress,
    Stage,
    TrainingError,
    checkpoint,
    dataset_from_arrays,
    fit,
    replay_buffer,
    total_loss,
    training,
)
from mage_agent.checkpoint import load_tensors
from mage_agent.compatibility import check_fits
from mage_agent.data import WindowSampler, check_dataset
from mage_agent.data.replay import MASK_KEY
from mage_agent.facts import dataset_facts
from mage_agent.hardware import interrupts
from mage_agent.mage.quantizer import MultiScaleQuantizer
from mage_agent.stage import warm_up_and_cosine
from tests.tiny import ACTION, HORIZON, STATE, tiny_config

STAGES = ("tokenizer", "generator", "inverse_dynamics")
# Everything that draws random numbers in training.
RANDOM: dict[str, Any] = {
    "dropout": 0.3,
    "plan_dropout": 0.3,
    "inverse_dynamics_condition": "state_and_return",
    "return_expectile": 0.9,
    "bootstrap_steps": 2,
    "code_temperature": 1.0,  # every random number shows in the plans
    "optimizer": "muon",
}
State = dict[str, Tensor]
Train = Callable[..., MAGEModel]


class Interrupt(Exception):  # noqa: N818
    """Somebody pulled the plug."""


@pytest.fixture
def plain_dataset(toy_dataset: TensorDict) -> TensorDict:
    """The toy dataset with actions that follow from the state, so that there is much to learn."""
    toy_dataset["action"] = toy_dataset["observation"][:, :2].tanh()
    return toy_dataset


@pytest.fixture
def train(toy_dataset: TensorDict) -> Train:
    """Return a function that builds a tiny model and fits it to the toy dataset."""

    def run(seed: int = 0, config: dict[str, Any] | None = None, **kwargs: Any) -> MAGEModel:
        model = MAGEModel.from_dataset(toy_dataset, tiny_config(**(config or {})), seed=seed)
        return fit(model, toy_dataset, seed=seed, device="cpu", progress_bar=False, **kwargs)

    return run


@pytest.fixture
def train_on_goals(toy_dataset: TensorDict) -> Train:
    """The same for a model that plans the way of a goal: the first two entries of the state."""
    for part in (toy_dataset, toy_dataset["next"]):
        part["achieved_goal"] = part["observation"][:, :2]
        part["desired_goal"] = torch.ones(len(toy_dataset), 2)

    def run(seed: int = 0, **kwargs: Any) -> MAGEModel:
        config = tiny_config(
            observation_keys=("observation", "achieved_goal", "desired_goal"),
            trajectory="RG",
            inverse_dynamics="direction",
            inverse_dynamics_condition="body",
        )
        model = MAGEModel.from_dataset(toy_dataset, config, seed=seed)
        return fit(model, toy_dataset, seed=seed, device="cpu", progress_bar=False, **kwargs)

    return run


def state_of(model: MAGEModel) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) for key, value in first.items()
    )


class TestRepeatability:
    @pytest.mark.parametrize("config", [{}, RANDOM, {"context": "own"}], ids=str)
    def test_one_seed_gives_one_model(self, train: Train, config: dict[str, Any]) -> None:
        first = state_of(train(config=config))
        torch.manual_seed(1234)  # the global generators have no say
        np.random.seed(5)  # noqa: NPY002
        assert same(first, state_of(train(config=config)))
        assert not same(first, state_of(train(seed=1, config=config)))

    @pytest.mark.slow
    def test_compiled_losses_give_the_same_model(
        self, train: Train, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compile_, asked = torch.compile, []

        def without_a_compiler(function: Any, **options: Any) -> Any:
            asked.append(options)
            return compile_(function, backend="eager", dynamic=options["dynamic"])

        monkeypatch.setattr(torch, "compile", without_a_compiler)
        assert same(state_of(train(compiled=True)), state_of(train()))
        # The tokenizer's codebook is no one graph.
        assert asked == [{"dynamic": False, "mode": "default"}] * len(STAGES[1:])

    def test_weights_and_training_have_seeds_of_their_own(self, toy_dataset: TensorDict) -> None:
        built = [
            MAGEModel.from_dataset(toy_dataset, tiny_config(), seed=seed) for seed in (0, 0, 1)
        ]
        states = [state_of(model) for model in built]
        assert same(states[0], states[1])
        assert not same(states[0], states[2])
        for model, seed in zip(built[:2], (0, 1), strict=True):
            fit(model, toy_dataset, seed=seed, progress_bar=False, device="cpu")
        assert not same(state_of(built[0]), state_of(built[1]))

    def test_the_global_generators_are_left_alone(self, train: Train) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
        train(config=RANDOM)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
        assert random.getstate() == before[2]

    def test_the_dataset_stays_as_it_is(self, train: Train, toy_dataset: TensorDict) -> None:
        before = toy_dataset.clone()
        train()
        assert set(toy_dataset.keys(True, True)) == set(before.keys(True, True))
        tensors = toy_dataset.exclude("metadata") == before.exclude("metadata")
        assert tensors.all()


class TestLearning:
    def test_losses_fall(
        self, train: Train, plain_dataset: TensorDict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "LOG_INTERVAL", 1)
        log: list[Progress] = []
        model = train(config={f"{stage}_steps": 60 for stage in STAGES}, callback=log.append)
        for stage in STAGES:
            losses = [entry.metrics["loss"] for entry in log if entry.stage == stage]
            assert len(losses) == 60
            # The last stage only polishes.
            share = 1.0 if stage == "inverse_dynamics" else 0.75
            assert np.mean(losses[-10:]) < share * np.mean(losses[:10]), stage
        accuracy = [e.metrics["token_accuracy_1"] for e in log if e.stage == "generator"]
        assert np.mean(accuracy[-10:]) > np.mean(accuracy[:5])
        assert not model.training
        report = model.describe(plain_dataset)
        spread = plain_dataset["action"].var(0).mean()
        assert report["action_error_true"] < 0.7 * spread  # what always the mean would cost
        assert report["action_error_acting"] < 0.7 * spread

    def test_the_rate_warms_up_and_falls_to_a_tenth(self, toy_dataset: TensorDict) -> None:
        def rates(**changes: Any) -> list[list[float]]:
            config = tiny_config(learning_rate=1.0, **changes)
            stages = MAGEModel.from_dataset(toy_dataset, config).stages(toy_dataset)
            return [[stage.rates(step, 1000)[0] for step in range(1000)] for stage in stages]

        tokenizer, generator, last = rates(warmup_steps=10, inverse_dynamics_learning_rate=5.0)
        assert tokenizer == generator
        assert generator[0] == pytest.approx(0.1)
        assert generator[9] == pytest.approx(1.0, abs=1e-3)
        assert max(generator) == generator[9]
        assert generator[-1] == pytest.approx(0.1, abs=1e-3)
        assert all(later < earlier for earlier, later in itertools.pairwise(generator[9:]))
        assert max(last) == pytest.approx(5.0, abs=1e-2)  # a rate of its own
        assert last[-1] == pytest.approx(0.1, abs=1e-3)
        assert rates(warmup_steps=0)[0][0] == pytest.approx(1.0)

    def test_a_short_stage_warms_up_for_a_quarter_of_its_steps(self) -> None:
        rates = warm_up_and_cosine(1.0, 0.1, 200)
        short = [rates(step, 60)[0] for step in range(60)]
        assert max(short) == short[14] > 0.85
        assert rates(0, 3)[0] == 1.0

    def test_callbacks_meet_an_agent_that_acts_without_dropout(
        self, toy_dataset: TensorDict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "LOG_INTERVAL", 1)
        model = MAGEModel.from_dataset(toy_dataset, tiny_config(plan_dropout=0.5))
        modes: list[bool] = []
        losses = Stage.losses

        def trained(stage: Stage, batch: TensorDict) -> TensorDict:
            assert model.training
            return losses(stage, batch)

        monkeypatch.setattr(Stage, "losses", trained)
        options: dict[str, Any] = {"device": "cpu", "progress_bar": False}
        fit(model, toy_dataset, callback=lambda progress: modes.append(model.training), **options)
        assert modes
        assert not any(modes)

    def test_inverse_dynamics_decays_by_itself(self, toy_dataset: TensorDict) -> None:
        config = tiny_config(weight_decay=0.2, inverse_dynamics_weight_decay=0.1)
        stages = MAGEModel.from_dataset(toy_dataset, config).stages(toy_dataset)
        decays = {
            stage.name: stage.make_optimizer().param_groups[0]["weight_decay"] for stage in stages
        }
        assert decays == {"tokenizer": 0.2, "generator": 0.2, "inverse_dynamics": 0.1}

    def test_steps_are_shared_out_among_the_stages(self, train: Train) -> None:
        log: list[Progress] = []
        config = {"tokenizer_steps": 10, "generator_steps": 30, "inverse_dynamics_steps": 60}
        train(config=config, steps=20, callback=log.append)
        assert [(entry.stage, entry.steps) for entry in log] == list(
            zip(STAGES, (2, 6, 12), strict=True)
        )
        assert [entry.done for entry in log] == [2, 8, 20]
        assert {entry.total for entry in log} == {20}
        assert [entry.acts for entry in log] == [False, False, True]
        with pytest.raises(ValueError, match=r"steps is 2; each of \['tokenizer', 'g.* needs"):
            train(steps=2)
        for steps in (3, 4, 7, 11):
            log.clear()
            train(config=config, steps=steps, callback=log.append)
            assert log[-1].done == log[-1].total == steps

    def test_a_callback_that_acts_leaves_training_as_it_was(self, train: Train) -> None:
        def act(progress: Progress) -> None:
            model = acting[-1]
            model.eval()
            torch.randn(3)  # as whoever samples actions draws

        acting: list[MAGEModel] = []
        make = MAGEModel.from_dataset

        whole = train(config=RANDOM)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "LOG_INTERVAL", 1)

            def keep(*args: Any, **kwargs: Any) -> MAGEModel:
                acting.append(make(*args, **kwargs))
                return acting[-1]

            patch.setattr(MAGEModel, "from_dataset", keep)
            disturbed = train(config=RANDOM, callback=act)
        assert same(state_of(whole), state_of(disturbed))

    @pytest.mark.parametrize("kind", [bool, np.bool_])
    def test_false_ends_training_with_a_checkpoint(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type
    ) -> None:
        monkeypatch.setattr(training, "LOG_INTERVAL", 1)
        log: list[Progress] = []

        def stop(progress: Progress) -> Any:
            log.append(progress)
            return kind((progress.stage, progress.step) != ("generator", 2))

        path = tmp_path / "training.mage"
        model = train(config=RANDOM, callback=stop, checkpoint_path=path)
        assert (log[-1].stage, log[-1].step) == ("generator", 2)
        assert not model.training
        resumed = train(config=RANDOM, checkpoint_path=path, resume=True)
        assert same(state_of(resumed), state_of(train(config=RANDOM)))

    def test_callbacks_see_every_stage_to_its_end(self, train: Train) -> None:
        log: list[Progress] = []
        train(callback=log.append)
        assert [(entry.stage, entry.step, entry.steps) for entry in log] == [
            (stage, 4, 4) for stage in STAGES
        ]

    def test_one_scale(self, train: Train) -> None:
        model = train(config={"num_scales": 1})
        assert model.act(torch.randn(2, STATE), torch.zeros(2)).shape == (2, ACTION)

    def test_actions_are_bounded_by_the_datasets_space(self, toy_dataset: TensorDict) -> None:
        model = MAGEModel.from_dataset(toy_dataset, tiny_config())
        units, returns = model.units, model.returns_to_go(toy_dataset)
        assert units.action_low.tolist() == [-1, -1]
        assert units.action_high.tolist() == [1, 1]
        assert units.return_to_go_range == (returns.min().item(), returns.max().item())
        starts = toy_dataset["step_count"][:, 0] == 0
        assert float(units.target_return) == pytest.approx(returns[starts].max().item())


class TestResuming:
    @pytest.mark.parametrize(
        ("stage", "step"),
        [
            ("values", 1),  # before anything was saved
            ("values", 3),
            ("tokenizer", 1),
            ("tokenizer", 3),
            ("generator", 1),  # exactly at the border
            ("generator", 3),
            ("inverse_dynamics", 1),
            ("inverse_dynamics", 3),
        ],
    )
    def test_equals_an_uninterrupted_run_to_the_bit(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
    ) -> None:
        monkeypatch.setattr(training, "LOG_INTERVAL", 1)
        whole = train(config=RANDOM)
        path = tmp_path / "training.mage"

        def pull_the_plug(progress: Progress) -> None:
            if (progress.stage, progress.step) == (stage, step):
                raise Interrupt

        options = {"checkpoint_path": path, "checkpoint_interval": 1}
        with pytest.raises(Interrupt):
            train(config=RANDOM, callback=pull_the_plug, **options)
        assert path.exists() == ((stage, step) != ("values", 1))
        torch.manual_seed(99)
        seen: list[tuple[str, int]] = []
        resumed = train(
            config=RANDOM,
            resume=True,
            callback=lambda progress: seen.append((progress.stage, progress.step)),
            **options,
        )
        assert seen[0] == (stage, step)  # no step is taken twice, none left out
        assert same(state_of(resumed), state_of(whole))

    def test_the_third_stage_learns_from_the_paths_that_the_data_took(
        self, train_on_goals: Train, toy_dataset: TensorDict, tmp_path: Path
    ) -> None:
        path = tmp_path / "goals.mage"
        model = train_on_goals(checkpoint_path=path)
        goal, episode = toy_dataset["achieved_goal"], toy_dataset["episode"].flatten()
        given = model.stages(toy_dataset)[2].columns()["plan"]
        for step in range(len(toy_dataset)):
            ahead = range(step, min(step + HORIZON, len(toy_dataset)))
            end = max(other for other in ahead if episode[other] == episode[step])
            taken = goal[end] - goal[step]
            expected = taken / taken.norm() if end > step else torch.zeros(2)
            torch.testing.assert_close(given[step], expected)
        assert same(state_of(train_on_goals(checkpoint_path=path, resume=True)), state_of(model))

    @pytest.mark.parametrize("scales", [1, 3])
    def test_the_third_stage_follows_the_coarse_tokens_of_the_data(
        self,
        train: Train,
        toy_dataset: TensorDict,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        scales: int,
    ) -> None:
        options: dict[str, Any] = {"config": {**RANDOM, "data_scales": scales}}
        options["checkpoint_path"] = tmp_path / "training.mage"
        model = train(**options)
        followed: list[Sequence[Tensor]] = []
        generate = MAGEModel.generate

        def keep_given(model: MAGEModel, *args: Any) -> Any:
            followed.append(args[3])
            return generate(model, *args)

        *_, generator, last = model.stages(toy_dataset)
        columns = generator.columns()
        index, mask = WindowSampler(columns["episode"], model.config.horizon).windows(
            torch.arange(len(columns))
        )
        window = MAGELoss(model).window(columns[index].set(MASK_KEY, mask))
        tokens = model.eval().tokenize(window).token_ids
        monkeypatch.setattr(MAGEModel, "generate", keep_given)
        last.columns()
        expected = [model.quantizer.lookup(ids) for ids in tokens]
        found = [torch.cat(codes) for codes in zip(*followed, strict=True)]
        assert len(found) == scales
        assert all(map(torch.equal, found, expected))
        monkeypatch.undo()
        assert same(state_of(train(**options, resume=True)), state_of(model))

    def test_checkpoints_alone_change_nothing(self, train: Train, tmp_path: Path) -> None:
        kept = train(config=RANDOM, checkpoint_path=tmp_path / "file", checkpoint_interval=1)
        assert same(state_of(kept), state_of(train(config=RANDOM)))

    def test_a_finished_run_is_only_read(self, train: Train, tmp_path: Path) -> None:
        path = tmp_path / "training.mage"
        whole = train(checkpoint_path=path)
        before = path.read_bytes()
        again = train(checkpoint_path=path, resume=True)
        assert same(state_of(again), state_of(whole))
        assert path.read_bytes() == before

    def test_fine_tuning_goes_on_from_whatever_model(
        self, train: Train, toy_dataset: TensorDict, tmp_path: Path
    ) -> None:
        """What a stage trains is what the checkpoint's networks say, not those it is read into."""
        quiet = {"device": "cpu", "progress_bar": False}
        expected = state_of(fit(train(), toy_dataset, seed=1, **quiet))
        path = tmp_path / "training.mage"
        fit(train(), toy_dataset, seed=1, checkpoint_path=path, callback=lambda _: False, **quiet)
        assert load_tensors(path)[1]["training"]["stage"] == "tokenizer"
        new = MAGEModel.from_dataset(toy_dataset, tiny_config(), seed=5)
        resumed = fit(new, toy_dataset, seed=1, checkpoint_path=path, resume=True, **quiet)
        assert same(state_of(resumed), expected)
        path.unlink()
        train(checkpoint_path=path, callback=lambda _: False)
        other = fit(train(seed=3), toy_dataset, checkpoint_path=path, resume=True, **quiet)
        assert same(state_of(other), state_of(train()))

    def test_seeds_of_numpy_and_folders_that_are_no_files(
        self, train: Train, toy_dataset: TensorDict, tmp_path: Path
    ) -> None:
        path = tmp_path / "training.mage"
        model = train()
        quiet = {"device": "cpu", "progress_bar": False, "resume": True}
        fit(model, toy_dataset, seed=np.int64(3), checkpoint_path=path, **quiet)  # type: ignore[arg-type]
        assert load_tensors(path)[1]["training"]["seed"] == 3
        with pytest.raises(IsADirectoryError, match="it is a folder; name a file"):
            fit(model, toy_dataset, checkpoint_path=tmp_path, **quiet)

    def test_without_resume_an_old_file_is_kept(self, train: Train, tmp_path: Path) -> None:
        path = tmp_path / "training.mage"
        train(checkpoint_path=path)
        before = path.read_bytes()
        with pytest.raises(FileExistsError, match="exists; go on from it with resume=True"):
            train(checkpoint_path=path, config={"learning_rate": 1e-3})
        assert path.read_bytes() == before
        with pytest.raises(ValueError, match="resume=True needs checkpoint_path"):
            train(resume=True)

    def test_ctrl_c_keeps_the_step_that_was_taken(
        self, train: Train, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
        path = tmp_path / "training.mage"
        whole = state_of(train())
        steps = []

        def press(progress: Progress) -> None:
            steps.append(progress.done)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(checkpoint_path=path, callback=press)
        assert len(steps) == 1, "the loop stops at the next chance"
        _, header = load_tensors(path)
        assert header["training"]["step"] == steps[0]
        assert same(state_of(train(checkpoint_path=path, resume=True)), whole)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt), interrupts(hold=True):
            signal.raise_signal(signal.SIGINT)  # that nobody heeds
        with interrupts(hold=True) as asked:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            asked.clear()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_another_run_is_refused_with_what_differs(self, train: Train, tmp_path: Path) -> None:
        path = tmp_path / "training.mage"
        train(checkpoint_path=path)
        options = {"checkpoint_path": path, "resume": True}
        with pytest.raises(ValueError, match=r"configuration \['dropout', 'learning_rate'\]"):
            train(config={"learning_rate": 1e-3, "dropout": 0.5}, **options)
        with pytest.raises(ValueError, match="seed 0 against 1"):
            train(seed=1, **options)

    def test_a_setting_that_is_gone_is_another_run(self, train: Train, tmp_path: Path) -> None:
        path = tmp_path / "training.mage"
        train(checkpoint_path=path)
        tensors, header = checkpoint.load_tensors(path)
        header["config"]["setting_of_old"] = "expected"
        checkpoint.save_tensors(tensors, path, header)
        with pytest.raises(ValueError, match=r"differing configuration \['setting_of_old'\]"):
            train(checkpoint_path=path, resume=True)

    def test_a_training_that_diverged_goes_on_at_a_lower_rate(
        self, train: Train, tmp_path: Path
    ) -> None:
        options = {"checkpoint_path": tmp_path / "training.mage", "checkpoint_interval": 1}

        def stop(progress: Progress) -> None:
            raise Interrupt

        with pytest.raises(Interrupt):
            train(callback=stop, **options)
        rates: list[float] = []
        train(
            config={"learning_rate": 1e-5, "warmup_steps": 0},
            resume=True,
            callback=lambda progress: rates.append(progress.metrics["learning_rate"]),
            **options,
        )
        assert len(rates) > 1
        assert rates[0] <= 1e-5

    @pytest.mark.parametrize("interval", [0, -1])
    def test_interval_of_checkpoints(self, train: Train, interval: int) -> None:
        with pytest.raises(ValueError, match=f"checkpoint_interval is {interval}"):
            train(checkpoint_interval=interval)

    @pytest.mark.parametrize(
        "key", ["observation", "action", "episode", ("next", "reward"), "metadata"]
    )
    def test_other_data_of_the_same_size_is_refused(
        self, toy_dataset: TensorDict, train: Train, tmp_path: Path, key: str
    ) -> None:
        path = tmp_path / "training.mage"
        train(checkpoint_path=path)
        other = toy_dataset.clone()
        if key == "metadata":
            bounds = dict(toy_dataset.get_non_tensor("metadata"), action_high=[5.0, 5.0])
            other.set_non_tensor("metadata", bounds)
        else:
            row = 0 if key == "observation" else -1  # that episode has no other step to fit to
            other[key][row] = other[key][row] / 2 if key == "action" else other[key][row] + 1
        with pytest.raises(ValueError, match=r"training\.mage comes from .* other data, differing"):
            fit(
                MAGEModel.from_dataset(other, tiny_config()),
                other,
                checkpoint_path=path,
                resume=True,
                progress_bar=False,
            )

    @pytest.mark.parametrize(
        "change",
        [
            {"optimizer.0.exp_avg": torch.zeros(1)},  # shorter than its parameter
            {"optimizer.0.step": torch.zeros(2)},
            {"optimizer.0.surprise": torch.zeros(())},
            {"optimizer.99.step": torch.zeros(())},
            {"optimizer.x.step": torch.zeros(())},
            {"model.surprise": torch.zeros(3)},
            {"random.torch": torch.zeros(3, dtype=torch.uint8)},
            {"random.torch": torch.zeros(5056, dtype=torch.uint8)},
            {"random.batches": torch.zeros(3)},
            {"step": -1},
            {"step": 5},
            {"step": 1.5},
            {"stage": "dreaming"},
            {"stage": None},
        ],
        ids=str,
    )
    def test_a_crafted_state_is_refused(
        self, train: Train, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        path = tmp_path / "training.mage"
        train(checkpoint_path=path)
        tensors, header = checkpoint.load_tensors(path)
        for key, value in change.items():
            (tensors if "." in key else header["training"])[key] = value
        checkpoint.save_tensors(tensors, path, header)
        with pytest.raises(checkpoint.CheckpointError, match=r"training\.mage holds no usable"):
            train(checkpoint_path=path, resume=True)

    def test_a_model_of_other_sizes_is_refused(
        self, toy_dataset: TensorDict, train: Train, tmp_path: Path
    ) -> None:
        path = tmp_path / "training.mage"
        train(checkpoint_path=path)
        wider = toy_dataset.clone()
        wider["action"] = torch.cat([wider["action"]] * 2, dim=-1)
        wider = wider.exclude("metadata")
        with pytest.raises(ValueError, match="another run"):
            fit(
                MAGEModel.from_dataset(wider, tiny_config()),
                wider,
                checkpoint_path=path,
                resume=True,
                progress_bar=False,
            )

    def test_a_finished_model_is_no_state_of_training_and_the_other_way_round(
        self, train: Train, tmp_path: Path
    ) -> None:
        path = tmp_path / "training.mage"
        model = train(checkpoint_path=path)
        with pytest.raises(checkpoint.CheckpointError, match=r"training\.mage"):
            checkpoint.load(path)
        checkpoint.save(model, path)
        with pytest.raises(ValueError, match="finished model, not a state of training"):
            train(checkpoint_path=path, resume=True)

    def test_a_damaged_file_is_refused(self, train: Train, tmp_path: Path) -> None:
        path = tmp_path / "training.mage"
        train(checkpoint_path=path)
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(checkpoint.CheckpointError, match="damaged"):
            train(checkpoint_path=path, resume=True)


class TestStages:
    def test_a_loop_over_the_stages_is_the_same_training(
        self, train: Train, toy_dataset: TensorDict
    ) -> None:
        """Nothing that matters happens inside ``fit`` only."""
        whole = train(config=RANDOM)
        agent = MAGEModel.from_dataset(toy_dataset, tiny_config(**RANDOM), seed=0)
        torch.manual_seed(0)
        for number, stage in enumerate(agent.stages(toy_dataset)):
            stage.begin()
            optimizer = stage.make_optimizer()
            for step, batch in zip(range(stage.steps), stage.batches(seed=number), strict=False):
                losses = stage.losses(batch)
                total_loss(losses).backward()
                stage.step(optimizer, step)
        assert same(state_of(agent), state_of(whole))

    def test_a_stage_refuses_a_gradient_that_is_not_finite(self, toy_dataset: TensorDict) -> None:
        stage = MAGEModel.from_dataset(toy_dataset, tiny_config()).stages(toy_dataset)[0]
        optimizer = stage.make_optimizer()
        before = [parameter.clone() for parameter in stage.loss.parameters()]
        for parameter in stage.loss.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan)
        with pytest.raises(TrainingError, match="not finite at step 0 of 'tokenizer'"):
            stage.step(optimizer, 0)
        assert all(map(torch.equal, before, stage.loss.parameters()))


class Averager(Agent):
    """A linear policy beside a slow copy of it, which lives in the loss; two updates per batch."""

    name = "averager"
    config_class = Config

    def __init__(self, config: Config, **sizes: Any) -> None:
        super().__init__(config, **sizes)
        self.policy = torch.nn.Linear(self.observation_dim, self.action_dim)
        self.other = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def decide(self, observation: Tensor, return_to_go: Tensor, state: Any, **_: Any) -> Any:
        return self.units.environment_action(self.policy(observation)), None

    def stages(self, dataset: TensorDict) -> list[Stage]:
        return [
            Stage(
                name="only",
                loss=SlowCopy(self),
                steps=10,
                columns=lambda: dataset.select("observation", "action", "episode"),
                batch_size=4,
                starts="episodes",
                horizon=3,
                updates_per_batch=2,
                prepare=self.prepare,
                optimizer=lambda: torch.optim.SGD(
                    [
                        {"params": self.policy.parameters(), "lr": 0.1, "momentum": 0.9},
                        {"params": self.other.parameters(), "lr": 0.1},
                    ]
                ),
                rates=lambda step, steps: [0.1 / (1 + step), 0.05],
            )
        ]

    def prepare(self, batch: TensorDict) -> TensorDict:
        self.seen.append(batch["index"][:, 0].tolist())
        return batch.set("noise", torch.randn(*batch.shape, 1))


class SlowCopy(torch.nn.Module):
    def __init__(self, agent: Averager) -> None:
        super().__init__()
        self.agent = agent
        self.slow = torch.nn.Linear(agent.observation_dim, agent.action_dim)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        for parameter in self.slow.parameters():
            parameter.requires_grad_(False)

    def forward(self, batch: TensorDict) -> TensorDict:
        self.calls += 1
        predicted = self.agent.policy(batch["observation"] + 0.1 * batch["noise"])
        error = (predicted - batch["action"] - 0.1 * self.slow(batch["observation"])).square()
        for slow, fast in zip(self.slow.parameters(), self.agent.policy.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.1)
        other = self.agent.other(batch["noise"]).square().mean()
        return TensorDict({"loss_error": error.mean(), "loss_other": other, "error": other})


class TestAnyAgent:
    @pytest.mark.parametrize("stop", [3, 4, 9])
    @pytest.mark.parametrize("asked", [True, False], ids=["told to stop", "killed"])
    def test_state_of_the_loss_batches_and_groups_survive_an_interruption(
        self,
        toy_dataset: TensorDict,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        stop: int,
        asked: bool,
    ) -> None:
        monkeypatch.setattr(training, "LOG_INTERVAL", 1)
        options: dict[str, Any] = {"device": "cpu", "progress_bar": False, "seed": 3}

        def interrupt(progress: Progress) -> bool:
            if progress.step == stop and not asked:
                raise Interrupt
            return progress.step != stop  # a batch has two steps, both of which are taken

        whole = fit(Averager.from_dataset(toy_dataset, Config(), seed=1), toy_dataset, **options)
        options |= {"checkpoint_path": tmp_path / "state", "checkpoint_interval": 1}
        agent = Averager.from_dataset(toy_dataset, Config(), seed=1)
        with nullcontext() if asked else pytest.raises(Interrupt):
            fit(agent, toy_dataset, callback=interrupt, **options)
        resumed = Averager.from_dataset(toy_dataset, Config(), seed=2)
        fit(resumed, toy_dataset, resume=True, **options)
        assert same(state_of(whole), state_of(resumed))
        assert len(whole.seen) == 5  # each batch is used twice
        firsts = toy_dataset["step_count"].flatten()[torch.tensor(whole.seen).flatten()]
        assert (firsts == 0).all()  # windows start where episodes do

    def test_tensors_of_the_loss_stay_out_of_the_agents_file(
        self, toy_dataset: TensorDict, tmp_path: Path
    ) -> None:
        agent = Averager.from_dataset(toy_dataset, Config())
        fit(
            agent,
            toy_dataset,
            device="cpu",
            progress_bar=False,
            checkpoint_path=tmp_path / "state",
        )
        state, _ = checkpoint.load_tensors(tmp_path / "state")
        kept = {key for key in state if key.startswith("loss.")}
        assert kept == {"loss.slow.weight", "loss.slow.bias", "loss.calls"}
        checkpoint.save(agent, tmp_path / "agent")
        tensors, header = checkpoint.load_tensors(tmp_path / "agent")
        assert tensors.keys() == agent.state_dict().keys()
        assert header["method"] == "averager"
        loaded, _ = checkpoint.load(tmp_path / "agent")
        assert same(state_of(loaded), state_of(agent))


class TestFailure:
    def test_a_loss_that_is_not_finite_names_step_rows_and_last_checkpoint(
        self,
        train: Train,
        toy_dataset: TensorDict,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        forward = MAGELoss.forward
        calls = itertools.count()

        def poisoned(self: MAGELoss, tensordict: TensorDict) -> TensorDict:
            losses = forward(self, tensordict)
            if next(calls) == 2:
                losses["loss_token"] = losses["loss_token"] * torch.nan
            return losses

        monkeypatch.setattr(MAGELoss, "forward", poisoned)
        path = tmp_path / "training.mage"
        with pytest.raises(TrainingError) as caught:
            train(checkpoint_path=path, checkpoint_interval=1)
        message = str(caught.value)
        for part in ("step 2", "'generator'", "'loss_token': nan", str(path), "learning_rate"):
            assert part in message
        # The rows are those of the third batch of the second stage.
        buffer = replay_buffer(toy_dataset, horizon=1, batch_size=16, seed=1)
        rows = [buffer.sample()["index"][:, 0] for _ in range(3)][-1]
        assert torch.equal(caught.value.rows, rows)
        assert str(rows.tolist()) in message
        _, header = checkpoint.load_tensors(path)
        fingerprint = header["training"].pop("dataset")
        assert len(fingerprint) == 64
        assert header["training"] == {
            "stage": "generator",
            "step": 2,
            "left": 14,  # of the batches that were drawn at once
            "seed": 0,
            "steps": dict.fromkeys(STAGES, 4),
        }
        calls = itertools.count()
        with pytest.raises(TrainingError) as caught:
            train()
        assert "last good state" not in str(caught.value)

    def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The square root of zero has a value but no slope."""
        forward = MAGELoss.forward

        def steep(self: MAGELoss, tensordict: TensorDict) -> TensorDict:
            losses = forward(self, tensordict)
            losses["loss_token"] = losses["loss_token"] + (0 * losses["loss_token"]).sqrt()
            return losses

        monkeypatch.setattr(MAGELoss, "forward", steep)
        path = tmp_path / "training.mage"
        with pytest.raises(TrainingError, match="gradient"):
            train(checkpoint_path=path, checkpoint_interval=1)
        tensors, _ = checkpoint.load_tensors(path)
        assert all(torch.isfinite(t).all() for k, t in tensors.items() if "transformer" in k)

    def test_a_failed_run_leaves_the_global_generator_alone(self, train: Train) -> None:
        before = torch.get_rng_state()

        def fail(_: Progress) -> None:
            raise Interrupt

        with pytest.raises(Interrupt):
            train(callback=fail)
        assert torch.equal(torch.get_rng_state(), before)


class TestCollapse:
    def test_training_says_so_once(self, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
        def useless(self: MultiScaleQuantizer, vectors: Tensor) -> Tensor:
            return torch.zeros(vectors.shape[:-1], dtype=torch.int64)

        monkeypatch.setattr(MultiScaleQuantizer, "nearest", useless)
        with pytest.warns(UserWarning, match="1 of 8 codes are used") as caught:
            train()
        assert len(caught) == 1
        assert caught[0].filename == __file__


class TestWrongData:
    @pytest.fixture
    def model(self, toy_dataset: TensorDict) -> MAGEModel:
        return MAGEModel.from_dataset(toy_dataset, tiny_config())

    @pytest.mark.parametrize(
        ("key", "found"), [("observation", "6} and 2 actions"), ("action", "3} and 4 actions")]
    )
    def test_other_sizes(
        self, model: MAGEModel, toy_dataset: TensorDict, key: str, found: str
    ) -> None:
        wider = toy_dataset.clone()
        wider[key] = torch.cat([wider[key]] * 2, dim=-1)
        if key == "observation":
            wider["next", key] = torch.cat([wider["next", key]] * 2, dim=-1)
        wider = wider.exclude("metadata")
        with pytest.raises(ValueError, match=rf"{found}, the agent .*'observation': 3.* and 2"):
            fit(model, wider)

    def test_what_is_no_dataset(self, model: MAGEModel, toy_dataset: TensorDict) -> None:
        rollout = toy_dataset.exclude("episode", "step_count")
        for source, error in (
            (rollout, "load_dataset.tensordict. completes"),
            ("D4RL/pen/human-v2", "needed is the TensorDict"),
            (toy_dataset[:0], "N >= 1 steps"),
        ):
            with pytest.raises((KeyError, TypeError, ValueError), match=error):
                MAGEModel.from_dataset(source, tiny_config())  # type: ignore[arg-type]
            with pytest.raises((KeyError, TypeError, ValueError), match=error):
                fit(model, source)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="first step of no episode"):
            MAGEModel.from_dataset(
                toy_dataset[toy_dataset["step_count"].flatten() > 0], tiny_config()
            )

    def test_nested_entries_are_left_out(self, toy_dataset: TensorDict) -> None:
        """As in FrankaKitchen, whose goals are dictionaries."""
        for where in (toy_dataset, toy_dataset["next"]):
            where["desired_goal"] = {"kettle": torch.ones(len(toy_dataset), 7)}
        check_dataset(toy_dataset)
        assert "desired_goal (nested)" in dataset_facts(toy_dataset, discount=0.9)["observation"]
        told = pytest.warns(UserWarning, match=r"\['desired_goal'\] are not read, only")
        for keys, says in (((), told), (("observation",), nullcontext())):
            with says:
                model = MAGEModel.from_dataset(toy_dataset, tiny_config(observation_keys=keys))
            assert model.config.observation_keys == ("observation",)
        with pytest.raises(ValueError, match=r"no observation entries \['desired_goal'\]"):
            MAGEModel.from_dataset(toy_dataset, tiny_config(observation_keys=("desired_goal",)))

    def test_a_missing_observation(self, model: MAGEModel, toy_dataset: TensorDict) -> None:
        with pytest.raises(KeyError, match="lacks observation"):
            fit(model, toy_dataset.exclude("observation"))
        config = tiny_config(observation_keys=("observation", "goal"))
        with pytest.raises(ValueError, match=r"no observation entries \['goal'\]"):
            MAGEModel.from_dataset(toy_dataset, config)

    def test_one_dataset_serves_every_discount(self, toy_dataset: TensorDict) -> None:
        reward, starts = toy_dataset["next", "reward"], toy_dataset["step_count"].flatten() == 0
        for discount in (1.0, 0.9):
            model = MAGEModel.from_dataset(toy_dataset, tiny_config(discount=discount))
            best, total = -np.inf, 0.0
            for row in reversed(range(len(reward))):
                last = toy_dataset["next", "done"][row]
                total = float(reward[row]) + (0.0 if last else discount * total)
                best = max(best, total if starts[row] else -np.inf)
            assert float(model.units.target_return) == pytest.approx(best, rel=1e-5)

    def test_goal_environments_bring_their_keys(self, toy_dataset: TensorDict) -> None:
        goals = toy_dataset.exclude("metadata")
        goals["desired_goal"] = goals["observation"][:, :2]
        goals["next", "desired_goal"] = goals["next", "observation"][:, :2]
        model = MAGEModel.from_dataset(goals, tiny_config())
        assert model.config.observation_keys == ("desired_goal", "observation")
        assert model.observation_dim == STATE + 2
        named = MAGEModel.from_dataset(goals, tiny_config(observation_keys=("observation",)))
        assert named.observation_dim == STATE


class TestLog:
    def test_tensorboard_has_every_loss_and_metric_when_training_ends(
        self, train: Train, tmp_path: Path
    ) -> None:
        train(log_dir=tmp_path)
        (events,) = tmp_path.rglob("events.out.tfevents.*")
        log = EventAccumulator(str(events)).Reload()
        tags = set(log.Tags()["scalars"])
        assert {
            "tokenizer/loss",
            "tokenizer/loss_reconstruction",
            "tokenizer/codebook_usage_3",
            "tokenizer/learning_rate",
            "generator/loss_token",
            "generator/loss_condition",
            "generator/token_accuracy_1",
            "generator/token_accuracy_3",
            "inverse_dynamics/loss_inverse_dynamics",
        } <= tags
        # There, the inverse dynamics has a stage of its own, which comes after.
        assert not tags & {f"generator/action_error_{kind}" for kind in ("true", "generated")}
        assert [entry.step for entry in log.Scalars("tokenizer/loss")] == [4]

    def test_nothing_is_written_unless_asked_for(
        self, train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        train()
        assert list(tmp_path.iterdir()) == []
        assert capfd.readouterr() == ("", "")

    def test_a_progress_bar_names_the_stages(
        self,
        toy_dataset: TensorDict,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model = MAGEModel.from_dataset(toy_dataset, tiny_config())
        monkeypatch.setattr(training, "BAR_DELAY", 0.0)  # short trainings show none
        fit(model, toy_dataset, device="cpu")
        shown = capfd.readouterr().err
        assert all(stage in shown for stage in STAGES)
        assert "4/4" in shown


class TestDescribe:
    def test_reports_where_accuracy_is_lost(self, train: Train, toy_dataset: TensorDict) -> None:
        model = train()
        report = model.describe(toy_dataset)
        assert set(report) == {
            "reconstruction_error",
            "action_error_true",
            "action_error_generated",
            "action_error_acting",
            *(f"token_accuracy_{k}" for k in (1, 2, 3)),
            *(f"codebook_usage_{k}" for k in (1, 2, 3)),
        }
        assert all(np.isfinite(value) and value >= 0 for value in report.values())
        assert all(report[f"token_accuracy_{k}"] <= 1 for k in (1, 2, 3))

    def test_repeats_and_changes_nothing(self, train: Train, toy_dataset: TensorDict) -> None:
        model = train(config=RANDOM)
        state, generator = state_of(model), torch.get_rng_state()
        report = model.describe(toy_dataset)
        torch.manual_seed(5)
        assert model.train().describe(toy_dataset) == report
        assert model.training
        torch.set_rng_state(generator)
        model.describe(toy_dataset)
        assert torch.equal(torch.get_rng_state(), generator)
        assert same(state_of(model), state)


@pytest.mark.parametrize("expectile", [None, 0.9])
def test_returns_in_other_units_are_warned_of(
    toy_dataset: TensorDict, expectile: float | None
) -> None:
    """Also where agents ask for the best, which is beyond all returns."""
    model = MAGEModel.from_dataset(toy_dataset, tiny_config(return_expectile=expectile))
    check_fits(model, toy_dataset)
    other = toy_dataset.copy()
    other["next"] = toy_dataset["next"].copy().set("reward", toy_dataset["next", "reward"] - 50)
    with pytest.warns(UserWarning, match="returns-to-go reach from"):
        check_fits(model, other)


def test_a_best_return_of_an_episode_cut_off_early_is_warned_of() -> None:
    lengths = [20, 20, 2, 20]
    ends = torch.tensor(lengths).cumsum(0) - 1
    last = torch.zeros(sum(lengths), dtype=torch.bool)
    last[ends] = True
    generator = torch.Generator().manual_seed(0)
    arrays = (
        torch.randn(sum(lengths), 3, generator=generator).numpy(),
        torch.rand(sum(lengths), 2, generator=generator).numpy(),
        np.full(sum(lengths), -1.0),  # every step costs
    )
    cut = dataset_from_arrays(*arrays, (last & False).numpy(), last.numpy())
    done = dataset_from_arrays(*arrays, last.numpy(), (last & False).numpy())
    config = tiny_config(learning_rate=1e-5)
    with pytest.warns(UserWarning, match="episode cut off after 2 steps, where most have 20"):
        fit(MAGEModel.from_dataset(cut, config), cut, steps=3, progress_bar=False)
    fit(MAGEModel.from_dataset(done, config), done, steps=3, progress_bar=False)  # it has arrived
    tied = cut.copy()
    tied["next"] = cut["next"].copy().set("reward", torch.zeros(sum(lengths), 1))
    fit(MAGEModel.from_dataset(tied, config), tied, steps=3, progress_bar=False)
    calm = config.replace(target_quantile=0.5)
    fit(MAGEModel.from_dataset(cut, calm), cut, steps=3, progress_bar=False)
