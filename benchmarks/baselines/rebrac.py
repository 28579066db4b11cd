"""ReBRAC: TD3+BC that also penalises the critic's next actions (Tarasov et al., 2023).

https://arxiv.org/abs/2305.09836
"""

from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor, nn
from torchrl.objectives import TD3BCLoss

from benchmarks.baselines.base import Settings
from benchmarks.baselines.networks import Network, critics, mlp
from benchmarks.baselines.td3_bc import TD3BC

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
    "pointmaze": (0.003, 0.001),
}
_RATES = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), _LOCOMOTION),
    "antmaze": _ANTMAZE,
}


class ReBRAC(TD3BC):
    """ReBRAC with the publication's settings, penalties tuned by its authors for each dataset.

    What it changes in TD3+BC: a penalty for the critic, three hidden layers, layer norm in the
    critic, the smaller critic where the actor looks, larger batches on locomotion.
    """

    defaults: ClassVar[Settings] = {
        **{key: value for key, value in TD3BC.defaults.items() if key != "alpha"},
        "hidden": [256, 256, 256],
        "actor_penalty": 0.01,
        "critic_penalty": 0.01,
    }
    published: ClassVar[dict[str, Settings]] = {
        name: {"actor_penalty": actor, "critic_penalty": critic, **_RATES.get(name, {})}
        for name, (actor, critic) in _PENALTIES.items()
    }

    def build(self, dataset: TensorDictBase) -> None:
        """Make the networks and the loss."""
        settings = self.hyperparameters
        hidden, state, action = settings["hidden"], self.observation_dim, self.action_dim
        self.policy = _initialised(mlp([state, *hidden, action], tanh=True), 1e-3)
        self.actor = Network(self.policy, ["observation"], ["action"])
        self.attach(
            ReBRACLoss(
                self.actor,
                critics(
                    lambda: _initialised(mlp([state + action, *hidden, 1], layer_norm=True), 3e-3)
                ),
                actor_penalty=settings["actor_penalty"],
                critic_penalty=settings["critic_penalty"],
                bounds=(-1.0, 1.0),
                policy_noise=settings["policy_noise"],
                noise_clip=settings["noise_clip"],
            )
        )

    def columns(self, dataset: TensorDictBase) -> TensorDict:
        """Transitions with the data's next action, and whether there is one."""
        columns = super().columns(dataset)
        columns["next", "action"] = columns["action"].roll(-1, 0)
        columns["next", "acted"] = ~columns["next", "done"]
        return columns


class ReBRACLoss(TD3BCLoss):  # type: ignore[misc]
    """TorchRL's TD3+BC with ReBRAC's two penalties.

    Args:
        actor_network: as ``TD3BCLoss`` has it.
        qvalue_network: likewise.
        actor_penalty: weight of the actor's squared distance to the data's action.
        critic_penalty: weight of the next action's squared distance to the data's next action.
        **settings: of ``TD3BCLoss``.
    """

    def __init__(
        self,
        actor_network: Network,
        qvalue_network: list[Network],
        *,
        actor_penalty: float,
        critic_penalty: float,
        **settings: Any,
    ) -> None:
        super().__init__(actor_network, qvalue_network, **settings)
        self.actor_penalty, self.critic_penalty = actor_penalty, critic_penalty

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance to the data's action, less the smaller value over the mean size of values."""
        observation = tensordict["observation"]
        action = self._action(observation, self.actor_network_params)
        value = self._values(observation, action, self._cached_detach_qvalue_network_params)
        value = value.min(0).values
        distance = (action - tensordict["action"]).square().sum(-1)
        loss = self.actor_penalty * distance - value / value.detach().abs().mean()
        return loss.mean(), {}

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared errors against a target that pays for leaving the data."""
        following = tensordict["next"]
        with torch.no_grad():
            action = self._action(following["observation"], self.target_actor_network_params)
            noise = (torch.randn_like(action) * self.policy_noise).clamp(
                -self.noise_clip, self.noise_clip
            )
            action = (action + noise).clamp(self.min_action, self.max_action)
            value = self._values(
                following["observation"], action, self.target_qvalue_network_params
            )
            distance = (action - following["action"]).square().sum(-1, keepdim=True)
            penalty = self.critic_penalty * distance * following["acted"]
            tensordict = tensordict.clone(False)
            tensordict["next", "state_action_value"] = value.min(0).values.unsqueeze(-1) - penalty
            target = self.value_estimator.value_estimate(tensordict).squeeze(-1)
        current = self._values(
            tensordict["observation"], tensordict["action"], self.qvalue_network_params
        )
        return (current - target).square().mean(-1).sum(), {}

    def _action(self, observation: Tensor, parameters: TensorDictParams) -> Tensor:
        entries = TensorDict({"observation": observation}, observation.shape[:1])
        with parameters.to_module(self.actor_network, preserve_module_state=False):
            action: Tensor = self.actor_network(entries)["action"]
        return action

    def _values(self, observation: Tensor, action: Tensor, parameters: TensorDictParams) -> Tensor:
        entries = {"observation": observation, "action": action}
        size = observation.shape[0]
        batch = TensorDict(entries, [size]).expand(self.num_qvalue_nets, size)
        value: Tensor = self._vmap_qvalue_network00(batch, parameters)["state_action_value"]
        return value.squeeze(-1)


def _initialised(layers: nn.Sequential, bound: float) -> nn.Sequential:
    """Start with biases of 0.1 and a small last layer, as the publication's code does."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for layer in linear[:-1]:
        nn.init.constant_(layer.bias, 0.1)
    nn.init.uniform_(linear[-1].weight, -bound, bound)
    nn.init.uniform_(linear[-1].bias, -bound, bound)
    return layers
