"""Small cohorts for tests."""

from dataclasses import replace
from pathlib import Path

from disentangled_mil.data.planted import PlantedCohort, planted_cohort
from disentangled_mil.tasks import DiscreteSurvival


def small_planted(patients: int = 34, *, seed: int = 3) -> PlantedCohort:
    """A planted cohort of small slides with few genes; survival has three intervals."""
    planted = planted_cohort(patients, seed=seed, grid=(5, 4), width=8, tumor_genes=8, tme_genes=8, other_genes=2)
    survival = DiscreteSurvival.define(time="time", event="event", bins=3)
    cohort = replace(planted.cohort, tasks={**planted.cohort.tasks, "survival": survival})
    return planted._replace(cohort=cohort)


def replace_text(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def copy_with_change(description: Path, folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of a written cohort in which a text of one file is replaced; slides and expression are links."""
    for file in ("clinical.csv", "gene_sets.gmt", "cohort.toml"):
        (folder / file).write_text((description.parent / file).read_text())
    for file in ("slides", "expression.csv.gz"):
        (folder / file).symlink_to(description.parent / file)
    replace_text(folder / name, old, new)
    return folder / "cohort.toml"
