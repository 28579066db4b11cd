"""Train on your own arrays: what one log of observations, actions and rewards needs to become.

    python examples/custom_dataset.py

The log here comes from a cart that is pushed to the middle of a track by controllers of different
skill. Any log will do that has one row per step, episode after episode.
"""

import argparse

import numpy as np

from mage_agent import MAGEPolicy, dataset_from_arrays


def push(position: float, speed: float, force: float) -> tuple[float, float]:
    """Position and speed of the cart, a tenth of a second later."""
    speed = 0.95 * speed + 0.1 * force
    return position + 0.1 * speed, speed


def drive(episodes: int, length: int = 50) -> dict[str, np.ndarray]:
    """Drive the cart, the better the later the episode, and log every step."""
    random = np.random.default_rng(0)
    observations, actions, rewards = [], [], []
    for skill in np.linspace(0, 1, episodes):
        position, speed = random.uniform(-1, 1), 0.0
        for _ in range(length):
            force = skill * (-3 * position - 2 * speed) + (1 - skill) * random.normal()
            force = float(np.clip(force, -1, 1))
            observations.append([position, speed])
            actions.append([force])
            position, speed = push(position, speed, force)
            rewards.append(-abs(position))
    steps = np.arange(1, episodes * length + 1)
    return {
        "observations": np.array(observations),  # (N, S)
        "actions": np.array(actions),  # (N, A)
        "rewards": np.array(rewards),  # (N,)
        # A recording that merely stops is truncated; terminated means that no reward can follow.
        "truncations": steps % length == 0,  # (N,)
        "terminations": np.zeros(len(steps), dtype=bool),  # (N,)
    }


def main() -> None:
    """Record, train, and drive the cart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1_000, help="gradient steps in all")
    args = parser.parse_args()

    dataset = dataset_from_arrays(**drive(args.episodes), action_low=-1, action_high=1)
    policy = MAGEPolicy.from_dataset(dataset, "small").learn(steps=args.steps)

    # Outside an environment, you track the return-to-go yourself.
    position, speed = 1.0, 0.0
    asked = np.array([policy.target_return], dtype=np.float32)
    for step in range(50):
        observation = {"observation": np.array([position, speed]), "return_to_go": asked}
        action, _ = policy.predict(observation, deterministic=True)
        position, speed = push(position, speed, float(action[0]))
        asked = policy.update_return_to_go(asked, np.array([-abs(position)], dtype=np.float32))
        if step % 10 == 9:
            print(f"step {step + 1}: the cart is at {position:+.2f}")


if __name__ == "__main__":
    main()
