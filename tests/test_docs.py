"""The README is true: its code runs, its deviations are the code's."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import mage_agent
from mage_agent.config import PRESETS

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


@pytest.mark.usefixtures("pen_human")
def test_code_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "adroit", TINY)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3  # one for each kind of user
    names: dict[str, object] = {}
    for block in blocks:
        smaller = block.replace("n_eval_episodes=20", "n_eval_episodes=1")
        smaller = smaller.replace("batch_size=512", "batch_size=8").replace("(100, ", "(5, ")
        exec(compile(smaller, "README.md", "exec"), names)


def deviations() -> list[tuple[str, str]]:
    """File and first sentence of every ``# Deviation:`` comment of the package."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for match in re.finditer(r"# Deviation: ((?:.*\n)(?:\s*# .*\n)*)", path.read_text()):
            text = " ".join(line.strip().removeprefix("# ") for line in match[1].splitlines())
            sentence = re.split(r"[.:;](?:\s|$)", text)[0]
            found.append((f"`{path.relative_to(ROOT)}`", sentence))
    return found


def table_of_deviations() -> list[tuple[str, str]]:
    section = README.split("### Deviations from the paper")[1].split("\n#")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return [(row[1].strip(), row[2].strip()) for row in rows]


def test_readme_lists_every_deviation_and_no_other() -> None:
    assert sorted(table_of_deviations()) == sorted(deviations())


def test_files_named_in_the_documents_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT.parent / document).read_text()
        for name in re.findall(r"`((?:mage_agent|benchmarks|tests|examples)/[\w/.]+)`", text):
            assert (ROOT.parent / name).exists(), f"{document} names {name}"


def test_make_targets_named_in_the_documents_exist() -> None:
    makefile = (ROOT.parent / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT.parent / document).read_text()
        assert set(re.findall(r"\bmake (\w+)`", text)) <= targets
