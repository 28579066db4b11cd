"""Minari datasets, own arrays and TensorDicts all end up as the same checked TED TensorDict."""

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from conftest import LENGTHS, TERMINATED, Arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.collectors.utils import split_trajectories
from torchrl.envs import GymEnv, RewardSum, TransformedEnv, set_gym_backend

from mage_agent.data import (
    as_dataset,
    check_dataset,
    dataset_from_arrays,
    load_dataset,
    metadata,
    observation_keys,
    returns_to_go,
)

REAL = {  # id -> steps, episodes
    "local/pen/expert-v0": (100_000, 1000),
    "local/door/human-v0": (6_729, 25),
    "local/door/cloned-v0": (100_001, 435),
    "local/halfcheetah/medium-expert-v0": (100_000, 100),
    "local/antmaze/umaze-v0": (94_871, 200),
    "local/antmaze/medium-diverse-v0": (134_165, 300),
}


def assert_same(first: TensorDict, second: TensorDict) -> None:
    keys = set(first.exclude("metadata").keys(True, True))
    assert keys == set(second.exclude("metadata").keys(True, True))
    for key in keys:
        torch.testing.assert_close(first[key], second[key], msg=lambda m, k=key: f"{k}: {m}")


def loop_returns(rewards: list[float], last: list[bool], discount: float) -> list[float]:
    """The definition of return-to-go, one step at a time."""
    total, result = 0.0, []
    for reward, end in zip(reversed(rewards), reversed(last), strict=True):
        total = reward + (0.0 if end else discount * total)
        result.append(total)
    return result[::-1]


class TestReturnsToGo:
    @given(
        lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
        discount=st.sampled_from([0.0, 0.5, 0.99, 0.998, 1.0]),
        seed=st.integers(0, 100),
    )
    @settings(deadline=None, max_examples=50)
    def test_equals_the_loop(self, lengths: list[int], discount: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        reward = torch.randn(sum(lengths), generator=generator, dtype=torch.float64)
        episode = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        last = torch.cat([episode[1:] != episode[:-1], torch.tensor([True])])
        expected = torch.tensor(loop_returns(reward.tolist(), last.tolist(), discount))
        torch.testing.assert_close(returns_to_go(reward, episode, discount).float(), expected)

    def test_keeps_shape_and_type(self) -> None:
        reward = torch.ones(4, 1)
        result = returns_to_go(reward, torch.tensor([0, 0, 1, 1]), 0.5)
        assert result.dtype == torch.float32
        assert result.flatten().tolist() == [1.5, 1.0, 1.5, 1.0]

    def test_one_very_long_episode(self) -> None:
        reward = torch.ones(100_000)
        result = returns_to_go(reward, torch.zeros(100_000, dtype=torch.int64), 0.999)
        assert result[0].item() == pytest.approx(1000.0, rel=1e-6)
        assert result[-1].item() == 1.0

    @pytest.mark.parametrize("discount", [-0.1, 1.01, 2.0, float("nan")])
    def test_a_discount_is_no_less_than_0_and_no_more_than_1(self, discount: float) -> None:
        with pytest.raises(ValueError, match=rf"discount is {discount}; it must lie in \[0, 1\]"):
            returns_to_go(torch.ones(4), torch.zeros(4, dtype=torch.int64), discount)


class TestMinari:
    def test_layout(self, minari_dataset: minari.MinariDataset) -> None:
        dataset = load_dataset(minari_dataset)
        steps = sum(LENGTHS)
        assert dataset.shape == (steps,)
        shapes = {
            key: tuple(dataset[key].shape) for key in dataset.exclude("metadata").keys(True, True)
        }
        assert shapes == {
            "observation": (steps, 3),
            "action": (steps, 2),
            "episode": (steps,),
            "step_count": (steps, 1),
            ("next", "observation"): (steps, 3),
            ("next", "reward"): (steps, 1),
            ("next", "terminated"): (steps, 1),
            ("next", "truncated"): (steps, 1),
            ("next", "done"): (steps, 1),
        }
        assert {dataset[key].dtype for key in shapes} == {torch.float32, torch.int64, torch.bool}
        assert dataset["episode"].unique_consecutive(return_counts=True)[1].tolist() == [*LENGTHS]

    def test_contents(
        self, minari_dataset: minari.MinariDataset, toy_episodes: list[Arrays]
    ) -> None:
        dataset = load_dataset(minari_dataset)
        returns = returns_to_go(dataset["next", "reward"], dataset["episode"], 0.9)
        for number, episode in enumerate(toy_episodes):
            mine = dataset[dataset["episode"] == number]
            length = LENGTHS[number]
            assert np.array_equal(mine["observation"], episode["observations"][:-1])
            assert np.array_equal(mine["next", "observation"], episode["observations"][1:])
            assert np.array_equal(mine["action"], episode["actions"])
            assert mine["step_count"].flatten().tolist() == list(range(length))
            assert mine["next", "done"].flatten().tolist() == [False] * (length - 1) + [True]
            assert mine["next", "terminated"][-1].item() is TERMINATED[number]
            assert mine["next", "truncated"][-1].item() is not TERMINATED[number]
            assert not mine["next", "truncated"][:-1].any()
            last = [False] * (length - 1) + [True]
            expected = loop_returns(episode["rewards"].tolist(), last, 0.9)
            found = returns[dataset["episode"] == number].flatten()
            torch.testing.assert_close(found, torch.tensor(expected))

    def test_all_sources_agree(
        self, minari_dataset: minari.MinariDataset, toy_dataset: TensorDict
    ) -> None:
        from_minari = load_dataset(minari_dataset)
        assert_same(from_minari, toy_dataset)
        assert_same(load_dataset("toy/point-v0"), toy_dataset)
        assert_same(load_dataset(toy_dataset), toy_dataset)

    def test_metadata(self, minari_dataset: minari.MinariDataset) -> None:
        facts = metadata(load_dataset(minari_dataset))
        assert facts["dataset_id"] == "toy/point-v0"
        assert "discount" not in facts  # it is the agent's
        assert (facts["ref_min_score"], facts["ref_max_score"]) == (-10.0, 5.0)
        assert (facts["action_low"], facts["action_high"]) == ([-1.0, -1.0], [1.0, 1.0])
        assert '"max_episode_steps": 200' in facts["env_spec"]
        assert '"max_episode_steps": 33' in facts["eval_env_spec"]

    def test_metadata_survives_slicing_and_saving(
        self, minari_dataset: minari.MinariDataset, tmp_path: Any
    ) -> None:
        dataset = load_dataset(minari_dataset)
        facts = metadata(dataset)
        dataset.memmap(tmp_path / "saved")
        assert metadata(dataset[3:20]) == facts
        assert metadata(TensorDict.load_memmap(tmp_path / "saved")) == facts

    def test_filtered_dataset(self, minari_dataset: minari.MinariDataset) -> None:
        long = minari_dataset.filter_episodes(lambda episode: len(episode) > 20)
        dataset = load_dataset(long)
        counts = dataset["episode"].unique(return_counts=True)
        assert counts[0].tolist() == [0, 1, 2, 3]
        assert counts[1].tolist() == [length for length in LENGTHS if length > 20]

    def test_goals_are_flat_keys(self, goal_minari_dataset: minari.MinariDataset) -> None:
        dataset = load_dataset(goal_minari_dataset)
        assert observation_keys(dataset) == ("achieved_goal", "desired_goal", "observation")
        assert torch.equal(dataset["desired_goal"][:, 0], dataset["episode"] + 1.0)
        assert torch.equal(dataset["next", "achieved_goal"], dataset["next", "observation"][:, :2])

    def test_nested_observations_keep_their_nesting(
        self, toy_episodes: list[Arrays], make_minari: Callable[..., minari.MinariDataset]
    ) -> None:
        nested = [
            {
                **e,
                "observations": {
                    "observation": e["observations"],
                    "goal": {"a": e["observations"]},
                },
            }
            for e in toy_episodes
        ]
        box = gym.spaces.Box(-np.inf, np.inf, (3,))
        space = gym.spaces.Dict({"observation": box, "goal": gym.spaces.Dict({"a": box})})
        dataset = load_dataset(make_minari(nested, space))
        assert torch.equal(dataset["goal", "a"], dataset["observation"])
        assert_same(load_dataset(dataset), dataset)

    def test_a_recording_that_just_stops_is_truncated(
        self, toy_episodes: list[Arrays], make_minari: Callable[..., minari.MinariDataset]
    ) -> None:
        for episode in toy_episodes:
            episode["terminations"][:] = episode["truncations"][:] = False
        dataset = load_dataset(make_minari(toy_episodes, gym.spaces.Box(-9, 9, (3,))))
        assert int(dataset["next", "truncated"].sum()) == len(LENGTHS)
        assert not dataset["next", "terminated"].any()

    def test_rewards_of_shape_t_1(
        self,
        toy_episodes: list[Arrays],
        make_minari: Callable[..., minari.MinariDataset],
        toy_dataset: TensorDict,
    ) -> None:
        for episode in toy_episodes:
            episode["rewards"] = episode["rewards"][:, None]
        dataset = load_dataset(make_minari(toy_episodes, gym.spaces.Box(-9, 9, (3,))))
        assert torch.equal(dataset["next", "reward"], toy_dataset["next", "reward"])

    def test_several_rewards_per_step(
        self, toy_episodes: list[Arrays], make_minari: Callable[..., minari.MinariDataset]
    ) -> None:
        for episode in toy_episodes:
            episode["rewards"] = np.ones((len(episode["rewards"]), 2))
        several = make_minari(toy_episodes, gym.spaces.Box(-9, 9, (3,)))
        with pytest.raises(ValueError, match=r"rewards has the shape \(149, 2\), needed is one"):
            load_dataset(several)

    @pytest.mark.parametrize("inside", [False, True])
    def test_observations_that_are_no_arrays(
        self,
        toy_episodes: list[Arrays],
        make_minari: Callable[..., minari.MinariDataset],
        inside: bool,
    ) -> None:
        box = gym.spaces.Box(-9, 9, (3,))
        space: gym.Space[Any] = gym.spaces.Tuple([box, box])
        episodes: list[dict[str, Any]] = []
        for episode in toy_episodes:
            parts: Any = (episode["observations"],) * 2
            episodes.append({**episode, "observations": {"eyes": parts} if inside else parts})
        if inside:
            space = gym.spaces.Dict({"eyes": space})
        words = "of 'toy/point-v0', entry 'eyes', is a Tuple" if inside else "-v0' is a Tuple"
        with pytest.raises(TypeError, match=words):
            load_dataset(make_minari(episodes, space))

    def test_an_end_inside_an_episode_ends_it(
        self, toy_episodes: list[Arrays], make_minari: Callable[..., minari.MinariDataset]
    ) -> None:
        toy_episodes[2]["terminations"][9] = True
        toy_episodes[4]["truncations"][3] = True
        dataset = load_dataset(make_minari(toy_episodes, gym.spaces.Box(-9, 9, (3,))))
        lengths = dataset["episode"].unique_consecutive(return_counts=True)[1].tolist()
        assert lengths == [1, 7, 10, 20, 2, 4, 20, 25, 60]
        following = toy_episodes[2]["observations"][10]
        assert np.array_equal(dataset["next", "observation"][17], following)

    def test_missing(self, minari_dataset: minari.MinariDataset) -> None:
        with pytest.raises(FileNotFoundError, match="minari download toy/other-v0") as caught:
            load_dataset("toy/other-v0", download=False)
        assert "toy/point-v0" in str(caught.value)

    def test_failed_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(*_: Any) -> None:
            raise ConnectionError("no network")

        monkeypatch.setattr("minari.storage.hosting.download_dataset", offline)
        with pytest.raises(FileNotFoundError, match="no network"):
            load_dataset("toy/other-v0")

    def test_discrete_actions_are_refused(
        self, toy_episodes: list[Arrays], make_minari: Callable[..., minari.MinariDataset]
    ) -> None:
        for episode in toy_episodes:
            episode["actions"] = np.zeros(len(episode["rewards"]), dtype=np.int64)
        discrete = make_minari(toy_episodes, gym.spaces.Box(-9, 9, (3,)), gym.spaces.Discrete(3))
        with pytest.raises(TypeError, match="only continuous actions"):
            load_dataset(discrete)

    def test_lengths_that_do_not_fit(
        self, toy_episodes: list[Arrays], make_minari: Callable[..., minari.MinariDataset]
    ) -> None:
        toy_episodes[2]["observations"] = toy_episodes[2]["observations"][:-1]
        damaged = make_minari(toy_episodes, gym.spaces.Box(-9, 9, (3,)))
        with pytest.raises(ValueError, match=r"episode 2 .* has 30 steps but 30 rows"):
            load_dataset(damaged)

    def test_no_episodes(self, minari_dataset: minari.MinariDataset) -> None:
        with pytest.raises(ValueError, match="holds no steps"):
            load_dataset(minari_dataset.filter_episodes(lambda _: False))


class TestTensorDict:
    def test_rollout_of_an_environment(self) -> None:
        with set_gym_backend("gymnasium"):
            env = GymEnv("Pendulum-v1")
            env.set_seed(0)
            rollout = env.rollout(250, break_when_any_done=False)
        dataset = load_dataset(rollout, action_low=-2.0, action_high=2.0)
        assert dataset["episode"].unique_consecutive(return_counts=True)[1].tolist() == [200, 50]
        assert dataset["next", "truncated"].flatten().nonzero().flatten().tolist() == [199, 249]
        assert torch.equal(dataset["observation"], rollout["observation"])
        assert metadata(dataset)["action_high"] == [2.0]

    def test_rows_of_a_batch_are_separate_episodes(self, toy_dataset: TensorDict) -> None:
        batch = toy_dataset[-60:].exclude("episode", "metadata").reshape(3, 20)
        dataset = load_dataset(batch)
        assert dataset["episode"].tolist() == [0] * 20 + [1] * 20 + [2] * 20
        assert dataset["next", "truncated"].flatten().nonzero().flatten().tolist() == [19, 39]

    def test_trajectory_ids_of_a_collector(self, toy_dataset: TensorDict) -> None:
        source = toy_dataset.exclude("episode", "step_count", ("next", "done"))
        source["next", "truncated"] = torch.zeros_like(source["next", "truncated"])
        source["collector", "traj_ids"] = toy_dataset["episode"] + 7
        assert_same(load_dataset(source), toy_dataset)

    def test_batches_of_a_collector_are_joined_along_time(self, toy_dataset: TensorDict) -> None:
        source = toy_dataset[-60:].exclude("episode", "step_count", "metadata").reshape(3, 20)
        for flag in ("terminated", "truncated", "done"):
            source["next", flag] = torch.zeros_like(source["next", flag])
        source["observation"] = torch.randn(3, 20, 3)
        source["next", "observation"][:, :-1] = source["observation"][:, 1:]
        source["collector", "traj_ids"] = torch.arange(3)[:, None].expand(3, 20)
        batches = [source[:, :12], source[:, 12:]]
        assert load_dataset(torch.cat(batches, -1))["episode"].bincount().tolist() == [20, 20, 20]
        even = [source[:, :10], source[:, 10:]]
        with pytest.raises(ValueError, match=r"3 trajectories go on in another row .*cat\(batches"):
            load_dataset(torch.cat(even))
        for name in ("goal", ("next", "goal")):  # that it is the same everywhere tells nothing
            source[name] = torch.ones(3, 20, 1)
        whole = source[:, :10].exclude("observation", ("next", "observation"))
        load_dataset(source[:, :10])
        assert len(load_dataset(whole)) == 30
        even[1]["next", "observation"] += 1
        even[1]["observation"] += 1  # another collection, whose numbers begin anew
        assert load_dataset(torch.cat(even))["episode"].bincount().tolist() == [10] * 6

    def test_padding_is_left_out(self, toy_dataset: TensorDict) -> None:
        source = toy_dataset.exclude("episode", "step_count", "metadata")
        source["collector", "traj_ids"] = toy_dataset["episode"]
        padded = split_trajectories(source)
        assert padded.numel() > len(source)
        assert_same(load_dataset(padded), load_dataset(toy_dataset.exclude("metadata")))
        padded["collector", "mask"].zero_()
        with pytest.raises(ValueError, match="holds no steps"):
            load_dataset(padded)

    def test_datasets_behind_one_another(self, toy_dataset: TensorDict) -> None:
        both = load_dataset(torch.cat([toy_dataset, toy_dataset]))
        assert int(both["episode"].max()) == 2 * int(toy_dataset["episode"].max()) + 1
        returns, once = (
            returns_to_go(data["next", "reward"], data["episode"], 0.99)
            for data in (both, toy_dataset)
        )
        assert torch.equal(returns, torch.cat([once, once]))

    def test_the_return_of_a_recording_is_no_observation(self) -> None:
        with set_gym_backend("gymnasium"):
            env = TransformedEnv(GymEnv("Pendulum-v1"), RewardSum())
        rollout = env.rollout(5)
        rollout["cell"] = torch.arange(5).unsqueeze(-1)
        rollout["next", "cell"] = rollout["cell"] + 1
        dataset = load_dataset(rollout, action_low=-2.0, action_high=2.0)
        assert observation_keys(dataset) == ("cell", "observation")
        assert dataset["cell"].dtype == torch.float32

    def test_returns_of_the_source_are_neither_kept_nor_an_observation(
        self, toy_dataset: TensorDict
    ) -> None:
        source = toy_dataset.copy()
        for where in (source, source["next"]):
            where["return_to_go"] = torch.ones(len(source), 1)
        dataset = load_dataset(source)
        assert observation_keys(dataset) == ("observation",)
        assert_same(dataset, toy_dataset)
        assert "return_to_go" in source  # the source is untouched

    def test_without_next_observations(self, toy_dataset: TensorDict) -> None:
        dataset = load_dataset(toy_dataset.exclude(("next", "observation")))
        last = dataset["next", "done"].flatten()
        assert torch.equal(
            dataset["next", "observation"][~last], toy_dataset["next", "observation"][~last]
        )
        assert torch.equal(dataset["next", "observation"][last], dataset["observation"][last])

    def test_interleaved_episodes(self, toy_dataset: TensorDict) -> None:
        with pytest.raises(ValueError, match=r"lies in \d+ pieces; sort the steps"):
            load_dataset(toy_dataset[torch.arange(sum(LENGTHS)) % 50])

    @pytest.mark.parametrize("key", ["action", "observation", ("next", "reward")])
    def test_missing_key(self, toy_dataset: TensorDict, key: str | tuple[str, ...]) -> None:
        source = toy_dataset.exclude(key)
        if key == "observation":
            source = source.exclude(("next", "observation"))
        with pytest.raises(KeyError, match="a TED TensorDict has observations"):
            load_dataset(source)

    def test_empty(self, toy_dataset: TensorDict) -> None:
        with pytest.raises(ValueError, match="holds no steps"):
            load_dataset(toy_dataset[:0])

    def test_single_step(self, toy_dataset: TensorDict) -> None:
        dataset = load_dataset(toy_dataset[:1])
        returns = returns_to_go(dataset["next", "reward"], dataset["episode"], 0.5)
        assert torch.equal(returns, dataset["next", "reward"])
        assert dataset["next", "done"].all()

    def test_discrete_actions(self, toy_dataset: TensorDict) -> None:
        toy_dataset["action"] = torch.zeros(len(toy_dataset), 4, dtype=torch.int64)  # one-hot
        with pytest.raises(TypeError, match="only continuous actions"):
            load_dataset(toy_dataset)


class TestArrays:
    def test_rows_must_match(self, rng: np.random.Generator) -> None:
        with pytest.raises(ValueError, match="'actions': 9"):
            dataset_from_arrays(
                rng.normal(size=(10, 3)),
                rng.normal(size=(9, 2)),
                np.ones(10),
                np.ones(10),
                np.ones(10),
            )

    @pytest.mark.parametrize("name", ["action", "return_to_go", "reward", "index", "plan"])
    def test_names_of_the_layout_are_taken(self, name: str) -> None:
        columns = {"observation": np.ones((4, 2)), name: np.ones((4, 2))}
        flags = np.zeros(4, dtype=bool)
        with pytest.raises(ValueError, match=rf"observation entries \['{name}'\]"):
            dataset_from_arrays(columns, np.ones((4, 1)), np.ones(4), flags, flags)

    def test_last_next_observation_stays_in_the_episode(self) -> None:
        observation = np.arange(6.0).reshape(6, 1)
        ends = np.array([0, 0, 1, 0, 0, 1], dtype=bool)
        dataset = dataset_from_arrays(
            {"observation": observation}, 0.1 * np.ones((6, 1)), np.ones(6), ends & False, ends
        )
        assert dataset["next", "observation"].flatten().tolist() == [1, 2, 2, 4, 5, 5]


class TestChecks:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("key", ["observation", "action", ("next", "reward")])
    def test_not_finite(self, toy_dataset: TensorDict, key: Any, value: float) -> None:
        toy_dataset[key][12, 0] = value  # episodes of 1 and 7 steps come first
        name = "/".join(key) if isinstance(key, tuple) else key
        with pytest.raises(ValueError, match=rf"{name} holds .* not finite.* episode 2, step 4"):
            check_dataset(toy_dataset)
        with pytest.raises(ValueError, match=f"{name} holds"):
            load_dataset(toy_dataset)

    @pytest.mark.parametrize("key", ["observation", "action"])
    def test_all_zero(self, toy_dataset: TensorDict, key: str) -> None:
        toy_dataset[key].zero_()
        with pytest.raises(ValueError, match=f"'{key}' is zero in all 149 steps"):
            check_dataset(toy_dataset)

    def test_a_goal_at_the_origin_is_fine(self, toy_dataset: TensorDict) -> None:
        for where in (toy_dataset, toy_dataset["next"]):
            where["desired_goal"] = torch.zeros(len(toy_dataset), 2)
        check_dataset(toy_dataset)
        assert observation_keys(load_dataset(toy_dataset)) == ("desired_goal", "observation")

    def test_zero_rewards_are_fine(self, toy_dataset: TensorDict) -> None:
        toy_dataset["next", "reward"].zero_()
        check_dataset(toy_dataset)
        assert not load_dataset(toy_dataset)["next", "reward"].any()

    def test_action_outside_the_bounds(self, toy_dataset: TensorDict) -> None:
        toy_dataset["action"][8, 1] = -1.5
        toy_dataset["action"][9, 1] = 3.0
        with pytest.raises(
            ValueError, match=r"action 3 in episode 2, step 1, dimension 1 .* \[-1, 1\]"
        ):
            check_dataset(toy_dataset)
        assert len(load_dataset(toy_dataset, action_high=[1.0, 3.0], action_low=-1.5)) == 149

    def test_bounds_of_other_actions(self, toy_dataset: TensorDict) -> None:
        toy_dataset["action"] = toy_dataset["action"][:, :1]
        with pytest.raises(ValueError, match="have 1 columns, the bounds in the metadata 2 and 2"):
            check_dataset(toy_dataset)

    @pytest.mark.parametrize("flag", ["terminated", "truncated", "done"])
    def test_flags_that_were_edited_apart(self, toy_dataset: TensorDict, flag: str) -> None:
        flags = toy_dataset["next", flag]
        flags[10] = ~flags[10]
        with pytest.raises(ValueError, match=r"in 1 steps, next/done is not what .* episode 2, st"):
            check_dataset(toy_dataset)
        with pytest.raises(ValueError, match="next/done is not what"):
            as_dataset(toy_dataset)

    def test_steps_that_were_counted_otherwise(self, toy_dataset: TensorDict) -> None:
        toy_dataset["step_count"][12:] += 1
        with pytest.raises(ValueError, match=r"up by 1 .* at 1 steps, .* after episode 2, step 3"):
            check_dataset(toy_dataset)

    @pytest.mark.parametrize("key", ["step_count", ("next", "done"), ("next", "reward")])
    def test_columns_of_one_axis(self, toy_dataset: TensorDict, key: Any) -> None:
        toy_dataset[key] = toy_dataset[key].squeeze(-1)
        with pytest.raises(ValueError, match=r"has the shape \(149,\), needed is .* \(149, 1\)"):
            check_dataset(toy_dataset)

    def test_what_others_have_completed_is_read_anew(self, toy_dataset: TensorDict) -> None:
        """TorchRL's transforms write the keys of our layout, and more."""
        theirs = toy_dataset.exclude("metadata").clone()
        theirs["next", "episode_reward"] = theirs["episode_reward"] = torch.rand(149, 1)
        theirs["is_init"] = theirs["step_count"] == 0
        theirs["next", "is_init"] = theirs["next", "done"].clone()
        found = as_dataset(theirs)
        assert observation_keys(found) == ("observation",)
        assert (found == toy_dataset).all()
        assert metadata(found) == metadata(toy_dataset)
        assert as_dataset(found) is found
        theirs["action"][8, 1] = -1.5
        with pytest.raises(ValueError, match=r"lies outside the bounds \[-1, 1\]"):
            as_dataset(theirs)

    def test_rounding_is_not_outside(self, toy_dataset: TensorDict) -> None:
        toy_dataset["action"][8, 1] = 1.0 + 1e-6
        check_dataset(toy_dataset)
        assert torch.equal(load_dataset(toy_dataset)["action"], toy_dataset["action"])

    @pytest.mark.parametrize(
        ("low", "high", "message"),
        [(1.0, -1.0, "is not below"), ([-1.0] * 3, 1.0, "action_low has 3 values; 1 or 2")],
    )
    def test_unfit_bounds(self, toy_dataset: TensorDict, low: Any, high: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_dataset(toy_dataset, action_low=low, action_high=high)

    def test_infinite_bounds_become_those_of_the_data(self, toy_dataset: TensorDict) -> None:
        dataset = load_dataset(toy_dataset, action_low=-np.inf, action_high=np.inf)
        high = metadata(dataset)["action_high"]
        torch.testing.assert_close(torch.tensor(high), dataset["action"].amax(0))

    def test_missing_observation(self, toy_dataset: TensorDict) -> None:
        with pytest.raises(KeyError, match="lacks observation"):
            check_dataset(toy_dataset.exclude("observation"))

    def test_not_a_tensordict(self) -> None:
        with pytest.raises(TypeError, match="is a str, needed is the TensorDict that load_dataset"):
            check_dataset("D4RL/pen/human-v2")  # type: ignore[arg-type]

    @pytest.mark.parametrize("key", ["episode", "step_count", ("next", "done"), "next"])
    def test_incomplete(self, toy_dataset: TensorDict, key: Any) -> None:
        with pytest.raises(KeyError, match="the dataset lacks"):
            check_dataset(toy_dataset.exclude(key))

    def test_observations_that_are_not_flat(self, toy_dataset: TensorDict) -> None:
        source = toy_dataset.exclude("metadata")
        for where in (source, source["next"]):
            where["observation"] = where["observation"].reshape(-1, 3, 1)
        with pytest.raises(ValueError, match=r"observation has the shape \(149, 3, 1\)"):
            load_dataset(source)

    def test_unknown_source(self) -> None:
        with pytest.raises(TypeError, match="cannot load a dataset from list"):
            load_dataset([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("dataset_id", REAL)
def test_real_dataset(dataset_id: str, real_dataset: Callable[[str], minari.MinariDataset]) -> None:
    source = real_dataset(dataset_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_dataset(dataset_id)
    assert (len(dataset), source.total_episodes) == REAL[dataset_id]
    assert int(dataset["next", "done"].sum()) == source.total_episodes
    returns = np.array([episode.rewards.sum() for episode in source.iterate_episodes()])
    sums = torch.zeros(len(returns)).index_add(
        0, dataset["episode"], dataset["next", "reward"].flatten()
    )
    np.testing.assert_allclose(sums, returns, rtol=1e-3, atol=1e-3)
    inside = ~dataset["next", "done"][:-1].flatten()
    assert torch.equal(
        dataset["next", "observation"][:-1][inside], dataset["observation"][1:][inside]
    )


def test_dataset_moved_away(minari_dataset: minari.MinariDataset, tmp_path: Any) -> None:
    shutil.rmtree(tmp_path / "minari" / "toy" / "point-v0")
    with pytest.raises(FileNotFoundError, match="Datasets on this machine: none"):
        load_dataset("toy/point-v0", download=False)
