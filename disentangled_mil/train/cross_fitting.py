"""Cross-fitting: predictions for every patient from models that have not seen that patient.

A model predicts the patients that it was trained on too well: its predictions repeat their labels. Cross-fitting
trains one model per fold of the patients, on all other folds. It keeps only the predictions for patients that the
model has not seen. It works with every model.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .._checks import check_count, check_mask
from .._errors import FileError, reads_file
from .._files import replacing
from ..data.folds import patient_folds
from .processes import by_first, rank


class Part(NamedTuple):
    """The training of one model in cross-fitting.

    Attributes:
        name: name of the part, such as ``"repeat0-fold2"``.
        rows: samples to train on, as increasing indices [m], int64.
        seed: seed of the model, another one in each part.
    """

    name: str
    rows: Tensor
    seed: int


Predictions: TypeAlias = Mapping[str, Tensor]
Teach: TypeAlias = Callable[[Part], Predictions]


def cross_fit(
    teach: Teach,
    patients: Sequence[Hashable],
    strata: Sequence[Hashable],
    *,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    present: Tensor | None = None,
    store: str | Path | None = None,
    key: str = "",
    resume: bool = True,
    quiet: bool = False,
) -> dict[str, Tensor]:
    r"""Predict every patient with models that have not seen that patient.

    .. math:: \mathrm{prediction}_i = \operatorname{mean}_r f_{r, \mathrm{fold}_r(i)}(x_i)

    The model :math:`f_{r, k}` is trained in repeat r on all folds but k. All samples of a patient lie in one fold.

    Only predictions that mean the same in every model may be averaged: logits, probabilities, and the shares of
    subspaces in the logits. Subspace vectors may not, because each model has a space of its own.

    Args:
        teach: function that trains a model on the samples ``part.rows`` and returns its predictions, by name, for
            all n samples. Rows of samples that the model was trained on are not used.
        patients: patient of every sample.
        strata: stratum of every sample, by which folds are balanced, the same for all samples of a patient.
        folds: number of folds K per repeat.
        repeats: number of repeats R, each with other folds. R K models are trained.
        seed: seed of the folds and of the models' seeds.
        present: mask of the samples that take part [n]. Others neither train a model nor get a prediction.
        store: folder where the predictions of every part are kept as soon as it is finished. None keeps nothing.
        key: text that stands for all else that decides the predictions: data, options, versions. Stored parts of
            another key are refused.
        resume: flag that uses parts that lie in ``store``; otherwise they are replaced.
        quiet: flag that hides the progress.

    Shape:
        ``patients``, ``strata``, ``present`` [n]; every prediction [n, ...].

    Returns:
        The mean prediction of every sample, by name, in float32; rows of zeros where ``present`` is False.

    Raises:
        TypeError: a count is not an integer, or ``present`` is not bool.
        ValueError: a length differs, a patient lies in two strata, a stratum has fewer patients than folds, ``teach``
            returns other than finite predictions of all samples, or ``store`` holds parts of another cross-fitting.

    Source:
        Cross-fitting, as in Chernozhukov et al., Econometrics Journal 2018; out-of-fold predictions in stacking,
        Wolpert, Neural Networks 1992.

    Example:
        >>> import torch
        >>> from disentangled_mil.train import cross_fit
        >>> labels = torch.tensor([0.0, 1.0, 0.0, 1.0])
        >>> def teach(part):
        ...     prediction = labels[part.rows].mean().expand(4).clone()
        ...     prediction[part.rows] = labels[part.rows]  # a model that knows its training samples by heart
        ...     return {"prediction": prediction}
        >>> cross_fit(teach, "abcd", labels.tolist(), folds=2, quiet=True)
        {'prediction': tensor([0.5000, 0.5000, 0.5000, 0.5000])}
    """
    check_count("repeats", repeats)
    count = len(patients)
    if len(strata) != count:
        raise ValueError(f"strata must have one entry per sample = {count}, got {len(strata)}")
    present = torch.ones(count, dtype=torch.bool) if present is None else present.cpu()
    check_mask("present", present, "n", {"n": count})
    stratum = _stratum_of_patients(patients, strata, present)
    member = {patient: number for number, patient in enumerate(stratum)}
    index = torch.tensor([member.get(patient, -1) for patient in patients]).masked_fill(~present, -1)  # [n]
    totals: dict[str, Tensor] = {}
    for repeat in range(repeats):
        splits = patient_folds(
            map(str, range(len(stratum))), stratum.values(), folds=folds, seed=seed_of(seed, repeat, 0)
        )
        for fold, split in enumerate(splits):
            held = torch.isin(index, torch.tensor([int(number) for number in split.test]))
            rows = torch.nonzero(present & ~held)[:, 0]
            part = Part(part_name(repeat, fold), rows, seed_of(seed, repeat, fold + 1))
            digest = _digest(part, list(map(str, patients)), torch.nonzero(held)[:, 0], key)
            path = Path(store) / f"{part.name}.safetensors" if store is not None else None
            kept = by_first(partial(_read, path, digest)) if path is not None and resume else None
            if not quiet:
                number = repeat * folds + fold + 1
                stored = ", stored" if kept is not None else f": {len(rows)} samples"
                print(f"cross-fitting, {part.name} ({number} of {repeats * folds}){stored}", file=sys.stderr)
            if kept is None:
                kept = {name: rows[held] for name, rows in _checked(teach(part), held).items()}
                if path is not None and rank() == 0:
                    _write(path, kept, digest)
            if totals and totals.keys() != kept.keys():
                raise ValueError(f"teach must return the same names in every part, got {[*totals]} and {[*kept]}")
            for name, values in kept.items():
                total = totals.setdefault(name, torch.zeros(count, *values.shape[1:], dtype=torch.float64))
                total[held] += values
    return {name: (total / repeats).float() for name, total in totals.items()}


def part_name(repeat: int, fold: int) -> str:
    """The name of a part, which is also that of its file.

    Args:
        repeat: number of the repeat, from 0.
        fold: number of the fold, from 0.

    Returns:
        The name.

    Example:
        >>> part_name(0, 2)
        'repeat0-fold2'
    """
    return f"repeat{repeat}-fold{fold}"


def seed_of(*numbers: int) -> int:
    """One seed for several numbers, less than 2^32; near numbers give unrelated seeds.

    Args:
        *numbers: numbers, not negative.

    Returns:
        The seed.

    Example:
        >>> seed_of(0, 1) != seed_of(1, 0)
        True
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _stratum_of_patients(
    patients: Sequence[Hashable], strata: Sequence[Hashable], present: Tensor
) -> dict[Hashable, Hashable]:
    """The stratum of every patient who has a sample that takes part."""
    stratum: dict[Hashable, Hashable] = {}
    for patient, value, takes_part in zip(patients, strata, present.tolist(), strict=True):
        if takes_part and stratum.setdefault(patient, value) != value:
            raise ValueError(f"strata must be one per patient, got {stratum[patient]!r} and {value!r} for {patient!r}")
    return stratum


def _checked(predictions: Predictions, held: Tensor) -> Predictions:
    """Predictions of all samples, finite where they are kept."""
    if not isinstance(predictions, Mapping) or not predictions:
        raise ValueError(f"teach must return predictions by name, got {predictions!r}")
    for name, values in predictions.items():
        if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != len(held):
            shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"teach must return predictions of all n = {len(held)} samples, got {shape} for {name!r}")
        if not values[held].isfinite().all():
            raise ValueError(f"teach must return finite predictions, got others for {name!r}")
    return {name: values.detach().cpu() for name, values in predictions.items()}


def _digest(part: Part, patients: list[str], held: Tensor, key: str) -> str:
    """What the predictions of a part depend on; the number of repeats does not matter."""
    content = [part.name, part.seed, part.rows.tolist(), held.tolist(), patients, key]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sha256(predictions: Predictions) -> str:
    """The digest of predictions, whatever their order."""
    return hashlib.sha256(save(dict(predictions))).hexdigest()


def _write(path: Path, predictions: Predictions, digest: str) -> None:
    """Write the predictions of a part, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        tensors = {name: values.contiguous() for name, values in predictions.items()}
        temporary.write_bytes(save(tensors, {"digest": digest, "sha256": _sha256(tensors)}))


@reads_file
def _read(path: Path, digest: str) -> dict[str, Tensor] | None:
    """The predictions of a part that is stored; None if it is not."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            predictions = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if notes.get("sha256") != _sha256(predictions):
            raise FileError("its content must match its SHA-256")
    except (SafetensorError, FileError) as error:
        raise FileError(f"{path}: cannot be resumed from; delete it to train this part anew ({error})", path) from error
    if notes.get("digest") != digest:
        raise ValueError(
            f"{path}: must hold a part of the same cross-fitting (samples, folds, seed and key), got another one; "
            "delete it or give another store"
        )
    return predictions
