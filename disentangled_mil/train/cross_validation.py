"""Cross-validation by patient on a cohort of one's own."""

import sys
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from .._checks import as_number, check_count
from ..data.cohort import Cohort, columns_of_labels
from ..data.cohort_file import described_files, read_cohort, read_description
from ..data.folds import PatientSplit, patient_folds
from ..tasks import KINDS, Task
from .bag_cache import BagCache
from .building import StageBuilder
from .cohort_digest import cohort_identity
from .experiment import Split, run_split
from .fold_results import RESULT, load_result, save_result
from .join_folds import finish_folds
from .new_slides import files_of
from .options import TrainingOptions
from .processes import by_first, check_device, rank
from .progress import planned
from .run_folder import RunFolder
from .settings import training_options
from .threads import Threads, using_threads
from .training import models_for, plan_stages, train_models

TRAIN_OPTIONS = TrainingOptions()


def run_cross_validation(
    description: str | Path,
    task: str,
    out: str | Path,
    options: TrainingOptions | None = None,
    *,
    folds: int = 3,
    folds_only: Sequence[int] | None = None,
    threads: Threads = None,
    refit: bool = False,
    resume: bool = False,
    quiet: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> str:
    """Cross-validate by patient on all patients with the label; those without expression test the students only.

    Writes one folder per fold with checkpoints and logs, and ``metrics.json`` and ``predictions.csv``. Without any
    expression, students alone are trained.

    Args:
        description: TOML file, see :func:`~disentangled_mil.data.read_cohort`.
        task: name of a task of the description.
        out: run folder.
        options: options of the training; by default ``TRAIN_OPTIONS`` with the section ``[training]``.
        folds: number of folds, stratified by the task's kind, in the order of the clinical table.
        folds_only: numbers of the folds to train, from 0. Other jobs may train the others in the same folder, at the
            same time; :func:`~disentangled_mil.train.join_folds` ends the run. By default all, and the run is ended.
        threads: number of threads, ``"auto"``, or None for PyTorch's setting; see :mod:`.threads`.
        refit: flag that trains students on all patients at the end, with the same options, in the folder ``final``. A
            finished run may be resumed for it.
        resume: flag that continues an interrupted run.
        quiet: flag that hides the progress bars.
        kinds: class of every kind of task.

    Returns:
        The table of results and the place of the files, as text; for ``folds_only`` the folds that are finished.

    Raises:
        FileExistsError: a file that a new run would write is there.
        FileNotFoundError: a file of the cohort is missing.
        ValueError: the cohort is refused, it has no such task, ``out`` holds another run, a file of the run is one that
            is read, or the options do not allow the task.
    """
    description, out = Path(description), Path(out)
    options = training_options(description, TRAIN_OPTIONS) if options is None else options
    check_device(options.device)
    only = None if folds_only is None else _checked_folds(folds_only, folds, refit)
    cohort = read_cohort(description, kinds=kinds)
    try:
        definition = cohort.definition(task)
    except ValueError as error:
        raise ValueError(f"{description}: {error}") from error
    folders = [out / f"fold{number}" for number in range(folds)]
    identity = cohort_identity(cohort)

    def take() -> RunFolder:
        folder = RunFolder(
            out,
            task,
            definition,
            options,
            resume=resume,
            decides={"run": "train", "folds": folds, "cohort": identity},
            only=None if only is None else [f"fold{number}" for number in only],
        )
        folder.check_files([*described_files(description), *files_of(cohort.samples)], folders)
        return folder

    folder = by_first(take)
    if by_first(lambda: folder.finished and (not refit or folder.has_final)):
        return by_first(folder.report)
    splits = _splits(cohort, task, folds, options, quiet)
    everyone = cohort.subset(cohort.labels(task).index)
    cache = BagCache()
    with folder.taken() if rank() == 0 else nullcontext():
        # Only now no other process trains these folds, or ends the run.
        finished = by_first(lambda: folder.finished)
        wanted = [] if finished else list(range(folds)) if only is None else only
        left = by_first(lambda: [number for number in wanted if not _is_finished(folders[number], kinds)])
        parts = {
            f"fold{number} ({number + 1}/{folds})": plan_stages(splits[number].train, task, options) for number in left
        }
        if refit:
            parts["final"] = plan_stages(everyone, task, options, _models_to_refit(everyone, options))
        if left or only is None:
            sizes = cache.check(cohort.samples, quiet=quiet)
            large = cache.larger(cohort.samples, options.training_tokens)
            if large and rank() == 0 and not quiet:
                print(
                    f"{large:,} bags hold more patches than training_tokens = {options.training_tokens:,}: each epoch "
                    "trains on another part of them, spread evenly over the tissue, and predictions see all",
                    file=sys.stderr,
                )
            with planned(parts), using_threads(threads, sizes, options.batch_size) as used:
                if rank() == 0:
                    folder.record(threads=used, description=read_description(description))
                for number in left:
                    split, place = splits[number], folders[number]
                    if not quiet:
                        print(f"fold{number} ({number + 1} of {folds}): {_counted(split, task)}", file=sys.stderr)
                    result = run_split(split, task, options, place, cache=cache, resume=resume, quiet=quiet)
                    result.predictions.insert(0, "fold", number)
                    if rank() == 0:
                        save_result(place, result, {"run": folder.run, **folder.starts_of(place)})
                if not finished and only is None:
                    by_first(lambda: finish_folds(folder, folders, kinds, quiet=quiet))
                if refit:
                    _refit(everyone, task, options, folder, cache=cache, resume=resume, quiet=quiet)
        if only is None:
            return by_first(folder.report)
    names = ", ".join(f"fold{number}" for number in only)
    return f"finished: {names}\nwhen all {folds} folds are: python -m disentangled_mil join {out}"


def _is_finished(fold: Path, kinds: Mapping[str, type[Task]]) -> bool:
    """Whether a fold has a result; a damaged one is refused before another fold is trained."""
    there = (fold / RESULT).is_file()
    if there:
        load_result(fold, kinds)
    return there


def _checked_folds(only: Sequence[int], folds: int, refit: bool) -> list[int]:
    """The numbers of the folds to train, in order."""
    if refit:
        raise ValueError("refit must follow all folds, got folds_only: join them, then train with --refit --resume")
    for number in only:
        check_count("folds_only", number, minimum=0)
        if number >= folds:
            raise ValueError(f"folds_only must hold numbers from 0 to {folds - 1}, got {number}")
    if not only or len(set(only)) < len(only):
        raise ValueError(f"folds_only must hold every number once, and at least one, got {list(only)}")
    return sorted(only)


def _refit(
    everyone: Cohort,
    task: str,
    options: TrainingOptions,
    folder: RunFolder,
    *,
    cache: BagCache,
    resume: bool,
    quiet: bool,
) -> None:
    """Train the students on all patients with the label, as the folds trained theirs."""
    if not quiet:
        print(f"final: students of all {len(everyone.patients)} patients", file=sys.stderr)
    models = _models_to_refit(everyone, options)
    train_models(everyone, task, options, folder.final, models=models, cache=cache, resume=resume, quiet=quiet)
    by_first(lambda: folder.tidy([folder.final]))


def _models_to_refit(everyone: Cohort, options: TrainingOptions) -> list[str]:
    """The students, and the teacher where targets in sample need it."""
    if not everyone.paired or options.distill == "never":
        return ["student"]
    teachers = [] if options.distillation_targets == "out_of_fold" else ["teacher"]
    return ["student", *teachers, "distilled"]


def _counted(split: Split, task: str) -> str:
    """The training and the test patients of a fold in words."""
    kind = split.train.definition(task).kind
    parts = []
    for what, cohort in (("trains on", split.train), *(("tests", cohort) for cohort in split.tests.values())):
        labels = cohort.labels(task)
        parts.append(f"{what} {len(labels)} patients ({kind.summary(columns_of_labels(labels))})")
    return ", ".join(parts)


def task_folds(cohort: Cohort, task: str, *, folds: int, seed: int) -> list[PatientSplit]:
    """The patients of every fold, stratified by the labels and by the presence of expression.

    Args:
        cohort: patients with expression, and others.
        task: name of the task.
        folds: number of folds.
        seed: seed of the folds.

    Returns:
        A split per fold. Every patient with the label is tested once; training patients are all others with the label.

    Raises:
        ValueError: the cohort has no such task, labels do not allow it, for instance because they are all alike, or too
            few patients with the label have expression.
    """
    definition, labels = cohort.definition(task), cohort.labels(task)
    paired = [patient in cohort.paired for patient in labels.index]
    if cohort.expression is not None and not any(paired):
        raise ValueError(
            f"task {task!r} needs patients with label and expression, got none; without [expression] and [genes], "
            "students are trained alone"
        )
    # Folds test all patients, and the teacher those with expression. Metrics of labels that are alike have no value.
    for some, whose in ((labels, ""), (labels.loc[paired], " for the patients with expression")):
        try:
            if len(some):
                definition.check_labels(columns_of_labels(some))
        except ValueError as error:
            raise ValueError(f"task {task!r}, {error}{whose}") from error
    groups = definition.kind.strata(columns_of_labels(labels))
    _warn_of_alike(task, groups)
    strata = _strata(groups, paired, folds)
    try:
        splits = patient_folds(labels.index, strata, folds=folds, seed=seed)
    except ValueError as error:
        raise ValueError(f"task {task!r}: {error}") from error
    if any(paired) and any(cohort.paired.isdisjoint(split.test) for split in splits):
        raise ValueError(
            f"task {task!r} needs patients with expression in each of the {folds} folds, got {sum(paired)} in all; "
            "without [expression] and [genes], students are trained alone"
        )
    return splits


def _warn_of_alike(task: str, groups: Sequence[Hashable]) -> None:
    """Warn of classes that may be one, written in two ways."""
    written: dict[Hashable, Hashable] = {}
    for group in sorted(set(groups), key=str):
        number, plain = as_number(group), " ".join(str(group).casefold().split())
        first = written.setdefault(number if number == number else plain, group)
        if first != group:
            warnings.warn(
                f"task {task!r}: classes {first!r} and {group!r} differ in case, blanks or the form of a number only; "
                "if they are one class, write them alike in the clinical table",
                stacklevel=3,
            )


def _strata(labels: Sequence[Hashable], paired: Sequence[bool], folds: int) -> list[str]:
    """Strata of labels, each divided by the presence of expression where every fold can have both parts."""
    counts = Counter(zip(labels, paired, strict=True))
    return [
        f"{label}, expression {has}" if min(counts[label, True], counts[label, False]) >= folds else str(label)
        for label, has in zip(labels, paired, strict=True)
    ]


def _splits(cohort: Cohort, task: str, folds: int, options: TrainingOptions, quiet: bool) -> list[Split]:
    """The splits, after everything that is fitted on training patients was fitted once."""
    kind = cohort.definition(task).kind
    labels = cohort.labels(task)
    if not quiet:
        without = len(cohort.patients) - len(labels)
        paired = labels.loc[[patient in cohort.paired for patient in labels.index]]
        expression = "none with expression"
        if len(paired):
            expression = f"{len(paired)} of them with expression ({kind.summary(columns_of_labels(paired))})"
        print(
            f"{task}: {len(labels)} patients ({kind.summary(columns_of_labels(labels))}), {expression}"
            + (f"; {without} without the label are left out" if without else ""),
            file=sys.stderr,
        )
        for subspace, (found, wanted) in cohort.genes_found().items():
            print(f"{subspace}: {found} of {wanted} genes in the expression table", file=sys.stderr)
    splits, lacking = [], not cohort.paired.issuperset(labels.index)
    for patients in task_folds(cohort, task, folds=folds, seed=options.seed):
        train = cohort.subset(patients.train)
        # Labels, genes or options that do not fit are refused before a slide is read.
        models = models_for(train, options)
        pipeline = train.fit_expression() if train.paired else None
        StageBuilder(train, train.fit_task(task), pipeline, options).check(models)
        splits.append(Split(train, {"test": cohort.subset(patients.test)}, lacking))
    if not quiet and not cohort.paired:
        print("no expression: students are trained on slides alone, without a teacher to distill", file=sys.stderr)
    elif not quiet and options.cgc and len(cohort.gene_sets) < 2:
        print("no CGC: it needs two subspaces, and [genes] names one", file=sys.stderr)
    return splits
