"""Private modules of a room of ``ops`` are used in that room alone."""

import ast
from pathlib import Path

import pytest

import disentangled_mil

PACKAGE = Path(disentangled_mil.__file__).parent
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("ops/*/__init__.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, without leading dots."""
    return {
        f"{node.module or ''}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_else_imports_the_private_modules_of_a_room(path: Path) -> None:
    for room in ROOMS:
        if path.parent != PACKAGE / "ops" / room:
            assert not [name for name in imported(path) if f"{room}._" in name]


@pytest.mark.parametrize("path", [path for path in MODULES if "ops" not in path.parts], ids=lambda path: path.stem)
def test_what_others_take_from_rooms_is_in_their_literal_all(path: Path) -> None:
    for room in ROOMS:
        names = {name.rpartition(".")[2] for name in imported(path) if f"ops.{room}." in f"{name}."}
        tree = ast.parse((PACKAGE / "ops" / room / "__init__.py").read_text(encoding="utf-8"))
        public = next(
            ast.literal_eval(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        assert names <= set(public)
