"""Check the expression of a cohort: who has it, its scale, and the genes of every subspace."""

from .._checks import first_of
from ..data.cohort import Cohort
from ..data.expression import ExpressionOptions
from .check_report import CohortCheck, lacking

_LEAST_SHARE = 0.1  # of the genes of a subspace; panels and filtered tables have more, other identifiers hardly any


def check_expression(cohort: Cohort, check: CohortCheck) -> dict[str, int]:
    """Patients with expression, genes of every subspace, and the scale; the number of genes in training."""
    if cohort.expression is None:
        check.say("expression", "none: students are trained on slides alone, without a teacher to distill")
        return {}
    paired = cohort.paired
    check.say(
        "expression",
        f"{len(paired)} of {len(cohort.patients)} patients have expression",
        *lacking("no expression", cohort.patients, paired),
        *cohort.notes,
    )
    _check_genes(cohort, check)
    if any("z-scores" in note for note in cohort.notes) and _choosing(cohort):
        check.warnings.append(
            "z-scores vary alike, so a choice of the most variable genes is chance: set fraction = 1 in [expression]"
        )
    try:
        return cohort.fit_expression().sizes
    except ValueError as error:
        check.errors.append(str(error))
        return {}


def _check_genes(cohort: Cohort, check: CohortCheck) -> None:
    """The genes of every subspace that the table has; a warning where it lacks most of them."""
    genes = 0 if cohort.expression is None else cohort.expression.shape[1]
    absent, by_set = cohort.genes_absent(), cohort.genes_found_by_set()
    if constant := cohort.genes_constant():
        check.warnings.append(
            f"[expression]: {len(constant)} genes of the subspaces have one value for all patients "
            f"({first_of(constant)}), so they tell nothing; remove them, or look for the fault in the table"
        )
    for subspace, (found, wanted) in cohort.genes_found().items():
        lowest = sorted(by_set.get(subspace, {}).items(), key=lambda entry: entry[1][0] / entry[1][1])
        several = first_of([f"{name} {there} of {members}" for name, (there, members) in lowest])
        check.say(
            f"genes {subspace}",
            f"{found} of {wanted} genes are in the table",
            *([f"by gene set, lowest share first: {several}"] if several else []),
        )
        if found < _LEAST_SHARE * wanted:
            check.warnings.append(
                f"{subspace}: {wanted - found} of {wanted} genes are not among the {genes} genes of the table "
                f"({first_of(absent[subspace])}); if they should be, compare the names of both, e.g. symbols and "
                "Ensembl identifiers"
            )


def _choosing(cohort: Cohort) -> bool:
    options = cohort.expression_options
    several = [options] if isinstance(options, ExpressionOptions) else list(options.values())
    return any(own.fraction < 1 and not own.log1p for own in several)
