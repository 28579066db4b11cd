"""A release names itself the same everywhere."""

import importlib.util
import re
from pathlib import Path

import mage_agent
from mage_agent.checkpoint import versions

REPOSITORY = Path(__file__).parents[1]


def test_top_changelog_heading_is_the_version() -> None:
    headings = re.findall(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == mage_agent.__version__


def test_citation_names_the_version() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text()
    assert f"\nversion: {mage_agent.__version__}\n" in citation


def test_results_name_our_own_version() -> None:
    assert versions()["mage_agent"] == mage_agent.__version__


def test_every_public_name_exists_and_is_documented() -> None:
    assert mage_agent.__all__ == sorted(mage_agent.__all__)
    for name in set(mage_agent.__all__) - {"__version__"}:
        assert (getattr(mage_agent, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_what_minari_downloads_with_is_installed() -> None:
    assert importlib.util.find_spec("huggingface_hub") is not None
