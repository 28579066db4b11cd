"""Columns say the same afterwards as before, or an error or a warning names them."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from mage_agent.data import check_dataset, dataset_from_arrays, metadata
from mage_agent.data.columns import as_array, as_flags, as_float

ENDS = np.arange(1, 21) % 10 == 0
STEPS: dict[str, Any] = {
    "observations": np.random.default_rng(0).normal(size=(20, 3)),
    "actions": np.random.default_rng(1).uniform(-1, 1, size=(20, 2)),
    "rewards": np.ones(20),
    "terminations": np.zeros(20, dtype=bool),
    "truncations": ENDS,
}


def changed(**changes: Any) -> Any:
    return dataset_from_arrays(**{**STEPS, **changes})


def same(one: Any, other: Any) -> bool:
    return bool((one.exclude("metadata") == other.exclude("metadata")).all())


def test_steps_without_an_end_are_told() -> None:
    with pytest.warns(UserWarning, match="mark an end: the 20 steps are one episode"):
        changed(truncations=np.zeros(20, dtype=bool))


def test_mistaken_columns_are_named() -> None:
    with pytest.raises(TypeError, match=r"a list of 2 arrays; .* if they are episodes, join them"):
        changed(observations=[np.ones((10, 3)), np.ones((10, 3))])
    with pytest.raises(TypeError, match=r"is a dictionary with the entries \['x'\]"):
        changed(observations={"a": {"x": np.ones((20, 1))}})
    with pytest.raises(ValueError, match="truncations is None; give a truth value for each step"):
        changed(truncations=None)


class TestFlags:
    @pytest.mark.parametrize("kind", [bool, int, float, object, np.uint8, np.float16])
    def test_zero_and_one_are_booleans(self, kind: type) -> None:
        assert np.array_equal(as_flags(ENDS.astype(kind), "truncations"), ENDS)
        assert np.array_equal(as_flags(torch.tensor(ENDS), "truncations"), ENDS)
        assert same(changed(truncations=ENDS.astype(kind)[:, None]), changed())

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (ENDS.astype(str), r"20 of 20 values are neither, the first one 'False' in row 0"),
            (np.where(ENDS, 1, -1), r"18 of 20 .* the first one -1 in row 0"),
            (np.where(np.arange(20) == 3, np.nan, ENDS), r"1 of 20 .* the first one nan in row 3"),
            (np.where(np.arange(20) == 3, None, ENDS), r"1 of 20 .* the first one None in row 3"),
        ],
    )
    @pytest.mark.parametrize("name", ["terminations", "truncations"])
    def test_nothing_else_counts_as_true(self, name: str, flags: Any, words: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must hold booleans, or 0 and 1, but {words}"):
            changed(**{name: flags})

    @pytest.mark.parametrize("name", ["terminations", "truncations", "rewards"])
    def test_one_per_step(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"{name} has the shape \(20, 2\), needed is one"):
            changed(**{name: np.zeros((20, 2))})
        with pytest.raises(ValueError, match=f"'{name}': 1,"):
            changed(**{name: 0})


def test_bounds_may_come_with_the_facts_of_another_dataset() -> None:
    facts = metadata(changed(action_low=-2.0, action_high=[2.0, 3.0]))
    assert metadata(changed(facts=facts)) == facts
    narrower = metadata(changed(facts=facts, action_low=-1.0))
    assert (narrower["action_low"], narrower["action_high"]) == ([-1.0, -1.0], [2.0, 3.0])
    with pytest.raises(ValueError, match=r"action.* outside the bounds \[-0.1, 0.1\]"):
        changed(facts={"action_low": -0.1, "action_high": 0.1})


def test_a_value_that_makes_up_the_spread_is_pointed_at() -> None:
    rng, ends = np.random.default_rng(0), np.arange(1, 501) % 50 == 0
    seen = rng.normal(size=(500, 3))
    seen[:, 2] = np.arange(500) == 80  # a flag that is set once: nothing is lost
    rest = (rng.uniform(-1, 1, size=(500, 2)), rng.normal(size=500), ends & False, ends)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset_from_arrays(seen, *rest)
    for sentinel in (-1e6, -1e30):  # whose square is beyond float32
        seen[77, 1] = sentinel
        told = re.escape(f"observation, column 1, is {sentinel:g} in episode 1, step 27")
        with pytest.warns(UserWarning, match=told):
            dataset_from_arrays(seen, *rest)


def test_integers_are_checked_like_other_numbers() -> None:
    dataset = changed()
    counts = torch.arange(20)[:, None].expand(20, 3).contiguous()
    dataset["observation"], dataset["next", "observation"] = counts, counts + 1
    dataset["next", "reward"] = torch.ones(20, 1, dtype=torch.long)
    check_dataset(dataset)


class TestKindsOfArrays:
    def test_a_data_frame_of_columns_of_several_types(self) -> None:
        frame = np.array([[0.5, True, 3], [1.5, False, 4]], dtype=object)
        assert as_array(frame, "observations").tolist() == [[0.5, 1.0, 3.0], [1.5, 0.0, 4.0]]
        frame[1, 0] = None
        with pytest.raises(TypeError, match="observations holds object such as None"):
            as_array(frame, "observations")

    @pytest.mark.parametrize(
        "form",
        [
            torch.tensor,
            lambda a: torch.tensor(a, requires_grad=True),
            lambda a: list(torch.tensor(a)),
            np.ndarray.tolist,
            lambda a: a.astype(">f8"),
            lambda a: a.astype(">f4").astype(float) if a.ndim == 3 else a,
        ],
    )
    def test_say_the_same(self, form: Any) -> None:
        changes = {name: form(STEPS[name]) for name in ("observations", "actions", "rewards")}
        assert same(changed(**changes), changed())

    def test_column_of_arrays(self) -> None:
        rows = np.empty(20, dtype=object)  # as a data frame holds them
        rows[:] = list(STEPS["observations"])
        assert same(changed(observations=rows), changed())
        rows[7] = rows[7][:2]
        with pytest.raises(ValueError, match=r"observations .* row 0 has \(3,\) and row 7 \(2,\)"):
            changed(observations=rows)

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_several_arrays_need_names(self, kind: type) -> None:
        parts = kind([STEPS["observations"], STEPS["observations"][:, :2]])
        with pytest.raises(TypeError, match=f"observations is a {kind.__name__} of 2 arrays; name"):
            changed(observations=parts)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            (np.full((20, 1), "1.5"), "<U3 such as '1.5'"),
            (np.full((20, 1), 1j), "complex128"),
            (np.zeros((20, 1), dtype="M8[s]"), "give the seconds since the start"),
            (np.full((20, 1), None), "object such as None"),
        ],
    )
    def test_what_is_no_number(self, values: Any, words: str) -> None:
        with pytest.raises(TypeError, match=rf"observations\['place'\] holds {words}|{words}"):
            changed(observations={"place": values})

    def test_masked_values(self) -> None:
        masked = np.ma.masked_less(STEPS["observations"], 0)
        with pytest.raises(ValueError, match="observations has masked values"):
            changed(observations=masked)

    def test_memory_is_not_shared(self) -> None:
        source = np.ones((4, 2), dtype=np.float32)
        as_float([source], "x").zero_()
        assert source.all()

    def test_half_precision(self) -> None:
        assert as_array(torch.ones(2, dtype=torch.bfloat16), "x").tolist() == [1, 1]

    def test_a_bound_that_is_no_number(self) -> None:
        with pytest.raises(ValueError, match=r"action_low is \[nan\]; a bound is a number"):
            changed(action_low=np.nan)

    def test_a_dimension_that_never_moves(self) -> None:
        still = STEPS["actions"] * [1, 0]
        for low, high in (([-1, 0], [1, 0]), (-np.inf, np.inf)):
            bounds = changed(actions=still, action_low=low, action_high=high)["metadata"]
            assert (bounds["action_low"][1], bounds["action_high"][1]) == (0, 0)


class TestPrecision:
    @pytest.mark.parametrize("name", ["observations", "rewards", "actions"])
    def test_values_that_float32_wipes_out(self, name: str) -> None:
        column = 1.7e9 + np.arange(20.0)
        values = STEPS[name].copy()
        values[..., -1 if values.ndim > 1 else slice(None)] = column
        number = values.shape[-1] - 1 if values.ndim > 1 else 0
        words = rf"{name}, column {number}, loses its values in float32: of 20 different ones 1"
        with pytest.warns(UserWarning, match=words):
            changed(**{name: values}, action_low=-np.inf, action_high=np.inf)

    def test_of_integers(self) -> None:
        with pytest.warns(UserWarning, match="time, column 0, loses its values"):
            as_float([2**40 + np.arange(9)[:, None]], "time")

    @pytest.mark.parametrize(
        "values",
        [
            1.7e9 + 1e6 * np.arange(20.0),  # fine enough
            np.full(20, 0.1),  # constant
            np.where(np.arange(20) == 5, np.nan, 1.0),  # refused elsewhere
            1e-30 * np.arange(20.0),
            100 + np.random.default_rng(0).normal(size=20),
            (1.7e9 + np.arange(20.0)).astype(np.float32),  # nothing more to lose
        ],
    )
    def test_no_false_alarm(self, values: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            as_float([values[:, None]], "x")

    def test_beyond_the_range(self) -> None:
        values = STEPS["observations"].copy()
        values[3, 1] = 1e40
        with pytest.raises(ValueError, match=r"observations holds 1e\+40 in column 1, beyond"):
            changed(observations=values)
