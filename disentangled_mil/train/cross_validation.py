"""Cross-validation by patient on a cohort of one's own."""

import sys
from collections.abc import Mapping
from pathlib import Path

from ..data.cohort import Cohort, columns_of_labels
from ..data.cohort_file import read_cohort
from ..data.folds import PatientSplit, patient_folds
from ..tasks import KINDS, Task
from .cohort_digest import cohort_digest
from .datasets import BagCache
from .experiment import Split, run_split
from .options import TrainingOptions
from .run_folder import RunFolder
from .threads import Threads, using_threads

TRAIN_OPTIONS = TrainingOptions()


def run_cross_validation(
    description: Path,
    task: str,
    out: Path,
    options: TrainingOptions,
    *,
    folds: int = 3,
    threads: Threads = None,
    resume: bool = False,
    quiet: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> str:
    """Cross-validate by patient on the patients with expression; the others help to train the students.

    Writes one folder per fold with checkpoints and logs, and ``metrics.json`` and ``predictions.csv``.

    Args:
        description: TOML file, see :func:`~disentangled_mil.data.read_cohort`.
        task: name of a task of the description.
        out: run folder.
        options: options of the training.
        folds: number of folds, stratified by the task's kind, in the order of the clinical table.
        threads: number of threads, ``"auto"``, or None for PyTorch's setting; see :mod:`.threads`.
        resume: whether an interrupted run is continued.
        quiet: whether no progress bars are shown.
        kinds: class of every kind of task.

    Returns:
        The table of results and the place of the files, as text.

    Raises:
        FileNotFoundError: a file of the cohort is missing.
        ValueError: the cohort is refused, it has no such task, ``out`` holds another run, or the options do not
            allow the task.
    """
    cohort = read_cohort(description, kinds=kinds)
    if cohort.expression is None:
        raise ValueError(
            f"{description}: must have [expression] and [genes], from which the teacher learns, got neither"
        )
    try:
        definition = cohort.definition(task)
    except ValueError as error:
        raise ValueError(f"{description}: {error}") from error
    folder = RunFolder(
        out,
        task,
        definition,
        options,
        resume=resume,
        description={"run": "train", "folds": folds, "cohort": cohort_digest(cohort)},
    )
    if folder.finished:
        return folder.report()
    splits = _splits(cohort, task, folds, options.seed, quiet)
    if options.cgc and len(cohort.gene_sets) < 2 and not quiet:
        print("no CGC: it needs two subspaces, and [genes] names one", file=sys.stderr)
    cache, results = BagCache(), []
    folders = [out / f"fold{number}" for number in range(folds)]
    with folder.taken():
        sizes = cache.check(cohort.samples, quiet=quiet)
        with using_threads(threads, sizes, options.batch_size) as used:
            folder.record(threads=used)
            for number, (split, place) in enumerate(zip(splits, folders, strict=True)):
                if not quiet:
                    print(f"fold {number + 1} of {folds}", file=sys.stderr)
                result = run_split(split, task, options, place, cache=cache, resume=resume, quiet=quiet)
                result.predictions.insert(0, "fold", number)
                results.append(result)
        return folder.finish(folders, results)


def task_folds(cohort: Cohort, task: str, *, folds: int, seed: int) -> list[PatientSplit]:
    """The patients of every fold: those with label and expression are tested, and all with the label train.

    Args:
        cohort: patients with expression, and others.
        task: name of the task.
        folds: number of folds.
        seed: seed of the folds.

    Returns:
        A split per fold. Every patient with label and expression is tested once; training patients are all others with
        the label.

    Raises:
        ValueError: the cohort has no such task, or labels do not allow it, for instance because they are all alike.
    """
    kind, labels = cohort.definition(task).kind, cohort.labels(task)
    paired = set(cohort.with_expression().patients)
    eligible = labels.loc[[patient in paired for patient in labels.index]]
    if eligible.empty:
        raise ValueError(f"task {task!r} needs patients with label and expression, got none")
    # The folds test these patients, and metrics of labels that are all alike have no value.
    try:
        cohort.definition(task).check_labels(columns_of_labels(eligible))
    except ValueError as error:
        raise ValueError(f"task {task!r}, {error} for the patients with expression") from error
    strata = kind.strata(columns_of_labels(eligible))
    splits = []
    for split in patient_folds(eligible.index, strata, folds=folds, seed=seed):
        tested = set(split.test)
        splits.append(PatientSplit(tuple(patient for patient in labels.index if patient not in tested), split.test))
    return splits


def _splits(cohort: Cohort, task: str, folds: int, seed: int, quiet: bool) -> list[Split]:
    """The splits, after everything that is fitted on training patients was fitted once."""
    kind = cohort.definition(task).kind
    labels, paired = cohort.labels(task), cohort.with_expression()
    eligible = labels.loc[[patient for patient in paired.patients if patient in labels.index]]
    if not quiet:
        without = len(cohort.patients) - len(labels)
        print(
            f"{task}: {len(labels)} patients ({kind.summary(columns_of_labels(labels))}), "
            f"{len(eligible)} of them with expression ({kind.summary(columns_of_labels(eligible))})"
            + (f"; {without} without the label are left out" if without else ""),
            file=sys.stderr,
        )
        for subspace, (found, wanted) in cohort.genes_found().items():
            print(f"{subspace}: {found} of {wanted} genes in the expression table", file=sys.stderr)
    splits = []
    for patients in task_folds(cohort, task, folds=folds, seed=seed):
        train = cohort.subset(patients.train)
        # Labels or genes that cannot be fitted are refused before a slide is read.
        train.fit_task(task)
        train.fit_expression()
        splits.append(Split(train, {"test": paired.subset(patients.test)}))
    return splits
