"""Decision Transformer: the next action given past steps and the return still asked for.

Chen et al., 2021, https://arxiv.org/abs/2106.01345
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import DTActor
from torchrl.objectives import DTLoss

from benchmarks.baselines.base import Baseline, BaselineConfig
from benchmarks.domains import ADROIT, POINT_MAZES
from mage_agent import bounded, cut_episodes, evaluating, replay_buffer
from mage_agent.memory import empty_memory, remember

__all__ = ["DT"]


@dataclass(frozen=True, kw_only=True)
class DTConfig(BaselineConfig):
    """The publication's settings, CORL's on Adroit and point mazes; returns are not discounted.

    Attributes:
        context: steps that an action is given.
        width: width of the transformer.
        layers: its blocks.
        heads: its attention heads.
        dropout: of all its layers.
        learning_rate: after the warm-up.
        weight_decay: decoupled.
        warmup: part of the steps in which the rate warms up, the publication's 10,000 of 100,000.
        gradient_clip: largest gradient norm.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        domain: {"batch_size": 4096, "learning_rate": 8e-4} for domain in (*ADROIT, *POINT_MAZES)
    }
    SMALL: ClassVar[dict[str, dict[str, Any]]] = {"": {"batch_size": 64}}

    discount: float = bounded(1.0, 1e-6, 1.0)
    steps: int = bounded(100_000, 1)
    batch_size: int = bounded(64, 1)
    context: int = bounded(20, 2)
    width: int = bounded(128, 1)
    layers: int = bounded(3, 1, 1000)
    heads: int = bounded(1, 1)
    dropout: float = bounded(0.1, 0.0, 0.99)
    learning_rate: float = bounded(1e-4, 1e-12)
    weight_decay: float = bounded(1e-4, 0.0)
    warmup: float = bounded(0.1, 0.0, 1.0)
    gradient_clip: float = bounded(0.25, 1e-12)


class DT(Baseline):
    """Decision Transformer.

    Returns are divided by the largest of the data, where the publication divides by 1000 on
    locomotion. TorchRL's network has no embedding of the time step. Episodes longer than the
    environment's step limit are cut to it: no return of Maze2D's one endless run can be asked for.
    """

    name: ClassVar[str] = "dt"
    config_class: ClassVar[type[DTConfig]] = DTConfig
    told_return: ClassVar[bool] = True
    discounted: ClassVar[bool] = False
    low_precision = True  # 0.6 of the time where bfloat16 is native (152 against 259 ms a step)
    config: DTConfig

    def build(self) -> None:
        """Make the network and the loss."""
        settings = self.config
        self.horizon, self.gradient_clip = settings.context, settings.gradient_clip
        config = DTActor.default_config()
        config.n_embd, config.n_inner = settings.width, 4 * settings.width
        config.n_layer, config.n_head = settings.layers, settings.heads
        config.resid_pdrop = config.attn_pdrop = settings.dropout
        config.n_positions = 3 * self.horizon
        logger = logging.getLogger("transformers")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns of the vocabulary, of which there is none
        self.policy = _Squashed(DTActor(self.observation_dim, self.action_dim, config))
        logger.setLevel(level)
        inputs = ["observation", "action", "return_to_go"]
        self.loss = DTLoss(TensorDictModule(self.policy, inputs, ["predicted"]))
        self.loss.set_keys(action_pred="predicted")

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW."""
        decay = self.config.weight_decay
        return torch.optim.AdamW(self.policy.parameters(), weight_decay=decay, fused=True)

    def rates(self, step: int, steps: int) -> Sequence[float]:
        """A rate that warms up."""
        warm = min(1.0, (step + 1) / max(1.0, self.config.warmup * steps))
        return [self.config.learning_rate * warm]

    def fit_units(self, dataset: TensorDictBase) -> None:
        """Take statistics; returns are parts of the largest of the data."""
        super().fit_units(self.trajectories(dataset))
        units = self.units
        units.return_to_go.mean.zero_()
        units.return_to_go.std.fill_(units.return_range.abs().max().clamp_min(1e-6))

    def trajectories(self, dataset: TensorDictBase) -> TensorDictBase:
        """A dataset whose episodes are no longer than the environment's."""
        return cut_episodes(dataset)

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Steps with the return that was still to come."""
        dataset = self.trajectories(dataset)
        returns = self.units.return_to_go(self.returns_to_go(dataset))
        return super().columns(dataset).set("return_to_go", returns)

    def losses(self, batch: TensorDictBase, step: int) -> dict[str, Tensor]:
        """Squared error of the actions."""
        return {"action": self.loss(batch)["loss"]}

    def initial_state(self, count: int) -> TensorDict:
        """No steps yet, of at most ``context``."""
        sizes = {"observation": self.observation_dim, "action": self.action_dim, "return_to_go": 1}
        return empty_memory(count, self.horizon, sizes, self.device)

    def decide(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        state: TensorDict | None = None,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, TensorDict]:
        """The next action after the steps that are remembered."""
        state = self.initial_state(len(observation)) if state is None else state
        now, asked = self.units.standardize(observation, return_to_go)
        state, place = remember(state, observation=now, return_to_go=asked)
        rows = torch.arange(len(place), device=place.device)
        # What lies behind the present step is hidden from it by the causal mask.
        seen = (state[key] for key in ("observation", "action", "return_to_go"))
        action = self.policy(*seen)[rows, place]
        state["action"][rows, place] = action
        return self.units.environment_action(action), state

    @torch.no_grad()
    def describe(self, dataset: TensorDictBase) -> dict[str, float]:
        """Mean squared action error on windows of a dataset, in environment units."""
        columns = self.columns(dataset.to(self.device)).cpu()
        size = min(1024, len(dataset))
        buffer = replay_buffer(columns, horizon=self.horizon, batch_size=size, seed=0)
        windows = buffer.sample().to(self.device)
        inputs = (windows[key] for key in ("observation", "action", "return_to_go"))
        with evaluating(self):
            error = self.units.environment_action(self.policy(*inputs))
        error = error - self.units.environment_action(windows["action"])
        return {"action_error": float(error.square()[windows["collector", "mask"]].mean())}


class _Squashed(nn.Module):
    """TorchRL's network with actions in (-1, 1)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observation: Tensor, action: Tensor, return_to_go: Tensor) -> Tensor:
        return torch.tanh(self.network(observation, action, return_to_go)).float()
