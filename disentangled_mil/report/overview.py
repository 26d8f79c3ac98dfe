"""The parts of a report that every kind of task has: what was run, how good it is, what was gained."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from .blocks import STROKES, Figures, Picture, Section, Table, Text, drawing, interval, number, vector
from .run_files import RunFiles
from .tables import NAMES, gains_table, headroom_line, results_table

_SHOWN_APART = ("task", "training", "cohort")


def run_section(run: RunFiles) -> Section:
    """What was run: task, patients, folds, versions and all that ``run.json`` says."""
    task = run.run["task"]
    columns = ", ".join(map(str, task.get("columns", {}).values()))
    rows = [["task", f"{task.get('name', '')} ({task['kind']}, column {columns})"]]
    for test in run.tests:
        table = next(iter(sorted(run.tables(test).values(), key=len, reverse=True)))
        labels = {column.name: [_label(cell) for cell in table[column.name]] for column in run.kind.columns}
        rows.append(
            [f"test set {test}" if len(run.tests) > 1 else "test patients", f"{len(table)}: {run.kind.summary(labels)}"]
        )
    rows.append(["models", ", ".join(NAMES.get(model, model) for model in dict.fromkeys(run.predictions["model"]))])
    for key in ("seed", "epochs"):
        rows.append([key, str(run.run.get("training", {}).get(key, "not recorded"))])
    rows.append(["version", str(run.metrics.get("version", "not recorded"))])
    folded = {"options of the training": run.run.get("training", {})}
    for key, value in run.run.items():
        if isinstance(value, dict) and key not in _SHOWN_APART:
            folded[key] = value
        elif key not in _SHOWN_APART:
            rows.append([key, " ".join(map(str, value)) if isinstance(value, list) else str(value)])
    if "cohort" in run.run:
        rows.append(["digest of the cohort", str(run.run["cohort"])])
    tables = [Table(name, ("name", "value"), list(_flat(values)), folded=True) for name, values in folded.items()]
    return Section("run", "What was run", [Table("", (), rows), *tables])


def summary(run: RunFiles) -> list[str]:
    """The result of every test set in one sentence: the model that one would use for new slides, and chance."""
    sentences = []
    for test, found in run.metrics.get("gains", {}).items():
        model = run.chosen(test)
        if model in found.get("models", {}):
            title = run.kind.headline.get(found["metric"], found["metric"])
            chance = run.kind.chance.get(found["metric"])
            known = "" if chance is None else f" Predictions that know nothing have {number(chance)}."
            value = interval(*_ends(found["models"][model]))
            sentences.append(
                f"{run.about(test)}The {NAMES.get(model, model)} has {title} {value} over {found['patients']} "
                f"patients.{known}"
            )
    return sentences


def quality_section(run: RunFiles) -> Section:
    """The metrics of every model with intervals over patients, beside chance."""
    compared: Mapping[str, Any] = run.metrics.get("gains", {})
    blocks: list[Text | Table | Figures] = []
    pictures, columns = [], {}
    for test, found in compared.items():
        models, title = found.get("models", {}), run.kind.headline.get(found["metric"], found["metric"])
        if not models:
            continue
        chance = run.kind.chance.get(found["metric"])
        columns[f"{title}, {test} ({found['patients']} patients)"] = {
            **{NAMES.get(model, model): interval(*_ends(one)) for model, one in models.items()},
            "chance": number(chance),
        }
        pictures.append(_intervals(models, f"{run.about(test)}{title}", title, chance))
    if pictures:
        table = pd.DataFrame(columns).fillna("not tested")
        text = (
            "Each model is tested on patients that it was not trained on. The interval in brackets holds the value in "
            "95 % of 1,000 draws of the patients with replacement. Models whose intervals overlap may still differ: "
            "see the gains below."
        )
        blocks += [Text(text), _table("Mean over the splits, with 95 % interval over patients.", "model", table)]
        caption = (
            "A dot is the value of a model, and its line is the 95 % interval over patients. The dashed line is the "
            "value of predictions that know nothing. A model whose line reaches it may be no better than chance."
        )
        blocks.append(Figures(caption, pictures))
    else:
        blocks.append(Text("metrics.json holds no intervals of models.", note=True))
    every = results_table(run.metrics["splits"], run.kind, every=True).replace({"nan": "–"})
    caption = "All measures: mean ± standard deviation over the splits."
    blocks.append(_table(caption, "model", every, folded=bool(pictures)))
    if any("–" in cell or "nan" in cell for cell in every.to_numpy().ravel()):
        blocks.append(Text(f"A value is missing. {run.kind.undefined}.", note=True))
    return Section("quality", "How good the models are", blocks)


def gain_section(run: RunFiles) -> Section:
    """Gains of models over others on the same patients, and why distillation was declined where it was."""
    blocks: list[Text | Table | Figures] = []
    table = gains_table(run.metrics.get("gains", {}), run.kind)
    if table.empty:
        blocks.append(Text("No two models were compared.", note=True))
    else:
        text = (
            "Both models of a pair predict for the same patients, so the difference is known better than each value. "
            "An interval that lies above 0 is a gain. One that holds 0 shows no difference. The share says how much of "
            "the teacher's gain over the student is taken by distillation."
        )
        blocks += [Text(text), _table("Differences, with 95 % intervals over patients.", "models", table)]
    headroom = run.metrics.get("headroom") or []
    for number_of_split, one in enumerate(headroom):
        if one is not None:
            blocks.append(Text(f"Split {number_of_split}: {headroom_line(one, run.kind)}."))
    if "distilled" not in set(run.predictions["model"]):
        blocks.append(Text("No student was distilled in this run.", note=True))
    elif not any(headroom):
        blocks.append(Text("The headroom for distillation was not measured in this run.", note=True))
    return Section("gains", "What distillation gained", blocks)


def _intervals(models: Mapping[str, Any], title: str, metric: str, chance: float | None) -> Picture:
    """One line per model: its value and its interval."""
    with drawing(height=0.9 + 0.36 * len(models)) as (figure, axes):
        for row, (model, one) in enumerate(models.items()):
            value, low, high = (float("nan") if end is None else end for end in _ends(one))
            color = STROKES.get(model, {}).get("color", "#000000")
            axes.plot([low, high], [row, row], color=color, linewidth=2)
            axes.plot([value], [row], "o", color=color, markersize=6)
        if chance is not None:
            axes.axvline(chance, color="#555555", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(models)), [NAMES.get(model, model) for model in models])
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlabel(metric)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        values = ", ".join(f"{model} {interval(*_ends(one))}" for model, one in models.items())
        return vector(figure, title, f"{title}: {values}")


def _ends(one: Mapping[str, float | None]) -> tuple[float | None, float | None, float | None]:
    return one["value"], one["low"], one["high"]


def _table(caption: str, first: str, table: pd.DataFrame, *, folded: bool = False) -> Table:
    """A table of the report, with the index as its first column."""
    rows = [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return Table(caption, (first, *map(str, table.columns)), rows, folded)


def _label(cell: str) -> Any:
    """A label of the table of predictions; an observed event is True."""
    return {"True": True, "False": False}.get(cell, cell)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """The entries of nested mappings."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield [f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)]
