"""The card of a model: what it is, on which data it was trained, how well it predicts, and what is not known."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from .._checks import check_type
from ..report.run_files import RunFiles, read_run
from ..report.run_report import TEST_SETS
from ..report.tables import NAMES, title_of
from ..tasks import KINDS, Task
from ..train.checkpoint import SavedModel

NOT_STATED = "Not stated."


@dataclass(frozen=True)
class CardTexts:
    """Texts of a model card that no file of a run knows. What is None is said to be not stated.

    Args:
        data: data of the training: source, patients, stain, scanner, consent.
        intended_use: use for which the model is meant.
        limits: known limits.
        license: license of the weights, as an identifier of the Hub such as ``"cc-by-nc-4.0"``.

    Example:
        >>> from disentangled_mil.deploy import CardTexts
        >>> CardTexts(data="120 resections of one hospital").intended_use is None
        True
    """

    data: str | None = None
    intended_use: str | None = None
    limits: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            if text is not None:
                check_type(name, text, str, "text or None")


def model_card(
    saved: SavedModel,
    *,
    run: str | Path | None,
    name: str | None,
    texts: CardTexts,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> str:
    """The card as Markdown, with the header that the Hugging Face Hub reads.

    Args:
        saved: model, and what is known with it.
        run: folder of the finished run that trained it.
        name: name of the model in the run, such as ``"distilled"``; None if it is not known.
        texts: texts that no file knows.
        kinds: class of every kind of task.

    Returns:
        The card.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: a file of the run is damaged, or its task is of another kind.
    """
    files = None if run is None else read_run(run, kinds=kinds)
    if files is not None and saved.task is not None and not isinstance(saved.task, files.kind):
        raise ValueError(
            f"{files.path}: must be the run of the model, whose task is of kind {saved.task.kind!r}, "
            f"got {files.kind.kind!r}"
        )
    kind = type(saved.model).__name__
    parts = {
        "Model": _model(saved, kind),
        "Data": _data(saved, files, texts),
        "Metrics": _metrics(files, name),
        "Intended use": [texts.intended_use or NOT_STATED, _NOT_A_DEVICE],
        "Limits": [texts.limits or NOT_STATED],
        "License": [texts.license or NOT_STATED],
        "How to load": [f"```python\n{_LOAD}\n```"],
    }
    body = "\n\n".join("\n\n".join([f"## {title}", *paragraphs]) for title, paragraphs in parts.items())
    return f"{_header(texts)}\n# {kind} of disentangled_mil\n\n{body}\n"


_NOT_A_DEVICE = "The model is for research. Nobody has approved it for diagnosis or treatment."
_LOAD = (
    "from disentangled_mil.deploy import from_pretrained\n\n"
    "saved = from_pretrained('FOLDER OR OWNER/NAME')\n"
    "saved.model, saved.task, saved.reading"
)


def _header(texts: CardTexts) -> str:
    lines = ["library_name: disentangled_mil", "tags:", "- multiple-instance-learning", "- histopathology"]
    if texts.license is not None:
        lines.append(f"license: {json.dumps(texts.license)}")
    return "\n".join(["---", *lines, "---", ""])


def _model(saved: SavedModel, kind: str) -> list[str]:
    takes = {"Student": "slides alone", "Teacher": "slides and gene expression", "GeneNetwork": "gene expression alone"}
    task = "not stated" if saved.task is None else f"`{saved.task}`"
    return [
        f"A `{kind}`, which predicts from {takes[kind]}. Task: {task}. Written by disentangled_mil {__version__}.",
        f"Arguments:\n\n```json\n{json.dumps(saved.model.arguments, indent=2)}\n```",
    ]


def _data(saved: SavedModel, files: RunFiles | None, texts: CardTexts) -> list[str]:
    paragraphs = [texts.data or f"Source of the training data: {NOT_STATED.lower()}"]
    tiles = {} if saved.reading is None else saved.reading.tiles
    rows = [
        [name, *("not stated" if value is None else str(value) for value in facts)] for name, facts in tiles.items()
    ]
    head = ["magnification", "encoder", "features", "objective", "micrometers per pixel", "relative side of tiles"]
    paragraphs.append(_table(head, rows) if rows else f"Encoder and magnification of the tiles: {NOT_STATED.lower()}")
    if files is not None:
        paragraphs.append(f"Digest of the cohort: `{files.cohort or 'not stated'}`.")
    return paragraphs


def _metrics(files: RunFiles | None, name: str | None) -> list[str]:
    if files is None:
        return [NOT_STATED]
    paragraphs = []
    if name is not None:
        paragraphs.append(f"This folder holds the model `{name}` of the run.")
    paragraphs.append(
        "The values are means over the splits of the run, whose models had not seen the test patients. Intervals hold "
        "95 % of bootstrap draws of patients. A model that was refitted on all patients has no test patients left: "
        "for it, the values are those of the same training on fewer patients."
    )
    for test, compared in files.metrics["gains"].items():
        paragraphs += _test_set(test, compared, files)
    return paragraphs


def _test_set(test: str, compared: dict[str, Any], files: RunFiles) -> Iterator[str]:
    counts = files.metrics["tests"].get(test, {}).get("all", {})
    about = f"**{test}**" + (f": {TEST_SETS[test]}" if test in TEST_SETS else "")
    yield f"{about}. {counts.get('patients', compared['patients'])} patients: {counts.get('labels', 'not stated')}."
    title = title_of(compared["metric"], files.kind)
    rows = [
        [NAMES.get(model, model), _number(found["value"]), f"{_number(found['low'])} to {_number(found['high'])}"]
        for model, found in compared["models"].items()
    ]
    yield _table(["model", title, "95 % interval"], rows)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    # A line break or a bar in a name would break the table.
    lines = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
