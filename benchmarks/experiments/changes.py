"""Changes of a split: fewer patients with expression, other gene sets, missing genes.

Each is a function of a split and a seed that returns a changed split. Patients and labels of the tests stay, so that
rows remain comparable.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_selection import f_classif

from disentangled_mil.data import Cohort, ExpressionPipeline, gene_subspaces, read_gmt
from disentangled_mil.data.gene_sets import gene_symbol
from disentangled_mil.train import Split

from .cohorts import DATA

HALLMARK = DATA / "genes" / "hallmark_v7.0.gmt"


def paired_only(split: Split, seed: int) -> Split:
    """Leave out training patients without expression."""
    return split._replace(train=split.train.with_expression())


@dataclass(frozen=True)
class LessExpression:
    """Keep the expression of a share of the training patients; a smaller share lies within a larger one.

    Args:
        share: share of the patients with expression who keep it.
        drop_others: whether the other patients are left out altogether.
    """

    share: float
    drop_others: bool = False

    def __call__(self, split: Split, seed: int) -> Split:
        """Change the training patients."""
        expression = _expression(split.train)
        order = np.random.default_rng(seed).permutation(len(expression))
        kept = expression.iloc[np.sort(order[: round(self.share * len(expression))])]
        train = replace(split.train, expression=kept)
        return split._replace(train=train.with_expression() if self.drop_others else train)


@dataclass(frozen=True)
class PipelineOptions:
    """Other options of the expression pipeline."""

    changes: Mapping[str, Any]

    def __call__(self, split: Split, seed: int) -> Split:
        """Change the options, by which the training patients fit the pipeline."""
        return split._replace(
            train=replace(split.train, expression_options=replace(split.train.expression_options, **self.changes))
        )


@dataclass(frozen=True)
class RandomGenes:
    """A random share of every gene set, in place of the most variable genes."""

    share: float

    def __call__(self, split: Split, seed: int) -> Split:
        """Change the gene sets."""
        rng = np.random.default_rng(seed)
        there = set(map(gene_symbol, _expression(split.train).columns))
        sets = {}
        for name, genes in split.train.gene_sets.items():
            found = sorted({gene_symbol(gene) for gene in genes} & there)
            sets[name] = tuple(rng.choice(found, max(1, round(self.share * len(found))), replace=False))
        return _fixed(split, sets)


@dataclass(frozen=True)
class ChosenOnAll:
    """The most variable genes of training and test patients together: a leak of the tests' expression."""

    share: float

    def __call__(self, split: Split, seed: int) -> Split:
        """Change the gene sets."""
        everyone = pd.concat([_expression(split.train), *(_expression(test) for test in split.tests.values())])
        options = replace(split.train.expression_options, fraction=self.share)
        return _fixed(split, ExpressionPipeline.fit(everyone, split.train.gene_sets, options).genes)


@dataclass(frozen=True)
class ChosenByLabel:
    """The genes that differ most between the classes, by the F statistic.

    Args:
        share: share of every gene set.
        leak: whether the labels of the test patients take part in the choice.
        task: task of the labels.
    """

    share: float
    leak: bool
    task: str

    def __call__(self, split: Split, seed: int) -> Split:
        """Change the gene sets."""
        cohorts = [split.train, *(split.tests.values() if self.leak else ())]
        pipeline = replace(split.train, expression_options=replace(split.train.expression_options, fraction=1.0))
        fitted = pipeline.fit_expression()
        labels = pd.concat([cohort.labels(self.task)["label"] for cohort in cohorts])
        tables = [fitted.transform(_expression(cohort)) for cohort in cohorts]
        patients = [patient for cohort in cohorts for patient in _expression(cohort).index]
        sets = {}
        for name, genes in fitted.genes.items():
            values = np.concatenate([table[name].numpy() for table in tables])
            known = [row for row, patient in enumerate(patients) if patient in labels.index]
            statistic = f_classif(values[known], labels.loc[[patients[row] for row in known]])[0]
            best = np.argsort(-np.nan_to_num(statistic), kind="stable")[: max(1, round(self.share * len(genes)))]
            sets[name] = tuple(genes[k] for k in sorted(best))
        return _fixed(split, sets)


def one_subspace(split: Split, seed: int) -> Split:
    """Put the genes of all subspaces into one."""
    genes = (gene for members in split.train.gene_sets.values() for gene in members)
    return _everywhere(split, gene_sets={"all": tuple(dict.fromkeys(genes))})


def shuffled_subspaces(split: Split, seed: int) -> Split:
    """Deal the genes of all subspaces out at random; every subspace keeps its number of genes."""
    sets = split.train.gene_sets
    genes = list(dict.fromkeys(gene for members in sets.values() for gene in members))
    dealt = iter(np.random.default_rng(seed).permutation(genes).tolist())
    sizes = {name: min(len(members), len(genes)) for name, members in sets.items()}
    return _everywhere(
        split,
        gene_sets={name: tuple(g for _, g in zip(range(size), dealt, strict=False)) for name, size in sizes.items()},
    )


@dataclass(frozen=True)
class Only:
    """The genes of one subspace alone."""

    subspace: str

    def __call__(self, split: Split, seed: int) -> Split:
        """Change the gene sets."""
        return _everywhere(split, gene_sets={self.subspace: split.train.gene_sets[self.subspace]})


@dataclass(frozen=True)
class Hallmark:
    """Subspaces made of Hallmark sets.

    Args:
        groups: names of the sets of every subspace, without the prefix ``HALLMARK_``.
    """

    groups: Mapping[str, tuple[str, ...]]

    def __call__(self, split: Split, seed: int) -> Split:
        """Change the gene sets."""
        choice = {name: [f"HALLMARK_{each}" for each in sets] for name, sets in self.groups.items()}
        return _everywhere(split, gene_sets=gene_subspaces(read_gmt(HALLMARK), choice))


@dataclass(frozen=True)
class DroppedSubspaces:
    """Training patients lose the genes of one subspace, drawn at random: their values become the training medians.

    Args:
        share: share of the patients with expression who lose one.
    """

    share: float

    def __call__(self, split: Split, seed: int) -> Split:
        """Change the expression of the training patients."""
        rng = np.random.default_rng(seed)
        table = _expression(split.train).copy()
        medians = table.median()
        members = [set(map(gene_symbol, genes)) for genes in split.train.gene_sets.values()]
        columns = [[c for c in table if gene_symbol(c) in genes] for genes in members]
        for patient in table.index[rng.random(len(table)) < self.share]:
            lost = columns[rng.integers(len(columns))]
            table.loc[patient, lost] = medians[lost]
        return split._replace(train=replace(split.train, expression=table))


@dataclass(frozen=True)
class MissingAtTest:
    """Further test sets whose expression lacks genes, which are imputed: random ones, and whole subspaces.

    Args:
        shares: shares of all genes that are missing.
        training: further change of the training patients, such as :class:`DroppedSubspaces`.
    """

    shares: tuple[float, ...]
    training: Any = None

    def __call__(self, split: Split, seed: int) -> Split:
        """Add the test sets."""
        split = PipelineOptions({"missing": "impute"})(split, seed)
        if self.training is not None:
            split = self.training(split, seed)
        rng = np.random.default_rng(seed)
        name, test = next(iter(split.tests.items()))
        table, medians = _expression(test), _expression(split.train).median()
        others: dict[str, Any] = {}
        for share in self.shares:
            others[f"{share:.0%} missing"] = table.loc[:, rng.random(table.shape[1]) >= share]
        # The pipeline refuses a table without any gene of a subspace, so these genes get the training medians.
        for subspace, genes in split.train.gene_sets.items():
            members = set(map(gene_symbol, genes))
            lost = [column for column in table if gene_symbol(column) in members]
            others[f"no {subspace}"] = table.assign(**{column: medians[column] for column in lost})
        others = {label: replace(test, expression=given) for label, given in others.items()}
        return split._replace(tests={name: test, **others})


def _expression(cohort: Cohort) -> pd.DataFrame:
    if cohort.expression is None:
        raise ValueError("the cohort must have expression for this change, got none")
    return cohort.expression


def _fixed(split: Split, gene_sets: Mapping[str, tuple[str, ...]]) -> Split:
    """Gene sets that are used whole."""
    return PipelineOptions({"fraction": 1.0})(_everywhere(split, gene_sets=gene_sets), 0)


def _everywhere(split: Split, **changes: Any) -> Split:
    """The same change of training and test patients."""
    tests = {name: replace(test, **changes) for name, test in split.tests.items()}
    return Split(replace(split.train, **changes), tests)
