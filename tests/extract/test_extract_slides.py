"""Every slide becomes a file that ``read_bag`` reads; a second run keeps what is finished."""

import shutil
import sys

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from disentangled_mil.cli import main
from disentangled_mil.data.slides import read_bag, slide_source
from disentangled_mil.extract import Encoder, Extractor, extract_slides, slide_images
from tests.support.slide_images import glass, speckled, write_slide

pytest.importorskip("openslide")
pytest.importorskip("tifffile")

FACTORY = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
MEAN_COLOR = Extractor(Encoder(lambda tiles: tiles.mean((2, 3)), "mean color"))


@pytest.fixture
def slides(tmp_path):
    """Two slides of 0.5 micrometers per pixel, and a file that is none."""
    folder = tmp_path / "slides"
    folder.mkdir()
    write_slide(folder / "a.tif", speckled(700, 900), levels=(2,))
    write_slide(folder / "b.tif", speckled(500, 480, seed=1))
    (folder / "notes.txt").write_text("no slide")
    return folder


def test_files_are_those_of_trident(slides, tmp_path):
    done = extract_slides([slides], [20, 10], MEAN_COLOR, tmp_path / "out", quiet=True)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in done.written] == [
        "20x/a.h5", "10x/a.h5", "20x/b.h5", "10x/b.h5",
    ]  # fmt: skip
    assert not done.kept
    assert not done.failed
    bag, source = read_bag(tmp_path / "out" / "20x" / "a.h5")
    assert (source.writer, source.encoder, source.magnification) == ("TRIDENT", "mean color", 20)
    assert (source.tokens, source.tile, source.unit) == (12, 224, "level-0 pixels")
    assert source.unit_um == pytest.approx(0.5)
    assert bag.grid.shapes == ((4, 3),)
    with h5py.File(tmp_path / "out" / "10x" / "a.h5") as file:
        notes, features = dict(file["coords"].attrs), file["features"]
        assert file["coords"].dtype == np.int64
        assert (features.shape, features.dtype) == ((2, 3), np.float16)
        assert file["coords"][:].tolist() == [[0, 0], [448, 0]]
    assert notes.pop("level0_magnification") == pytest.approx(20)
    assert notes == {
        "patch_size": 224, "patch_size_level0": 448, "target_magnification": 10, "overlap": 0, "name": "a",
        "level0_width": 900, "level0_height": 700, "min_tissue": 0.25,
    }  # fmt: skip


def test_finished_files_are_kept_and_missing_ones_are_written(slides, tmp_path):
    first = extract_slides([slides], [20], MEAN_COLOR, tmp_path / "out", quiet=True)
    (tmp_path / "out" / "20x" / "b.h5").unlink()
    (tmp_path / "out" / "20x" / ".b.h5.8570.tmp").touch()  # of a process that was killed
    before = (tmp_path / "out" / "20x" / "a.h5").stat().st_mtime_ns
    second = extract_slides([slides], [20], MEAN_COLOR, tmp_path / "out", quiet=True)
    assert (second.kept, second.written) == (first.written[:1], first.written[1:])
    assert (tmp_path / "out" / "20x" / "a.h5").stat().st_mtime_ns == before
    assert sorted(path.name for path in (tmp_path / "out" / "20x").iterdir()) == ["a.h5", "b.h5"]


def test_an_interruption_leaves_no_part_of_a_file(slides, tmp_path):
    calls = []

    def interrupted(tiles: torch.Tensor) -> torch.Tensor:
        calls.append(len(tiles))
        if len(calls) == 4:  # the width, then the width and the tiles of a slide, then of the next
            raise KeyboardInterrupt
        return tiles.mean((2, 3))

    with pytest.raises(KeyboardInterrupt, match="the same command continues, and finished files are kept"):
        extract_slides([slides], [20], Extractor(Encoder(interrupted, "mean color")), tmp_path / "out", quiet=True)
    assert [path.name for path in (tmp_path / "out" / "20x").iterdir()] == ["a.h5"]
    assert len(extract_slides([slides], [20], MEAN_COLOR, tmp_path / "out", quiet=True).kept) == 1


def test_files_of_other_options_or_programs_are_refused_before_any_work(slides, tmp_path):
    out = tmp_path / "out"
    extract_slides([slides], [20], MEAN_COLOR, out, quiet=True)
    for extractor, reason in (
        (Extractor(Encoder(MEAN_COLOR.encoder.model, "other")), "must have the encoder other, got mean color"),
        (Extractor(MEAN_COLOR.encoder, dtype=torch.float32), "must have the dtype float32, got float16"),
        (Extractor(MEAN_COLOR.encoder, min_tissue=0.5), r"must have the min_tissue 0\.5, got 0\.25"),
    ):
        with pytest.raises(ValueError, match=rf"a\.h5: {reason}; move it away"):
            extract_slides([slides], [20], extractor, out, quiet=True)
    with h5py.File(out / "20x" / "b.h5", "w") as file:
        file["feats"] = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"b\.h5: must be a file of features that this command wrote"):
        extract_slides([slides], [20], MEAN_COLOR, out, quiet=True)
    (out / "20x" / "b.h5").write_text("text")
    with pytest.raises(ValueError, match=r"b\.h5: must be a file of features that this command wrote"):
        extract_slides([slides], [20], MEAN_COLOR, out, quiet=True)


def test_another_resolution_does_not_pass_for_a_finished_file(slides, tmp_path):
    extract_slides([slides / "a.tif"], [10], MEAN_COLOR, tmp_path / "out", quiet=True)
    with pytest.warns(UserWarning, match=r"a\.h5: must have the patch_size_level0 896, got 448"):
        done = extract_slides([slides / "a.tif"], [10], MEAN_COLOR, tmp_path / "out", mpp=0.25, quiet=True)
    assert list(done.failed) == [slides / "a.tif"]


def test_slides_that_cannot_be_read_are_named_and_the_others_go_on(slides, tmp_path):
    (slides / "0.svs").write_text("no slide")
    shutil.copy(slides / "a.tif", slides / "broken.tif")
    with (slides / "broken.tif").open("r+b") as file:
        file.truncate(300_000)
    write_slide(slides / "unknown.tif", speckled(300, 300), mpp=None)
    with pytest.warns(UserWarning, match="the slide is left out") as caught:
        done = extract_slides([slides], [20, 10], MEAN_COLOR, tmp_path / "out", quiet=True)
    assert sorted(path.name for path in done.failed) == ["0.svs", "broken.tif", "unknown.tif"]
    assert "--mpp" in done.failed[slides / "unknown.tif"]
    assert len(caught) == 3
    assert sorted(path.name for path in (tmp_path / "out" / "20x").iterdir()) == ["a.h5", "b.h5"]


def test_a_scan_that_lacks_one_magnification_has_no_file_of_the_other(slides, tmp_path):
    for magnifications in ([40, 10], [10, 40]):
        with pytest.warns(UserWarning, match=r"a\.tif: magnification must be at most 25"):
            done = extract_slides([slides / "a.tif"], magnifications, MEAN_COLOR, tmp_path / "out", quiet=True)
        assert not done.written
    assert not (tmp_path / "out").exists()


def test_a_slide_without_tissue_has_a_file_without_tiles(tmp_path):
    path = write_slide(tmp_path / "empty.tif", glass(500, 500))
    with pytest.warns(UserWarning, match=r"empty\.tif: shows no tissue at 20x, so .*empty\.h5 has no tiles"):
        extract_slides([path], [20], MEAN_COLOR, tmp_path / "out", quiet=True)
    source = slide_source(tmp_path / "out" / "20x" / "empty.h5")
    assert (source.writer, source.tokens, source.width, source.encoder) == ("TRIDENT", 0, 3, "mean color")
    assert extract_slides([path], [20], MEAN_COLOR, tmp_path / "out", quiet=True).kept


def test_errors_of_the_arguments_come_before_any_file(slides, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"absent\.svs: no such file or folder of slides"):
        extract_slides([slides / "absent.svs"], [20], MEAN_COLOR, out)
    with pytest.raises(ValueError, match=r"magnification must lie in \[0\.3, 100\.0\], got 0"):
        extract_slides([slides], [0], MEAN_COLOR, out)
    for magnifications in ([], [20, 20]):
        with pytest.raises(ValueError, match="magnifications must hold at least one magnification, each once"):
            extract_slides([slides], magnifications, MEAN_COLOR, out)
    with pytest.raises(ValueError, match="mpp must be positive and finite, got -1"):
        extract_slides([slides], [20], MEAN_COLOR, out, mpp=-1)
    wrong = Extractor(Encoder(nn.Conv2d(3, 4, 8, stride=8), "map"))
    with pytest.raises(ValueError, match=r"output of the encoder map must have shape \[B, D\]"):
        extract_slides([slides], [20], wrong, out)
    assert not out.exists()


def test_slides_are_files_and_folders_with_a_name_each(slides, tmp_path):
    assert list(slide_images([slides])) == ["a", "b"]
    assert list(slide_images([slides / "b.tif", slides])) == ["b", "a"]
    other = tmp_path / "A"
    other.mkdir()
    shutil.copy(slides / "a.tif", other / "a.svs")
    with pytest.raises(ValueError, match=r"slides must have a name each, got .*a\.tif and .*a\.svs, both 'a'"):
        slide_images([slides, other])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"slides must hold a slide image \(\.svs, .*got none in .*nothing"):
        slide_images([tmp_path / "nothing"])


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "factory_of_a_test.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "factory_of_a_test:network"
    sys.modules.pop("factory_of_a_test", None)


@pytest.mark.filterwarnings("always::UserWarning")
def test_the_command_says_what_it_did_and_fails_where_a_slide_failed(slides, tmp_path, factory, capsys):
    out = tmp_path / "out"
    arguments = ["extract", str(slides), "--magnification", "20", "--encoder", factory, "--out", str(out)]
    assert main([*arguments, "--dtype", "float32"]) == 0
    assert capsys.readouterr().out == f"2 files -> {out}\n"
    assert read_bag(out / "20x" / "a.h5").bag.patches.dtype == torch.float32
    (slides / "0.svs").write_text("no slide")
    assert main([*arguments, "--dtype", "float32"]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"0 files -> {out}, 2 finished before are kept, 1 slide is left out\n"
    assert "warning: " in printed.err
    assert "0.svs: must be a slide that OpenSlide reads" in printed.err
    assert main(arguments) == 2
    assert "must have the dtype float16, got float32" in capsys.readouterr().err
    assert main([*arguments, "--encoder", "uni"]) == 2
    assert capsys.readouterr().err == "error: encoder must be timm:NAME or MODULE:FACTORY, got 'uni'\n"


def test_real_slides_become_bags(shared, tmp_path):
    folder = shared / "data" / "slides"
    done = extract_slides([folder / "cmu-1-small-region.svs"], [20, 10], MEAN_COLOR, tmp_path, quiet=True)
    assert len(done.written) == 2
    assert slide_source(tmp_path / "10x" / "cmu-1-small-region.h5").unit_um == pytest.approx(0.499)
    with pytest.warns(UserWarning, match="must state micrometers per pixel"):
        assert extract_slides([folder / "tcga-cr-7395-01a-01-ts1.svs"], [10], MEAN_COLOR, tmp_path, quiet=True).failed
