"""An estimate of the time and memory of a run, from one training step of teacher and student on this machine.

A step on one sample of random patches is measured twice. With few patches it gives the constant part, and with the
typical number of patches the part per patch. Both grow in proportion to the steps and patches of the run. On
the CPU the time is that of the processor, divided by the threads, because other programs may delay a measurement.
Reading, evaluation, linear models and the network on genes are not in it, and attention over slides of very different
sizes is not linear. So the estimate only distinguishes minutes from hours and hours from days.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..bags import Bag
from ..models import Student, Teacher
from .building import WITHOUT_GENES
from .options import TrainingOptions

_FEW = 64
_MOST = 4096  # patches of the measured step; a typical slide may have more
_SIDE = 224


class RunEstimate(NamedTuple):
    """The expected cost of a run.

    Attributes:
        seconds: time of all folds, epochs and stages.
        step_bytes: tensors that a step keeps for its backward pass, for the largest samples after ``training_tokens``.
        feature_bytes: features of all samples in float32.
        basis: the measurement, in words.
    """

    seconds: float
    step_bytes: float
    feature_bytes: float
    basis: str


class CohortSize(NamedTuple):
    """What decides the cost of a run.

    Attributes:
        tokens: patches of every sample, by magnification.
        width: numbers per patch.
        genes: genes of every subspace; empty for a cohort without expression.
        paired: share of the samples with expression.
        outputs: number of logits.
    """

    tokens: Mapping[str, Sequence[int]]
    width: int
    genes: Mapping[str, int]
    paired: float
    outputs: int


def estimate_run(size: CohortSize, options: TrainingOptions, *, folds: int) -> RunEstimate:
    """Measure a step of teacher and student, and estimate a run from it.

    Args:
        size: size of the cohort.
        options: options of the training.
        folds: number of folds.

    Returns:
        The estimate.
    """
    tokens = {name: [min(count, options.training_tokens) for count in of] for name, of in size.tokens.items()}
    totals = [sum(counts) for counts in zip(*tokens.values(), strict=True)]
    typical = {name: max(min(sorted(counts)[len(counts) // 2], _MOST), 1) for name, counts in tokens.items()}
    few = {name: min(count, _FEW) for name, count in typical.items()}
    patches, mean = sum(typical.values()), sum(totals) / len(totals)
    seconds = step_bytes = 0.0
    for build, (samples, part) in zip((_teacher, _student), _work(size, tokens, options, folds), strict=True):
        if not samples:
            continue
        step = build(size, options)
        small, _ = _measure(step, few, size.width, options.device)
        large, kept = _measure(step, typical, size.width, options.device)
        rate = max(large - small, 0.0) / max(patches - sum(few.values()), 1)
        seconds += options.epochs * samples * (small / options.batch_size + part * mean * rate)
        step_bytes = max(step_bytes, kept / patches * sum(sorted(totals)[-options.batch_size :]))
    basis = (
        f"measured: a step of one sample of {patches:,} random patches on {options.device} with "
        f"{torch.get_num_threads()} thread(s); times {options.epochs} epochs and {folds} folds, each with "
        f"{_models(size, options)}"
    )
    return RunEstimate(seconds, step_bytes, 4.0 * size.width * sum(map(sum, size.tokens.values())), basis)


def _work(
    size: CohortSize, tokens: Mapping[str, Sequence[int]], options: TrainingOptions, folds: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of teachers and of students: samples in an epoch, over all models and folds, and the share of tokens they see."""
    counts = list(tokens.values())
    fold = len(counts[0]) * (folds - 1)
    # Each of the K teachers out of fold sees (K - 1) / K of the samples, and a part of large bags.
    apart = options.teacher_repeats * (options.teacher_folds - 1) * has_teachers_out_of_fold(options)
    seen = sum(min(n, options.teacher_tokens) for of in counts for n in of) / max(1, sum(sum(of) for of in counts))
    teachers = fold * (1 + apart) * size.paired * bool(size.genes)
    return (teachers, (1 + apart * seen) / (1 + apart)), (fold * _students(size, options), 1.0)


def _models(size: CohortSize, options: TrainingOptions) -> str:
    """The models of a fold in words."""
    count = options.teacher_repeats * options.teacher_folds
    parts = ["one teacher"] if size.genes else []
    parts += [f"{count} teachers for targets out of fold"] if size.genes and has_teachers_out_of_fold(options) else []
    students = "two students" if _students(size, options) == 2 else "one student"
    return f"{', '.join(parts)} and {students}" if parts else students


def has_teachers_out_of_fold(options: TrainingOptions) -> bool:
    """Whether teachers are trained for targets out of fold, if there is expression.

    Args:
        options: options of the training.

    Returns:
        True if they are.
    """
    return options.distill == "auto" or (options.distill == "always" and options.distillation_targets == "out_of_fold")


def _students(size: CohortSize, options: TrainingOptions) -> int:
    return 2 if size.genes and options.distill != "never" else 1


def _teacher(size: CohortSize, options: TrainingOptions) -> Callable[[dict[str, Bag]], Tensor]:
    genes = {name: torch.zeros(1, count, device=options.device) for name, count in size.genes.items()}
    teacher = Teacher(
        size.width, dict(size.genes), size.outputs, gene_tokens=options.gene_tokens, **_common(size, options)
    )
    teacher.to(options.device)
    return lambda bags: teacher(bags, genes).logits


def _student(size: CohortSize, options: TrainingOptions) -> Callable[[dict[str, Bag]], Tensor]:
    subspaces = tuple(size.genes) or WITHOUT_GENES
    student = Student(size.width, size.outputs, subspaces=subspaces, **_common(size, options)).to(options.device)
    return lambda bags: student(bags).logits


def _common(size: CohortSize, options: TrainingOptions) -> dict[str, Any]:
    return {
        "dim": options.dim,
        "magnifications": tuple(size.tokens),
        "gate": options.gate,
        "dropout": options.dropout,
        "heads": options.heads,
        "groups": options.heads,
        "dim_head": options.dim_head,
    }


def _measure(
    step: Callable[[dict[str, Bag]], Tensor], tokens: Mapping[str, int], width: int, device: str
) -> tuple[float, float]:
    """Seconds of a forward and backward pass, and bytes that it keeps in between."""
    on_cpu = torch.device(device).type == "cpu"
    bags = {name: _random_bag(count, width).to(device) for name, count in tokens.items()}
    step(bags).sum().backward()  # type: ignore[no-untyped-call]
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    clock = time.process_time if on_cpu else time.perf_counter
    start = clock()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step(bags).sum().backward()  # type: ignore[no-untyped-call]
    if not on_cpu:
        torch.accelerator.synchronize()
    return (clock() - start) / (torch.get_num_threads() if on_cpu else 1), float(sum(kept.values()))


def _random_bag(count: int, width: int) -> Bag:
    side = int(count**0.5) + 1
    place = torch.arange(count)
    coords = torch.stack([place % side, place // side], dim=1) * _SIDE
    return Bag.from_slide(torch.randn(count, width), coords, step=_SIDE)
