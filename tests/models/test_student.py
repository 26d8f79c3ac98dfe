"""The student: prototypes under their subspaces' names, any number of magnifications, padding, precision."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.bags import Bag, Grid, collate_bags
from disentangled_mil.models.student import Student

MAGNIFICATIONS = ("5x", "10x", "20x")
SUBSPACES = ("tumor", "tme", "stroma")
FEATURES = 6


def small_student(magnifications: int = 2, subspaces: int = 2, **options: Any) -> Student:
    """A float64 student in evaluation mode: C = 8, K = 3."""
    sizes = {"dim": 8, "heads": 2, "dim_head": 4, "groups": 2, "downsample": 2, "neighbors": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = Student(
            FEATURES,
            3,
            magnifications=MAGNIFICATIONS[:magnifications],
            subspaces=SUBSPACES[:subspaces],
            **(sizes | options),
        )
    return student.double().eval()


def draw_slides(seed: int, student: Student, batch: int) -> list[dict[str, Bag]]:
    """Slides of every patient at every magnification, of unequal sizes."""
    source = torch.Generator().manual_seed(seed)

    def slide() -> Bag:
        tokens = int(torch.randint(1, 12, (), generator=source))
        coords = torch.randint(0, 5, (tokens, 2), generator=source)
        return Bag.from_slide(torch.randn(tokens, FEATURES, dtype=torch.float64, generator=source), coords, step=1)

    return [{name: slide() for name in student.magnifications} for _ in range(batch)]


def collated(slides: list[dict[str, Bag]]) -> dict[str, Bag]:
    return {name: collate_bags([slide[name] for slide in slides]) for name in slides[0]}


def converted(bags: dict[str, Bag], change: Callable[[Bag], Tensor]) -> dict[str, Bag]:
    return {name: Bag(change(bag), bag.grid) for name, bag in bags.items()}


@pytest.mark.parametrize("magnifications", [1, 2, 3])
@pytest.mark.parametrize("subspaces", [1, 2, 3])
def test_any_number_of_magnifications_and_subspaces(magnifications: int, subspaces: int) -> None:
    student = small_student(magnifications, subspaces)
    bags = collated(draw_slides(1, student, 2))
    out = student(bags)
    assert list(out.branches) == list(student.magnifications)
    stacked = torch.stack([branch.logits for branch in out.branches.values()], dim=1)
    assert torch.equal(out.logits, stacked[torch.arange(2), out.gate.argmax(1)])
    for name, branch in out.branches.items():
        assert branch.prototypes.shape == (2, subspaces, 8)
        assert list(branch.subspace_logits) == list(student.subspaces)
        torch.testing.assert_close(sum(branch.subspace_logits.values()), branch.logits)
        head = student.branches[name].head
        for subspace, prototype in zip(student.subspaces, branch.prototypes.unbind(1), strict=True):
            expected = prototype @ head.blocks[subspace].T + head.bias / subspaces
            torch.testing.assert_close(branch.subspace_logits[subspace], expected)
        mask = bags[name].mask
        assert ((branch.assignment >= 0) == mask).all()
        assert (branch.assignment < subspaces).all()
        assert (branch.significance[~mask] == 0).all()


@given(batch=st.integers(2, 3), filling=st.sampled_from([float("nan"), float("-inf")]), seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_a_patient_alone_equals_itself_in_a_batch_whatever_padding_holds(batch: int, filling: float, seed: int) -> None:
    student = small_student()
    slides = draw_slides(seed, student, batch)
    bags = converted(collated(slides), lambda bag: bag.patches.masked_fill(~bag.mask[..., None], filling))
    together = student(bags)
    sum(branch.logits.square().sum() for branch in together.branches.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    for i, slide in enumerate(slides):
        alone = student(slide)
        torch.testing.assert_close(together.logits[i], alone.logits[0], rtol=0, atol=1e-10)
        for name in student.magnifications:
            found, expected, count = together.branches[name], alone.branches[name], slide[name].patches.shape[1]
            torch.testing.assert_close(found.prototypes[i], expected.prototypes[0], rtol=0, atol=1e-10)
            assert torch.equal(found.assignment[i, :count], expected.assignment[0])
            assert (found.assignment[i, count:] == -1).all()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_the_order_of_patches_does_not_matter(seed: int) -> None:
    student = small_student(1)
    bag = draw_slides(seed, student, 1)[0]["5x"]
    order = torch.randperm(bag.patches.shape[1], generator=torch.Generator().manual_seed(seed))
    shuffled = Bag(bag.patches[:, order], Grid(bag.grid.cells[:, order], bag.mask, bag.grid.shapes))
    out, other = student({"5x": bag}), student({"5x": shuffled})
    torch.testing.assert_close(other.logits, out.logits, rtol=0, atol=1e-10)
    assert torch.equal(other.branches["5x"].assignment, out.branches["5x"].assignment[:, order])


def test_anchors_follow_in_training_only_and_are_stored_with_the_weights() -> None:
    student = small_student()
    bags = collated(draw_slides(2, student, 3))
    anchors = {name: branch.aggregate.anchors.clone() for name, branch in student.branches.items()}
    first, second = student(bags), student(bags)
    assert torch.equal(first.logits, second.logits)
    assert all(torch.equal(student.branches[name].aggregate.anchors, value) for name, value in anchors.items())
    student.train()(bags).logits.sum().backward()
    assert not any(torch.equal(student.branches[name].aggregate.anchors, value) for name, value in anchors.items())
    other = small_student()
    other.load_state_dict(student.state_dict())
    student.eval()
    for found in (other, copy.deepcopy(student)):
        assert torch.equal(found(bags).logits, student(bags).logits)


def test_another_order_of_the_prototypes_changes_names_and_no_prediction() -> None:
    student = small_student().eval()
    bags = collated(draw_slides(2, student, 3))
    before = student(bags)
    student.reorder("10x", torch.tensor([1, 0]))
    after = student(bags)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.branches["10x"].prototypes, before.branches["10x"].prototypes.flip(1))
    shares = before.branches["10x"].subspace_logits, after.branches["10x"].subspace_logits
    torch.testing.assert_close(shares[1]["tumor"], shares[0]["tme"])
    assert torch.equal(after.branches["5x"].prototypes, before.branches["5x"].prototypes)
    with pytest.raises(ValueError, match=re.escape("permutation must order 2 subspaces, got [0, 0]")):
        student.reorder("10x", torch.tensor([0, 0]))


@pytest.mark.parametrize("link", ["softmax", "hazards"])
@pytest.mark.parametrize("gate", ["max_confidence", "average", "softmax_average", "learned"])
def test_every_gate_trains_every_branch_it_uses(link: str, gate: str) -> None:
    student = small_student(link=link, gate=gate).train()
    out = student(collated(draw_slides(3, student, 3)))
    assert (student.gate.link, student.gate.rule) == (link, gate)
    (out.logits.square().sum() + sum(b.logits.square().sum() for b in out.branches.values())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_features_of_any_type_are_taken(dtype: torch.dtype) -> None:
    student = small_student().float()
    bags = converted(collated(draw_slides(4, student, 2)), lambda bag: bag.patches.to(dtype))
    out = student(bags)
    assert out.logits.dtype == torch.float32
    assert torch.equal(out.logits, student(converted(bags, lambda bag: bag.patches.float())).logits)


def test_a_training_step_under_autocast_is_finite() -> None:
    student = small_student().float().train()
    bags = converted(collated(draw_slides(5, student, 2)), lambda bag: bag.patches.half())
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(branch.logits.float().square().sum() for branch in student(bags).branches.values())
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_a_slide_of_equal_patches_and_an_empty_one_are_defined() -> None:
    student = small_student(1)
    patches = torch.ones(2, 9, FEATURES, dtype=torch.float64)
    bag = Bag(patches, Grid.from_mask(torch.tensor([[True] * 9, [False] * 9])))
    out = student({"5x": bag})
    assert out.logits.isfinite().all()
    assert (out.branches["5x"].prototypes[1] == 0).all()
    out.logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: small_student(0),
            ValueError,
            "magnifications must hold at least one name, each once, got ()",
        ),
        (
            lambda: small_student(subspaces=0),
            ValueError,
            "subspaces must hold at least one name, each once, got ()",
        ),
        (lambda: small_student(neighbors=0), ValueError, "neighbors must be at least 1, got 0"),
        (lambda: small_student(dropout=-1), ValueError, "dropout must lie in [0, 1], got -1"),
        (
            lambda: small_student()({"20x": Bag.from_slide(torch.zeros(2, FEATURES))}),
            ValueError,
            "bags must have exactly the names ['10x', '5x'], got ['20x']",
        ),
        (
            lambda: small_student(1)({"5x": Bag.from_slide(torch.zeros(2, 3))}),
            ValueError,
            "patches must have shape [B, N, features] = [B, N, 6], got [1, 2, 3]",
        ),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()
