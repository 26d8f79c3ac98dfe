"""From logits of samples to a table of patients."""

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor

from ..tasks import Task


def predictions_table(task: Task, predictions: Mapping[str, Tensor], patients: Sequence[str]) -> pd.DataFrame:
    """One row of predictions per patient; the samples of a patient are averaged.

    Args:
        task: task that was predicted.
        predictions: columns of predictions of the samples, see :meth:`~disentangled_mil.tasks.Task.predictions`.
        patients: patient of every sample.

    Shape:
        every column [n].

    Returns:
        The column ``patient``, then those of the task's kind: ``probability_CLASS`` and ``predicted``, or
        ``hazard_0`` ... and ``risk`` (higher = worse).
    """
    table = pd.DataFrame({name: column.cpu().numpy() for name, column in predictions.items()})
    table.insert(0, "patient", list(patients))
    table = table.groupby("patient", sort=False).mean().reset_index()
    return table.assign(**task.decisions({name: table[name].tolist() for name in table.columns.drop("patient")}))
