"""Optional packages: the one place that knows which extra installs what.

Everything the core needs is a hard dependency. What only some users need (simulators, plots, the
reference algorithms) is imported through `require`, so that a missing package ends in one sentence
that says what to type instead of an `ImportError` in the middle of a run.
"""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS: dict[str, tuple[str, ...]] = {
    "robotics": ("gymnasium_robotics", "mujoco"),
    "ogbench": ("ogbench",),
    "visualize": ("matplotlib",),
    "benchmarks": ("rich",),
    "cluster": ("ray",),
    "tune": ("optuna",),
    "dev": ("pytest", "hypothesis", "ruff", "mypy", "codespell"),
}
"""Extra -> the importable packages that it installs; the extra ``all`` installs every one."""


def require(package: str) -> ModuleType:
    """Import an optional package, or say how to install it.

    Args:
        package: Importable name, one of those listed in `EXTRAS` (a submodule such as
            ``"matplotlib.pyplot"`` counts as its package).

    Returns:
        The imported module.

    Raises:
        KeyError: `package` is in no extra (a mistake of ours, not of the user).
        ImportError: The package is not installed; the message holds the pip command.
    """
    root = package.partition(".")[0]
    extra = next((name for name, packages in EXTRAS.items() if root in packages), None)
    if extra is None:
        raise KeyError(f"{root!r} is in none of the extras {EXTRAS}; add it to one")
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise  # the package is there, but something that it needs is not
        raise ImportError(
            f"this needs the package {root!r}, which is not installed. "
            f"Install it from your checkout of mage_agent: pip install '.[{extra}]'"
        ) from error
