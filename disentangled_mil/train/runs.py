"""Whole runs: the demo on a planted cohort, cross-validation on a cohort of one's own."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from .. import __version__
from .._files import remove_leftovers, replacing
from ..data.cohort import Cohort, StoredBag, task_labels
from ..data.cohort_file import read_cohort
from ..data.folds import patient_folds
from ..data.planted import PlantedCohort, planted_cohort
from ..models import Student
from ..report.maps import prototype_map
from ..report.tables import results_table
from .checkpoint import load_model, write_json
from .examples import BagMemory
from .experiment import MODELS, Result, Split, run_split
from .options import TrainingOptions

TRAIN_OPTIONS = TrainingOptions()
DEMO_OPTIONS = replace(TRAIN_OPTIONS, heads=2, dim_head=16, epochs=20)
# Columns and rows at 10x: small slides, so that the demo takes minutes.
DEMO_GRID = (10, 8)


def run_demo(
    out: Path,
    label: str,
    options: TrainingOptions,
    *,
    patients: int = 160,
    resume: bool = False,
    quiet: bool = False,
) -> str:
    """Train and evaluate on a planted cohort: held-out patients, and a shifted external cohort.

    Writes checkpoints, logs, ``metrics.json``, ``predictions.csv`` and ``prototypes.png`` to ``out``.

    Args:
        out: run folder.
        label: ``"diagnosis"``, ``"grading"`` or ``"survival"``.
        options: of the training.
        patients: training patients; as many are held out, and as many are external.
        resume: continue an interrupted run.
        quiet: show no progress bars.

    Returns:
        The table of results and where the files are, as text.

    Raises:
        ValueError: ``out`` holds another run, or the options do not allow the task.
    """
    if patients < 20:
        raise ValueError(f"patients must be at least 20, got {patients}")
    claim = {"run": "demo", "task": label, "patients": patients, "training": _saved(options)}
    if _finished(out, claim, resume):
        return _report(out, label)
    _claim(out, claim)
    planted = planted_cohort(2 * patients, seed=options.seed, grid=DEMO_GRID)
    external = planted_cohort(patients, seed=options.seed + 10_000, shift=1.0, grid=DEMO_GRID)
    names = planted.cohort.patients
    split = Split(
        planted.cohort.subset(names[:patients]),
        {"internal": planted.cohort.subset(names[patients:]), "external": external.cohort},
    )
    result = run_split(split, label, options, out, resume=resume, quiet=quiet)
    _draw_prototypes(out, planted, names[patients:])
    return _finish(out, [out], [result], label, options)


def run_cross_validation(
    description: Path,
    label: str,
    out: Path,
    options: TrainingOptions,
    *,
    folds: int = 3,
    resume: bool = False,
    quiet: bool = False,
) -> str:
    """Cross-validate by patient on the patients with expression; the others help to train the students.

    Writes one folder per fold with checkpoints and logs, and ``metrics.json`` and ``predictions.csv``.

    Args:
        description: TOML file, see :func:`~disentangled_mil.data.read_cohort`.
        label: ``"diagnosis"``, ``"grading"`` or ``"survival"``.
        out: run folder.
        options: of the training.
        folds: number of folds, stratified by label (by event for survival), in the order of the clinical table.
        resume: continue an interrupted run.
        quiet: show no progress bars.

    Returns:
        The table of results and where the files are, as text.

    Raises:
        FileNotFoundError: a file of the cohort is missing.
        ValueError: the cohort is refused, ``out`` holds another run, or the options do not allow the task.
    """
    cohort = read_cohort(description)
    if cohort.expression is None:
        raise ValueError(
            f"{description}: must have [expression] and [genes], from which the teacher learns, got neither"
        )
    known = _digest(cohort)
    claim = {"run": "train", "task": label, "folds": folds, "cohort": known, "training": _saved(options)}
    if _finished(out, claim, resume):
        return _report(out, label)
    labels = task_labels(cohort, label)
    paired = cohort.with_expression()
    eligible = labels.loc[[patient for patient in paired.patients if patient in labels.index]]
    strata = eligible["event"] if isinstance(eligible, pd.DataFrame) else eligible
    splits = patient_folds(eligible.index, strata, folds=folds, seed=options.seed)
    memory = BagMemory()
    memory.check(cohort.samples, quiet=quiet)
    _claim(out, claim)
    results = []
    for number, fold in enumerate(splits):
        if not quiet:
            print(f"fold {number + 1} of {folds}", file=sys.stderr)
        tested = set(fold.test)
        train = cohort.subset(patient for patient in labels.index if patient not in tested)
        split = Split(train, {"test": paired.subset(fold.test)})
        folder = out / f"fold{number}"
        result = run_split(split, label, options, folder, memory=memory, resume=resume, quiet=quiet)
        result.predictions.insert(0, "fold", number)
        results.append(result)
    return _finish(out, [out / f"fold{number}" for number in range(folds)], results, label, options)


def _finished(out: Path, run: Mapping[str, Any], resume: bool) -> bool:
    """Whether a run folder holds this run to its end; refuse it where it may not be used for this run."""
    path = out / "run.json"
    if path.is_file():
        if not resume:
            raise ValueError(f"{out}: already holds a run; give another --out, or --resume to continue it")
        before = json.loads(path.read_text())
        changed = [key for key in run if before.get(key) != run[key]]
        if changed:
            raise ValueError(f"{out}: cannot be resumed with another {', '.join(changed)} than it was started with")
        return (out / "metrics.json").is_file()
    if resume:
        raise ValueError(f"{out}: holds no run to resume")
    return False


def _claim(out: Path, run: Mapping[str, Any]) -> None:
    """Take a run folder for one run."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "run.json", run)


def _saved(options: TrainingOptions) -> dict[str, Any]:
    """Options that decide the numbers of a run."""
    return {name: value for name, value in asdict(options).items() if name != "device"}


def _digest(cohort: Cohort) -> str:
    """Recognises a cohort wherever it lies: patients, labels, slides (by name and size), expression and its options."""
    digest = hashlib.sha256()
    digest.update(cohort.clinical.to_csv().encode())
    for sample in cohort.samples:
        for magnification, bag in sample.bags.items():
            stored = cast(StoredBag, bag)
            files = [(path.name, path.stat().st_size) for path in stored.paths]
            reading = (stored.transform, stored.drop_augmented, stored.step)
            digest.update(repr((sample.name, magnification, files, *reading)).encode())
    if cohort.expression is not None:
        digest.update(repr((list(cohort.expression.index), list(cohort.expression.columns))).encode())
        digest.update(cohort.expression.to_numpy().tobytes())
    digest.update(repr((dict(cohort.gene_sets), dict(cohort.expression_options))).encode())
    return digest.hexdigest()


def _draw_prototypes(out: Path, planted: PlantedCohort, patients: Sequence[str]) -> None:
    """The first held-out slide: true regions beside the distilled student's prototypes, at the finest magnification."""
    student = cast(Student, load_model(out / "distilled")[0])
    sample = next(sample for sample in planted.cohort.samples if sample.patient == patients[0])
    bags = sample.load()
    with torch.no_grad():
        branches = student(bags).branches
    magnification = list(bags)[-1]
    tumour = planted.regions[sample.name][magnification]
    prototype_map(
        out / "prototypes.png",
        bags[magnification].grid,
        (~tumour).long(),
        branches[magnification].assignment[0],
        subspaces=student.subspaces,
        title=f"{sample.name}, {magnification}, held-out patient",
    )


def _finish(out: Path, folders: Sequence[Path], results: Sequence[Result], label: str, options: TrainingOptions) -> str:
    """Write metrics and predictions, remove states for resuming and halves of killed writes, and tell the results."""
    with replacing(out / "predictions.csv") as temporary:
        pd.concat([result.predictions for result in results], ignore_index=True).to_csv(temporary, index=False)
    runs = [result.metrics for result in results]
    write_json(
        out / "metrics.json",
        {"version": __version__, "task": label, "training": _saved(options), "runs": runs},
    )
    for folder in folders:
        for name in MODELS:
            for suffix in (".progress.pt", ".csv", ".safetensors", ".json"):
                remove_leftovers(folder / f"{name}{suffix}")
            (folder / f"{name}.progress.pt").unlink(missing_ok=True)
    for name in ("run.json", "metrics.json", "predictions.csv", "prototypes.png"):
        remove_leftovers(out / name)
    return _report(out, label)


def _report(out: Path, label: str) -> str:
    """The table of a finished run and where its files are."""
    runs = json.loads((out / "metrics.json").read_text())["runs"]
    table = results_table(runs, label, every=len(runs) > 1)
    return f"\n{table.to_string()}\n\nmetrics, predictions, logs and checkpoints: {out}"
