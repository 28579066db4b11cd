"""Steps that do not follow on are no episode: cut where that is certain, else refused."""

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, pad_sequence
from torchrl.envs import GymEnv, SerialEnv, TargetReturn, TransformedEnv, set_gym_backend

from mage_agent.data import check_dataset, dataset_from_arrays, load_dataset

BOUNDS: dict[str, Any] = {"action_low": -2, "action_high": 2}


@pytest.fixture
def env() -> GymEnv:
    with set_gym_backend("gymnasium"):
        env = GymEnv("Pendulum-v1")
    env.set_seed(0)
    return env


def lengths(dataset: TensorDict) -> list[int]:
    return dataset["episode"].unique_consecutive(return_counts=True)[1].tolist()


class TestTensorDict:
    def test_joined_rollouts(self, env: GymEnv) -> None:
        joined = torch.cat([env.rollout(9), env.rollout(7), env.rollout(5)])
        words = r"2 of 20 steps jump: .* in observation, the first one in episode 0, step 8\."
        with pytest.raises(ValueError, match=words):
            load_dataset(joined, **BOUNDS)

    def test_joined_rollouts_with_marked_ends(self, env: GymEnv) -> None:
        joined = torch.cat([env.rollout(n, set_truncated=True) for n in (9, 7)])
        assert lengths(load_dataset(joined, **BOUNDS)) == [9, 7]

    def test_time_first(self) -> None:
        with set_gym_backend("gymnasium"):
            several = SerialEnv(3, lambda: GymEnv("Pendulum-v1")).rollout(8)
        assert lengths(load_dataset(several, **BOUNDS)) == [8, 8, 8]
        with pytest.raises(ValueError, match=r"16 of 16 steps jump.* time is the last dimension"):
            load_dataset(several.transpose(0, 1).contiguous(), **BOUNDS)

    @pytest.mark.parametrize("ends_marked", [False, True])
    def test_padding(self, env: GymEnv, ends_marked: bool) -> None:
        uneven = [env.rollout(n, set_truncated=ends_marked) for n in (9, 4)]
        for source in (
            pad_sequence(uneven, return_mask=True),
            pad_sequence(uneven, return_mask=("collector", "mask")),
            TensorDict.lazy_stack(uneven),
        ):
            dataset = load_dataset(source, **BOUNDS)
            assert lengths(dataset) == [9, 4]
            assert torch.equal(dataset["observation"], torch.cat(uneven)["observation"])
        words = "episode 2 of 5 steps is zero throughout" if ends_marked else "1 of .* steps jump"
        with pytest.raises(ValueError, match=words):
            load_dataset(pad_sequence(uneven), **BOUNDS)

    def test_steps_left_out(self, toy_dataset: TensorDict) -> None:
        with pytest.raises(ValueError, match=r"steps jump.*keep whole episodes"):
            check_dataset(toy_dataset[::2])

    def test_done_inside_an_episode(self, toy_dataset: TensorDict) -> None:
        for key in ("terminated", "done"):
            toy_dataset["next", key][12] = True
        with pytest.raises(ValueError, match=r"1 steps are done and yet .* episode 2, step 4"):
            check_dataset(toy_dataset)
        assert lengths(load_dataset(toy_dataset))[:4] == [1, 7, 5, 25]

    def test_nested_entries(self, toy_dataset: TensorDict) -> None:
        for where in (toy_dataset, toy_dataset["next"]):
            where["goal"] = {"b": torch.zeros(149, 1), "a": where["observation"].clone()}
        check_dataset(toy_dataset)
        toy_dataset["next", "goal", "a"][12] += 1
        with pytest.raises(ValueError, match=r"1 of 142 steps jump: .* in goal/a, the first"):
            check_dataset(toy_dataset)

    def test_other_columns_afterwards(self, toy_dataset: TensorDict) -> None:
        toy_dataset["next", "observation"] = torch.ones(149, 4)
        with pytest.raises(
            ValueError, match=r"'observation' has the shape \(149, 3\), under 'next' "
        ):
            load_dataset(toy_dataset)

    def test_rounding_is_no_jump(self, toy_dataset: TensorDict) -> None:
        following = toy_dataset["next", "observation"]
        toy_dataset["next", "observation"] = following.half().float()
        check_dataset(toy_dataset)

    def test_the_copy_is_one(self, toy_dataset: TensorDict) -> None:
        dataset = load_dataset(toy_dataset)
        before = dataset["observation"].clone()
        toy_dataset["observation"].zero_()
        assert torch.equal(dataset["observation"], before)
        terminated = dataset["next", "terminated"].clone()
        toy_dataset["next", "terminated"].fill_(True)
        assert torch.equal(dataset["next", "terminated"], terminated)

    def test_done_less_truncated_is_terminated(self, toy_dataset: TensorDict) -> None:
        source = toy_dataset.exclude(("next", "terminated"))
        dataset = load_dataset(source)
        for key in ("terminated", "truncated", "done"):
            assert torch.equal(dataset["next", key], toy_dataset["next", key])
        dataset = load_dataset(source.exclude(("next", "truncated")))
        assert torch.equal(dataset["next", "terminated"], toy_dataset["next", "done"])

    def test_a_column_of_masks_is_no_padding(self, toy_dataset: TensorDict) -> None:
        toy_dataset["masks"] = 1.0 - toy_dataset["next", "terminated"].float()
        words = r"'masks' is a torch.float32 column, .* padding or .*\('next', 'terminated'\)"
        parts = [toy_dataset[8:38], toy_dataset[1:8]]  # of different lengths
        for source in (toy_dataset, TensorDict.lazy_stack(parts).exclude("metadata")):
            with pytest.raises(ValueError, match=words):
                load_dataset(source)


class TestEntries:
    """No observation vanishes without a word."""

    def test_truth_values_are_numbers(self, toy_dataset: TensorDict) -> None:
        toy_dataset["touch"] = toy_dataset["observation"][:, :1] > 0
        toy_dataset["next", "touch"] = toy_dataset["next", "observation"][:, :1] > 0
        dataset = load_dataset(toy_dataset)
        assert torch.equal(dataset["touch"], toy_dataset["touch"].float())

    def test_left_out_ones_are_named(self, toy_dataset: TensorDict) -> None:
        toy_dataset["goal"] = torch.ones(149, 2)
        with pytest.warns(UserWarning, match=r"the entries \['goal'\] are not read"):
            load_dataset(toy_dataset)

    @pytest.mark.filterwarnings("error")
    def test_what_a_policy_wrote_is_no_observation(self, toy_dataset: TensorDict) -> None:
        toy_dataset["loc"] = toy_dataset["action"].clone()
        load_dataset(toy_dataset)

    def test_a_return_that_was_asked_for_is_no_observation(self, env: GymEnv) -> None:
        rollout = TransformedEnv(env, TargetReturn(10.0)).rollout(9)
        assert "target_return" in rollout["next"]
        dataset = load_dataset(rollout, **BOUNDS)
        assert "target_return" not in dataset.keys(True)

    def test_two_rewards_per_step(self, toy_dataset: TensorDict) -> None:
        toy_dataset["next", "reward"] = torch.ones(149, 2)
        with pytest.raises(
            ValueError, match=r"next/reward has the shape \(149, 2\), needed is one"
        ):
            load_dataset(toy_dataset)

    def test_flags(self, toy_dataset: TensorDict) -> None:
        toy_dataset["next", "terminated"] = toy_dataset["next", "terminated"].float() - 0.5
        with pytest.raises(ValueError, match="next/terminated must hold booleans"):
            load_dataset(toy_dataset)


def test_alternating_environments(rng: np.random.Generator) -> None:
    walks = rng.normal(size=(31, 2, 3)).cumsum(0)  # time first, as buffers of several environments
    columns = {"observations": walks[:-1], "next_observations": walks[1:]}
    rest = {
        "actions": rng.uniform(-1, 1, size=(60, 1)),
        "rewards": np.ones(60),
        "terminations": np.zeros(60, dtype=bool),
    }
    alternating = {name: column.reshape(60, 3) for name, column in columns.items()}
    with pytest.raises(ValueError, match=r"59 of 59 steps jump.* several environments lie alter"):
        dataset_from_arrays(**alternating, **rest, truncations=np.zeros(60))
    sorted_ = {name: column.swapaxes(0, 1).reshape(60, 3) for name, column in columns.items()}
    with pytest.raises(ValueError, match=r"1 of 59 steps jump.* episode 0, step 29"):
        dataset_from_arrays(**sorted_, **rest, truncations=np.zeros(60))
    ends = np.arange(1, 61) % 30 == 0
    assert lengths(dataset_from_arrays(**sorted_, **rest, truncations=ends)) == [30, 30]
