"""Evaluate with Stable-Baselines3's own function, asking one policy for several returns.

python examples/sb3_evaluate.py                       # trains on random pendulum swings first
python examples/sb3_evaluate.py --policy pendulum.mage
"""

import argparse
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torchrl.envs import GymEnv

from mage_agent import MAGEPolicy, load_dataset


def train(episodes: int, steps: int) -> MAGEPolicy:
    """Train on random swings, watched by an ``EvalCallback``."""
    recording = GymEnv("Pendulum-v1").rollout(200 * episodes, break_when_any_done=False)
    dataset = load_dataset(recording, action_low=-2, action_high=2)
    policy = MAGEPolicy.from_dataset(dataset, "small")
    venv = policy.wrap(make_vec_env("Pendulum-v1", n_envs=4, seed=100))
    callback = EvalCallback(venv, n_eval_episodes=4, eval_freq=10)
    return policy.learn(steps=steps, callback=callback)


def main() -> None:
    """Train or load, then ask for a poor, a middling and a good return."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", type=Path, help="file to load; trained and saved if missing")
    parser.add_argument("--episodes", type=int, default=100, help="to train on")
    parser.add_argument("--steps", type=int, default=2_000, help="gradient steps in all")
    parser.add_argument("--eval-episodes", type=int, default=20)
    args = parser.parse_args()

    if args.policy is not None and args.policy.exists():
        policy = MAGEPolicy.load(args.policy)
    else:
        policy = train(args.episodes, args.steps)
        if args.policy is not None:
            policy.save(args.policy)

    low, _ = policy.model.units.return_to_go_range
    for target in np.linspace(low, policy.target_return, 3):
        # The wrapper tells the policy how much return is left; without it, the target would
        # stay the same through the episode.
        venv = policy.wrap(make_vec_env("Pendulum-v1", n_envs=4, seed=0), target_return=target)
        mean, std = evaluate_policy(policy, venv, n_eval_episodes=args.eval_episodes)
        print(f"asked for {target:.0f} (discounted): {mean:.0f} +- {std:.0f} in all")


if __name__ == "__main__":
    main()
