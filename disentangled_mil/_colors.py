"""Colors of classes and numbers for color-blind readers and, with up to three classes, for prints in gray."""

# Okabe and Ito.
BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW = (
    "#000000", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442",
)  # fmt: skip
# The first three differ by 18 or more in lightness (CIE L*), so they are told apart in gray. Orange and sky are not.
CLASSES = (ORANGE, BLUE, YELLOW, PURPLE, GREEN, SKY)
NO_CLASS = "#4d4d4d"
NUMBERS = "viridis"


def rgb(color: str) -> list[int]:
    """Red, green and blue of a color.

    Args:
        color: color such as ``"#e69f00"``.

    Returns:
        Three numbers from 0 to 255.

    Example:
        >>> from disentangled_mil._colors import rgb
        >>> rgb("#e69f00")
        [230, 159, 0]
    """
    return [int(color[start : start + 2], 16) for start in (1, 3, 5)]
