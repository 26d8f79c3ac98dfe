"""The command ``init``: a description of a cohort from what lies in a folder, with comments on what it guessed."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .._files import check_outputs, replacing
from ._column_guesses import SEPARATORS, Columns, event_keys, guess_columns
from ._describe_expression import expression_lines, holds_genes
from ._slides_by_name import patient_in
from ._toml_text import bare, one_or_more, quoted, relative, shown
from .slides import SUFFIXES, SlideSource, difference, slide_files, slide_name, slide_source

_TABLES = re.compile(r"\.(csv|tsv|txt)(\.gz)?$", re.IGNORECASE)
# Folders of CLAM and TRIDENT beside the features. CLAM writes every slide twice, and h5_files have coordinates.
_NO_FEATURES = frozenset(("patches", "masks", "stitches", "contours", "thumbnails", "visualization", "pt_files"))
_DEPTH = 4


class _Contents(NamedTuple):
    """What a folder holds."""

    slides: dict[Path, list[str]]  # names of the slides of each folder
    tables: list[Path]
    gmt: list[Path]
    features: list[Path]
    frames: list[Path]  # tables of expression that are no text


def describe_folder(folder: str | Path, out: str | Path, *, overwrite: bool = False) -> str:
    """Write a commented description of the cohort in a folder.

    Columns, magnifications and scales are guesses, and a comment says so at each of them. Complete the file, and run
    ``check`` on it.

    Args:
        folder: folder of tables, gene sets and folders of slides, at most four levels deep.
        out: TOML file to write.
        overwrite: flag that allows to replace ``out``, unless it is a table, a gene set or a slide.

    Returns:
        The text of the description.

    Raises:
        FileNotFoundError: there is no such folder.
        FileExistsError: ``out`` is there, and ``overwrite`` is False.
        ValueError: ``out`` is a file that is read; the folder holds no slides, or no table with a column of patients;
            or a name is not in UTF-8.

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
    contents = _contents(folder)
    check_outputs([out], [*contents.tables, *contents.gmt, *contents.features, *contents.frames], overwrite=overwrite)
    if not contents.slides:
        raise ValueError(
            f"{folder}: must hold a folder of slides ({', '.join(SUFFIXES)}), got none: extract features first"
        )
    text = "\n".join(_description(contents, folder, out.parent)) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        name = error.object[max(0, error.start - 20) : error.end]
        raise ValueError(f"{folder}: names of files must be in UTF-8, got {name!r}: rename it") from error
    with replacing(out) as temporary:
        temporary.write_bytes(content)
    return text


def _contents(folder: Path) -> _Contents:
    contents = _Contents({}, [], [], [], [])
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
        genes = [path for path in paths if path.suffix == ".h5ad" and holds_genes(path)]
        genes = genes if len(genes) == 1 else []  # several are slides without coordinates
        contents.frames.extend([*genes, *(path for path in paths if path.suffix == ".parquet")])
        features = [path for path in (*paths, *stores) if path.suffix.lower() in SUFFIXES and path not in genes]
        if features:
            contents.slides[here] = [slide_name(path.name) for path in features]
        contents.features.extend(features)
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
    clinical = _clinical(guesses, names)
    if not clinical:
        seen = ", ".join(path.name for path in contents.tables) or "no table"
        raise ValueError(
            f"{folder}: must hold a table with columns of patients and slides, got {seen}: name them e.g. "
            f"patient_id and slides{_without_slides(guesses, names)}"
        )
    columns = guesses[clinical[0]]
    expression = list(expression_lines(guesses, clinical, contents.gmt, contents.frames, base))
    yield "# A guess from the files of this folder. Look at every line, then run: python -m disentangled_mil check FILE"
    yield from others
    for path, guess in guesses.items():
        if guess.patient and path not in clinical and not any(path.name in line for line in expression):
            tables = one_or_more([relative(one, base) for one in (*clinical, path)])
            yield (
                f"# {shown([path.name])} names patients too ({shown([guess.patient])}) and is not read: to use its "
                f"columns, set table = {tables}, and patient to a list of columns if they differ."
            )
    yield ""
    yield "[clinical]"
    yield from _clinical_keys([guesses[path] for path in clinical], [relative(path, base) for path in clinical], names)
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
            yield f"# Another encoder ({shown([other])}). A model sees one, so choose one of the folders:"
        recognized = f" ({shown([source.summary])})" if source else ""
        yield f"{mark}[slides.{quoted(name)}]    # {len(slides)} slides{recognized}"
        yield f"{mark}folder = {quoted(relative(place, base))}"
    yield from expression


def _clinical(guesses: dict[Path, Columns], names: Collection[str]) -> list[Path]:
    """The tables to join; the last one has the slides."""
    usable = [path for path, columns in guesses.items() if columns.slides and (columns.patient or columns.matched)]
    best = max(usable, key=lambda path: guesses[path].matched, default=None)
    if best is None or not guesses[best].matched:  # Names of files may tell the patients.
        begun = {
            path: (columns.has_task, _begun(columns, names))
            for path, columns in guesses.items()
            if columns.has_task or columns.numeric <= 0.9  # not one of expression
        }
        by_name = max((path for path in begun if begun[path][1]), key=lambda path: begun[path], default=best)
        return [] if by_name is None else [by_name]
    slides = guesses[best]
    # A table of slides alone needs one with the labels of its patients.
    shared = {
        path: len(columns.patients & slides.patients)
        for path, columns in guesses.items()
        if path != best and columns.has_task and columns.patients & slides.patients
    }
    return [best] if slides.has_task or not shared else [max(shared, key=lambda path: shared[path]), best]


def _begun(columns: Columns, names: Collection[str]) -> int:
    """The number of slides whose names begin with a patient of the table."""
    return sum(patient_in(name, columns.patients) is not None for name in names)


def _clinical_keys(tables: Sequence[Columns], files: Sequence[str], names: Collection[str]) -> Iterator[str]:
    """The keys of the section [clinical]; the last table has the slides."""
    columns = tables[-1]
    patients = [table.patient or table.slides or "" for table in tables]
    header = shown([name for table in tables for name in table.header], 30)
    yield f"table = {one_or_more(files)}"
    yield f"patient = {one_or_more(list(dict.fromkeys(patients)))}    # columns: {header}"
    begun = 0 if columns.matched else _begun(columns, names)
    if begun:
        yield f"slides_by_name = true    # {begun} of {len(names)} files begin with the name of a patient"
    else:
        slides = quoted(columns.slides or columns.patient or "")
        yield f"slides = {slides}    # {columns.matched} rows name a slide that is there"
        if columns.separator != SEPARATORS[0]:
            yield f"separator = {quoted(columns.separator)}    # between the slides of a cell"
    if any(table.repeated for table in tables):
        yield 'rows = "slide"    # patients have several rows'
    if any(table.barcodes for table in tables):
        yield 'barcodes = "patient"    # names are barcodes of samples'


def _without_slides(guesses: dict[Path, Columns], names: Collection[str]) -> str:
    """What to add to a table that has patients and no slides, such as the clinical table of a portal."""
    path = next((path for path, columns in guesses.items() if columns.patient), None)
    if path is None:
        return ""
    return (
        f"; {path.name} names patients in {guesses[path].patient!r}, and lacks a column of slides: add one with the "
        f"names of their files, such as {min(names)!r}, separated by semicolons where a patient has several, or "
        "let the files begin with the names of their patients"
    )


def _tasks(columns: Columns) -> Iterator[str]:
    """Survival where there are a time and an event, and the first column of classes; others as comments."""
    if columns.times and columns.events:
        event = columns.censorship or next(iter(columns.events))
        yield ""
        yield "[tasks.survival]"
        yield 'kind = "survival"'
        yield f"time = {quoted(columns.times[0])}    # may be: {shown(columns.times)}"
        keys = event_keys(columns, event)
        for key, value in keys.items():
            comment = shown(columns.events) if key in ("event", "censorship") else shown(columns.events[event])
            yield f"{key} = {quoted(value)}    # may be: {comment}"
        values = columns.events[event]
        if "event" in keys and "observed" not in keys and set(values) - {"0", "1"}:
            yield f"# Which value is an observed event? {shown(values)}"
            yield '# observed = ""'
            yield '# censored = ""'
    for number, (label, values) in enumerate(columns.labels.items()):
        mark = "" if number == 0 else "# "
        yield ""
        yield f"{mark}[tasks.{bare(label)}]    # values: {shown(values, 12)}"
        yield f'{mark}kind = "classification"'
        yield f"{mark}column = {quoted(label)}"


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
