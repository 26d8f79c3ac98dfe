"""The check of what teacher and student take."""

from collections.abc import Mapping, Sequence

from .._checks import check_names, check_shape, check_type
from ..bags import Bag


def check_bags(bags: Mapping[str, Bag], magnifications: Sequence[str]) -> int:
    """Check bags of the same samples at every magnification.

    Args:
        bags: bags by magnification.
        magnifications: names of the magnifications.

    Returns:
        The number of samples B.
    """
    check_names("bags", bags, magnifications)
    sizes: dict[str, int] = {}
    for name in magnifications:
        check_type(f"bags[{name!r}]", bags[name], Bag, "a Bag (Bag.from_slide(features, coords) makes one)")
        sizes |= check_shape(f"bags[{name!r}].patches", bags[name].patches, "B N C", sizes)
        sizes = {"B": sizes["B"]}
    return sizes["B"]
