"""Predictions of saved students for new slides."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from .._exit_status import work_begins
from .._files import check_outputs
from .._tables import write_table
from ..bags import collate_samples
from ..data.cohort import Sample
from ..tasks import KINDS, Task
from .checkpoint import checkpoint_files
from .new_slides import all_checked, files_of, new_samples
from .predictions import predictions_table
from .saved_students import SavedStudent, load_students
from .threads import Threads, using_threads
from .training import NETWORKS


def predict_slides(
    model: str | Path,
    folders: Mapping[str, str | Path],
    out: str | Path,
    *,
    students: str = "auto",
    patients: str | Path | None = None,
    steps: Mapping[str, float] | None = None,
    device: str = "cpu",
    threads: Threads = None,
    allow_other_encoder: bool = False,
    allow_other_tiles: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> pd.DataFrame:
    """Predict for every slide, and write one row per patient.

    A slide must be there at all magnifications. If the student was trained with ``missing = "allow"``, one is enough.
    The metadata of all slides are checked before the first one is computed. A slide whose values are refused later does
    not discard the others: their rows are written, and the error at the end names it.

    Of a run folder, the student of all patients in ``final`` predicts if there is one. Else the predictions of the
    folds' students are averaged: probabilities of classes, or risks. Hazards are averaged if all folds have the same
    intervals, and left out otherwise.

    Args:
        model: checkpoint of a student, a run folder or a folder in it, or a folder of
            :func:`~disentangled_mil.deploy.save_pretrained`.
        folders: folder of slides, or file of one slide, for every magnification of the student.
        out: file to write, which ends in ``.csv``; its folder is made. It holds class probabilities and the predicted
            class, or hazards and risk. Text that a spreadsheet would run as a formula, such as a patient ``=1+1``, has
            a quote before it.
        students: students of a run folder, ``"final"`` or ``"folds"``; ``"auto"`` for the rule above.
        patients: CSV with the columns ``slide`` and ``patient``, which names the slides of the folders, and may
            name others; without it every slide is a patient. A student of ``bag = "patient"`` needs it.
        steps: side of a grid cell in the unit of the coordinates, by magnification; by default from the files.
        device: device of the computation.
        threads: number of threads, ``"auto"`` to choose for every sample, or None for PyTorch's setting; see
            :mod:`.threads`.
        allow_other_encoder: flag that allows slides whose files name another encoder than those of training.
        allow_other_tiles: flag that allows slides whose tiles at one magnification are not as wide as in training,
            relative to those at another magnification.
        overwrite: flag that allows to replace ``out``, unless it is read.
        quiet: flag that hides the progress.
        kinds: class of every kind of task.

    Returns:
        The table that was written.

    Raises:
        FileExistsError: ``out`` is there, and ``overwrite`` is False.
        FileNotFoundError: a file or folder is missing.
        OSError: ``out`` cannot be written.
        ValueError: the checkpoint is no student, ``out`` has another ending or is a file that is read, a magnification
            is missing, slides and patients do not fit, or a slide cannot be read, has another feature width, encoder or
            magnification, or has no coordinates where those of training had.
    """
    out = Path(out)
    saved = load_students(model, students, kinds)
    student, reading = saved[0].model, saved[0].reading
    if out.is_dir():
        raise IsADirectoryError(f"{out}: must be a file to write, got a folder")
    if out.suffix.lower() != ".csv":  # Models and features have other endings, so none is replaced.
        raise ValueError(f"{out}: predictions must end in .csv, got {out.name!r}")
    width = student.arguments["features"]
    samples = new_samples(student.magnifications, folders, patients, steps or {}, reading, width)
    inputs = [*files_of(samples), *(file for each in saved for file in checkpoint_files(each.path))]
    # Tables of the run, which nothing could write again.
    above = {folder for each in saved for folder in each.path.parents[:2] if (folder / "run.json").is_file()}
    inputs += [folder / "predictions.csv" for folder in above]
    inputs += [each.path.with_name(f"{name}.csv") for each in saved for name in NETWORKS]
    check_outputs([out], [*inputs, *([] if patients is None else [patients])], overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"{out.parent}: must be a folder that may be written to")
    if not quiet:
        names = ", ".join(str(each.path) for each in saved)
        print(f"mean of {len(saved)} students: {names}" if len(saved) > 1 else f"student: {names}", file=sys.stderr)
    samples = all_checked(
        samples,
        width,
        reading,
        allow_other_encoder=allow_other_encoder,
        allow_other_tiles=allow_other_tiles,
        quiet=quiet,
    )
    work_begins()
    logits, failures = _predict(saved, samples, device, threads, quiet=quiet)
    # A patient lacks a slide that was refused, so the mean of the others is not what was asked.
    whole = [row for row, sample in enumerate(samples) if sample.patient not in failures]
    if not whole:
        raise next(iter(failures.values()))
    task = saved[0].task
    stacked = [torch.stack([logits[row][number] for row in whole]) for number in range(len(saved))]
    predictions = task.mean_predictions([each.task for each in saved], stacked)
    table = predictions_table(task, predictions, [samples[row].patient for row in whole])
    write_table(out, table)
    if failures:
        reasons = "; ".join(f"{patient}: {error}" for patient, error in failures.items())
        raise ValueError(f"{out}: holds {len(table)} patients, without {len(failures)} that were refused: {reasons}")
    return table


def _predict(
    saved: Sequence[SavedStudent], samples: Sequence[Sample], device: str, threads: Threads, *, quiet: bool
) -> tuple[dict[int, list[Tensor]], dict[str, Exception]]:
    """Logits of every student by sample, and the first error of every patient of whom a slide is refused."""
    logits: dict[int, list[Tensor]] = {}
    failures: dict[str, Exception] = {}
    models = [each.model.to(device) for each in saved]
    for row, sample in enumerate(tqdm(samples, desc="predicting", unit="sample", disable=quiet)):
        try:
            bags = {name: bag.to(device) for name, bag in collate_samples([sample.load()]).items()}
        except (ValueError, OSError) as error:
            failures.setdefault(sample.patient, error)
            continue
        patches = sum(bag.patches.shape[1] for bag in bags.values())
        with torch.no_grad(), using_threads(threads, [patches], batch_size=1):
            logits[row] = [model(bags).logits[0].cpu() for model in models]
    return logits, failures
