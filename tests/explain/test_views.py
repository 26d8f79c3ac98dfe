import pytest
import torch

from disentangled_mil import Bag, Student, Teacher, collate_bags
from disentangled_mil.explain import student_view, teacher_view

SMALL = {"dim": 16, "heads": 4, "groups": 2, "dim_head": 4, "magnifications": ["20x"]}


@pytest.fixture
def slide() -> Bag:
    """A slide with a hole."""
    torch.manual_seed(0)
    coords = torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1], [2, 1], [0, 2], [1, 2]])
    return Bag.from_slide(torch.randn(7, 8), coords, step=1)


@pytest.mark.parametrize("placed", [True, False])
def test_attention_of_every_head_is_a_share_that_sums_to_one(slide, placed):
    student = Student(8, 2, **SMALL).eval()
    branch = student({"20x": slide if placed else Bag(slide.patches)}).branches["20x"]
    view = student_view(branch, student.subspaces)
    heads = torch.stack([view[f"attention_head{number}"] for number in range(1, 5)])
    torch.testing.assert_close((heads / 7).sum(1), torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(heads.mean(0), view["attention"])
    torch.testing.assert_close(view["attention"] / 7, branch.attention.mass()[0].double(), atol=1e-6, rtol=0)


def test_attention_mass_goes_to_the_tiles_that_its_keys_are_sampled_from(slide):
    student = Student(8, 2, **SMALL).eval()
    attention = student({"20x": slide}).branches["20x"].attention
    corners, _ = attention.positions.corners(attention.context_grid, attention.sampling_positions)
    expected = torch.zeros(4, 7)
    cells = (slide.grid.cells[0] * torch.tensor([1, slide.grid.width])).sum(1).tolist()
    for head in range(4):
        for key, mass in enumerate(attention.key_mass()[0, head].tolist()):
            for cell, weight in zip(*(part[head // 2, key].tolist() for part in corners), strict=True):
                if weight:
                    expected[head, cells.index(cell)] += mass * weight
    torch.testing.assert_close(attention.head_mass()[0], expected)


def test_membership_is_one_prototype_per_tile_and_its_weight_is_relative(slide):
    student = Student(8, 2, **SMALL).eval()
    branch = student({"20x": slide}).branches["20x"]
    view = student_view(branch, student.subspaces)
    assert torch.equal(view["tumor"], (branch.assignment[0] == 0).double())
    assert torch.equal(view["tumor"] + view["tme"], torch.ones(7, dtype=torch.float64))
    for name in student.subspaces:
        members = view[name] == 1
        assert view["weight"][members].mean().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_slides_of_one_and_two_tiles_have_a_view(slide, count):
    student = Student(8, 2, **SMALL).eval()
    bag = Bag.from_slide(slide.patches[0, :count], torch.tensor([[0, 0], [1, 0]])[:count], step=1)
    view = student_view(student({"20x": bag}).branches["20x"], student.subspaces)
    assert view["attention"].mean().item() == pytest.approx(1, abs=1e-5)


def test_padding_is_left_out(slide):
    student = Student(8, 2, **SMALL).eval()
    both = collate_bags(
        [slide, Bag.from_slide(torch.randn(9, 8), torch.cartesian_prod(*[torch.arange(3)] * 2), step=1)]
    )
    padded = Bag(both.patches[:1], type(both.grid)(both.grid.cells[:1], both.grid.mask[:1], both.grid.shapes[:1]))
    views = [student_view(student({"20x": bag}).branches["20x"], student.subspaces) for bag in (slide, padded)]
    for name, values in views[0].items():
        torch.testing.assert_close(views[1][name], values, atol=1e-4, rtol=1e-4)


def test_a_teacher_has_attention_for_every_subspace(slide):
    teacher = Teacher(8, {"tumor": 3, "tme": 4}, 2, **SMALL).eval()
    branch = teacher({"20x": slide}, {"tumor": torch.randn(1, 3), "tme": torch.randn(1, 4)}).branches["20x"]
    view = teacher_view(branch)
    assert [name for name in view if "head" not in name] == ["attention_tumor", "attention_tme"]
    assert view["attention_tme"].mean().item() == pytest.approx(1, abs=1e-5)


def test_a_batch_of_several_bags_is_refused(slide):
    student = Student(8, 2, **SMALL).eval()
    branch = student({"20x": collate_bags([slide, slide])}).branches["20x"]
    with pytest.raises(ValueError, match="branch must be the output for one bag, got 2"):
        student_view(branch, student.subspaces)
