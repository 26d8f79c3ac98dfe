"""Docstrings of the package follow one template; ``docs/conf.py`` and readers rely on it.

Sections come in one order, and their headings stand alone. Entries of arguments, attributes and errors begin with a
small letter, and errors do not begin with "If". Entries of arguments begin with a noun, so not with "whether", "what"
or "how". References name their role, because a bare backquote is neither code
nor a reference.
"""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "disentangled_mil"
SECTIONS = (
    "Args",
    "Shape",
    "Returns",
    "Yields",
    "Raises",
    "Attributes",
    "Source",
    "Differs from the source",
    "Example",
)
OTHERS = "Arguments|Parameters|Params|Return|Yield|Raise|Examples|Notes?|References?|See [Aa]lso|Warnings?|Todo"
# Words that keep their capital at the start of an entry.
NAMES = {"True", "False", "None", "Adam", "Bernoulli", "Cox", "Ensembl", "Euclidean", "Gaussian", "Hungarian"}
NAMES |= {"Lipschitz", "Python", "Triton", "Weibull"}

HEADING = re.compile(rf"({'|'.join(SECTIONS)}|{OTHERS}):(.*)")
ENTRY = re.compile(r"    \*{0,2}[\w.]+(?:, \*{0,2}\w+)*: (.+)")
CAPITAL = re.compile(r"[A-Z][a-z]+(?![A-Za-z0-9_(])|A(?= [a-z(])")
NO_NOUN = re.compile(r"(?:whether|True|False|what|how)\b")
CODE = re.compile(r"``.+?``|:[\w:+-]+:`[^`]+`|`[^`<]+<[^`>]+>`__?|^ *(?:>>>|\.\.\.) .*?$", re.DOTALL | re.MULTILINE)


def docstrings() -> Iterator[tuple[str, str]]:
    """Places and docstrings of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring is not None:
                    yield f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 1)}", docstring


def departures(docstring: str) -> Iterator[str]:
    """Where a docstring leaves the template."""
    for bare in re.findall(r"`[^`]+`", CODE.sub("", docstring)):
        yield f"neither a role nor code: {bare}"
    lines = docstring.splitlines()
    headings: list[str] = []
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        heading = HEADING.fullmatch(line)
        if heading and heading[1] not in SECTIONS:
            yield f"no section of the template: {heading[1]}"
        elif heading:
            headings.append(heading[1])
            if heading[2].strip():
                yield f"text beside a heading: {line}"
            elif before or not re.match(r" {4}\S", after):
                yield f"no blank line above or no indented block below: {line}"
        elif headings and line and not line.startswith("    "):
            yield f"text outside of a section: {line}"
        elif headings and headings[-1] in ("Args", "Attributes", "Raises") and re.match(r" {4}\S", line):
            yield from _departures_of_entry(headings[-1], line)
    for first, second in pairwise(headings):
        if SECTIONS.index(first) >= SECTIONS.index(second):
            yield f"order: {second} after {first}"


def _departures_of_entry(section: str, line: str) -> Iterator[str]:
    entry = ENTRY.fullmatch(line)
    if not entry:
        yield f"no entry 'name: text': {line.strip()}"
    elif section == "Raises" and re.match(r"if\b", entry[1], re.IGNORECASE):
        yield f"the condition alone, without 'if': {line.strip()}"
    else:
        capital = CAPITAL.match(entry[1])
        if capital and capital[0] not in NAMES:
            yield f"capital letter: {line.strip()}"


def entries_without_noun(docstring: str) -> Iterator[str]:
    """Entries of arguments and attributes that do not begin with a noun."""
    section = ""
    for line in docstring.splitlines():
        heading = HEADING.fullmatch(line.strip())
        section = heading[1] if heading else section
        entry = ENTRY.fullmatch(line)
        if entry and section in ("Args", "Attributes") and NO_NOUN.match(entry[1]):
            yield line.strip()


def test_entries_of_arguments_begin_with_a_noun():
    wrong = [f"{place}: {entry}" for place, text in docstrings() for entry in entries_without_noun(text)]
    assert wrong == []


def test_an_entry_without_a_noun_is_found():
    assert list(entries_without_noun(GOOD)) == []
    wrong = GOOD.replace("a: first number", "a: whether it counts")
    assert list(entries_without_noun(wrong)) == ["a: whether it counts. It may be"]


def test_docstrings_follow_the_template():
    assert [f"{place}: {departure}" for place, text in docstrings() for departure in departures(text)] == []


GOOD = """Sum of ``a`` and :func:`b`, as in :math:`x_i`.

Args:
    a: first number. It may be
        None.
    *b: mask of the numbers (True = it counts).
    **options: Lipschitz constant, or NaN.

Raises:
    ValueError: ``a`` is negative.
    TypeError: B is no integer.

Source:
    The paper.

Example:
    >>> len("`a`")
    3
"""


def test_the_template_itself_passes():
    assert list(departures(GOOD)) == []


@pytest.mark.parametrize(
    ("right", "wrong", "departure"),
    [
        (":func:`b`", "`b`", "neither a role nor code"),
        ("Example:", "Examples:", "no section of the template"),
        ("Source:\n    The", "Source: the", "text beside a heading"),
        ("\n\nSource", "\nSource", "no blank line above"),
        ("Source:\n    The paper", "Source:\nThe paper", "no blank line above or no indented block below"),
        ("Source:", "Shape:", "order: Shape after Raises"),
        ("Raises:", "Args:", "order: Args after Args"),
        ("        None.", "None.", "text outside of a section"),
        ("a: first", "first", "no entry"),
        ("a: first", "a: First", "capital letter: a: First"),
        ("a: first", "a: A", "capital letter: a: A"),
        ("``a`` is", "If ``a`` is", "the condition alone"),
    ],
)
def test_every_departure_is_found(right, wrong, departure):
    assert right in GOOD
    assert any(found.startswith(departure) for found in departures(GOOD.replace(right, wrong)))
