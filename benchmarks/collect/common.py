"""What all collectors do: refuse what cannot be collected, and say where a dataset comes from."""

from collections.abc import Collection
from importlib.metadata import version
from typing import Any

__all__ = ["check_choice", "check_least", "origin"]


def check_choice(recipe: Any, **allowed: Collection[str]) -> None:
    """Refuse fields of a recipe that are none of the allowed values, by a ``ValueError``."""
    for name, choices in allowed.items():
        if getattr(recipe, name) not in choices:
            raise ValueError(f"{name} is {getattr(recipe, name)!r}; allowed: {choices}.")


def check_least(recipe: Any, **least: int) -> None:
    """Refuse fields of a recipe that are smaller than allowed, by a ``ValueError``."""
    for name, low in least.items():
        if getattr(recipe, name) < low:
            raise ValueError(f"{name} is {getattr(recipe, name)}; it must be at least {low}.")


def origin(code: str, *packages: str) -> dict[str, Any]:
    """Metadata of a dataset: who made it, by which file, and versions of the packages it takes."""
    facts: dict[str, Any] = {
        "author": "mage_agent",
        "author_email": "not given",
        "code_permalink": code,
    }
    if packages:
        facts["requirements"] = [f"{package}=={version(package)}" for package in packages]
    return facts
