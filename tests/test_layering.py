"""Who may import whom: cli -> deploy -> train -> explain, report, data -> models -> nn, losses, tasks, optim -> ops."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import disentangled_mil
from disentangled_mil.tasks import KINDS

PACKAGE = Path(disentangled_mil.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

FOR_ALL = {
    "_checks",
    "_collection",
    "_colors",
    "_errors",
    "_exit_status",
    "_extras",
    "_files",
    "_named_values",
    "_operators",
    "_precision",
    "_processes",
    "_read_ahead",
    "_schema",
    "_tables",
    "_torch_private",
}
# The arrows that exist: an arrow that nothing uses must go, and a new one needs a reason to be here.
LAYERS = {
    **{name: set[str]() for name in FOR_ALL},
    "_command": set[str](),
    "ops": set[str](),
    "metrics": set[str](),
    "bags": set[str](),
    "nn": {"ops", "bags"},
    "losses": {"ops"},
    "optim": set[str](),
    "tasks": {"ops", "losses", "metrics"},
    "models": {"ops", "bags", "nn"},
    "data": {"bags", "tasks"},
    "report": {"bags", "metrics", "tasks"},
    "extract": {"data"},
    # Small pictures of slides lie behind maps.
    "explain": {"bags", "nn", "models", "extract"},
    "deploy": {"", "ops", "bags", "nn", "models", "tasks", "data", "report", "train"},
    # Training notes the version that is written at the top level.
    "train": {"", "ops", "bags", "nn", "losses", "metrics", "tasks", "optim", "models", "data", "explain", "report"},
    "": {"_command", "ops", "bags", "nn", "losses", "tasks", "optim", "models"},  # the top level
    # The commands init and extract describe a folder and encode tiles, and train nothing.
    "cli": {"", "train", "data", "extract", "report", "deploy"},
    "__main__": {"cli"},
}
CORE = {"torch", "einops", "numpy", "scipy"}
# Imported when a kernel is first called.
KERNELS = {"_triton_kernels", "_triton_forward", "_triton_backward", "_triton_tiles", "_triton_bias"}
LOADED_AT_THE_TOP = FOR_ALL - {"_colors", "_exit_status", "_extras", "_files", "_read_ahead", "_tables"} | {
    "_command",
    "ops",
    "bags",
    "nn",
    "losses",
    "optim",
    "tasks",
    "models",
    "",
}


def layer_of(module: str) -> str:
    """The part of the package that a module belongs to: ``disentangled_mil.nn.ita`` -> ``nn``."""
    return module.split(".")[1] if "." in module else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports of a syntax tree that run, wherever they stand."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from statements(child)


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports."""
    here = name_of(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    found = set()
    for statement in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
            continue
        base = package[: len(package) - statement.level + 1] if statement.level else []
        module = ".".join([*base, *([statement.module] if statement.module else [])])
        # `from . import x` and `from package import x` may name modules.
        inner = [f"{module}.{alias.name}" for alias in statement.names]
        root = PACKAGE.parent.joinpath(*module.split("."))
        modules = [name for name, alias in zip(inner, statement.names, strict=True) if is_module(root, alias.name)]
        found |= set(modules) if modules else {module}
    return found


def is_module(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_imports_only_from_below(path: Path) -> None:
    own = layer_of(name_of(path))
    allowed = LAYERS[own] | {own} | FOR_ALL
    for name in imports(path):
        if name.split(".")[0] == "disentangled_mil":
            assert layer_of(name) in allowed, f"{name_of(path)} must not import {name}"


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_every_arrow_that_is_allowed_exists(layer: str) -> None:
    files = [path for path in MODULES if layer_of(name_of(path)) == layer]
    used = {layer_of(name) for path in files for name in imports(path) if name.split(".")[0] == "disentangled_mil"}
    assert LAYERS[layer] <= used


@pytest.mark.parametrize("path", [p for p in MODULES if layer_of(name_of(p)) in LOADED_AT_THE_TOP], ids=name_of)
def test_what_the_top_level_loads_needs_core_dependencies_only(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - {"disentangled_mil"} - sys.stdlib_module_names
    assert outside <= (CORE | {"triton"} if path.stem in KERNELS else CORE)


def test_every_part_of_the_package_has_its_place() -> None:
    assert {layer_of(name_of(path)) for path in MODULES} <= set(LAYERS)


def test_nothing_but_the_entry_point_imports_the_command_line() -> None:
    users = {name_of(p) for p in MODULES if any(layer_of(n) == "cli" for n in imports(p) if "disentangled" in n)}
    assert {layer_of(user) for user in users} <= {"__main__", "cli"}


def test_only_tasks_know_the_kinds_of_task() -> None:
    kinds = {"Classification", "DiscreteSurvival", "SurvivalTarget"}
    for path in MODULES:
        # The planted cohort defines its tasks, and the top level lists public names.
        if layer_of(name_of(path)) in ("tasks", "") or path.stem == "planted":
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert not names & kinds, name_of(path)
        compared = [part for node in nodes if isinstance(node, ast.Compare) for part in ast.walk(node)]
        assert not {part.value for part in compared if isinstance(part, ast.Constant)} & set(KINDS), name_of(path)
