"""Models as folders that can be shared: a checkpoint and a model card, from a path or from the Hugging Face Hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._checks import as_path, check_flag, check_type
from .._extras import naming_extra
from .._files import check_outputs, replacing
from ..models import GeneNetwork, Student, Teacher
from ..tasks import KINDS, Task
from ..train.checkpoint import SavedModel, checkpoint_files, load_model, save_model
from ..train.saved_students import PRETRAINED, one_checkpoint
from .model_card import CardTexts, model_card

CARD = "README.md"
FILES = (f"{PRETRAINED}.json", f"{PRETRAINED}.safetensors", CARD)


def save_pretrained(
    folder: str | Path,
    model: Student | Teacher | GeneNetwork | SavedModel | str | Path,
    *,
    run: str | Path | None = None,
    texts: CardTexts | None = None,
    overwrite: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> Path:
    """Write a model as a folder to share: ``model.safetensors``, ``model.json`` and ``README.md``, the model card.

    The first two are a checkpoint of :func:`~disentangled_mil.train.save_model`. There is no other format.

    Args:
        folder: folder to write to.
        model: model, result of :func:`~disentangled_mil.train.load_model`, or path. A path is that of a checkpoint,
            of a run folder that holds one student (``train --refit``, or ``demo``), of a folder in it such as
            ``fold0``, or of another folder of this function.
        run: folder of the finished run that trained the model; the card takes test sets and metrics from it. By
            default ``model`` itself, if it is a run folder.
        texts: texts of the card that no file knows, such as data and intended use.
        overwrite: flag that allows to replace files that are there.
        kinds: class of every kind of task.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds one of the files.
        FileNotFoundError: the checkpoint or the run is missing.
        OSError: a file cannot be written.
        TypeError: the model is of another class.
        ValueError: a file is damaged, a run folder holds the students of several folds, the run is of another kind of
            task than the model, or the model would be written over itself.

    Example:
        >>> import tempfile
        >>> from disentangled_mil import Student
        >>> from disentangled_mil.deploy import from_pretrained, save_pretrained
        >>> student = Student(8, 2, magnifications=["20x"], dim=16, heads=2, groups=2, dim_head=8)
        >>> folder = save_pretrained(tempfile.mkdtemp(), student)
        >>> sorted(file.name for file in folder.iterdir())
        ['README.md', 'model.json', 'model.safetensors']
        >>> from_pretrained(folder).model.magnifications
        ('20x',)
    """
    folder = as_path("folder", folder)
    check_flag("overwrite", overwrite)
    run = None if run is None else as_path("run", run)
    texts = CardTexts() if texts is None else texts
    check_type("texts", texts, CardTexts, "CardTexts")
    outputs, name = [folder / file for file in FILES], None
    if isinstance(model, (str, Path)):
        checkpoint = one_checkpoint(model)
        check_outputs(outputs, checkpoint_files(checkpoint), overwrite=overwrite, remedy="overwrite=True")
        stem = checkpoint.name.partition(".")[0]
        name = None if stem == PRETRAINED else stem
        run = model if run is None and (Path(model) / "run.json").is_file() else run
        model = load_model(checkpoint, kinds=kinds)
    else:
        check_outputs(outputs, [], overwrite=overwrite, remedy="overwrite=True")
    saved = model
    if not isinstance(saved, SavedModel):
        check_type("model", saved, (Student, Teacher, GeneNetwork), "a model, a SavedModel or the path of a checkpoint")
        saved = SavedModel(saved)
    card = model_card(saved, run=run, name=name, texts=texts, kinds=kinds)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
        # The card appears after the model, and not at all if the model cannot be written.
        save_model(
            folder / PRETRAINED,
            saved.model,
            task=saved.task,
            reading=saved.reading,
            expression=saved.expression,
            notes=saved.notes,
        )
    return folder


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
    **download: Any,
) -> SavedModel:
    """Load a model that :func:`save_pretrained` wrote, from a folder or from the Hugging Face Hub.

    Args:
        name: folder, or repository of the Hub as ``owner/name``, which needs the extra ``hub``.
        revision: branch, tag or commit of the repository.
        local_files_only: flag that forbids downloads, so that only files that were downloaded before are used.
        kinds: class of every kind of task.
        **download: further options of ``huggingface_hub.snapshot_download``, such as ``token`` and ``cache_dir``.

    Returns:
        The model in evaluation mode, and what was saved with it.

    Raises:
        FileNotFoundError: the folder is missing or holds no model.
        ModuleNotFoundError: a repository is named and the extra ``hub`` is not installed.
        ValueError: a file is no checkpoint of this package.

    Example:
        See :func:`save_pretrained`.
    """
    folder = as_path("name", name)
    check_flag("local_files_only", local_files_only)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]*\w/\w[\w.-]*", str(name)):
            raise FileNotFoundError(f"{name}: no such folder, and no repository of the Hub (owner/name)")
        with naming_extra("hub"):
            from huggingface_hub import snapshot_download
        folder = Path(
            snapshot_download(
                str(name),
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=list(FILES),
                **download,
            )
        )
    return load_model(folder / PRETRAINED, kinds=kinds)
