"""The training stages as TorchRL loss modules: tokenizer, generator, and a polish of I."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.objectives import LossModule
from torchrl.objectives.utils import _reduce

from mage_agent.model import MAGEModel
from mage_agent.types import TrajectoryWindow

__all__ = ["MAGEInverseDynamicsLoss", "MAGELoss", "MAGETokenizerLoss"]


class _MAGELossModule(LossModule):  # type: ignore[misc]
    """What both stages share: keys, reduction, and which networks learn."""

    @dataclass
    class _AcceptedKeys:
        """Names of the entries the loss reads; windows have batch size [B, T].

        Attributes:
            observation: stands for "observation" in ``config.observation_keys``.
            action: actions, shape (B, T, A).
            return_to_go: discounted returns-to-go, shape (B, T, 1).
            mask: True for real steps, shape (B, T) or (B, T, 1); all steps are real without it.
        """

        observation: NestedKey = "observation"
        action: NestedKey = "action"
        return_to_go: NestedKey = "return_to_go"
        mask: NestedKey = ("collector", "mask")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    model: MAGEModel
    trains: tuple[str, ...]
    """Names of the model's networks that this stage trains."""
    reads: tuple[str, ...] = ()
    """Entries that the stage reads besides those of the keys."""
    metrics: bool = True
    """Whether to measure what is only for logs; no loss depends on it."""

    def __init__(self, model: MAGEModel, *, reduction: str | None = None) -> None:
        self._in_keys: list[NestedKey] | None = None
        super().__init__()
        # A plain submodule: .to(), .train() and state_dict() reach buffers and codebook, too, which
        # they would not in a functionalised copy; there are no target networks to need one.
        self.model = model
        self.reduction = reduction or "mean"

    @property
    def functional(self) -> bool:
        """The model is a plain submodule."""
        return False

    @property
    def observation_keys(self) -> list[NestedKey]:
        """Observation entries, in the order in which they are concatenated."""
        return [
            self.tensor_keys.observation if key == "observation" else key
            for key in self.model.config.observation_keys
        ]

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that must be there."""
        if self._in_keys is None:
            keys = self.tensor_keys
            own = (keys.action, keys.return_to_go, *self.reads)
            self._in_keys = [*self.observation_keys, *own]
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    def set_keys(self, **kwargs: NestedKey | None) -> None:
        """Rename the entries to read; None restores the default."""
        super().set_keys(**kwargs)
        self._in_keys = None

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """There is no value function."""

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """The networks this stage trains, by their name in the model."""
        for name in self.trains:
            yield name, self.model.get_submodule(name)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Only what this stage trains: no gradient step can move the other stage."""
        for name, network in self.networks():
            start = ".".join(filter(None, (prefix, "model", name)))
            for key, parameter in network.named_parameters(start, recurse, remove_duplicate):
                if parameter.requires_grad:
                    yield key, parameter

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Only what this stage trains."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    @contextmanager
    def _others_frozen(self) -> Iterator[None]:
        """Build no gradients for what other stages train; nobody would ever clear them."""
        mine = set(self.parameters())
        others = [p for p in self.model.parameters() if p.requires_grad and p not in mine]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def reset_parameters_recursive(self, params: TensorDictBase | None = None) -> None:
        """Start the networks this stage trains anew, codebook and zero-started layers included."""
        old = self.model
        new = MAGEModel(old.config, **old.sizes)
        for name, network in self.networks():
            network.load_state_dict(new.get_submodule(name).state_dict())

    def window(self, tensordict: TensorDictBase) -> TrajectoryWindow:
        """Read a window batch.

        Args:
            tensordict: batch size [B, T] with T = ``config.horizon``.

        Raises:
            KeyError: the batch lacks an entry.
            ValueError: the batch has another shape.
        """
        keys = self.tensor_keys
        observation = self._observation(tensordict)
        horizon = self.model.config.horizon
        if observation.ndim != 3 or observation.shape[1] != horizon:
            raise ValueError(
                f"the observations have shape {tuple(observation.shape)}; expected (batch, "
                f"{horizon}, {self.model.observation_dim}): draw windows with "
                f"replay_buffer(dataset, horizon={horizon})."
            )
        mask = tensordict.get(keys.mask, None)
        if mask is None:
            mask = torch.ones(observation.shape[:2], dtype=torch.bool, device=observation.device)
        return TrajectoryWindow(
            observation=observation,
            action=tensordict.get(keys.action),
            return_to_go=tensordict.get(keys.return_to_go),
            mask=mask.view(observation.shape[:2]).bool(),  # TensorDict.double() casts it, too
        )

    def _observation(self, tensordict: TensorDictBase) -> Tensor:
        """Observations (B, T, S) of a batch that holds all that is read, or ``KeyError``."""
        missing = [key for key in self.in_keys if tensordict.get(key, None) is None]
        if missing:
            raise KeyError(
                f"the batch lacks {missing}; {type(self).__name__} reads {self.in_keys}: load the "
                "data with load_dataset and draw windows with replay_buffer."
            )
        return torch.cat([tensordict.get(key) for key in self.observation_keys], dim=-1)

    def _reduced(self, losses: dict[str, Tensor], metrics: dict[str, Tensor]) -> TensorDict:
        """Reduce losses of shape (B,); metrics are scalars and stay out of ``reduction="none"``."""
        if self.reduction == "none":
            return TensorDict(losses, batch_size=next(iter(losses.values())).shape)
        reduced = {key: _reduce(value, self.reduction) for key, value in losses.items()}
        return TensorDict({**reduced, **{key: value.detach() for key, value in metrics.items()}})


def _squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, shape (B,)."""
    return (prediction - target).square().flatten(1).mean(1)


class MAGETokenizerLoss(_MAGELossModule):
    """Stage 1: the multi-scale autoencoder and the inverse dynamics (Alg. 1-2, Eq. 6, A.2).

    Per window, ``mean_t ||x_t - x_hat_t||^2 + beta ||f - sg(z)||^2 + ||a_0 - I(sum_k z_k)||^2`` in
    standardised units, averaged over real steps. The codebook follows by moving average when the
    module is in training mode. Minimises ``loss_reconstruction + loss_commitment +
    loss_inverse_dynamics``; ``reconstruction_error`` and ``codebook_usage_k`` (share of the codes
    that scale k used in this batch) are for logs.

    Args:
        model: the model to train.
        reduction: "mean" (default), "sum" or "none" (one loss per window).

    Raises:
        ValueError: the batch is no batch of windows of the model's horizon.

    Examples:
        >>> buffer = replay_buffer(dataset, horizon=config.horizon, batch_size=128)
        >>> loss = MAGETokenizerLoss(model)
        >>> losses = loss(buffer.sample())
        >>> sum(value for key, value in losses.items() if key.startswith("loss")).backward()
    """

    trains = ("encoder", "quantizer", "decoder", "inverse_dynamics")

    def __init__(self, model: MAGEModel, *, reduction: str | None = None) -> None:
        super().__init__(model, reduction=reduction)
        self._out_keys: list[str] | None = None

    @property
    def out_keys(self) -> list[str]:
        """Entries of the output."""
        if self._out_keys is None:
            usage = [f"codebook_usage_{k + 1}" for k in range(self.model.config.num_scales)]
            self._out_keys = [
                "loss_reconstruction",
                "loss_commitment",
                "loss_inverse_dynamics",
                "reconstruction_error",
                *usage,
            ]
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[str]) -> None:
        self._out_keys = values

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Stage 1 trains D; the adapters that make it D' belong to stage 2."""
        for key, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if "decoder.adapters." not in key:
                yield key, parameter

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Losses of a batch of windows; the input stays as it is."""
        model, config = self.model, self.model.config
        window = self.window(tensordict)
        state, target = model.standardize(window.observation[:, 0], window.return_to_go[:, 0])
        encoding = model.tokenize(window, update_codebook=self.training)
        trajectory = model.trajectory(window)
        error = (model.decode(encoding.latent, state, target, guided=False) - trajectory).square()
        steps = window.mask[..., None]
        # Select rather than multiply, so that padding never counts; divide by the real steps.
        error = torch.where(steps, error, 0.0).sum((1, 2)) / (steps.sum((1, 2)) * error.shape[-1])
        weight = (
            model.return_weight(window.return_to_go[:, 0]) if config.return_reweighting else 1.0
        )
        # Deviation: I also learns here, on true tokens, so that the latent keeps what acting needs.
        hidden = model.hide_state(state)
        action = model.read_action(encoding.latent, state, target, guided=False, visible=hidden)
        inverse = _squared_error(action, model.normalize_action(window.action[:, 0]))
        usage = {
            f"codebook_usage_{k + 1}": error.new_tensor(ids.unique().numel() / config.codebook_size)
            for k, ids in enumerate(encoding.token_ids)
            if self.metrics
        }
        return self._reduced(
            {
                "loss_reconstruction": weight * error,
                "loss_commitment": config.commitment_weight * encoding.commitment,
                "loss_inverse_dynamics": config.inverse_dynamics_weight * inverse,
            },
            {"reconstruction_error": error.mean(), **usage},
        )


class MAGELoss(_MAGELossModule):
    """Stage 2: transformer, adapters and inverse dynamics on a frozen tokenizer (Eq. 4-7, Alg. 5).

    Per window, cross-entropy of the true tokens (Eq. 5, averaged over tokens), ``lambda_cond
    ||D'(Z)_0 - (s_0, R_0)||^2`` (Eq. 7) with D' held to D past the first step, ``||a_0 -
    I(Z)||^2`` on generated latents, with ``q_value_weight`` the squared error of the true tokens'
    logits to R_0, and with ``return_expectile`` the expectile regression of R_0 on s_0. The
    encoder, the codebook and the decoder never move, except for the decoder with
    ``condition_guidance="decoder"``.

    Where the batch holds the windows' tokens, under ``token_ids``, only its first step is read.

    Metrics: ``token_accuracy_k`` of each scale given the true coarser ones, and the mean squared
    action error in environment units, ``action_error_true`` and ``action_error_generated``.

    Args:
        model: the model whose stage 1 is done.
        reduction: "mean" (default), "sum" or "none" (one loss per window).

    Raises:
        ValueError: the batch is no batch of windows of the model's horizon.
    """

    def __init__(self, model: MAGEModel, *, reduction: str | None = None) -> None:
        super().__init__(model, reduction=reduction)
        decoder = {"adapter": ("decoder.adapters",), "decoder": ("decoder",), "none": ()}
        ceiling = () if model.return_ceiling is None else ("return_ceiling",)
        guidance = model.config.condition_guidance
        self.trains = ("transformer", "inverse_dynamics", *ceiling, *decoder[guidance])
        self._out_keys: list[str] | None = None

    @property
    def out_keys(self) -> list[str]:
        """Entries of the output."""
        if self._out_keys is None:
            config = self.model.config
            self._out_keys = [
                "loss_token",
                *(["loss_q_value"] if config.q_value_weight else []),
                *(["loss_condition"] if config.condition_guidance != "none" else []),
                "loss_inverse_dynamics",
                *(["loss_return_ceiling"] if config.return_expectile else []),
                *(f"token_accuracy_{k + 1}" for k in range(config.num_scales)),
                "action_error_true",
                "action_error_generated",
            ]
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[str]) -> None:
        self._out_keys = values

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Losses of a batch of windows; the input stays as it is."""
        with self._others_frozen():
            return self._losses(tensordict)

    def _losses(self, tensordict: TensorDictBase) -> TensorDict:
        model, config = self.model, self.model.config
        token_ids, observation, action, return_to_go = self._first_steps(tensordict)
        state, target = model.standardize(observation, return_to_go)
        true_codes = [model.quantizer.lookup(ids) for ids in token_ids]
        logits: Sequence[Tensor]
        # Deviation: the context is the data's tokens by default; context="own" is Algorithm 5.
        if config.context == "teacher":
            known = torch.ones_like(target)
            if model.training:
                known = (torch.rand_like(target) >= config.return_dropout).to(target)
            logits = model.logits(true_codes, state, target, known)
        else:
            logits, _ = model.generate(state, target, model.straight_through)
        scores, ids = torch.cat(list(logits), dim=1), torch.cat(token_ids, dim=1)
        wide = scores.flatten(0, 1).to(torch.promote_types(scores.dtype, torch.float32))
        token_loss = F.cross_entropy(wide, ids.flatten(), reduction="none")
        losses = {"loss_token": token_loss.view(ids.shape).mean(1)}
        if config.q_value_weight:
            # Deviation: with q_value_weight, token logits are also Q values, fitted to the return.
            # What CQL adds to a value's error, log-sum-exp minus the data's value, is the
            # cross-entropy.
            value = wide.gather(1, ids.flatten()[:, None]).view(ids.shape)
            losses["loss_q_value"] = config.q_value_weight * (value - target).square().mean(1)
        if config.condition_guidance != "none":
            losses["loss_condition"] = config.condition_weight * self._condition_error(
                logits, state, target
            )
        inverse, metrics = self._inverse_dynamics(true_codes, logits, state, target, action)
        losses["loss_inverse_dynamics"] = inverse
        if model.return_ceiling is not None and config.return_expectile is not None:
            error = target - model.return_ceiling(state[:, model.planner_sees])
            expectile = torch.where(error > 0, config.return_expectile, 1 - config.return_expectile)
            losses["loss_return_ceiling"] = (expectile * error.square()).squeeze(-1)
        if self.metrics:
            hits = scores.argmax(-1) == ids
            for k, correct in enumerate(hits.split(config.scales, dim=1)):
                metrics[f"token_accuracy_{k + 1}"] = correct.float().mean()
        return self._reduced(losses, metrics)

    def _first_steps(
        self, tensordict: TensorDictBase
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
        """Tokens of the windows (B, L_k), and their first observation, action and return."""
        keys = self.tensor_keys
        token_ids = tensordict.get("token_ids", None)
        if token_ids is None:
            window = self.window(tensordict)
            with torch.no_grad():
                ids = self.model.tokenize(window).token_ids
            return ids, window.observation[:, 0], window.action[:, 0], window.return_to_go[:, 0]
        observation = self._observation(tensordict)
        return (
            token_ids[:, 0].split(self.model.config.scales, dim=1),
            observation[:, 0],
            tensordict.get(keys.action)[:, 0],
            tensordict.get(keys.return_to_go)[:, 0],
        )

    def _condition_error(self, logits: Sequence[Tensor], state: Tensor, target: Tensor) -> Tensor:
        """``||D'(Z)_0 - (s_0, R_0)||^2`` of each window (Eq. 7), shape (B,)."""
        model, config = self.model, self.model.config
        # Deviation: estimated on a quarter of the batch, four times as heavy. The expectation is
        # the same, and a training step takes a quarter less time.
        count = -(-len(state) // 4)
        part, state, target = slice(count), state[:count], target[:count]
        scores = torch.cat([scale[part] for scale in logits], dim=1)
        sampled = model.straight_through(scores).split(config.scales, dim=1)
        latent = model.quantizer.partial_sums(sampled)[-1]
        trajectory = model.decode(latent, state, target, guided=True)
        first = model.split(trajectory[:, 0])
        wanted = {"S": state, "G": state[:, model.achieved_goal]}
        if "condition_loss" in config.return_conditioning:
            wanted["R"] = target
        error = target.new_zeros(logits[0].shape[0])
        pairs = [(first[name], wanted[name]) for name in first if name in wanted]
        if pairs:  # a trajectory of actions alone has no initial condition
            decoded, given = (torch.cat(parts, dim=-1) for parts in zip(*pairs, strict=True))
            miss = _squared_error(decoded, given)
            if config.condition_guidance == "adapter" and config.horizon > 1:
                # Deviation: past the first step, D' is held to the trained decoder D.
                # Measured: Eq. 7 alone halves the error of the first step and multiplies that of
                # the later ones by 3 to 6.
                with torch.no_grad():
                    trained = model.decode(latent, state, target, guided=False)
                miss = miss + _squared_error(trajectory[:, 1:], trained[:, 1:])
            error[part] = len(error) / count * miss
        return error

    def _inverse_dynamics(
        self,
        true_codes: list[Tensor],
        logits: Sequence[Tensor],
        state: Tensor,
        target: Tensor,
        action: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``||a_0 - I(Z)||^2`` on what acting will meet, shape (B,), and errors for the log."""
        model, config = self.model, self.model.config
        wanted = model.normalize_action(action)
        with torch.no_grad():
            generated = [model.pick(scores) for scores in logits]
            # Deviation: on directions, I learns from the ways that the data went.
            # Which way to go is the plan's choice; how the body goes there is learnt from all ways.
            codes = true_codes if config.inverse_dynamics == "direction" else generated
            latent = model.quantizer.partial_sums(codes)[-1]
            pyramids = {"true": true_codes, "generated": generated} if self.metrics else {}
            metrics = {}
            for name, pyramid in pyramids.items():
                read = model.read_action(model.quantizer.partial_sums(pyramid)[-1], state, target)
                error = (model.denormalize_action(read) - action).square().mean()
                metrics[f"action_error_{name}"] = error
        visible = model.hide_state(state)
        predicted = model.read_action(latent, state, target, visible=visible)
        return config.inverse_dynamics_weight * _squared_error(predicted, wanted), metrics


class MAGEInverseDynamicsLoss(_MAGELossModule):
    """A polish of I on the plans that acting will meet, after stage 2 (Eq. 6).

    ``||a_0 - I(Z)||^2`` where Z is what the trained model generates for (s_0, R_0), scale by scale
    in its own context, or with ``inverse_dynamics="direction"`` the way that the data went. Plans
    never change here, so what I sees of them is read from the batch (``plan``, shape (B, T, as
    ``MAGEModel.read_plan`` says), of which the first step counts), and a step costs as little as
    one of behaviour cloning.

    Args:
        model: the model whose stage 2 is done.
        reduction: "mean" (default), "sum" or "none" (one loss per window).

    Raises:
        KeyError: the batch lacks an entry.
    """

    trains = ("inverse_dynamics",)
    reads = ("plan",)

    def __init__(self, model: MAGEModel, *, reduction: str | None = None) -> None:
        super().__init__(model, reduction=reduction)
        self.out_keys = ["loss_inverse_dynamics"]

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Losses of a batch, whose first step is read; the input stays as it is."""
        model, keys = self.model, self.tensor_keys
        observation = self._observation(tensordict)
        state, target = model.standardize(
            observation[:, 0], tensordict.get(keys.return_to_go)[:, 0]
        )
        plan = tensordict.get("plan")[:, 0]
        condition = torch.cat([state, target], dim=-1)
        predicted = model.inverse_dynamics(plan, condition, model.hide_state(state))
        wanted = model.normalize_action(tensordict.get(keys.action)[:, 0])
        return self._reduced({"loss_inverse_dynamics": _squared_error(predicted, wanted)}, {})
