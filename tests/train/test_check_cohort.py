"""The command check tells what was understood, and finds what would spoil a run before it starts."""

from pathlib import Path

import pytest

from disentangled_mil.cli import main
from disentangled_mil.data.planted import planted_cohort, write_cohort
from disentangled_mil.train.check_cohort import check_cohort
from disentangled_mil.train.options import TrainingOptions
from tests.support.cohorts import copy_with_change

OPTIONS = TrainingOptions(epochs=2, dim=8, heads=2, dim_head=4)


@pytest.fixture(scope="module")
def description(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    cohort = planted_cohort(45, seed=0, grid=(4, 3), width=6, tumor_genes=30, tme_genes=30, other_genes=2)
    write_cohort(cohort, folder)
    return folder / "cohort.toml"


def test_everything_that_was_understood_is_told(description):
    check = check_cohort(description, OPTIONS)
    text = str(check)
    for part in (
        "45, with ",
        "10x             45 patients, ",
        "6 numbers per tile",
        "expression.csv.gz: 45 patients x 62 genes, genes in columns (recognized)",
        "scale recognized: linear values, such as TPM or FPKM",
        "tumor           30 of 30 genes in the table",
        "task grading    classification, 45 patients: G2 ",
        "task survival   survival, 45 patients: events ",
        "  fold 3        train events ",
        "estimate ",
        "times 2 epochs, 3 folds, one teacher and two students",
        "0 errors",
    ):
        assert part in text
    assert check.errors == []


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("cohort.toml", 'gmt = "gene_sets.gmt"', 'gmt = "few.gmt"', "tumor: only 1 of 4 genes are in the table"),
        ("cohort.toml", 'folder = "slides/10x"', 'folder = "slides/20x"', ""),
    ],
)
def test_warnings_fail_a_strict_check_alone(description, tmp_path, capsys, name, old, new, message):
    path = copy_with_change(description, tmp_path, name, old, new)
    gene = (tmp_path / "gene_sets.gmt").read_text().split("\n")[0].split("\t")[2]
    (tmp_path / "few.gmt").write_text(f"tumor\tsource\t{gene}\tA1\tA2\tA3\ntme\tsource\t{gene}\n")
    assert main(["check", str(path), "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert message in out
    strict = 2 if "warning:" in out else 0
    assert main(["check", str(path), "--epochs", "1", "--strict"]) == strict


def test_swapped_folders_of_magnifications_are_suspected(description, tmp_path):
    text = description.read_text().replace("slides/10x", "slides/x").replace("slides/20x", "slides/10x")
    path = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "[clinical]")
    path.write_text(text.replace("slides/x", "slides/20x"))
    assert any(
        "more tiles at 10x than at 20x: are the folders swapped?" in w for w in check_cohort(path, OPTIONS).warnings
    )


def test_what_a_run_would_refuse_is_an_error_with_its_place(description, tmp_path, capsys):
    path = copy_with_change(description, tmp_path, "cohort.toml", "[expression]", "[expression]\nlog1p = false")
    assert main(["check", str(path), "--epochs", "1"]) == 2
    out = capsys.readouterr().out
    assert "error: log1p is False for log-transformed values and z-scores, and table seems to hold linear values" in out
    assert "estimate" not in out
    path.write_text(path.read_text().replace("log1p = false", "").replace('event = "event"', 'event = "grade"'))
    assert main(["check", str(path)]) == 2
    assert "clinical.csv, line 2: task 'survival', column 'grade': event must be 1" in capsys.readouterr().err


def test_patients_left_out_are_warned_of(description, tmp_path):
    path = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "[clinical]")
    lines = (tmp_path / "clinical.csv").read_text().splitlines()
    (tmp_path / "clinical.csv").write_text("\n".join(lines[:-1]) + "\n")
    check = check_cohort(path, OPTIONS)
    assert any("1 of 45 patients are not in the clinical table and are left out" in text for text in check.warnings)


def test_a_cohort_without_expression_is_checked_for_students(description, tmp_path):
    path = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "[clinical]")
    path.write_text(path.read_text().split("[expression]")[0])
    text = str(check_cohort(path, OPTIONS))
    assert "none, so that students alone can be trained" in text
    assert "one student" in text
