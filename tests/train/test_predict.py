import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from disentangled_mil import Bag
from disentangled_mil._tables import unguarded
from disentangled_mil.cli import main
from disentangled_mil.data.cohort_file import read_cohort
from disentangled_mil.data.planted import write_cohort
from disentangled_mil.data.slides import write_bag
from disentangled_mil.train.experiment import Split, run_split
from disentangled_mil.train.explain_slides import explain_slides
from disentangled_mil.train.predict import predict_slides
from tests.support.checkpoints import change_description
from tests.support.training import few_choices


def described(planted, folder, slides=""):
    """The planted cohort in files; positive features, so that their logarithm can be taken."""
    samples = tuple(
        replace(sample, bags={name: Bag(bag.patches.abs(), bag.grid) for name, bag in sample.load().items()})
        for sample in planted.cohort.samples
    )
    path = write_cohort(planted._replace(cohort=replace(planted.cohort, samples=samples)), folder)
    path.write_text(path.read_text().replace("[slides.10x]", slides + "[slides.10x]"))
    return read_cohort(path)


def student_of(cohort, label, options, folder):
    """Train on 24 patients, test on the others: checkpoints, predictions of the test patients, files."""
    names = cohort.patients
    split = Split(cohort.subset(names[:24]), {"test": cohort.subset(names[24:])})
    with few_choices():
        result = run_split(split, label, replace(options, epochs=1, task_warmup=0.0), folder / "run", quiet=True)
    slides = {name: folder / "new" / name for name in cohort.magnifications}
    owners = []
    for name, target in slides.items():
        target.mkdir(parents=True)
        for sample in split.tests["test"].samples:
            for path in sample.bags[name].paths:
                shutil.copy(path, target)
                owners.append((path.stem, sample.patient))
    patients = folder / "patients.csv"
    pd.DataFrame(sorted(set(owners)), columns=["slide", "patient"]).to_csv(patients, index=False)
    return SimpleNamespace(folder=folder, run=folder / "run", slides=slides, patients=patients, result=result)


@pytest.fixture(scope="session")
def by_slide(planted, options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    return student_of(described(planted, folder / "cohort"), "grading", options, folder)


@pytest.fixture(scope="session")
def by_patient(planted, options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patient")
    cohort = described(planted, folder / "cohort", '[slides]\nbag = "patient"\ntransform = "log"\n')
    return student_of(cohort, "survival", options, folder)


@pytest.fixture
def slides(by_slide, tmp_path):
    """A copy of the new slides, to be damaged."""
    shutil.copytree(by_slide.folder / "new", tmp_path / "new")
    return {name: tmp_path / "new" / name for name in by_slide.slides}


@pytest.mark.parametrize("unit", ["by_slide", "by_patient"])
@pytest.mark.parametrize("model", ["student", "distilled"])
def test_a_saved_student_predicts_from_files_what_it_predicted_in_training(request, unit, model, tmp_path):
    trained = request.getfixturevalue(unit)
    out = tmp_path / "deep" / "predictions.csv"
    table = predict_slides(trained.run / f"{model}.json", trained.slides, out, patients=trained.patients)
    expected = trained.result.predictions.query("model == @model").set_index("patient")
    truth = {"label", "time", "event"} & set(expected.columns)
    assert list(table.columns) == ["patient", *expected.columns.drop(["model", "test", *truth])]
    assert set(table["patient"]) == set(expected.index)
    for column in table.columns.drop("patient"):
        wanted = expected[column][table["patient"]].to_numpy()
        if column == "predicted":
            assert table[column].tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(table[column], wanted, rtol=1e-4, atol=1e-5)
    pd.testing.assert_frame_equal(pd.read_csv(out), table, check_dtype=False)
    assert [path.name for path in out.parent.iterdir()] == ["predictions.csv"]


def test_checkpoint_notes_how_bags_are_read(by_patient):
    description = json.loads((by_patient.run / "distilled.json").read_text())
    reading = {
        "unit": "patient",
        "transform": "log",
        "drop_augmented": False,
        "missing": "error",
        "sets": ["10x", "20x"],
    }
    source = {"encoder": None, "width": 8, "magnification": None, "mpp": None}
    tiles = {"10x": {**source, "relative_side": 2.0}, "20x": {**source, "relative_side": 1.0}}
    assert description["reading"] == {**reading, "max_tokens": {}, "tiles": tiles, "features": {}, "coords": {}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "must have coordinates, as in training, got none"),
        ("coord_level0", r"coordinates must be in a dataset coords or"),
    ],
)
def test_missing_coordinates_are_refused_before_slides_are_read(by_slide, slides, tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("disentangled_mil.data.cohort.Sample.load", lambda self: pytest.fail("read a slide"))
    last = max(slides["20x"].iterdir())
    with h5py.File(last, "r+") as file:
        if name is not None:
            file[name] = file["coords"]
        del file["coords"]
    with pytest.raises(ValueError, match=rf"{last.name}: {message}"):
        predict_slides(by_slide.run / "student", slides, tmp_path / "out.csv")


@pytest.fixture
def with_sources(by_slide, slides, tmp_path):
    """A student whose training slides named encoder and magnification, and new slides that name them too."""
    for name, folder in slides.items():
        for path in folder.iterdir():
            with h5py.File(path, "r+") as file:
                file["features"].attrs["encoder"] = "uni"
                file["coords"].attrs["target_magnification"] = int(name.removesuffix("x"))
    source = {"encoder": "uni", "width": 8, "mpp": None}
    sources = {name: {**source, "magnification": float(name.removesuffix("x"))} for name in slides}
    return changed_checkpoint(by_slide.run, tmp_path, lambda content: content["reading"].update(tiles=sources))


def test_slides_of_another_encoder_are_refused_before_any_is_read_unless_allowed(
    with_sources, slides, tmp_path, monkeypatch
):
    out = tmp_path / "out.csv"
    expected = predict_slides(with_sources, slides, out)
    last = max(slides["20x"].iterdir())
    with h5py.File(last, "r+") as file:
        file["features"].attrs["encoder"] = "conch"
    table = predict_slides(with_sources, slides, out, allow_other_encoder=True, overwrite=True)
    pd.testing.assert_frame_equal(table, expected)
    monkeypatch.setattr("disentangled_mil.data.cohort.Sample.load", lambda self: pytest.fail("read a slide"))
    message = rf"{last.name}: must have features of the encoder 'uni', got 'conch' as in training at 20x; --allow-other"
    with pytest.raises(ValueError, match=message):
        predict_slides(with_sources, slides, out, overwrite=True)


def test_swapped_folders_of_magnifications_are_refused(with_sources, slides, tmp_path):
    swapped = {"10x": slides["20x"], "20x": slides["10x"]}
    with pytest.raises(ValueError, match=r"must have tiles at 10x, got 20x as in training at 10x"):
        predict_slides(with_sources, swapped, tmp_path / "out.csv", allow_other_encoder=True)


@pytest.mark.parametrize("unit", ["by_slide", "by_patient"])
def test_swapped_folders_without_metadata_are_refused_by_the_ratio_of_tiles(request, unit, tmp_path, monkeypatch):
    trained, out = request.getfixturevalue(unit), tmp_path / "out.csv"
    swapped = {"10x": trained.slides["20x"], "20x": trained.slides["10x"]}
    table = predict_slides(trained.run / "student", swapped, out, patients=trained.patients, allow_other_tiles=True)
    assert len(table) == len(trained.result.predictions["patient"].unique())
    monkeypatch.setattr("disentangled_mil.data.cohort.Sample.load", lambda self: pytest.fail("read a slide"))
    message = (
        r"20x/.*: tiles must be 2 times as wide as those of .*10x/.*, as in training at 10x and 20x, got 0.5 times: "
        r"are the folders swapped\? --allow-other-tiles"
    )
    with pytest.raises(ValueError, match=message):
        predict_slides(trained.run / "student", swapped, out, patients=trained.patients, overwrite=True)
    if unit == "by_slide":
        with pytest.raises(ValueError, match=message):
            explain_slides(trained.run / "student.json", swapped, tmp_path / "maps")


def test_a_model_that_was_saved_before_compares_no_tiles(by_slide, tmp_path):
    def forget(content):
        for facts in content["reading"]["tiles"].values():
            del facts["relative_side"]

    model = changed_checkpoint(by_slide.run, tmp_path, forget)
    swapped = {"10x": by_slide.slides["20x"], "20x": by_slide.slides["10x"]}
    assert len(predict_slides(model, swapped, tmp_path / "out.csv"))


@pytest.mark.parametrize("side", [0, -2.0])
def test_a_relative_side_that_no_tile_has_is_refused(by_slide, tmp_path, side):
    def damage(content):
        content["reading"]["tiles"]["20x"]["relative_side"] = side

    model = changed_checkpoint(by_slide.run, tmp_path, damage)
    message = rf"student\.json: reading\.?.*tiles\['20x'\]\.relative_side must lie in \[1, inf\], got {side}"
    with pytest.raises(ValueError, match=message):
        predict_slides(model, by_slide.slides, tmp_path / "out.csv")


def test_the_cap_of_training_holds_in_prediction(by_slide, slides, tmp_path):
    path = changed_checkpoint(by_slide.run, tmp_path, lambda content: content["reading"].update(max_tokens={"20x": 3}))
    with pytest.warns(UserWarning, match=r"^\d+ of \d+ bags of slides are read in part") as told:
        capped = predict_slides(path, slides, tmp_path / "out.csv")
    assert len(told) == 1
    assert not capped.equals(predict_slides(by_slide.run / "student", slides, tmp_path / "whole.csv"))


def test_an_empty_slide_is_refused_before_any_is_read(by_slide, slides, tmp_path, monkeypatch):
    monkeypatch.setattr("disentangled_mil.data.cohort.Sample.load", lambda self: pytest.fail("read a slide"))
    last = max(slides["20x"].iterdir())
    with h5py.File(last, "w") as file:
        file["features"] = np.zeros((0, 8), "float32")
    with pytest.raises(ValueError, match=rf"{last.name}: must hold at least one patch, got none; take the slide out"):
        predict_slides(by_slide.run / "student", slides, tmp_path / "out.csv")


def test_a_student_of_sets_needs_no_coordinates(by_patient, tmp_path):
    shutil.copytree(by_patient.folder / "new", tmp_path / "new")
    slides = {name: tmp_path / "new" / name for name in by_patient.slides}
    for path in slides["20x"].iterdir():
        with h5py.File(path, "r+") as file:
            del file["coords"]
    tables = [
        predict_slides(by_patient.run / "student", folders, tmp_path / name, patients=by_patient.patients)
        for name, folders in (("a.csv", slides), ("b.csv", by_patient.slides))
    ]
    pd.testing.assert_frame_equal(*tables)


def test_without_a_table_of_patients_every_slide_is_one(by_slide, tmp_path):
    table = predict_slides(by_slide.run / "student", by_slide.slides, tmp_path / "out.csv")
    stems = sorted(path.stem for path in by_slide.slides["20x"].iterdir())
    assert table["patient"].tolist() == stems
    grouped = predict_slides(
        by_slide.run / "student", by_slide.slides, tmp_path / "grouped.csv", patients=by_slide.patients
    )
    owner = pd.read_csv(by_slide.patients, index_col="slide")["patient"]
    means = table.groupby(owner[table["patient"]].to_numpy())["probability_G2"].mean()
    np.testing.assert_allclose(grouped["probability_G2"], means[grouped["patient"]], rtol=1e-5)


def test_the_side_of_a_cell_can_be_given(by_slide, slides, tmp_path):
    for path in slides["20x"].iterdir():
        with h5py.File(path, "r+") as file:
            side = file["coords"].attrs["patch_size_level0"]
            file["coords"].attrs["patch_size_level0"] = 0
    expected = predict_slides(by_slide.run / "student", by_slide.slides, tmp_path / "out.csv")
    steps = {"20x": float(side)}
    table = predict_slides(by_slide.run / "student", slides, tmp_path / "given.csv", steps=steps)
    pd.testing.assert_frame_equal(table, expected)
    with pytest.raises(ValueError, match="steps must be of the magnifications 10x, 20x, got '40x'"):
        predict_slides(by_slide.run / "student", slides, tmp_path / "out.csv", steps={"40x": 1.0})


@pytest.mark.parametrize(("model", "name"), [("genes", "GeneNetwork"), ("teacher", "Teacher")])
def test_a_model_that_needs_genes_is_refused(by_slide, tmp_path, model, name):
    with pytest.raises(ValueError, match=f"{model}.json: must hold a student, got a {name}, which needs genes"):
        predict_slides(by_slide.run / f"{model}.json", by_slide.slides, tmp_path / "out.csv")


@pytest.mark.parametrize("names", [["20x"], ["10x", "20x", "40x"], ["10x", "40x"]])
def test_slides_must_come_at_the_magnifications_of_the_student(by_slide, tmp_path, names):
    folders = dict.fromkeys(names, by_slide.slides["20x"])
    with pytest.raises(ValueError, match=r"slides must have exactly the names \['10x', '20x'\], got"):
        predict_slides(by_slide.run / "student", folders, tmp_path / "out.csv")


def test_a_slide_missing_at_one_magnification_is_named(by_slide, slides, tmp_path):
    first, second = sorted(slides["10x"].iterdir())[:2]
    first.unlink()
    with pytest.raises(ValueError, match=rf"10x: must hold every slide, but lacks {first.stem}"):
        predict_slides(by_slide.run / "student", slides, tmp_path / "out.csv")
    second.unlink()
    with pytest.raises(ValueError, match=rf"lacks {first.stem}"):
        predict_slides(by_slide.run / "student", slides, tmp_path / "out.csv")


def test_a_missing_or_empty_folder_is_refused(by_slide, tmp_path):
    absent = {"10x": tmp_path / "no", "20x": by_slide.slides["20x"]}
    with pytest.raises(FileNotFoundError, match="no: no such folder"):
        predict_slides(by_slide.run / "student", absent, tmp_path / "out.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: must hold slides \(\.h5, .*\), got none"):
        predict_slides(
            by_slide.run / "student", dict.fromkeys(("10x", "20x"), tmp_path / "empty"), tmp_path / "out.csv"
        )


def test_a_slide_of_another_width_is_named_and_nothing_is_written(by_slide, slides, tmp_path):
    path = sorted(slides["20x"].iterdir())[2]
    write_bag(path, torch.ones(6, 9))
    out = tmp_path / "out.csv"
    with pytest.raises(ValueError, match=rf"{path.name}: must have 8 features per patch, as in training, got 9"):
        predict_slides(by_slide.run / "student", slides, out)
    assert not out.exists()


def test_a_slide_with_a_value_that_is_not_finite_is_named(by_slide, slides, tmp_path):
    path = sorted(slides["10x"].iterdir())[1]
    with h5py.File(path, "r+") as file:
        file["features"][0, 1] = np.nan
    with pytest.raises(ValueError, match=rf"{path.name}: features must be finite"):
        predict_slides(by_slide.run / "student", slides, tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[1:], ": must name the patient of every slide, but lacks"),
        (
            lambda table: pd.concat([table, table.iloc[:1]]),
            r", line \d+: must hold every slide once, got 'P3-0024-1' again",
        ),
        (
            lambda table: table.rename(columns={"patient": "who"}),
            ": must have one column 'patient', got 0 among slide, who",
        ),
        (
            lambda table: pd.concat([table, table[["patient"]]], axis=1),
            ": must have one column 'patient', got 2 among slide, patient, patient",
        ),
        (
            lambda table: pd.concat([table, table[["slide"]]], axis=1),
            ": must have one column 'slide', got 2 among slide, patient, slide",
        ),
        (
            lambda table: table.assign(patient=[None] * len(table)),
            ", line 2: must name a slide and its patient, got an empty cell",
        ),
    ],
)
def test_a_table_of_patients_with_a_defect_is_refused(by_slide, tmp_path, change, message):
    path = tmp_path / "patients.csv"
    change(pd.read_csv(by_slide.patients)).to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"patients\.csv{message}"):
        predict_slides(by_slide.run / "student", by_slide.slides, tmp_path / "out.csv", patients=path)


def test_slides_of_the_table_that_are_not_in_the_folders_do_not_matter(by_slide, tmp_path):
    path, out = tmp_path / "patients.csv", tmp_path / "out.csv"
    table = pd.read_csv(by_slide.patients)
    pd.concat([table, pd.DataFrame({"slide": ["elsewhere"], "patient": ["X"]})]).to_csv(path, index=False)
    found = predict_slides(by_slide.run / "student", by_slide.slides, out, patients=path)
    assert set(found["patient"]) == set(table["patient"])


@pytest.mark.parametrize("content", [b"", b"slide,patient\n\xff,A\n", b"slide,patient\na\n"])
def test_a_table_of_patients_that_is_no_table_is_named(by_slide, tmp_path, content):
    path = tmp_path / "patients.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"patients\.csv.* must "):
        predict_slides(by_slide.run / "student", by_slide.slides, tmp_path / "out.csv", patients=path)


@pytest.mark.parametrize("how", ["same", "symlink", "hard link", "relative"])
@pytest.mark.parametrize("what", ["patients", "description", "weights", "slide"])
def test_nothing_that_is_read_is_overwritten(by_slide, slides, tmp_path, monkeypatch, what, how):
    for suffix in (".json", ".safetensors"):
        shutil.copy(by_slide.run / f"student{suffix}", tmp_path)
    patients = shutil.copy(by_slide.patients, tmp_path / "patients.csv")
    found = {
        "patients": patients,
        "description": tmp_path / "student.json",
        "weights": tmp_path / "student.safetensors",
        "slide": min(slides["20x"].iterdir()),
    }
    read, out = found[what], tmp_path / "out.csv"
    before = read.read_bytes()
    monkeypatch.chdir(tmp_path)
    if how == "symlink":
        out.symlink_to(read)
    elif how == "hard link":
        out.hardlink_to(read)
    else:
        out = read if how == "same" else Path("..") / tmp_path.name / read.relative_to(tmp_path)
    message = "must be another file than" if out.suffix == ".csv" else r"predictions must end in \.csv"
    with pytest.raises(ValueError, match=message):
        predict_slides(tmp_path / "student", slides, out, patients=patients, overwrite=True)
    assert read.read_bytes() == before


def test_tables_of_a_run_are_not_replaced(by_slide, tmp_path):
    run = shutil.copytree(by_slide.run, tmp_path / "run")
    log = run / "student.csv"
    log.write_text("epoch")
    with pytest.raises(ValueError, match=r"student\.csv: must be another file than"):
        predict_slides(run / "student", by_slide.slides, log, patients=by_slide.patients, overwrite=True)
    assert log.read_text() == "epoch"


def test_predictions_that_are_there_are_replaced_on_demand_only(by_slide, tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("precious")
    arguments = ["predict", str(by_slide.run / "student"), f"--out={out}", f"--patients={by_slide.patients}"]
    arguments += [f"--slides={name}={folder}" for name, folder in by_slide.slides.items()]
    assert main(arguments) == 2
    assert out.read_text() == "precious"
    assert main([*arguments, "--overwrite"]) == 0
    assert out.read_text().startswith("patient,")


def test_names_that_a_spreadsheet_would_run_are_guarded(by_slide, tmp_path):
    """OWASP, CSV injection."""
    owners = pd.read_csv(by_slide.patients)
    names = dict(zip(owners["patient"].unique(), ("=1+1", "@SUM(A1)", "+7", "-x", "'=x"), strict=False))
    owners["patient"] = owners["patient"].replace(names)
    owners.to_csv(tmp_path / "patients.csv", index=False)
    out = tmp_path / "out.csv"
    table = predict_slides(by_slide.run / "student", by_slide.slides, out, patients=tmp_path / "patients.csv")
    written = pd.read_csv(out, dtype=str)["patient"]
    assert {"'=1+1", "'@SUM(A1)", "+7", "'-x", "''=x"} <= set(written)
    assert written.map(unguarded).tolist() == table["patient"].tolist()


def test_a_patient_may_be_called_NA(by_slide, tmp_path):
    path = tmp_path / "patients.csv"
    pd.read_csv(by_slide.patients).assign(patient="NA").to_csv(path, index=False)
    table = predict_slides(by_slide.run / "student", by_slide.slides, tmp_path / "out.csv", patients=path)
    assert table["patient"].tolist() == ["NA"]


def test_a_result_that_cannot_be_written_is_refused_before_slides_are_read(by_slide, tmp_path, monkeypatch):
    def load(self):
        raise AssertionError("read slides")

    monkeypatch.setattr("disentangled_mil.data.cohort.Sample.load", load)
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match="must be a file to write, got a folder"):
        predict_slides(by_slide.run / "student", by_slide.slides, tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match=f"{tmp_path}: must be a folder that may be written to"):
        predict_slides(by_slide.run / "student", by_slide.slides, tmp_path / "out.csv")
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match=r"'.*/file'"):
        predict_slides(by_slide.run / "student", by_slide.slides, tmp_path / "file" / "out.csv")


def changed_checkpoint(run, folder, change):
    """A copy of a student whose description is changed."""
    for suffix in (".json", ".safetensors"):
        shutil.copy(run / f"student{suffix}", folder)
    return change_description(folder / "student.json", change)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("unit", "tile", r"unit must be one of 'slide', 'patient', got 'tile'"),
        ("transform", ["log"], r"transform must be text, got \['log'\]"),
        ("drop_augmented", "no", r"drop_augmented must be true or false, got 'no'"),
        ("sets", None, r"sets must be a list, got None"),
        ("sets", ["40x"], r"sets must be of the magnifications 10x, 20x, got '40x'"),
        ("max_tokens", [9], r"max_tokens must be an object, got \[9\]"),
        ("tiles", [], r"tiles must be an object, got \[\]"),
    ],
)
def test_a_checkpoint_that_describes_no_reading_of_bags_is_named(by_slide, tmp_path, key, value, message):
    path = changed_checkpoint(by_slide.run, tmp_path, lambda description: description["reading"].update({key: value}))
    with pytest.raises(ValueError, match=rf"student\.json: reading {message}"):
        predict_slides(path, by_slide.slides, tmp_path / "out.csv")
    path = changed_checkpoint(by_slide.run, tmp_path, lambda description: description["reading"].pop(key))
    with pytest.raises(ValueError, match=rf"student\.json: reading must have the key '{key}'"):
        predict_slides(path, by_slide.slides, tmp_path / "out.csv")
    path = changed_checkpoint(by_slide.run, tmp_path, lambda description: description.update(reading=value))
    with pytest.raises(ValueError, match=r"student\.json: reading must be an object, got"):
        predict_slides(path, by_slide.slides, tmp_path / "out.csv")


@pytest.mark.parametrize("key", ["task", "reading"])
def test_a_student_that_lacks_what_prediction_needs_is_refused_with_the_remedy(by_slide, tmp_path, key):
    path = changed_checkpoint(by_slide.run, tmp_path, lambda description: description.pop(key))
    with pytest.raises(
        ValueError, match=rf"student\.json: must have the key '{key}'; .* save_model\(\.\.\., {key}=\.\.\.\)"
    ):
        predict_slides(path, by_slide.slides, tmp_path / "out.csv")


def test_a_student_of_all_slides_of_a_patient_asks_for_the_patients(by_patient, tmp_path):
    with pytest.raises(ValueError, match=r"^the model learned from all slides of a patient .* needs --patients, a CSV"):
        predict_slides(by_patient.run / "student", by_patient.slides, tmp_path / "out.csv")


def test_all_faulty_slides_are_counted_before_any_is_read(by_slide, slides, tmp_path, monkeypatch):
    monkeypatch.setattr("disentangled_mil.data.cohort.Sample.load", lambda self: pytest.fail("read a slide"))
    first, *_, last = sorted(slides["20x"].iterdir())
    for path in (first, last):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{first.name}: .*\(and 1 more of \d+ are refused\)"):
        predict_slides(by_slide.run / "student", slides, tmp_path / "out.csv")


def test_a_slide_that_is_refused_late_leaves_its_patient_out_and_keeps_the_others(by_slide, slides, tmp_path, capsys):
    path, out = sorted(slides["10x"].iterdir())[1], tmp_path / "out.csv"
    with h5py.File(path, "r+") as file:
        file["features"][0, 1] = np.nan
    owner = pd.read_csv(by_slide.patients, index_col="slide")["patient"][path.stem]
    arguments = ["predict", str(by_slide.run / "student.json"), "--out", str(out), "--patients", str(by_slide.patients)]
    arguments += [f"--slides={name}={folder}" for name, folder in slides.items()]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"without 1 that were refused: {owner}: " in said
    assert f"{path.name}: features must be finite" in said
    whole = predict_slides(
        by_slide.run / "student", by_slide.slides, tmp_path / "whole.csv", patients=by_slide.patients
    )
    expected = whole[whole["patient"] != owner].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(out), expected, check_dtype=False)


def run_of_folds(trained, folder, models=("student", "distilled")):
    """A run folder whose two folds are these students."""
    for number, model in enumerate(models):
        fold = folder / f"fold{number}"
        fold.mkdir(parents=True)
        for suffix in (".json", ".safetensors"):
            shutil.copy(trained.run / f"{model}{suffix}", fold)
    return folder


def test_a_run_folder_predicts_the_mean_of_its_folds_and_says_so(by_slide, tmp_path, capsys):
    run = run_of_folds(by_slide, tmp_path / "run")
    one, two = (
        predict_slides(by_slide.run / m, by_slide.slides, tmp_path / f"{m}.csv") for m in ("student", "distilled")
    )
    capsys.readouterr()
    table = predict_slides(run, by_slide.slides, tmp_path / "out.csv")
    texts = {name: str(folder) for name, folder in by_slide.slides.items()}
    pd.testing.assert_frame_equal(predict_slides(str(run), texts, str(tmp_path / "text.csv"), quiet=True), table)
    assert (tmp_path / "text.csv").is_file()
    names = f"{run / 'fold0' / 'student.json'}, {run / 'fold1' / 'distilled.json'}"
    assert f"mean of 2 students: {names}\n" in capsys.readouterr().err
    for name in table.filter(like="probability"):
        np.testing.assert_allclose(table[name], (one[name] + two[name]) / 2, rtol=1e-5)
    best = table.filter(like="probability").idxmax(axis=1).str.removeprefix("probability_")
    assert table["predicted"].tolist() == best.tolist()


def test_the_student_of_all_patients_goes_before_the_folds_unless_these_are_chosen(by_slide, tmp_path):
    run = run_of_folds(by_slide, tmp_path / "run", models=("student", "student"))
    (run / "fold1").rename(run / "final")
    for suffix in (".json", ".safetensors"):
        shutil.copy(by_slide.run / f"distilled{suffix}", run / "final")
    student, distilled, folds, final = (
        predict_slides(path, by_slide.slides, tmp_path / "o.csv", students=students, overwrite=True)
        for path, students in (
            (by_slide.run / "student", "auto"),
            (by_slide.run / "distilled", "auto"),
            (run, "folds"),
            (run, "auto"),
        )
    )
    pd.testing.assert_frame_equal(folds, student)
    pd.testing.assert_frame_equal(final, distilled)
    (run / "final" / "distilled.progress.pt").touch()
    with pytest.raises(ValueError, match=r"final: must hold a finished training; end it by .* --resume"):
        predict_slides(run, by_slide.slides, tmp_path / "o.csv")
    with pytest.raises(ValueError, match=r"student\.json: must be a run folder to choose its students 'folds'"):
        predict_slides(run / "fold0" / "student.json", by_slide.slides, tmp_path / "o.csv", students="folds")


def test_hazards_of_other_intervals_are_not_averaged_and_risks_are(by_patient, tmp_path):
    run = run_of_folds(by_patient, tmp_path / "run", models=("student", "student"))
    alike = predict_slides(run, by_patient.slides, tmp_path / "o.csv", patients=by_patient.patients)
    last = json.loads((run / "fold1" / "student.json").read_text())["task"]["edges"][-1]
    change_description(run / "fold1" / "student.json", lambda found: found["task"]["edges"].__setitem__(-1, last + 1.0))
    table = predict_slides(run, by_patient.slides, tmp_path / "p.csv", patients=by_patient.patients)
    assert "hazard_0" in alike
    pd.testing.assert_frame_equal(table, alike[["patient", "risk"]])


def test_a_declined_student_is_named_with_the_one_to_take(tmp_path, capsys):
    (tmp_path / "student.json").touch()
    places = ["--slides", f"10x={tmp_path}", "--out", str(tmp_path / "out.csv")]
    assert main(["predict", str(tmp_path / "distilled.json"), *places]) == 2
    said = capsys.readouterr().err
    assert f"distillation was declined there; take {tmp_path / 'student.json'}" in said
