"""Tables of a description: values are taken by type, and keys that nobody took are refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._checks import missing_key, unknown_key
from .._errors import FileError

_NAMES = {str: "text", bool: "true or false", float: "a number", int: "a whole number", dict: "a table", list: "a list"}


@dataclass
class Section:
    """One table of the description.

    Args:
        name: name of the table, which starts every error.
        content: values as they were parsed.
        known: keys that were taken so far.
        place: keys of the tables around this one, and its own, joined by dots.

    Example:
        >>> section = Section("cohort.toml: [slides]", {"bag": "slide", "tranform": "log"})
        >>> section.take("bag", str), section.take("transform", str, "none")
        ('slide', 'none')
        >>> section.end()
        Traceback (most recent call last):
        disentangled_mil._errors.FileError: cohort.toml: [slides] has the unknown key 'tranform' (did you mean ...
    """

    name: str
    content: dict[str, Any]
    known: list[str] = field(default_factory=list)
    place: str = ""

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """Take one value.

        Args:
            key: key of the value.
            kind: type of the value; whole numbers serve as float.
            default: value where the key is absent; without a default the key must be there.

        Returns:
            The value.

        Raises:
            FileError: the key is missing, or the value has another type.
        """
        self.known.append(key)
        value = self.content.get(key, default)
        if value is None:
            others = [given for given in self.content if given not in self.known]
            raise self._error(key, missing_key(key, others, listed=", ".join(self.content)))
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self._error(key, f"{key} must be {_NAMES[kind]}, got {value!r}")
        return value

    def optional(self, key: str, kind: type) -> Any:
        """One value of the given type; None where it is absent."""
        if key in self.content:
            return self.take(key, kind)
        self.known.append(key)
        return None

    def file(self, key: str, folder: Path, name: str) -> Path:
        """A file that the value of a key names, relative to a folder.

        Args:
            key: key of the value.
            folder: folder of the description.
            name: value, or an entry of it.

        Returns:
            The path.

        Raises:
            FileNotFoundError: there is no such file.
        """
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{self.name} {key} must name a file, got {str(path)!r}, which is not there")
        return path

    def files(self, key: str, folder: Path) -> list[Path]:
        """The file, or the list of files, that the value of a key names, relative to a folder; see :meth:`file`."""
        names = self.one_or_more(key)
        if not names:
            raise self._error(key, f"{key} must name at least one file, got []")
        return [self.file(key, folder, name) for name in names]

    def one_or_more(self, key: str, default: str | None = None) -> list[str]:
        """A text, which is a list of one, or a list of texts."""
        return self.texts(key) if isinstance(self.content.get(key), list) else [self.take(key, str, default)]

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        """A list of texts."""
        value: list[str] = self.take(key, list, default)
        if not all(isinstance(entry, str) for entry in value):
            raise self._error(key, f"{key} must be a list of texts, got {value!r}")
        return value

    def options(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The options that are there, each of the type of its default; a tuple is a list of texts."""
        given = {}
        for key, default in defaults.items():
            if key not in self.content:
                self.known.append(key)
            elif isinstance(default, tuple):
                given[key] = tuple(self.texts(key))
            else:
                given[key] = self.take(key, type(default))
        return given

    def section(self, key: str, default: dict[str, Any] | None = None) -> "Section":
        """A table inside this one."""
        name = f"{self.name[:-1]}.{key}]" if self.name.endswith("]") else f"{self.name} [{key}]"
        return Section(name, self.take(key, dict, default), place=self._place(key))

    def sections(self) -> dict[str, "Section"]:
        """All values that nobody took, which must be tables."""
        return {key: self.section(key) for key in self.content if key not in self.known}

    def end(self) -> None:
        """Refuse keys that nobody took."""
        unknown = [key for key in self.content if key not in self.known]
        if unknown:
            raise self._error(unknown[0], unknown_key(unknown[0], self.known))

    def _place(self, key: str) -> str:
        """A key with those of the tables around it."""
        return f"{self.place}.{key}" if self.place else key

    def _error(self, key: str, text: str) -> FileError:
        """An error about a key."""
        return FileError(f"{self.name} {text}", key=self._place(key))
