"""Which genes move the prediction of one patient: integrated gradients, summed over gene sets."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from .._checks import check_callable, check_count, check_mapping, check_names, check_shape, check_texts, check_type
from .._extras import naming_extra
from ..bags import Bag
from ..models import Teacher


def gene_attributions(
    teacher: Teacher,
    bags: Mapping[str, Bag],
    genes: Mapping[str, Tensor],
    score: Callable[[Tensor], Tensor],
    *,
    steps: int = 32,
) -> dict[str, Tensor]:
    r"""Attribute the prediction for one patient to the genes of every subspace. Needs the extra ``explain``.

    .. math:: a_g = x_g \int_0^1 \frac{\partial f(t\,x)}{\partial x_g} \, dt

    Expression is standardized, so the baseline 0 is the mean training patient. The attributions of all subspaces sum
    to a difference of scores: that of the patient minus that of a patient with the same slides and mean expression.
    This is exact except for the error of the steps.

    Args:
        teacher: teacher in evaluation mode.
        bags: bag of one patient at every magnification.
        genes: standardized expression of the patient, by subspace.
        score: function from logits [1, K] to the number that is explained [1], such as the risk.
        steps: number of points of the integral.

    Shape:
        every tensor of ``genes`` [1, G].

    Returns:
        The attribution of every gene [G], by subspace.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        ValueError: names or shapes disagree, or the teacher is in training mode.

    Source:
        Sundararajan et al., Axiomatic attribution for deep networks, ICML 2017; the implementation is captum's.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag, Teacher
        >>> from disentangled_mil.explain import gene_attributions
        >>> teacher = Teacher(8, {"tumor": 3}, 2, dim=16, heads=2, groups=2, dim_head=4, magnifications=["20x"]).eval()
        >>> bags, genes = {"20x": Bag.from_slide(torch.randn(5, 8))}, {"tumor": torch.randn(1, 3)}
        >>> gene_attributions(teacher, bags, genes, lambda logits: logits[:, 0], steps=8)["tumor"].shape
        torch.Size([3])
    """
    with naming_extra("explain"):
        from captum.attr import IntegratedGradients

    check_count("steps", steps)
    check_type("teacher", teacher, nn.Module, "a Teacher")
    check_mapping("bags", bags)
    check_callable("score", score)
    check_names("genes", genes, teacher.subspaces)
    for name, values in genes.items():
        check_shape(f"genes[{name!r}]", values, "1 G")
    if teacher.training:
        raise ValueError("teacher must be in evaluation mode (teacher.eval()), got training mode")

    def predict(*expression: Tensor) -> Tensor:
        return score(teacher(bags, dict(zip(teacher.subspaces, expression, strict=True))).logits)

    inputs = tuple(genes[name] for name in teacher.subspaces)
    found = IntegratedGradients(predict).attribute(inputs, n_steps=steps, internal_batch_size=1)
    return {name: values[0].detach() for name, values in zip(teacher.subspaces, found, strict=True)}


def set_attributions(
    attributions: Mapping[str, Tensor], genes: Mapping[str, Sequence[str]], sets: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Sum attributions over gene sets, such as pathways; a gene counts in every set that names it.

    Args:
        attributions: attribution of every gene, by subspace.
        genes: names of these genes, by subspace.
        sets: genes of every set.

    Shape:
        every tensor of ``attributions`` [G].

    Returns:
        One row per set and subspace that share a gene: ``gene_set``, ``subspace``, ``genes`` (their number) and
        ``attribution`` (their sum), the largest amount first.

    Raises:
        ValueError: names or shapes disagree.

    Example:
        >>> import torch
        >>> from disentangled_mil.explain import set_attributions
        >>> values, genes = {"tumor": torch.tensor([0.5, -2.0])}, {"tumor": ["EGFR", "TP53"]}
        >>> found = set_attributions(values, genes, {"P53": ["TP53"]})
        >>> found.to_dict("records")
        [{'gene_set': 'P53', 'subspace': 'tumor', 'genes': 1, 'attribution': -2.0}]
    """
    check_mapping("attributions", attributions)
    check_names("genes", genes, attributions)
    check_mapping("sets", sets)
    for argument, given in (("genes", genes), ("sets", sets)):
        for key, names in given.items():
            check_texts(f"{argument}[{key!r}]", names)
    rows = []
    for subspace, values in attributions.items():
        check_shape(f"attributions[{subspace!r}]", values, "G", {"G": len(genes[subspace])})
        place = {gene: row for row, gene in enumerate(genes[subspace])}
        for name, members in sets.items():
            own = [place[gene] for gene in dict.fromkeys(members) if gene in place]
            if own:
                rows.append((name, subspace, len(own), float(values[torch.tensor(own)].sum())))
    table = pd.DataFrame(rows, columns=["gene_set", "subspace", "genes", "attribution"])
    return table.sort_values("attribution", key=abs, ascending=False, ignore_index=True)
