"""The documents are true: their code runs, their deviations and messages are the code's."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import mage_agent
from mage_agent import MAGEConfig
from mage_agent.cli import main
from tests.test_import_contract import PUBLIC_SUBMODULES

# So few steps train no codebook.
pytestmark = pytest.mark.filterwarnings("ignore:the codebook has collapsed")

ROOT = Path(mage_agent.__file__).parent
README = (ROOT.parent / "README.md").read_text()
TINY = {
    "num_scales": 2,
    "codebook_size": 16,
    "width": 16,
    "num_blocks": 1,
    "num_autoencoder_blocks": 1,
    "batch_size": 8,
    "tokenizer_steps": 2,
    "generator_steps": 2,
    "inverse_dynamics_steps": 2,
}


@pytest.fixture
def pen_human(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a small stand-in for the README's dataset where Minari looks for it."""
    gymnasium_robotics = pytest.importorskip("gymnasium_robotics")
    from minari.data_collector import EpisodeBuffer

    from mage_agent.recording import save_minari

    gym.register_envs(gymnasium_robotics)
    env = gym.make("AdroitHandPen-v1", max_episode_steps=30)
    rng = np.random.default_rng(0)
    episodes = []
    for index in range(3):
        observations, actions, rewards = [env.reset(seed=index)[0]], [], []
        for _ in range(30):
            actions.append(rng.uniform(-1, 1, 24).astype(np.float32))
            observation, reward, _, _, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
        last = [False] * 29 + [True]
        episodes.append(
            EpisodeBuffer(
                id=index,
                observations=observations,
                actions=actions,
                rewards=rewards,
                terminations=[False] * 30,
                truncations=last,
            )
        )
    save_minari(
        tmp_path,
        "D4RL/pen/human-v2",
        episodes,
        env=env,
        eval_env=env.spec,
        author="test",
        author_email="test",
        code_permalink="test",
        algorithm_name="random",
        description="test",
        ref_min_score=0.0,
        ref_max_score=1.0,
    )
    env.close()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def expanded(text: str) -> str:
    """A page with the sections of the README that it includes."""

    def section(match: re.Match[str]) -> str:
        name = match[1]
        return README.split(f"[start:{name}] -->\n")[1].split(f"\n<!-- --8<-- [end:{name}]")[0]

    return re.sub(r'^--8<-- "README\.md:(\w+)"$', section, text, flags=re.MULTILINE)


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Every block of code: language, code, and why it is not run, if it is not."""
    fence = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
    return [(match[2], match[3], match[1] or "") for match in fence.finditer(text)]


DOCS = ROOT.parent / "docs"
PAGES = {path.stem: expanded(path.read_text()) for path in sorted(DOCS.glob("*.md"))}
INCLUDED = {code for page in PAGES.values() for _, code, _ in blocks(page)}
# What the pages include of the README runs there.
PAGES["README"] = re.sub(
    r"^```\w*\n(.*?)^```$",
    lambda block: "" if block[1] in INCLUDED else block[0],
    README,
    flags=re.M | re.S,
)


def smaller(code: str) -> str:
    """The same code with less work."""
    for much, little in (
        ("n_eval_episodes=20", "n_eval_episodes=1"),
        ("batch_size=512", "batch_size=8"),
        ("(100, ", "(5, "),
        ("steps=2_000", "steps=6"),
    ):
        code = code.replace(much, little)
    return code


def run_command(line: str) -> None:
    """Run a line of a shell, or check what it says where running it would be too much."""
    makefile = (ROOT.parent / "Makefile").read_text()
    pyproject = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    match shlex.split(line, comments=True):
        case ["mage-agent", *arguments]:
            if arguments[0] in ("collect", "evaluate"):
                arguments += ["--max-episode-steps", "20"]
            if "--help" in arguments:
                with pytest.raises(SystemExit, match="0"):
                    main(arguments)
            else:
                assert main(arguments) == 0
        case ["pip", "install", what]:
            assert re.fullmatch(r"\.(\[\w+\])?", what)
            extras = re.findall(r"\w+", what)
            assert set(extras) <= set(pyproject["project"]["optional-dependencies"])
        case ["make", target]:
            assert re.search(f"^{target}:", makefile, re.MULTILINE)
        case []:
            pass
        case _:
            pytest.fail(f"nothing runs {line!r}; say why above its block: <!-- not run: why -->")


@pytest.mark.usefixtures("pen_human")
@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if blocks(page)])
def test_code_of_the_documents_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for preset in ("adroit", "adroit-small", "small"):
        monkeypatch.setitem(MAGEConfig.PRESETS, preset, TINY)
    names: dict[str, object] = {"__name__": "__main__"}
    for language, code, reason in blocks(PAGES[name]):
        if 'GymEnv("Adroit' in code or 'make_vec_env("Adroit' in code:  # here they are already
            assert "gym.register_envs(gymnasium_robotics)" in code
        if language == "python" and not reason:
            exec(compile(smaller(code), f"{name}.md", "exec"), names)
        elif language == "bash" and not reason:
            for line in code.replace("\\\n", " ").splitlines():
                run_command(line)
        else:
            assert reason or not language, f"{name}.md: who runs a block of {language}?"


def literals() -> Iterator[str]:
    """Every text of the package, with NUL where a value is filled in."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_of_the_troubleshooting_page_exist() -> None:
    messages = re.findall(r"^\| `(.+?)` \|", PAGES["troubleshooting"], re.MULTILINE)
    texts = list(literals())
    assert len(messages) > 50
    for message in messages:
        pattern = re.compile(".*".join(map(re.escape, message.split("..."))))
        assert any(pattern.search(text) for text in texts), f"no error says {message!r}"


def deviations() -> dict[int, str]:
    """File of every ``# Deviation N:`` comment of the package, by its number."""
    found: dict[int, str] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for number in re.findall(r"# Deviation\b ?(\d*):?", path.read_text()):
            assert number, f"{path} has a deviation without a number"
            assert int(number) not in found, f"{path} has deviation {number} once more"
            found[int(number)] = f"`{path.relative_to(ROOT)}`"
    return found


def test_every_deviation_has_its_row() -> None:
    page = PAGES["deviations"].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page if "|" in line]
    rows = [row for row in cells if row[0].isdigit()]
    assert all(len(row) == 5 and all(row) for row in cells)
    listed = {int(number): where for number, *_, where in rows}
    assert sorted(listed) == list(range(1, len(rows) + 1))
    assert listed == deviations()


def test_readme_is_short_and_shows_a_picture() -> None:
    assert len(README.splitlines()) <= 150
    assert "![" in "".join(README.splitlines()[:15])


def test_picture_is_cut_from_that_of_the_maze_game(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    from benchmarks.mazegame.crop import crop

    crop(ROOT.parent / "benchmarks/results/mazegame/mazegame.png", tmp_path / "cut.png")
    assert (image.imread(tmp_path / "cut.png") == image.imread(DOCS / "mazegame.png")).all()


def test_api_lists_what_is_public() -> None:
    listed = set(re.findall(r"^::: mage_agent\.([\w.]+)$", PAGES["api"], re.MULTILINE))
    assert listed == set(mage_agent.__all__) | PUBLIC_SUBMODULES


def documents() -> Iterator[tuple[str, str]]:
    for path in (*ROOT.parent.glob("*.md"), *DOCS.glob("*.md")):
        if path.name != "CHANGELOG.md":
            yield path.name, path.read_text()


def test_files_named_in_the_documents_exist() -> None:
    for document, text in documents():
        for name in re.findall(r"`((?:mage_agent|benchmarks|tests|examples)/[\w/.-]+)`", text):
            assert (ROOT.parent / name).exists(), f"{document} names {name}"


def test_make_targets_named_in_the_documents_exist() -> None:
    makefile = (ROOT.parent / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    for document, text in documents():
        assert set(re.findall(r"\bmake (\w+)`", text)) <= targets, document


def test_links_between_the_documents_lead_somewhere() -> None:
    for folder in (ROOT.parent, DOCS):
        for path in folder.glob("*.md"):
            for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text()):
                assert (folder / target).exists(), f"{path.name} links to {target}"
