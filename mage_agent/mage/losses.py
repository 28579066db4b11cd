"""Stages of MAGE's training as TorchRL losses: tokenizer, generator, inverse dynamics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn
from torch.nn import functional as F

from mage_agent.agent import evaluating
from mage_agent.losses import AgentLoss, squared_error
from mage_agent.mage.sampling import straight_through
from mage_agent.types import TrajectoryWindow

if TYPE_CHECKING:
    from mage_agent.mage.model import MAGEModel

__all__ = ["MAGEInverseDynamicsLoss", "MAGELoss", "MAGETokenizerLoss"]


class _MAGELoss(AgentLoss):
    """How the three losses read their batches."""

    model: MAGEModel
    agent = "mage"

    def needed(self) -> list[NestedKey]:
        """What ``forward`` reads, unless ``in_keys`` was set; windows hold returns, told or not."""
        keys = self.tensor_keys
        return [*self.observation_keys, keys.action, keys.return_to_go, *self.reads]

    def window(self, tensordict: TensorDictBase) -> TrajectoryWindow:
        """Read a window batch.

        Args:
            tensordict: batch size [B, T] with T = ``config.horizon``.

        Raises:
            KeyError: the batch lacks an entry.
            ValueError: the batch has another shape.
        """
        horizon = self.model.config.horizon
        observation = self.observation(tensordict)
        if observation.ndim != 3 or observation.shape[1] != horizon:
            raise ValueError(
                f"the observations have shape {tuple(observation.shape)}; expected (batch, "
                f"{horizon}, {self.model.observation_dim}): draw windows with "
                f"replay_buffer(dataset, horizon={horizon})."
            )
        mask = self.mask(tensordict, observation.shape[:2])
        if not torch.compiler.is_compiling() and (empty := ~mask[:, 0]).any():
            raise ValueError(
                f"{int(empty.sum())} of {len(mask)} windows begin with padding; a window begins at "
                "a real step."
            )
        return TrajectoryWindow(
            observation=observation,
            action=self.action(tensordict),
            return_to_go=self.read(tensordict, self.tensor_keys.return_to_go),
            mask=mask,
        )


class MAGETokenizerLoss(_MAGELoss):
    """Stage 1: the multi-scale autoencoder and the inverse dynamics (Alg. 1-2, Eq. 6, A.2).

    Per window, ``(x_t - x_hat_t)^2 + beta (f - sg(z))^2 + (a_0 - I(sum_k z_k))^2`` in standardised
    units, each the mean over its entries, and over real steps. The codebook follows by moving
    average when the module is in training mode. Minimises ``loss_reconstruction + loss_commitment +
    loss_inverse_dynamics``; ``reconstruction_error`` and ``codebook_usage_k`` (share of the codes
    that scale k used in this batch) are for logs.

    Args:
        model: the model to train.
        reduction: "mean" (default), "sum" or "none" (one loss per window).

    Raises:
        ValueError: the batch is no batch of windows of the model's horizon.

    Examples:
        >>> horizon, discount = model.config.horizon, model.config.discount
        >>> buffer = replay_buffer(dataset, horizon=horizon, discount=discount, batch_size=128)
        >>> losses = MAGETokenizerLoss(model)(buffer.sample())
        >>> sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
    """

    trains: tuple[str, ...] = ("encoder", "quantizer", "decoder", "inverse_dynamics")

    def written(self) -> list[str]:
        """Losses and metrics."""
        usage = [f"codebook_usage_{k + 1}" for k in range(self.model.config.num_scales)]
        losses = ["loss_reconstruction", "loss_commitment", "loss_inverse_dynamics"]
        return [*losses, "reconstruction_error", *usage]

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
        with self.others_frozen():  # inverse dynamics, where it is trained already
            return self._losses(tensordict)

    def _losses(self, tensordict: TensorDictBase) -> TensorDict:
        model, config = self.model, self.model.config
        window = self.window(tensordict)
        state, target = model.units.standardize(window.observation[:, 0], window.return_to_go[:, 0])
        encoding = model.tokenize(window, update_codebook=self.training)
        decoded = model.decode(encoding.latent, state, target, guided=False)
        error = (decoded - model.trajectory(window)).square()
        steps = window.mask[..., None]
        # Select rather than multiply, so that padding never counts; divide by the real steps.
        error = torch.where(steps, error, 0.0).sum((1, 2)) / (steps.sum((1, 2)) * error.shape[-1])
        weight = self._weight(window.return_to_go[:, 0]) if config.return_reweighting else 1.0
        # Deviation 3: stage 1 also trains inverse dynamics, on the data's tokens.
        # The latent then keeps what decides the action.
        action = model.read_action(encoding.latent, state, target, trajectory=decoded)
        inverse = squared_error(action, model.units.action(window.action[:, 0]))
        usage = {
            f"codebook_usage_{k + 1}": error.new_tensor(ids.unique().numel() / config.codebook_size)
            for k, ids in enumerate(encoding.token_ids)
            if self.metrics
        }
        return self.reduced(
            {
                "loss_reconstruction": weight * error,
                "loss_commitment": config.commitment_weight * encoding.commitment,
                "loss_inverse_dynamics": config.inverse_dynamics_weight * inverse,
            },
            {"reconstruction_error": error.mean(), **usage},
        )

    def _weight(self, return_to_go: Tensor) -> Tensor:
        """Return-to-go scaled to [0, 1], shape (B,) (Table 23, "reweight")."""
        low, high = self.model.units.return_range
        weight: Tensor = (return_to_go - low) / (high - low).clamp_min(1e-6)
        return weight.squeeze(-1)


class MAGELoss(_MAGELoss):
    """Stage 2: transformer, adapters and inverse dynamics on a frozen tokenizer (Eq. 4-7, Alg. 5).

    Per window, cross-entropy of the true tokens (Eq. 5, averaged over tokens), ``lambda_cond
    ||D'(Z)_0 - (s_0, R_0)||^2`` (Eq. 7) with D' close to D past the first step, ``||a_0 -
    I(Z)||^2`` on generated latents unless inverse dynamics has a stage of its own, and with
    ``q_value_weight`` the squared error of the true tokens' logits to R_0. The encoder, the
    codebook and the decoder never move, except for the decoder with
    ``condition_guidance="decoder"``.

    Metrics: ``token_accuracy_k`` of each scale given the true coarser ones, and the mean squared
    action error in environment units, ``action_error_true`` and ``action_error_generated``.

    Args:
        model: the model whose stage 1 is done.
        reduction: "mean" (default), "sum" or "none" (one loss per window); the former two estimate
            the condition loss on the first quarter of the batch.

    Raises:
        ValueError: the batch is no batch of windows of the model's horizon.

    Examples:
        >>> stage = {stage.name: stage for stage in model.stages(dataset)}["generator"]
        >>> losses = MAGELoss(model)(next(stage.batches()))
        >>> sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
    """

    def __init__(self, model: MAGEModel, *, reduction: str | None = None) -> None:
        super().__init__(model, reduction=reduction)
        decoder = {"adapter": ("decoder.adapters",), "decoder": ("decoder",), "none": ()}
        guidance = model.config.condition_guidance
        actor = () if model.config.inverse_dynamics_steps else ("inverse_dynamics",)
        self.trains = ("features", "transformer", *actor, *decoder[guidance])

    def written(self) -> list[str]:
        """Losses and metrics."""
        config = self.model.config
        return [
            "loss_token",
            *(["loss_q_value"] if config.q_value_weight else []),
            *(["loss_condition"] if config.condition_guidance != "none" else []),
            *([] if config.inverse_dynamics_steps else ["loss_inverse_dynamics"]),
            *(f"token_accuracy_{k + 1}" for k in range(config.num_scales)),
            *(["action_error_true", "action_error_generated"] if self.reads_actions else []),
        ]

    @property
    def reads_actions(self) -> bool:
        """Whether there is an inverse dynamics to judge: not before a stage of its own."""
        return not (self.model.config.inverse_dynamics_steps and self.training)

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Losses of a batch of windows; the input stays as it is."""
        with self.others_frozen():
            return self._losses(tensordict)

    def _losses(self, tensordict: TensorDictBase) -> TensorDict:
        model, config = self.model, self.model.config
        window = self.window(tensordict)
        token_ids = self._token_ids(window)
        action = window.action[:, 0]
        state, target = model.units.standardize(window.observation[:, 0], window.return_to_go[:, 0])
        true_codes = [model.quantizer.lookup(ids) for ids in token_ids]
        logits: Sequence[Tensor]
        # Deviation 5: the context is the data's tokens by default; Algorithm 5 has context="own".
        sums = None
        if config.context == "teacher":
            logits = model.logits(true_codes, state, target)
        else:
            logits, sums = model.generate(state, target, self._straight_through)
        scores, ids = torch.cat(list(logits), dim=1), torch.cat(token_ids, dim=1)
        wide = scores.flatten(0, 1).to(torch.promote_types(scores.dtype, torch.float32))
        token_loss = F.cross_entropy(wide, ids.flatten(), reduction="none")
        # Deviation 6: the token loss is the mean over tokens, where Eq. 5 has the sum.
        losses = {"loss_token": token_loss.view(ids.shape).mean(1)}
        if config.q_value_weight:
            # Deviation 7: with q_value_weight, token logits are also Q values of the return.
            # CQL's regulariser, log-sum-exp minus the data's value, is the cross-entropy above.
            value = wide.gather(1, ids.flatten()[:, None]).view(ids.shape)
            losses["loss_q_value"] = config.q_value_weight * (value - target).square().mean(1)
        if config.condition_guidance != "none":
            # Deviation 9: estimated on a quarter of the batch, weighted four times. The expectation
            # is the same, and a training step takes a quarter less time.
            count = len(state) if self.reduction == "none" else -(-len(state) // 4)
            latent = (
                self._sampled([scale[:count] for scale in logits])
                if sums is None
                else sums[-1][:count]  # the very samples that were the context (Alg. 5)
            )
            miss = self._condition_error(latent, state[:count], target[:count])
            error = F.pad(len(state) / count * miss, (0, len(state) - count))
            losses["loss_condition"] = config.condition_weight * error
        metrics: dict[str, Tensor] = {}
        if self.reads_actions:
            generated = [model.choose(scale.detach()) for scale in logits]
        if not config.inverse_dynamics_steps:
            inverse = self._inverse_dynamics(true_codes, generated, state, target, action)
            losses["loss_inverse_dynamics"] = config.inverse_dynamics_weight * inverse
        if self.metrics:
            kinds = {"true": true_codes, "generated": generated} if self.reads_actions else {}
            for name, codes in kinds.items():
                error = self._action_error(codes, state, target, action)
                metrics[f"action_error_{name}"] = error
            hits = scores.argmax(-1) == ids
            for k, correct in enumerate(hits.split(config.scales, dim=1)):
                metrics[f"token_accuracy_{k + 1}"] = correct.float().mean()
        return self.reduced(losses, metrics)

    @torch.no_grad()
    def _token_ids(self, window: TrajectoryWindow) -> tuple[Tensor, ...]:
        """Tokens of the windows, K tensors (B, L_k)."""
        # As in acting, and not in the bfloat16 that autocast may have set.
        with torch.autocast(window.action.device.type, enabled=False):
            return self.model.tokenize(window).token_ids

    def _straight_through(self, logits: Tensor) -> Tensor:
        model = self.model
        return straight_through(logits, model.quantizer.codes, model.config.gumbel_temperature)

    def _sampled(self, logits: Sequence[Tensor]) -> Tensor:
        """Latents (B, L_K, C) of straight-through samples of every scale."""
        lengths = [scale.shape[1] for scale in logits]
        codes = self._straight_through(torch.cat(list(logits), dim=1)).split(lengths, dim=1)
        return self.model.quantizer.partial_sums(codes)[-1]

    def _condition_error(self, latent: Tensor, state: Tensor, target: Tensor) -> Tensor:
        """``||D'(Z)_0 - (s_0, R_0)||^2`` of each window (Eq. 7), shape (B,)."""
        model, config = self.model, self.model.config
        trajectory = model.decode(latent, state, target, guided=True)
        first = model.parts(trajectory[:, 0])
        start = state if model.drift is None else torch.zeros_like(state)
        wanted = {"S": start, "G": start[:, model.achieved_goal]}
        if "condition_loss" in config.return_conditioning:
            wanted["R"] = target
        pairs = [(first[name], wanted[name]) for name in first if name in wanted]
        if not pairs:  # a trajectory of actions alone has no initial condition
            return target.new_zeros(len(target))
        decoded, given = (torch.cat(parts, dim=-1) for parts in zip(*pairs, strict=True))
        miss = squared_error(decoded, given)
        if config.condition_guidance == "adapter":
            # Deviation 8: past the first step, D' is kept close to the trained decoder D.
            # Eq. 7 alone halves the error of the first step and multiplies that of the later ones
            # by 3 to 6.
            with torch.no_grad():
                trained = model.decode(latent, state, target, guided=False)
            miss = miss + squared_error(trajectory[:, 1:], trained[:, 1:])
        return miss

    def _inverse_dynamics(
        self,
        true_codes: list[Tensor],
        generated: list[Tensor],
        state: Tensor,
        target: Tensor,
        action: Tensor,
    ) -> Tensor:
        """``||a_0 - I(Z)||^2`` on plans that begin with ``data_scales`` true scales, shape (B,)."""
        model, config = self.model, self.model.config
        # The plan picks the direction; the low-level controller is trained on every direction.
        kept = None if config.inverse_dynamics == "direction" else config.data_scales
        codes = true_codes[:kept] + generated[len(true_codes[:kept]) :]
        with torch.no_grad():
            latent = model.quantizer.partial_sums(codes)[-1]
        return squared_error(model.read_action(latent, state, target), model.units.action(action))

    @torch.no_grad()
    def _action_error(
        self, codes: list[Tensor], state: Tensor, target: Tensor, action: Tensor
    ) -> Tensor:
        """Mean squared error of the actions read off plans, in environment units."""
        model = self.model
        with evaluating(model.inverse_dynamics):  # no dropout, no draw
            latent = model.quantizer.partial_sums(codes)[-1]
            read = model.read_action(latent, state, target)
        return (model.units.environment_action(read) - action).square().mean()


class MAGEInverseDynamicsLoss(_MAGELoss):
    """The last stage: inverse dynamics alone, on plans of the trained generator (Eq. 6).

    ``||a_0 - I(Z)||^2`` where Z is what the trained model generates for (s_0, R_0), scale by scale
    in its own context; or with ``inverse_dynamics="direction"``, and with "displacement" and
    ``data_scales=None``, what the data themselves did. Plans do not change in this stage, so what
    is read of them comes with the batch (``plan``, (B, T, as ``MAGEModel.read_plan`` says) or
    (B, ...)), of which the first step counts, and a step costs as little as one of behaviour
    cloning.

    Args:
        model: the model whose stage 2 is done.
        reduction: "mean" (default), "sum" or "none" (one loss per window).

    Raises:
        KeyError: the batch lacks an entry.

    Examples:
        >>> stage = model.stages(dataset)[-1]  # with inverse_dynamics_steps above 0
        >>> losses = MAGEInverseDynamicsLoss(model)(next(stage.batches()))
        >>> losses["loss_inverse_dynamics"].backward()
    """

    trains = ("inverse_dynamics",)
    reads = ("plan",)

    def written(self) -> list[str]:
        """The loss."""
        return ["loss_inverse_dynamics"]

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Losses of a batch, whose first step is read; the input stays as it is."""
        model, keys = self.model, self.tensor_keys
        observation = self.observation(tensordict)
        read = (self.read(tensordict, key) for key in (keys.return_to_go, "plan"))
        observation, action, return_to_go, plan = (
            part[:, 0] if part.ndim == 3 else part
            for part in (observation, self.action(tensordict), *read)
        )
        state, target = model.units.standardize(observation, return_to_go)
        predicted = model.inverse_dynamics(plan, torch.cat([state, target], dim=-1))
        error = squared_error(predicted, model.units.action(action))
        return self.reduced({"loss_inverse_dynamics": error}, {})
