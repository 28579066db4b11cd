"""The import graph of the package is a table; this test keeps the code equal to it."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import mage_agent

ROOT = Path(mage_agent.__file__).parent
REPOSITORY = ROOT.parent

LEAVES = {"types", "config", "optional", "files", "bounds", "rewards"}  # for everybody
ALLOWED: dict[str, set[str]] = {  # module -> modules of the package it may import, besides LEAVES
    **{leaf: set() for leaf in LEAVES},
    "data.columns": set(),
    "data.continuity": set(),
    "data.merging": set(),
    "data.d4rl_tasks": set(),
    "data.hdf5": set(),
    "data.storage": set(),
    "data.ted": {"data.merging"},
    "data.arrays": {"data.checks", "data.columns", "data.ted"},
    "data.checks": {"data.continuity", "data.ted"},
    "data.cutting": {"data.checks", "data.d4rl_tasks", "data.ted"},
    "data.delayed": {"data.checks", "data.ted"},
    "data.goals": {"data.checks", "data.ted"},
    "data.replay": {"data.checks", "data.ted"},
    "data.minari": {"data.columns", "data.d4rl_tasks", "data.hdf5", "data.ted"},
    "data.d4rl": {
        "data.arrays",
        "data.columns",
        "data.continuity",
        "data.d4rl_tasks",
        "data.hdf5",
        "data.ted",
    },
    "data.robomimic": {"data.arrays", "data.columns", "data.hdf5", "data.ted"},
    "data.ogbench": {"data.arrays", "data.columns", "data.hdf5", "data.ted"},
    "data.load": {
        "data.arrays",
        "data.checks",
        "data.d4rl",
        "data.hdf5",
        "data.minari",
        "data.ogbench",
        "data.robomimic",
        "data.ted",
    },
    "nn.layers": set(),
    "nn.muon": set(),
    "nn.units": set(),
    "hardware": set(),
    "parallel": set(),
    "memory": set(),
    "entries": set(),
    "envs": set(),
    "evaluation": set(),  # of policies, it sees only the protocol in types
    "visualize": set(),
    "maze2d": {"data.d4rl_tasks"},
    "ogbench": set(),
    "recording": {"data.storage", "evaluation"},
    # The seam: what every method is.
    "stage": {"data", "hardware", "nn.muon"},
    "agent": {"data", "hardware", "nn.units", "stage"},
    "averages": {"stage"},
    "losses": {"agent"},
    "checkpoint": {"agent"},
    "compatibility": {"agent", "data", "nn.units"},
    "training": {
        *("agent", "checkpoint", "compatibility", "data", "hardware", "losses", "parallel"),
        "stage",
    },
    "callbacks": {"training"},
    "online_run": {"agent", "checkpoint", "data"},
    "online": {
        *("agent", "compatibility", "data", "entries", "envs", "evaluation", "online_run"),
        *("recording", "training"),
    },
    "policy": {
        *("agent", "callbacks", "checkpoint", "compatibility", "data", "entries", "envs"),
        *("hardware", "memory", "online", "training"),
    },
    "actor": {"agent", "compatibility", "envs", "memory"},
    # Whoever stands on it.
    "d4rl": {"data.columns", "data.d4rl", "data.d4rl_tasks", "data.load"},
    "environment": {"d4rl", "data", "data.minari", "ogbench"},
    "facts": {"checkpoint", "data", "evaluation", "nn.units"},
    "cli": {
        *("agent", "d4rl", "data", "data.load", "data.minari", "environment", "evaluation"),
        *("facts", "hardware", "parallel", "policy", "recording"),
    },
    "__main__": {"cli"},
}
FAMILIES = ("mage", "gac")
"""Folders of one method each; a family never imports a sibling."""
FAMILY_SEES = {
    *("actor", "agent", "averages", "data", "hardware", "losses", "memory"),
    *("nn.layers", "nn.units", "parallel", "policy", "stage", "training"),
}
TORCHRL = {"data.*", "losses", "actor", "envs", "training"}
THIRD_PARTY: dict[str, set[str]] = {  # package -> the only modules that may name it
    "torchrl": TORCHRL,
    "tensordict": TORCHRL
    | {
        "agent",
        "compatibility",
        "d4rl",
        "environment",
        "facts",
        "gac.*",
        "mage.*",
        "memory",
        "online",
    }
    | {"online_run", "parallel", "policy", "stage"},
    "stable_baselines3": {"callbacks", "envs", "policy"},
    "vector_quantize_pytorch": {"mage.quantizer"},
    "minari": {"data.*", "environment", "online", "recording"},
    "h5py": {"data.*"},
    "safetensors": {"checkpoint"},
    "matplotlib": {"visualize"},
    "optuna": {"gac.tune"},
    "tyro": {"cli"},
    "gymnasium": {
        *("bounds", "cli", "d4rl", "data.*", "entries", "environment", "envs", "evaluation"),
        *("maze2d", "ogbench", "online", "policy", "recording", "rewards"),
    },
    "gymnasium_robotics": {"maze2d"},
    "ogbench": {"ogbench"},
}
NN_SEES = {"torch", "vector_quantize_pytorch", *sys.stdlib_module_names}
USERS = {"benchmarks", "examples", "tests"}
PUBLIC_SUBMODULES = {
    "checkpoint",
    "d4rl",
    "data.ted",
    "evaluation",
    "gac.inference",
    "gac.queries",
    "gac.stages",
    "gac.tune",
    "memory",
    "recording",
    "training",
    "types",
    "visualize",
}  # listed in docs/api.md


def matches(module: str, patterns: set[str]) -> bool:
    package = module.partition(".")[0]
    return module in patterns or f"{package}.*" in patterns


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those that only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        guarded = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not guarded:
            yield node
            yield from statements(node)


def imported(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every import of a file, also inside functions: (module, names or nothing)."""
    for node in statements(ast.parse(path.read_text())):
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


def ours(name: str, names: list[str]) -> set[str]:
    """Modules of the package that an import names, such as "mage.plan" or "data"."""
    rest = name.removeprefix("mage_agent").removeprefix(".")
    inside = [f"{rest}.{each}".removeprefix(".") for each in names]
    modules = {module for module, _ in package_modules()}
    found = {each for each in inside if each in modules}
    # `from mage_agent import x`: x must be a module
    return found or ({rest} if rest else set(names))


def allowed(module: str) -> set[str] | None:
    """What a module may import; None where the table lacks a row."""
    family = module.partition(".")[0]
    if family in FAMILIES:
        own = {other for other, _ in package_modules() if other.startswith(f"{family}.")}
        return LEAVES | FAMILY_SEES | own
    return LEAVES | ALLOWED[module] if module in ALLOWED else None


def package_violations() -> Iterator[str]:
    for module, path in package_modules():
        may = allowed(module)
        if may is None:
            yield f"{module}: not in the import table; add a row"
            continue
        for name, names in imported(path):
            head = name.partition(".")[0]
            if name.startswith("."):
                yield f"{module}: write `from mage_agent.x import y` (absolute)"
            elif head == "mage_agent" and not ours(name, names) <= may:
                yield f"{module} imports {sorted(ours(name, names) - may)}: not allowed"
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


def test_there_is_no_cycle_and_no_dead_row() -> None:
    modules = dict(package_modules())
    graph = {
        module: {
            each
            for name, names in imported(path)
            if name.startswith("mage_agent")
            for each in ours(name, names)
        }
        for module, path in modules.items()
    }
    graph["data"] = {module for module in modules if module.startswith("data.")}
    list(TopologicalSorter(graph).static_order())  # raises CycleError
    others = {module for module in modules if module.partition(".")[0] not in FAMILIES}
    assert set(ALLOWED) == others


def test_no_file_is_long() -> None:
    """One that grows beyond 400 lines does two things."""
    folders = (ROOT, REPOSITORY / "benchmarks")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    lengths = {str(path): len(path.read_text().splitlines()) for path in files}
    assert len(lengths) > 100
    assert not {path: count for path, count in lengths.items() if count > 400}
