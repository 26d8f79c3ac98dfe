"""Whole runs: the demo on a planted cohort, cross-validation on a cohort of one's own."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from .. import __version__
from .._files import remove_leftovers, replacing
from ..bags import Grid
from ..data.cohort import Cohort, StoredBag, task_labels
from ..data.cohort_file import read_cohort
from ..data.folds import patient_folds
from ..data.planted import PlantedCohort, planted_cohort
from ..models import Student
from ..report.maps import prototype_map
from ..report.tables import results_table
from .checkpoint import load_model, write_json
from .examples import BagMemory
from .experiment import MODELS, Result, Split, fit_task, run_split
from .options import TrainingOptions

TRAIN_OPTIONS = TrainingOptions()
DEMO_OPTIONS = replace(TRAIN_OPTIONS, heads=2, dim_head=16, epochs=20)
# Columns and rows at 10x: small slides, so that the demo takes minutes.
DEMO_GRID = (10, 8)

_OCCUPIED = "{out}: already holds a run; give another --out, or --resume to continue it"
_END = 1 << 20
_ONE_CLASS = "nan: there was a test set whose patients have one class, which leaves nothing to tell apart\n"
_NOTHING_TO_COMPARE = {
    "diagnosis": _ONE_CLASS,
    "grading": _ONE_CLASS,
    "survival": "nan: there was a test set without two patients of whom one is known to have died first\n",
}


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
    with _claimed(out, claim, resume):
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
    if not quiet:
        print(
            f"{label}: {len(labels)} patients ({_counts(labels)}), "
            f"{len(eligible)} of them with expression ({_counts(eligible)})",
            file=sys.stderr,
        )
        for subspace, (found, wanted) in cohort.genes_found().items():
            print(f"{subspace}: {found} of {wanted} genes in the expression table", file=sys.stderr)
    strata = eligible["event"] if isinstance(eligible, pd.DataFrame) else eligible
    splits = []
    for fold in patient_folds(eligible.index, strata, folds=folds, seed=options.seed):
        tested = set(fold.test)
        train = cohort.subset(patient for patient in labels.index if patient not in tested)
        # What cannot be fitted is refused before a slide is read, and before another fold is trained.
        fit_task(train, label, options)
        train.fit_expression()
        splits.append(Split(train, {"test": paired.subset(fold.test)}))
    memory, results = BagMemory(), []
    folders = [out / f"fold{number}" for number in range(folds)]
    with _claimed(out, claim, resume):
        memory.check(cohort.samples, quiet=quiet)
        for number, (split, folder) in enumerate(zip(splits, folders, strict=True)):
            if not quiet:
                print(f"fold {number + 1} of {folds}", file=sys.stderr)
            result = run_split(split, label, options, folder, memory=memory, resume=resume, quiet=quiet)
            result.predictions.insert(0, "fold", number)
            results.append(result)
        return _finish(out, folders, results, label, options)


def _finished(out: Path, run: Mapping[str, Any], resume: bool) -> bool:
    """Whether a run folder holds this run to its end; refuse it where it may not be used for this run."""
    path = out / "run.json"
    if not resume and (path.is_file() or _trained(out)):
        raise ValueError(_OCCUPIED.format(out=out))
    if path.is_file():
        before = _read_claim(path)
        changed = [key for key in run if before.get(key) != run[key]]
        if changed:
            raise ValueError(f"{out}: cannot be resumed with another {', '.join(changed)} than it was started with")
        return (out / "metrics.json").is_file()
    if resume:
        raise ValueError(f"{out}: holds no run to resume")
    return False


def _read_claim(path: Path) -> dict[str, Any]:
    """What run.json says of a run."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: must describe the run to resume: {error}") from error
    if not isinstance(run, dict):
        raise ValueError(f"{path}: must describe the run to resume, got {run!r}")
    return run


@contextmanager
def _claimed(out: Path, run: Mapping[str, Any], resume: bool) -> Iterator[None]:
    """Take a run folder for one run, or go on with it; what is taken is free again if no epoch is finished.

    Of a run that goes on, another process may be the owner: nothing of it is removed.
    """
    path, made = out / "run.json", [folder for folder in (out, *out.parents) if not folder.exists()]
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: must be a folder, to hold the run, got a file")
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        try:
            path.touch(exist_ok=False)
        except FileExistsError as error:  # since it was looked for
            raise ValueError(_OCCUPIED.format(out=out)) from error
    try:
        if not resume:
            write_json(path, run)
        yield
    except BaseException as error:
        if not resume and not _trained(out):
            path.unlink(missing_ok=True)
            for folder in (*out.glob("fold[0-9]*"), *made):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        elif isinstance(error, KeyboardInterrupt) and _trained(out):
            raise KeyboardInterrupt(
                "everything up to the last finished epoch is kept: continue with --resume"
            ) from error
        raise


def _trained(out: Path) -> bool:
    """Whether a run folder holds a finished run, or a finished epoch of one."""
    return (out / "metrics.json").is_file() or any(
        state for pattern in ("*.progress.pt", "fold[0-9]*/*.progress.pt") for state in out.glob(pattern)
    )


def _counts(labels: "pd.Series | pd.DataFrame") -> str:
    """How many patients have each class, or have died."""
    if isinstance(labels, pd.DataFrame):
        return f"{labels['event'].sum()} deaths"
    return ", ".join(f"{label} {count}" for label, count in labels.value_counts().sort_index().items())


def _saved(options: TrainingOptions) -> dict[str, Any]:
    """Options that decide the numbers of a run."""
    return {name: value for name, value in asdict(options).items() if name != "device"}


def _digest(cohort: Cohort) -> str:
    """Recognizes a cohort wherever it lies: patients, labels, slides, expression and its options.

    Of a slide it knows the name, the size, and the first and the last megabyte.
    """
    digest = hashlib.sha256()
    fingerprint = cache(_fingerprint)  # magnifications may share their files
    digest.update(cohort.clinical.to_csv().encode())
    for sample in cohort.samples:
        for magnification, bag in sample.bags.items():
            stored = cast(StoredBag, bag)
            files = [(path.name, fingerprint(path)) for path in stored.paths]
            reading = (stored.transform, stored.drop_augmented, stored.step)
            digest.update(repr((sample.name, magnification, files, *reading)).encode())
    if cohort.expression is not None:
        digest.update(repr((list(cohort.expression.index), list(cohort.expression.columns))).encode())
        digest.update(cohort.expression.to_numpy().tobytes())
        # By what it is fitted to, too: the rule may change from one version to the next.
        digest.update(cohort.fit_expression().digest.encode())
    digest.update(repr((dict(cohort.gene_sets), dict(cohort.expression_options))).encode())
    return digest.hexdigest()


def _fingerprint(path: Path) -> str:
    """Size of a file, and a digest of its first and last megabyte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(_END)
        file.seek(max(len(ends), size - _END))
        ends += file.read()
    return f"{size} {hashlib.sha256(ends).hexdigest()}"


def _draw_prototypes(out: Path, planted: PlantedCohort, patients: Sequence[str]) -> None:
    """The first held-out slide: true regions beside the distilled student's prototypes, at the finest magnification."""
    student = cast(Student, load_model(out / "distilled")[0])
    sample = next(sample for sample in planted.cohort.samples if sample.patient == patients[0])
    bags = sample.load()
    with torch.no_grad():
        branches = student(bags).branches
    magnification = list(bags)[-1]
    tumor = planted.regions[sample.name][magnification]
    prototype_map(
        out / "prototypes.png",
        cast(Grid, bags[magnification].grid),
        (~tumor).long(),
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
    table = results_table(runs, label, every=len(runs) > 1).to_string()
    lacking = f"\n{_NOTHING_TO_COMPARE[label]}" if "nan" in table else ""
    return f"\n{table}\n{lacking}\nmetrics, predictions, logs and checkpoints: {out}"
