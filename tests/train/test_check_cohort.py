"""The command check tells what was understood, and finds what would spoil a run before it starts."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import pandas as pd
import pytest

from disentangled_mil.cli import main
from disentangled_mil.data import read_cohort
from disentangled_mil.data.cohort import columns_of_labels
from disentangled_mil.data.planted import planted_cohort, write_cohort
from disentangled_mil.train import cross_validation
from disentangled_mil.train.check_cohort import check_cohort
from disentangled_mil.train.options import TrainingOptions
from disentangled_mil.train.run_estimate import CohortSize, estimate_run
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
        "slides 10x      ",
        " slides of 45 patients, ",
        "6 features per patch",
        "expression.csv.gz: 45 patients x 62 genes, genes in columns (recognized)",
        "scale recognized: linear values, such as TPM or FPKM",
        "genes tumor     30 of 30 genes are in the table",
        "task grading    classification, 45 patients: G2 ",
        "task survival   survival, 45 patients: events ",
        "  fold2         train 30 patients: events ",
        "time            about ",
        "times 2 epochs and 3 folds, each with one teacher, 5 teachers for targets out of fold and two students",
        "memory ",
        "0 errors",
    ):
        assert part in text
    assert check.errors == []


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "cohort.toml",
            'gmt = "gene_sets.gmt"',
            'gmt = "few.gmt"',
            "tumor: 20 of 21 genes are not among the 62 genes of the table (A1, A2, A3",
        ),
        ("cohort.toml", 'folder = "slides/10x"', 'folder = "slides/20x"', ""),
    ],
)
def test_warnings_fail_a_strict_check_alone(description, tmp_path, capsys, name, old, new, message):
    path = copy_with_change(description, tmp_path, name, old, new)
    gene = (tmp_path / "gene_sets.gmt").read_text().split("\n")[0].split("\t")[2]
    (tmp_path / "few.gmt").write_text(
        "tumor\tsource\t" + "\t".join([gene, *(f"A{n}" for n in range(1, 21))]) + f"\ntme\tsource\t{gene}\n"
    )
    assert main(["check", str(path), "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert message in out
    strict = 2 if "warning:" in out else 0
    assert main(["check", str(path), "--epochs", "1", "--strict"]) == strict


def test_swapped_folders_of_magnifications_are_suspected(description, tmp_path):
    text = description.read_text().replace("slides/10x", "slides/x").replace("slides/20x", "slides/10x")
    path = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "[clinical]")
    path.write_text(text.replace("slides/x", "slides/20x"))
    warnings = check_cohort(path, OPTIONS).warnings
    for what in ("more patches", "smaller tiles"):
        assert any(f"{what} at 10x than at 20x: are the folders swapped?" in warning for warning in warnings)


def with_own_slides(description: Path, folder: Path, old: str = "[clinical]", new: str = "[clinical]") -> Path:
    """A copy of the cohort whose slides may be written to."""
    path = copy_with_change(description, folder, "cohort.toml", old, new)
    (folder / "slides").unlink()
    shutil.copytree(description.parent / "slides", folder / "slides")
    return path


def test_coordinates_that_are_all_alike_are_suspected_and_counted(description, tmp_path):
    path = with_own_slides(description, tmp_path)
    files = sorted((tmp_path / "slides" / "20x").iterdir())
    for file in files[:2]:
        with h5py.File(file, "r+") as content:
            content["coords"][:] = 0
    with h5py.File(files[2], "r+") as content:
        content["coords"][-6:] = content["coords"][0]  # these are suspected of padding, not of lacking coordinates
    check = check_cohort(path, OPTIONS, task="grading")
    message = f"2 of {2 * len(files)} bags of slides have all tiles on one place, such as {files[0]}: write the coord"
    assert [text for text in check.warnings if text.startswith(message)]
    assert not any(text.startswith("coords put all") for text in check.warnings)


def test_what_is_left_out_of_large_bags_is_said(description, tmp_path):
    path = copy_with_change(description, tmp_path, "cohort.toml", "[slides.20x]", "[slides.20x]\nmax_tokens = 10")
    options = replace(OPTIONS, training_tokens=9, teacher_tokens=5)
    text = str(check_cohort(path, options, task="grading"))
    assert re.search(r"slides 20x .*, 10 patches in a sample are read of 20 to \d+ \(median \d+\), 6 features", text)
    assert re.search(r"\n +\d+ of 136 bags hold more patches than training_tokens = 9: each epoch", text)
    assert "than teacher_tokens = 5: teachers of targets out of fold see no others" in text
    assert "are read of" not in text.split("slides 20x")[0]
    alone = str(check_cohort(path, replace(options, distill="never", training_tokens=100), task="grading"))
    assert "hold more patches" not in alone


@pytest.mark.parametrize("drop", [False, True])
def test_augmented_patches_are_counted(description, tmp_path, drop):
    new = f"[slides]\ndrop_augmented = {str(drop).lower()}\n\n[slides.10x]"
    path = with_own_slides(description, tmp_path, "[slides.10x]", new)
    files = list((tmp_path / "slides" / "20x").iterdir())
    for file in files:
        with h5py.File(file, "r+") as content:
            content["augmented"] = [True] * 2 + [False] * (len(content["coords"]) - 2)
    text = str(check_cohort(path, OPTIONS, task="grading"))
    assert (
        f"augmented: {2 * len(files)} patches repeat others; drop_augmented = true in [slides] leaves them out" in text
    )
    assert ("18 to " in text and " in a sample are read of 20 to " in text) == drop


def test_what_a_run_would_refuse_is_an_error_with_its_place(description, tmp_path, capsys):
    path = copy_with_change(description, tmp_path, "cohort.toml", "[expression]", "[expression]\nlog1p = false")
    assert main(["check", str(path), "--epochs", "1"]) == 2
    out = capsys.readouterr().out
    assert (
        "cohort.toml: [expression] log1p is False for log-transformed values and z-scores, and table seems to hold "
        "linear values" in out
    )
    assert "memory" not in out
    path.write_text(path.read_text().replace("log1p = false", "").replace('event = "event"', 'event = "grade"'))
    assert main(["check", str(path)]) == 2
    assert "clinical.csv, line 2: task 'survival', column 'grade': event must be 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "looks"),
    [
        ('scale = "z-scores"\nlog1p = false', "linear values, such as TPM or FPKM"),
        ('scale = "fractions"', "linear values, such as TPM or FPKM"),
        ('scale = "counts"', None),
        ('scale = "unknown"', None),
    ],
)
def test_a_stated_scale_that_the_table_contradicts_is_warned_of(description, tmp_path, keys, looks):
    path = copy_with_change(description, tmp_path, "cohort.toml", "[expression]", f"[expression]\n{keys}")
    warnings = [text for text in check_cohort(path, OPTIONS, task="grading").warnings if "is believed" in text]
    assert len(warnings) == (looks is not None)
    for text in warnings:
        assert f"[expression] {keys.splitlines()[0].replace(chr(34), chr(39))} is believed, and " in text
        assert f"expression.csv.gz looks like {looks} (" in text
        assert 'correct scale and log1p, or set scale = "unknown"' in text


def test_classes_that_may_be_one_are_warned_of(description, tmp_path):
    path = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "[clinical]")
    table = pd.read_csv(tmp_path / "clinical.csv")
    table.loc[table.index % 2 == 0, "grade"] = table["grade"].str.replace("G2", "g2").str.replace("G3", "3")
    table.loc[table.index % 2 == 1, "grade"] = table["grade"].str.replace("G3", "3.0")
    table.to_csv(tmp_path / "clinical.csv", index=False)
    warnings = check_cohort(path, OPTIONS, task="grading").warnings
    for pair in ("'G2' and 'g2'", "'3' and '3.0'"):
        text = f"task 'grading': classes {pair} differ in case, blanks or the form of a number only"
        assert sum(text in warning for warning in warnings) == 1


def test_genes_are_counted_for_each_of_several_gene_sets(description, tmp_path):
    path = copy_with_change(description, tmp_path, "cohort.toml", 'tumor = ["tumor"]', 'tumor = ["tumor", "MORE"]')
    gene = (tmp_path / "gene_sets.gmt").read_text().split("\t")[2]
    with (tmp_path / "gene_sets.gmt").open("a") as file:
        file.write(f"MORE\tsource\t{gene}\tA1\tA2\n")
    text = str(check_cohort(path, OPTIONS, task="grading"))
    assert "genes tumor     30 of 32 genes are in the table\n" in text
    assert f"{'':<16}by gene set, lowest share first: MORE 1 of 3, tumor 30 of 30\n" in text


def test_patients_left_out_are_warned_of(description, tmp_path):
    path = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "[clinical]")
    lines = (tmp_path / "clinical.csv").read_text().splitlines()
    (tmp_path / "clinical.csv").write_text("\n".join(lines[:-1]) + "\n")
    check = check_cohort(path, OPTIONS)
    assert any("1 of 45 patients are not in the clinical table and are left out" in text for text in check.warnings)


def test_a_cohort_without_expression_is_checked_as_it_is_trained(description, tmp_path):
    path = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "[clinical]")
    path.write_text(path.read_text().split("[expression]")[0])
    check = check_cohort(path, OPTIONS)
    assert not check.errors
    assert "expression      none: students are trained on slides alone, without a teacher to distill" in str(check)
    assert "task grading    classification, 45 patients: " in str(check)
    assert "folds, each with one student" in str(check)
    assert "with expression" not in str(check)


def test_folds_are_those_that_training_uses(description, tmp_path):
    path = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "[clinical]")
    table = pd.read_csv(tmp_path / "expression.csv.gz").iloc[:-9]
    table.to_csv(tmp_path / "expression.csv.gz", index=False)
    cohort = read_cohort(path)
    kind = cohort.definition("grading").kind
    check = str(check_cohort(path, OPTIONS, task="grading", folds=2))
    for number, split in enumerate(cross_validation._splits(cohort, "grading", 2, OPTIONS, quiet=True)):
        train, test = (kind.summary(columns_of_labels(c.labels("grading"))) for c in (split.train, split.tests["test"]))
        test_set = split.tests["test"]
        lines = (
            f"  fold{number}         train {len(split.train.patients)} patients "
            f"({len(split.train.paired)} with expression): {train}\n"
            f"                test  {len(test_set.patients)} patients ({len(test_set.paired)} with expression): {test}"
        )
        assert lines in check
    assert "with expression: 36 patients: " in check
    assert "; they test all models, the others those of slides alone\n" in check
    assert "task survival" not in check


def test_a_task_that_is_not_there_is_refused(description, capsys):
    assert main(["check", str(description), "--task=staging"]) == 2
    assert "task must be one of 'diagnosis', 'grading', 'survival', got 'staging'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("distill", "models"),
    [
        ("auto", "one teacher, 5 teachers for targets out of fold and two students"),
        ("never", "one teacher and one student"),
    ],
)
def test_the_estimate_counts_the_models_that_are_trained(distill, models):
    size = CohortSize({"20x": [3, 4, 5]}, 6, {"tumor": 4, "tme": 4}, 1.0, 2)
    estimate = estimate_run(size, replace(OPTIONS, distill=distill), folds=3)
    assert estimate.basis.endswith(f"times 2 epochs and 3 folds, each with {models}")
    assert estimate.seconds > 0
