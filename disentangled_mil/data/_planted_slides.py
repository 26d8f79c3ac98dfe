"""Simulated slides: tissue with tumor nests, its patch features, and the scanner that took them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]

# Strengths relative to the patch noise along an axis of the signal.
_TISSUE_CONTRAST = 5.0
# Contrast of the tumor and of the TME program: cells show better at 20x, architecture at 10x.
_PROGRAM_CONTRAST = {"10x": (0.7, 1.0), "20x": (1.0, 0.7)}
_SHARED_AXIS = 0.4  # cosine of each program's direction with the axis that both share
_PATIENT_NUISANCE, _SLIDE_NUISANCE = 0.4, 0.3
# A scanner of shift 1: mixing of the features, spread of their log gain, offset, extra noise.
_MIXING, _GAIN, _OFFSET, _SCANNER_NOISE = 0.5, 0.2, 0.8, 0.3


class Appearance(NamedTuple):
    """The appearance of tissue to the feature extractor.

    Args:
        basis: orthonormal rows: axis of the tissue, shared axis of the programs, the tumor program's
            own, the TME program's own, and others without signal.
        spectrum: strength of the patch noise along each of them.

    Shape:
        ``basis`` [C, C], ``spectrum`` [C].
    """

    basis: Array
    spectrum: Array


class Scanner(NamedTuple):
    """The effect of one site's stain and scanner: features @ mixing + offset + noise.

    Shape:
        ``mixing`` [C, C], ``offset`` [C].
    """

    mixing: Array
    offset: Array
    noise: float


class View(NamedTuple):
    """One slide at one magnification.

    Args:
        cells: column and row of every patch.
        tumor: share of tumor in every patch.
        features: features of every patch.

    Shape:
        ``cells`` [N, 2], ``tumor`` [N], ``features`` [N, C].
    """

    cells: NDArray[np.int64]
    tumor: Array
    features: Array


def draw_appearance(rng: Generator, width: int) -> Appearance:
    """Directions of a feature space of ``width`` >= 4."""
    spectrum = 1 / (1 + np.arange(width) / 6)
    spectrum[:4] = 1
    return Appearance(np.linalg.qr(rng.standard_normal((width, width)))[0], spectrum)


def draw_scanner(rng: Generator, shift: float, width: int) -> Scanner:
    """A scanner whose effects grow with ``shift``; at 0 it changes nothing."""
    mixing = np.eye(width) + shift * _MIXING * rng.standard_normal((width, width)) / width**0.5
    gain = np.exp(shift * _GAIN * rng.standard_normal(width))
    return Scanner(mixing * gain, shift * _OFFSET * rng.standard_normal(width), shift * _SCANNER_NOISE)


def scan(rng: Generator, features: Array, scanner: Scanner) -> Array:
    """The features [N, C] after the scanner."""
    noise = scanner.noise * rng.standard_normal(features.shape)
    scanned: Array = features @ scanner.mixing + scanner.offset + noise
    return scanned


def draw_slides(
    rng: Generator, shown: Array, grid: tuple[int, int], appearance: Appearance
) -> Iterator[dict[str, View]]:
    """A patient's one or two slides.

    Args:
        rng: source of randomness.
        shown: strength [2] of the tumor and the TME program in this patient's tissue.
        grid: columns and rows at 10x.
        appearance: appearance of tissue.

    Returns:
        The views of every slide by magnification; patches 4 i to 4 i + 3 at 20x are patch i at 10x.
    """
    stain = _PATIENT_NUISANCE * rng.standard_normal(len(appearance.spectrum))
    for _ in range(rng.integers(1, 3)):
        nuisance = stain + _SLIDE_NUISANCE * rng.standard_normal(len(appearance.spectrum))
        coarse, fine, tumor = _tissue(rng, grid)
        views = {}
        for magnification, cells, share in (
            ("10x", coarse, tumor.reshape(-1, 4).mean(axis=1)),
            ("20x", fine, tumor),
        ):
            program = shown * _PROGRAM_CONTRAST[magnification]
            views[magnification] = View(cells, share, _features(rng, share, program, nuisance, appearance))
        yield views


def _tissue(rng: Generator, grid: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Cells of an outline at 10x and at 20x, and tumor nests at 20x: the heights of smooth landscapes."""
    columns, rows = grid
    x, y = np.meshgrid(np.linspace(-1, 1, columns), np.linspace(-1, 1, rows))
    land = 6 * gaussian_filter(rng.standard_normal((rows, columns)), 1.5) - x**2 - y**2
    count = max(1, round(rng.uniform(0.4, 0.85) * land.size))
    places = np.sort(np.argsort(-land, axis=None, kind="stable")[:count])
    coarse = np.stack([places % columns, places // columns], axis=1)
    fine = (2 * coarse[:, None] + np.array([[0, 0], [1, 0], [0, 1], [1, 1]])).reshape(-1, 2)
    nests = gaussian_filter(rng.standard_normal((2 * rows, 2 * columns)), 1.7)[fine[:, 1], fine[:, 0]]
    area = round(rng.uniform(0.25, 0.65) * len(fine))
    tumor = np.zeros(len(fine))
    tumor[np.argsort(-nests, kind="stable")[:area]] = 1
    return coarse, fine, tumor


def _features(rng: Generator, share: Array, program: Array, nuisance: Array, appearance: Appearance) -> Array:
    along = nuisance + rng.standard_normal((len(share), len(nuisance))) * appearance.spectrum  # [N, C]
    tumor, tme = share * program[0], (1 - share) * program[1]
    own = (1 - _SHARED_AXIS**2) ** 0.5
    along[:, :4] += np.stack(
        [_TISSUE_CONTRAST * (share - 0.5), _SHARED_AXIS * (tumor + tme), own * tumor, own * tme], axis=1
    )
    features: Array = along @ appearance.basis
    return features
