"""The log of a stage: one row for each epoch, as CSV and, if wanted, for TensorBoard."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import replacing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EpochLog:
    """Write the epochs of a stage to ``NAME.csv``, and to ``tensorboard/NAME`` beside it.

    Args:
        path: CSV file.
        kind: ``"csv"``, or ``"tensorboard"`` for both.
        start: number of epochs that were finished before. Later ones of an interrupted run are overwritten.
    """

    def __init__(self, path: str | Path, kind: str, *, start: int = 0) -> None:
        self._path = Path(path)
        self._writer = (
            _events(self._path.parent / "tensorboard" / self._path.stem, start) if kind == "tensorboard" else None
        )

    def __enter__(self) -> "EpochLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write the CSV whole, and add the last epoch for TensorBoard.

        Args:
            history: rows of all epochs so far, each with its ``"epoch"``.
        """
        columns = list(dict.fromkeys(key for row in history for key in row))
        with replacing(self._path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(history)
        if self._writer is not None:
            for name, value in history[-1].items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, int(history[-1]["epoch"]))
            self._writer.flush()


def _events(folder: Path, start: int) -> "SummaryWriter":
    """Events that TensorBoard shows; those of a killed run after the epoch ``start`` are hidden."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and of an extra

    return SummaryWriter(folder, purge_step=start + 1)
