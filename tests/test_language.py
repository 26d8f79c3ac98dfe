"""Prose, comments and names of the repository: American spelling, and no phrases that readers stumble over."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".css", ""}
# Phrases, and what to write in their place.
PHRASES = {
    r"\bso (?:many|much)\b": "a number or a noun",
    r"\bas many\b[^.;]{0,60}\bas\b": "'the same number' or 'equal numbers'",
    r"\bof which\b": "a sentence of its own",
    r"\bright of way\b": "what the code computes",
    r"\bsurer\b": "more confident",
    r"\bwhat (?:is|was) (?:asked for|aimed at)\b": "a noun, such as 'the requested size'",
    r"\bis aimed at\b": "the goal as a number",
}
BRITISH = (
    r"(?:ab|de|un)?normalis\w+|standardis\w+|initialis\w+|optimis\w+|summaris\w+|generalis\w+|regularis\w+",
    r"\w*neighbour\w*|\w*colour\w*|\w*behaviour\w*|\w*tumour\w*|favour\w*|labelled|modell\w+|travell\w+",
    r"\w*(?<!per)centr(?:e|es|ed)\b|grey\b|\w*metres?\b(?<!parametres)|licence\w*|whilst|recognis\w+|\w*analys(?:e|ed|es|ing)\b",
)


@cache
def texts() -> dict[str, str]:
    """The text of every file that git tracks, except this one."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs a git checkout, which lists the files")
    files = [REPOSITORY / name for name in listed.stdout.splitlines()]
    return {
        str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
        for path in files
        if path.suffix in SUFFIXES and path.name != "LICENSE" and path != Path(__file__) and path.is_file()
    }


def hits(pattern: str) -> list[str]:
    """Where a pattern occurs, as ``file:line: text``, also across the lines of a paragraph or comment."""
    search = re.compile(pattern.replace(" ", r"(?:[ ]|\s*\n[ \t]*(?:#:?[ \t]*)?)"), re.IGNORECASE)
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())}"
        for name, text in texts().items()
        for match in search.finditer(text)
    ]


@pytest.mark.parametrize("phrase", PHRASES)
def test_nobody_stumbles_over_a_phrase(phrase):
    assert hits(phrase) == [], f"say instead: {PHRASES[phrase]}"


def test_spelling_is_american():
    assert hits(rf"\b(?:{'|'.join(BRITISH)})") == []


def test_patterns_find_what_they_are_for():
    for phrase in ("so many pairs", "right of way", "the surer part", "neighbours", "Normalised", "centre", "tumour"):
        patterns = [*PHRASES, rf"\b(?:{'|'.join(BRITISH)})"]
        assert any(re.search(pattern, phrase, re.IGNORECASE) for pattern in patterns), phrase
    for fine in ("percent", "centered", "parameters", "diameter", "neighbor", "colors", "modeling"):
        assert not re.search(rf"\b(?:{'|'.join(BRITISH)})", fine, re.IGNORECASE), fine
