"""The command ``check``: what was understood of a cohort, what is missing, and what a run will cost."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pandas as pd

from ..data.cohort import Cohort, StoredBag, columns_of_labels
from ..data.cohort_file import read_cohort
from ..data.tile_ratios import sides_of_slides, smaller_tiles
from ..tasks import KINDS, Task
from .check_expression import check_expression
from .check_report import CohortCheck, lacking
from .cross_validation import task_folds
from .options import TrainingOptions
from .progress import duration
from .run_estimate import CohortSize, estimate_run, has_teachers_out_of_fold
from .slide_facts import SlideFacts, slide_facts, span
from .threads import Threads, using_threads

_DEFAULTS = TrainingOptions()
# Losses, evaluation, reading and the genes alone are not in the estimate. A run of 2 epochs on 61 simulated slides of
# 510 patches took 2.7 times the estimate.
_SLOWER = 3
_OF_AUGMENTED = "drop_augmented = true in [slides] leaves them out, false reads them"
_SHOWN = 5  # errors of one kind
_LEAST_PATIENTS = 5  # of a class, or with an event, in the test patients of a fold


def check_cohort(
    description: str | Path,
    options: TrainingOptions,
    *,
    task: str | None = None,
    folds: int = 3,
    threads: Threads = None,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> CohortCheck:
    """Check a cohort before any training.

    Args:
        description: TOML file, see :func:`~disentangled_mil.data.read_cohort`.
        options: options of the training, for its folds and the estimate.
        task: name of the one task to check; by default all are.
        folds: number of folds.
        threads: number of threads, ``"auto"``, or None for PyTorch's setting; see :mod:`.threads`.
        kinds: class of every kind of task.

    Returns:
        What was understood, with warnings and errors.

    Raises:
        FileNotFoundError: a file of the cohort is missing.
        ValueError: the cohort is refused as a whole, or it has no such task.
    """
    check = CohortCheck()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cohort = read_cohort(description, kinds=kinds)
        if task is not None:
            cohort.definition(task)
        facts = _check_slides(cohort, check)
        genes = check_expression(cohort, check)
        names = cohort.tasks if task is None else (task,)
        outputs = [_check_task(cohort, name, folds, options.seed, check) for name in names]
    check.warnings[:0] = dict.fromkeys(str(warning.message) for warning in caught)
    if not cohort.tasks:
        check.warnings.append(f"{description}: no task is defined; add a section such as [tasks.grading]")
    width = next(iter(facts.values()))[0].width
    tokens = {name: [one.tokens for one in several] for name, several in facts.items()}
    changed = [f"{name} = {value!r}" for name, value in asdict(options).items() if value != getattr(_DEFAULTS, name)]
    check.say(
        "training",
        f"{', '.join(changed)}; all other options are the defaults" if changed else "defaults",
        *_cuts(tokens, options, with_genes=bool(genes)),
    )
    known = [count for count in outputs if count]
    if known and not check.errors:
        totals = [sum(counts) for counts in zip(*tokens.values(), strict=True)]
        with using_threads(threads, totals, options.batch_size):
            size = CohortSize(tokens, width, genes, _paired(cohort), max(known))
            estimate = estimate_run(size, options, folds=folds)
        check.say(
            "time",
            f"about {duration(estimate.seconds)} to {duration(_SLOWER * estimate.seconds)} for one task",
            estimate.basis,
        )
        check.say(
            "memory",
            f"at least {_size(estimate.step_bytes)} in a step of the largest samples",
            f"{_size(estimate.feature_bytes)} of features in all; at most 4 GiB of them stay in memory",
        )
    return check


def _check_slides(cohort: Cohort, check: CohortCheck) -> dict[str, list[SlideFacts]]:
    """Patients and samples of every magnification, with what was recognized."""
    slides = len(cohort.samples)
    check.say("patients", f"{len(cohort.patients)}, with {slides} samples (one per {cohort.unit})")
    facts = {name: [slide_facts(sample.bags[name]) for sample in cohort.samples] for name in cohort.magnifications}
    for name, several in facts.items():
        there = {sample.patient for sample, one in zip(cohort.samples, several, strict=True) if one.tokens}
        counted = Counter(one.recognized for one in several)
        placed = sum(one.placed for one in several)
        read, stored = (span([getattr(one, count) for one in several]) for count in ("tokens", "stored"))
        augmented = sum(one.augmented for one in several)
        check.say(
            f"slides {name}",
            f"{sum(one.slides for one in several)} slides of {len(there)} patients, "
            f"{read} patches in a sample{'' if read == stored else f' are read of {stored}'}, {several[0].width} "
            "features per patch",
            *(f"recognized: {text} ({count})" for text, count in counted.items()),
            *([f"augmented: {augmented:,} patches repeat others; {_OF_AUGMENTED}"] if augmented else []),
            *lacking("no slide", cohort.patients, there),
        )
        if 0 < placed < slides:
            check.errors.append(
                f"{name}: {slides - placed} of {slides} samples have no coordinates: extract them again, or leave them "
                "out of the clinical table"
            )
    ordered = _ordered(cohort.magnifications)
    _check_order(facts, ordered, check)
    _check_places(cohort, ordered, check)
    return facts


def _cuts(tokens: Mapping[str, Sequence[int]], options: TrainingOptions, *, with_genes: bool) -> Iterator[str]:
    """What training leaves out of large bags, in a line for every option that does so."""
    counts = [count for of in tokens.values() for count in of]
    caps = [("training_tokens", options.training_tokens, "each epoch trains on other ones; predictions see all")]
    if with_genes and has_teachers_out_of_fold(options):
        caps.append(("teacher_tokens", options.teacher_tokens, "teachers of targets out of fold see no others"))
    for name, most, meaning in caps:
        if larger := sum(count > most for count in counts):
            yield f"{larger:,} of {len(counts):,} bags hold more patches than {name} = {most:,}: {meaning}"


def _check_places(cohort: Cohort, ordered: Sequence[str], check: CohortCheck) -> None:
    """Read the coordinates of every slide that keeps them; features are read in training.

    Warn where all tiles lie on one place, and where tiles of a lower magnification are smaller than those of a higher
    one.
    """
    faults, at_one_place = [], []
    smaller: Counter[tuple[str, str]] = Counter()
    stored = [bag for sample in cohort.samples for bag in sample.bags.values() if isinstance(bag, StoredBag)]
    for sample in cohort.samples:
        for bag in sample.bags.values():
            if isinstance(bag, StoredBag):
                try:
                    with warnings.catch_warnings(record=True) as said:
                        warnings.simplefilter("always")
                        bag.check_places()
                except ValueError as error:
                    faults.append(str(error))
                at_one_place += [bag.paths[0] for warning in said if str(warning.message).startswith("coords put all ")]
        if not faults:
            smaller.update({pair for sides in sides_of_slides(sample.bags) for pair in smaller_tiles(sides, ordered)})
    for (low, high), count in smaller.items():
        check.warnings.append(
            f"{count} of {len(cohort.samples)} samples have smaller tiles at {low} than at {high}: are the folders "
            "swapped?"
        )
    if at_one_place:
        check.warnings.append(
            f"{len(at_one_place)} of {len(stored)} bags of slides have all tiles on one place, such as "
            f"{at_one_place[0]}: write the coordinates of the tiles, or features without coordinates"
        )
    check.errors += faults[:_SHOWN]
    if len(faults) > _SHOWN:
        check.errors.append(f"coordinates of {len(faults) - _SHOWN} more slides are refused")


def _ordered(magnifications: Sequence[str]) -> list[str]:
    """The magnifications whose names are such as 20x, from low to high."""
    numbers = {name: float(found[1]) for name in magnifications if (found := re.fullmatch(r"(\d+(?:\.\d+)?)x", name))}
    return sorted(numbers, key=lambda name: numbers[name])


def _check_order(facts: Mapping[str, Sequence[SlideFacts]], ordered: Sequence[str], check: CohortCheck) -> None:
    """Warn where a lower magnification has more patches than a higher one."""
    for low, high in pairwise(ordered):
        more = sum(a.tokens > b.tokens for a, b in zip(facts[low], facts[high], strict=True))
        if 2 * more > len(facts[low]):
            check.warnings.append(
                f"{more} of {len(facts[low])} samples have more patches at {low} than at {high}: are the folders "
                "swapped?"
            )


def _check_task(cohort: Cohort, name: str, folds: int, seed: int, check: CohortCheck) -> int:
    """Labels of a task, in all and by fold; the number of logits, 0 where the task cannot be fitted."""
    kind = cohort.definition(name).kind
    try:
        labels = cohort.labels(name)
        check.say(
            f"task {name}",
            f"{kind.kind}, {len(labels)} patients: {kind.summary(columns_of_labels(labels))}",
            *lacking("no label", cohort.patients, set(labels.index)),
        )
        splits = task_folds(cohort, name, folds=folds, seed=seed)
        paired = labels.loc[[patient in cohort.paired for patient in labels.index]]
        if 0 < len(paired) < len(labels):
            check.say(
                "",
                f"with expression: {len(paired)} patients: {kind.summary(columns_of_labels(paired))}; they test all "
                "models, the others those of slides alone",
            )
        outputs = 0
        for number, split in enumerate(splits):
            outputs = cohort.subset(split.train).fit_task(name).outputs
            train, test = (_counted(labels.loc[list(part)], kind, cohort) for part in split)
            check.say(f"  fold{number}", f"train {train}", f"test  {test}")
    except ValueError as error:
        check.errors.append(str(error) if str(error).startswith("task ") else f"task {name!r}: {error}")
        return 0
    strata = Counter(kind.strata(columns_of_labels(labels)))
    rarest, count = min(strata.items(), key=lambda item: item[1])
    if count < _LEAST_PATIENTS * folds:
        check.warnings.append(
            f"task {name!r}: {count} patients with {rarest!r} are few for {folds} folds; metrics of a fold will vary"
        )
    return outputs


def _counted(labels: pd.DataFrame, kind: type[Task], cohort: Cohort) -> str:
    """The patients of one side of a fold in words."""
    with_expression = sum(patient in cohort.paired for patient in labels.index)
    some = f" ({with_expression} with expression)" if cohort.paired and with_expression < len(labels) else ""
    return f"{len(labels)} patients{some}: {kind.summary(columns_of_labels(labels))}"


def _paired(cohort: Cohort) -> float:
    """The share of the samples with expression."""
    return sum(sample.patient in cohort.paired for sample in cohort.samples) / len(cohort.samples)


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
