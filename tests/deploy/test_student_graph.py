"""A student as a function of tensors equals the student, also with plain formulas for its operators."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil import Bag, Grid, Student
from disentangled_mil.deploy import StudentGraph
from disentangled_mil.deploy._open_grid import OpenGrid
from disentangled_mil.ops.plain import PlainOperators
from tests.support.placed import placed_samples

SMALL = {"dim": 8, "heads": 4, "groups": 2, "dim_head": 4, "downsample": 2}


@st.composite
def counts(draw, magnifications):
    bags = draw(st.integers(1, 3))
    several = st.lists(st.integers(0, 40), min_size=bags, max_size=bags)
    found = [draw(several) for _ in range(magnifications)]
    return found if all(map(sum, zip(*found, strict=True))) else [[n + 1 for n in found[0]], *found[1:]]


@pytest.mark.parametrize("coordinates", [True, False])
@pytest.mark.parametrize("options", [{"bias": "table"}, {"bias": "exact"}, {"max_keys": 4}], ids=str)
@settings(max_examples=12)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_graph_with_plain_formulas_predicts_as_the_student_does(options, coordinates, data, seed):
    torch.manual_seed(0)
    names = ("10x", "20x") if "bias" in options else ("20x",)
    student = Student(6, 3, magnifications=names, linear=0.5, **SMALL, **options).eval()
    graph = StudentGraph(student, sets=() if coordinates else student.magnifications)
    bags, tensors = placed_samples(student, data.draw(counts(len(names))), seed, coordinates=coordinates)
    with torch.no_grad():
        expected = student(bags)
        with PlainOperators():
            found = graph(*(tensors[name] for name in graph.inputs))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.gate, expected.gate)


def test_stored_features_are_transformed_and_magnifications_may_be_sets():
    torch.manual_seed(0)
    student = Student(6, 3, magnifications=("10x", "20x"), **SMALL).eval()
    graph = StudentGraph(student, sets=["10x"], transform="log")
    assert graph.inputs == ("patches_10x", "mask_10x", "patches_20x", "mask_20x", "coords_20x", "step_20x")
    stored, coords = torch.rand(9, 6), 7.0 * torch.cartesian_prod(torch.arange(3), torch.arange(3))
    patches = torch.log(stored + 1e-6)
    bags = {"10x": Bag.from_slide(patches), "20x": Bag.from_slide(patches, coords, step=7)}
    mask = torch.ones(1, 9, dtype=torch.bool)
    found = graph(stored[None], mask, stored[None], mask, coords[None].double(), torch.tensor([7.0]).double())
    torch.testing.assert_close(found.logits, student(bags).logits)


@given(seed=st.integers(0, 2**16), sides=st.tuples(st.integers(1, 9), st.integers(1, 9)), share=st.floats(0.02, 1))
def test_open_grid_finds_the_nearest_tissue_that_a_grid_finds(seed, sides, share):
    width, height = sides
    chosen = torch.rand(2, height * width, generator=torch.Generator().manual_seed(seed)) < share
    chosen[:, 0] = chosen[:, -1] = True  # Both bags span the rectangle.
    place = torch.arange(height * width)
    coords = torch.stack([place % width, place // width], dim=-1).double().expand(2, -1, -1)
    grid = Grid.from_coords(coords, mask=chosen, step=1)
    found = OpenGrid.of(coords, chosen, torch.ones(2).double())
    torch.testing.assert_close(found.count, grid.count)
    every = place.expand(2, -1)
    assert torch.equal(found.nearest_tissue(every), grid.nearest_tissue(every))
