"""The parts of a report that every kind of task has: what was run, how good it is, what was gained."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from .blocks import STROKES, Figures, Picture, Section, Table, Text, drawing, interval, number, vector
from .run_files import RunFiles
from .run_report import TEST_SETS
from .tables import NAMES, folds_table, gains_table, headroom_table, results_table, title_of


def summary(run: RunFiles) -> list[str]:
    """The result of the model for new slides on every test set, beside chance and a linear model that is better."""
    sentences = []
    for test, found in run.metrics["gains"].items():
        model, title = run.chosen(test), title_of(found["metric"], run.kind)
        value, chance = interval(*_ends(found["models"][model])), _chance(run, test)
        known = "" if chance is None else f" Chance is {number(chance)}."
        sentences.append(
            f"{run.about(test)}The {NAMES.get(model, model)} has {title} {value} over {found['patients']} "
            f"patients.{known}{_better_linear(run, found, model)}"
        )
    return sentences


def _better_linear(run: RunFiles, found: Mapping[str, Any], chosen: str) -> str:
    """A sentence about the linear model where its value is better than that of the chosen one on the same splits."""
    own, linear = found["models"][chosen], found["models"].get("linear")
    if linear is None or linear["splits"] != own["splits"] or None in (linear["value"], own["value"]):
        return ""
    better = linear["value"] - own["value"]
    if (-better if found["metric"] in run.kind.errors else better) <= 0:
        return ""
    return f" The {NAMES['linear']} has the better value: {interval(*_ends(linear))}."


def run_section(run: RunFiles) -> Section:
    """What was run: task, patients, folds, versions and all else that ``run.json`` says."""
    note = dict(run.run)
    task, training, starts = note.pop("task"), note.pop("training", {}), note.pop("starts", [])
    note.pop("cohort", None)  # its digest is shown below
    columns = ", ".join(map(str, task.get("columns", {}).values()))
    rows = [["task", f"{task.get('name', '')} ({task['kind']}, column {columns})"]]
    for test, counts in run.metrics["tests"].items():
        patients = f"{counts['all']['patients']} patients: {counts['all']['labels']}"
        rows.append([f"test set {test}", f"{patients}; {TEST_SETS[test]}" if test in TEST_SETS else patients])
    rows.append(["models", ", ".join(NAMES.get(model, model) for model in dict.fromkeys(run.predictions["model"]))])
    rows += [[key, str(training.get(key, "not recorded"))] for key in ("seed", "epochs")]
    rows += _starts(starts)
    folded = {"options of the training": training}
    for key, value in note.items():
        if isinstance(value, dict):
            folded[f"{key} of the cohort" if key == "description" else key] = value
        else:
            rows.append([key, str(value)])
    if run.cohort is not None:
        rows.append(["digest of the cohort", run.cohort])
    tables = [Table(name, ("name", "value"), list(_flat(values)), folded=True) for name, values in folded.items()]
    return Section("run", "What was run", [Table("", (), rows), *tables])


def quality_section(run: RunFiles) -> Section:
    """The metrics of every model with intervals over patients, beside chance."""
    text = (
        "Each model is tested on patients that it was not trained on. The interval in brackets holds the value in 95 % "
        "of 1,000 draws of the patients with replacement. Models whose intervals overlap may still differ: see the "
        "gains below."
    )
    columns, pictures, folded = {}, [], []
    for test, found in run.metrics["gains"].items():
        title, chance, models = title_of(found["metric"], run.kind), _chance(run, test), found["models"]
        named = {model: run.name_of(model, test) for model in models}
        values = {named[model]: interval(*_ends(one)) for model, one in models.items()}
        columns[f"{run.about(test)}{title} of {found['patients']} patients"] = {"chance": number(chance), **values}
        pictures.append(_intervals(models, named, f"{run.about(test)}{title}", title, chance))
        folded += _details(run, test)
    caption = (
        "A dot is the value of a model, and its line is the 95 % interval over patients. The dashed line is chance: "
        "predictions that know nothing. A model whose line reaches it may be no better."
    )
    means = pd.DataFrame(columns).fillna("not tested")
    blocks: list[Text | Table | Figures] = [
        Text(text),
        _table("Mean over the folds, with 95 % interval over patients", "model", means),
        Figures(caption, pictures),
        *folded,
    ]
    if any(run.is_partial(test) for test in run.tests):
        text = (
            "A model with fewer patients was not trained in every fold. Its value is that of other patients than the "
            "values beside it. The gains below compare models on the same patients."
        )
        blocks.append(Text(text, note=True))
    if any(cell == "–" or "nan" in cell for table in folded for row in table.rows for cell in row):
        blocks.append(Text(f"Some metrics have no value. {run.kind.undefined}.", note=True))
    return Section("quality", "How good the models are", blocks)


def gain_section(run: RunFiles) -> Section:
    """Gains of models over others on the same patients, and why distillation was declined where it was."""
    blocks: list[Text | Table | Figures] = []
    gains = gains_table(run.metrics["gains"], run.kind)
    if gains.empty:
        blocks.append(Text("No two models were compared.", note=True))
    else:
        text = (
            "Both models of a pair predict for the same patients, so the difference is known better than each value. "
            "An interval above 0 is a gain. An interval around 0 shows no difference. The share says how much of the "
            "teacher's gain over the student distillation takes."
        )
        blocks += [Text(text), _table("Differences, with 95 % intervals over patients", "models", gains)]
    headroom = headroom_table(run.metrics["headroom"], run.kind)
    if headroom.empty:
        blocks.append(Text("What there was to gain from the teacher (headroom) was not measured.", note=True))
    else:
        text = (
            "Headroom is what the teacher knows beyond a linear model on the slides. It is measured on training "
            "patients that the teacher had not seen. Without it, there is nothing to distill."
        )
        blocks += [Text(text), _table("Headroom", "fold" if len(headroom) > 1 else "", headroom)]
    if "distilled" not in set(run.predictions["model"]):
        blocks.append(Text("No student was distilled in this run.", note=True))
    return Section("gains", "What distillation gained", blocks)


def _starts(starts: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """When, how and with which versions the run was started and resumed."""
    if not starts:
        return [["date, command and versions", "not recorded"]]
    rows = []
    for number_of_start, start in enumerate(starts):
        began = "resumed" if number_of_start else "started"
        versions = ", ".join(f"{name} {version}" for name, version in start.get("versions", {}).items())
        command = shlex.join(map(str, start.get("command", []))) or "not recorded"
        threads = f", threads: {start['threads']}" if "threads" in start else ""
        processes = f", processes: {start['processes']}" if start.get("processes", 1) > 1 else ""
        rows += [[began, f"{start.get('date', '')}{threads}{processes}"], ["command", command], ["versions", versions]]
    return rows


def _details(run: RunFiles, test: str) -> list[Table]:
    """All measures of a test set, and the folds where there are several."""
    splits, counts = run.metrics["splits"], run.metrics["tests"][test]
    every = results_table(splits, run.kind, test, every=True, chance=counts["all"]["chance"])
    several = len(splits) > 1
    spread = ", mean ± standard deviation of the folds" if several else ""
    of_classes = ". Sensitivity, specificity and F1 are means over the classes" if "sensitivity" in every else ""
    tables = [_table(f"{run.about(test)}All measures{spread}{of_classes}", "model", every, folded=True)]
    if several:
        title = title_of(next(iter(run.kind.headline)), run.kind)
        folds = folds_table(splits, run.kind, test, counts["splits"])
        tables.append(_table(f"{run.about(test)}{title} of every fold", "fold", folds, folded=True))
    return tables


def _chance(run: RunFiles, test: str) -> float | None:
    """The first headline metric by chance, where it is known."""
    chance: Mapping[str, float] = run.metrics["tests"][test]["all"]["chance"]
    return chance.get(next(iter(run.kind.headline)))


def _intervals(
    models: Mapping[str, Any], named: Mapping[str, str], title: str, metric: str, chance: float | None
) -> Picture:
    """One line per model: its value and its interval."""
    with drawing(height=0.9 + 0.36 * len(models)) as (figure, axes):
        for row, (model, one) in enumerate(models.items()):
            value, low, high = (float("nan") if end is None else end for end in _ends(one))
            color = STROKES.get(model, {}).get("color", "#000000")
            axes.plot([low, high], [row, row], color=color, linewidth=2)
            axes.plot([value], [row], "o", color=color, markersize=6)
        if chance is not None:
            axes.axvline(chance, color="#555555", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(models)), [named[model].replace(", ", "\n") for model in models])
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


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """The entries of nested mappings."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield [f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)]
