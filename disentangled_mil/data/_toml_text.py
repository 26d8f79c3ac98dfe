"""Values, keys and comments of a TOML file; Python's library reads such files and writes none."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path


def relative(path: Path, base: Path) -> str:
    """A path from a folder, with slashes on every system."""
    return Path(os.path.relpath(path, base)).as_posix()


def quoted(text: str) -> str:
    """A TOML string; JSON leaves one character as it is that TOML does not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def bare(name: str) -> str:
    """A TOML key."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else quoted(name)


def shown(values: Sequence[str] | Mapping[str, object], count: int = 8) -> str:
    """The first few values, for a comment of one line, in which TOML allows no control characters."""
    listed = ["".join(c for c in " ".join(value.split()) if c.isprintable()) for value in values]
    return ", ".join(listed[:count]) + (", ..." if len(listed) > count else "")


def one_or_more(texts: Sequence[str]) -> str:
    """A TOML string, or a list of strings if there are several texts."""
    return quoted(texts[0]) if len(texts) == 1 else f"[{', '.join(map(quoted, texts))}]"
