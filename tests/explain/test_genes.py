import pytest
import torch

from disentangled_mil import Bag, Teacher
from disentangled_mil.explain import gene_attributions, permutation_importance, set_attributions

GENES = {"tumor": 3, "tme": 4}


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(8, GENES, 2, dim=16, heads=2, groups=2, dim_head=4, magnifications=["20x"], gate="average").eval()


@pytest.fixture
def patient(teacher):
    bags = {"20x": Bag.from_slide(torch.randn(6, 8))}
    return bags, {name: torch.randn(1, size) for name, size in GENES.items()}


def test_attributions_sum_to_the_difference_from_mean_expression(teacher, patient):
    pytest.importorskip("captum")
    bags, genes = patient
    found = gene_attributions(teacher, bags, genes, lambda logits: logits[:, 1], steps=64)
    mean = {name: torch.zeros_like(values) for name, values in genes.items()}
    with torch.no_grad():
        expected = teacher(bags, genes).logits[0, 1] - teacher(bags, mean).logits[0, 1]
    assert {name: len(values) for name, values in found.items()} == GENES
    assert sum(float(values.sum()) for values in found.values()) == pytest.approx(float(expected), abs=2e-3)


def test_a_teacher_in_training_mode_and_two_patients_are_refused(teacher, patient):
    pytest.importorskip("captum")
    bags, genes = patient
    with pytest.raises(ValueError, match="evaluation mode"):
        gene_attributions(teacher.train(), bags, genes, lambda logits: logits[:, 0])
    two = {name: values.expand(2, -1) for name, values in genes.items()}
    with pytest.raises(ValueError, match=r"genes\['tumor'\] must have shape \[1, G\]"):
        gene_attributions(teacher.eval(), bags, two, lambda logits: logits[:, 0])


def test_sets_sum_their_genes_in_every_subspace():
    values = {"tumor": torch.tensor([1.0, 2.0]), "tme": torch.tensor([-8.0])}
    names = {"tumor": ["A", "B"], "tme": ["A"]}
    table = set_attributions(values, names, {"BOTH": ["A", "B", "A"], "NONE": ["Z"]})
    rows = table[["subspace", "genes", "attribution"]].values.tolist()
    assert rows == [["tme", 1, -8.0], ["tumor", 2, 3.0]]


def test_sets_that_the_score_needs_are_important_and_the_others_are_not():
    expression = {"tumor": torch.randn(40, 3, generator=torch.Generator().manual_seed(0))}
    truth = expression["tumor"][:, 0]

    def score(values):
        return -float((values["tumor"][:, 0] - truth).square().mean())

    sets = {"OTHER": ["B", "C"], "USED": ["A", "B"], "ABSENT": ["Z"]}
    table = permutation_importance(score, expression, {"tumor": ["A", "B", "C"]}, sets, repeats=4)
    assert table["gene_set"].tolist() == ["USED", "OTHER"]
    assert table["importance"][0] > 1
    assert table["importance"][1] == 0
    again = permutation_importance(score, expression, {"tumor": ["A", "B", "C"]}, sets, repeats=4)
    assert again.equals(table)
