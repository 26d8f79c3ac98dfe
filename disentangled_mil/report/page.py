"""The report of a run: one page that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .._exit_status import work_begins
from .._files import check_outputs, replacing
from ..tasks import KINDS, Task
from .blocks import Section, Text
from .classes import class_sections
from .learning import learning_section
from .overview import gain_section, quality_section, run_section, summary
from .pictures import map_files, map_section
from .risk import risk_sections
from .run_files import RunFiles, read_run

PAGE = "report.html"


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    maps: str | Path | None = None,
    overwrite: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> Path:
    """Write the report of a finished run as one HTML file with all pictures and styles inside.

    It holds options, metrics with 95 % intervals over patients, gains, headroom, calibration and the largest errors.
    Its pictures are ROC curves or Kaplan-Meier curves of risk groups, curves of the training, and maps of slides. The
    page says what the run folder lacks.

    Args:
        run: folder of the run.
        out: file to write, which ends in ``.html``; ``report.html`` in the folder by default, which is always replaced.
        maps: folder of the pictures of maps, as the command ``explain`` writes them; by default ``maps`` in the run
            folder and in those of its folds.
        overwrite: flag that allows to replace another ``out``, unless it is a file of the run.
        kinds: class of every kind of task.

    Returns:
        The file that was written.

    Raises:
        FileExistsError: ``out`` is there, and ``overwrite`` is False.
        FileNotFoundError: the folder holds no finished run, or ``maps`` no picture.
        OSError: the file cannot be written.
        ValueError: a file of the run is damaged, or ``out`` has another ending or is a file of the run.
    """
    files = read_run(run, kinds=kinds)
    path = files.path / PAGE if out is None else Path(out)
    if path.suffix.lower() != ".html":
        raise ValueError(f"{path}: a report must end in .html, got {path.name!r}")
    pictures = map_files(files, None if maps is None else Path(maps))
    read = [file for file in files.path.rglob("*") if file.is_file() and file.suffix.lower() != ".html"]
    read += [file for of_place in pictures.values() for file in of_place]
    check_outputs([path], read, overwrite=overwrite or out is None)
    # All text that comes from files is escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.jinja").render(
        title=f"{files.run['task'].get('name', files.kind.kind)}: report of {files.path.resolve().name}",
        summary=summary(files),
        sections=_sections(files, pictures),
    )
    work_begins()
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _sections(files: RunFiles, pictures: Mapping[Path, Sequence[Path]]) -> list[Section]:
    """All parts in order; which figures there are follows from the columns of the predictions."""
    figures = class_sections(files) + risk_sections(files)
    if not figures:
        text = f"There are no figures for tasks of kind {files.kind.kind}. All predictions are in predictions.csv."
        figures = [Section("figures", "Figures", [Text(text, note=True)])]
    return [
        run_section(files),
        quality_section(files),
        gain_section(files),
        *figures,
        learning_section(files),
        map_section(files, pictures),
    ]
