"""How MAGE is trained: values, tokenizer, generator, inverse dynamics; and its errors on data."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from mage_agent.agent import evaluating
from mage_agent.averages import averaged
from mage_agent.data import WindowSampler, replay_buffer
from mage_agent.hardware import seeded
from mage_agent.mage.distances import Hindsight, MAGEDistanceLoss
from mage_agent.mage.losses import MAGEInverseDynamicsLoss, MAGELoss, MAGETokenizerLoss
from mage_agent.mage.values import MAGEValueLoss, label_returns
from mage_agent.stage import Stage, warm_up_and_cosine

if TYPE_CHECKING:
    from mage_agent.mage.model import MAGEModel

__all__ = ["describe", "make_stages"]

COLLAPSED = 0.1
"""Perplexity of the tokens, from 0 at one code to 1 at all alike, below which a codebook has
collapsed; healthy ones were measured at 0.8 to 0.97."""
_VALUE_BATCH = 512
"""Transitions per step of values and of distances."""
_JUDGED_WINDOWS = 512
"""Windows, at most, whose tokens tell whether the codebook has collapsed."""
_DESCRIBED_WINDOWS = 2048
"""Windows, at most, that ``describe`` judges, drawn at random."""
_ACTED_WINDOWS = 256
"""Of these, those whose plans it acts on where plans are chosen among candidates."""
_CHUNK = 1024
"""Steps whose tokens or plans are computed at once."""


def make_stages(model: MAGEModel, dataset: TensorDictBase) -> list[Stage]:
    """The stages in order: values or distances, tokenizer, generator, inverse dynamics.

    Tokenizer and generator are those of Algorithms 1, 2 and 5. Values come with
    ``return_expectile``, distances in their place where they judge plans, and the stage of inverse
    dynamics with ``inverse_dynamics_steps``.

    Args:
        model: the model to train.
        dataset: from ``load_dataset``.

    Returns:
        Two to four stages.
    """
    config = model.config
    columns = dataset.select(*config.observation_keys, "action", "episode")

    def labelled() -> TensorDictBase:
        return columns.copy().set("return_to_go", label_returns(model, dataset))

    stage = partial(
        Stage,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        gradient_clip=config.gradient_clip,
    )
    windows = stage
    if model.goal_distance is not None:
        windows = partial(stage, prepare=Hindsight(model, dataset).relabel)
    # Deviation 10: the learning rate warms up and falls, and small presets of mazes follow Muon;
    # the paper has Adam at one rate.
    rates = warm_up_and_cosine(
        config.learning_rate, 0.1 * config.learning_rate, config.warmup_steps
    )

    def begin_generator() -> None:
        # Deviation 11: stage 2 trains a new inverse dynamics, on generated plans.
        # That of stage 1 relies on fine tokens, which the generator cannot predict.
        if model.transformer.untrained:  # and not fine-tuned
            model.inverse_dynamics.reset_parameters()

    tokenizer = MAGETokenizerLoss(model)
    if not model.transformer.untrained:  # nor is it to read fine tokens again
        tokenizer.trains = tuple(name for name in tokenizer.trains if name != "inverse_dynamics")
    stages = [
        windows(
            name="tokenizer",
            loss=tokenizer,
            optimizer=config.optimizer,
            steps=config.tokenizer_steps,
            columns=labelled,
            horizon=config.horizon,
            rates=rates,
            low_precision=True,
            acts=False,
        ),
        windows(
            name="generator",
            loss=MAGELoss(model),
            optimizer=config.optimizer,
            steps=config.generator_steps,
            columns=lambda: _warn_of_collapse(model, labelled()),
            horizon=config.horizon,
            rates=rates,
            low_precision=True,
            one_graph=True,
            acts=not config.inverse_dynamics_steps,
            begin=begin_generator,
        ),
    ]
    if config.inverse_dynamics_steps:
        # Deviation 14: where inverse dynamics sees the observation, one more stage trains it alone.
        peak = config.inverse_dynamics_learning_rate
        stages.append(
            stage(
                name="inverse_dynamics",
                loss=MAGEInverseDynamicsLoss(model),
                steps=config.inverse_dynamics_steps,
                columns=lambda: _with_plans(model, labelled()),
                weight_decay=config.inverse_dynamics_weight_decay,
                rates=warm_up_and_cosine(peak, 0.02 * peak, config.warmup_steps),
                one_graph=True,
            )
        )
    # Deviation 35: acting takes a moving average of the inverse dynamics; its last weights differ
    # from step to step by more in an episode than in the loss.
    stages[-1] = averaged(
        stages[-1], config.inverse_dynamics_average_decay, model.inverse_dynamics.parameters()
    )
    if config.return_expectile is not None:
        loss = (MAGEValueLoss if model.goal_distance is None else MAGEDistanceLoss)(model)
        peak = loss.learning_rate
        stages.insert(
            0,
            Stage(
                name=loss.stage,
                loss=loss,
                optimizer=loss.optimizer,
                steps=config.value_steps,
                columns=lambda: loss.columns(dataset),
                prepare=loss.prepare,
                batch_size=_VALUE_BATCH,
                rates=warm_up_and_cosine(peak, 0.05 * peak, config.warmup_steps),
                gradient_clip=config.gradient_clip,
                acts=False,
                begin=loss.begin,
                after_step=loss.after_step,
                end=loss.end,
            ),
        )
    return stages


def _with_plans(model: MAGEModel, columns: TensorDictBase) -> TensorDictBase:
    """The columns with what inverse dynamics reads of plans, (N, ...)."""
    if model.config.inverse_dynamics == "direction":
        # Deviation 21: on directions, inverse dynamics learns from the data's own directions.
        plans = F.normalize(model.ways(columns), dim=-1)
    elif model.config.inverse_dynamics == "displacement" and model.config.data_scales is None:
        plans = model.moves(model.displacements(columns, model.config.read_lookahead)).cpu()
    else:
        plans = _plans(model, columns)
    return columns.copy().set("plan", plans)


@torch.no_grad()
def _tokens(model: MAGEModel, columns: TensorDictBase, rows: Tensor) -> Tensor:
    """Tokens of the windows that start at some rows, (N, sum_k L_k)."""
    sampler = WindowSampler(columns["episode"], model.config.horizon)
    loss = MAGETokenizerLoss(model)
    token_ids = []
    with evaluating(model):
        for start in rows.split(_CHUNK):
            index, mask = sampler.windows(start)
            batch = columns[index].set(("collector", "mask"), mask).to(model.device)
            encoding = model.tokenize(loss.window(batch))
            token_ids.append(torch.cat(encoding.token_ids, dim=1).cpu())
    return torch.cat(token_ids)


@torch.no_grad()
def _plans(model: MAGEModel, columns: TensorDictBase) -> Tensor:
    """What inverse dynamics reads of plans for the return that followed each step, (N, ...)."""
    config, device = model.config, model.device
    # Deviation 16: with data_scales, the plans of this stage begin with the data's tokens.
    # If a plan disagrees with the data's action, inverse dynamics learns to ignore plans and
    # averages the actions where paths part.
    coarse = config.scales[: config.data_scales]  # None keeps all
    rows = torch.arange(len(columns))
    tokens = _tokens(model, columns, rows) if coarse else torch.empty(len(columns), 0)
    plans = []
    # Deviation 15: the plans of this stage are generated with dropout.
    # Plans of windows that the transformer has memorised are better than those met in acting.
    with evaluating(model), seeded(0, device):  # a run that is resumed makes the same plans
        model.transformer.train()
        chunks = zip(columns.split(_CHUNK), tokens.split(_CHUNK), strict=True)
        for chunk, token_ids in chunks:
            state, target = model.units.standardize(
                model.units.concatenate(chunk).to(device), chunk["return_to_go"].to(device)
            )
            given = [
                model.quantizer.lookup(ids)
                for ids in token_ids[:, : sum(coarse)].to(device).split(coarse, dim=1)
            ]
            _, sums = model.generate(state, target, model.choose, given)
            plans.append(model.read_plan(sums[-1], state, target).cpu())
        model.transformer.eval()
    return torch.cat(plans)


def _warn_of_collapse(model: MAGEModel, columns: TensorDictBase) -> TensorDictBase:
    """The columns; say so if hardly any codes carry them, judged by evenly spaced windows."""
    codebook_size = model.config.codebook_size
    rows = torch.arange(0, len(columns), -(-len(columns) // _JUDGED_WINDOWS))
    token_ids = _tokens(model, columns, rows)
    share = token_ids.flatten().bincount(minlength=codebook_size) / token_ids.numel()
    perplexity = float(torch.special.entr(share).sum().exp())
    if perplexity - 1 < COLLAPSED * (min(codebook_size, token_ids.numel()) - 1):
        warnings.warn(
            f"the codebook has collapsed: {int((share > 0).sum())} of {codebook_size} codes are "
            f"used, as unevenly as {perplexity:.1f} codes used alike. Train the tokenizer longer "
            "(tokenizer_steps), lower learning_rate or commitment_weight, or make codebook_size "
            "smaller.",
            stacklevel=6,  # whoever called fit
        )
    return columns


@torch.no_grad()
def describe(model: MAGEModel, dataset: TensorDictBase) -> dict[str, float]:
    """Errors on data, best data the model has not seen, from tokens to actions.

    Args:
        model: a trained model.
        dataset: from ``load_dataset``.

    Returns:
        ``reconstruction_error`` of D on true tokens (standardised), the mean squared action error
        in environment units on true tokens (``action_error_true``), on tokens generated in the true
        context (``action_error_generated``) and in the model's own (``action_error_acting``, of
        fewer windows where plans are chosen among candidates), and
        ``token_accuracy_k`` and ``codebook_usage_k`` of every scale.
    """
    config = model.config
    buffer = replay_buffer(
        dataset.copy().set("return_to_go", label_returns(model, dataset)),
        horizon=config.horizon,
        batch_size=min(_DESCRIBED_WINDOWS, len(dataset)),
        seed=0,
    )
    windows: TensorDict = buffer.sample().to(model.device)
    with evaluating(model), seeded(0, model.device):
        tokenizer, generator = MAGETokenizerLoss(model), MAGELoss(model)
        losses = {**tokenizer.eval()(windows), **generator.eval()(windows)}
        errors = {key: float(value) for key, value in losses.items() if not key.startswith("loss")}
        window = tokenizer.window(windows)
        few = None if config.candidates == 1 else _ACTED_WINDOWS  # every candidate takes memory
        acted = model.act(window.observation[:few, 0], window.return_to_go[:few, 0])
    errors["action_error_acting"] = float((acted - window.action[:few, 0]).square().mean())
    return errors
