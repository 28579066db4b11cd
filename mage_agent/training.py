"""The one training loop: every stage of every agent; logged, and resumable to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.record.loggers.tensorboard import TensorboardLogger
from tqdm import tqdm

from mage_agent import checkpoint, parallel
from mage_agent.agent import Agent, evaluating
from mage_agent.checkpoint import usable, versions
from mage_agent.compatibility import check_fits
from mage_agent.files import make_place
from mage_agent.hardware import find_device, interrupts, keep_freed_memory, seeded
from mage_agent.losses import AgentLoss
from mage_agent.stage import Stage, TrainingError, share_out, total_loss

__all__ = ["Progress", "TrainingError", "fit", "total_loss", "versions"]

LOG_INTERVAL = 50
"""Steps between two entries of the log."""
BAR_DELAY = 2.0
"""Seconds before a progress bar is shown."""


@dataclass
class Progress:
    """Where training stands; handed to callbacks.

    Attributes:
        stage: name of the stage.
        step: finished steps of this stage.
        steps: all steps of this stage.
        done: finished steps of the training.
        total: all steps of the training.
        before: steps of the stages in which the agent cannot act yet.
        acts: whether the agent can act already.
        metrics: losses and metrics of the last logged step.
    """

    stage: str
    step: int
    steps: int
    done: int
    total: int
    before: int = 0
    acts: bool = True
    metrics: dict[str, float] = field(default_factory=dict)


def fit(
    agent: Agent,
    dataset: TensorDictBase,
    *,
    seed: int = 0,
    steps: int | None = None,
    device: str | torch.device = "auto",
    progress_bar: bool = True,
    log_dir: str | Path | None = None,
    checkpoint_path: str | Path | None = None,
    checkpoint_interval: int = 1000,
    resume: bool = False,
    compiled: bool = False,
    callback: Callable[[Progress], bool | None] | None = None,
) -> Agent:
    """Train an agent in all its stages, in place.

    Args:
        agent: from ``from_dataset`` or a checkpoint.
        dataset: from ``load_dataset``.
        seed: of batches, dropout and samples; torch's global generator stays untouched.
        steps: gradient steps in all, shared out among the stages in proportion to their own
            numbers, which None leaves as they are.
        device: "auto" takes a GPU where there is one.
        progress_bar: whether to show one.
        log_dir: folder for TensorBoard logs of every loss and metric.
        checkpoint_path: file to keep the state of training in, replaced whole every
            ``checkpoint_interval`` steps, at the end of a stage, and when training is interrupted.
        checkpoint_interval: steps between two checkpoints.
        resume: go on from ``checkpoint_path`` if it exists, to weights that equal an uninterrupted
            run's bit for bit; on a GPU only under ``torch.use_deterministic_algorithms(True)``,
            without which no two trainings are alike there.
        compiled: whether to compile the losses of stages that are ``one_graph``, a minute each,
            and on a GPU to replay them as CUDA graphs: equal within rounding, in a quarter of the
            time of a step (measured for MAGE's second stage at the paper's size).
        callback: called with the progress at every 50th step and at the end of a stage; training
            ends early, with a checkpoint, when it returns False.

    Returns:
        The agent, in evaluation mode.

    Ctrl-C ends the training of one process as a callback does, a second one at once. Several
    processes (``mage_agent.parallel``) share each batch; the first logs, saves, calls back.

    Raises:
        KeyError, TypeError: the dataset is not what ``load_dataset`` returns.
        ValueError: the dataset does not fit the agent, or the checkpoint is damaged or that of
            another configuration, seed or dataset. What ``config.ADJUSTABLE`` names, such as
            learning rates, may differ: changing it is what helps training that diverged.
        FileExistsError: the checkpoint is there, and ``resume`` is False.
        OSError: the checkpoint cannot be written; the one before it stays as it is.
        TrainingError: a loss, its gradient or a weight is not finite.
    """
    check_fits(agent, dataset)
    if checkpoint_interval < 1:
        raise ValueError(f"checkpoint_interval is {checkpoint_interval}; it must be at least 1.")
    if resume and checkpoint_path is None:
        raise ValueError("resume=True needs checkpoint_path, the file to go on from.")
    if checkpoint_path is not None and not resume and Path(checkpoint_path).exists():
        raise FileExistsError(
            f"{checkpoint_path} exists; go on from it with resume=True, or delete it."
        )
    target = find_device(device)
    keep_freed_memory()
    agent.to(target)
    first = parallel.is_first()
    if checkpoint_path is not None and first:
        make_place(Path(checkpoint_path))  # before the work, not after it
    logger = TensorboardLogger(agent.name, log_dir=str(log_dir)) if log_dir and first else None
    with (
        seeded(seed, target),
        closing(logger.experiment) if logger is not None else nullcontext(),
        interrupts(hold=parallel.processes() == 1) as interrupted,
    ):
        run = _Run(agent, dataset, steps, seed, target, checkpoint_path, compiled)
        if resume and checkpoint_path is not None and Path(checkpoint_path).is_file():
            run.restore()
        while run.number < len(run.stages):
            run.begin()
            due = stop = False
            bar = tqdm(
                run.steps(),
                desc=run.stage.name,
                total=run.stage.steps,
                initial=run.step,
                disable=not (progress_bar and first),
                delay=BAR_DELAY,
            )
            for losses in bar:
                if run.logs(run.step) and not stop:
                    progress = run.report(losses)
                    bar.set_postfix(loss=f"{progress.metrics['loss']:.3f}", refresh=False)
                    if logger is not None:
                        for key, value in progress.metrics.items():
                            logger.log_scalar(f"{progress.stage}/{key}", value, step=run.step)
                    wish = None
                    if callback is not None and first:
                        with run.stage.acting(), evaluating(agent), seeded(run.step, target):
                            wish = callback(progress)
                    stop = parallel.agreed(wish is not None and not wish, target)
                done, stop = run.step == run.stage.steps, stop or interrupted.is_set()
                due = due or stop or run.step % checkpoint_interval == 0
                if done:
                    run.stage.end()
                if done or (due and run.between_batches):
                    run.save()
                    due = False
                    if stop and not done:  # what was saved goes on as if nothing had stopped it
                        run.stage.end()
                    if stop:
                        return agent.eval()  # to ``interrupts``, which raises if it was that
            run.number, run.step = run.number + 1, 0
    return agent.eval()


def dataset_digest(agent: Agent, dataset: TensorDictBase) -> str:
    """A name of what an agent learns from in a dataset."""
    keys = (*agent.config.observation_keys, "action", "episode", "next")
    bounds = agent.units.action_low.tolist(), agent.units.action_high.tolist()
    return checkpoint.digest(dataset.select(*keys).flatten_keys(".").to_dict(), str(bounds))


class _Run:
    """The loop's state: what a checkpoint must hold, and no more."""

    def __init__(
        self,
        agent: Agent,
        dataset: TensorDictBase,
        steps: int | None,
        seed: int,
        device: torch.device,
        path: str | Path | None,
        compiled: bool,
    ) -> None:
        self.agent, self.seed, self.device, self.compiled = agent, int(seed), device, compiled
        self.make: Callable[[], list[Stage]] = lambda: share_out(agent.stages(dataset), steps)
        self.stages = self.make()
        for stage in self.stages:
            parallel.check_share(stage.batch_size)
        self.path = None if path is None else Path(path)
        self.number, self.step = 0, 0
        self._restored: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        counts = {stage.name: stage.steps for stage in self.stages}
        data = "" if path is None else dataset_digest(agent, dataset)
        self.header = {"seed": self.seed, "steps": counts, "dataset": data}

    @property
    def stage(self) -> Stage:
        """The stage that is being trained."""
        return self.stages[self.number]

    def begin(self) -> None:
        """Set up batches and optimiser of a stage."""
        stage = self.stage
        for module in (stage.loss, *stage.kept.values()):
            module.to(self.device)
        if self._restored is None:
            stage.begin()
        if self.compiled and stage.one_graph:
            graphs = "reduce-overhead" if self.device.type == "cuda" else "default"
            stage.loss.compile(dynamic=False, mode=graphs)
        self.optimizer = stage.make_optimizer()
        self.batches = stage.make_batches(self.seed + self.number)
        self.uses = stage.updates_per_batch  # so that the first step draws a batch
        if self._restored is not None:
            self._restore_loop(*self._restored)
            self._restored = None

    def steps(self) -> Iterator[TensorDictBase]:
        """Train to the end of the stage; yields the losses of every step after it was taken."""
        stage = self.stage
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        while self.step < stage.steps:
            if isinstance(stage.loss, AgentLoss):
                stage.loss.metrics = self.logs(self.step + 1)
            batch = self._next_batch()
            losses = stage.losses(batch)
            total_loss(losses).backward()
            losses = parallel.average(losses.detach())
            parallel.average_gradients(parameters)
            try:
                if not torch.isfinite(total_loss(losses)):
                    raise TrainingError("the loss is not finite")
                stage.step(self.optimizer, self.step)
            except TrainingError as error:
                raise self._failure(losses, batch) from error
            self.step += 1
            yield losses

    def logs(self, step: int) -> bool:
        """Whether the step is an entry of the log."""
        return step % LOG_INTERVAL == 0 or step == self.stage.steps

    def report(self, losses: TensorDictBase) -> Progress:
        """Losses and metrics as numbers, with their sum as ``loss``."""
        metrics = {key: float(value) for key, value in losses.items()}
        metrics["loss"] = float(total_loss(losses))
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        counts = [stage.steps for stage in self.stages]
        return Progress(
            stage=self.stage.name,
            step=self.step,
            steps=self.stage.steps,
            done=sum(counts[: self.number]) + self.step,
            total=sum(counts),
            before=sum(stage.steps for stage in self.stages if not stage.acts),
            acts=self.stage.acts,
            metrics=metrics,
        )

    def _next_batch(self) -> TensorDictBase:
        """The next batch, or the same one again while the stage has updates for it."""
        if self.between_batches:
            drawn = parallel.share(next(self.batches)).to(self.device)
            self.batch, self.uses = self.stage.prepare(drawn), 0
        self.uses += 1
        return self.batch

    @property
    def between_batches(self) -> bool:
        """Whether the next step takes a new batch, so that a checkpoint needs none."""
        return self.uses == self.stage.updates_per_batch

    # ------------------------------------------------------------------------------ checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Weights and statistics of the agent, and further state of the loss."""
        agent = self.agent.state_dict()
        ours = {value.data_ptr() for value in agent.values()}
        training = self.stage.state_dict().items()
        kept = {key: value for key, value in training if value.data_ptr() not in ours}
        return {
            **{f"model.{key}": value for key, value in agent.items()},
            **{f"loss.{key}": value for key, value in kept.items()},
        }

    def save(self) -> None:
        """Write everything that the rest of training depends on."""
        tensors = self.tensors()
        weights = {f"model.{key}" for key, _ in self.agent.named_parameters()}
        bad = [
            key
            for key, value in tensors.items()
            if not value.isfinite().all() and (key in weights or value.isnan().any())
        ]
        if bad:
            raise TrainingError(
                f"weights are not finite at step {self.step} of stage {self.stage.name!r}: "
                f"{bad[:5]}{self._kept()}. Lower learning_rate."
            )
        if self.path is None or not parallel.is_first():
            return
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
        tensors["random.torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        place = self.batches.state_dict()
        tensors["random.batches"] = place["rng_state"]
        loop = {"stage": self.stage.name, "step": self.step, "left": place["left"], **self.header}
        header = checkpoint.agent_header(self.agent) | {"training": loop}
        checkpoint.save_tensors(tensors, self.path, header)

    def restore(self) -> None:
        """Read a checkpoint; the loop's part of it waits for ``begin``."""
        assert self.path is not None
        tensors, header = checkpoint.load_tensors(self.path)
        loop = header.get("training")
        if loop is None:
            raise ValueError(f"{self.path} is a finished model, not a state of training.")
        config = self.agent.config
        ours = {"method": self.agent.name, **config.to_dict(), **self.agent.sizes, **self.header}
        with usable(self.path, "state of training"):
            theirs = {"method": header["method"], **header["config"], **header["sizes"], **loop}
        named = ours.keys() | header["config"].keys()
        changed = sorted(key for key in named if theirs.get(key, ...) != ours.get(key, ...))
        if set(changed) - config.ADJUSTABLE:
            differing = [key for key in changed if key not in ("seed", "dataset")]
            raise ValueError(
                f"{self.path} comes from another run: seed {theirs.get('seed')} against "
                f"{self.seed}, {'other' if 'dataset' in changed else 'the same'} data, differing "
                f"configuration {differing}. Use another file, or delete this one."
            )
        with usable(self.path, "state of training"):
            self.agent.load_state_dict(_of(tensors, "model."))
            self.stages = self.make()  # which depend on what was trained before
            self.number = [stage.name for stage in self.stages].index(loop["stage"])
        self._restored = (tensors, loop)

    def _restore_loop(self, tensors: dict[str, Tensor], loop: dict[str, Any]) -> None:
        assert self.path is not None
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        with usable(self.path, "state of training"):
            self.step = loop["step"]
            if not isinstance(self.step, int) or not 0 <= self.step <= self.stage.steps:
                raise ValueError(f"step {self.step!r} of {self.stage.steps}")
            for key, value in _of(tensors, "optimizer.").items():
                number, _, name = key.partition(".")
                state.setdefault(int(number), {})[name] = value
            if len({frozenset(entries) for entries in state.values()}) > 1:
                raise ValueError("the optimizer's state is not the same for all parameters")
            for index, entries in state.items():
                # The optimiser itself would not notice, and read past the end of a tensor.
                shapes = {name: value.shape for name, value in entries.items() if value.ndim}
                if any(shape != parameters[index].shape for shape in shapes.values()):
                    raise ValueError(f"optimizer state {index} has the shapes {shapes}")
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
            kept = self.stage.state_dict()
            for key, value in _of(tensors, "loss.").items():
                if kept[key].shape != value.shape:
                    raise ValueError(f"the loss's {key} has the shape {tuple(value.shape)}")
                kept[key].copy_(value)
            self.batches.load_state_dict(
                {"rng_state": tensors["random.batches"], "left": int(loop["left"])}
            )
            torch.set_rng_state(tensors["random.torch"])
            if self.device.type == "cuda" and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"], self.device)

    def _failure(self, losses: TensorDictBase, batch: TensorDictBase) -> TrainingError:
        index = batch.get("index", torch.zeros(0, dtype=torch.int64))
        rows = index[:, 0] if index.ndim > 1 else index
        values = {key: float(value) for key, value in losses.items() if key.startswith("loss_")}
        return TrainingError(
            f"the loss or its gradient is not finite at step {self.step} of stage "
            f"{self.stage.name!r}: {values}{self._kept()}. Its windows begin at the rows "
            f"{rows[:20].tolist()} of the dataset ({len(rows)} in all: the attribute rows of this "
            "error). Lower learning_rate or gradient_clip, or look for outliers in those rows.",
            rows,
        )

    def _kept(self) -> str:
        return f"; the last good state is {self.path}" if self.path and self.path.exists() else ""


def _of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
