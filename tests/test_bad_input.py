"""Faults of a cohort's files, as users have them: one message with place and remedy, and nothing half-written."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from disentangled_mil.cli import main

COORDS = np.array([[x * 224, y * 224] for y in range(3) for x in range(4)])
PATIENTS = [f"p{number}" for number in range(12)]
DESCRIPTION = """
[clinical]
table = "clinical.csv"
[tasks.label]
kind = "classification"
column = "label"
[tasks.survival]
kind = "survival"
time = "time"
event = "event"
[slides.20x]
folder = "20x"
[slides.10x]
folder = "10x"
[expression]
table = "expression.csv"
[genes]
gmt = "sets.gmt"
tumor = ["TUMOR"]
tme = ["TME"]
"""


def write_slide(folder: Path, name: str, features: object, coords: object = COORDS, **notes: object) -> None:
    """A slide as TRIDENT writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.h5", "w") as file:
        file["features"] = features
        file["coords"] = coords
        file["coords"].attrs.update(patch_size=224, patch_size_level0=224, overlap=0, **notes)


def write_table(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A cohort of two magnifications with expression, whose files are right."""
    source = np.random.default_rng(0)
    for name in PATIENTS:
        for folder in ("20x", "10x"):
            write_slide(tmp_path / folder, name, source.normal(size=(12, 4)).astype("f4"))
    rows = [f"{name},{name}.svs,{'ab'[n % 2]},{n + 1},{int(n % 3 > 0)}" for n, name in enumerate(PATIENTS)]
    write_table(tmp_path / "clinical.csv", "patient_id,slides,label,time,event", *rows)
    genes = [",".join([name, *map(str, source.random(6).round(3))]) for name in PATIENTS]
    write_table(tmp_path / "expression.csv", "patient,EGFR,CD2,CD3E,MYC,KRAS,CD4", *genes)
    (tmp_path / "sets.gmt").write_text("TUMOR\tsource\tEGFR\tMYC\tKRAS\nTME\tsource\tCD2\tCD3E\tCD4\n")
    (tmp_path / "cohort.toml").write_text(DESCRIPTION)
    return tmp_path


def edit(name: str, old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    """A fault in a text file."""

    def spoil(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, count))

    return spoil


def slide(coords: object = COORDS, value: float = 1.0, width: int = 4, **notes: object) -> Callable[[Path], None]:
    """A fault in one slide."""

    def spoil(folder: Path) -> None:
        features = np.ones((12, width), "f4")
        features[7] = value
        write_slide(folder / "20x", "p3", features, coords, **notes)

    return spoil


def truncated(folder: Path) -> None:
    path = folder / "20x" / "p3.h5"
    path.write_bytes(path.read_bytes()[:1500])


def half_the_slides(folder: Path) -> None:
    for name in PATIENTS[::2]:
        (folder / "20x" / f"{name}.h5").unlink()


def stray_index(folder: Path) -> None:
    path = folder / "expression.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    write_table(path, *(f"{'' if n == 0 else n - 1},{line}" for n, line in enumerate(lines)))


# The fault, the task that meets it, and parts of the message: the place and the requirement, then the remedy.
FAULTS = {
    "truncated HDF5": (truncated, "p3.h5: must be a complete HDF5 file", "write the file again"),
    "swapped columns of coordinates": (
        slide(np.fliplr(COORDS + np.array([30_000, 0])), level0_width=40_000, level0_height=20_000),
        "p3.h5: coords must be (x, y) inside of the slide of 40000 x 20000",
        "x and y are swapped",
    ),
    "negative coordinates": (
        slide(COORDS - 224),
        "p3.h5: coords must lie between 0 and 10,000,000, got -224 in row 0",
        "write the coordinates of upper left corners",
    ),
    "huge coordinates": (slide(COORDS * 10**9), "p3.h5: coords must lie between 0 and 10,000,000", "in row 1"),
    "coordinates that are not finite": (slide(COORDS * np.nan), "p3.h5: coords must be finite, got nan in row 0", ""),
    "too few coordinates": (slide(COORDS[:5]), "p3.h5: coords must have shape [N, 2] = [12, 2]", "got [5, 2]"),
    "another extractor's width": (slide(width=5), "feature width must be 4 as in", "got 5"),
    "another magnification than the section says": (
        slide(target_magnification=10),
        "p3.h5: must have tiles at 20x, got 10x, in",
        "are folders swapped, or is the name wrong?",
    ),
    "a magnification folder with half the slides": (
        half_the_slides,
        "p0.h5: there is no such file",
        "6 of 12 slides of the clinical table are missing in",
    ),
    "duplicate patients": (
        edit("clinical.csv", "p3,p3.svs", "p2,p3.svs"),
        "clinical.csv, line 5: every patient must have a name and one row, got 'p2' again",
        'set [clinical] rows = "slide"',
    ),
    "a time of zero": (edit("clinical.csv", ",4,", ",0,"), "clinical.csv, line 5: task 'survival'", "empty the cell"),
    "a negative time": (edit("clinical.csv", ",4,", ",-4,"), "clinical.csv, line 5: task 'survival'", "got '-4'"),
    "an event of 2": (edit("clinical.csv", ",1,0", ",1,2"), "clinical.csv, line 2: task 'survival'", "got '2'"),
    "labels that are all alike": (
        edit("clinical.csv", ",b,", ",a,", 99),
        "task 'label'",
        "labels must hold at least two classes, got only 'a'; name another column",
    ),
    "a table that is not there": (
        edit("cohort.toml", '"expression.csv"', '"rna.csv"'),
        "rna.csv",
        "[expression] table",
    ),
    "a gene of negative counts": (
        edit("expression.csv", "p3,0", "p3,-0"),
        "cohort.toml: [expression] log1p needs values >= 0, got -0.",
        "for patient 'p3', gene 'EGFR': log-transformed or z-scored tables need log1p=False",
    ),
    "sets without a gene of the table": (
        edit("sets.gmt", "EGFR\tMYC\tKRAS", "ENSG1"),
        "cohort.toml: [expression] table must hold at least one of the 1 genes of 'tumor' (ENSG1), got EGFR, CD2",
        "",
    ),
    "a stray index column before the genes": (
        stray_index,
        "expression.csv, line 2: the first column must hold patients or genes, got row numbers (0, 1, ...)",
        "patient = 'patient', or write the table without the index",
    ),
    "patients under other names": (
        edit("expression.csv", "\np", "\nq", 99),
        "expression.csv: patients must be those of the clinical table, got 12 others: q0, q1",
        "write both tables with the same names",
    ),
    "a label of one patient": (
        edit("clinical.csv", "p3.svs,b", "p3.svs,c"),
        "every label must have at least 3 patients (one patient in each of the 3 folds), got 1 with 'c'",
        "merge rare labels, leave their patients out, or use fewer folds",
    ),
    "a slide outside of its folder": (
        edit("clinical.csv", "p3.svs", "../10x/p3.svs"),
        "clinical.csv, line 5: slides must lie inside the folders of slides, got '../10x/p3'",
        "name the file alone",
    ),
    "a folder that is not there": (
        edit("cohort.toml", '"20x"', '"40x"'),
        "cohort.toml: [slides.20x] folder must be there, got",
        "40x: no such folder; correct the path, or extract the features first",
    ),
    "a description that is not there": (
        lambda folder: (folder / "cohort.toml").unlink(),
        "cohort.toml: there is no such file",
        "the command init writes a description of a folder",
    ),
    "expression that is no number": (edit("expression.csv", "p3,", "p3,x"), "expression.csv, line 5, gene 'EGFR'", "x"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_fault_is_refused_with_its_place_and_remedy(
    cohort: Path, capsys: pytest.CaptureFixture[str], command: str, fault: str
) -> None:
    spoil, place, remedy = FAULTS[fault]
    spoil(cohort)
    out = cohort / "run"
    arguments = [command, str(cohort / "cohort.toml")]
    if command == "train":
        arguments += ["--task", "survival" if "survival" in place else "label", "--out", str(out), "--epochs", "1"]
    assert main(arguments) == 2
    said = "".join(capsys.readouterr())
    assert place in said
    assert remedy in said
    assert not out.exists()


def test_tiles_that_are_not_finite_are_refused_before_anything_is_trained(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide(value=np.nan)(cohort)
    out = cohort / "run"
    assert main(["train", str(cohort / "cohort.toml"), "--task", "label", "--out", str(out)]) == 2
    assert "p3.h5: features must be finite, got nan in row 7, column 0" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_without_permission_is_named(
    cohort: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "listdir", refuse)  # root may list every folder
    assert main(["check", str(cohort / "cohort.toml")]) == 2
    said = capsys.readouterr().err
    assert "20x: must be readable, got no permission to list its files; give yourself access, e.g. by chmod" in said


def test_a_right_cohort_has_neither_errors_nor_unfounded_warnings(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(cohort / "cohort.toml")]) == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert all("are few for 3 folds" in line for line in warned)


def test_unicode_names_and_a_stray_index_column_are_read(cohort: Path) -> None:
    for folder in ("20x", "10x"):
        (cohort / folder / "p3.h5").rename(cohort / folder / "Mu\u0308ller.h5")  # as macOS writes it
    edit("clinical.csv", "p3.svs", "M\u00fcller.svs")(cohort)
    lines = (cohort / "clinical.csv").read_text(encoding="utf-8").splitlines()
    write_table(cohort / "clinical.csv", *(f"{'' if n == 0 else n - 1},{line}" for n, line in enumerate(lines)))
    assert main(["check", str(cohort / "cohort.toml")]) == 0


def test_constant_genes_are_warned_about(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, *rows = (line.split(",") for line in (cohort / "expression.csv").read_text().splitlines())
    table = [header, *([name, "2.5", *rest] for name, _, *rest in rows)]
    write_table(cohort / "expression.csv", *map(",".join, table))
    assert main(["check", str(cohort / "cohort.toml"), "--strict"]) == 2
    assert "1 genes of the subspaces have one value for all patients (EGFR)" in capsys.readouterr().out


def test_rows_of_one_patient_may_write_a_number_in_two_ways(cohort: Path) -> None:
    edit("clinical.csv", "p1,p1.svs,b,2,1", "p0,p1.svs,a,1.0,0")(cohort)
    edit("cohort.toml", 'table = "clinical.csv"', 'table = "clinical.csv"\nrows = "slide"')(cohort)
    assert main(["check", str(cohort / "cohort.toml")]) == 0
