"""From logits of samples to predictions and metrics of patients."""

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from ..tasks import Classification, Task
from .examples import Examples
from .metrics import classification_metrics, survival_metrics


def predictions_table(task: Task, logits: Tensor, patients: Sequence[str]) -> pd.DataFrame:
    """One row per patient: class probabilities and predicted class, or hazards and risk.

    The samples (slides) of a patient are averaged.

    Args:
        task: what was predicted.
        logits: one row per sample.
        patients: the patient of every sample.

    Shape:
        ``logits`` [n, K].

    Returns:
        The column ``patient``, then ``probability_CLASS`` and ``predicted``, or ``hazard_0`` ... and ``risk``
        (higher = worse).
    """
    values = task.probabilities(logits).cpu().numpy()
    classes = task.classes if isinstance(task, Classification) else None
    columns = [f"probability_{c}" for c in classes] if classes else [f"hazard_{k}" for k in range(task.outputs)]
    table = pd.DataFrame(values, columns=columns)
    if not isinstance(task, Classification):
        table["risk"] = task.risk(logits).cpu().numpy()
    table.insert(0, "patient", list(patients))
    table = table.groupby("patient", sort=False).mean().reset_index()
    if classes:
        table["predicted"] = [classes[k] for k in table[columns].to_numpy().argmax(1)]
    return table


def evaluate(task: Task, logits: Tensor, examples: Examples) -> dict[str, float]:
    """Metrics of predictions, one entry per patient."""
    if isinstance(task, Classification):
        return classification_metrics(task.probabilities(logits), examples.target, examples.patients)
    times, events = examples.labels["time"].to_numpy(), examples.labels["event"].to_numpy()
    return survival_metrics(task.risk(logits), times, event=events, patients=examples.patients)
