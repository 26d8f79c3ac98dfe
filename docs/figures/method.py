"""Draw the method as the package composes it: ``python docs/figures/method.py`` writes one SVG for each color scheme.

Teacher and student stand side by side and their rows correspond, so that each arrow of the distillation is level.
Text is at least 16 units high on a canvas of 660 units, which a phone shows at a readable size.
"""

from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT = 660, 704
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif"
TISSUE = {  # one letter a patch: tumor, stroma, other; a blank is a hole
    "10x": (" os ", "otso", "st s", " sso"),
    "20x": (" oosss ", "oottsso", "otttsso", "sttt so", "sstsso "),
}
SAMPLES = {  # columns and rows at which a layer samples, by the subspace that chooses them
    "tumor": ((2.4, 1.3), (3.5, 2.7), (1.7, 3.6)),
    "tme": ((4.7, 1.2), (5.5, 3.5), (3.3, 4.4)),
}


class Scheme(NamedTuple):
    """Colors of one scheme."""

    text: str
    muted: str
    panel: str
    edge: str
    card: str
    line: str
    tumor: str
    tme: str
    other: str
    loss: str
    on_color: str


SCHEMES = {
    "light": Scheme(
        text="#1f2328",
        muted="#59636e",
        panel="#f6f8fa",
        edge="#d1d9e0",
        card="#ffffff",
        line="#818b98",
        tumor="#c2416b",
        tme="#2b7fa3",
        other="#c9b6d6",
        loss="#9a5b00",
        on_color="#ffffff",
    ),
    "dark": Scheme(
        text="#f0f6fc",
        muted="#a4adb8",
        panel="#151b23",
        edge="#3d444d",
        card="#212830",
        line="#9198a1",
        tumor="#f0769b",
        tme="#5fb8dc",
        other="#6b5a7d",
        loss="#e8b04a",
        on_color="#0d1117",
    ),
}


class Drawing:
    """SVG elements in the order in which they are painted."""

    def __init__(self, scheme: Scheme) -> None:
        self.colors = scheme
        self.elements: list[str] = []

    def text(self, x: float, y: float, words: str, *, size: int = 17, color: str = "", bold: bool = False) -> None:
        """Write words centered at x, on the base line y."""
        weight = ' font-weight="650"' if bold else ""
        fill = color or self.colors.text
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="middle"{weight}>{words}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "",
        edge: str = "",
        radius: float = 8,
        opacity: float = 1,
    ) -> None:
        """Draw a rounded rectangle whose upper left corner is at (x, y)."""
        stroke = f' stroke="{edge}" stroke-width="1.5"' if edge else ""
        seen = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'fill="{fill or self.colors.card}"{stroke}{seen}/>'
        )

    def dot(self, x: float, y: float, radius: float, *, fill: str, edge: str) -> None:
        """Draw a disk around (x, y)."""
        self.elements.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{edge}" stroke-width="1.8"/>'
        )

    def arrow(self, *points: tuple[float, float], color: str = "", dashed: bool = False, both: bool = False) -> None:
        """Draw an arrow through points."""
        chosen = color or self.colors.line
        marker = "loss" if chosen == self.colors.loss else "line"
        way = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        start = f' marker-start="url(#{marker})"' if both else ""
        self.elements.append(
            f'<polyline points="{way}" fill="none" stroke="{chosen}" stroke-width="2"{dash}{start} '
            f'marker-end="url(#{marker})"/>'
        )

    def join(
        self, sources: tuple[float, ...], top: float, targets: tuple[float, ...], middle: float, bottom: float
    ) -> None:
        """Lead every source to every target: lines down to a common level, and arrows from there."""
        for x in sources:
            self.line((x, top), (x, middle))
        self.line((min(*sources, *targets), middle), (max(*sources, *targets), middle))
        for x in targets:
            self.arrow((x, middle), (x, bottom))

    def line(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw a line without a head."""
        self.elements.append(
            f'<line x1="{start[0]:g}" y1="{start[1]:g}" x2="{end[0]:g}" y2="{end[1]:g}" '
            f'stroke="{self.colors.line}" stroke-width="2" stroke-linecap="round"/>'
        )

    def badge(self, x: float, y: float, words: str) -> None:
        """Write the name of a loss or rule on a pill centered at (x, y)."""
        width = 14 + 11.5 * len(words)
        self.box(x - width / 2, y - 13, width, 26, fill=self.colors.loss, radius=13)
        self.text(x, y + 6, words, size=16, color=self.colors.on_color, bold=True)

    def tissue(self, x: float, y: float, side: float, magnification: str = "20x") -> None:
        """Draw a small slide: patches of tumor, stroma and other tissue, with a hole."""
        fills = {"t": self.colors.tumor, "s": self.colors.tme, "o": self.colors.other}
        for row, line in enumerate(TISSUE[magnification]):
            for column, kind in enumerate(line):
                if kind in fills:
                    place = x + column * side, y + row * side
                    self.box(*place, side - 2, side - 2, fill=fills[kind], radius=2, opacity=0.8)

    def fusion(self, x: float, y: float, magnification: str) -> None:
        """Draw a fusion layer: a slide, and where the genes of each subspace sample it."""
        self.box(x, y, 128, 126, edge=self.colors.edge)
        self.text(x + 64, y + 25, f"DMSF {magnification}", bold=True)
        side = 105 / len(TISSUE[magnification][0])
        self.tissue(x + 13, y + 36, side if magnification == "20x" else 0.78 * side, magnification)
        for subspace, places in SAMPLES.items():
            for column, row in places:
                self.dot(x + 13 + 15 * column, y + 36 + 15 * row, 5.5, fill=self.colors.card, edge=self.colors.text)
                self.dot(x + 13 + 15 * column, y + 36 + 15 * row, 2, fill=getattr(self.colors, subspace), edge="none")

    def vectors(self, center: float, y: float) -> None:
        """Draw one vector for each subspace, side by side."""
        for left, color, name in ((center - 100, "tumor", "tumor"), (center + 4, "tme", "TME")):
            fill = getattr(self.colors, color)
            self.box(left, y, 96, 30, fill=fill, radius=6)
            self.text(left + 48, y + 21, name, color=self.colors.on_color, bold=True)

    def head(self, center: float, y: float) -> None:
        """Draw a linear head that has one block for each subspace."""
        self.box(center - 100, y, 200, 40, edge=self.colors.edge)
        for left, color in ((center - 96, self.colors.tumor), (center + 2, self.colors.tme)):
            self.box(left, y + 4, 94, 32, fill=color, radius=5, opacity=0.22)
        self.text(center, y + 26, "head", bold=True)

    def prediction(self, center: float, y: float, heights: tuple[int, ...]) -> None:
        """Draw logits as bars on one base line."""
        for place, height in enumerate(heights):
            self.box(center - 50 + 26 * place, y + 44 - height, 20, height, fill=self.colors.muted, radius=3)

    def svg(self, description: str) -> str:
        """Give the whole file."""
        markers = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="6" markerHeight="6" '
            f'orient="auto-start-reverse"><path d="M0,0.5 L9.5,5 L0,9.5 Z" fill="{color}"/></marker>'
            for name, color in (("line", self.colors.line), ("loss", self.colors.loss))
        )
        body = "\n".join(self.elements)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" font-family="{FONT}" role="img">\n<title>{description}</title>\n'
            f"<defs>{markers}</defs>\n{body}\n</svg>\n"
        )


def draw(scheme: Scheme) -> str:
    """Draw the whole picture in the colors of a scheme."""
    d = Drawing(scheme)
    teacher, student = 170, 540  # centers of the two columns
    _teacher(d, teacher)
    _student(d, student)
    for y, name in ((425, "MSE"), (634, "KL")):
        d.arrow((teacher + 108, y), (student - 108, y), color=scheme.loss, dashed=True)
        d.badge(374, y, name)
    d.text(374, 398, "distill", size=16, color=scheme.loss)
    return d.svg(
        "The teacher fuses patches and genes by DMSF; the student gathers patches into prototypes by ITA and "
        "learns the teacher's vectors and predictions."
    )


def _teacher(d: Drawing, x: float) -> None:
    colors = d.colors
    d.box(8, 8, 324, 688, fill=colors.panel, edge=colors.edge, radius=14)
    d.text(x, 40, "Teacher", size=23, bold=True)
    d.text(x, 63, "slides and genes", color=colors.muted)
    for y, color, name in ((88, colors.tumor, "tumor genes"), (138, colors.tme, "TME genes")):
        for place, opacity in enumerate((0.9, 0.35, 0.65, 1, 0.5, 0.8)):
            d.box(28 + 22 * place, y, 19, 19, fill=color, radius=3, opacity=opacity)
        d.text(93, y + 37, name, size=16, color=colors.muted)
    d.tissue(194, 84, 17)
    d.text(253, 190, "patches", size=16, color=colors.muted)
    d.join((93, 253), 199, (88, 252), 214, 236)
    for left, name in ((24, "10x"), (188, "20x")):
        d.fusion(left, 240, name)
    d.arrow((154, 316), (186, 316), color=colors.loss, both=True)
    d.badge(170, 295, "IGC")
    d.join((88, 252), 370, (x,), 384, 404)
    d.vectors(x, 410)
    d.text(x, 462, "subspace vectors", size=16, color=colors.muted)
    d.arrow((x, 472), (x, 498))
    d.head(x, 506)
    d.arrow((x, 552), (x, 606))
    for side in (-1, 1):
        d.arrow((x, 574), (x + 60 * side, 574), (x + 60 * side, 550), color=colors.loss)
    d.badge(x, 574, "CGC")
    d.prediction(x, 612, (14, 40, 22, 9))
    d.text(x, 682, "prediction", size=16, color=colors.muted)


def _student(d: Drawing, x: float) -> None:
    colors = d.colors
    d.box(424, 8, 228, 688, fill=colors.panel, edge=colors.edge, radius=14)
    d.text(x, 40, "Student", size=23, bold=True)
    d.text(x, 63, "slides only", color=colors.muted)
    d.tissue(x - 59, 84, 17)
    d.text(x, 190, "patches", size=16, color=colors.muted)
    d.arrow((x, 199), (x, 236))
    d.box(x - 92, 240, 184, 58, edge=colors.edge)
    d.text(x, 264, "deformable", bold=True)
    d.text(x, 286, "attention", bold=True)
    d.arrow((x, 302), (x, 326))
    d.box(x - 92, 330, 184, 36, edge=colors.edge)
    d.text(x, 354, "ITA", bold=True)
    d.arrow((x, 370), (x, 404))
    d.vectors(x, 410)
    d.text(x, 462, "prototypes", size=16, color=colors.muted)
    d.arrow((x, 472), (x, 498))
    d.head(x, 506)
    d.arrow((x, 552), (x, 606))
    d.prediction(x, 612, (17, 36, 20, 12))
    d.text(x, 682, "prediction", size=16, color=colors.muted)


def main() -> None:
    """Write the files beside this script."""
    for name, scheme in SCHEMES.items():
        Path(__file__).with_name(f"method-{name}.svg").write_text(draw(scheme), encoding="utf-8")


if __name__ == "__main__":
    main()
