"""The classes of the page on other packages."""

from typing import Any

from tests.test_docs import DOCS, blocks


def page() -> dict[str, Any]:
    """What the code of the page defines."""
    found: dict[str, Any] = {"__name__": "other_packages"}
    for code in blocks(DOCS / "recipes" / "other_packages.md", "python"):
        exec(compile(code, "other_packages.md", "exec"), found)
    return found
