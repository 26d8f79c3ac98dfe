"""Every public function that takes a path takes it as text too; mypy checks that its body does."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs" / "api"
# Classes that the package fills itself.
RESULTS = {"SlideSource", "Extraction", "SlideFacts", "RunFiles", "SavedStudent", "Check"}


def documented() -> Iterator[tuple[str, Any]]:
    """Functions, constructors and methods on the pages of the interface."""
    for page in sorted(DOCS.glob("*.md")):
        for name in re.findall(r"^\.\. auto(?:function|class):: (\S+)$", page.read_text(), re.MULTILINE):
            module, _, member = name.rpartition(".")
            value = getattr(importlib.import_module(module), member)
            yield name, value
            if inspect.isclass(value):
                for key, method in vars(value).items():
                    function = method.__func__ if isinstance(method, (classmethod, staticmethod)) else method
                    if inspect.isfunction(function) and not key.startswith("_"):
                        yield f"{name}.{key}", function


def taking_paths() -> dict[str, Callable[..., Any]]:
    found = {}
    for name, value in documented():
        if inspect.isroutine(value) or (inspect.isclass(value) and value.__name__ not in RESULTS):
            try:
                parameters = inspect.signature(value).parameters.values()
            except ValueError:
                continue
            if any(re.search(r"\bPath\b", str(parameter.annotation)) for parameter in parameters):
                found[name] = value
    return found


CALLS = taking_paths()


def test_functions_that_take_paths_are_found():
    assert {"disentangled_mil.train.predict.predict_slides", "disentangled_mil.extract.extract_slides"} <= CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_a_path_may_be_text(name):
    for parameter in inspect.signature(CALLS[name]).parameters.values():
        kind = str(parameter.annotation)
        if re.search(r"\bPath\b", kind):
            assert re.search(r"\bstr \| pathlib\.Path\b", kind), f"{parameter.name}: {kind}"
