"""Colors of classes are told apart in gray, and by those who see no red or green."""

from itertools import combinations

import numpy as np
import pytest

from disentangled_mil._colors import CLASSES, NO_CLASS, rgb


def linear(color: str) -> np.ndarray:
    """Red, green and blue without the gamma of sRGB."""
    values = np.array(rgb(color)) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lightness(color: str) -> float:
    """CIE L*, from 0 (black) to 100 (white)."""
    luminance = float(linear(color) @ [0.2126, 0.7152, 0.0722])
    return 116 * np.cbrt(luminance) - 16 if luminance > 0.008856 else 903.3 * luminance


@pytest.mark.parametrize("pair", list(combinations((*CLASSES[:3], NO_CLASS), 2)))
def test_three_classes_and_none_differ_in_gray(pair):
    first, second = map(lightness, pair)
    assert abs(first - second) > 12


# Viénot, Brettel and Mollon (1999): what is left of red, green and blue without one kind of cones.
DEUTERANOPIA = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
PROTANOPIA = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])


@pytest.mark.parametrize("seen", [DEUTERANOPIA, PROTANOPIA], ids=["deuteranopia", "protanopia"])
@pytest.mark.parametrize("pair", list(combinations(CLASSES, 2)))
def test_classes_differ_without_red_or_green_cones(seen, pair):
    first, second = (np.clip(seen @ linear(color), 0, 1) ** (1 / 2.4) for color in pair)
    assert np.abs(first - second).max() > 0.08
