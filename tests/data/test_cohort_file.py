"""Cohort descriptions: complete ones give a cohort, every defect is named before any training."""

import re
import runpy
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from disentangled_mil import FileError
from disentangled_mil.bags import TokenSet, collate_bags
from disentangled_mil.data.cohort_file import read_cohort
from disentangled_mil.data.expression import read_expression
from disentangled_mil.data.folds import inner_split, patient_folds
from disentangled_mil.data.slide_reading import SlideReading
from disentangled_mil.data.slides import read_bag, write_bag
from disentangled_mil.train.cohort_digest import cohort_digest
from tests.support.slides import write_hdf5

CLINICAL = """patient_id,slides,diagnosis,grade,os_days,event,age
A,a1;a2,x,G2,10,1.0,50
B,b1,y,[Discrepancy],7,0,
C,c1,,G3,,,61
"""
EXPRESSION = "patient_id,EGFR,CD2,TP53\nC,1,2,3\nA,4,0,1\n"
GMT = "TUMOR\tsource\tEGFR\tTP53\nTME\tsource\tCD2\n"
COHORT = """
[clinical]
table = "clinical.csv"

[tasks.diagnosis]
kind = "classification"
column = "diagnosis"

[tasks.grading]
kind = "classification"
column = "grade"

[tasks.survival]
kind = "survival"
time = "os_days"
event = "event"

[slides.10x]
folder = "10x"

[slides.20x]
folder = "20x"

[expression]
table = "expression.csv"
fraction = 1

[genes]
gmt = "sets.gmt"
tumor = ["TUMOR"]
tme = ["TME"]
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A cohort of three patients with four slides at two magnifications."""
    for magnification, count in (("10x", 2), ("20x", 6)):
        (tmp_path / magnification).mkdir()
        for name in ("a1", "a2", "b1", "c1"):
            coords = torch.stack([torch.arange(count) % 3, torch.arange(count) // 3], dim=1) * 448
            write_bag(tmp_path / magnification / f"{name}.h5", torch.rand(count, 5), coords, step=448)
    for name, text in (("clinical.csv", CLINICAL), ("expression.csv", EXPRESSION), ("sets.gmt", GMT)):
        (tmp_path / name).write_text(text)
    (tmp_path / "COHORT.toml").write_text(COHORT)
    return tmp_path


def change(folder: Path, name: str, old: str, new: str) -> Path:
    """Replace a text in one of the cohort's files; the description, to be read."""
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    return folder / "COHORT.toml"


def test_a_description_gives_slides_labels_and_expression(folder):
    cohort = read_cohort(folder / "COHORT.toml")
    assert cohort.patients == ("A", "B", "C")
    assert [(sample.name, sample.patient) for sample in cohort.samples] == [
        ("a1", "A"),
        ("a2", "A"),
        ("b1", "B"),
        ("c1", "C"),
    ]
    assert cohort.magnifications == ("10x", "20x")
    assert cohort.width == 5
    bags = cohort.samples[1].load()
    assert torch.equal(bags["20x"].patches, read_bag(folder / "20x" / "a2.h5").bag.patches)
    assert {name: bag.grid.shapes for name, bag in bags.items()} == {"10x": ((2, 1),), "20x": ((3, 2),)}
    assert cohort.labels("diagnosis")["label"].to_dict() == {"A": "x", "B": "y"}
    assert cohort.labels("grading")["label"].to_dict() == {"A": "G2", "C": "G3"}
    assert cohort.labels("survival").to_dict("list") == {"time": [10.0, 7.0], "event": [True, False]}
    assert cohort.clinical["age"].tolist() == ["50", "", "61"]
    assert cohort.with_expression().patients == ("A", "C")
    assert cohort.fit_expression().genes == {"tumor": ("EGFR", "TP53"), "tme": ("CD2",)}


def test_the_documented_description_with_all_defaults_is_valid(folder):
    text = read_cohort.__doc__.split("none)::")[1].split("Each further table")[0]
    text = (
        text.replace("features/", "")
        .replace("tumor_tme.gmt", "sets.gmt")
        .replace("expression.csv.gz", "expression.csv")
    )
    (folder / "FULL.toml").write_text(text)
    change(folder, "COHORT.toml", "fraction = 1\n", "")
    full, short = read_cohort(folder / "FULL.toml"), read_cohort(folder / "COHORT.toml")
    assert {name: short.tasks[name] for name in full.tasks} == dict(full.tasks)
    assert full.samples == short.samples
    assert full.expression_options == short.expression_options
    assert full.gene_sets == short.gene_sets
    assert all(full.labels(name).equals(short.labels(name)) for name in full.tasks)


@pytest.mark.parametrize("order", ["a1;a2", "a2;a1"])
def test_bags_of_patients_merge_their_slides_in_the_order_of_their_names(folder, order):
    change(folder, "clinical.csv", "a1;a2", order)
    path = change(folder, "COHORT.toml", "[slides.10x]", '[slides]\nbag = "patient"\ntransform = "log"\n[slides.10x]')
    cohort = read_cohort(path)
    assert [sample.name for sample in cohort.samples] == ["A", "B", "C"]
    bag = cohort.samples[0].load()["20x"]
    halves = [read_bag(folder / "20x" / f"{name}.h5").bag.patches for name in ("a1", "a2")]
    torch.testing.assert_close(bag.patches, torch.log(torch.cat(halves, dim=1) + 1e-6))
    # Also of patients with one slide.
    assert all(isinstance(sample.load()["20x"].grid, TokenSet) for sample in cohort.samples)


def test_options_reach_their_readers(folder):
    change(folder, "COHORT.toml", "[slides.10x]", "[slides]\ndrop_augmented = true\n[slides.10x]")
    path = change(folder, "COHORT.toml", "fraction = 1", 'clip = inf\nstatistic = "mad"\nlog1p = false')
    with h5py.File(folder / "10x" / "b1.h5", "a") as file:
        file["augmented"] = [True, False]
    cohort = read_cohort(path)
    assert cohort.samples[2].load()["10x"].patches.shape == (1, 1, 5)
    pipeline = cohort.fit_expression()
    assert (cohort.expression_options.clip, pipeline.options.statistic, pipeline.options.log1p) == (None, "mad", False)


def test_the_side_of_a_cell_can_be_given_by_magnification(folder):
    path = change(folder, "COHORT.toml", 'folder = "20x"', 'folder = "20x"\nstep = 224')
    with h5py.File(folder / "20x" / "b1.h5", "a") as file:
        file["coords"].attrs["patch_size_level0"] = "unknown"
    bags = read_cohort(path).samples[2].load()
    assert {name: bag.grid.shapes for name, bag in bags.items()} == {"10x": ((2, 1),), "20x": ((5, 3),)}


def test_expression_and_several_magnifications_are_optional(folder):
    (folder / "COHORT.toml").write_text(COHORT.split("[slides.20x]")[0])
    cohort = read_cohort(folder / "COHORT.toml")
    assert cohort.expression is None
    assert cohort.magnifications == ("10x",)


def test_gene_sets_may_come_from_several_files(folder):
    (folder / "more.gmt").write_text("EXTRA\tsource\tTP53\tCD2\n")
    change(folder, "COHORT.toml", '"sets.gmt"', '["sets.gmt", "more.gmt"]')
    cohort = read_cohort(change(folder, "COHORT.toml", '["TME"]', '["TME", "EXTRA"]\nthird = ["EXTRA"]'))
    assert cohort.gene_sets == {"tumor": ("EGFR", "TP53"), "tme": ("CD2", "TP53"), "third": ("TP53", "CD2")}
    (folder / "more.gmt").write_text("TME\tsource\tCD2\n")
    with pytest.raises(ValueError, match=r"more\.gmt: gene sets must have different names, got 'TME' again"):
        read_cohort(folder / "COHORT.toml")


def test_columns_and_missing_labels_can_be_named(folder):
    change(folder, "clinical.csv", "os_days,event,age", "months,dead,event")
    change(folder, "COHORT.toml", 'column = "diagnosis"', 'column = "event"')
    change(folder, "COHORT.toml", 'column = "grade"', 'column = "diagnosis"')
    change(folder, "COHORT.toml", 'time = "os_days"\nevent = "event"', 'time = "months"\nevent = "dead"')
    cohort = read_cohort(change(folder, "COHORT.toml", '"clinical.csv"', '"clinical.csv"\nmissing = ["", "y"]'))
    assert cohort.labels("survival")["time"].tolist() == [10.0, 7.0]
    assert cohort.labels("grading")["label"].to_dict() == {"A": "x"}
    assert cohort.labels("diagnosis")["label"].to_dict() == {"A": "50", "C": "61"}


@pytest.mark.parametrize(
    "cell",
    [
        *("nan", "NaN", "None", "'--", "not reported", "Not Reported", "N/A", "n/a", "null", "Unknown", "#N/A", "<NA>"),
        *("Not Allowed To Collect", "-nan", "n.a.", "#VALUE!", "[Not  Available]", "#DIV/0!", "?", "not_reported"),
    ],
)
def test_what_tables_write_for_no_value_is_no_label(folder, cell):
    cohort = read_cohort(change(folder, "clinical.csv", "a1;a2,x,G2,10,1.0", ",".join(["a1;a2", *[cell] * 4])))
    assert cohort.labels("diagnosis")["label"].to_dict() == {"B": "y"}
    assert cohort.labels("grading")["label"].to_dict() == {"C": "G3"}
    assert cohort.labels("survival").index.tolist() == ["B"]


def test_a_value_that_a_task_names_is_a_label_though_it_looks_like_a_missing_one(folder):
    change(folder, "clinical.csv", "x,G2,10,1.0", "none,unknown,10,Dead")
    change(folder, "clinical.csv", "y,[Discrepancy],7,0", "B,G2,7,none")
    change(folder, "clinical.csv", "C,c1,,G3,,", "C,c1,NA,G3,4,")
    change(folder, "COHORT.toml", 'event = "event"', 'event = "event"\nobserved = "Dead"\ncensored = "none"')
    path = change(folder, "COHORT.toml", 'column = "diagnosis"', 'column = "diagnosis"\nclasses = ["none", "B"]')
    for missing in ("", '\nmissing = ["", "NA", "None", "unknown"]'):
        if missing:
            change(folder, "COHORT.toml", '"clinical.csv"', '"clinical.csv"' + missing)
        cohort = read_cohort(path)
        assert cohort.labels("survival")["event"].to_dict() == {"A": True, "B": False}
        assert cohort.labels("diagnosis")["label"].to_dict() == {"A": "none", "B": "B"}
        assert cohort.labels("grading")["label"].to_dict() == {"B": "G2", "C": "G3"}


def test_a_named_value_in_another_case_is_refused_and_not_lost(folder):
    change(folder, "clinical.csv", "A,a1;a2,x", "A,a1;a2,None")
    path = change(folder, "COHORT.toml", 'column = "diagnosis"', 'column = "diagnosis"\nclasses = ["none", "y"]')
    with pytest.raises(ValueError, match=r"line 2: task 'diagnosis', .* must be among 'none', 'y', got 'None'"):
        read_cohort(path)


def test_one_column_may_serve_several_purposes(folder):
    (folder / "clinical.csv").write_text("patient_id,grade\na1,G2\nb1,G3\n")
    (folder / "expression.csv").write_text(EXPRESSION.replace("C,", "b1,").replace("A,", "a1,"))
    (folder / "COHORT.toml").write_text(COHORT[: COHORT.index("[tasks.survival]")] + COHORT[COHORT.index("[slides") :])
    change(folder, "COHORT.toml", 'column = "diagnosis"', 'column = "patient_id"')
    cohort = read_cohort(change(folder, "COHORT.toml", '"clinical.csv"', '"clinical.csv"\nslides = "patient_id"'))
    assert [(sample.name, sample.patient) for sample in cohort.samples] == [("a1", "a1"), ("b1", "b1")]
    assert cohort.labels("diagnosis")["label"].to_dict() == {"a1": "a1", "b1": "b1"}
    assert list(cohort.clinical) == ["patient_id", "grade"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[clinical]", '[clinical]\nseparator = ""', r"\[clinical\] separator must not be empty"),
        (
            "fraction = 1",
            "fractoin = 1",
            r"\[expression\] has the unknown key 'fractoin' \(did you mean 'fraction'\?\); known are table, log1p",
        ),
        (
            "[genes]",
            "[gene]",
            r"COHORT\.toml: has the unknown key 'gene' \(did you mean 'genes'\?\); known are clinical, slides",
        ),
        (
            'table = "clinical.csv"',
            'tabel = "c.csv"',
            r"\[clinical\] must have the key 'table', got tabel \(did you mean 'table'",
        ),
        (
            'folder = "10x"',
            'foldr = "10x"',
            r"must have the key 'folder', got foldr \(did you mean 'folder'",
        ),
        (
            'folder = "10x"',
            'folder = "10x"\nsize = 3',
            r"\[slides\.10x\] has the unknown key 'size'; known are folder, step",
        ),
        ('folder = "10x"', 'folder = "10x"\nstep = "3"', r"\[slides\.10x\] step must be a number, got '3'"),
        ('folder = "10x"', 'folder = "10x"\nstep = 0', r"\[slides\.10x\] step must be positive and finite, got 0"),
        ('folder = "10x"', 'folder = "10x"\nstep = inf', r"\[slides\.10x\] step must be positive and finite, got inf"),
        (
            "[slides.10x]",
            "[slides]\nbags = 1\n[slides.10x]",
            r"\[slides\] has the unknown key 'bags' \(did you mean",
        ),
        (
            '[slides.10x]\nfolder = "10x"\n\n[slides.20x]\nfolder = "20x"',
            "[slides]",
            "a section per magnification",
        ),
        (
            "[slides.10x]",
            '[slides]\nbag = "tile"\n[slides.10x]',
            r"\[slides\] bag must be one of 'slide', 'patient'",
        ),
        (
            "[slides.10x]",
            '[slides]\ntransform = "ln"\n[slides.10x]',
            r"\[slides\] transform must be one of 'none'",
        ),
        ("fraction = 1", 'fraction = "1"', r"\[expression\] fraction must be a number, got '1'"),
        ("fraction = 1", "fraction = 1.5", r"\[expression\] fraction must lie in \(0, 1\], got 1.5"),
        ("fraction = 1", "log1p = 0", r"\[expression\] log1p must be true or false, got 0"),
        ('["TME"]', '"TME"', r"\[genes\] tme must be a list, got 'TME'"),
        ('["TME"]', "[1]", r"\[genes\] tme must be a list of texts, got \[1\]"),
        (
            '["TME"]',
            '["TMB"]',
            r"\[genes\] subspace 'tme' must name at least one of the gene sets TUMOR, TME, got TMB",
        ),
        ('gmt = "sets.gmt"\n', "", r"\[genes\] must have the key 'gmt', got tumor, tme"),
        (COHORT[COHORT.index("[genes]") :], "", r"\[expression\] and \[genes\] must come together"),
        ("[clinical]", "[clinical", r"COHORT\.toml: must be a TOML file"),
        ("[clinical]", "[clinical]\na = " + "[" * 5000, r"COHORT\.toml: must be a TOML file"),
        (
            'time = "os_days"',
            'time = "event"',
            r"\[tasks\.survival\] time and event must be two columns, got 'event' for both",
        ),
        (
            'event = "event"',
            'event = "event"\nobserved = ""',
            r"\[tasks\.survival\] observed must be a value of the event column, and not an empty cell, got ''",
        ),
        (
            'column = "grade"',
            'column = "grade"\nclasses = ["", "G2"]',
            r"\[tasks\.grading\] classes must not be empty, because an empty cell has no value, got \('', 'G2'\)",
        ),
        (
            'tumor = ["TUMOR"]\ntme = ["TME"]',
            "",
            r"\[genes\] must name the gene sets of a subspace, e\.g\. tumor = \['TUMOR'\], got only gmt",
        ),
        ('"sets.gmt"', "[]", r"\[genes\] gmt must name at least one file, got \[\]"),
    ],
)
def test_mistakes_in_the_description_are_named(folder, old, new, message):
    path = change(folder, "COHORT.toml", old, new)
    with pytest.raises(ValueError, match=message):
        read_cohort(path)


@pytest.mark.parametrize("name", ["10.0x", "", "type", "items"])
def test_names_that_no_model_can_have_are_refused_before_slides_are_looked_at(folder, name):
    (folder / "20x" / "b1.h5").unlink()
    path = change(folder, "COHORT.toml", "[slides.10x]", f'[slides."{name}"]')
    with pytest.raises(ValueError, match=rf"COHORT\.toml: \[slides\] magnifications must .*, got '{name}'"):
        read_cohort(path)


@pytest.mark.parametrize("name", ["t.me", "", "items", "forward"])
def test_subspaces_that_no_model_can_have_are_refused(folder, name):
    path = change(folder, "COHORT.toml", "tme = ", f'"{name}" = ')
    with pytest.raises(ValueError, match=rf"COHORT\.toml: \[genes\] subspaces must .*, got '{name}'"):
        read_cohort(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("B,b1", "A,b1", r"clinical\.csv, line 3: every patient must have a name and one row, got 'A' again"),
        ("B,b1", " ,b1", r"line 3: every patient must have a name and one row, got ''"),
        ("B,b1", "B,;", r"line 3: every patient must have a slide, got none for 'B'"),
        ("B,b1", "B,a2", r"line 3: slides must be different, got 'a2' again \(of 'A'\)"),
        ("10,1.0", "-10,1.0", r"line 2: task 'survival', column 'os_days': time must be a number >= 0, got '-10'"),
        ("10,1.0", "soon,1.0", r"line 2: task 'survival', column 'os_days': time must be a number >= 0, got 'soon'"),
        ("10,1.0", "inf,1.0", r"line 2: task 'survival', column 'os_days': time must be a number >= 0, got 'inf'"),
        ("10,1.0", "10,2", r"line 2: task 'survival', column 'event': event must be 1 .* or 0 \(censored\), got '2'"),
        (
            "10,1.0",
            "10,dead",
            r"line 2: task 'survival', column 'event': event must be 1 .* or 0 \(censored\), got 'dead'",
        ),
        (
            "10,1.0",
            "10,nanny",
            r"line 2: task 'survival', column 'event': event must be 1 .* or 0 \(censored\), got 'nanny'",
        ),
        ("event,age", "event,grade", r"must have one column 'grade', got 2 among patient_id, slides"),
        ("10,1.0", "10", r"line 2: a row must have 7 cells like the header, got 6"),
        (
            "patient_id,slides",
            "id,slides",
            r"must have one column 'patient_id', got 0 among id, slides, diagnosis",
        ),
        ("grade", "slides", r"must have one column 'slides', got 2 among"),
        (
            CLINICAL[CLINICAL.index("A,") :],
            "",
            r"clinical\.csv: must have at least one patient, got only a header",
        ),
    ],
)
def test_mistakes_in_the_clinical_table_are_named_by_line(folder, old, new, message):
    path = change(folder, "clinical.csv", old, new)
    with pytest.raises(ValueError, match=message):
        read_cohort(path)


@pytest.mark.parametrize(
    ("name", "key"),
    [("clinical.csv", "[clinical] table"), ("expression.csv", "[expression] table"), ("sets.gmt", "[genes] gmt")],
)
def test_a_missing_file_is_named_with_its_key(folder, name, key):
    (folder / name).unlink()
    message = f"{folder / 'COHORT.toml'}: {key} must name a file, got '{folder / name}', which is not there"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        read_cohort(folder / "COHORT.toml")


def test_a_label_column_must_be_there(folder):
    path = change(folder, "clinical.csv", "grade", "who")
    with pytest.raises(ValueError, match="must have one column 'grade', got 0"):
        read_cohort(path)
    (folder / "COHORT.toml").write_text(COHORT.replace(COHORT[COHORT.index("[tasks.d") : COHORT.index("[slides")], ""))
    assert "who" in read_cohort(path).clinical


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "survival"', "", r"\[tasks\.survival\] must have the key 'kind', got time, event"),
        (
            '"survival"',
            '"surival"',
            r"\[tasks\.survival\] kind must be one of 'classification', .* 'surival' \(did you mean 'survival'\?\)",
        ),
        ('column = "grade"', "", r"\[tasks\.grading\] must have the key 'column', got kind"),
        (
            'column = "grade"',
            'column = "grad"',
            r"must have one column 'grad', got 0 .*; \[tasks\.grading\] column names .* \(did you mean 'grade'\?\)",
        ),
        (
            'column = "grade"',
            'column = "grade"\nbins = 3',
            r"\[tasks\.grading\] has the unknown key 'bins'; known are kind, col",
        ),
        (
            'column = "grade"',
            'column = "grade"\nclasses = "G2"',
            r"\[tasks\.grading\] classes must be a list, got 'G2'",
        ),
        (
            'column = "grade"',
            'column = "grade"\nclasses = ["A", "A"]',
            r"COHORT\.toml: \[tasks\.grading\] classes must be distinct, got 'A' more than once",
        ),
        (
            'time = "os_days"',
            'time = "os_days"\nbins = 2.5',
            r"\[tasks\.survival\] bins must be a whole number, got 2\.5",
        ),
        ('time = "os_days"', 'time = "os_days"\nbins = 0', r"\[tasks\.survival\] bins must be at least 1, got 0"),
        (
            'time = "os_days"',
            'time = "os_days"\nalpha = 2',
            r"\[tasks\.survival\] alpha must lie in \[0\.0, 1\.0\], got 2",
        ),
        (
            'time = "os_days"',
            'time = "os_days"\nobserved = "0"',
            r"observed and censored must be two values .*, got '0'",
        ),
        ('event = "event"', 'event = "age"', r"line 2: task 'survival', column 'age': event must be 1 .*, got '50'"),
        (
            'column = "grade"',
            'column = "grade"\nclasses = ["G2", "G4"]',
            r"line 4: task 'grading', column 'grade': .*, got 'G3'",
        ),
    ],
)
def test_mistakes_in_a_task_are_named(folder, old, new, message):
    with pytest.raises(ValueError, match=message):
        read_cohort(change(folder, "COHORT.toml", old, new))


def test_labels_that_a_task_cannot_be_fitted_on_are_refused_with_its_name(folder):
    path = change(folder, "COHORT.toml", 'column = "grade"', 'column = "grade"\nclasses = ["G2", "G3", "G4"]')
    message = "^task 'grading', column 'grade': labels must hold every class to balance them, got no 'G4'$"
    with pytest.raises(ValueError, match=message):
        read_cohort(path).fit_task("grading")


def test_options_of_tasks_reach_their_fit(folder):
    change(folder, "COHORT.toml", 'column = "grade"', 'column = "grade"\nclasses = ["G3", "G2"]\nbalanced = false')
    cohort = read_cohort(change(folder, "COHORT.toml", 'time = "os_days"', 'time = "os_days"\nbins = 1\nalpha = 0.5'))
    grading, survival = cohort.fit_task("grading"), cohort.fit_task("survival")
    assert (grading.classes, grading.class_weight) == (("G3", "G2"), None)
    assert (survival.outputs, survival.alpha) == (1, 0.5)


@pytest.mark.parametrize("column", ["censorship", "Censored", "is_alive", "os_censor"])
def test_an_event_column_that_may_hold_the_opposite_needs_its_coding(folder, column):
    change(folder, "clinical.csv", "event", column)
    path = change(folder, "COHORT.toml", 'event = "event"', f'event = "{column}"')
    with pytest.raises(ValueError, match=rf"'{column}' may be one of censorship: say which with observed = \"0\""):
        read_cohort(path)
    change(folder, "COHORT.toml", "[tasks.survival]", '[tasks.survival]\nobserved = "0"\ncensored = "1"')
    assert read_cohort(path).labels("survival")["event"].tolist() == [False, True]


@pytest.mark.parametrize("number", ["1_0", "0x10", "1,5", "ten", "2020-01-01"])
def test_numbers_of_another_dialect_are_refused(folder, number):
    change(folder, "clinical.csv", "G2,10,", f'G2,"{number}",')
    with pytest.raises(ValueError, match=rf"line 2: .* time must be a number >= 0, got '{number}'"):
        read_cohort(folder / "COHORT.toml")
    change(folder, "expression.csv", "C,1", f'C,"{number}"')
    with pytest.raises(ValueError, match=r"gene 'EGFR': must be a finite number"):
        read_expression(folder / "expression.csv")


def test_expression_of_strangers_is_left_out_with_a_count_and_cells_without_numbers_are_refused(folder):
    path = change(folder, "expression.csv", "A,4", "TCGA-A,4")
    with pytest.warns(UserWarning, match=r"expression\.csv: 1 of 2 patients are not in .* left out: TCGA-A$"):
        assert read_cohort(path).with_expression().patients == ("C",)
    change(folder, "expression.csv", "C,1", "TCGA-C,1")
    with pytest.raises(
        ValueError, match=r"expression\.csv: patients must be those of .*, got 2 others: TCGA-C, TCGA-A"
    ):
        read_cohort(path)
    change(folder, "expression.csv", "TCGA-C,1", "C,one")
    with pytest.raises(ValueError, match=r"expression\.csv, line 2, gene 'EGFR': must be a finite number, got 'one'"):
        read_cohort(path)


@pytest.mark.parametrize("first", ["gene", "id"])
def test_an_expression_table_with_genes_in_rows_gives_the_same_cohort(folder, first):
    want = read_cohort(folder / "COHORT.toml")
    (folder / "expression.csv").write_text(f"{first},C,A\nEGFR,1,4\nCD2,2,0\nTP53,3,1\n")
    cohort = read_cohort(folder / "COHORT.toml")
    assert cohort.expression.equals(want.expression)
    assert "2 patients x 3 genes, genes in rows (recognized)" in cohort.notes[0]


def by_slide(folder: Path, table: str, **keys: str) -> Path:
    """A clinical table in another dialect, with survival as the only task; the description, to be read."""
    (folder / "clinical.csv").write_text(table)
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    start, end = COHORT.index("[tasks.diagnosis]"), COHORT.index("[tasks.survival]")
    text = COHORT[:start].rstrip() + "\n" + lines + COHORT[end : COHORT.index("[expression]")]
    (folder / "COHORT.toml").write_text(text)
    return folder / "COHORT.toml"


MCAT = """,case_id,slide_id,os_days,censorship
0,A,a1.svs,10.0,0.0
1,A,a2.svs,10.0,0.0
2,B,b1.svs,7.0,1.0
"""
BY_SLIDE = {"patient": '"case_id"', "slides": '"slide_id"', "rows": '"slide"'}


def test_a_table_with_one_row_per_slide_is_read_with_its_censorship(folder):
    path = by_slide(folder, MCAT, **BY_SLIDE)
    change(folder, "COHORT.toml", 'event = "event"', 'censorship = "censorship"')
    cohort = read_cohort(path)
    assert [(sample.name, sample.patient) for sample in cohort.samples] == [("a1", "A"), ("a2", "A"), ("b1", "B")]
    assert cohort.labels("survival").to_dict("list") == {"time": [10.0, 7.0], "event": [True, False]}
    for old, new, message in (
        (
            "1,A,a2.svs,10.0",
            "1,A,a2.svs,11.0",
            r"line 3: rows of one patient must have the same 'os_days', got '11\.0' and",
        ),
        ("2,B,b1.svs", "2,B,a2.svs", r"line 4: slides must be different, got 'a2' again \(of 'A'\)"),
    ):
        (folder / "clinical.csv").write_text(MCAT.replace(old, new))
        with pytest.raises(ValueError, match=message):
            read_cohort(path)


@pytest.mark.parametrize("table", [MCAT, MCAT.replace(".svs", "")])
def test_files_may_keep_the_ending_of_the_image(folder, table):
    path = by_slide(folder, table.replace("censorship", "event"), **BY_SLIDE)
    for file in [*folder.glob("*x/a1.h5")]:
        file.rename(file.with_name("a1.svs.h5"))
    sample = read_cohort(path).samples[0]
    assert sample.name == "a1"
    assert {bag.paths[0].name for bag in sample.bags.values()} == {"a1.svs.h5"}


def test_censorship_stands_alone(folder):
    change(folder, "COHORT.toml", 'event = "event"', 'event = "event"\ncensorship = "grade"')
    with pytest.raises(
        ValueError, match=r"\[tasks\.survival\] censorship names a column .* stands alone, got event as"
    ):
        read_cohort(folder / "COHORT.toml")


def test_a_repeated_patient_is_told_how_tables_by_slide_are_read(folder):
    path = by_slide(folder, MCAT.replace("censorship", "event"), patient='"case_id"', slides='"slide_id"')
    with pytest.raises(
        ValueError, match=r"line 3: .*got 'A' again; .* one row per slide, set \[clinical\] rows = \"slide\""
    ):
        read_cohort(path)


def test_semicolons_decimal_commas_and_the_words_of_a_portal_are_read(folder):
    rows = "patient_id;slides;os_days;event\nTCGA-02-0047-01A;a1|a2.svs;10,5;1:DECEASED\nB;b1;7;0:LIVING\n;;;\n"
    cohort = read_cohort(by_slide(folder, rows, separator='"|"', barcodes='"patient"'))
    assert cohort.labels("survival").to_dict("index") == {
        "TCGA-02-0047": {"time": 10.5, "event": True},
        "B": {"time": 7.0, "event": False},
    }
    assert [sample.name for sample in cohort.samples] == ["a1", "a2", "b1"]
    with pytest.raises(ValueError, match=r"line 3: .* event must be 1 .* got '1:LIVING'"):
        read_cohort(by_slide(folder, rows.replace("0:LIVING", "1:LIVING"), separator='"|"'))


def test_times_of_zero_are_refused_unless_they_are_kept(folder):
    path = change(folder, "clinical.csv", "G2,10,", "G2,0,")
    with pytest.raises(ValueError, match=r"line 2: .*'os_days': time must be greater than 0, .* zero_times = \"keep\""):
        read_cohort(path)
    change(folder, "COHORT.toml", 'event = "event"', 'event = "event"\nzero_times = "keep"')
    assert read_cohort(path).labels("survival")["time"].tolist() == [0.0, 7.0]


@pytest.mark.parametrize("name", ["../20x/b1", "..\\20x\\b1", "/tmp/b1", "C:\\b1", "x/../../b1"])
def test_slides_stay_inside_their_folder(folder, name):
    path = change(folder, "clinical.csv", "B,b1", f"B,{name}")
    with pytest.raises(ValueError, match=r"line 3: slides must lie inside the folders of slides, got .*b1'"):
        read_cohort(path)


def test_a_name_follows_no_folder_and_links_in_the_folder_are_those_of_its_owner(folder, tmp_path_factory):
    """Links are made by whoever fills the folder, for instance to another disk. A name of the table makes none."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(folder / "20x" / "b1.h5", elsewhere / "b1.h5")
    (folder / "20x" / "link").symlink_to(elsewhere)
    path = change(folder, "clinical.csv", "B,b1", "B,link/b1")
    with pytest.raises(FileNotFoundError, match=r"link/b1\.h5: there is no such file"):
        read_cohort(path)
    change(folder, "clinical.csv", "B,link/b1", "B,b1")
    (folder / "20x" / "b1.h5").unlink()
    (folder / "20x" / "b1.h5").symlink_to(elsewhere / "b1.h5")
    assert read_cohort(path).patients == ("A", "B", "C")


@pytest.mark.parametrize(
    ("file", "old", "new", "key"),
    [
        ("COHORT.toml", "[slides.10x]", "[slides.10x]\nstep = true", "slides.10x.step"),
        ("COHORT.toml", "[slides.10x]", "[slides.10x]\nfoldr = 1", "slides.10x.foldr"),
        ("COHORT.toml", "[clinical]", "[clinical", None),
        ("clinical.csv", "B,b1", "B", None),
        ("clinical.csv", "B,b1", "A,b1", None),
        ("expression.csv", "A,4", "A,x", None),
        ("expression.csv", "A,4", ",4", None),
        ("sets.gmt", "TUMOR\tsource\t", "TUMOR", None),
        ("10x/a1.h5", None, None, None),
    ],
)
def test_an_error_of_a_reader_knows_the_file_and_the_key(folder, file, old, new, key):
    if old is None:
        (folder / file).write_bytes(b"no slide")
    else:
        change(folder, file, old, new)
    with pytest.raises(FileError) as error:
        read_cohort(folder / "COHORT.toml")
    assert (error.value.file, error.value.key) == (folder / file, key)
    assert str(error.value).startswith(str(folder / file))


def test_patients_of_samples_are_cut_to_those_of_the_clinical_table(folder):
    for name in ("clinical.csv", "expression.csv"):
        text = (folder / name).read_text().replace("\nA,", "\nTCGA-02-000A,").replace("\nC,", "\nTCGA-02-000C,")
        (folder / name).write_text(text if name == "clinical.csv" else text.replace("000A,", "000A-01A-11R,"))
    path = change(folder, "expression.csv", "TCGA-02-000C,", "TCGA-02-000C-01A-11R,")
    with pytest.raises(
        ValueError, match=r"got 2 others: .* 2 of them are TCGA barcodes .* set barcodes = \"patient\" in"
    ):
        read_cohort(path)
    change(folder, "COHORT.toml", "[expression]", '[expression]\nbarcodes = "patient"')
    assert read_cohort(path).with_expression().patients == ("TCGA-02-000A", "TCGA-02-000C")


OMICS = """
[omics.cnv]
table = "cnv.csv"
log1p = false
fraction = 1.0

[omics.cnv.genes]
gmt = "drivers.gmt"
amplified = ["ONCOGENES"]
"""


def test_several_tables_are_further_subspaces_with_their_own_scale(folder):
    (folder / "cnv.csv").write_text("id,EGFR|1956,MYC|4609\nA,-1,2\nC,0,1\nB,1,0\n")
    (folder / "drivers.gmt").write_text("ONCOGENES\tsource\tEGFR\tMYC\n")
    path = folder / "COHORT.toml"
    path.write_text(COHORT + OMICS)
    with pytest.warns(UserWarning, match=r"1 of 3 patients lack one of the tables \[expression\], \[omics\.cnv\]"):
        cohort = read_cohort(path)
    assert cohort.gene_sets == {"tumor": ("EGFR", "TP53"), "tme": ("CD2",), "amplified": ("cnv:EGFR", "cnv:MYC")}
    assert cohort.with_expression().patients == ("A", "C")
    assert cohort.genes_found() == {"tumor": (2, 2), "tme": (1, 1), "amplified": (2, 2)}
    pipeline = cohort.fit_expression()
    assert pipeline.sizes == {"tumor": 2, "tme": 1, "amplified": 2}
    assert pipeline.options["amplified"].log1p is False
    assert pipeline.transform(cohort.expression)["amplified"].tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    path.write_text(COHORT.replace(COHORT[COHORT.index("[expression]") :], OMICS))
    assert read_cohort(path).with_expression().patients == ("A", "B", "C")
    path.write_text(COHORT + OMICS.replace("amplified", "tumor"))
    with pytest.raises(ValueError, match="subspaces of all tables must hold"):
        read_cohort(path)


def test_a_description_may_start_with_a_byte_order_mark(folder):
    path = folder / "COHORT.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_cohort(path).patients == ("A", "B", "C")


def test_slides_that_are_missing_broken_empty_or_of_another_width_are_refused(folder):
    path, slide = folder / "COHORT.toml", folder / "20x" / "b1.h5"
    write_bag(slide, torch.rand(2, 7))
    with pytest.raises(ValueError, match=r"20x/b1\.h5: feature width must be 5 as in .*10x/a1\.h5, got 7"):
        read_cohort(path)
    slide.write_bytes(slide.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"20x/b1\.h5: must be a complete HDF5 file"):
        read_cohort(path)
    with h5py.File(slide, "w") as file:
        file["features"] = np.zeros((0, 5), dtype="float32")
    with pytest.raises(ValueError, match=r"20x/b1\.h5: a slide must hold at least one patch, got none"):
        read_cohort(path)
    slide.unlink()
    with pytest.raises(FileNotFoundError, match=r"20x/b1\.h5: there is no such file"):
        read_cohort(path)


def test_a_folder_with_half_the_slides_is_refused_with_their_number_and_a_remedy(folder):
    for name in ("a2", "b1"):
        (folder / "20x" / f"{name}.h5").unlink()
    message = (
        r"20x/a2\.h5: there is no such file, nor one of another ending; 2 of 4 slides of the clinical table are "
        r"missing in .*20x: correct .*; missing = \"allow\" in \[slides\] reads the other"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read_cohort(folder / "COHORT.toml")
    (folder / "20x").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"\[slides.20x\] folder must be there, got .*20x: no such folder"):
        read_cohort(folder / "COHORT.toml")


@pytest.mark.parametrize("unit", ["slide", "patient"])
def test_slides_may_lack_a_magnification_where_the_description_allows_it(folder, unit):
    (folder / "20x" / "b1.h5").unlink()
    write_hdf5(folder / "10x" / "c1.h5", features=np.zeros((0, 5), "float32"), coords=np.zeros((0, 2)))
    path = change(folder, "COHORT.toml", "[slides.10x]", f'[slides]\nbag = "{unit}"\nmissing = "allow"\n[slides.10x]')
    cohort = read_cohort(path)
    tokens = {
        sample.name: {name: int(bag.mask.sum()) for name, bag in sample.load().items()} for sample in cohort.samples
    }
    names = ("a2", "b1", "c1") if unit == "slide" else ("A", "B", "C")
    twice = 1 if unit == "slide" else 2
    assert [tokens[name] for name in names] == [
        {"10x": 2 * twice, "20x": 6 * twice},
        {"10x": 2, "20x": 0},
        {"10x": 0, "20x": 6},
    ]
    batch = collate_bags([sample.load()["20x"] for sample in cohort.samples])
    assert isinstance(batch.grid, TokenSet) == (unit == "patient")
    assert cohort.reading().sets == (() if unit == "slide" else ("10x", "20x"))
    assert set(cohort.reading().tiles) == {"10x", "20x"}
    assert len(cohort_digest(cohort)) == 64


ALLOWED = '[slides]\nmissing = "allow"\n[slides.10x]'


@pytest.mark.parametrize("unit", ["slide", "patient"])
@pytest.mark.parametrize("empty", [(0, 5), (0,), None])
def test_slides_and_patients_without_any_tiles_are_left_out_with_their_number_where_it_is_allowed(folder, empty, unit):
    for name in ("a2", "b1"):
        for place in ("10x", "20x"):
            (folder / place / f"{name}.h5").unlink()
            if empty is not None:
                write_hdf5(folder / place / f"{name}.h5", features=np.zeros(empty, "float32"))
    path = change(folder, "COHORT.toml", "[slides.10x]", ALLOWED.replace("missing", f'bag = "{unit}"\nmissing'))
    change(folder, "expression.csv", "C,1", "B,7,8,9\nC,1")
    message = (
        r"COHORT\.toml: \[slides\] left out are 2 of 4 slides without a file or without tiles \(a2, b1\) and 1 of 3 "
        r"patients without a slide with tiles \(B\)"
    )
    with pytest.warns(UserWarning, match=message):
        cohort = read_cohort(path)
    assert (cohort.unit, cohort.patients, cohort.paired) == (unit, ("A", "C"), {"A", "C"})
    assert [sample.load()["20x"].patches.shape[1] for sample in cohort.samples] == [6, 6]


def test_a_cohort_without_any_tiles_is_refused(folder):
    path = change(folder, "COHORT.toml", "[slides.10x]", ALLOWED)
    for file in (*folder.glob("10x/*"), *folder.glob("20x/*")):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"10x/a1\.h5: .* 4 of 4 slides .* or remove their rows$"):
        read_cohort(path)


@pytest.mark.parametrize("cell", ["", ";", "NA"])
def test_patients_without_a_slide_are_counted_and_left_out_where_it_is_allowed(folder, cell):
    change(folder, "clinical.csv", "B,b1", f"B,{cell}")
    change(folder, "clinical.csv", "C,c1", f"C,{cell}")
    message = (
        r"clinical\.csv, line 3: every patient must have a slide, got none for 'B'; 2 rows name none: remove them, or "
        r"name their slides in column 'slides'; missing = \"allow\" in \[slides\] leaves them out"
    )
    with pytest.raises(FileError, match=message):
        read_cohort(folder / "COHORT.toml")
    path = change(folder, "COHORT.toml", "[slides.10x]", ALLOWED)
    with pytest.warns(UserWarning, match=r"left out are 2 of 3 patients without a slide with tiles \(B, C\)"):
        assert read_cohort(path).patients == ("A",)


def test_all_slides_without_tiles_are_counted_where_they_are_refused(folder):
    for name in ("a2", "b1"):
        write_hdf5(folder / "20x" / f"{name}.h5", features=np.zeros((0,), "float32"))
    (folder / "20x" / "c1.h5").unlink()
    message = (
        r"20x/a2\.h5: a slide must hold at least one patch, got none; 2 of 4 slides have none in .*20x, and 1 are "
        r"without a file: remove their rows; missing = \"allow\" in \[slides\] reads the other magnifications, and "
        r"leaves out slides without any"
    )
    with pytest.raises(FileError, match=message):
        read_cohort(folder / "COHORT.toml")


def test_files_of_several_kinds_are_found_by_the_name_of_the_slide(folder):
    (folder / "20x" / "b1.h5").unlink()
    torch.save(torch.ones(3, 5), folder / "20x" / "b1.pt")
    change(folder, "COHORT.toml", "[slides.10x]", '[slides]\nbag = "patient"\n[slides.10x]')
    change(folder, "clinical.csv", "B,b1", "B,Bönn")
    (folder / "10x" / "b1.h5").rename(folder / "10x" / f"{unicodedata.normalize('NFD', 'Bönn')}.h5")
    (folder / "20x" / "b1.pt").rename(folder / "20x" / "Bönn.pt")
    assert read_cohort(folder / "COHORT.toml").samples[1].load()["20x"].patches.shape == (1, 3, 5)


def test_another_encoder_or_magnification_within_a_folder_is_refused(folder):
    for name in ("a1", "b1"):
        coords = torch.tensor([[0, 0], [448, 0]])
        encoder = "uni" if name == "a1" else "conch"
        write_bag(folder / "20x" / f"{name}.h5", torch.rand(2, 5), coords, step=448, encoder=encoder, magnification=20)
    message = r"20x/b1\.h5: must have features of the encoder 'uni', got 'conch' as in .*20x/a1\.h5"
    with pytest.raises(ValueError, match=message):
        read_cohort(folder / "COHORT.toml")
    write_bag(folder / "20x" / "b1.h5", torch.rand(2, 5), coords, step=448, encoder="UNI", magnification=40)
    with pytest.raises(ValueError, match=r"20x/b1\.h5: must have tiles at 20x, got 40x"):
        read_cohort(folder / "COHORT.toml")


def test_features_and_coordinates_may_be_named(folder):
    """Here both magnifications are in the same files under different names."""
    for path in (folder / "20x").iterdir():
        with h5py.File(path, "r+") as file:
            for name in ("features", "coords"):
                file[f"{name}_10x"] = file[name][:1]
                file.move(name, f"{name}_20x")
    text = (folder / "COHORT.toml").read_text()
    for name in ("20x", "10x"):
        text = text.replace(f'folder = "{name}"', f'folder = "20x"\nfeatures = "features_{name}"')
    (folder / "COHORT.toml").write_text(text)
    with pytest.raises(ValueError, match=r"coordinates must be in .*; name it by coords = 'coords_10x'"):
        read_cohort(folder / "COHORT.toml")
    for name in ("10x", "20x"):
        text = text.replace(f'"features_{name}"', f'"features_{name}"\ncoords = "coords_{name}"')
    (folder / "COHORT.toml").write_text(text)
    cohort = read_cohort(folder / "COHORT.toml")
    sample = cohort.samples[0]
    one, all_ = (sample.load()[name] for name in ("10x", "20x"))
    assert one.patches.shape[1] == 1 < all_.patches.shape[1] == sample.bags["20x"].source().tokens
    reading = cohort.reading()
    assert reading.features == {"10x": "features_10x", "20x": "features_20x"}
    assert reading.coords == {"10x": "coords_10x", "20x": "coords_20x"}
    sample.bags["20x"].check_places()
    state = reading.state()
    assert SlideReading.from_state(state) == reading
    with pytest.raises(FileError, match=r"^features\.20x must be text, got 3"):
        SlideReading.from_state({**state, "features": {"20x": 3}})
    with pytest.raises(ValueError, match=r"^features must be of the magnifications 10x, got '20x'"):
        SlideReading(features={"20x": "uni"}).check_magnifications(("10x",))
    older = {key: value for key, value in state.items() if key not in ("features", "coords")}
    assert SlideReading.from_state(older).features == {}  # of a model that was saved before there were names


def test_a_magnification_may_have_a_largest_number_of_tiles(folder):
    cohort = read_cohort(change(folder, "COHORT.toml", 'folder = "20x"', 'folder = "20x"\nmax_tokens = 4'))
    bags = cohort.samples[0].load()
    assert [bag.is_partly_read() for bag in cohort.samples[0].bags.values()] == [False, True]
    assert {name: bag.patches.shape[1] for name, bag in bags.items()} == {"10x": 2, "20x": 4}
    assert cohort.reading().max_tokens == {"20x": 4}
    with pytest.raises(ValueError, match=r"\[slides\.20x\] max_tokens must be at least 1, got 0"):
        read_cohort(change(folder, "COHORT.toml", "max_tokens = 4", "max_tokens = 0"))


def test_a_missing_description_or_table_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match=r"absent\.toml"):
        read_cohort(folder / "absent.toml")
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        read_cohort(change(folder, "COHORT.toml", "clinical.csv", "absent.csv"))


def test_the_real_glioma_cohort_is_read_whole(shared, tmp_path):
    data = shared / "data"
    (tmp_path / "COHORT.toml").write_text(f"""
[clinical]
table = "{data}/tcga_gbmlgg/clinical.csv"

[tasks]
diagnosis = {{kind = "classification", column = "diagnosis"}}
grading = {{kind = "classification", column = "grade"}}
survival = {{kind = "survival", time = "os_days", event = "event", zero_times = "keep"}}

[slides]
bag = "patient"      # a slide is one vector, so a patient is the bag
transform = "log"    # the vectors are probabilities

[slides.10x]
folder = "{data}/tcga_gbmlgg/slides"

[slides.20x]
folder = "{data}/tcga_gbmlgg/slides"

[expression]
table = "{data}/tcga_gbmlgg/expression.csv.gz"
log1p = false        # z-scores
fraction = 1.0

[genes]
gmt = "{data}/genes/tumor_tme.gmt"
tumor = ["TUMOR"]
tme = ["TME"]
""")
    cohort = read_cohort(tmp_path / "COHORT.toml")
    assert (len(cohort.patients), len(cohort.samples), cohort.width) == (771, 771, 186)
    paired = cohort.with_expression()
    assert len(paired.patients) == 547
    assert len(cohort.labels("survival")) == 769
    assert set(cohort.labels("grading")["label"]) == {"G2", "G3", "G4"}
    assert paired.labels("diagnosis")["label"].value_counts().to_dict() == {
        "glioblastoma": 164,
        "oligodendroglioma": 157,
        "astrocytoma_low_grade": 146,
        "astrocytoma_grade4": 80,
    }
    events = paired.labels("survival")["event"]
    fold = patient_folds(events.index, events)[0]
    inner = inner_split(fold.train, events.loc[list(fold.train)])
    train = paired.subset(inner.train)
    pipeline = train.fit_expression()
    assert pipeline.sizes == {"tumor": 406, "tme": 235}
    genes = pipeline.transform(paired.subset(fold.test).expression)
    assert all(values.isfinite().all() and values.abs().max() < 40 for values in genes.values())
    largest = max(cohort.samples, key=lambda sample: len(sample.bags["10x"].paths))
    patches = largest.load()["10x"].patches
    assert patches.shape == (1, 17, 186)
    torch.testing.assert_close((patches.exp() - 1e-6).sum(-1), torch.ones(1, 17))


def test_any_column_of_the_real_gastric_cohort_is_a_task(shared):
    cohort = read_cohort(Path(__file__).parents[2] / "benchmarks" / "cohorts" / "tcga_stad.toml")
    paired = cohort.with_expression()
    assert (len(cohort.patients), len(paired.patients), cohort.width) == (369, 330, 376)
    assert {name: len(paired.labels(name)) for name in ("msi", "subtype")} == {"msi": 327, "subtype": 304}
    assert cohort.fit_task("msi").classes == ("MSI", "MSS")
    assert cohort.fit_task("subtype").classes == ("CIN", "EBV", "GS", "MSI")
    assert cohort.fit_task("survival").outputs == 4


def test_real_kidney_slides_are_read_at_two_magnifications(shared, tmp_path):
    data = shared / "data"
    tool = SimpleNamespace(**runpy.run_path(str(data / "make_tile_bags.py")))
    header, *rows = (data / "tcga_kirc" / "clinical.csv").read_text().splitlines()
    slides = {row: row.split(",")[header.split(",").index("slides")].split(";") for row in rows}
    with np.load(data / "tcga_kirc" / "tilemaps.npz") as maps:
        small = sorted(rows[:30], key=lambda row: sum(maps[name].size for name in slides[row]))[:3]
        for name in (name for row in small for name in slides[row]):
            tiles = maps[name].astype(float)
            tool.write_bag(tmp_path / "20x" / f"{name}.h5", name, tiles, tool.TILE_LEVEL0, 20)
            tool.write_bag(tmp_path / "10x" / f"{name}.h5", name, tool.halve(tiles), 2 * tool.TILE_LEVEL0, 10)
    (tmp_path / "clinical.csv").write_text("\n".join([header, *small]))
    (tmp_path / "COHORT.toml").write_text(COHORT.split("[expression]")[0].replace('"diagnosis"', '"stage"'))
    cohort = read_cohort(tmp_path / "COHORT.toml")
    assert (len(cohort.patients), cohort.width) == (3, 24)
    assert len(cohort.samples) == sum(len(slides[row]) for row in small)
    for sample in cohort.samples:
        bags = sample.load()
        (width, height), (wide, high) = bags["10x"].grid.shapes[0], bags["20x"].grid.shapes[0]
        assert 2 * width - 2 <= wide <= 2 * width
        assert 2 * height - 2 <= high <= 2 * height
        assert bags["20x"].patches.isfinite().all()


@pytest.mark.parametrize("missing", ["", "unknown"])
def test_times_with_separators_of_thousands_are_refused(folder, missing):
    table = CLINICAL.replace(";", "|").replace(",", ";").replace(";10;", ";1.164;").replace(";;", f";{missing};")
    (folder / "clinical.csv").write_text(table)
    change(folder, "COHORT.toml", '"clinical.csv"', '"clinical.csv"\nseparator = "|"')
    message = r"clinical\.csv, column 'os_days': numbers must have no separators of thousands, got '1\.164' in line 2"
    with pytest.raises(FileError, match=message):
        read_cohort(folder / "COHORT.toml")
    change(folder, "clinical.csv", "1.164", "1.16")
    assert read_cohort(folder / "COHORT.toml").labels("survival")["time"].tolist() == [1.16, 7.0]


def test_genes_under_other_names_are_told_with_the_section_of_their_table(folder):
    change(folder, "expression.csv", "TP53", "tp.53")
    message = (
        r"COHORT\.toml: \[expression\] table lacks 1 genes of 'tumor' .* TP53 as 'tp\.53'; rename them in the file$"
    )
    with pytest.warns(UserWarning, match=message):
        read_cohort(folder / "COHORT.toml").fit_expression()
