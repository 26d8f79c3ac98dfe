"""Pixels are those of OpenSlide, at any scale, and what a slide does not state is asked for."""

import numpy as np
import pytest

from disentangled_mil.explain.thumbnail import read_thumbnail
from disentangled_mil.extract import SlideImage
from tests.support.slide_images import averaged, glass, speckled, write_slide

openslide = pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")


@pytest.fixture(scope="module")
def pixels():
    return speckled(520, 700)


@pytest.fixture(scope="module")
def slide(pixels, tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("slides") / "a.tif", pixels, levels=(2, 4))


def test_size_and_resolution_are_those_of_the_file(slide):
    with SlideImage(slide) as image:
        assert image.size == (700, 520)
        assert image.mpp == pytest.approx(0.5)
        assert image.tile_side(20) == 224
    with SlideImage(slide, mpp=0.25) as image:
        assert image.known_mpp == 0.25
        assert image.tile_side(20) == 448


def test_a_rectangle_of_level_0_is_not_resampled(slide, pixels):
    with SlideImage(slide) as image:
        np.testing.assert_array_equal(image.read(97, 33, 224, 210, (224, 210)), pixels[33:243, 97:321])


@pytest.mark.parametrize("factor", [2, 4])
def test_a_rectangle_at_the_scale_of_a_level_is_that_of_the_level(slide, pixels, factor):
    level = averaged(pixels, factor)
    with SlideImage(slide) as image:
        found = image.read(16 * factor, 8 * factor, 100 * factor, 90 * factor, (100, 90))
    np.testing.assert_array_equal(found, level[8:98, 16:116])


def test_a_scale_between_levels_is_resampled_from_the_finer_one(slide, pixels):
    flat = np.zeros((520, 700, 3), dtype=np.uint8)
    flat[:, ::2] = 200  # stripes that vanish in the mean, and would stay or alias without antialiasing
    striped = write_slide(slide.with_name("stripes.tif"), flat)
    with SlideImage(striped) as image:
        found = image.read(0, 0, 672, 504, (224, 168)).astype(int)
    assert abs(found[4:-4, 4:-4] - 100).max() < 40
    with SlideImage(slide) as image:
        found = image.read(0, 0, 672, 504, (224, 168)).astype(int)
    assert abs(found - averaged(pixels, 3)[:168, :224]).mean() < 3


def test_the_overview_is_the_whole_slide_whatever_the_blocks(slide, pixels, monkeypatch):
    with SlideImage(slide) as image:
        whole = image.overview(8)
        monkeypatch.setattr("disentangled_mil.extract.slide_image._BLOCK", 40)
        blocks = image.overview(8)
    assert whole.shape == blocks.shape == (65, 87, 3)
    assert abs(whole.astype(int) - averaged(pixels, 8)).mean() < 5
    assert abs(whole.astype(int) - blocks).mean() < 2  # the filter ends at the side of a block


def test_the_thumbnail_of_a_map_is_such_an_overview(slide):
    thumbnail = read_thumbnail(slide)
    assert thumbnail.pixels.shape == (520, 700, 3)
    assert (thumbnail.scale, thumbnail.mpp) == (1, pytest.approx(0.5))


def test_what_the_scanner_left_out_is_white(tmp_path):
    tiles = [None if number == 1 else np.full((64, 64, 3), 40, dtype=np.uint8) for number in range(4)]
    options = {"shape": (128, 128, 3), "dtype": "uint8", "tile": (64, 64), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "holes.tif") as file:
        file.write(iter(tiles), **options)
    with SlideImage(tmp_path / "holes.tif") as image:
        found = image.read(0, 0, 128, 128, (128, 128))
    expected = np.full((128, 128, 3), 40)
    expected[:64, 64:] = 255
    np.testing.assert_array_equal(found, expected)


def test_tissue_is_found_at_eight_micrometers(tmp_path):
    picture = glass(640, 640)
    picture[160:480, 160:320] = (200, 90, 150)
    with SlideImage(write_slide(tmp_path / "a.tif", picture)) as image:
        mask, scale = image.tissue
    assert scale == pytest.approx(16)
    assert mask.shape == (40, 40)
    assert mask[11:29, 11:19].all()
    assert mask.sum() == pytest.approx(20 * 10, abs=40)


def test_a_slide_without_resolution_names_the_remedy(tmp_path):
    with SlideImage(write_slide(tmp_path / "a.tif", glass(100, 100), mpp=None)) as image:
        assert image.mpp is None
        with pytest.raises(ValueError, match=r"a\.tif: must state micrometers per pixel.*--mpp"):
            image.tile_side(20)


def test_what_is_no_slide_is_refused(tmp_path, slide):
    with pytest.raises(FileNotFoundError, match=r"b\.svs: no such file"):
        SlideImage(tmp_path / "b.svs")
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(ValueError, match=r"text\.svs: must be a slide that OpenSlide reads"):
        SlideImage(tmp_path / "text.svs")
    for mpp in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="mpp must be positive and finite, got"):
            SlideImage(slide, mpp=mpp)


def test_real_slides_are_read_as_openslide_reads_them(shared):
    path = shared / "data" / "slides" / "cmu-1-small-region.svs"
    with SlideImage(path) as image, openslide.OpenSlide(path) as direct:
        assert image.mpp == 0.499
        region = np.asarray(direct.read_region((448, 896), 0, (224, 224)).convert("RGB"))
        np.testing.assert_array_equal(image.read(448, 896, 224, 224, (224, 224)), region)
