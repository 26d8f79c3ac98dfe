"""Predictions of a saved student for new slides."""

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from .._files import replacing
from ..bags import collate_bags
from ..models import Student
from ..tasks import KINDS, Task
from .checkpoint import load_model
from .new_slides import checked, new_samples, reading_of, task_of
from .predictions import predictions_table
from .threads import Threads, using_threads


def predict_slides(
    checkpoint: Path,
    folders: Mapping[str, Path],
    out: Path,
    *,
    patients: Path | None = None,
    steps: Mapping[str, float] | None = None,
    device: str = "cpu",
    threads: Threads = None,
    allow_other_encoder: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> pd.DataFrame:
    """Predict for every slide, and write one row per patient.

    A slide must be there at all magnifications. If the student was trained with ``missing = "allow"``, one is enough.

    Args:
        checkpoint: checkpoint of a student.
        folders: folder of slides, or file of one slide, for every magnification of the student.
        out: CSV to write, its folder is made: class probabilities and the predicted class, or hazards and risk.
        patients: CSV with the columns ``slide`` and ``patient``, which names the slides of the folders, and may
            name others; without it every slide is a patient.
        steps: side of a grid cell in the unit of the coordinates, by magnification; by default from the files.
        device: device of the computation.
        threads: number of threads, ``"auto"`` to choose for every sample, or None for PyTorch's setting; see
            :mod:`.threads`.
        allow_other_encoder: whether slides whose files name another encoder than those of training are read all the
            same.
        kinds: class of every kind of task.

    Returns:
        The table that was written.

    Raises:
        FileNotFoundError: a file or folder is missing.
        OSError: ``out`` cannot be written.
        ValueError: the checkpoint is no student, ``out`` is the table of patients, a magnification is missing,
            slides and patients do not fit, or a slide cannot be read, has another feature width, encoder or
            magnification, or has no coordinates where those of training had.
    """
    model, description = load_model(checkpoint)
    if not isinstance(model, Student):
        raise ValueError(f"{checkpoint}: must hold a student, got {description['model']!r}, which needs genes")
    reading = reading_of(checkpoint, description, model.magnifications)
    if out.is_dir():
        raise IsADirectoryError(f"{out}: must be a file to write, got a folder")
    if patients is not None and out.exists() and patients.exists() and out.samefile(patients):
        raise ValueError(f"{out}: must be another file than the table of patients, which would be overwritten")
    samples = new_samples(reading, folders, patients, steps or {})
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"{out.parent}: must be a folder that may be written to")
    task = task_of(checkpoint, description, kinds)
    # All files are compared before the first prediction, which a late refusal would discard.
    samples = [checked(sample, reading, allow_other_encoder=allow_other_encoder) for sample in samples]
    model.to(device)
    logits = []
    with torch.no_grad():
        for sample in samples:
            bags = {name: collate_bags([bag]).to(device) for name, bag in sample.load().items()}
            with using_threads(threads, [sum(bag.patches.shape[1] for bag in bags.values())], batch_size=1):
                logits.append(model(bags).logits.cpu())
    table = predictions_table(task, torch.cat(logits), [sample.patient for sample in samples])
    with replacing(out) as temporary:
        table.to_csv(temporary, index=False)
    return table
