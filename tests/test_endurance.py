"""The short version of ``python -m tests.endurance``."""

import sys

import pytest

from tests import endurance


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_predictions(tmp_path):
    assert endurance.growth(200, tmp_path) <= endurance.MOST_GROWTH
