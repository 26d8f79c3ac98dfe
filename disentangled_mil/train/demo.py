"""The demo: the whole method on a planted cohort."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from .._checks import check_choice
from ..bags import Grid
from ..data.planted import TASKS, PlantedCohort, planted_cohort
from ..models import Student
from ..report.maps import prototype_map
from .bag_cache import BagCache
from .checkpoint import load_model
from .experiment import Split, run_split
from .options import TrainingOptions
from .progress import planned
from .run_folder import RunFolder
from .threads import Threads, using_threads
from .training import plan_stages

# Two teachers out of fold, each on half of the patients, take the time of one on all. After this short training they
# are underconfident; calibration scales their logits.
DEMO_OPTIONS = TrainingOptions(heads=2, dim_head=16, epochs=12, teacher_folds=2, calibrate=True)
# Columns and rows at 10x. Slides are small, so that the demo takes minutes.
DEMO_GRID = (10, 8)


def run_demo(
    out: str | Path,
    task: str,
    options: TrainingOptions,
    *,
    patients: int = 160,
    threads: Threads = None,
    resume: bool = False,
    quiet: bool = False,
) -> str:
    """Train and evaluate on a planted cohort: held-out patients, and a shifted external cohort.

    Writes checkpoints, logs, ``metrics.json``, ``predictions.csv`` and ``prototypes.png`` to ``out``.

    Args:
        out: run folder.
        task: task of the planted cohort: ``"diagnosis"``, ``"grading"`` or ``"survival"``.
        options: options of the training.
        patients: number of training patients, of held-out patients, and of external patients.
        threads: number of threads, ``"auto"``, or None for PyTorch's setting; see :mod:`.threads`.
        resume: flag that continues an interrupted run.
        quiet: flag that hides the progress bars.

    Returns:
        The table of results and the place of the files, as text.

    Raises:
        FileExistsError: a file that a new run would write is there.
        ValueError: ``out`` holds another run, or the options do not allow the task.
    """
    out = Path(out)
    check_choice("task", task, tuple(TASKS))
    if patients < 20:
        raise ValueError(f"patients must be at least 20, got {patients}")
    folder = RunFolder(out, task, TASKS[task], options, resume=resume, decides={"run": "demo", "patients": patients})
    folder.check_files([], [out])
    if folder.finished:
        return folder.report()
    with folder.taken():
        planted = planted_cohort(2 * patients, seed=options.seed, grid=DEMO_GRID)
        external = planted_cohort(patients, seed=options.seed + 10_000, shift=1.0, grid=DEMO_GRID)
        names = planted.cohort.patients
        split = Split(
            planted.cohort.subset(names[:patients]),
            {"internal": planted.cohort.subset(names[patients:]), "external": external.cohort},
        )
        sizes = BagCache().check(split.train.samples, quiet=True)
        with using_threads(threads, sizes, options.batch_size) as used:
            folder.record(threads=used)
            with planned({"demo": plan_stages(split.train, task, options)}):
                result = run_split(split, task, options, out, resume=resume, quiet=quiet)
            _draw_prototypes(out, planted, names[patients:])
        return folder.finish([out], [result], quiet=quiet)


def _draw_prototypes(out: Path, planted: PlantedCohort, patients: Sequence[str]) -> None:
    """Draw the first held-out slide: its true regions beside the prototypes of the last student."""
    trained = "distilled" if (out / "distilled.json").is_file() else "student"
    student = cast(Student, load_model(out / trained).model)
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
