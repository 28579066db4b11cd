"""Decision Transformer: the next action given past steps and the return still asked for.

Chen et al., 2021, https://arxiv.org/abs/2106.01345
"""

import logging
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import DTActor
from torchrl.objectives import DTLoss

from benchmarks.baselines.base import Baseline, Settings, State
from mage_agent import load_dataset, replay_buffer

__all__ = ["DT"]


# Native bfloat16 takes 0.6 of the time (152 against 259 ms a step); emulated, it is slower.
_HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()


class DT(Baseline):
    """Decision Transformer with the publication's settings.

    Returns are not discounted. They are divided by the largest of the data, where the publication
    divides by 1000 on locomotion. The rate warms up over the first tenth of the steps, which is the
    publication's 10,000 of 100,000. TorchRL's network has no embedding of the time step.

    Attributes:
        target_return: return to ask for; at first the best of the data's episodes.
    """

    published_steps: ClassVar[int] = 100_000
    defaults: ClassVar[Settings] = {
        "context": 20,
        "width": 128,
        "layers": 3,
        "heads": 1,
        "dropout": 0.1,
        "batch_size": 64,
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
        "warmup": 0.1,
        "gradient_clip": 0.25,
    }

    def build(self, dataset: TensorDictBase) -> None:
        """Make the network and the loss."""
        settings = self.hyperparameters
        self.horizon = settings["context"]
        config = DTActor.default_config()
        config.n_embd, config.n_inner = settings["width"], 4 * settings["width"]
        config.n_layer, config.n_head = settings["layers"], settings["heads"]
        config.resid_pdrop = config.attn_pdrop = settings["dropout"]
        config.n_positions = 3 * self.horizon
        logger = logging.getLogger("transformers")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns of the vocabulary, of which there is none
        self.policy = _Squashed(DTActor(self.observation_dim, self.action_dim, config))
        logger.setLevel(level)
        inputs = ["observation", "action", "return_to_go"]
        self.loss = DTLoss(TensorDictModule(self.policy, inputs, ["predicted"]))
        self.loss.set_keys(action_pred="predicted")
        undiscounted = load_dataset(dataset, discount=1.0)
        returns = undiscounted["return_to_go"]
        starts = undiscounted["step_count"] == 0
        self.target_return = float(returns[starts].max())
        self.lowest, self.highest = float(returns.min()), float(returns.max())
        self.return_scale = float(returns.abs().max().clamp_min(1e-6))

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW."""
        settings = self.hyperparameters
        return torch.optim.AdamW(
            self.policy.parameters(),
            lr=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
            fused=True,
        )

    def schedule(self, step: int, steps: int) -> list[float]:
        """A rate that warms up."""
        return [min(1.0, (step + 1) / max(1.0, self.hyperparameters["warmup"] * steps))]

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Steps with the return that was still to come."""
        undiscounted = load_dataset(dataset, discount=1.0)["return_to_go"]
        return super().columns(dataset).set("return_to_go", undiscounted / self.return_scale)

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Squared error of the actions."""
        with torch.autocast("cpu", torch.bfloat16, enabled=_HAS_BFLOAT16):
            loss: Tensor = self.loss(batch)["loss"]
        return {"action": loss}

    def after_backward(self) -> None:
        """Clip the gradient."""
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.hyperparameters["gradient_clip"])

    def update_return_to_go(
        self, return_to_go: npt.NDArray[np.float32], reward: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return to ask for after a reward, within what the data holds; both (num_envs, 1)."""
        left: npt.NDArray[np.float32] = np.clip(return_to_go - reward, self.lowest, self.highest)
        return left

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[np.float32], State]:
        """Return the actions and the context that the next call needs.

        Args:
            observation: one observation or a batch; its entry ``return_to_go`` is what to ask for,
                ``target_return`` where it has none.
            state: as the last call returned it, None before the first step.
            episode_start: (num_envs,) where the context is to be forgotten.
            deterministic: of no influence.
        """
        self.eval()
        now = self.standardized(observation)
        asked = torch.full((*now.shape[:-1], 1), self.target_return)
        if isinstance(observation, dict) and "return_to_go" in observation:
            asked = torch.as_tensor(observation["return_to_go"]).float().reshape(asked.shape)
        single = now.ndim == 1
        now, asked = now.reshape(-1, now.shape[-1]), asked.reshape(-1, 1) / self.return_scale
        context = self._context(state, episode_start, len(now))
        seen, acted, wanted, length = context
        rows = torch.arange(len(now))
        seen[rows, length], wanted[rows, length] = now, asked
        # What lies behind the present step is hidden from it by the causal mask.
        action = self.policy(seen, acted, wanted)[rows, length]
        acted[rows, length] = action
        length += 1
        result = self.environment_action(action[0] if single else action)
        return result, tuple(part.numpy() for part in context)

    @torch.no_grad()
    def describe(self, held: TensorDictBase) -> dict[str, float]:
        """Mean squared action error on windows of a dataset, in environment units."""
        self.eval()
        windows = replay_buffer(
            self.columns(held), horizon=self.horizon, batch_size=min(1024, len(held)), seed=0
        ).sample()
        inputs = (windows[key] for key in ("observation", "action", "return_to_go"))
        predicted = self.environment_action(self.policy(*inputs))
        error = predicted - self.environment_action(windows["action"])
        return {"action_error": float(np.square(error)[windows["collector", "mask"]].mean())}

    def _context(
        self, state: State, episode_start: npt.NDArray[np.bool_] | None, count: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Past observations, actions, returns (num_envs, T, .) and their number, with room left."""
        if state is None:
            sizes = self.observation_dim, self.action_dim, 1
            seen, acted, wanted = (torch.zeros(count, self.horizon, size) for size in sizes)
            return seen, acted, wanted, torch.zeros(count, dtype=torch.int64)
        seen, acted, wanted, length = (torch.tensor(part) for part in state)
        if episode_start is not None:
            length[torch.as_tensor(episode_start)] = 0
        full = length == self.horizon
        for part in (seen, acted, wanted):
            part[full] = part[full].roll(-1, 1)
        length[full] -= 1
        return seen, acted, wanted, length


class _Squashed(nn.Module):
    """TorchRL's network with actions in (-1, 1)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observation: Tensor, action: Tensor, return_to_go: Tensor) -> Tensor:
        return torch.tanh(self.network(observation, action, return_to_go)).float()
