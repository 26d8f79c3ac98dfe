"""The part of a report on the training: losses, gradient conflicts and consistency over the epochs."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.ticker import MaxNLocator

from .blocks import STROKES, Figures, Picture, Section, Text, drawing, vector
from .run_files import RunFiles
from .tables import NAMES


class _Topic(NamedTuple):
    """Columns of the logs that are drawn together.

    ``missing`` is the reason why logs have none of them. With ``of_teacher``, only teachers log them.
    """

    title: str
    beginnings: tuple[str, ...]
    text: str
    missing: str = ""
    of_teacher: bool = False


_TOPICS = (
    _Topic(
        "Loss",
        ("loss", "task", "validation"),
        "The column loss is the sum of all parts, and task is the loss on the labels. A validation loss that rises "
        "while the task loss falls means that the model learns its training patients by heart. The loss of a distilled "
        "student jumps where distillation begins, because the parts of the distillation are added to it.",
    ),
    _Topic(
        "Distillation",
        ("prediction", "representation", "share"),
        "The distance of the student from the teacher, in its parts. Distillation begins after the share task_warmup "
        "of the epochs.",
        "no student was distilled.",
    ),
    _Topic(
        "Consistency of magnifications",
        ("consistency",),
        "The distance between the attention of two magnifications on the same tissue. It falls where both look at the "
        "same places.",
        "it needs two magnifications with coordinates.",
        of_teacher=True,
    ),
    _Topic(
        "Conflicts of the subspaces",
        ("conflicts", "projected"),
        "Confidence-guided coordination (CGC): the share of rows of the head in which the gradients of two subspaces "
        "conflict, and the rows in which the gradient of the less confident one was projected.",
        "CGC was off, or there is one subspace.",
        of_teacher=True,
    ),
    _Topic(
        "Cosine of the gradients",
        ("cosine",),
        "The mean cosine of the gradients of two subspaces before CGC. Below 0 they conflict.",
        "the log has no such column.",
        of_teacher=True,
    ),
    _Topic("Gate", ("gate",), "The weight of each magnification in the prediction.", "the log has no such column."),
)
_DASHES = ("-", "--", ":", "-.")


def learning_section(run: RunFiles) -> Section:
    """Curves of the columns of the logs by topic, a panel per model: the mean and the range over the splits."""
    paths = {model: [folder / f"{model}.csv" for folder in run.folders] for model in STROKES}
    logs = {model: [pd.read_csv(path) for path in of_model if path.is_file()] for model, of_model in paths.items()}
    if not any(logs.values()):
        return Section(
            "training", "How the training went", [Text("The run folder has no logs of the epochs.", note=True)]
        )
    blocks: list[Text | Figures] = []
    if len(run.folders) > 1:
        blocks.append(Text("Lines are means over the splits. Bands reach from the smallest to the largest split."))
    for topic in _TOPICS:
        pictures = []
        for model, of_model in logs.items():
            columns = dict.fromkeys(name for log in of_model for name in log if name.startswith(topic.beginnings))
            if columns:
                pictures.append(_curves(of_model, list(columns), topic.title, NAMES.get(model, model)))
        if pictures:
            blocks.append(Figures(f"{topic.title}. {topic.text}", pictures))
        else:
            reason = "no teacher was trained." if topic.of_teacher and not logs["teacher"] else topic.missing
            blocks.append(Text(f"{topic.title}: not shown, because {reason}", note=True))
    return Section("training", "How the training went", blocks)


def _curves(logs: Sequence[pd.DataFrame], columns: Sequence[str], topic: str, model: str) -> Picture:
    with drawing(height=3.4) as (figure, axes):
        for number, column in enumerate(columns):
            values = pd.concat([log.set_index("epoch")[column] for log in logs if column in log], axis=1)
            values = values.dropna(how="all")
            color = list(STROKES.values())[-1 - number % len(STROKES)]["color"]
            marker = "o" if len(values) == 1 else None
            dashes = _DASHES[number % len(_DASHES)]
            axes.plot(values.index, values.mean(axis=1), label=column, marker=marker, color=color, linestyle=dashes)
            low, high = values.min(axis=1), values.max(axis=1)
            axes.fill_between(values.index, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower left", ncols=2, handlelength=3)
        return vector(figure, model, f"{topic} of {model} over {len(logs[0])} epochs: {', '.join(columns)}")
