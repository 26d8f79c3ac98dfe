"""Colors of classes and numbers that survive color blindness and printing in gray."""

# Okabe and Ito, in an order in which neighbors differ in lightness.
CLASSES = ("#e69f00", "#0072b2", "#cc79a7", "#009e73", "#56b4e9", "#d55e00")
NO_CLASS = "#999999"
NUMBERS = "viridis"


def rgb(color: str) -> list[int]:
    """Red, green and blue of a color.

    Args:
        color: color such as ``"#e69f00"``.

    Returns:
        Three numbers from 0 to 255.

    Example:
        >>> from disentangled_mil.explain.colors import rgb
        >>> rgb("#e69f00")
        [230, 159, 0]
    """
    return [int(color[start : start + 2], 16) for start in (1, 3, 5)]
