"""From records to a report: what the statistics say, what the page shows, what it survives."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from benchmarks.report import __main__ as command
from benchmarks.report import read_records, write
from benchmarks.report.figures import rank_correlation
from benchmarks.report.leaderboard import write_page
from benchmarks.report.results import Results
from benchmarks.report.scores import sentence
from benchmarks.report.statistics import (
    best_and_tied,
    blocked_difference,
    difference,
    headline,
    interquartile_mean,
    largest_block,
    performance_profile,
)

ROOT = Path(__file__).parents[1]

Record = dict[str, Any]


def record(method: str, dataset: str, seed: int, score: float, **fields: Any) -> Record:
    episodes = [score - 2.0, score, score + 2.0]
    ours = {"method": method, "dataset": dataset, "seed": seed, "score": score, "scores": episodes}
    return {**ours, "status": "ok", **fields}


def cells(method: str, dataset: str, *scores: float, **fields: Any) -> list[Record]:
    return [record(method, dataset, seed, score, **fields) for seed, score in enumerate(scores)]


def failure(method: str, dataset: str, seed: int, **fields: Any) -> Record:
    facts = {"method": method, "dataset": dataset, "seed": seed, "status": "failed"}
    return {**facts, "error": "RuntimeError: lost", **fields}


def complete() -> list[Record]:
    """Two datasets, three methods, and every optional field."""
    rng = np.random.default_rng(3)
    records = []
    for dataset in ("local/pen/expert-v0", "local/door/cloned-v0"):
        for method, level in (("mage", 60.0), ("bc", 30.0), ("my:Own", 45.0)):
            for seed, score in enumerate(level + rng.normal(size=3)):
                steps = [
                    {"step": 10 * i, "seconds": 20.0 * i, "score": score * i / 3, "episodes": 5}
                    for i in (1, 2, 3)
                ]
                optional = {
                    **{"variant": "", "budget": "standard", "minutes": 20.0, "threads": 1},
                    **{"steps": 30, "training_seconds": 60.0, "samples_per_second": 5000.0},
                    "published_steps": 300,
                    "latency_ms": {f"batch_{n}": {"median": 1.5, "p99": 2.0} for n in (1, 64)},
                    "learning_curve": steps,
                    "asked": {"10.0": score - 5, "20.0": score} if method == "mage" else {},
                    **{"episodes": 3, "evaluation_seed": 100_000, "deterministic": True},
                    **{"commit": "abc", "versions": {"torch": "2"}, "hardware": "a CPU"},
                    "config_digest": "digest",
                }
                records.append(record(method, dataset, seed, float(score), **optional))
    records += cells("mage", "local/pen/expert-v0", 20.0, 21.0, 22.0, variant="K=1", minutes=20.0)
    for row in records[-3:]:
        row["budget"] = "standard"
    return records


class Cells(HTMLParser):
    """The rows of all tables: texts, and whether they are bold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.inside = True
        elif tag == "b":
            self.rows[-1][-1] += "*"

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data

    def row(self, name: str, columns: int) -> list[str]:
        """Last row of a name with so many entries after it: the first is the headline's."""
        found = [r[1:] for r in self.rows if r and r[0] == name and len(r) == columns + 1]
        return found[-1]


def page(records: list[Any], folder: Path) -> str:
    return write(records, folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def complete_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(complete(), tmp_path_factory.mktemp("report"))


# Statistics


SCORES = st.lists(st.floats(-50, 150), min_size=2, max_size=6)


@settings(max_examples=30, deadline=None)
@given(SCORES, SCORES)
def test_differences_are_welchs_test(first: list[float], second: list[float]) -> None:
    assume(min(np.std(first), np.std(second)) > 1e-3)  # SciPy warns of near-constant samples
    results = Results.of([*cells("a", "d/e-v0", *first), *cells("b", "d/e-v0", *second)])
    (task,) = results.tasks
    found = difference(results.competing(task)["a"], results.competing(task)["b"])
    expected = stats.ttest_ind(first, second, equal_var=False)
    interval = expected.confidence_interval()
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-4)


def test_successes_that_coincide_are_compared_by_episodes() -> None:
    def successes(method: str, counts: list[int]) -> list[Record]:
        scores = [[100.0] * count + [0.0] * (20 - count) for count in counts]
        return [
            record(method, "d/e-v0", seed, float(np.mean(each)), scores=each)
            for seed, each in enumerate(scores)
        ]

    results = Results.of([*successes("a", [19, 19]), *successes("b", [18, 18])])
    found = difference(*results.cells.values())
    assert found.tested
    assert not found.significant
    assert found.low < 0 < found.high


PAIRS = st.lists(st.tuples(st.floats(-50, 150), st.floats(-50, 150)), min_size=2, max_size=6)


@settings(max_examples=30, deadline=None)
@given(PAIRS)
def test_blocked_differences_of_two_cells_are_the_paired_test(
    pairs: list[tuple[float, float]],
) -> None:
    first, second = zip(*pairs, strict=True)
    assume(np.std(np.subtract(first, second)) > 1e-3)
    results = Results.of([*cells("a", "d/e-v0", *first), *cells("b", "d/e-v0", *second)])
    both = list(results.cells.values())
    found = blocked_difference(both[0], both[1], both)
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval()
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-4)


def test_blocked_differences_learn_the_noise_from_all_cells() -> None:
    scores = np.array(
        [[10.0, 40.0, 71.0], [12.0, 43.0, 70.0], [5.0, 30.0, 62.0], [8.0, 41.0, 70.0]]
    )
    results = Results.of(r for i, row in enumerate(scores) for r in cells(f"m{i}", "d/e-v0", *row))
    every = list(results.cells.values())
    found = blocked_difference(every[0], every[2], every)
    noise = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    reach = stats.t.ppf(0.975, 6) * (np.square(noise).sum() / 6 * 2 / 3) ** 0.5
    mean = scores[0].mean() - scores[2].mean()
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach))
    assert found.significant
    assert not difference(every[0], every[2]).significant  # which takes seeds for noise


def test_a_missing_training_does_not_pass_for_its_seeds_effect() -> None:
    records = [*cells("a", "d/e-v0", 10, 40, 70), *cells("b", "d/e-v0", 15, 45, 75)]
    results = Results.of(records[:-1])  # without b's easy seed
    a, b = results.cells.values()
    assert blocked_difference(b, a, [a, b]).mean == pytest.approx(5)
    assert difference(b, a).mean == pytest.approx(-10)


def test_cells_that_share_one_seed_are_compared_without_blocks() -> None:
    other = [record("b", "d/e-v0", seed, score) for seed, score in ((2, 5.0), (3, 7.0))]
    a, b = Results.of([*cells("a", "d/e-v0", 1, 2, 3), *other]).cells.values()
    assert blocked_difference(a, b, [a, b]) == difference(a, b)
    assert difference(a, b).mean == -4.0


@pytest.mark.parametrize(
    ("others", "best"),
    [
        ({"bc": (10.5, 11.0, 12.4), "iql": (0.0, 1.0, 2.0)}, ["bc", "mage"]),  # 11.3 above 11
        ({"bc": (0.0, 0.0, 0.0)}, ["mage"]),
        ({"bc": (11.0, 11.0, 11.0)}, ["mage", "bc"]),
        ({"bc": (30.0, 40.0, 35.0)}, ["bc"]),
        ({"bc": (10.9,)}, ["mage"]),  # one seed cannot be tied
        ({"bc": (12.0,)}, ["bc"]),  # nor can anything with it
    ],
)
def test_the_best_and_what_is_tied_with_it(
    others: dict[str, tuple[float, ...]], best: list[str]
) -> None:
    records = cells("mage", "d/e-v0", 10.0, 11.0, 12.0)
    for method, scores in others.items():
        records += cells(method, "d/e-v0", *scores)
    results = Results.of(records)
    assert best_and_tied(results.competing(results.tasks[0])) == best


@pytest.mark.parametrize("first", [(10.0,), (10.0, 11.0, 12.0)])
def test_one_training_is_not_tested(first: tuple[float, ...]) -> None:
    """However many episodes it was scored in."""
    one = record("bc", "d/e-v0", 0, 20.0, scores=[19.0, 20.0, 21.0] * 100)
    results = Results.of([*cells("mage", "d/e-v0", *first), one])
    found = difference(*(results.competing(results.tasks[0])[name] for name in ("mage", "bc")))
    assert found.mean == np.mean(first) - 20
    assert not found.tested
    assert not found.significant
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_the_headline_names_all_that_come_second() -> None:
    records = [
        *(each for name in "abc" for each in cells("mage", f"x/{name}-v0", 50, 51, 52)),
        *cells("bc", "x/a-v0", 50, 51, 52),
        *cells("iql", "x/b-v0", 50, 51, 52),
        *cells("dt", "x/c-v0", 1, 2, 3),
    ]
    results = Results.of(records)
    assert sentence(results, headline(results)) == (
        "At equal time, MAGE is best or tied with the best on 3 of 3 datasets with several "
        "trainings, BC and IQL on 1 each."
    )


def test_the_librarys_own_agents_are_no_rivals() -> None:
    """However many trainings they have: who says "best" must have met others."""
    own = [*cells("mage", "x/a-v0", 50, 51, 52), *cells("gac", "x/a-v0", 1, 2, 3)]
    own += cells("gac-prior", "x/a-v0", 1, 2, 3)
    for others, standing in (([], "untested"), (cells("bc", "x/a-v0", 1, 2, 3), "best")):
        (verdict,) = headline(Results.of([*own, *others]))
        assert verdict.standing == standing


def test_a_long_run_is_tested_by_who_has_trained_long() -> None:
    usual, long = ({"budget": name, "minutes": 60.0} for name in ("standard", "long"))
    short = [
        *cells("mage", "x/a-v0", 50, 51, 52, **usual),
        *cells("bc", "x/a-v0", 1, 2, 3, **usual),
    ]
    for scores, standing in (((1.0,), "untested"), ((1.0, 2.0), "best")):
        records = [*short, *cells("iql", "x/a-v0", *scores, **long)]
        (verdict,) = [each for each in headline(Results.of(records)) if each.task.long]
        assert verdict.standing == standing


def test_constant_scores_are_tied_only_if_equal() -> None:
    records = [*cells("a", "d/e-v0", 0, 0, 0), *cells("b", "d/e-v0", 0, 0, 0)]
    results = Results.of([*records, *cells("c", "d/e-v0", 5, 5, 5)])
    found = results.competing(results.tasks[0])
    assert not difference(found["a"], found["b"]).significant
    assert difference(found["a"], found["c"]).significant


def test_headline_counts_every_dataset_once(tmp_path: Path) -> None:
    records = [
        *cells("mage", "x/a-v0", 50, 51, 52),  # best
        *cells("bc", "x/a-v0", 10, 11, 12),
        *cells("mage", "x/b-v0", 50, 51, 52),  # tied, though below
        *cells("bc", "x/b-v0", 50.5, 51.5, 52.5),
        *cells("mage", "x/c-v0", 10, 11, 12),  # behind
        *cells("bc", "x/c-v0", 50, 51, 52),
        failure("mage", "x/d-v0", 0),  # failed where another did not
        *cells("bc", "x/d-v0", 50, 51, 52),
        *cells("mage", "x/e-v0", 1, 2, 3),  # alone: not counted
        *cells("bc", "x/f-v0", 1, 2, 3),  # not tried: not counted
        *cells("mage", "x/g-v0", 1, 2, 3),  # highest, of one training of the other
        *cells("bc", "x/g-v0", 0.5),
        *cells("mage", "x/h-v0", 1),  # has one itself, below
        *cells("bc", "x/h-v0", 50, 51, 52),
        *cells("mage", "x/i-v0", 50, 51, 52),  # above all that can be tested, not above one more
        *cells("bc", "x/i-v0", 1, 2, 3),
        *cells("iql", "x/i-v0", 60),
    ]
    standings = {v.task.dataset: v.standing for v in headline(Results.of(records))}
    expected = {"x/a-v0": "best", "x/b-v0": "tied", "x/c-v0": "behind", "x/d-v0": "failed"}
    assert standings == {**expected, **dict.fromkeys(["x/g-v0", "x/h-v0", "x/i-v0"], "untested")}
    sentence = (
        "At equal time, BC is best or tied with the best on 3 of 4 datasets with several "
        "trainings, MAGE on 2; on 3 datasets more, where single trainings do not allow a test, "
        "MAGE has the highest mean on 1."
    )
    assert sentence in page(records, tmp_path)
    assert f"**{sentence}**" in (tmp_path / "report.md").read_text()


def test_interquartile_mean_by_hand() -> None:
    # Sorted: 0 1 2 3 | 10 20; the middle half of six is 1, 2, 3, 10.
    records = [*cells("a", "d/e-v0", 0, 3, 10), *cells("a", "d/f-v0", 1, 2, 20)]
    results = Results.of(records)
    estimate = interquartile_mean([results.competing(task)["a"] for task in results.tasks])
    assert estimate.value == pytest.approx(4.0)
    assert 0.5 <= estimate.low < 4 < estimate.high <= 15
    again = interquartile_mean([results.competing(task)["a"] for task in results.tasks])
    assert (again.low, again.high) == (estimate.low, estimate.high)


def test_bootstrap_draws_seeds_within_each_dataset() -> None:
    # Each dataset is constant, so that nothing but a draw across datasets could vary.
    results = Results.of([*cells("a", "d/e-v0", 0, 0, 0), *cells("a", "d/f-v0", 8, 8, 8)])
    both = [results.competing(task)["a"] for task in results.tasks]
    estimate = interquartile_mean(both)
    assert (estimate.low, estimate.value, estimate.high) == (4, 4, 4)
    profile = performance_profile(both, np.array([-1.0, 0.0, 8.0]))
    assert profile.value.tolist() == profile.low.tolist() == [1.0, 0.5, 0.0]


def test_one_seed_gives_no_interval() -> None:
    results = Results.of([*cells("a", "d/e-v0", 1), *cells("a", "d/f-v0", 1, 2)])
    estimate = interquartile_mean([results.competing(task)["a"] for task in results.tasks])
    assert (estimate.low, estimate.high) == (None, None)


def test_aggregates_take_the_largest_complete_block() -> None:
    present = {"mage": "abcd", "bc": "abcd", "iql": "abc", "dt": "a", "own": "ef"}
    records = [
        row for m, datasets in present.items() for d in datasets for row in cells(m, f"x/{d}-v0", 1)
    ]
    methods, tasks = largest_block(Results.of(records))
    assert methods == ["mage", "bc", "iql"]  # 3 x 3 cells; with d there are 2 x 4
    assert [task.dataset for task in tasks] == ["x/a-v0", "x/b-v0", "x/c-v0"]
    assert largest_block(Results.of([])) == ([], [])


def test_aggregates_weigh_methods_and_datasets_the_same(tmp_path: Path) -> None:
    few = [*cells("mage", "x/a-v0", 10, 60), *cells("mage", "x/b-v0", 20, 30, 90)]
    many = [*cells("bc", "x/a-v0", 1, 2, 3), *cells("bc", "x/b-v0", 3, 4, 5)]
    text = write([*few, *many], tmp_path).with_suffix(".md").read_text()
    assert "Of each method on each dataset, the first 2 trainings alone went in here" in text
    assert "| MAGE | 25.0 |" in text  # 10 | 20 30 | 60
    assert "| BC | 2.5 |" in text  # 1 | 2 3 | 4


def test_headline_says_who_is_best_in_the_long_run(tmp_path: Path) -> None:
    usual = {"budget": "standard", "minutes": 20.0}
    long = {"budget": "long", "minutes": 60.0}
    records = [
        *cells("mage", "x/a-v0", 50, 51, 52, **usual),
        *cells("iql", "x/a-v0", 10, 11, 12, **usual),
        *cells("iql", "x/a-v0", 90, 91, 92, **long),  # MAGE stands beside it with its usual time
        *cells("mage", "x/b-v0", 50, 51, 52, **usual),
        *cells("iql", "x/b-v0", 10, 11, 12, **usual),
    ]
    html = page(records, tmp_path)
    sentence = (
        "At equal time (20 minutes), MAGE is best or tied with the best on 2 of 2 datasets with "
        "several trainings, nobody else on any; in the long run (60 minutes for IQL), IQL is best "
        "or tied with the best on 1 of 1 dataset with several trainings, MAGE on 0."
    )
    assert f"**{sentence}**" in (tmp_path / "report.md").read_text()
    row = Cells(html).row("x/a (long, 60 min)", 2)
    assert row == ["51.0 ± 0.6 standard, 20 min", "*91.0 ± 0.6"]
    assert largest_block(Results.of(records))[1] == [  # no dataset counts twice
        task for task in Results.of(records).tasks if task.minutes == 20
    ]


def test_scores_on_another_scale_stand_in_no_row_with_published_ones(tmp_path: Path) -> None:
    records = [*cells("mage", "local/maze2d/umaze-v0", 50, 51), *cells("bc", "x/a-v0", 1, 2)]
    for offset, rows in ((0.0, 1), (30.0, 0)):
        for row in records[:2]:
            score = row["score"] + offset
            row["returns"] = [23.85 + score / 100 * (161.86 - 23.85)]  # D4RL's references
        text = write(records, tmp_path).with_suffix(".md").read_text()
        assert text.count("| maze2d/umaze | 50.5 ± 0.5 | *145") == rows
        assert "All that the paper prints" in text


# The page


def test_same_records_same_bytes_in_any_order(complete_page: str, tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(complete(), len(complete()))
    path = write(shuffled, tmp_path / "a" / "deeper")
    assert path.read_bytes() == complete_page.encode()
    few = cells("mage", "x/a-v0", 1, 2, 3)
    texts = [write(r, tmp_path).with_suffix(".md").read_bytes() for r in (few, few[::-1])]
    assert texts[0] == texts[1]


def test_page_is_self_contained(complete_page: str) -> None:
    html = complete_page
    assert html.count("<svg") == 9  # two aggregates, two curves, two asked, three legends
    assert not re.search(r"https?:|//www|<script|<link|<iframe|@import|src=", html)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', html))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([^")]*)', html)
    assert set(used) <= set(ids)
    assert "#010203" not in html  # the ink became the page's


def test_every_section_has_its_say(complete_page: str) -> None:
    html = complete_page
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == [
        "Headline",
        "Scores",
        "Over all datasets",
        "Published numbers",
        "Asking for more",
        "Ablations",
        "Learning curves",
        "Speed",
        "Failures and gaps",
        "Protocol",
        "Versions and hardware",
    ]
    rows = Cells(html)
    for method, share in (("BC", "10.0"), ("MAGE", "–")):  # ours have presets of their own
        speed = rows.row(f"{method} a CPU, 1 thread", 9)
        assert speed == ["1.50", "2.00"] * 2 + ["0.50", "5,000", "1.00", "30.0", share]
    assert rows.row("version of torch", 1) == ["2"]
    assert "rank correlation MAGE 0." in html


def test_score_table_marks_every_kind_of_cell(tmp_path: Path) -> None:
    records = [
        *cells("mage", "x/a-v0", 50, 51, 52),
        *cells("bc", "x/a-v0", 50.5, 51.5, 52.5),
        *cells("iql", "x/a-v0", 10, 12),
        failure("iql", "x/a-v0", 2),
        failure("cql", "x/a-v0", 0),
        failure("dt", "x/a-v0", 0, status="unavailable"),
        *cells("own", "x/b-v0", 1, 2, 3),
    ]
    rows = Cells(page(records, tmp_path))
    error = (1 / 3) ** 0.5
    assert rows.row("x/a", 6) == [
        f"*51.0 ± {error:.1f}",
        f"*51.5 ± {error:.1f}",
        "failed",
        "11.0 ± 1.0 2 seeds, 1 failed",
        "n/a",
        "–",
    ]
    assert rows.row("x/b", 6) == ["–"] * 5 + ["2.0 ± 0.6"]  # alone is not best
    table = (tmp_path / "report.md").read_text()
    assert (
        "| x/a | **51.0 ± 0.6** | **51.5 ± 0.6** | failed | 11.0 ± 1.0 (2 seeds, 1 failed)" in table
    )


def test_one_seed_is_marked(tmp_path: Path) -> None:
    records = [record("mage", "x/a-v0", 0, 5.0), *cells("bc", "x/a-v0", 1, 2, 3)]
    html = page(records, tmp_path)
    assert Cells(html).row("x/a", 2)[0] == f"*5.0 ± {2 / 3**0.5:.1f} † 1 seed"
    assert Cells(html).row("x/a", 6)[1:] == ["2.0 BC", "+3.0", "–", "–", "not tested"]


def test_published_numbers_stand_beside_ours_and_are_marked(
    complete_page: str, tmp_path: Path
) -> None:
    html = complete_page
    ours = Cells(html).row("pen/expert", 4)  # MAGE and BC, each with the paper's
    assert (ours[1], ours[3]) == ("147.8 ± 4.9", "94.6 ± 3.2")
    assert '<td class="published">147.8 ± 4.9</td>' in html
    assert "no number here is comparable with them one to one" in html
    assert "not D4RL&#39;s files" in html
    assert "not D4RL&#39;s files" not in page(cells("mage", "D4RL/pen/expert-v2", 1), tmp_path)


def test_stages_of_data_that_no_paper_has_are_shown_too(tmp_path: Path) -> None:
    rows = cells("mage", "x/a-v0", 20.0) + cells("mage", "x/a-v0", 30.0, variant="stage 1")
    for row in rows:
        row.update(budget="standard", minutes=7.0)
    html = page(rows, tmp_path)
    assert Cells(html).row("x/a MAGE", 2) == ["20.0 ± 1.2 †", "30.0 ± 1.2 †"]
    assert "Online fine-tuning" not in page(rows[:1], tmp_path)


@pytest.mark.parametrize(
    ("scores", "direction"),
    [
        ((20, 21, 22), "reproduced"),
        ((90, 91, 92), "opposite"),
        ((10, 90, 50), "open"),
        ((20,), "one seed"),
    ],
)
def test_ablations_say_whether_the_papers_direction_holds(
    scores: tuple[float, ...], direction: str, tmp_path: Path
) -> None:
    pen = "local/pen/expert-v0"
    records = [
        *cells("mage", pen, 60, 61, 62, variant="K=8"),
        # The paper: 147.8 falls to 123.5.
        *cells("mage", pen, *scores, variant="K=1", steps=5000),
        *cells("mage", pen, 1, 2, 3, variant="of my own"),
    ]
    rows = [row for row in Cells(page(records, tmp_path)).rows if "K=1" in row]
    assert [row[-1] for row in rows] == [direction, direction]  # in Tables 5 and 26
    assert [row[3] for row in rows] == ["5,000"] * 2
    assert [row[5] for row in rows] == ["123.5 ± 9.1"] * 2
    assert "of my own" in (tmp_path / "report.md").read_text()


def test_the_whole_method_stands_for_variants_that_it_is(tmp_path: Path) -> None:
    pen, small = "local/pen/expert-v0", {"num_scales": 4, "codebook_size": 256}
    records = [
        *cells("mage", pen, 60, 61, 62, hyperparameters=small),
        *cells("mage", pen, 20, 21, 22, variant="K=8"),
    ]
    rows = [row for row in Cells(page(records, tmp_path)).rows if "K=4" in row or "K=2" in row]
    assert {(row[1], row[2]) for row in rows} == {("K=4", "61.0 ± 0.6"), ("K=2", "–")}


@pytest.mark.parametrize(
    ("sign", "p_value"),
    # Of the 120 x 120 pairs of orders that two seeds can have, one rises throughout.
    [(1, "0.000"), (-1, "1.000")],
)
def test_the_trend_over_scales_has_a_p_value(sign: int, p_value: str, tmp_path: Path) -> None:
    records = [
        row
        for k in (1, 2, 4, 6, 8)
        for row in cells("mage", "local/pen/expert-v0", sign * k, 30 + sign * k, variant=f"K={k}")
    ]
    page(records, tmp_path)
    expected = f"pen/expert: scores rise from K=1 to K=8 with p = {p_value}"
    assert expected in (tmp_path / "report.md").read_text()
    page(records[1:], tmp_path)  # one seed is left of K=1
    assert "Page's trend test" not in (tmp_path / "report.md").read_text()


def test_what_the_trainings_of_a_row_differ_in_is_said(tmp_path: Path) -> None:
    records = cells("mage", "d/e-v0", 1, 2, 3, variant="K=1", config_digest="first")
    for row in records:
        row["hyperparameters"] = {"width": 8, "num_scales": 1}
    page(records, tmp_path)
    assert "different configurations" not in (tmp_path / "report.md").read_text()
    records[1] |= {"config_digest": "second", "hyperparameters": {"width": 8, "num_scales": 2}}
    records[2] |= {"config_digest": "third", "hyperparameters": {"num_scales": 1}}
    page(records, tmp_path)
    assert (
        "The seeds of MAGE K=1 on d/e were trained with 3 different configurations: they differ "
        "in num_scales, width."
    ) in (tmp_path / "report.md").read_text()


def test_rank_correlation_of_asked_and_achieved() -> None:
    asked = ({"1": 5.0, "2": 6.0}, {"1": 5.5, "2": 7.0})
    results = Results.of([record("mage", "a/b-v0", i, 4.0, asked=a) for i, a in enumerate(asked)])
    cell = results.competing(results.tasks[0])["mage"]
    assert rank_correlation(cell) == pytest.approx(0.8944, abs=1e-4)
    constant = Results.of([record("mage", "a/b-v0", 0, 4.0, asked={"1": 5.0, "2": 5.0})])
    assert rank_correlation(constant.competing(constant.tasks[0])["mage"]) is None


# The page of results


def test_page_of_results_is_up_to_date(tmp_path: Path) -> None:
    page = ROOT / "docs/results.md"
    _, command, *_ = page.read_text().split("`")
    folder, path = command.split()[3], tmp_path / "results.md"
    write_page(read_records(ROOT / folder), path, command)
    assert path.read_text() == page.read_text(), f"run: {command}"


def test_page_of_results_names_the_command_of_every_cell(tmp_path: Path) -> None:
    usual = {"budget": "standard", "minutes": 20.0, "steps": 50, "published_steps": 1000}
    long = {"budget": "long", "minutes": 60.0, "device": "cuda", "episodes": 70}
    records = [
        *cells("mage", "x/a-v0", 40, 50, 60, training_seconds=90.0, **usual),
        *cells("iql", "x/a-v0", 10, 11, 12, **usual),
        *cells("iql", "x/a-v0", 90, **long),
    ]
    write_page(records, tmp_path / "page.md", "make it")
    text = (tmp_path / "page.md").read_text()
    suite = "* `python benchmarks/run_suite.py --datasets x/a-v0 --methods"
    assert f"{suite} mage,iql --seeds 3 --budget standard`" in text
    assert f"{suite} iql --seeds 1 --budget long --episodes 70 --device cuda`" in text
    # Student's t with two degrees of freedom: 4.303 standard errors of 5.774.
    assert "| MAGE | 50.0 | 25.2 to 74.8 | 3 | 50 | 1.5 | – |" in text
    assert "| IQL | 90.0 | 85.0 to 95.0 † | 1 | – | – | – |" in text  # over 88, 90, 92
    assert "MAGE, IQL took less than a tenth of their published steps" in text


# Odd records


def test_budgets_are_not_mixed(tmp_path: Path) -> None:
    records = [
        *cells("mage", "x/a-v0", 50, 51, 52, budget="standard", minutes=20),
        *cells("bc", "x/a-v0", 90, 91, 92, budget="paper"),
    ]
    html = page(records, tmp_path)
    assert "nothing to compare yet" in html
    assert Cells(html).row("x/a", 2)[0].startswith("51.0")
    assert Cells(html).row("x/a (paper)", 2)[1].startswith("91.0")
    more = [*records, *cells("mage", "x/a-v0", 40, 41, 42, budget="quick", minutes=2)]
    rows = Cells(page(more, tmp_path / "more"))
    for name, score in (("x/a (standard, 20 min)", "51.0"), ("x/a (quick, 2 min)", "41.0")):
        assert rows.row(name, 2)[0].startswith(score)
    both = [r for m in (30, 60) for r in cells("bc", "x/a-v0", 1, 2, budget="long", minutes=m)]
    results = Results.of(both)
    assert len({results.label(task) for task in results.tasks}) == 2
    tables = (tmp_path / "more" / "report.md").read_text().split("In the long run; where")
    assert "x/a (paper)" in tables[1]
    assert "x/a (quick, 2 min)" not in tables[1].split("\n\n")[1]


def test_a_finished_training_replaces_its_failure() -> None:
    finished, failed = record("mage", "x/a-v0", 0, 5.0), failure("mage", "x/a-v0", 0)
    for records in ([failed, finished], [finished, failed]):
        results = Results.of(records)
        assert [row["status"] for row in results.records] == ["ok"]
        assert "repeat a training" in results.problems[0]


def test_errors_are_shown_as_text(tmp_path: Path) -> None:
    trace = (
        "Traceback (most recent call last):\n  File\nValueError: <script>alert(1)</script> | `x`"
    )
    html = page([failure("mage", "x/a-v0", seed, error=trace) for seed in (0, 1)], tmp_path)
    assert "<code>ValueError: &lt;script&gt;alert(1)&lt;/script&gt; | `x`</code>" in html
    assert Cells(html).row("MAGE", 4)[:3] == ["x/a", "0, 1", "failed"]
    assert "`ValueError: <script>alert(1)</script> \\| 'x'`" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "odd",
    [
        None,
        "text",
        {},
        {"method": "bc"},
        {"method": "bc", "dataset": "x/a-v0", "seed": "first"},
        {"method": "bc", "dataset": "x/a-v0", "scores": 3},
        record("bc", "x/a-v0", 0, float("nan")),
        {**record("bc", "x/a-v0", 0, 1.0), "score": None, "scores": [1.0, None]},
        {**record("bc", "x/a-v0", 0, 1.0), "score": None, "scores": []},
        {"method": "bc", "dataset": "nowhere", "status": "who knows"},
        record("bc", "x/a-v0", 0, 1.0, learning_curve=[{"seconds": None, "score": 1}], asked=None),
        record("bc", "x/a-v0", 0, 1.0, learning_curve=[{"seconds": 0, "score": 1}]),
        record("bc", "x/a-v0", 0, 1.0, latency_ms=None, versions=None, steps=3, minutes=None),
    ],
)
def test_odd_records_spoil_nothing(odd: Any, tmp_path: Path) -> None:
    sound = [*cells("mage", "x/a-v0", 5, 6, 7), *cells("iql", "x/a-v0", 5, 6, 7)]
    rows = Cells(page([*sound, odd], tmp_path)).rows
    assert any(row[:2] == ["x/a", "*6.0 ± 0.6"] for row in rows)


def test_a_course_of_one_point_is_not_drawn(tmp_path: Path) -> None:
    final = [{"seconds": 100, "score": 5.0}]
    for number, curve in enumerate((final, [{"seconds": 50, "score": 4.0}, *final])):
        folder = tmp_path / str(number)
        folder.mkdir()
        text = page([record("mage", "x/a-v0", 0, 5.0, learning_curve=curve)], folder)
        assert ("Learning curves" in text) == (len(curve) > 1)


def test_what_is_no_number_counts_as_failed() -> None:
    results = Results.of([record("bc", "x/a-v0", 0, float("inf"))])
    assert results.records[0]["status"] == "failed"
    assert "no number" in results.records[0]["error"]


def test_no_records_make_an_empty_report(tmp_path: Path) -> None:
    assert "nothing to compare yet" in page([], tmp_path)


def test_records_are_read_up_to_where_an_interruption_cut_them(tmp_path: Path) -> None:
    line = json.dumps(record("mage", "x/a-v0", 0, 1.0))
    (tmp_path / "a.jsonl").write_text(line + '\n\n{"method": "ma')
    (tmp_path / "b.jsonl").write_text(line.replace('"seed": 0', '"seed": 1') + "\n")
    assert [row["seed"] for row in read_records(tmp_path)] == [0, 1]
    (tmp_path / "a.jsonl").write_text('{"method": "ma\n' + line + "\n")
    with pytest.raises(ValueError, match="line 1 of"):
        read_records(tmp_path)


def test_command_writes_the_report_beside_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit):
        command.main()
    assert "the suite writes its records to" in capsys.readouterr().err
    (tmp_path / "records.jsonl").write_text(json.dumps(record("mage", "x/a-v0", 0, 1.0)) + "\n")
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--page", str(tmp_path / "page.md")])
    command.main()
    assert (tmp_path / "page.md").read_text().startswith("# Results")
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "report.md").exists()
