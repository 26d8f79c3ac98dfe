"""Models with the methods that users of the Hugging Face Hub know. Needs the extra ``hub``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._extras import naming_extra
from ..models import GeneNetwork, Student, Teacher
from ..tasks import KINDS, Task
from ..train.checkpoint import SavedModel
from .model_card import CardTexts
from .pretrained import from_pretrained, save_pretrained

with naming_extra("hub"):
    from huggingface_hub import ModelHubMixin


class HubModel(ModelHubMixin):
    """A model and its card, with ``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` of ``ModelHubMixin``.

    The files are those of :func:`~disentangled_mil.deploy.save_pretrained`, so every model of the Hub that one of the
    two wrote, the other loads. There is no ``config.json``, because ``model.json`` describes the model.
    ``push_to_hub`` writes the card anew, from the arguments below.

    Args:
        model: model, or where it is, as :func:`~disentangled_mil.deploy.save_pretrained` takes it.
        run: folder of the finished run that trained the model; see there.
        texts: texts of the card that no file knows.
        overwrite: flag that lets ``save_pretrained`` replace files that are there.
        kinds: class of every kind of task.

    Attributes:
        model: model as it was given. ``from_pretrained`` gives a :class:`~disentangled_mil.train.SavedModel`, with task
            and reading.

    Example:
        >>> import tempfile
        >>> from disentangled_mil import Student
        >>> from disentangled_mil.deploy.hub import HubModel
        >>> student = Student(8, 2, magnifications=["20x"], dim=16, heads=2, groups=2, dim_head=8)
        >>> folder = tempfile.mkdtemp()
        >>> HubModel(student).save_pretrained(folder)
        >>> HubModel.from_pretrained(folder).model.model.magnifications
        ('20x',)
    """

    def __init__(
        self,
        model: Student | Teacher | GeneNetwork | SavedModel | str | Path,
        *,
        run: str | Path | None = None,
        texts: CardTexts | None = None,
        overwrite: bool = False,
        kinds: Mapping[str, type[Task]] = KINDS,
    ) -> None:
        self.model, self.run, self.texts, self.overwrite, self.kinds = model, run, texts, overwrite, kinds
        self._hub_mixin_config = None  # The mixin would write the arguments as config.json.

    def _save_pretrained(self, save_directory: Path) -> None:
        save_pretrained(
            save_directory, self.model, run=self.run, texts=self.texts, overwrite=self.overwrite, kinds=self.kinds
        )

    @classmethod
    def from_pretrained(  # The mixin asks for config.json first, which fails without a network.
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        kinds: Mapping[str, type[Task]] = KINDS,
        **download: Any,
    ) -> "HubModel":
        """Load a model from a folder or from the Hub.

        Args:
            pretrained_model_name_or_path: folder, or repository of the Hub as ``owner/name``.
            revision: branch, tag or commit of the repository.
            local_files_only: flag that uses only files that were downloaded before.
            kinds: class of every kind of task.
            **download: further options of ``huggingface_hub.snapshot_download``, such as ``token`` and ``cache_dir``.

        Returns:
            The model, in evaluation mode.

        Raises:
            FileNotFoundError: the folder is missing or holds no model.
            ValueError: a file is no checkpoint of this package.
        """
        saved = from_pretrained(
            pretrained_model_name_or_path,
            revision=revision,
            local_files_only=local_files_only,
            kinds=kinds,
            **download,
        )
        return cls(saved, kinds=kinds)
