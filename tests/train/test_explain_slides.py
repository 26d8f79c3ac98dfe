"""Maps of slides in folders: untrained models are enough, because the maps are those of any model."""

import json
import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from disentangled_mil import Bag, Student, Teacher
from disentangled_mil.cli import main
from disentangled_mil.data import SlideReading, TileFacts
from disentangled_mil.data.expression import ExpressionPipeline
from disentangled_mil.data.slides import write_bag
from disentangled_mil.explain import student_view
from disentangled_mil.tasks import Classification
from disentangled_mil.train.building import WITHOUT_GENES
from disentangled_mil.train.checkpoint import load_model, save_model
from disentangled_mil.train.explain_slides import Extras, explain_slides

SIZES = {"10x": 896, "20x": 448}
TASK = Classification(["low", "high"])
MODEL = {"features": 8, "outputs": 2, "dim": 16, "heads": 2, "groups": 2, "dim_head": 4}


def save(folder, model, *, name="model", **reading) -> Path:
    """A checkpoint whose training read slides in this way."""
    path = folder / name
    save_model(path, model, task=TASK, reading=SlideReading(**reading))
    return path.with_suffix(".json")


@pytest.fixture
def slides(tmp_path):
    """Two slides of unequal size at two magnifications; the first has a hole."""
    torch.manual_seed(0)
    for name, side in SIZES.items():
        folder = tmp_path / "slides" / name
        folder.mkdir(parents=True)
        cells = torch.cartesian_prod(torch.arange(3 * 896 // side), torch.arange(2 * 896 // side))
        for slide, chosen in (("A", cells[cells.sum(1) != 2]), ("B", cells[: 896 // side])):
            write_bag(folder / f"{slide}.h5", torch.randn(len(chosen), 8), chosen * side, step=side)
    return {name: tmp_path / "slides" / name for name in SIZES}


@pytest.fixture
def student(tmp_path):
    torch.manual_seed(0)
    return save(tmp_path, Student(**MODEL))


def test_every_slide_has_a_table_a_picture_and_a_geojson(student, slides, tmp_path):
    assert explain_slides(student, slides, tmp_path / "maps") == ["A", "B"]
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    assert names == {f"{slide}.{suffix}" for slide in "AB" for suffix in ("csv", "png", "geojson")}
    table = pd.read_csv(tmp_path / "maps" / "A.csv")
    with h5py.File(slides["20x"] / "A.h5") as file:
        np.testing.assert_array_equal(table[["x", "y"]].head(len(file["coords"])), file["coords"])
    assert table["attention_20x"].mean() == pytest.approx(1, abs=1e-4)
    features = json.loads((tmp_path / "maps" / "A.geojson").read_text())["features"]
    assert [f["properties"]["classification"]["name"] for f in features] == table["class"].tolist()


def test_one_slide_can_be_named_by_its_files(student, slides, tmp_path):
    files = {name: folder / "B.h5" for name, folder in slides.items()}
    assert explain_slides(student, files, tmp_path / "maps") == ["B"]
    texts = {name: str(file) for name, file in files.items()}
    assert explain_slides(str(student), texts, str(tmp_path / "text")) == ["B"]
    assert (tmp_path / "text" / "B.csv").read_bytes() == (tmp_path / "maps" / "B.csv").read_bytes()


def test_a_run_folder_names_its_one_student_and_takes_the_maps(slides, tmp_path, capsys):
    torch.manual_seed(0)
    run = tmp_path / "run"
    for folder in ("fold0", "fold1"):
        save(run / folder, Student(**MODEL), name="student")
    places = [f"{name}={folder}" for name, folder in slides.items()]
    assert main(["explain", str(run), *places]) == 2
    message = f"error: {run}: must hold one student, got those of 2 folds; name a checkpoint such as {run}/fold0/stud"
    assert message in capsys.readouterr().err
    save(run / "final", Student(**MODEL), name="student")
    (run / "run.json").write_text("{}")
    assert main(["explain", str(run), *places]) == 0
    told = "to see them in the report of the run: python -m disentangled_mil report"
    assert capsys.readouterr().out == f"2 maps -> {run / 'maps'}\n{told} {run}\n"
    elsewhere, checkpoint = str(tmp_path / "m"), str(run / "fold0" / "student.json")
    assert main(["explain", checkpoint, *places, "--out", elsewhere]) == 0
    assert capsys.readouterr().out.endswith(f"{told} {run} --maps {elsewhere}\n")
    assert main(["explain", checkpoint, *places]) == 2
    assert "--out must name a folder, unless the model is a run folder" in capsys.readouterr().err
    assert main(["explain", str(tmp_path / "typo"), *places]) == 2
    assert f"error: {tmp_path / 'typo'}.json: no such file" in capsys.readouterr().err


def test_a_slide_that_is_refused_late_is_a_failure_on_the_way_and_does_not_stop_the_others(
    student, slides, tmp_path, capsys
):
    places = [f"{name}={folder}" for name, folder in slides.items()]
    with h5py.File(slides["10x"] / "A.h5", "r+") as file:
        file["features"][0, 1] = np.nan
    assert main(["explain", str(student), *places, "--out", str(tmp_path / "maps")]) == 1
    said = capsys.readouterr().err
    assert "maps: holds maps of 1 slides, without 1 of 2 slides that were refused: A: " in said
    assert "A.h5: features must be finite" in said
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"B.csv", "B.png", "B.geojson"}


def test_an_image_that_is_refused_late_does_not_stop_the_others(student, slides, tmp_path):
    pytest.importorskip("openslide")
    images = tmp_path / "images"
    images.mkdir()
    (images / "A.svs").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"holds maps of 1 slides, without 1 of 2 slides .*: A: .*A\.svs"):
        explain_slides(student, slides, tmp_path / "maps", Extras(images=images))
    assert (tmp_path / "maps" / "B.csv").exists()


def test_the_given_side_of_a_cell_is_that_of_tiles_of_which_nothing_else_is_known(student, tmp_path, capsys):
    for name in SIZES:
        (tmp_path / name).mkdir()
        write_bag(tmp_path / name / "A.h5", torch.ones(2, 8), torch.tensor([[0, 0], [40_000, 20_000]]))
    command = ["explain", str(student), *(f"{name}={tmp_path / name}" for name in SIZES)]
    assert main([*command, "--out", str(tmp_path / "maps")]) == 2
    assert "A.h5: a map needs the side of a tile, got none; give it by --step 10x=SIDE" in capsys.readouterr().err
    steps = [text for name, side in SIZES.items() for text in ("--step", f"{name}={side}")]
    assert main([*command, *steps, "--out", str(tmp_path / "maps")]) == 0
    features = json.loads((tmp_path / "maps" / "A.geojson").read_text())["features"]
    assert {corner[0][2][0] for corner in (f["geometry"]["coordinates"] for f in features)} == {448, 40_448}
    # A cell of a tenth of the tile makes too large a grid, which is said before the first map.
    assert main([*command, "--step", "10x=896", "--step", "20x=44.8", "--out", str(tmp_path / "other")]) == 2
    assert "A.h5: coords must lie on a grid: 2 tokens would span 894 x 447 cells of" in capsys.readouterr().err


def test_names_in_the_files_are_those_of_training(student, slides, tmp_path):
    explain_slides(student, slides, tmp_path / "maps")
    for folder in slides.values():
        for path in folder.iterdir():
            with h5py.File(path, "r+") as file:
                file.move("features", "embeddings")
                file.move("coords", "coords_level0")
    with pytest.raises(ValueError, match=r"must have a dataset features, .*; name it by features = 'embeddings'"):
        explain_slides(student, slides, tmp_path / "named")
    names = {"features": dict.fromkeys(SIZES, "embeddings"), "coords": dict.fromkeys(SIZES, "coords_level0")}
    torch.manual_seed(0)
    assert explain_slides(save(tmp_path, Student(**MODEL), name="other", **names), slides, tmp_path / "named")
    for path in (tmp_path / "maps").glob("*.csv"):
        assert (tmp_path / "named" / path.name).read_bytes() == path.read_bytes()


def test_the_command_that_shows_maps_can_be_pasted(slides, tmp_path, capsys):
    run, maps = tmp_path / "my run", tmp_path / "the maps"
    checkpoint = save(run, Student(**MODEL), name="student")
    (run / "run.json").write_text("{}")
    places = [f"{name}={folder}" for name, folder in slides.items()]
    assert main(["explain", str(checkpoint), *places, "--out", str(maps)]) == 0
    command = capsys.readouterr().out.partition("report of the run: ")[2]
    assert shlex.split(command)[3:] == ["report", str(run), "--maps", str(maps)]


def test_other_tiles_than_in_training_are_read_where_the_command_allows_it(slides, tmp_path, capsys):
    tiles = {"10x": TileFacts(relative_side=1.0), "20x": TileFacts(relative_side=2.0)}
    student = save(tmp_path, Student(**MODEL), tiles=tiles)
    places = [f"{name}={folder}" for name, folder in slides.items()]
    arguments = ["explain", str(student), *places, "--out", str(tmp_path / "maps")]
    assert main(arguments) == 2
    assert (
        "got 2 times: are the folders swapped? --allow-other-tiles reads them all the same" in capsys.readouterr().err
    )
    assert main([*arguments, "--allow-other-tiles"]) == 0


def test_names_of_prototypes_that_no_teacher_gave_are_told(slides, tmp_path, monkeypatch):
    path, titles = tmp_path / "student", []
    monkeypatch.setattr(
        "disentangled_mil.train.explain_slides.draw_map", lambda *args, title, **options: titles.append(title)
    )
    save_model(path, Student(**MODEL), reading=SlideReading(), task=TASK, notes={"name": "student"})
    with pytest.warns(UserWarning, match=r"student\.json: was not distilled, so no teacher named its prototypes"):
        explain_slides(path.with_suffix(".json"), slides, tmp_path / "maps")
    assert titles[1].startswith("B (this student was not distilled, so no teacher named its prototypes")
    titles.clear()
    for notes, subspaces in (({"name": "distilled"}, ("tumor", "tme")), ({"name": "student"}, WITHOUT_GENES)):
        model = Student(**MODEL, subspaces=subspaces)
        save_model(path, model, reading=SlideReading(), task=TASK, notes=notes)
        explain_slides(path.with_suffix(".json"), slides, tmp_path / "maps", overwrite=True)
    assert titles == ["A", "B"] * 2


def test_tiles_that_are_left_out_are_told_once(slides, tmp_path):
    student = save(tmp_path, Student(**MODEL), max_tokens={"10x": 2, "20x": 3})
    with pytest.warns(UserWarning, match=r"^2 of 4 bags of slides are read in part, .* max_tokens, 2 or 3;"):
        explain_slides(student, slides, tmp_path / "maps")


def test_a_student_of_patients_asks_for_them(slides, tmp_path):
    student = save(tmp_path, Student(**MODEL), unit="patient", sets=("10x", "20x"))
    with pytest.raises(ValueError, match="the model learned from all slides of a patient in one bag, so it needs"):
        explain_slides(student, slides, tmp_path / "maps")


def test_a_bag_of_a_patient_has_a_map_per_slide(slides, tmp_path):
    torch.manual_seed(0)
    student = save(tmp_path, Student(**MODEL), unit="patient", sets=("10x", "20x"))
    patients = tmp_path / "patients.csv"
    patients.write_text("slide,patient\nA,P\nB,P\n")
    assert explain_slides(student, slides, tmp_path / "maps", patients=patients) == ["A", "B"]
    tables = [pd.read_csv(tmp_path / "maps" / f"{slide}.csv") for slide in "AB"]
    # Attention is even over all tiles of the patient, and not over those of one slide.
    assert pd.concat(tables)["attention_20x"].mean() == pytest.approx(1, abs=1e-4)
    bags = {}
    for name, folder in slides.items():
        parts = []
        for slide in "AB":
            with h5py.File(folder / f"{slide}.h5") as file:
                parts.append(torch.from_numpy(file["features"][()]))
        bags[name] = Bag.from_slide(torch.cat(parts))
    with torch.no_grad():
        view = student_view(load_model(student).model(bags).branches["20x"], ("tumor", "tme"))
    np.testing.assert_allclose(pd.concat(tables)["attention_20x"], view["attention"], atol=1e-4)


@pytest.mark.filterwarnings("ignore:.* bags of slides are read in part")
def test_a_slide_of_a_patient_whose_share_is_no_tile_has_no_map(slides, tmp_path):
    student = save(tmp_path, Student(**MODEL), unit="patient", sets=("10x", "20x"), max_tokens={"10x": 3, "20x": 8})
    for folder in slides.values():
        write_bag(folder / "0.h5", torch.randn(1, 8), torch.zeros(1, 2), step=448)
    patients = tmp_path / "patients.csv"
    patients.write_text("slide,patient\n0,P\nA,P\n")
    for folder in slides.values():
        (folder / "B.h5").unlink()
    assert explain_slides(student, slides, tmp_path / "maps", patients=patients) == ["A"]


def test_slides_without_coordinates_are_refused_with_the_remedy(tmp_path, slides):
    student = save(tmp_path, Student(**MODEL), sets=("10x", "20x"))
    with h5py.File(slides["20x"] / "B.h5", "r+") as file:
        del file["coords"]
    with pytest.raises(
        ValueError, match=r"B\.h5: a map needs the coordinates of the tiles, got none; extract the feat"
    ):
        explain_slides(student, slides, tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_a_missing_magnification_leaves_the_map_of_the_other(tmp_path, slides):
    student = save(tmp_path, Student(**MODEL), missing="allow")
    (slides["20x"] / "A.h5").unlink()
    explain_slides(student, slides, tmp_path / "maps")
    table = pd.read_csv(tmp_path / "maps" / "A.csv")
    assert table["size"].unique().tolist() == [896]
    assert "attention_20x" not in table


def test_coordinates_in_micrometers_become_pixels_by_their_size(student, slides, tmp_path):
    for name, folder in slides.items():
        for path in folder.iterdir():
            with h5py.File(path, "r+") as file:
                coords, features = file["coords"][()], file["features"][()]
            with h5py.File(path, "w") as file:
                file["feats"], file["coords"] = features, coords * 0.25
                file.attrs.update(tile_size_um=SIZES[name] * 0.25, tile_size_px=224, extractor="uni")
    with pytest.warns(
        UserWarning, match="QuPath needs level-0 pixels, got micrometers, so no GeoJSON is written; --im"
    ):
        explain_slides(student, slides, tmp_path / "um")
    assert not list((tmp_path / "um").glob("*.geojson"))
    explain_slides(student, slides, tmp_path / "maps", Extras(mpp=0.25))
    table = pd.read_csv(tmp_path / "maps" / "A.csv")
    assert table["size"].unique().tolist() == [448]
    assert table["x"].max() == 2240


@pytest.mark.parametrize("mpp", [0.0, -0.25, float("nan")])
def test_a_pixel_has_a_positive_size(student, slides, tmp_path, mpp):
    with pytest.raises(ValueError, match=f"mpp must be positive and finite, got {mpp}"):
        explain_slides(student, slides, tmp_path / "maps", Extras(mpp=mpp))
    assert not (tmp_path / "maps").exists()


def test_a_teacher_tells_genes_of_every_patient(slides, tmp_path):
    pytest.importorskip("captum")
    genes = {"tumor": ["EGFR", "TP53"], "tme": ["CD2"]}
    table = pd.DataFrame(
        {"EGFR": [0.0, 1.0, 5.0], "TP53": [2.0, 1.0, 1.5], "CD2": [1.0, 0.0, 3.0]}, index=["A", "B", "C"]
    )
    pipeline = ExpressionPipeline.fit(table, genes)
    model = Teacher(**MODEL, genes=pipeline.sizes)
    path = tmp_path / "teacher"
    save_model(path, model, task=TASK, reading=SlideReading(), expression=pipeline)
    table.to_csv(tmp_path / "expression.csv", index_label="patient")
    (tmp_path / "sets.gmt").write_text("P53\tsource\tTP53\n")
    with pytest.raises(ValueError, match="a teacher needs the expression of its patients; give it by --expression"):
        explain_slides(tmp_path / "teacher.json", slides, tmp_path / "maps")
    extras = Extras(expression=tmp_path / "expression.csv", gene_sets=tmp_path / "sets.gmt")
    explain_slides(tmp_path / "teacher.json", slides, tmp_path / "maps", extras)
    table.drop(index="B").to_csv(tmp_path / "fewer.csv", index_label="patient")
    message = r"fewer\.csv: must hold the patient of every slide, but no patient is called as the slide B; give --pat"
    with pytest.raises(ValueError, match=message):
        explain_slides(tmp_path / "teacher.json", slides, tmp_path / "m", Extras(expression=tmp_path / "fewer.csv"))
    found = pd.read_csv(tmp_path / "maps" / "genes.csv")
    assert set(found["patient"]) == {"A", "B"}
    assert found["attribution"].abs().sum() > 0
    sets = pd.read_csv(tmp_path / "maps" / "gene_sets.csv")
    assert set(sets["gene_set"]) <= {"P53"}
    assert {"attention_tumor", "attention_tme"} <= set(pd.read_csv(tmp_path / "maps" / "A.csv").columns)


def test_the_command_writes_maps_and_says_where(student, slides, tmp_path, capsys):
    places = [f"{name}={folder}" for name, folder in slides.items()]
    assert main(["explain", str(student), *places, "--out", str(tmp_path / "maps"), "--anndata"]) == 0
    assert capsys.readouterr().out == f"2 maps -> {tmp_path / 'maps'}\n"
    assert (tmp_path / "maps" / "A_20x.h5ad").is_file()


def test_maps_that_are_there_are_replaced_on_demand_only(student, slides, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "B.png").write_text("precious")
    files = {name: folder / "B.h5" for name, folder in slides.items()}
    with pytest.raises(
        FileExistsError, match=r"B\.png: is there already; name another folder, or replace it by --over"
    ):
        explain_slides(student, files, tmp_path / "maps")
    assert [path.read_text() for path in (tmp_path / "maps").iterdir()] == ["precious"]
    explain_slides(student, files, tmp_path / "maps", overwrite=True)
    assert len(list((tmp_path / "maps").iterdir())) == 3


@pytest.mark.parametrize("what", ["patients", "image", "slide"])
def test_nothing_that_explain_reads_is_overwritten(student, slides, tmp_path, what):
    patients, images = tmp_path / "B.csv", tmp_path / "images"
    patients.write_text("slide,patient\nB,P\n")
    images.mkdir()
    (images / "B.png").write_text("an image")
    files = {name: folder / "B.h5" for name, folder in slides.items()}
    out = {"patients": tmp_path, "image": images, "slide": tmp_path / "maps"}[what]
    if what == "slide":
        out.mkdir()
        (out / "B_20x.h5ad").hardlink_to(files["20x"])
    extras = Extras(images=images, anndata=True)
    with pytest.raises(ValueError, match=r"B.*: must be another file than .*, which is read"):
        explain_slides(student, files, out, extras, patients=patients, overwrite=True)
    assert (images / "B.png").read_text() == "an image"
    assert patients.read_text() == "slide,patient\nB,P\n"


def test_a_slide_image_lies_behind_the_map(student, slides, tmp_path, shared):
    pytest.importorskip("openslide")
    (tmp_path / "images").mkdir()
    shutil.copy(shared / "data" / "slides" / "cmu-1-small-region.svs", tmp_path / "images" / "A.svs")
    explain_slides(student, slides, tmp_path / "plain")
    explain_slides(student, slides, tmp_path / "maps", Extras(images=tmp_path / "images"))
    sizes = [(tmp_path / folder / "A.png").stat().st_size for folder in ("plain", "maps")]
    assert sizes[1] > 2 * sizes[0]


@pytest.mark.parametrize("one", [False, True])
def test_maps_are_not_written_among_slides(student, slides, one):
    places = {name: folder / "B.h5" for name, folder in slides.items()} if one else slides
    with pytest.raises(ValueError, match=r"10x: must be another folder than that of the slides$"):
        explain_slides(student, places, slides["10x"])
    assert {path.name for path in slides["10x"].iterdir()} == {"A.h5", "B.h5"}
