"""Private modules and names are used in their own room alone, and in the rooms inside it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import disentangled_mil

PACKAGE = Path(disentangled_mil.__file__).parent
ROOMS_OF_OPS = sorted(path.parent.name for path in PACKAGE.glob("ops/*/__init__.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """Parts of every name that a file imports from the package, without the package's own name."""
    room = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = room[: len(room) - (node.level - 1)]
            for alias in node.names:
                yield (*start, *(node.module or "").split("."), alias.name) if node.module else (*start, alias.name)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_modules_and_names_are_imported_in_their_room_only(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[:-1]
    for parts in imported(path):
        for depth, part in enumerate(parts):
            if part.startswith("_") and not part.startswith("__"):
                assert room[:depth] == parts[:depth], ".".join(parts)


def test_modules_import_their_own_package_relatively() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or "").startswith("disentangled_mil"), path
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("disentangled_mil") for alias in node.names), path


@pytest.mark.parametrize("path", [path for path in MODULES if "ops" not in path.parts], ids=lambda path: path.stem)
def test_what_others_take_from_rooms_of_ops_is_in_their_literal_all(path: Path) -> None:
    for room in ROOMS_OF_OPS:
        names = {parts[2] for parts in imported(path) if parts[:2] == ("ops", room) and len(parts) > 2}
        tree = ast.parse((PACKAGE / "ops" / room / "__init__.py").read_text(encoding="utf-8"))
        public = next(
            ast.literal_eval(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        assert names <= set(public)
