"""The import graph of the package is a table; this test keeps the code equal to it."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import mage_agent

ROOT = Path(mage_agent.__file__).parent
REPOSITORY = ROOT.parent

LEAVES = {"types", "config", "optional", "files"}  # importable from everywhere
ALLOWED: dict[str, set[str]] = {  # module -> modules of the package it may import, besides LEAVES
    "types": set(),
    "config": set(),
    "optional": set(),
    "files": set(),
    "bounds": set(),
    "rewards": set(),
    "data.normalizer": set(),
    "data.columns": set(),
    "data.continuity": set(),
    "data.merging": set(),
    "data.ted": {"data.merging"},
    "data.d4rl_tasks": set(),
    "data.arrays": {"data.columns", "data.ted"},
    "data.checks": {"data.continuity", "data.ted"},
    "data.hdf5": set(),
    "data.minari": {"data.columns", "data.d4rl_tasks", "data.hdf5", "data.ted"},
    "data.d4rl": {
        "data.hdf5",
        "data.arrays",
        "data.columns",
        "data.continuity",
        "data.d4rl_tasks",
        "data.ted",
    },
    "data.robomimic": {"data.hdf5", "data.arrays", "data.columns", "data.ted"},
    "data.ogbench": {"data.hdf5", "data.arrays", "data.columns", "data.ted"},
    "data.load": {
        "data.arrays",
        "data.checks",
        "data.d4rl",
        "data.minari",
        "data.ogbench",
        "data.robomimic",
        "data.ted",
    },
    "data.replay": {"data.ted"},
    "data.storage": set(),
    "nn.layers": set(),
    "nn.quantizer": set(),
    "nn.autoencoder": {"nn.layers"},
    "nn.transformer": {"nn.layers"},
    "nn.inverse_dynamics": {"nn.layers"},
    "model": {
        "data.normalizer",
        "nn.layers",
        "nn.quantizer",
        "nn.autoencoder",
        "nn.transformer",
        "nn.inverse_dynamics",
    },
    "losses": {"model", "nn.layers"},
    "envs": {"rewards"},
    "actor": {"envs", "model"},
    "checkpoint": {"model"},
    "inference": {"model", "nn.transformer"},
    "health": set(),
    "hardware": set(),
    "parallel": set(),
    "training": {"data", "model", "losses", "checkpoint", "hardware", "health", "parallel"},
    "policy": {"envs", "model", "checkpoint", "hardware", "inference", "training"},
    "d4rl": {
        "data.columns",
        "data.d4rl",
        "data.d4rl_tasks",
        "data.load",
        "data.minari",
        "data.ted",
    },
    "evaluation": {"bounds", "rewards"},  # of policies, it sees only the protocol in types
    "visualize": set(),
    "recording": {"data.storage", "evaluation", "rewards"},
    "facts": {"checkpoint", "data", "evaluation"},
    "cli": {
        "d4rl",
        "data",
        "data.load",
        "data.minari",
        "evaluation",
        "facts",
        "files",
        "inference",
        "policy",
        "recording",
    },
    "__main__": {"cli"},
}
TORCHRL = {"data.*", "losses", "actor", "envs", "parallel", "training"}
THIRD_PARTY: dict[str, set[str]] = {  # package -> the only modules that may name it
    "torchrl": TORCHRL,
    "tensordict": TORCHRL | {"d4rl", "facts"},  # they hand datasets on
    "stable_baselines3": {"policy", "envs"},
    "vector_quantize_pytorch": {"nn.quantizer"},
    "minari": {"data.*", "d4rl", "recording"},
    "h5py": {"data.*"},
    "safetensors": {"checkpoint"},
    "matplotlib": {"visualize"},
    "tyro": {"cli"},
    "gymnasium": {
        "bounds",
        "rewards",
        "data.*",
        "envs",
        "policy",
        "d4rl",
        "evaluation",
        "recording",
        "cli",
    },
    "gymnasium_robotics": {"data.*", "d4rl"},
}
NN_SEES = {"torch", "vector_quantize_pytorch", *sys.stdlib_module_names}
USERS = {"benchmarks", "examples", "tests"}
PUBLIC_SUBMODULES = {
    "checkpoint",
    "d4rl",
    "evaluation",
    "inference",
    "recording",
    "training",
    "types",
    "visualize",
}  # the documented ones


def matches(module: str, patterns: set[str]) -> bool:
    package = module.partition(".")[0]
    return module in patterns or f"{package}.*" in patterns


def imported(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every import of a file, also inside functions: (module, names or nothing)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []


def package_modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name != "__init__.py":  # re-exports only
            yield module, path


def package_violations() -> Iterator[str]:
    for module, path in package_modules():
        if module not in ALLOWED:
            yield f"{module}: not in the import table; add a row"
            continue
        for name, names in imported(path):
            head, _, rest = name.partition(".")
            ours = {rest} if rest else set(names)  # `from mage_agent import x`: x must be a module
            if name.startswith("."):
                yield f"{module}: write `from mage_agent.x import y` (absolute)"
            elif head == "mage_agent" and not ours <= LEAVES | ALLOWED[module]:
                yield f"{module} imports {sorted(ours)}: not allowed"
            elif head in USERS:
                yield f"{module} imports {head}: the package never imports its users"
            elif head in THIRD_PARTY and not matches(module, THIRD_PARTY[head]):
                yield f"{module} imports {head}: only {sorted(THIRD_PARTY[head])} may"
            elif module.startswith("nn.") and head not in NN_SEES | {"mage_agent"}:
                yield f"{module} imports {head}: nn sees tensors only"


def user_violations() -> Iterator[str]:
    for folder in ("benchmarks", "examples"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            where = path.relative_to(REPOSITORY)
            for name, names in imported(path):
                head, _, rest = name.partition(".")
                if head != "mage_agent":
                    continue
                if not rest:
                    hidden = set(names) - set(mage_agent.__all__) - PUBLIC_SUBMODULES
                elif rest in PUBLIC_SUBMODULES:
                    hidden = {item for item in names if item.startswith("_")}
                else:
                    hidden = {rest}
                if hidden:
                    yield f"{where} imports {sorted(hidden)}: not a public name of mage_agent"


def test_imports_follow_the_table() -> None:
    assert not (found := list(package_violations())), "\n".join(found)


def test_benchmarks_and_examples_use_public_names_only() -> None:
    assert not (found := list(user_violations())), "\n".join(found)


def test_table_has_no_cycle_and_no_dead_row() -> None:
    packages = {"data": {module for module in ALLOWED if module.startswith("data.")}}
    list(TopologicalSorter({**ALLOWED, **packages}).static_order())  # raises CycleError
    assert set(ALLOWED) == {module for module, _ in package_modules()}
