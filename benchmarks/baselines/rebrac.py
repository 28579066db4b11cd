"""ReBRAC: TD3+BC that also penalises the critic's next actions (Tarasov et al., 2023).

https://arxiv.org/abs/2305.09836
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from tensordict import TensorDict, TensorDictBase
from torch import nn

from benchmarks.baselines.actor_critic import ActorCriticConfig
from benchmarks.baselines.losses import ReBRACLoss
from benchmarks.baselines.networks import Network, critics, mlp
from benchmarks.baselines.td3_bc import TD3BC
from benchmarks.domains import POINT_MAZES
from mage_agent import bounded

__all__ = ["ReBRAC"]

_LOCOMOTION = {"batch_size": 1024, "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
_ANTMAZE = {"critic_learning_rate": 5e-5, "discount": 0.999, "reward_scale": 100.0}
_PENALTIES = {  # of actor and critic; that of a domain is a middle one, for datasets without
    "pen": (0.05, 0.5),
    "pen/human": (0.1, 0.5),
    "pen/cloned": (0.05, 0.5),
    "pen/expert": (0.01, 0.01),
    "door": (0.05, 0.1),
    "door/human": (0.1, 0.1),
    "door/cloned": (0.01, 0.1),
    "door/expert": (0.05, 0.01),
    "hammer": (0.01, 0.5),
    "hammer/human": (0.01, 0.5),
    "hammer/cloned": (0.1, 0.5),
    "hammer/expert": (0.01, 0.01),
    "relocate": (0.1, 0.01),
    "relocate/expert": (0.05, 0.01),
    "halfcheetah": (0.01, 0.01),
    "halfcheetah/medium": (0.001, 0.01),
    "halfcheetah/medium-replay": (0.01, 0.001),
    "halfcheetah/medium-expert": (0.01, 0.1),
    "hopper": (0.05, 0.01),
    "hopper/medium": (0.01, 0.01),
    "hopper/medium-replay": (0.05, 0.5),
    "hopper/medium-expert": (0.1, 0.01),
    "walker2d": (0.05, 0.01),
    "walker2d/medium": (0.05, 0.1),
    "walker2d/medium-expert": (0.01, 0.01),
    "antmaze": (0.002, 0.001),
    "antmaze/umaze": (0.003, 0.002),
    "antmaze/umaze-diverse": (0.003, 0.001),
    "antmaze/medium-play": (0.001, 0.0005),
    "antmaze/medium-diverse": (0.001, 0.0),
    "antmaze/large-play": (0.002, 0.001),
    "antmaze/large-diverse": (0.002, 0.002),
    **dict.fromkeys(POINT_MAZES, (0.003, 0.001)),
}
_RATES = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), _LOCOMOTION),
    "antmaze": _ANTMAZE,
}


@dataclass(frozen=True, kw_only=True)
class ReBRACConfig(ActorCriticConfig):
    """The publication's settings, penalties tuned by its authors for each dataset.

    Attributes:
        policy_noise: standard deviation of the noise on the actions that targets are judged by.
        noise_clip: its largest size.
        actor_penalty: weight of the actor's squared distance to the data's action.
        critic_penalty: weight of the next action's squared distance to the data's next action.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        name: {"actor_penalty": actor, "critic_penalty": critic, **_RATES.get(name, {})}
        for name, (actor, critic) in _PENALTIES.items()
    }

    hidden: tuple[int, ...] = (256, 256, 256)
    policy_noise: float = bounded(0.2, 0.0)
    noise_clip: float = bounded(0.5, 0.0)
    actor_penalty: float = bounded(0.01, 0.0)
    critic_penalty: float = bounded(0.01, 0.0)


class ReBRAC(TD3BC):
    """ReBRAC.

    What it changes in TD3+BC: a penalty for the critic, three hidden layers, layer norm in the
    critic, the smaller critic where the actor looks, larger batches on locomotion.
    """

    name: ClassVar[str] = "rebrac"
    config_class: ClassVar[type[ActorCriticConfig]] = ReBRACConfig
    config: ReBRACConfig  # type: ignore[assignment]

    def build(self) -> None:
        """Make the networks and the loss."""
        settings = self.config
        hidden, state, action = settings.hidden, self.observation_dim, self.action_dim
        self.policy = _initialised(mlp([state, *hidden, action], tanh=True), 1e-3)
        self.actor = Network(self.policy, ["observation"], ["action"])
        self.attach(
            ReBRACLoss(
                self.actor,
                critics(
                    lambda: _initialised(mlp([state + action, *hidden, 1], layer_norm=True), 3e-3)
                ),
                actor_penalty=settings.actor_penalty,
                critic_penalty=settings.critic_penalty,
                bounds=(-1.0, 1.0),
                policy_noise=settings.policy_noise,
                noise_clip=settings.noise_clip,
            )
        )

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Transitions with the data's next action, and whether there is one."""
        columns = super().columns(dataset)
        columns["next", "action"] = columns["action"].roll(-1, 0)
        columns["next", "acted"] = ~columns["next", "done"]
        return columns


def _initialised(layers: nn.Sequential, bound: float) -> nn.Sequential:
    """Start with biases of 0.1 and a small last layer, as the publication's code does."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for layer in linear[:-1]:
        nn.init.constant_(layer.bias, 0.1)
    nn.init.uniform_(linear[-1].weight, -bound, bound)
    nn.init.uniform_(linear[-1].bias, -bound, bound)
    return layers
