"""Which gene sets matter in a cohort: permutation importance."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from .._checks import check_callable, check_count, check_mapping, check_names, check_shape, check_texts


def permutation_importance(
    score: Callable[[Mapping[str, Tensor]], float],
    expression: Mapping[str, Tensor],
    genes: Mapping[str, Sequence[str]],
    sets: Mapping[str, Sequence[str]],
    *,
    repeats: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """How much a score of a cohort falls if the genes of a set are exchanged between patients.

    All genes of a set are exchanged together, so that their correlation stays. A set that shares its information with
    other genes has a small importance.

    Args:
        score: function from expression to a number, such as the C-index or AUC of a model; higher = better.
        expression: expression of the cohort, by subspace.
        genes: names of its genes, by subspace.
        sets: genes of every set, which may belong to several subspaces.
        repeats: number of permutations for every set.
        seed: seed of the permutations.

    Shape:
        every tensor of ``expression`` [n, G].

    Returns:
        One row per set with a gene of the table: ``gene_set``, ``genes`` (their number), ``importance`` (mean fall of
        the score) and ``deviation`` (standard deviation over the permutations), the most important set first.

    Raises:
        ValueError: names or shapes disagree.

    Source:
        Breiman, Random forests, Machine Learning 2001.

    Example:
        >>> import torch
        >>> from disentangled_mil.explain import permutation_importance
        >>> expression = {"tumor": torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])}
        >>> def score(values):
        ...     return -float((values["tumor"] - expression["tumor"]).abs().sum())
        >>> sets = {"CYCLE": ["MKI67"], "CONSTANT": ["ACTB"]}
        >>> found = permutation_importance(score, expression, {"tumor": ["MKI67", "ACTB"]}, sets)
        >>> found["gene_set"].tolist(), bool(found["importance"][0] > 0)
        (['CYCLE', 'CONSTANT'], True)
    """
    check_callable("score", score)
    check_count("repeats", repeats)
    check_count("seed", seed, minimum=0)
    check_mapping("expression", expression)
    check_mapping("sets", sets)
    for name, members in sets.items():
        check_texts(f"sets[{name!r}]", members)
    check_names("genes", genes, expression)
    sizes: dict[str, int] = {}
    for name, values in expression.items():
        sizes["n"] = check_shape(f"expression[{name!r}]", values, "n G", {**sizes, "G": len(genes[name])})["n"]
    generator = torch.Generator().manual_seed(seed)
    before = score(expression)
    rows = []
    for name, members in sets.items():
        chosen = set(members)
        own = {s: torch.tensor([gene in chosen for gene in names], dtype=torch.bool) for s, names in genes.items()}
        count = sum(int(columns.sum()) for columns in own.values())
        if not count:
            continue
        falls = []
        for _ in range(repeats):
            order = torch.randperm(sizes["n"], generator=generator)
            falls.append(before - score({s: torch.where(own[s], v[order], v) for s, v in expression.items()}))
        spread = torch.tensor(falls, dtype=torch.float64)
        rows.append((name, count, float(spread.mean()), float(spread.std(correction=0))))
    table = pd.DataFrame(rows, columns=["gene_set", "genes", "importance", "deviation"])
    return table.sort_values("importance", ascending=False, ignore_index=True)
