"""The objective of GAC as a TorchRL loss module: Eq. 6 on a batch of whole episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor

from mage_agent import parallel
from mage_agent.gac.inference import Ascent, Posterior, PosteriorStore, infer
from mage_agent.gac.trajectory import Trajectories
from mage_agent.losses import AgentLoss

if TYPE_CHECKING:
    from mage_agent.gac.model import GACModel

__all__ = ["GACLoss"]

EVALUATION_STEPS = 150
"""Adam steps on q for trajectories that the model is judged by."""
SURE = 0.5
"""Standard deviation of q below which an entry of eps counts as used."""
POSTERIOR = "posterior"
"""Where a batch may bring q: entries "mean" and "log_variance", each (B, K, D)."""


class GACLoss(AgentLoss):
    r"""The evidence lower bound of trajectories and returns, with free bits (Eq. 6).

    Per trajectory, ``loss_action``, ``loss_state``, ``loss_return`` and ``loss_kl`` sum to ``-J``,
    ``J = E_q[log p(tau, y | s_0, eps)] - (eta + softplus(KL - eta))``, divided by the mean length
    of the batch's trajectories; estimated with one sample of q and ``config.window`` steps.

    Where q(eps | tau, y) comes from is ``config.inference``. With "persistent", the module keeps
    its parameters for every trajectory; in training mode, the backward pass that gives the model
    its gradient moves them as well, by Adam (they are no ``parameters()``, but in
    ``state_dict()``). Trajectories whose gradient is not finite keep their q, and all do where
    ``torch.autograd.grad`` or ``backward(inputs=...)`` takes the gradient. A batch that brings q
    under ``"posterior"`` is taken at its word. In evaluation mode, q is fitted to the batch from
    the prior on, but for "amortised", where it is the encoder's.

    Metrics: ``elbo`` (the plain bound per step), ``kl`` in nats, ``inner_steps`` of Adam on q
    before this step, ``active_dims``, entries of eps that q is sure about.

    Args:
        model: the model to train.
        num_trajectories: how many the data has, numbered from 0 under ``episode``; "persistent"
            needs it.
        reduction: "mean" (default), "sum" or "none" (one loss per trajectory).

    Raises:
        ValueError: "persistent", and ``num_trajectories`` is missing.

    Examples:
        >>> (stage,) = model.stages(dataset)
        >>> batch = next(stage.batches())
        >>> losses = stage.loss(batch)
        >>> sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
    """

    @dataclass
    class _AcceptedKeys(AgentLoss._AcceptedKeys):
        """Names of the entries that the loss reads.

        Attributes:
            observation: stands for "observation" in ``config.observation_keys``, and under "next".
            action: actions, shape (B, T, A).
            return_to_go: of which the first, undiscounted one is y, shape (B, T, 1).
            mask: True for real steps, shape (B, T) or (B, T, 1); all steps are real without it.
            episode: number of the trajectory, shape (B, T); "persistent" alone reads it.
            done: True at the last step of an episode, shape (B, T, 1).
            step_count: steps since the episode began, shape (B, T, 1); not checked without it.
        """

        episode: NestedKey = "episode"
        step_count: NestedKey = "step_count"
        done: NestedKey = ("next", "done")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    model: GACModel
    agent = "gac"

    def __init__(
        self,
        model: GACModel,
        *,
        num_trajectories: int | None = None,
        reduction: str | None = None,
    ) -> None:
        super().__init__(model, reduction=reduction)
        config = model.config
        persistent = config.inference == "persistent"
        if persistent and not num_trajectories:
            raise ValueError(
                f"num_trajectories is {num_trajectories}; inference='persistent' keeps q of every "
                "trajectory and needs their number. Give it, take the loss of model.stages("
                "dataset), or use inference='fresh'."
            )
        self.store = (
            PosteriorStore(num_trajectories, *model.noise_shape)
            if persistent and num_trajectories
            else None
        )
        self.trains = ("prior", "generator", "critic", "action_std", "change_std")
        if model.encoder is not None:
            self.trains += ("encoder",)
        self.inner_steps = 0

    def needed(self) -> list[NestedKey]:
        """What ``forward`` reads, unless ``in_keys`` was set."""
        keys = self.tensor_keys
        following = [_next(key) for key in self.observation_keys]
        number = [keys.episode] if self.model.config.inference == "persistent" else []
        own = [keys.action, keys.return_to_go, *number, keys.done]
        return [*self.observation_keys, *following, *own]

    def written(self) -> list[str]:
        """Losses and metrics that ``forward`` writes."""
        parts = [f"loss_{name}" for name in ("action", "state", "return", "kl")]
        return [*parts, "elbo", "kl", "inner_steps", "active_dims"]

    def trajectories(self, tensordict: TensorDictBase) -> Trajectories:
        """Read a batch of whole episodes.

        Raises:
            KeyError: the batch lacks an entry.
            ValueError: it has another shape, or holds parts of episodes.
        """
        keys, model = self.tensor_keys, self.model
        observation = self.observation(tensordict)
        if observation.ndim != 3 or observation.shape[-1] != model.observation_dim:
            raise ValueError(
                f"the observations have shape {tuple(observation.shape)}; expected (batch, longest "
                f"episode, {model.observation_dim}): take the batches of model.stages(dataset), or "
                "of replay_buffer(dataset, starts='episodes', horizon=longest episode)."
            )
        shape = observation.shape[:2]
        if 0 in shape:
            raise ValueError(f"the batch is empty: its observations have {(*observation.shape,)}.")
        length = self.mask(tensordict, shape).sum(1)
        done = tensordict.get(keys.done).view(shape).bool()
        ended = done.gather(1, (length - 1).clamp_min(0)[:, None])
        if not ended.all():
            raise ValueError(
                f"{int((~ended).sum())} of {len(ended)} windows end before their episode does; GAC "
                "learns from whole episodes: make horizon the length of the longest one, and "
                "starts='episodes'."
            )
        steps = torch.arange(shape[1], device=done.device)
        if (joined := (done & (steps < length[:, None] - 1)).any(1)).any():
            raise ValueError(
                f"{int(joined.sum())} of {len(joined)} windows hold the end of an episode before "
                "their own; GAC learns from whole episodes, each in a row of its own: mask out "
                "what follows an episode's end."
            )
        step = tensordict.get(keys.step_count, None)
        if step is not None and (begun := step.view(shape)[:, 0] > 0).any():
            raise ValueError(
                f"{int(begun.sum())} of {len(begun)} windows begin in the middle of an episode; "
                "GAC learns from whole episodes: draw them with starts='episodes'."
            )
        following = [self.read(tensordict, _next(key)) for key in self.observation_keys]
        return model.standardize(
            observation=observation,
            action=self.action(tensordict),
            next_observation=torch.cat(following, dim=-1),
            value=self.read(tensordict, keys.return_to_go).view(shape)[:, 0],
            length=length,
        )

    def prepare(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The inner loop (Algorithm 1, lines 5 to 8): once for a batch, before its gradient steps.

        Args:
            tensordict: a batch; it stays as it is.

        Returns:
            With "fresh", the batch and its q, batch size [B]; else the batch, whose q is kept here.
        """
        config = self.model.config
        self.inner_steps = 0
        if config.inference == "amortised" or config.max_inner_steps == 0:
            return tensordict
        trajectories = self.trajectories(tensordict)
        if self.store is not None:
            rows = self._rows(tensordict)
            self.store.write(rows, self._fitted(trajectories, self.store.read(rows)))
            return tensordict
        prepared = tensordict.copy()
        prepared.batch_size = tensordict.batch_size[:1]
        for name, value in self._fitted(trajectories).posterior._asdict().items():
            prepared.set((POSTERIOR, name), value)
        return prepared

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Losses of a batch; the input stays as it is."""
        if torch.is_inference_mode_enabled():  # q is found by gradients
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(tensordict.clone())
        model, config = self.model, self.model.config
        trajectories = self.trajectories(tensordict)
        posterior = self._posterior(tensordict, trajectories)
        noise = torch.randn_like(posterior.mean)
        evidence = model.evidence(trajectories, posterior, noise, model.draw(trajectories))
        length = self._mean(trajectories.length.to(noise.dtype))
        losses = {
            "loss_action": -evidence.action / length,
            "loss_state": -evidence.state / length,
            "loss_return": -evidence.value / length,
            "loss_kl": evidence.free_kl(config.free_bits) / length,
        }
        metrics: dict[str, Tensor] = {}
        if self.metrics:
            used = posterior.log_variance < 2 * torch.tensor(SURE).log()
            metrics = {
                "elbo": (evidence.bound() / length).mean(),
                "kl": evidence.kl.mean(),
                "inner_steps": noise.new_tensor(self.inner_steps),
                "active_dims": used.sum((1, 2)).to(noise.dtype).mean(),
            }
        return self.reduced(losses, metrics)

    def _mean(self, length: Tensor) -> Tensor:
        """Mean length of the trajectories of a batch, of which other processes may have a share."""
        mean = length.mean()
        shared = self.training and torch.is_grad_enabled()
        return parallel.average(TensorDict({"mean": mean}))["mean"] if shared else mean

    def _posterior(self, tensordict: TensorDictBase, trajectories: Trajectories) -> Posterior:
        """Q of a batch: what it brings, what is kept of it, the encoder's, or a new one."""
        brought = [tensordict.get((POSTERIOR, name), None) for name in Posterior._fields]
        if all(part is not None for part in brought):
            return Posterior(*brought)
        if self.model.encoder is not None:
            return self.model.encode(trajectories)
        if self.training and self.store is not None:
            return self._learning(self._rows(tensordict), trajectories.length)
        if self.training:
            return self._fitted(trajectories).posterior
        ascent, self.inner_steps = infer(self.model, trajectories, steps=EVALUATION_STEPS)
        return ascent.posterior

    def _fitted(self, trajectories: Trajectories, start: Ascent | None = None) -> Ascent:
        """The inner loop of training, by default from a random start."""
        config = self.model.config
        if start is None:
            like = trajectories.observation.new_empty(self.model.noise_shape)
            start = Ascent.random(len(trajectories.length), like)
        ascent, self.inner_steps = infer(
            self.model,
            trajectories,
            start,
            steps=config.max_inner_steps,
            free_bits=config.free_bits,
        )
        return ascent

    def _learning(self, rows: Tensor, length: Tensor) -> Posterior:
        """The kept q of some trajectories, which the backward pass of the loss will move."""
        # Deviation 25: by default there is no inner loop; q and the model take steps together.
        store = self.store
        assert store is not None
        ascent = store.read(rows)
        phi = ascent.phi.requires_grad_()
        # The loss is -J by the batch's mean T, averaged over the batch; q learns by J / T of its
        # own trajectory, as in ``infer``, which the moments are shared with.
        scale = self._mean(length.to(phi.dtype)) / length
        if self.reduction == "mean":
            scale = scale * len(rows)

        moments = ascent.first, ascent.second, ascent.count

        @torch.no_grad()
        def step(
            leaf: Tensor,
        ) -> None:  # must not hold the leaf, which holds it: nothing frees both
            assert leaf.grad is not None
            kept = Ascent(leaf.detach(), *moments)
            gradient = -scale[:, None, None, None] * leaf.grad
            finite = gradient.flatten(1).isfinite().all(1)  # a scaler of losses may skip a step
            rate = self.model.config.inner_learning_rate
            store.write(rows, kept.step(gradient, rate, finite))

        phi.register_post_accumulate_grad_hook(step)
        return Posterior(*phi.unbind(1))

    def _rows(self, tensordict: TensorDictBase) -> Tensor:
        """Numbers of the batch's trajectories, shape (B,)."""
        assert self.store is not None
        episode = tensordict.get(self.tensor_keys.episode)
        rows: Tensor = episode.view(len(episode), -1)[:, 0].long()
        if int(rows.max()) >= len(self.store):
            raise ValueError(
                f"the batch holds trajectory {int(rows.max())}, but num_trajectories is "
                f"{len(self.store)}; their numbers must run from 0."
            )
        return rows


def _next(key: NestedKey) -> NestedKey:
    """The name of an entry one step later."""
    return ("next", *((key,) if isinstance(key, str) else key))
