"""The parts of a report for tables with classes: ROC curves, calibration, and who was misclassified."""

from collections.abc import Mapping
from itertools import chain

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import auc, roc_curve

from .._colors import BLUE
from ..metrics import bootstrap_patients, percentile_interval
from .blocks import STROKES, Figures, Picture, Section, Table, Text, drawing, interval, number, vector
from .run_files import RunFiles
from .tables import NAMES

_PREFIX = "probability_"
_BINS = 10
_MOST_CLASSES = 12
_MOST_ROWS = 50
_ROC = (
    "A curve shows the share of patients of the class that are found (sensitivity) against the share of all other "
    "patients that are taken for it. A curve along the upper left corner is perfect, and the gray diagonal is chance. "
    "The number behind a model is the area under its curve (AUC). The curve joins the patients of all folds, so it can "
    "differ a little from the mean of the folds above."
)
_CALIBRATION = (
    "Patients are grouped by the probability of their predicted class. A dot compares the mean probability of a group "
    "with the share of right predictions in it. Dots on the diagonal are calibrated. Below it, the model is too "
    "confident. A larger dot is a larger group, and its line is the 95 % interval of the share (Wilson). ECE is the "
    f"mean distance from the diagonal over patients, in {_BINS} groups of equal width; 0 is best."
)


def class_sections(run: RunFiles) -> list[Section]:
    """The sections, or none where the predictions have no classes."""
    if not {"label", "predicted"} <= set(run.predictions.columns):
        return []
    return [
        Section("roc", "ROC curves", [Text(_ROC), *chain.from_iterable(_roc(run, test) for test in run.tests)]),
        Section("calibration", "Calibration", [Text(_CALIBRATION), *(_calibration(run, test) for test in run.tests)]),
        Section("errors", "Who was misclassified", list(chain.from_iterable(_errors(run, test) for test in run.tests))),
    ]


def _roc(run: RunFiles, test: str) -> list[Text | Figures]:
    """One panel per class: it against all others, for every model."""
    tables = run.tables(test)
    counts = max(tables.values(), key=len)["label"].value_counts()
    classes = list(counts.index)
    if len(classes) < 2:
        return [Text(f"{run.about(test)}All patients have one class, so there is no ROC curve.", note=True)]
    # The curves of two classes are mirror images.
    shown = classes[1:] if len(classes) == 2 else classes[:_MOST_CLASSES]
    named = {model: run.name_of(model, test) for model in tables}
    pictures = [_roc_of_class(tables, named, name, int(counts[name])) for name in shown]
    caption = f"{run.about(test)}{counts.sum()} patients."
    if len(classes) == 2:
        caption += f" The curve of {classes[0]} is the mirror image."
    if len(classes) > _MOST_CLASSES:
        caption += f" The {_MOST_CLASSES} most frequent of {len(classes)} classes are shown."
    return [Figures(caption, pictures)]


def _roc_of_class(tables: Mapping[str, pd.DataFrame], named: Mapping[str, str], name: str, count: int) -> Picture:
    found = []
    with drawing(height=4.6) as (figure, axes):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
        for model, table in tables.items():
            own = (table["label"] == name).to_numpy()
            if not own.any() or own.all():
                continue
            false, true, _ = roc_curve(own, table[_PREFIX + name].astype(float))
            area = auc(false, true)
            axes.plot(false, true, label=f"{named[model]}: {area:.3f}", **STROKES.get(model, {}))
            found.append(f"{model} {area:.3f}")
        axes.set(xlabel="other patients taken for the class", ylabel="patients of the class found", aspect="equal")
        figure.legend(loc="outside lower left", handlelength=3)
        title = f"{name} against the rest ({count} patients)"
        return vector(figure, title, f"ROC curves of {title}; areas: {', '.join(found)}")


def _calibration(run: RunFiles, test: str) -> Figures:
    """One reliability diagram per model."""
    tables = run.tables(test)
    pictures = [_reliability(table, run.name_of(model, test)) for model, table in tables.items()]
    return Figures(f"{run.about(test)}{max(map(len, tables.values()))} patients.", pictures)


def _reliability(table: pd.DataFrame, name: str) -> Picture:
    probabilities = table.filter(regex=f"^{_PREFIX}").astype(float).to_numpy()
    confidence = probabilities.max(1)
    right = (table["predicted"] == table["label"]).to_numpy(dtype=float)
    groups = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(groups, minlength=_BINS)
    present = counts > 0
    sizes = counts[present]
    means, shares = (np.bincount(groups, values, _BINS)[present] / sizes for values in (confidence, right))
    error = float(np.sum(sizes * np.abs(means - shares)) / len(table))
    with drawing() as (figure, axes):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
        low, high = _wilson(shares, sizes)
        axes.vlines(means, low, high, color=BLUE, linewidth=1, clip_on=False)
        axes.scatter(means, shares, s=12 + 200 * sizes / len(table), color=BLUE, zorder=2, clip_on=False)
        axes.set(xlabel="probability of the predicted class", ylabel="share of right predictions")
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        return vector(figure, f"{name}: ECE {error:.3f}", f"reliability diagram of {name}; ECE {error:.3f}")


def _wilson(
    shares: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The 95 % interval of a share of a sample."""
    z = 1.96
    center = (shares + z**2 / (2 * sizes)) / (1 + z**2 / sizes)
    half = z * np.sqrt(shares * (1 - shares) / sizes + z**2 / (4 * sizes**2)) / (1 + z**2 / sizes)
    return center - half, center + half


def _errors(run: RunFiles, test: str) -> list[Text | Table]:
    """The confusion of the model of choice, and its wrong predictions."""
    model = run.chosen(test)
    table = run.tables(test)[model]
    right = (table["predicted"] == table["label"]).to_numpy(dtype=float)
    draws = bootstrap_patients(lambda rows: float(right[rows].mean()), table["label"].tolist())
    largest = table["label"].value_counts(normalize=True)
    text = (
        f"{run.about(test)}{NAMES.get(model, model)}: {int(right.sum())} of {len(table)} predictions are right, which "
        f"is an accuracy of {interval(*percentile_interval(draws))}. Always predicting the largest class, "
        f"{largest.index[0]}, would reach {number(float(largest.iloc[0]))}."
    )
    return [Text(text), _confusion(table), *_misclassified(table, right)]


def _confusion(table: pd.DataFrame) -> Table:
    names = [column.removeprefix(_PREFIX) for column in table.columns if column.startswith(_PREFIX)]
    counts = pd.crosstab(table["label"], table["predicted"]).reindex(index=names, columns=names, fill_value=0)
    rows = [
        [name, *map(str, counts.loc[name]), number(counts.loc[name, name] / max(total, 1), ".0%") if total else "–"]
        for name, total in counts.sum(axis=1).items()
    ]
    caption = "Patients by their true class (rows) and predicted class (columns). The last column is the share found."
    return Table(caption, ("truth", *names, "found"), rows)


def _misclassified(table: pd.DataFrame, right: npt.NDArray[np.float64]) -> list[Text | Table]:
    wrong = table[right == 0]
    if wrong.empty:
        return [Text("No patient was misclassified.")]
    of_truth = [float(row[_PREFIX + row["label"]]) for row in wrong.to_dict("records")]
    of_predicted = [float(row[_PREFIX + row["predicted"]]) for row in wrong.to_dict("records")]
    wrong = wrong.assign(of_truth=of_truth, of_predicted=of_predicted, error=np.subtract(of_predicted, of_truth))
    wrong = wrong.sort_values("error", ascending=False, kind="stable")
    rows = [
        [
            *(row[name] for name in ("patient", "label", "predicted")),
            *(number(row[name], ".2f") for name in ("of_predicted", "of_truth")),
            row["fold"],
        ]
        for row in wrong.head(_MOST_ROWS).to_dict("records")
    ]
    caption = "Misclassified patients, largest errors first."
    if len(wrong) > _MOST_ROWS:
        caption += f" These are {_MOST_ROWS} of {len(wrong)}; predictions.csv holds all."
    head = ("patient", "truth", "prediction", "its probability", "probability of the truth", "fold")
    return [Table(caption, head, rows)]
