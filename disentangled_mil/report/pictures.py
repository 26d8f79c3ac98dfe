"""The part of a report with maps of slides: pictures of the run folder, or of another one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

from .blocks import Figures, Picture, Section, Text, embedded
from .run_files import RunFiles
from .tables import NOT_NAMED

MAPS = "maps"  # the folder in that of a run
_MOST = 24


def map_files(run: RunFiles, folder: Path | None) -> dict[Path, list[Path]]:
    """The pictures of maps by the folder that they are named from.

    Args:
        run: run.
        folder: folder of maps; by default those in the run folder and in those of its splits.

    Returns:
        The pictures of every folder.

    Raises:
        FileNotFoundError: a folder was given, and it holds no picture.
    """
    if folder is None:
        places = [place / MAPS for place in dict.fromkeys([run.path, *run.folders])]
        return {run.path: [path for place in places for path in _pictures(place)]}
    found = {folder: _pictures(folder)}
    if not found[folder]:
        raise FileNotFoundError(f"{folder}: must hold pictures of maps (.png), as the command explain writes them")
    return found


def map_section(run: RunFiles, maps: Mapping[Path, Sequence[Path]]) -> Section:
    """The picture of the demo, and the maps of slides."""
    blocks: list[Text | Figures] = []
    if (run.path / "prototypes.png").is_file():
        caption = (
            "A simulated slide of a held-out patient. Left: the true regions. Right: the prototype of the student that "
            "each patch belongs to. Equal colors mean agreement, and white is no tissue."
        )
        if not (run.path / "distilled.json").is_file():
            caption += f" This student {NOT_NAMED}."
        blocks.append(Figures(caption, [_picture(run.path / "prototypes.png", run.path)]))
    every = [(path, place) for place, paths in maps.items() for path in paths]
    if every:
        some = f" The first {_MOST} of {len(every)} are shown." if len(every) > _MOST else ""
        caption = f"Maps of slides, in the order of their files. The legend of a map says what its colors mean.{some}"
        blocks.append(Figures(caption, [_picture(path, place) for path, place in every[:_MOST]]))
    else:
        folder, place = quote(str(run.path)), quote(str(run.path / MAPS))
        # A run of several folds has no student that stands for all of them, unless one was trained on all patients.
        one = (run.path / "final").is_dir() or run.folders == [run.path]
        model = folder if one else f"{quote(str(run.folders[0] / 'student.json'))} --out {place}"
        text = (
            f"There are no maps of slides. For features with coordinates, the command explain {model} "
            f"MAGNIFICATION=FOLDER ... draws them to {place}, and report {folder} then shows them here. Maps in "
            "another folder are shown by report --maps FOLDER."
        )
        blocks.append(Text(text, note=True))
    return Section("maps", "Maps of slides", blocks)


def _pictures(folder: Path) -> list[Path]:
    """The files of pictures in a folder and in those below it; a folder or broken link may have the same ending."""
    return sorted(path for path in folder.rglob("*.png") if path.is_file())


def _picture(path: Path, place: Path) -> Picture:
    name = path.relative_to(place)
    title = str(name.with_suffix("")).removeprefix(f"{MAPS}/")
    return Picture(title, f"picture {name}", embedded(path.read_bytes(), "png"), wide=True)
