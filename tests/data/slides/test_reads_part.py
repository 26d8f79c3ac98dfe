"""Whether tiles of a bag are left out: arguments that are refused, and the agreement with what is read."""

import pytest
import torch

from disentangled_mil.data.slides import read_bag, reads_part, write_bag


@pytest.fixture
def paths(tmp_path):
    """Two files with 5 and 3 tiles."""
    for name, count in (("a", 5), ("b", 3)):
        write_bag(tmp_path / f"{name}.h5", torch.ones(count, 2))
    return [str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]


@pytest.mark.parametrize("most", [None, 1, 7, 8])
def test_it_is_known_before_whether_tiles_are_left_out(paths, most):
    bag, source = read_bag(*paths, max_tokens=most, quiet=True)
    assert reads_part(paths, most) == (bag.patches.shape[1] < source.tokens)


def test_arguments_of_other_kinds_are_refused(paths):
    with pytest.raises(TypeError, match=r"files must be a sequence of paths, got the path '.*a\.h5'"):
        reads_part(paths[0], 4)
    with pytest.raises(ValueError, match="paths must name at least one file, got none"):
        reads_part([], 4)
    with pytest.raises(TypeError, match="most must be an integer, got str"):
        reads_part(paths, "4")
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        reads_part(paths, 0)
