"""What a check of a cohort found."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from .._checks import first_of


@dataclass
class CohortCheck:
    """The result of a check.

    Attributes:
        lines: lines that say what was understood.
        warnings: points that may be wrong, with the remedy.
        errors: points that a run would refuse.
    """

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def say(self, title: str, *texts: str) -> None:
        """Add lines under a title."""
        for number, text in enumerate(texts):
            self.lines.append(f"{title if number == 0 else '':<16}{text}")

    def __str__(self) -> str:
        """All of it, warnings and errors last."""
        lines = list(self.lines)
        for title, texts in (("warning", self.warnings), ("error", self.errors)):
            lines += [f"{title}: {text}" for text in texts]
        return "\n".join([*lines, f"{len(self.warnings)} warnings, {len(self.errors)} errors"])


def lacking(what: str, patients: Iterable[str], there: Collection[str]) -> list[str]:
    """A line with the patients who lack something, if there are any."""
    absent = [patient for patient in patients if patient not in there]
    if not absent:
        return []
    return [f"{what}: {len(absent)} patients ({first_of(absent)})"]
