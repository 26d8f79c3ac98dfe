"""Slides of patients by the names of the files, where no table names slides."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil import FileError
from disentangled_mil.data import read_cohort, write_bag
from disentangled_mil.data._slides_by_name import patient_in

COHORT = """
[clinical]
table = "clinical.csv"
slides_by_name = true

[tasks.grading]
kind = "classification"
column = "grade"

[slides]
missing = "error"

[slides.10x]
folder = "10x"

[slides.20x]
folder = "20x"
"""
NAMES = st.text(st.sampled_from("P1é_.- "), min_size=1, max_size=6)


@pytest.fixture
def folder(tmp_path) -> Path:
    """P1, P1_2 and P12, whose names begin alike."""
    for magnification in ("10x", "20x"):
        (tmp_path / magnification).mkdir()
    for name in ("P1", "P1_slide2", "P1_2.svs", "P12-a", "P12.b"):
        write(tmp_path, name)
    (tmp_path / "clinical.csv").write_text("patient_id,grade\nP1_2,G3\nP12,G2\nP1,G2\n")
    (tmp_path / "cohort.toml").write_text(COHORT)
    return tmp_path


def write(folder: Path, name: str, *magnifications: str) -> None:
    for magnification in magnifications or ("10x", "20x"):
        write_bag(folder / magnification / f"{name}.h5", torch.ones(3, 5))


def test_the_longest_patient_with_whom_a_file_begins_has_the_slide(folder):
    cohort = read_cohort(folder / "cohort.toml")
    assert [(sample.patient, sample.name) for sample in cohort.samples] == [
        ("P1_2", "P1_2"),
        ("P12", "P12-a"),
        ("P12", "P12.b"),
        ("P1", "P1"),
        ("P1", "P1_slide2"),
    ]
    assert {path.name for path in cohort.samples[0].bags["20x"].paths} == {"P1_2.svs.h5"}
    assert cohort.labels("grading")["label"].to_dict() == {"P1_2": "G3", "P12": "G2", "P1": "G2"}


def test_a_file_of_a_patient_whom_a_table_lacks_is_no_other_patients(folder):
    (folder / "more.csv").write_text("patient_id,age\nP1,60\nP12,70\n")
    (folder / "cohort.toml").write_text(COHORT.replace('"clinical.csv"', '["clinical.csv", "more.csv"]'))
    with pytest.warns(UserWarning, match="left out are 1 of 3 patients whom one of the tables lacks"):
        cohort = read_cohort(folder / "cohort.toml")
    assert [(s.patient, s.name) for s in cohort.samples if s.patient == "P1"] == [("P1", "P1"), ("P1", "P1_slide2")]


def test_barcodes_of_slides_begin_with_the_patient(folder):
    for path in (*folder.glob("*x/*"),):
        path.unlink()
    for name in ("TCGA-02-0047-01Z-00-DX1.7b9c-43", "TCGA-02-0047-01Z-00-DX2.1f", "TCGA-06-0125-01Z-00-DX1.c0"):
        write(folder, name)
    (folder / "clinical.csv").write_text("patient_id,grade\nTCGA-02-0047-01A,G3\nTCGA-06-0125-01A,G2\n")
    message = r"got no file .* 'TCGA-02-0047-01A'; 2 of 2 patients .*; names of files are TCGA barcodes: set barcodes"
    with pytest.warns(UserWarning, match="left out are 3 files"), pytest.raises(FileError, match=message):
        read_cohort(folder / "cohort.toml")
    (folder / "cohort.toml").write_text(COHORT.replace("= true", '= true\nbarcodes = "patient"'))
    counted = [sample.patient for sample in read_cohort(folder / "cohort.toml").samples]
    assert counted == ["TCGA-02-0047", "TCGA-02-0047", "TCGA-06-0125"]


def test_files_of_no_patient_are_counted_and_patients_without_a_file_are_refused_or_left_out(folder):
    write(folder, "P123")
    write(folder, "control", "20x")
    (folder / "clinical.csv").write_text("patient_id,grade\nP1_2,G3\nP12,G2\nP1,G2\nP4,G2\nP5,G3\n")
    left_out = r"\[slides\] left out are 2 files whose names begin with no patient .*: P123, control$"
    message = (
        r"clinical\.csv, line 5: every patient must have a slide, got no file whose name begins with 'P4'; 2 of 5 "
        r"patients have none: remove their rows, .*; missing = \"allow\" in \[slides\] leaves them out$"
    )
    with pytest.warns(UserWarning, match=left_out), pytest.raises(FileError, match=message) as error:
        read_cohort(folder / "cohort.toml")
    assert error.value.file == folder / "clinical.csv"
    (folder / "cohort.toml").write_text(COHORT.replace('"error"', '"allow"'))
    with (
        pytest.warns(UserWarning, match=left_out),
        pytest.warns(UserWarning, match=r"left out are 2 of 5 patients without a slide with tiles \(P4, P5\)"),
    ):
        assert read_cohort(folder / "cohort.toml").patients == ("P1_2", "P12", "P1")


def test_a_slide_may_lack_a_magnification_only_where_it_is_allowed(folder):
    (folder / "20x" / "P12.b.h5").unlink()
    message = r"20x/P12\.b\.h5: there is no such file, .*: correct .* or folder, or remove their files; missing"
    with pytest.raises(FileNotFoundError, match=message):
        read_cohort(folder / "cohort.toml")
    (folder / "cohort.toml").write_text(COHORT.replace('"error"', '"allow"'))
    tokens = [int(sample.load()["20x"].mask.sum()) for sample in read_cohort(folder / "cohort.toml").samples]
    assert tokens == [3, 3, 0, 3, 3]


def test_a_column_of_slides_and_their_names_exclude_each_other(folder):
    (folder / "cohort.toml").write_text(COHORT.replace("= true", '= true\nslides = "slides"'))
    with pytest.raises(FileError, match="slides names a column, so slides_by_name = true must go without it, got both"):
        read_cohort(folder / "cohort.toml")


@given(name=NAMES, patients=st.sets(NAMES, max_size=8))
def test_a_file_is_of_the_longest_patient_that_ends_where_no_letter_or_digit_follows(name, patients):
    found = patient_in(name, patients)
    begun = [p for p in patients if name == p or (name.startswith(p) and not name[len(p)].isalnum())]
    assert found == max(begun, key=len, default=None)


@given(patient=NAMES, rest=NAMES, others=st.sets(NAMES, max_size=8))
def test_further_patients_take_a_file_only_by_a_longer_name(patient, rest, others):
    name = f"{patient}_{rest}"
    found = patient_in(name, {patient, *others})
    assert found == patient or len(found) > len(patient)
    assert found in (patient, patient_in(name, others))
