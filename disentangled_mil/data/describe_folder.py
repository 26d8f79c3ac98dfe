"""The command ``init``: a description of a cohort from what lies in a folder, with comments on what it guessed."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ._barcodes import tcga_patient
from ._column_guesses import SEPARATORS, Columns, event_keys, guess_columns, shown
from ._expression_files import read_expression_file
from ._matrix_files import Names
from ._scale import recognize_scale
from .gene_sets import gene_symbol, read_gmt
from .slides import SUFFIXES, SlideSource, difference, slide_files, slide_name, slide_source
from .table_layout import TableLayout

_TABLES = re.compile(r"\.(csv|tsv|txt)(\.gz)?$", re.IGNORECASE)
# Folders of CLAM and TRIDENT beside the features. CLAM writes every slide twice, and h5_files have coordinates.
_NO_FEATURES = frozenset(("patches", "masks", "stitches", "contours", "thumbnails", "visualization", "pt_files"))
_WIDE = 20  # columns of numbers that make a table one of expression
_DEPTH = 4


class _Contents(NamedTuple):
    """What a folder holds."""

    slides: dict[Path, list[str]]  # names of the slides of each folder
    tables: list[Path]
    gmt: list[Path]


def describe_folder(folder: str | Path, out: str | Path) -> str:
    """Write a commented description of the cohort in a folder; an existing file is never overwritten.

    Columns, magnifications and scales are guesses, and a comment says so at each of them. Complete the file, and run
    ``check`` on it.

    Args:
        folder: folder of tables, gene sets and folders of slides, at most four levels deep.
        out: TOML file to write.

    Returns:
        The text of the description.

    Raises:
        FileNotFoundError: there is no such folder.
        FileExistsError: ``out`` exists.
        ValueError: the folder holds no slides, or no table with a column of patients.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from disentangled_mil.data.describe_folder import describe_folder
        >>> from disentangled_mil.data.planted import planted_cohort, write_cohort
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = write_cohort(planted_cohort(6, seed=0), folder)
        >>> print(describe_folder(folder, folder / "guess.toml").splitlines()[3])
        table = "clinical.csv"
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    if out.exists():
        raise FileExistsError(f"{out}: is there already and is never overwritten; name another file by --out")
    contents = _contents(folder)
    if not contents.slides:
        raise ValueError(
            f"{folder}: must hold a folder of slides ({', '.join(SUFFIXES)}), got none: extract features first"
        )
    text = "\n".join(_description(contents, folder, out.parent)) + "\n"
    with out.open("x", encoding="utf-8") as file:
        file.write(text)
    return text


def _contents(folder: Path) -> _Contents:
    contents = _Contents({}, [], [])
    for place, folders, files in os.walk(folder):
        here = Path(place)
        stores = [here / name for name in folders if name.endswith(".zarr")]
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in _NO_FEATURES and not name.endswith(".zarr")
        )
        if len(here.relative_to(folder).parts) >= _DEPTH:
            folders.clear()
        paths = [here / name for name in sorted(files) if not name.startswith(".")]
        slides = [slide_name(path.name) for path in (*paths, *stores) if path.suffix in SUFFIXES]
        if slides:
            contents.slides[here] = slides
        contents.tables.extend(path for path in paths if _TABLES.search(path.name))
        contents.gmt.extend(path for path in paths if path.suffix == ".gmt")
    return contents


def _description(contents: _Contents, folder: Path, base: Path) -> Iterator[str]:
    names = {name for slides in contents.slides.values() for name in slides}
    guesses, others = {}, []
    for path in contents.tables:
        try:
            guesses[path] = guess_columns(path, names)
        except ValueError as error:
            others.append(f"# Not a table, so left out: {shown([str(error)])}")
    clinical = _clinical(guesses)
    if clinical is None:
        seen = ", ".join(path.name for path in contents.tables) or "no table"
        raise ValueError(
            f"{folder}: must hold a table with columns of patients and slides, got {seen}: name them e.g. "
            "patient_id and slides"
        )
    columns = guesses[clinical]
    yield "# A guess from the files of this folder. Look at every line, then run: python -m disentangled_mil check FILE"
    yield from others
    yield ""
    yield "[clinical]"
    yield f"table = {_quoted(_relative(clinical, base))}"
    yield f"patient = {_quoted(columns.patient or columns.slides or '')}    # columns: {shown(columns.header, 30)}"
    yield (
        f"slides = {_quoted(columns.slides or columns.patient or '')}    # {columns.matched} rows name a slide that is "
        "there"
    )
    if columns.separator != SEPARATORS[0]:
        yield f"separator = {_quoted(columns.separator)}    # between the slides of a cell"
    if columns.repeated:
        yield 'rows = "slide"    # patients have several rows'
    yield from _tasks(columns)
    yield ""
    yield "[slides]"
    yield 'bag = "slide"    # or "patient": all slides of a patient in one bag'
    used: set[str] = set()
    known: SlideSource | None = None
    for place, slides in contents.slides.items():
        name, source = _magnification(place, used), _source(place)
        other = _other_encoder(source, known)
        known = known or source
        mark = "# " if other else ""
        yield ""
        if other:
            yield f"# Another encoder ({other}). A model sees one, so choose one of the folders:"
        yield f"{mark}[slides.{_quoted(name)}]    # {len(slides)} slides{f' ({source.summary})' if source else ''}"
        yield f"{mark}folder = {_quoted(_relative(place, base))}"
    yield from _expression(guesses, clinical, contents.gmt, base)


def _clinical(guesses: dict[Path, Columns]) -> Path | None:
    """The table with the most cells that are slides; the one with a column of patients where none matches."""
    usable = {
        path: columns for path, columns in guesses.items() if columns.slides and (columns.patient or columns.matched)
    }
    return max(usable, key=lambda path: usable[path].matched, default=None)


def _tasks(columns: Columns) -> Iterator[str]:
    """Survival where there are a time and an event, and the first column of classes; others as comments."""
    if columns.times and columns.events:
        event = columns.censorship or next(iter(columns.events))
        yield ""
        yield "[tasks.survival]"
        yield 'kind = "survival"'
        yield f"time = {_quoted(columns.times[0])}    # may be: {shown(columns.times)}"
        keys = event_keys(columns, event)
        for key, value in keys.items():
            comment = shown(columns.events) if key in ("event", "censorship") else shown(columns.events[event])
            yield f"{key} = {_quoted(value)}    # may be: {comment}"
        values = columns.events[event]
        if "event" in keys and "observed" not in keys and set(values) - {"0", "1"}:
            yield f"# Which value is an observed event? {shown(values)}"
            yield '# observed = ""'
            yield '# censored = ""'
    for number, (label, values) in enumerate(columns.labels.items()):
        mark = "" if number == 0 else "# "
        yield ""
        yield f"{mark}[tasks.{_bare(label)}]    # values: {shown(values, 12)}"
        yield f'{mark}kind = "classification"'
        yield f"{mark}column = {_quoted(label)}"


def _expression(guesses: dict[Path, Columns], clinical: Path, gmt: list[Path], base: Path) -> Iterator[str]:
    """The first table of expression with the gene sets, or comments that say what is missing."""
    own = guesses[clinical]
    wide = [
        path
        for path, columns in guesses.items()
        if path != clinical and columns.numeric > 0.9 and (len(columns.header) > _WIDE or columns.matched == 0)
    ]
    if own.suffix:
        table, layout = clinical, TableLayout(patient=own.patient or "", suffix=own.suffix)
    elif wide:
        table, layout = max(wide, key=lambda path: len(guesses[path].header)), TableLayout()
    else:
        yield ""
        yield "# No table of expression was found. The command train needs one: add [expression] and [genes]."
        return
    sets = read_gmt(gmt[0]) if gmt else {}
    symbols = {gene_symbol(gene) for members in sets.values() for gene in members}
    note, lines = _scale(table, layout, Names((), symbols))
    mark = "" if sets else "# "
    yield ""
    if not sets:
        yield "# Gene sets (a .gmt file) are needed for these two sections; none was found."
    yield f"{mark}[expression]    # {note}"
    yield f"{mark}table = {_quoted(_relative(table, base))}"
    if layout.suffix:
        yield f"{mark}patient = {_quoted(layout.patient)}"
        yield f"{mark}suffix = {_quoted(layout.suffix)}"
    for line in lines:
        yield f"{mark}{line}"
    yield ""
    yield f"{mark}[genes]"
    yield f"{mark}gmt = {_quoted(_relative(gmt[0], base) if gmt else 'gene_sets.gmt')}    # sets: {shown(sets)}"
    chosen = list(sets)[: 4 if len(sets) <= 4 else 2]
    for name in chosen or ["TUMOR", "TME"]:
        yield f"{mark}{_bare(name.lower())} = [{_quoted(name)}]    # a subspace, of one or more sets"


def _scale(path: Path, layout: TableLayout, known: Names) -> tuple[str, list[str]]:
    """The scale of a table in words, and the keys that follow from it."""
    try:
        table, notes = read_expression_file(path, layout, known)
    except ValueError as error:
        return f"not read: {error}", ["log1p = true    # false for log-transformed or z-scored values"]
    scale = recognize_scale(table.to_numpy())
    logarithmic = scale.name in ("log", "z-scores")
    lines = [f"log1p = {str(not logarithmic).lower()}    # scale: {scale}"]
    if scale.name == "z-scores":
        lines.append("fraction = 1.0    # z-scores vary alike, so none is chosen")
    if any(tcga_patient(str(name)) not in (None, name) for name in table.index):
        lines.append('barcodes = "patient"    # names are barcodes of samples')
    return notes[0], lines


def _source(folder: Path) -> SlideSource | None:
    """What the first readable file of a folder says about itself."""
    for path in slide_files(folder).values():
        try:
            return slide_source(path)
        except (OSError, ValueError):
            continue
    return None


def _other_encoder(source: SlideSource | None, known: SlideSource | None) -> str | None:
    """The encoder or width of a folder's features, if they differ from those of the first folder."""
    if source is None or known is None:
        return None
    if source.width != known.width:
        return f"width {source.width} instead of {known.width}"
    return source.encoder if difference(source, known.encoder, None, None) else None


def _magnification(place: Path, used: set[str]) -> str:
    """A name for a folder of slides: the magnification in its path, else its own name."""
    found = [match for part in reversed(place.parts) for match in re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)x", part)]
    name = f"{found[0]}x" if found else re.sub(r"[^A-Za-z0-9_-]", "_", place.name) or "slides"
    name = name.replace(".", "_")
    while name in used:
        name += "_"
    used.add(name)
    return name


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path, base)).as_posix()


def _quoted(text: str) -> str:
    """A TOML string; JSON leaves one character as it is that TOML does not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _bare(name: str) -> str:
    """A TOML key."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)
