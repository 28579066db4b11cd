"""Recording a policy: what is saved is what happened, all or nothing."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch

from mage_agent import ReturnToGoWrapper, evaluate, load_dataset, make_environment, record

ID = "local/counter/plain-v0"


class Counter(gym.Env[Any, Any]):
    """Observes the number of its step in an array that it uses again and again."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, terminates: bool = True) -> None:
        self.terminates = terminates
        self.state = np.zeros(2, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.state[:] = seed or 0, 0
        return self.state, {}

    def step(self, action: Any) -> Any:
        self.state[1] += 1
        done = self.state[1] >= 3 + self.state[0] % 3
        reward = float(action[0])
        action *= 2  # what it was given, not a copy
        return self.state, reward, done and self.terminates, done, {}


def half(observation: Any) -> Any:
    return np.full((len(observation), 1), 0.5, dtype=np.float32)


def test_dataset_holds_what_happened() -> None:
    results = record(half, Counter, ID, episodes=5, seed=10, num_envs=2)
    assert [result.length for result in results] == [4, 5, 3, 4, 5]
    assert results == evaluate(half, Counter, episodes=5, seed=10)
    episodes = list(minari.load_dataset(ID).iterate_episodes())
    for result, episode in zip(results, episodes, strict=True):
        steps = np.arange(result.length + 1)
        np.testing.assert_array_equal(episode.observations[:, 0], result.seed)
        np.testing.assert_array_equal(episode.observations[:, 1], steps)
        np.testing.assert_array_equal(episode.actions, np.full((result.length, 1), 0.5))
        assert episode.rewards.sum() == result.episode_return
        assert episode.terminations.tolist() == [False] * (result.length - 1) + [True]
    dataset = load_dataset(ID)
    assert len(dataset) == 21
    assert int(dataset["next", "terminated"].sum()) == 5


def test_dataset_can_make_a_registered_environment_again() -> None:
    push = lambda observation: -observation[:, 2:]  # noqa: E731
    record(
        push,
        lambda: gym.make("Pendulum-v1", g=5.0, max_episode_steps=7),
        ID,
        episodes=2,
        ref_min_score=-20.0,
        ref_max_score=0.0,
    )
    env = make_environment(ID)
    assert env.unwrapped.g == 5.0
    assert env.spec is not None
    assert env.spec.max_episode_steps == 7
    assert load_dataset(ID).get_non_tensor("metadata")["ref_min_score"] == -20.0


def test_entries_of_an_observation_keep_their_names() -> None:
    def act(observation: Any) -> Any:
        return half(observation["observation"])

    box = gym.spaces.Box(-np.inf, np.inf, (1,))
    goals = gym.spaces.Dict({"kettle": box})
    space = gym.spaces.Dict({"observation": Counter.observation_space, "time": box, "goals": goals})

    def with_time() -> Any:
        def observe(state: Any) -> Any:
            return {"observation": state, "time": state[1:], "goals": {"kettle": state[:1]}}

        return gym.wrappers.TransformObservation(Counter(), observe, space)

    record(act, with_time, ID, episodes=2)
    dataset = load_dataset(ID)
    assert torch.equal(dataset["time"], dataset["observation"][:, 1:])
    assert torch.equal(dataset["goals", "kettle"], dataset["observation"][:, :1])
    episode = minari.load_dataset(ID)[0]
    np.testing.assert_allclose(episode.observations["time"][:, 0], [0, 1, 2, 3])


def test_returns_to_go_are_not_recorded() -> None:
    def wrapped() -> Any:
        return ReturnToGoWrapper(Counter(), 3.0)

    with pytest.raises(ValueError, match="record the environment without that wrapper"):
        record(lambda observation: half(observation["observation"]), wrapped, ID, episodes=1)


def test_nothing_is_run_where_a_dataset_is(tmp_path: Path) -> None:
    record(half, Counter, ID, episodes=1, root=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def never() -> gym.Env[Any, Any]:
        raise AssertionError("an environment was made")

    with pytest.raises(FileExistsError, match="choose another dataset id"):
        record(half, never, ID, episodes=1, root=tmp_path)
    with pytest.raises(ValueError, match="Malformed"):
        record(half, never, "no id", episodes=1, root=tmp_path)
    with pytest.raises(ValueError, match="must end in a version, such as 'counter-v0'"):
        record(half, never, "counter", episodes=1, root=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_nothing_is_saved_when_an_episode_fails(tmp_path: Path) -> None:
    class Failing(Counter):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, float("nan"), *rest

    with pytest.raises(ValueError, match="not finite"):
        record(half, Failing, ID, episodes=1, root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_saved_is_refused_before_anything_is_run() -> None:
    with pytest.raises(TypeError, match=r"record takes no \['max_episode_steps'\]"):
        record(half, Counter, ID, episodes=1, max_episode_steps=3)
    with pytest.raises(TypeError, match="make_env is 'Pendulum-v1'"):
        record(half, "Pendulum-v1", ID, episodes=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(0, 1, (4, 4, 3)),
        gym.spaces.Box(0, 1, ()),
        gym.spaces.Discrete(3),
        gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (2,)), "b": gym.spaces.Discrete(2)}),
        gym.spaces.Tuple([gym.spaces.Box(0, 1, (2,))]),
    ],
    ids=str,
)
def test_observations_that_could_not_be_loaded_are_refused(space: gym.Space[Any]) -> None:
    class Odd(Counter):
        observation_space = space  # type: ignore[assignment]

    with pytest.raises(TypeError, match="only a Box of one axis, or a Dict of such"):
        record(half, Odd, ID, episodes=1)


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(TypeError, match="only continuous actions"):
        record(half, lambda: gym.make("CartPole-v1"), ID, episodes=1)


def test_actions_in_whole_numbers_are_refused() -> None:
    class Whole(Counter):
        action_space = gym.spaces.Box(-3, 3, (1,), dtype=np.int64)

    with pytest.raises(TypeError, match="of floating-point numbers\\) can be learned from"):
        record(half, Whole, ID, episodes=1)


def test_code_of_a_registered_environment_is_not_written_down() -> None:
    gym.register("Counting-v0", entry_point=lambda: Counter())  # no name that could be imported
    try:
        record(half, lambda: gym.make("Counting-v0", disable_env_checker=True), ID, episodes=1)
    finally:
        del gym.registry["Counting-v0"]
    assert len(load_dataset(ID)) == 3
    with pytest.raises(ValueError, match="does not say which environment"):
        make_environment(ID)


def test_one_environment_for_all_is_refused() -> None:
    env = Counter()
    with pytest.raises(ValueError, match="returned the same environment"):
        record(half, lambda: env, ID, episodes=4)
    assert ID not in minari.list_local_datasets()


def test_rewards_in_arrays_are_recorded_as_numbers() -> None:
    class Arrays(Counter):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, np.array([reward]), np.array([terminated]), truncated, info

    results = record(half, Arrays, ID, episodes=2)
    episodes = list(minari.load_dataset(ID).iterate_episodes())
    assert [len(episode) for episode in episodes] == [result.length for result in results]
    assert all(episode.rewards.shape == (len(episode),) for episode in episodes)


def test_names_that_a_file_takes_for_folders_are_refused_before_the_work() -> None:
    class Robot(gym.ObservationWrapper[Any, Any, Any]):
        def __init__(self) -> None:
            super().__init__(gym.make("Pendulum-v1"))
            self.observation_space = gym.spaces.Dict({"/odom": self.env.observation_space})

        def observation(self, observation: Any) -> Any:
            return {"/odom": observation}

    with pytest.raises(ValueError, match=r"\['/odom'\] have a '/' in their names"):
        record(lambda seen: np.zeros((len(seen), 1)), Robot, "local/robot/a-v0", episodes=1)
