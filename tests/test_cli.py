"""The command line: what it does, what it says, and how it exits."""

import contextlib
import dataclasses
import io
import runpy
import sys
from pathlib import Path

import h5py
import minari
import pytest
from tensordict import TensorDict

from mage_agent import AgentPolicy, GACPolicy, MAGEConfig, MAGEPolicy
from mage_agent.cli import main
from tests.gac.tiny import tiny_config, tiny_dataset
from tests.tiny import CORE

SMALLER = {name: value for name, value in CORE.items() if value is not None}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(MAGEConfig.PRESETS, "small", SMALLER)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(minari_dataset: minari.MinariDataset) -> Path:
    assert main(["train", minari_dataset.id, "--output", "point.mage", "--quiet"]) == 0
    return Path("point.mage")


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that a command ends in."""
    assert main(arguments) == 1
    output, errors = capsys.readouterr()
    assert errors.startswith("mage-agent: ")
    assert "Traceback" not in output + errors
    return errors


def test_train_saves_a_policy_with_every_setting_that_was_given(
    minari_dataset: minari.MinariDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", minari_dataset.id, "--output", "runs/a.mage", "--seed", "3", "--quiet"]
    assert main([*arguments, "--width", "8", "--return-reweighting", "--num-scales", "2"]) == 0
    policy = MAGEPolicy.load("runs/a.mage")
    expected = {**SMALLER, "width": 8, "return_reweighting": True, "num_scales": 2}
    assert policy.config == MAGEConfig(**expected, observation_keys=("observation",))
    assert policy.seed == 3
    assert policy.config.digest in capsys.readouterr().out


def test_train_equals_the_functions_it_stands_for(
    trained: Path, minari_dataset: minari.MinariDataset
) -> None:
    from mage_agent import load_dataset

    dataset = load_dataset(minari_dataset.id)
    config = MAGEConfig.preset("small")
    policy = MAGEPolicy.from_dataset(dataset, config).learn(dataset, progress_bar=False)
    weights = MAGEPolicy.load(trained).model.state_dict()
    assert all(weights[key].equal(value) for key, value in policy.model.state_dict().items())


def test_train_offers_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    output = capsys.readouterr().out
    for field in dataclasses.fields(MAGEConfig):
        assert f"-{field.name.replace('_', '-')}" in output


def test_help_shows_the_settings_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for preset, discount in (("antmaze", "0.998"), ("adroit", "0.99")):
        with pytest.raises(SystemExit, match="0"):
            main(["train", f"--preset={preset}", "--help"])
        words = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"of the returns-to-go. (default: {discount})" in words


def test_resume_goes_on(minari_dataset: minari.MinariDataset, capsys: pytest.CaptureFixture[str]):
    common = ["train", minari_dataset.id, "--checkpoint-path", "state.mage", "--quiet"]
    assert main([*common, "--output", "a.mage"]) == 0
    assert main([*common, "--output", "b.mage", "--resume"]) == 0
    message = failure([*common, "--output", "c.mage"], capsys)  # would begin anew over it
    assert "state.mage exists; go on from it with --resume" in message
    first, second = (MAGEPolicy.load(name).model.state_dict() for name in ("a.mage", "b.mage"))
    assert all(second[key].equal(value) for key, value in first.items())
    assert main(["info", "state.mage"]) == 0
    assert "a state of training, stage inverse_dynamics, step 4" in capsys.readouterr().out


def test_evaluate_scores_where_the_dataset_comes_from(
    trained: Path, minari_dataset: minari.MinariDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    # The toy's observations are those of Pendulum-v1, but not its actions.
    message = failure(["evaluate", str(trained), "--dataset", minari_dataset.id], capsys)
    assert "the environment's action space is Box(-2.0, 2.0, (1,)" in message


def test_collect_train_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    limit = ["--max-episode-steps", "15"]
    dataset = "local/pendulum/random-v0"
    assert main(["collect", "Pendulum-v1", dataset, "--episodes", "3", *limit]) == 0
    assert minari.load_dataset(dataset).total_steps == 45
    assert main(["train", dataset, "--output", "p.mage", "--quiet"]) == 0
    pendulum = ["--env", "Pendulum-v1"]
    for place in (["--dataset", dataset], [*pendulum, "--sample"], [*pendulum, "--weights=int8"]):
        capsys.readouterr()
        asked = ["--target-return", "-5", "--episodes", "2"]
        assert main(["evaluate", "p.mage", *place, *asked, *limit]) == 0
        output = capsys.readouterr().out
        assert "asked for -5 " in output
        assert "episodes  2" in output
        assert "length    mean 15" in output
    assert main(["collect", "Pendulum-v1", "b-v0", "--policy", "p.mage", "--episodes", "2"]) == 0
    assert minari.load_dataset("b-v0").total_steps == 400


def test_evaluate_with_another_query_keeps_the_target(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mage_agent import cli

    policy = GACPolicy.from_dataset(tiny_dataset(), tiny_config(), device="cpu")
    with pytest.warns(UserWarning, match="nothing would come of it"):  # of "max"
        policy.target_return = -1.5
    policy.save("policy")
    asked = []
    monkeypatch.setattr(
        cli, "evaluate_policy", lambda policy, *_, **__: asked.append(policy.model.query.kind) or []
    )
    monkeypatch.setattr(cli, "_print_results", lambda *_: None)
    line = ["evaluate", "policy", "--env", "Pendulum-v1", "--query", "target"]
    assert main(line) == 0
    assert asked == ["target"]
    assert "asked for -1.5 (discounted)" in capsys.readouterr().out


def test_evaluate_prints_score_and_success(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mage_agent import cli
    from mage_agent.evaluation import EpisodeResult

    results = [
        EpisodeResult(episode=i, seed=i, episode_return=3000.0 * i, length=9, success=bool(i))
        for i in range(2)
    ]
    monkeypatch.setattr(cli, "evaluate_policy", lambda *args, **kwargs: results)
    assert main(["evaluate", str(trained), "--dataset", "pen-expert-v1"]) == 0
    output = capsys.readouterr().out
    # (1500 - 96.26) / (3076.83 - 96.26), and the spread of two episodes over the root of two
    assert "score     47.1 +- 50.3" in output
    assert "success   50%" in output


def test_info_knows_datasets_and_policies(
    trained: Path, minari_dataset: minari.MinariDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", minari_dataset.id, "--discount", "1"]) == 0
    output = capsys.readouterr().out
    returns = [episode.rewards.sum() for episode in minari_dataset.iterate_episodes()]
    assert "149 steps in 7 episodes" in output
    assert "4 terminated, 3 truncated" in output
    assert output.count(f"mean {sum(returns) / 7:.4g}, from {min(returns):.4g}") == 2
    assert "2, from -1 to 1" in output
    assert "environment      Pendulum-v1" in output
    assert main(["info", str(trained)]) == 0
    output = capsys.readouterr().out
    assert "a trained policy" in output
    assert "observation (3)" in output
    assert MAGEPolicy.load(trained).config.digest in output


def test_info_knows_files_by_what_they_hold(
    tmp_path: Path, toy_dataset: TensorDict, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"  # no suffix
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = toy_dataset["observation"], toy_dataset["action"]
        for ours, theirs in (("reward", "rewards"), ("terminated", "terminals")):
            file[theirs] = toy_dataset["next", ours].flatten()
        file["timeouts"] = toy_dataset["next", "truncated"].flatten()
    assert main(["info", str(path)]) == 0
    assert "149 steps in 7 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nobody/nothing-v0", "--output", "x"], "is not on this machine"),
        (["train", "point.mage", "--output", "x"], "neither the id of a Minari dataset"),
        (["train", "a.hdf5", "--output", "x"], "there is no file"),
        (["train", "a-v0", "--output", "x", "--preset", "big"], "unknown preset 'big'"),
        (["train", "a-v0", "--output", "x", "--resume"], "--resume needs --checkpoint-path"),
        (["train", "a-v0", "--output", "."], ". exists; delete it"),
        (["evaluate", "none.mage", "--env", "Pendulum-v1"], "no checkpoint at none.mage"),
        (["evaluate", "none.mage"], "either --dataset or --env"),
        (["evaluate", "point.mage", "--dataset", "a.hdf5"], "name that by --env"),
        (["evaluate", "point.mage", "--env", "Pen-v1"], "gymnasium_robotics:AdroitHandPen-v1"),
        (["evaluate", "point.mage", "--env", "Pendulum-v1", "--device", "x"], "device"),
        (["collect", "CartPole-v1", "a-v0"], "only continuous actions"),
        (["collect", "Pendulum-v1", "a b"], "Malformed dataset ID"),
        (["info", "none.mage"], "neither the id of a Minari dataset"),
    ],
)
def test_mistakes_end_in_one_sentence(
    arguments: list[str],
    words: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "point.mage" in arguments:
        request.getfixturevalue("trained")

    def load(dataset_id: str, download: bool = False) -> None:
        raise ConnectionError("no network") if download else FileNotFoundError(dataset_id)

    monkeypatch.setattr(minari, "load_dataset", load)
    capsys.readouterr()
    assert words in failure(arguments, capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "a-v0", "--output", "x", "--horizon", "25"],
        ["train", "a-v0", "--output", "x", "--hrizon", "24"],
    ],
)
def test_wrong_command_lines_exit_with_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "--help" in capsys.readouterr().err


def test_interrupt_is_no_error(
    minari_dataset: minari.MinariDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AgentPolicy, "learn", interrupt)
    assert main(["train", minari_dataset.id, "--output", "x.mage"]) == 130
    assert not Path("x.mage").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["info", "Z\u00fcrich"]])
def test_a_console_of_few_letters_is_enough(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, console)
    with contextlib.suppress(SystemExit):  # of --help
        assert main(arguments) == 1
    written = console.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "codec" not in written
    assert "train" in written or r"Z\xfcrich" in written


def test_module_is_the_same_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mage_agent", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("mage_agent", run_name="__main__")
    output = capsys.readouterr().out
    assert all(name in output for name in ("train", "evaluate", "collect", "info"))
