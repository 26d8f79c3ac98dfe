"""The features of a slide are those of its tiles, one by one, wherever there is tissue."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from disentangled_mil.bags import pair_magnifications
from disentangled_mil.extract import Encoder, Extractor, SlideImage, encode_tiles
from tests.support.slide_images import glass, speckled, write_slide

pytest.importorskip("openslide")
pytest.importorskip("tifffile")

MEAN_COLOR = Encoder(lambda tiles: tiles.mean((2, 3)), "mean color", (0, 0, 0), (1, 1, 1))


def convolution(width: int = 8) -> Encoder:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, width, 16, stride=16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return Encoder(nn.Sequential(*layers), "c")


@pytest.fixture(scope="module")
def pixels():
    """Two tissues of 4 and 2 tiles of 20x on glass."""
    picture = glass(1000, 1200)
    picture[:448, :448] = speckled(448, 448)
    picture[672:896, 448:896] = speckled(224, 448, seed=1)
    return picture


@pytest.fixture(scope="module")
def slide(pixels, tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("slides") / "a.tif", pixels, levels=(2, 4))


def test_features_are_those_of_the_tiles_read_directly(slide, pixels):
    with SlideImage(slide) as image:
        features, coords, side = Extractor(convolution(), dtype=torch.float32, batch_size=4)(image, 20)
    assert side == 224
    assert coords.tolist() == [[0, 0], [224, 0], [0, 224], [224, 224], [448, 672], [672, 672]]
    tiles = torch.from_numpy(np.stack([pixels[y : y + 224, x : x + 224] for x, y in coords.tolist()]))
    torch.testing.assert_close(features, encode_tiles(convolution(), tiles))


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 5, "readers": 3}, {"batch_size": 100}])
def test_batches_and_threads_change_nothing(slide, options):
    with SlideImage(slide) as image:
        expected = Extractor(convolution(), dtype=torch.float32)(image, 20)
        found = Extractor(convolution(), dtype=torch.float32, **options)(image, 20)
    assert torch.equal(found.coords, expected.coords)
    torch.testing.assert_close(found.features, expected.features)


def test_a_tile_of_10x_is_the_mean_of_its_four_tiles_of_20x(slide):
    with SlideImage(slide) as image:
        fine, coarse = (Extractor(MEAN_COLOR, dtype=torch.float32, min_tissue=0)(image, m) for m in (20, 10))
    pairs = pair_magnifications(coarse.coords, coarse.side, fine.coords, fine.side)
    full = torch.bincount(pairs.first, minlength=len(coarse.coords)) == 4
    assert full.sum() == 1  # the other tissue fills half a tile of 10x each
    for row in full.nonzero()[:, 0]:
        four = fine.features[pairs.second[pairs.first == row]].mean(0)
        torch.testing.assert_close(coarse.features[row], four, atol=0.002, rtol=0)


def test_a_tile_needs_its_share_of_tissue(slide):
    with SlideImage(slide) as image:
        found = {share: len(Extractor(MEAN_COLOR, min_tissue=share)(image, 10).coords) for share in (0, 0.2, 0.3, 1)}
    # At 10x the second tissue covers a half of one tile's height and both halves of its width.
    assert found == {0: 2, 0.2: 2, 0.3: 2, 1: 1}


@pytest.mark.parametrize("size", [(500, 500), (100, 100)])
def test_no_tissue_and_no_room_for_a_tile_give_no_features(tmp_path, size):
    with SlideImage(write_slide(tmp_path / "a.tif", glass(*size))) as image:
        features, coords, _ = Extractor(convolution())(image, 20)
    assert features.shape == (0, 8)
    assert features.dtype == torch.float16
    assert coords.shape == (0, 2)


def test_progress_counts_tiles(slide):
    told = []
    with SlideImage(slide) as image:
        Extractor(MEAN_COLOR, batch_size=4)(image, 20, on_batch=lambda *numbers: told.append(numbers))
    assert told == [(4, 6), (2, 6)]


def test_values_that_are_not_finite_are_refused(slide):
    with SlideImage(slide) as image:
        broken = Extractor(Encoder(lambda tiles: tiles.mean((2, 3)).log(), "log"))
        with pytest.raises(ValueError, match=r"a\.tif: features of log must be finite, got NaN or infinity in row 0"):
            broken(image, 20)
        large = Encoder(lambda tiles: 1e6 * tiles.mean((2, 3)), "large", (0, 0, 0), (1, 1, 1))
        with pytest.raises(ValueError, match=r"a\.tif: features must fit into torch\.float16, got .*use float32"):
            Extractor(large)(image, 20)
        assert Extractor(large, dtype=torch.float32)(image, 20).features.max() > 1e5


def test_no_thread_reads_on_after_an_error(slide):
    def broken(tiles: torch.Tensor) -> torch.Tensor:
        if len(tiles) == 2:  # and not the one tile that tells the width
            raise RuntimeError("out of memory")
        return tiles.mean((2, 3))

    threads = threading.active_count()
    with SlideImage(slide) as image, pytest.raises(RuntimeError, match="out of memory") as caught:
        Extractor(Encoder(broken), batch_size=2, readers=3)(image, 20)
    assert caught.value.__traceback__ is not None  # it keeps the frames alive
    assert threading.active_count() == threads


def test_options_are_checked(slide):
    with pytest.raises(ValueError, match=r"min_tissue must lie in \[0, 1\], got 1\.5"):
        Extractor(MEAN_COLOR, min_tissue=1.5)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Extractor(MEAN_COLOR, batch_size=0)
    with pytest.raises(ValueError, match="readers must be at least 1, got 0"):
        Extractor(MEAN_COLOR, readers=0)
    with pytest.raises(ValueError, match=r"dtype must be one of torch\.float16, torch\.float32, got torch\.int8"):
        Extractor(MEAN_COLOR, dtype=torch.int8)
    with SlideImage(slide) as image, pytest.raises(ValueError, match=r"a\.tif: magnification must be at most 25"):
        Extractor(MEAN_COLOR)(image, 40)
