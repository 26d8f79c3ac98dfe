"""Genes behind the predictions of a saved teacher."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor

from .._checks import first_of
from .._tables import write_table
from ..bags import Bag
from ..data.expression import ExpressionPipeline, read_expression
from ..data.gene_sets import read_gmt
from ..explain import gene_attributions, set_attributions
from ..models import Teacher
from ..tasks import Task


class ExplainedGenes:
    """Expression of patients for a teacher, and the attributions of its genes, as they are found.

    Args:
        pipeline: pipeline of the teacher.
        table: table of expression.
        gene_sets: GMT file of the sets over which attributions are summed.
        patients: patients who must be in the table.
        slides_are_patients: flag that takes every slide as a patient, because no table names the patients.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a table cannot be read, or lacks a patient or gene.
    """

    def __init__(
        self,
        pipeline: ExpressionPipeline,
        table: str | Path,
        gene_sets: str | Path | None,
        patients: Sequence[str],
        *,
        slides_are_patients: bool,
    ) -> None:
        self.pipeline = pipeline
        self.sets = None if gene_sets is None else read_gmt(gene_sets)
        expression = read_expression(table)
        if absent := sorted(set(patients) - set(expression.index)):
            if slides_are_patients:
                raise ValueError(
                    f"{table}: must hold the patient of every slide, but no patient is called as the slide "
                    f"{first_of(absent)}; give --patients, a CSV with the columns slide and patient"
                )
            raise ValueError(f"{table}: must hold every patient, but lacks {first_of(absent)}")
        names = list(dict.fromkeys(patients))
        self.rows = {name: row for row, name in enumerate(names)}
        self.values = self.pipeline.transform(expression.loc[names])
        self.genes: list[pd.DataFrame] = []
        self.found_sets: list[pd.DataFrame] = []

    def of(self, patient: str) -> dict[str, Tensor]:
        """Expression of a patient [1, G], by subspace."""
        row = self.rows[patient]
        return {subspace: values[row : row + 1] for subspace, values in self.values.items()}

    def explain(self, teacher: Teacher, bags: Mapping[str, Bag], patient: str, sample: str, task: Task) -> None:
        """Attribute the prediction for one sample to genes, and keep the tables."""
        device = next(teacher.parameters()).device
        genes = {subspace: values.to(device) for subspace, values in self.of(patient).items()}
        column = task.explained(teacher(bags, genes).logits.detach())
        found = gene_attributions(teacher, bags, genes, lambda logits: task.predictions(logits)[column])
        label = {"patient": patient, "sample": sample, "explained": column}
        for subspace, values in found.items():
            content = {**label, "subspace": subspace, "gene": self.pipeline.genes[subspace]}
            content |= {"expression": genes[subspace][0].tolist(), "attribution": values.tolist()}
            self.genes.append(pd.DataFrame(content).sort_values("attribution", key=abs, ascending=False))
        if self.sets is not None:
            summed = set_attributions(found, self.pipeline.genes, self.sets)
            self.found_sets.append(pd.concat([pd.DataFrame([label] * len(summed)), summed], axis=1))

    def write(self, out: Path) -> None:
        """Write ``genes.csv``, and ``gene_sets.csv`` if sets were given."""
        for path, tables in zip(self.files(out), (self.genes, self.found_sets), strict=False):
            if tables:
                write_table(path, pd.concat(tables), float_format="%.6g")

    def files(self, out: Path) -> list[Path]:
        """The files that :meth:`write` writes."""
        return [out / "genes.csv"] if self.sets is None else [out / "genes.csv", out / "gene_sets.csv"]
