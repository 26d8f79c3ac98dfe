"""Labels and slides of patients in several tables, which are joined by patient."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil import FileError
from disentangled_mil.data import read_cohort, write_bag
from disentangled_mil.data._clinical import read_clinical
from disentangled_mil.data._section import Section
from disentangled_mil.data.cohort_file import described_files
from disentangled_mil.tasks import Classification, DiscreteSurvival
from disentangled_mil.train.check_cohort import check_cohort
from disentangled_mil.train.cohort_digest import cohort_digest
from disentangled_mil.train.options import TrainingOptions

LABELS = "PATIENT,MSI,os_days,event\nA,high,10,1\nB,low,7,0\nC,,9,1\n"
SLIDES = "PATIENT,FILENAME\nB,b1.h5\nA,a1.h5\nA,a2.h5\nD,d1.h5\n"
STAMP = """
[clinical]
table = ["labels.csv", "slides.csv"]
patient = "PATIENT"
slides = "FILENAME"
rows = "slide"

[tasks.msi]
kind = "classification"
column = "MSI"

[tasks.survival]
kind = "survival"
time = "os_days"
event = "event"

[slides.20x]
folder = "20x"
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """The two tables of STAMP; C has no slide, and D no label."""
    (tmp_path / "20x").mkdir()
    for number, name in enumerate(("a1", "a2", "b1")):
        write_bag(tmp_path / "20x" / f"{name}.h5", torch.full((number + 2, 5), float(number)))
    for name, text in (("labels.csv", LABELS), ("slides.csv", SLIDES), ("cohort.toml", STAMP)):
        (tmp_path / name).write_text(text)
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


LEFT_OUT = (
    r"\[clinical\] left out are 2 of 4 patients whom one of the tables lacks; .*labels\.csv lacks 1: D; "
    r".*slides\.csv lacks 1: C"
)


def test_a_clinical_table_and_a_slide_table_are_joined_and_others_are_counted(folder):
    with pytest.warns(UserWarning, match=LEFT_OUT):
        cohort = read_cohort(folder / "cohort.toml")
    assert [(sample.name, sample.patient) for sample in cohort.samples] == [("a1", "A"), ("a2", "A"), ("b1", "B")]
    assert cohort.labels("msi")["label"].to_dict() == {"A": "high", "B": "low"}
    assert cohort.labels("survival")["event"].to_dict() == {"A": True, "B": False}
    assert list(cohort.clinical) == ["MSI", "os_days", "event"]
    check = check_cohort(folder / "cohort.toml", TrainingOptions(epochs=1), task="survival", folds=2)
    assert any(re.search(LEFT_OUT, warning) for warning in check.warnings)


def test_every_table_is_an_input_that_a_run_protects_and_recognizes(folder):
    assert {folder / "labels.csv", folder / "slides.csv"} < set(described_files(folder / "cohort.toml"))
    change(folder / "slides.csv", "D,d1.h5\n", "")
    change(folder / "labels.csv", "C,,9,1\n", "")
    digest = cohort_digest(read_cohort(folder / "cohort.toml"))
    change(folder / "labels.csv", "low", "high")
    assert cohort_digest(read_cohort(folder / "cohort.toml")) != digest


def test_columns_of_patients_may_differ_and_so_may_the_dialects(folder):
    """The clinical table of a portal beside a sample sheet; a marker and a decimal comma."""
    (folder / "labels.csv").rename(folder / "labels.txt")
    portal = "#Patient;MSI status\n#STRING;STRING\ncase;MSI;os_days;event\nA;'--;10,5;1\nB;low;7,25;0\n"
    (folder / "labels.txt").write_text(portal)
    change(folder / "slides.csv", "D,d1.h5\n", "")
    change(folder / "cohort.toml", "labels.csv", "labels.txt")
    change(folder / "cohort.toml", 'patient = "PATIENT"', 'patient = ["case", "PATIENT"]')
    cohort = read_cohort(folder / "cohort.toml")
    assert cohort.labels("survival")["time"].to_dict() == {"A": 10.5, "B": 7.25}
    assert cohort.labels("msi")["label"].to_dict() == {"B": "low"}


def test_labels_of_the_patients_and_the_samples_of_a_portal_are_joined(folder):
    """The pair of cBioPortal: a patient has several samples, whose labels agree."""
    header = "#Patient Identifier\t{0}\n#Patient\t{0}\n#STRING\tSTRING\n#1\t1\nPATIENT_ID\t{0}\t{1}\n"
    patients = header.format("OS_STATUS", "OS_MONTHS") + "TCGA-02-0001\t1:DECEASED\t4.5\nTCGA-02-0002\t0:LIVING\t9\n"
    samples = header.format("SAMPLE_ID", "SUBTYPE") + (
        "TCGA-02-0001\tTCGA-02-0001-01\tCIN\nTCGA-02-0001\tTCGA-02-0001-06\tCIN\nTCGA-02-0002\tTCGA-02-0002-01\tGS\n"
    )
    (folder / "data_clinical_patient.txt").write_text(patients)
    (folder / "data_clinical_sample.txt").write_text(samples)
    for old, new in (("a1", "TCGA-02-0001-01Z-00-DX1.4f-2"), ("b1", "TCGA-02-0002-01Z-00-DX1.9c")):
        (folder / "20x" / f"{old}.h5").rename(folder / "20x" / f"{new}.h5")
    (folder / "20x" / "a2.h5").unlink()
    (folder / "cohort.toml").write_text("""
[clinical]
table = ["data_clinical_patient.txt", "data_clinical_sample.txt"]
patient = "PATIENT_ID"
slides_by_name = true
rows = "slide"
barcodes = "patient"

[tasks]
subtype = {kind = "classification", column = "SUBTYPE"}
survival = {kind = "survival", time = "OS_MONTHS", event = "OS_STATUS"}

[slides.20x]
folder = "20x"
""")
    cohort = read_cohort(folder / "cohort.toml")
    assert [sample.name for sample in cohort.samples] == ["TCGA-02-0001-01Z-00-DX1.4f-2", "TCGA-02-0002-01Z-00-DX1.9c"]
    assert cohort.labels("subtype")["label"].tolist() == ["CIN", "GS"]
    assert cohort.labels("survival").to_dict("list") == {"time": [4.5, 9.0], "event": [True, False]}
    change(folder / "data_clinical_sample.txt", "0001-06\tCIN", "0001-06\tGS")
    message = (
        r"data_clinical_sample\.txt, line 7: rows of one patient must have the same 'SUBTYPE', got 'GS' and 'CIN' "
        r"\(.*data_clinical_sample\.txt, line 6\)"
    )
    with pytest.raises(FileError, match=message):
        read_cohort(folder / "cohort.toml")


@pytest.mark.parametrize(
    ("file", "old", "new", "message", "source"),
    [
        (
            "slides.csv",
            SLIDES,
            "PATIENT,FILENAME,MSI\nA,a1.h5,high\nB,b1.h5,high\n",
            r"slides\.csv, line 3: rows of one patient must have the same 'MSI', got 'high' and 'low' \(.*labels\.csv, "
            r"line 3\)",
            "slides.csv",
        ),
        (
            "slides.csv",
            SLIDES,
            "PATIENT,FILENAME,event2\nA,a1.h5,1\nB,b1.h5,2\n",
            r"labels\.csv, line 3 and .*slides\.csv, line 3: task 'survival', column 'event2': event must be 1",
            "labels.csv",
        ),
        (
            "labels.csv",
            "B,low",
            "A,low",
            r"csv, line 3: rows of one .* \(.*labels\.csv, line 2\)",
            "labels.csv",
        ),
        ("slides.csv", "B,b1", ",b1", r"slides\.csv, line 2: every patient must have a name", "slides.csv"),
        ("slides.csv", "B,b1.h5", "B,", r"slides\.csv, line 2: .* got none for 'B'; 1 rows name none", "slides.csv"),
        ("slides.csv", SLIDES, "PATIENT,FILENAME\n", r"slides\.csv: must have at least one patient", "slides.csv"),
        (
            "slides.csv",
            "PATIENT",
            "case",
            r"slides\.csv: must have one column 'PATIENT', got 0 among case, FILENAME; \[clinical\] patient names",
            "slides.csv",
        ),
        (
            "slides.csv",
            "FILENAME",
            "FILENAMES",
            r"labels\.csv and .*slides\.csv: must have one column 'FILENAME', got 0 among PATIENT, MSI, .*, FILENAMES; "
            r"slides_by_name = true needs none, .* \(did you mean 'FILENAMES'",
            "labels.csv",
        ),
        (
            "labels.csv",
            "MSI,",
            "FILENAME,",
            r"must have one column 'MSI', got 0",
            "labels.csv",
        ),
        (
            "slides.csv",
            "PATIENT",
            "MSI",
            r"slides\.csv: must have one column 'PATIENT', got 0",
            "slides.csv",
        ),
        (
            "slides.csv",
            SLIDES,
            "PATIENT,FILENAME\nX,b1.h5\n",
            r"\[clinical\] tables must have a patient in common, got none; .*labels\.csv lacks 1: X; .* 3: A, B, C$",
            "cohort.toml",
        ),
        (
            "cohort.toml",
            '"PATIENT"',
            '["PATIENT", "case", "id"]',
            r"\[clinical\] patient must name one column, or one for each of the 2 tables, got \['PATIENT', 'ca",
            "cohort.toml",
        ),
        (
            "cohort.toml",
            '"slides.csv"',
            '"labels.csv"',
            "table must name different files, got .*labels",
            "cohort.toml",
        ),
        ("cohort.toml", '["labels.csv", "slides.csv"]', "[]", "table must name at least one file", "cohort.toml"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*left out are")
def test_mistakes_in_several_tables_name_the_files_and_lines(folder, file, old, new, message, source):
    change(folder / file, old, new)
    if "event2" in new:
        change(folder / "cohort.toml", 'event = "event"', 'event = "event2"')
    with pytest.raises(FileError, match=message) as error:
        read_cohort(folder / "cohort.toml")
    assert error.value.file == folder / source


def test_slides_stand_in_one_table(folder):
    change(folder / "labels.csv", "os_days,event\n", "os_days,event,FILENAME\n")
    (folder / "labels.csv").write_text(re.sub(r"(?m)(,[01])$", r"\1,x", (folder / "labels.csv").read_text()))
    message = r"slides\.csv: slides must stand in one table, got a column 'FILENAME' here and in .*labels\.csv"
    with pytest.raises(FileError, match=message):
        read_cohort(folder / "cohort.toml")


def test_barcodes_of_samples_in_one_table_are_recognized_with_a_remedy(folder):
    (folder / "labels.csv").write_text(LABELS.replace("A,", "TCGA-02-0001,").replace("B,", "TCGA-02-0002,"))
    (folder / "slides.csv").write_text(SLIDES.replace("A,", "TCGA-02-0001-01Z,").replace("B,", "TCGA-02-0002-01Z,"))
    message = r"must have a patient in common, got none; .*; TCGA barcodes agree with barcodes = \"patient\""
    with pytest.raises(FileError, match=message):
        read_cohort(folder / "cohort.toml")
    change(folder / "cohort.toml", 'rows = "slide"', 'rows = "slide"\nbarcodes = "patient"')
    with pytest.warns(UserWarning, match="left out are 2 of 4 patients whom one of the tables lacks"):
        assert read_cohort(folder / "cohort.toml").patients == ("TCGA-02-0001", "TCGA-02-0002")


TASKS = {
    "msi": Classification.define(column="msi"),
    "survival": DiscreteSurvival.define(time="time", event="event"),
}
COLUMNS = ("slides", "msi", "time", "event", "age")


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(("high", "low", "NA")), st.integers(1, 9), st.sampled_from("01"), st.integers(20, 90)
        ),
        min_size=1,
        max_size=6,
    ),
    places=st.lists(st.integers(0, 2), min_size=len(COLUMNS), max_size=len(COLUMNS)),
    agreeing=st.sets(st.sampled_from(COLUMNS[1:])),
    order=st.randoms(use_true_random=False),
)
def test_a_table_in_parts_is_the_table_whatever_its_parts(tmp_path_factory, rows, places, agreeing, order):
    """Every column is in one of three tables, and some are in all; rows have any order in the last two."""
    folder = tmp_path_factory.mktemp("parts")
    cells = [
        {"patient_id": f"P{n}", "slides": f"s{n}", **dict(zip(COLUMNS[1:], map(str, row), strict=True))}
        for n, row in enumerate(rows)
    ]

    def write(name: str, columns: list[str], records: list[dict[str, str]]) -> None:
        lines = [",".join(record[column] for column in columns) for record in records]
        (folder / name).write_text("\n".join([",".join(columns), *lines]) + "\n")

    def read(table: object):
        section = Section("cohort.toml: [clinical]", {"table": table})
        return read_clinical(folder, section, TASKS, without_slides=False)

    write("whole.csv", ["patient_id", *COLUMNS], cells)
    names = []
    for part in range(3):
        own = [c for c, place in zip(COLUMNS, places, strict=True) if place == part or c in agreeing]
        names.append(f"part{part}.csv")
        write(names[-1], ["patient_id", *own], cells if part == 0 else order.sample(cells, len(cells)))
    whole, joined = read("whole.csv"), read(names)
    assert joined.slides == whole.slides
    assert joined.table[whole.table.columns].equals(whole.table)
    assert read(["whole.csv"]).table.equals(whole.table)
