"""Training: statistics, the tokenizer, then the generator; logged, and resumable to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.record.loggers.tensorboard import TensorboardLogger
from tqdm import tqdm

from mage_agent import checkpoint, parallel
from mage_agent.checkpoint import usable, versions
from mage_agent.config import GOALS, MAGEConfig
from mage_agent.data import (
    WindowSampler,
    check_dataset,
    metadata,
    observation_keys,
    replay_buffer,
)
from mage_agent.files import make_folder
from mage_agent.hardware import find_device, has_bfloat16, seeded
from mage_agent.health import TrainingError, warn_of_collapse
from mage_agent.losses import MAGEInverseDynamicsLoss, MAGELoss, MAGETokenizerLoss
from mage_agent.model import MAGEModel

__all__ = ["STAGES", "Progress", "TrainingError", "build_model", "describe", "fit", "versions"]

STAGES = ("tokenizer", "generator", "inverse_dynamics")
LOG_INTERVAL = 50
"""Steps between two entries of the log."""
ADJUSTABLE = (
    *("learning_rate", "inverse_dynamics_learning_rate", "warmup_steps", "weight_decay"),
    "gradient_clip",
)
"""What of the configuration may change when training is taken up again."""


@dataclass
class Progress:
    """Where training stands; handed to callbacks.

    Attributes:
        stage: "tokenizer", "generator" or "inverse_dynamics".
        step: finished steps of this stage.
        steps: all steps of this stage.
        metrics: losses and metrics of the last logged step.
    """

    stage: str
    step: int
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)


def build_model(dataset: TensorDictBase, config: MAGEConfig, *, seed: int = 0) -> MAGEModel:
    """Build a model that fits a dataset and take the dataset's statistics.

    Where the configuration names no ``observation_keys``, the model takes all entries that the
    dataset has, but nested ones.

    Args:
        dataset: from ``load_dataset``.
        config: the configuration.
        seed: of the initial weights.

    Raises:
        KeyError, TypeError: the dataset is not what ``load_dataset`` returns.
        ValueError: the dataset lacks an observation entry, or was loaded for another discount.
    """
    check_dataset(dataset)
    available = [key for key in observation_keys(dataset) if isinstance(dataset[key], Tensor)]
    config = config.replace(observation_keys=config.observation_keys or available)
    missing = [key for key in config.observation_keys if key not in available]
    if missing or not available:
        raise ValueError(
            f"the dataset has no observation entries {missing}; it has {available}, nested ones "
            "apart, which are not read. Set observation_keys in the configuration."
        )
    with seeded(seed, torch.device("cpu")):
        model = MAGEModel(
            config,
            observation_dim=sum(dataset[key].shape[-1] for key in config.observation_keys),
            action_dim=dataset["action"].shape[-1],
            goal_dim=dataset[GOALS[0]].shape[-1] if config.needs_goals else 0,
        )
    _fit_statistics(model, dataset)
    return model


def fit(
    model: MAGEModel,
    dataset: TensorDictBase,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress_bar: bool = True,
    log_dir: str | Path | None = None,
    checkpoint_path: str | Path | None = None,
    checkpoint_interval: int = 1000,
    resume: bool = False,
    accumulation: int = 1,
    callback: Callable[[Progress], None] | None = None,
) -> MAGEModel:
    """Train a model in all its stages, in place (Algorithms 1, 2 and 5).

    Args:
        model: from ``build_model`` or a checkpoint.
        dataset: from ``load_dataset``, with the model's discount.
        seed: of windows, dropout, codebook and samples; torch's global generator stays untouched.
        device: "auto" takes a GPU where there is one.
        progress_bar: whether to show one.
        log_dir: folder for TensorBoard logs of every loss and metric.
        checkpoint_path: file to keep the state of training in, replaced whole every
            ``checkpoint_interval`` steps and at the end.
        checkpoint_interval: steps between two checkpoints.
        resume: go on from ``checkpoint_path`` if it exists, to weights that equal an uninterrupted
            run's bit for bit on CPU.
        accumulation: parts in which the batches of the second stage, which are what fills the
            memory, are computed one after another; the step is still that of the whole batch.
        callback: called with the progress at every logged step.

    Returns:
        The model, in evaluation mode.

    In several processes (see ``mage_agent.parallel``), each computes its share of every batch, and
    the first one logs, saves and calls the callback.

    Raises:
        KeyError, TypeError: the dataset is not what ``load_dataset`` returns.
        ValueError: the dataset does not fit the model, or the checkpoint is damaged or that of
            another configuration, seed or dataset. Learning rates, warm-up, weight decay and the
            largest gradient norm may differ: changing them is what helps training that diverged.
        OSError: the checkpoint cannot be written; the one before it stays as it is.
        TrainingError: a loss or its gradient is not finite.

    Warns:
        UserWarning: the tokenizer has collapsed to a few of its codes.
    """
    _check_fit(model, dataset)
    if checkpoint_interval < 1:
        raise ValueError(f"checkpoint_interval is {checkpoint_interval}; it must be at least 1.")
    parallel.check_parts(model.config.batch_size, accumulation)
    target = find_device(device)
    model.to(target)
    first = parallel.is_first()
    if checkpoint_path is not None and first:
        make_folder(Path(checkpoint_path).parent)  # before the work, not after it
    logger = TensorboardLogger("mage", log_dir=str(log_dir)) if log_dir and first else None
    with (
        seeded(seed, target),
        closing(logger.experiment) if logger is not None else nullcontext(),
    ):
        trainer = _Trainer(model, dataset, seed, target, checkpoint_path, accumulation)
        if resume and checkpoint_path is not None and Path(checkpoint_path).is_file():
            trainer.restore()
        for stage in STAGES[trainer.stage_index :]:
            if getattr(model.config, f"{stage}_steps") == 0:
                continue
            trainer.begin(stage)
            bar = tqdm(
                trainer.steps(),
                desc=stage,
                total=trainer.total,
                initial=trainer.step,
                disable=not (progress_bar and first),
            )
            for losses in bar:
                if trainer.logs(trainer.step):
                    progress = trainer.report(losses)
                    bar.set_postfix(loss=f"{progress.metrics['loss']:.3f}")
                    if logger is not None:
                        for key, value in progress.metrics.items():
                            logger.log_scalar(f"{stage}/{key}", value, step=trainer.step)
                    if callback is not None and first:
                        callback(progress)
                if trainer.step % checkpoint_interval == 0 or trainer.step == trainer.total:
                    trainer.save()
            trainer.step = 0
    return model.eval()


@torch.no_grad()
def describe(
    model: MAGEModel, dataset: TensorDictBase, *, batch_size: int = 2048
) -> dict[str, float]:
    """Errors on data, best data the model has not seen: where on the way accuracy is lost.

    Args:
        model: a trained model.
        dataset: from ``load_dataset``.
        batch_size: windows to judge, drawn at random.

    Returns:
        ``reconstruction_error`` of D on true tokens (standardised), the mean squared action error
        of I in environment units on true tokens (``action_error_true``), on tokens generated in the
        true context (``action_error_generated``) and in the model's own (``action_error_acting``),
        and ``token_accuracy_k`` and ``codebook_usage_k`` of every scale.
    """
    training = model.training
    model.eval()
    buffer = replay_buffer(
        dataset, horizon=model.config.horizon, batch_size=min(batch_size, len(dataset)), seed=0
    )
    device = next(model.parameters()).device
    windows = buffer.sample().exclude("metadata").to(device)
    with seeded(0, device):
        tokenizer, generator = MAGETokenizerLoss(model), MAGELoss(model)
        losses = {**tokenizer.eval()(windows), **generator.eval()(windows)}
    errors = {key: float(value) for key, value in losses.items() if not key.startswith("loss")}
    window = tokenizer.window(windows)
    acted = model.act(window.observation[:, 0], window.return_to_go[:, 0])
    errors["action_error_acting"] = float((acted - window.action[:, 0]).square().mean())
    model.train(training)
    return errors


class _Trainer:
    """The loop's state: what a checkpoint must hold, and no more."""

    def __init__(
        self,
        model: MAGEModel,
        dataset: TensorDictBase,
        seed: int,
        device: torch.device,
        path: str | Path | None,
        accumulation: int,
    ) -> None:
        self.model, self.dataset, self.seed, self.device = model, dataset, seed, device
        self.accumulation = accumulation
        self.path = None if path is None else Path(path)
        columns = dataset.select(*_columns(model.config))
        self.fingerprint = "" if path is None else checkpoint.digest(columns.to_dict())
        self.stage_index, self.step, self.total = 0, 0, 0
        self._restored: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def begin(self, stage: str) -> None:
        """Set up loss, windows and optimiser of a stage."""
        config = self.model.config
        self.stage, self.stage_index = stage, STAGES.index(stage)
        self.total = getattr(config, f"{stage}_steps")
        self.model.train()
        # The third stage's network is too small to gain.
        self.low_precision = stage != "inverse_dynamics" and has_bfloat16(self.device)
        dataset = self.dataset.select(*_columns(config))
        if stage == "tokenizer":
            self.loss: MAGETokenizerLoss | MAGELoss | MAGEInverseDynamicsLoss
            self.loss = MAGETokenizerLoss(self.model)
            horizon = config.horizon
        elif stage == "generator":
            if self._restored is None:
                # Deviation: I starts anew in stage 2, on what can be generated.
                # In stage 1 it has come to rely on fine tokens that nobody can predict.
                self.model.inverse_dynamics.reset_parameters()
            self.loss = MAGELoss(self.model)
            # The tokenizer is frozen from here on: its tokens are computed once, and a batch needs
            # the first step of its windows only.
            dataset["token_ids"] = self.tokens()
            warn_of_collapse(dataset["token_ids"], config.codebook_size)
            horizon = 1
        else:
            # Deviation: where I sees s_0, a third stage trains it on the plans that acting meets.
            self.loss = MAGEInverseDynamicsLoss(self.model)
            true = config.inverse_dynamics == "direction"  # learns from the ways the data went
            dataset["plan"] = self.directions() if true else self.plans()
            horizon = 1
        self.buffer = replay_buffer(
            dataset,
            horizon=horizon,
            batch_size=config.batch_size,
            seed=self.seed + self.stage_index,
        )
        self.optimizer = torch.optim.AdamW(
            self.loss.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if self._restored is not None:
            self._restore_loop(*self._restored)
            self._restored = None

    @torch.no_grad()
    def tokens(self) -> Tensor:
        """Tokens of the window that starts at every step, (N, sum_k L_k)."""
        self.model.eval()
        sampler = WindowSampler(self.dataset["episode"], self.model.config.horizon)
        columns = self.dataset.select(*self.model.config.observation_keys, "action", "return_to_go")
        read = MAGETokenizerLoss(self.model).window  # the third stage's loss reads plans, too
        token_ids = []
        for start in torch.arange(len(self.dataset)).split(1024):
            index, mask = sampler.windows(start)
            batch = columns[index].set(("collector", "mask"), mask).to(self.device)
            encoding = self.model.tokenize(read(batch))
            token_ids.append(torch.cat(encoding.token_ids, dim=1).cpu())
        self.model.train()
        return torch.cat(token_ids)

    @torch.no_grad()
    def plans(self) -> Tensor:
        """What I sees of the plans made at every step for the return that followed, (N, ...)."""
        model, config = self.model, self.model.config
        # Deviation: with followed_scales, the third stage's plans begin with the data's tokens.
        # From a plan of another way than the data's, I would learn to heed no plan: where ways
        # part it would take the mean of all actions, and stand still.
        followed = config.scales[: config.followed_scales]
        tokens = self.tokens() if followed else torch.empty(len(self.dataset), 0)
        model.eval()
        # Deviation: the third stage's plans are made with dropout.
        # Those that the transformer knows by heart would tell I more than acting can.
        model.transformer.train()
        keys = config.observation_keys
        plans = []
        with seeded(self.seed, self.device):  # a run that is resumed makes the same plans
            steps = self.dataset.select(*keys, "return_to_go").split(1024)
            coarse = tokens[:, : sum(followed)].split(1024)
            for chunk, token_ids in zip(steps, coarse, strict=True):
                observation = torch.cat([chunk[key] for key in keys], dim=-1).to(self.device)
                state, target = model.standardize(
                    observation, chunk["return_to_go"].to(self.device)
                )
                given = [
                    model.quantizer.lookup(ids)
                    for ids in token_ids.to(self.device).split(followed, dim=1)
                ]
                _, sums = model.generate(state, target, model.pick, given)
                plans.append(model.read_plan(sums[-1], state, target).cpu())
        model.train()
        return torch.cat(plans)

    def directions(self) -> Tensor:
        """Direction from the goal achieved at every step to that at its window's end, (N, G)."""
        goal = self.dataset[GOALS[0]]
        sampler = WindowSampler(self.dataset["episode"], self.model.config.horizon)
        index, _ = sampler.windows(torch.arange(len(goal)))  # stays at an episode's last step
        return nn.functional.normalize(goal[index[:, -1]] - goal, dim=-1)

    def steps(self) -> Iterator[TensorDictBase]:
        """Train to the end of the stage; yields the losses of every step after it was taken."""
        config = self.model.config
        parameters = list(self.loss.parameters())
        while self.step < self.total:
            self.loss.metrics = self.logs(self.step + 1)
            rate = learning_rate(config, self.stage, self.step, self.total)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch = self.buffer.sample()
            losses = self.backward(batch)
            parallel.average_gradients(parameters)
            norm = nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            if not torch.isfinite(sum_losses(losses) + norm):
                rows = batch["index"][:, 0]
                raise TrainingError(self._describe_failure(losses, rows), rows)
            self.optimizer.step()
            self.step += 1
            yield losses

    def backward(self, batch: TensorDictBase) -> TensorDictBase:
        """Losses of a batch; their gradients replace those of the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        batch = parallel.share(batch).to(self.device)
        # The codebook follows whole batches.
        count = 1 if self.stage == "tokenizer" else self.accumulation
        found = []
        for part in batch.chunk(count):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
                losses = self.loss(part) * (len(part) / len(batch))
            sum_losses(losses).backward()
            found.append(losses.detach())
        return parallel.average(sum(found[1:], start=found[0]))

    def logs(self, step: int) -> bool:
        """Whether the step is an entry of the log."""
        return step % LOG_INTERVAL == 0 or step == self.total

    def report(self, losses: TensorDictBase) -> Progress:
        """Losses and metrics as numbers, with their sum as ``loss``."""
        metrics = {key: float(value) for key, value in losses.items()}
        metrics["loss"] = float(sum_losses(losses))
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        return Progress(self.stage, self.step, self.total, metrics)

    def save(self) -> None:
        """Write everything that the rest of training depends on."""
        if self.path is None or not parallel.is_first():
            return
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
        tensors["random.torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        tensors["random.windows"] = self.buffer.sampler.state_dict()["rng_state"]
        loop = {
            "stage": self.stage,
            "step": self.step,
            "seed": self.seed,
            "dataset": self.fingerprint,
        }
        checkpoint.save_tensors(
            tensors, self.path, checkpoint.model_header(self.model) | {"training": loop}
        )

    def restore(self) -> None:
        """Read a checkpoint; the loop's part of it waits for ``begin``."""
        assert self.path is not None
        tensors, header = checkpoint.load_tensors(self.path)
        loop = header.get("training")
        if loop is None:
            raise ValueError(f"{self.path} is a finished model, not a state of training.")
        sizes = self.model.sizes
        ours = self.model.config.to_dict() | sizes
        ours |= {"seed": self.seed, "dataset": self.fingerprint}
        with usable(self.path, "state of training"):
            run = {key: loop.get(key) for key in ("seed", "dataset")}
            theirs = header["config"] | {key: header[key] for key in sizes} | run
        named = ours.keys() | theirs.keys()
        changed = sorted(key for key in named if theirs.get(key, ...) != ours.get(key, ...))
        if set(changed) - set(ADJUSTABLE):
            raise ValueError(
                f"{self.path} comes from another run: seed {theirs['seed']} against {self.seed}, "
                f"{'other' if 'dataset' in changed else 'the same'} data, differing configuration "
                f"{[key for key in changed if key not in ('seed', 'dataset')]}. Use another file, "
                "or resume=False."
            )
        prefix = "model."
        with usable(self.path, "state of training"):
            self.model.load_state_dict(
                {key[len(prefix) :]: tensors[key] for key in tensors if key.startswith(prefix)}
            )
            self.stage_index = STAGES.index(loop["stage"])
        self._restored = (tensors, loop)

    def _restore_loop(self, tensors: dict[str, Tensor], loop: dict[str, Any]) -> None:
        assert self.path is not None
        state: dict[int, dict[str, Tensor]] = {}
        parameters = list(self.loss.parameters())
        with usable(self.path, "state of training"):
            self.step = loop["step"]
            if not isinstance(self.step, int) or not 0 <= self.step <= self.total:
                raise ValueError(f"step {self.step!r} of {self.total}")
            for key, value in tensors.items():
                if key.startswith("optimizer."):
                    _, number, name = key.split(".", 2)
                    state.setdefault(int(number), {})[name] = value
            for index, entries in state.items():
                # The optimiser itself would not notice, and read past the end of a tensor.
                shapes = {name: value.shape for name, value in entries.items()}
                shape = parameters[index].shape
                if shapes != {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}:
                    raise ValueError(f"optimizer state {index} has the shapes {shapes}")
            self.optimizer.load_state_dict(
                {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}
            )
            self.buffer.sampler.load_state_dict({"rng_state": tensors["random.windows"]})
            torch.set_rng_state(tensors["random.torch"])
            if self.device.type == "cuda" and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"], self.device)

    def _describe_failure(self, losses: TensorDictBase, rows: Tensor) -> str:
        kept = f"; the last good state is {self.path}" if self.path and self.path.exists() else ""
        values = {key: float(value) for key, value in losses.items() if key.startswith("loss")}
        return (
            f"the loss or its gradient is not finite at step {self.step} of stage {self.stage!r}: "
            f"{values}{kept}. Its windows begin at the rows {rows[:20].tolist()} of the dataset "
            f"({len(rows)} in all: the attribute rows of this error). Lower learning_rate or "
            "gradient_clip, or look for outliers in those rows."
        )


def _columns(config: MAGEConfig) -> tuple[str, ...]:
    """What training reads of a dataset."""
    return (*config.observation_keys, "action", "return_to_go", "episode")


def sum_losses(losses: TensorDictBase) -> Tensor:
    """The sum of all entries that start with "loss", as TorchRL's trainers take it."""
    terms: Iterable[Tensor] = (value for key, value in losses.items() if key.startswith("loss"))
    return torch.stack(list(terms)).sum()


def learning_rate(config: MAGEConfig, stage: str, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth of the configuration's ``learning_rate``."""
    # Deviation: the paper gives one learning rate and no schedule.
    peak, low = config.learning_rate, 0.1 * config.learning_rate
    if stage == "inverse_dynamics":
        peak = config.inverse_dynamics_learning_rate
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warmup * (low + (peak - low) * cosine)


def _fit_statistics(model: MAGEModel, dataset: TensorDictBase) -> None:
    _check_discount(model.config, dataset)
    facts = metadata(dataset)
    starts = dataset["step_count"].flatten() == 0
    if not starts.any():
        raise ValueError("the dataset holds the first step of no episode; take whole episodes.")
    ones = torch.ones(model.action_dim)
    model.fit_statistics(
        observation=torch.cat([dataset[key] for key in model.config.observation_keys], dim=-1),
        action=dataset["action"],
        return_to_go=dataset["return_to_go"],
        initial_return=dataset["return_to_go"][starts],
        action_low=torch.as_tensor(facts["action_low"]) if "action_low" in facts else -ones,
        action_high=torch.as_tensor(facts["action_high"]) if "action_high" in facts else ones,
    )


def _check_discount(config: MAGEConfig, dataset: TensorDictBase) -> None:
    discount = metadata(dataset).get("discount")
    if discount is not None and not math.isclose(discount, config.discount):
        raise ValueError(
            f"the dataset's return_to_go has discount {discount}, the configuration "
            f"{config.discount}: load it with load_dataset(..., discount={config.discount})."
        )


def _check_fit(model: MAGEModel, dataset: TensorDictBase) -> None:
    """Compare a dataset with a model before anything is trained."""
    if model.only_acts:
        raise ValueError("optimize_for_inference made this copy to act; train the model itself.")
    check_dataset(dataset)
    missing = [key for key in model.config.observation_keys if key not in dataset]
    if missing:
        raise ValueError(f"the dataset lacks the model's observation entries {missing}.")
    observation_dim = sum(dataset[key].shape[-1] for key in model.config.observation_keys)
    found = (observation_dim, dataset["action"].shape[-1])
    expected = (model.observation_dim, model.action_dim)
    if found != expected:
        raise ValueError(
            f"the dataset has (observation, action) sizes {found}, the model {expected}; build the "
            "model from this dataset with build_model or MAGEPolicy.from_dataset."
        )
    _check_discount(model.config, dataset)
