"""TorchRL's losses, changed to what ReBRAC and CQL were published with."""

import math
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor
from torchrl.objectives import CQLLoss, TD3BCLoss

from benchmarks.baselines.networks import Network

__all__ = ["ConservativeLoss", "ReBRACLoss"]


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


class ConservativeLoss(CQLLoss):  # type: ignore[misc]
    """TorchRL's CQL with the publication's conservative term.

    TorchRL 0.14 takes the soft maximum over three actions at a time, not over all thirty, judges
    the actions for the next state there and not in this state, and leaves the multiplier out.
    """

    def gaps(self, tensordict: TensorDictBase) -> Tensor:
        """Soft maximum of either critic over actions, less its value of the data's, (2, B).

        Args:
            tensordict: batch that ``q_loss`` was given, which left the data's values in it.
        """
        observation = tensordict["observation"]
        with torch.no_grad():
            current, current_log_prob = self.sample(observation)
            following, following_log_prob = self.sample(tensordict["next", "observation"])
            uniform = torch.empty_like(current).uniform_(-1, 1)
            density = torch.full_like(current_log_prob, -math.log(2) * current.shape[-1])
        actions = torch.cat([uniform, following, current])  # (N, B, A)
        log_prob = torch.cat([density, following_log_prob, current_log_prob])
        entries = {"observation": observation.expand(len(actions), -1, -1), "action": actions}
        batch = TensorDict(entries, actions.shape[:2])
        value = self._vmap_qvalue_networkN0(batch, self.qvalue_network_params)
        highest = torch.logsumexp(value["state_action_value"].squeeze(-1) - log_prob, dim=1)
        data = torch.stack([tensordict["pred_q1"], tensordict["pred_q2"]]).squeeze(-1)
        return highest - data

    def sample(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (n, B, A) of the policy and their log-densities (n, B)."""
        entries = TensorDict({"observation": observation}, observation.shape[:1])
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            policy = self.actor_network.get_dist(entries)
        sampled: tuple[Tensor, Tensor] = policy.rsample_and_log_prob((self.num_random,))
        return sampled
