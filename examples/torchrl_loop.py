"""MAGE in a training loop of your own, built from TorchRL's parts.

python examples/torchrl_loop.py    # swings up a pendulum from recordings of a noisy controller
"""

import argparse

import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import GymEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from mage_agent import MAGEActor, MAGEModel, load_dataset, total_loss


def controller(observation: torch.Tensor) -> torch.Tensor:
    """Pump energy into the pendulum, then balance it; now and then, do something else."""
    cosine, sine, speed = observation.unbind(-1)
    pump = speed * (5 - 5 * cosine - speed**2 / 6)
    balance = -10 * torch.atan2(sine, cosine) - 2 * speed
    torque = torch.where(cosine > 0.9, balance, pump) + torch.randn(())
    return torque.clamp(-2, 2)[..., None]


def main() -> None:
    """Record, train stage by stage, act."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=100, help="to record, of 200 steps each")
    parser.add_argument("--steps", type=int, default=1_000, help="gradient steps per stage")
    args = parser.parse_args()
    torch.manual_seed(0)

    behaviour = TensorDictModule(controller, in_keys=["observation"], out_keys=["action"])
    steps = 200 * args.episodes
    recording = GymEnv("Pendulum-v1").rollout(steps, behaviour, break_when_any_done=False)
    dataset = load_dataset(recording, action_low=-2, action_high=2)

    model = MAGEModel.from_dataset(dataset, "small")
    for number, stage in enumerate(model.stages(dataset)):  # tokenizer, generator
        stage.begin()
        optimizer, batches = stage.make_optimizer(), stage.batches(seed=number)
        for step in range(args.steps):  # fit takes stage.steps
            losses = stage.losses(next(batches))  # stage.loss is a LossModule
            total_loss(losses).backward()
            stage.step(optimizer, step)  # learning rate, clipping, zero_grad
        stage.end()
        print({key: round(value.item(), 3) for key, value in losses.items()})

    model.eval()
    actor = MAGEActor(model)
    env = TransformedEnv(GymEnv("Pendulum-v1"), actor.make_env_transforms())
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        rollout = env.rollout(200, actor)
    before = recording["next", "reward"].sum().item() / args.episodes
    print(f"the controller earned {before:.0f}, MAGE {rollout['next', 'reward'].sum().item():.0f}")


if __name__ == "__main__":
    main()
