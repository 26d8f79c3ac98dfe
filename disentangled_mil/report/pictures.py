"""The part of a report with maps of slides: pictures of the run folder."""

from pathlib import Path

from .blocks import Figures, Picture, Section, Text, embedded
from .run_files import RunFiles

_MOST = 24


def map_section(run: RunFiles) -> Section:
    """The picture of the demo, and the maps in the folder ``maps`` of the run or of its splits."""
    blocks: list[Text | Figures] = []
    if (run.path / "prototypes.png").is_file():
        caption = (
            "A simulated slide of a held-out patient. Left: the true regions. Right: the prototype of the student that "
            "each patch belongs to. Equal colors mean agreement, and white is no tissue."
        )
        blocks.append(Figures(caption, [_picture(run.path / "prototypes.png", run.path)]))
    places = dict.fromkeys([run.path, *run.folders])
    maps = [path for place in places for path in sorted((place / "maps").rglob("*.png"))]
    if maps:
        some = f" The first {_MOST} of {len(maps)} are shown." if len(maps) > _MOST else ""
        caption = f"Maps of slides, in the order of their files. The legend of a map says what its colors mean.{some}"
        blocks.append(Figures(caption, [_picture(path, run.path) for path in maps[:_MOST]]))
    else:
        text = (
            f"There are no maps of slides. The command explain draws them with --out {run.path / 'maps'}; then run "
            "the command report again."
        )
        blocks.append(Text(text, note=True))
    return Section("maps", "Maps of slides", blocks)


def _picture(path: Path, run: Path) -> Picture:
    name = str(path.relative_to(run).with_suffix("")).removeprefix("maps/")
    return Picture(name, f"picture {path.relative_to(run)}", embedded(path.read_bytes(), "png"), wide=True)
