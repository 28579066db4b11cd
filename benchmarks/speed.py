"""Speed, as ratios measured side by side in one run.

python -m benchmarks.speed --output benchmarks/results/speed

All cases of a group take turns, so that whatever else the machine does meets all of them alike. On
CPU the clock is the process's own CPU time, which on one thread is what an idle machine would
need; on a GPU, it is the wall clock, around a synchronisation.
"""

import argparse
import csv
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from tensordict import TensorDictBase
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchrl.data import SliceSampler, TensorDictReplayBuffer, TensorStorage

from benchmarks.baselines import UnsuitableError
from benchmarks.clock import seconds_on
from benchmarks.methods import build_method, expand
from mage_agent import (
    MAGEConfig,
    MAGELoss,
    MAGEModel,
    dataset_from_arrays,
    optimize_for_inference,
    replay_buffer,
    returns_to_go,
    total_loss,
)

OBSERVATION, ACTION = 39, 28
"""Sizes of Adroit's door."""
CONTEXT = 20
"""Steps that the Decision Transformer looks back."""

Case = Callable[[], object]


class Timing(NamedTuple):
    """Milliseconds of a case: the median and the 99th percentile."""

    median: float
    p99: float


class Row(NamedTuple):
    """One line of the table; ``ratio`` is the median over that of the case ``against``."""

    group: str
    case: str
    median_ms: float
    p99_ms: float
    against: str
    ratio: float


def interleave(cases: dict[str, Case], rounds: int, device: str) -> dict[str, Timing]:
    """Time every case once per round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for count in range(rounds + 2):
        for name, case in cases.items():
            began = seconds_on(device)
            case()
            if count >= 2:
                seconds[name].append(seconds_on(device) - began)
    return {
        name: Timing(*(1e3 * np.percentile(values, [50, 99])).tolist())
        for name, values in seconds.items()
    }


def rows(group: str, timings: dict[str, Timing], against: str) -> Iterator[Row]:
    """Lines of a group, compared with one of its cases."""
    for case, timing in timings.items():
        yield Row(group, case, *timing, against, timing.median / timings[against].median)


def make_model(preset: str, device: str, **changes: Any) -> MAGEModel:
    """An untrained model; speed does not depend on the weights."""
    torch.manual_seed(0)
    config = MAGEConfig.preset(preset, **changes)
    return MAGEModel(config, observation_dim=OBSERVATION, action_dim=ACTION).to(device).eval()


@torch.no_grad()
def act_plainly(model: MAGEModel, observation: Tensor, return_to_go: Tensor) -> Tensor:
    """Act without a cache: every scale is scored by a pass over all tokens."""
    state, target = model.condition(observation, return_to_go)
    codes = [state.new_zeros(len(state), n, model.config.code_dim) for n in model.config.scales]
    for k in range(len(codes)):
        codes[k] = model.choose(model.logits(codes, state, target)[k])
    latent = model.quantizer.partial_sums(codes)[-1]
    action: Tensor = model.units.environment_action(model.read_action(latent, state, target))
    return action


def decision_transformer(device: str, **sizes: int) -> Callable[[int], Case]:
    """TorchRL's ``DTActor`` (which needs the package ``transformers``), as a case by batch size."""
    from torchrl.modules import DTActor
    from transformers.utils import logging

    # It warns of the special tokens of a language, where there are none.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    config = DTActor.default_config()
    for name, value in sizes.items():
        setattr(config, name, value)
    network = DTActor(OBSERVATION, ACTION, transformer_config=config, device=device).eval()

    def case(batch: int) -> Case:
        sizes = (OBSERVATION, ACTION, 1)
        given = [torch.randn(batch, CONTEXT, size, device=device) for size in sizes]
        return torch.no_grad()(partial(network, *given))

    return case


def acting(device: str, rounds: int) -> Iterator[Row]:
    """Latency of an action: ours in its variants, and the Decision Transformer's."""
    paper, small = make_model("adroit", device), make_model("adroit-small", device)
    # Optimised float32 is a graph on GPUs, and the model itself on CPUs.
    weights = ("float32", "bfloat16") if device == "cuda" else ("bfloat16", "float16", "int8")
    models = {
        "MAGE, paper size": paper,
        **{f"MAGE, paper size, {w}, optimised": optimize_for_inference(paper, w) for w in weights},
        "MAGE, small": small,
        "MAGE, small, float32, compiled": optimize_for_inference(small, compiled=True),
    }
    if device == "cuda":
        models["MAGE, small, float32, optimised"] = optimize_for_inference(small)
    equal = decision_transformer(device, n_layer=8, n_embd=512, n_head=4, n_inner=2048)
    default = decision_transformer(device)
    for batch in (1, 64):
        observation = torch.randn(batch, OBSERVATION, device=device)
        target = torch.zeros(batch, device=device)
        cases: dict[str, Case] = {
            name: partial(model.act, observation, target) for name, model in models.items()
        }
        cases["MAGE, paper size, without a cache"] = partial(
            act_plainly, paper, observation, target
        )
        cases["DTActor, equal size"] = equal(batch)
        cases["DTActor, default size"] = default(batch)
        timings = interleave(cases, rounds if batch == 1 else max(5, rounds // 10), device)
        yield from rows(f"act, batch {batch}", timings, "DTActor, equal size")


def deciding(device: str, rounds: int) -> Iterator[Row]:
    """Table 8: ``predict`` of every method of the suite, at the size at which it is scored."""
    dataset = make_dataset(2_000)
    build = partial(build_method, dataset=dataset, dataset_id="door-human-v1", seed=0)
    methods = {}
    for name in expand(["all"]):
        with suppress(UnsuitableError):  # the data have no goals
            methods[name] = build(name, paper_size=False)
    paper = MAGEModel.name
    methods[f"{paper}, paper size"] = build(paper, paper_size=True)
    for batch in (1, 64):
        observation = dataset["observation"][:batch].numpy()
        cases: dict[str, Case] = {}
        for name, method in methods.items():
            _, state = method.predict(observation, deterministic=True)
            for _ in range(CONTEXT if state else 0):  # until the past is as long as it gets
                _, state = method.predict(observation, state, deterministic=True)
            cases[name] = partial(method.predict, observation, state, deterministic=True)
        timings = interleave(cases, rounds if batch == 1 else max(5, rounds // 10), device)
        yield from rows(f"predict, batch {batch}", timings, "dt")


def make_dataset(steps: int = 100_000) -> TensorDictBase:
    """Random numbers in episodes of 200 steps."""
    random = np.random.default_rng(0)
    ends = np.arange(1, steps + 1) % 200 == 0
    dataset: TensorDictBase = dataset_from_arrays(
        random.normal(size=(steps, OBSERVATION)).astype(np.float32),
        random.uniform(-1, 1, size=(steps, ACTION)).astype(np.float32),
        random.normal(size=steps).astype(np.float32),
        np.zeros(steps, dtype=bool),
        ends,
    )
    return dataset


def windows(rounds: int, batch: int = 512, horizon: int = 24) -> Iterator[Row]:
    """Drawing a batch of windows: ours, TorchRL's ``SliceSampler``, and nothing but the copy."""
    keys = ("observation", "action", "return_to_go")
    dataset = make_dataset()
    dataset["return_to_go"] = returns_to_go(dataset["next", "reward"], dataset["episode"], 0.99)
    ours = replay_buffer(dataset, horizon=horizon, batch_size=batch, keys=keys, seed=0)
    slices = TensorDictReplayBuffer(
        storage=TensorStorage(dataset.select(*keys, "episode")),
        sampler=SliceSampler(slice_len=horizon, traj_key="episode", cache_values=True),
        batch_size=batch * horizon,
    )
    columns = [dataset[key] for key in keys]
    steps = torch.arange(horizon)

    def gather() -> list[Tensor]:
        start = torch.randint(len(dataset) - horizon, (batch, 1))
        index = (start + steps).flatten()
        return [column.index_select(0, index) for column in columns]

    cases: dict[str, Case] = {
        "WindowSampler": ours.sample,
        "SliceSampler": slices.sample,
        "index_select alone": gather,
    }
    yield from rows(f"draw {batch} windows", interleave(cases, rounds, "cpu"), "SliceSampler")


class Step:
    """A training step of the second stage: the way ``fit`` takes it, or plainly.

    The plain one computes in float32, measures metrics at every step and updates with an optimiser
    that is not fused.
    """

    def __init__(self, model: MAGEModel, *, plain: bool, batch: int) -> None:
        dataset = make_dataset(20_000)
        _, stage, *_ = model.stages(dataset)
        columns = dataset.select("observation", "action", "episode")
        columns["return_to_go"] = model.returns_to_go(dataset)
        self.stage = dataclasses.replace(
            stage,
            batch_size=batch,
            learning_rate=1e-5,
            rates=None,
            columns=lambda: columns,
            low_precision=not plain,
        )
        assert isinstance(stage.loss, MAGELoss)
        stage.loss.metrics = plain
        self.optimizer = self.stage.make_optimizer()
        if plain:
            self.optimizer = torch.optim.AdamW(stage.loss.parameters(), lr=1e-5)
        self.batches = self.stage.batches()

    def __call__(self) -> None:
        """Take the step."""
        total_loss(self.stage.losses(self.sample())).backward()
        self.stage.step(self.optimizer, 0)

    def sample(self) -> TensorDictBase:
        """Draw the windows of a step."""
        return next(self.batches)


def training(device: str, rounds: int, batch: int) -> Iterator[Row]:
    """Training steps at paper size and at ours, and what matrix products alone would take."""
    for preset, size in (("adroit", batch), ("adroit-small", 128)):
        step = Step(make_model(preset, device), plain=False, batch=size)
        plain = Step(make_model(preset, device), plain=True, batch=size)
        with FlopCounterMode(display=False) as counter:
            step()
        factor = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16)
        cases: dict[str, Case] = {
            "as fit takes it": step,
            "plain": plain,
            "sampling alone": step.sample,
            "product of 2048 x 2048 in bfloat16": lambda factor=factor: factor @ factor,  # type: ignore[misc]
        }
        timings = interleave(cases, rounds, device)
        product = timings.pop("product of 2048 x 2048 in bfloat16")
        share = counter.get_total_flops() / (2 * 2048**3)
        timings["its products at the rate of large ones"] = Timing(*(share * t for t in product))
        yield from rows(f"training step, {preset}, batch {size}", timings, "plain")


def growth(device: str, rounds: int) -> Iterator[Row]:
    """How the latency of acting grows with batch, scales and width."""
    first: dict[str, Case] = {}
    for batch in (1, 4, 16, 64, 256):
        model = make_model("adroit-small", device)
        given = torch.randn(batch, OBSERVATION, device=device), torch.zeros(batch, device=device)
        first[str(batch)] = partial(model.act, *given)
    yield from rows("growth with batch", interleave(first, rounds, device), "1")
    for name, values in (("num_scales", (1, 2, 4, 8)), ("width", (64, 128, 256, 512))):
        cases: dict[str, Case] = {}
        for value in values:
            model = make_model("adroit-small", device, **{name: value})
            given = torch.randn(1, OBSERVATION, device=device), torch.zeros(1, device=device)
            cases[str(value)] = partial(model.act, *given)
        yield from rows(f"growth with {name}", interleave(cases, rounds, device), str(values[0]))


def plot(table: Sequence[Row], path: Path) -> None:
    """Latency against batch, scales and width."""
    groups = sorted({row.group for row in table if row.group.startswith("growth")})
    figure = Figure(figsize=(4 * len(groups), 3), layout="constrained")
    for axis, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        line = [(int(row.case), row.median_ms) for row in table if row.group == group]
        axis.plot(*zip(*line, strict=True), marker="o")
        for x, y in line:
            axis.annotate(f"{y:.1f}", (x, y), (0, 6), textcoords="offset points", ha="center")
        axis.set(xscale="log", yscale="log", xlabel=group.removeprefix("growth with "))
        axis.set_xticks([x for x, _ in line], [str(x) for x, _ in line])
        axis.set_yticks([])
        axis.minorticks_off()
        axis.margins(0.1, 0.15)
        axis.set_ylabel("ms per call of act")
    figure.savefig(path, dpi=120)


def write_csv(table: Sequence[Row], path: Path) -> None:
    """The table for programs."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        for row in table:
            writer.writerow(f"{x:.4g}" if isinstance(x, float) else x for x in row)


def markdown(table: Sequence[Row], args: argparse.Namespace) -> str:
    """The table for people."""
    clock = "wall clock" if args.device == "cuda" else "CPU time"
    lines = [
        f"# Speed on {args.device}, {args.threads} thread(s), {clock}",
        "",
        "`python -m benchmarks.speed`; ratios are of medians, and small is fast.",
        "",
        "| group | case | median ms | p99 ms | ratio | against |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.group} | {row.case} | {row.median_ms:.2f} | {row.p99_ms:.2f} "
            f"| {row.ratio:.2f} | {row.against} |"
            for row in table
        ),
        "",
    ]
    return "\n".join(lines)


def planning(device: str, rounds: int) -> Iterator[Row]:
    """GAC's seconds per gradient step, per plan and per action."""
    from benchmarks.gac.speed import measure  # which imports this module

    return measure(device, rounds)


GROUPS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "act": lambda args: acting(args.device, args.rounds),
    "predict": lambda args: deciding(args.device, args.rounds),
    "gac": lambda args: planning(args.device, args.rounds),
    "draw": lambda args: windows(args.rounds),
    "train": lambda args: training(args.device, args.steps, args.batch),
    "grow": lambda args: growth(args.device, max(5, args.rounds // 2)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/speed"), help="folder")
    parser.add_argument(
        "--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="all by default"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=50, help="of the quick cases")
    parser.add_argument("--steps", type=int, default=5, help="rounds of the training steps")
    parser.add_argument("--batch", type=int, default=64, help="of training at paper size")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    table = [row for group in args.groups for row in GROUPS[group](args)]
    args.output.mkdir(parents=True, exist_ok=True)
    write_csv(table, args.output / "speed.csv")
    (args.output / "speed.md").write_text(markdown(table, args))
    if "grow" in args.groups:
        plot(table, args.output / "growth.png")


if __name__ == "__main__":
    main()
