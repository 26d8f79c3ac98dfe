"""The teacher: parts in place, any number of magnifications and subspaces, padding, precision."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.bags import Bag, collate_bags
from disentangled_mil.models.teacher import Teacher, TeacherOutput

MAGNIFICATIONS = ("5x", "10x", "20x")
GENES = {"tumor": 5, "tme": 7, "stroma": 3}
FEATURES = 6


def small_teacher(magnifications: int = 2, subspaces: int = 2, **options: Any) -> Teacher:
    """A float64 teacher in evaluation mode: C = 8, K = 3."""
    sizes = {"dim": 8, "heads": 2, "dim_head": 4, "groups": 2, "downsample": 2, "gene_tokens": 2}
    genes = dict(list(GENES.items())[:subspaces])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Teacher(FEATURES, genes, 3, magnifications=MAGNIFICATIONS[:magnifications], **(sizes | options))
    return teacher.double().eval()


def draw_slide(seed: int, tokens: int) -> Bag:
    source = torch.Generator().manual_seed(seed)
    coords = torch.randint(0, 5, (tokens, 2), generator=source)
    return Bag.from_slide(torch.randn(tokens, FEATURES, dtype=torch.float64, generator=source), coords, step=1)


def draw_case(seed: int, teacher: Teacher, batch: int) -> tuple[list[dict[str, Bag]], dict[str, Tensor]]:
    """Slides of every patient at every magnification, of unequal sizes, and genes."""
    source = torch.Generator().manual_seed(seed)
    slides = [
        {
            name: draw_slide(seed + 7 * patient + i, int(torch.randint(1, 12, (), generator=source)))
            for i, name in enumerate(teacher.magnifications)
        }
        for patient in range(batch)
    ]
    counts = {name: GENES[name] for name in teacher.subspaces}
    genes = {n: torch.randn(batch, count, dtype=torch.float64, generator=source) for n, count in counts.items()}
    return slides, genes


def collated(slides: list[dict[str, Bag]]) -> dict[str, Bag]:
    return {name: collate_bags([slide[name] for slide in slides]) for name in slides[0]}


def converted(bags: Mapping[str, Bag], change: Callable[[Bag], Tensor]) -> dict[str, Bag]:
    return {name: Bag(change(bag), bag.grid) for name, bag in bags.items()}


@pytest.mark.parametrize("magnifications", [1, 2, 3])
@pytest.mark.parametrize("subspaces", [1, 2, 3])
def test_any_number_of_magnifications_and_subspaces(magnifications: int, subspaces: int) -> None:
    teacher = small_teacher(magnifications, subspaces)
    slides, genes = draw_case(1, teacher, 2)
    out = teacher(collated(slides), genes)
    assert list(out.branches) == list(teacher.magnifications)
    assert out.logits.shape == (2, 3)
    assert out.gate.sum(1).tolist() == [1.0, 1.0]
    stacked = torch.stack([branch.logits for branch in out.branches.values()], dim=1)
    assert torch.equal(out.logits, stacked[torch.arange(2), out.gate.argmax(1)])
    for branch in out.branches.values():
        assert list(branch.features) == list(branch.attention) == list(teacher.subspaces)
        torch.testing.assert_close(sum(branch.subspace_logits.values()), branch.logits)
    parameters = teacher.subspace_parameters()
    assert list(parameters) == list(teacher.subspaces)
    for name, blocks in parameters.items():
        assert len(blocks) == magnifications
        assert all(
            block is teacher.branches[m].head.blocks[name]
            for block, m in zip(blocks, teacher.magnifications, strict=True)
        )


@given(
    batch=st.integers(2, 3),
    query=st.sampled_from(["gene", "gene+patch"]),
    filling=st.sampled_from([float("nan"), float("-inf")]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=4)
def test_a_patient_alone_equals_itself_in_a_batch_whatever_padding_holds(
    batch: int, query: str, filling: float, seed: int
) -> None:
    teacher = small_teacher(query=query)
    slides, genes = draw_case(seed, teacher, batch)
    bags = converted(collated(slides), lambda bag: bag.patches.masked_fill(~bag.mask[..., None], filling))
    together: TeacherOutput = teacher(bags, genes)
    sum(branch.logits.square().sum() for branch in together.branches.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in teacher.parameters())
    for i, slide in enumerate(slides):
        alone = teacher(slide, {name: g[i : i + 1] for name, g in genes.items()})
        torch.testing.assert_close(together.logits[i], alone.logits[0], rtol=0, atol=1e-10)
        for name in teacher.magnifications:
            for subspace in teacher.subspaces:
                count = slide[name].patches.shape[1]
                mass = together.branches[name].attention[subspace].mass()[i]
                expected = alone.branches[name].attention[subspace].mass()[0]
                torch.testing.assert_close(mass[:count], expected, rtol=0, atol=1e-10)
                assert (mass[count:] == 0).all()


def test_magnifications_share_gene_encoders_and_nothing_else() -> None:
    teacher = small_teacher()
    slides, genes = draw_case(2, teacher, 2)
    teacher(collated(slides), genes).branches["5x"].logits.sum().backward()
    touched = {name for name, p in teacher.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("genes.") for name in touched)
    assert any(name.startswith("branches.5x.") for name in touched)
    assert not any(name.startswith("branches.10x.") for name in touched)


@pytest.mark.parametrize("link", ["softmax", "hazards"])
@pytest.mark.parametrize("gate", ["max_confidence", "average", "softmax_average", "learned"])
def test_every_gate_trains_every_branch_it_uses(link: str, gate: str) -> None:
    teacher = small_teacher(link=link, gate=gate).train()
    slides, genes = draw_case(3, teacher, 2)
    out = teacher(collated(slides), genes)
    assert (teacher.gate.link, teacher.gate.rule) == (link, gate)
    (out.logits.square().sum() + sum(b.logits.square().sum() for b in out.branches.values())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in teacher.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_features_of_any_type_are_taken(dtype: torch.dtype) -> None:
    teacher = small_teacher().float()
    slides, genes = draw_case(4, teacher, 2)
    bags = converted(collated(slides), lambda bag: bag.patches.to(dtype))
    out = teacher(bags, genes)
    exact = teacher(converted(bags, lambda bag: bag.patches.float()), {n: g.float() for n, g in genes.items()})
    assert out.logits.dtype == torch.float32
    assert torch.equal(out.logits, exact.logits)


def test_a_training_step_under_autocast_is_finite() -> None:
    teacher = small_teacher().float().train()
    slides, genes = draw_case(5, teacher, 2)
    bags = converted(collated(slides), lambda bag: bag.patches.half())
    with torch.autocast("cpu", torch.bfloat16):
        out = teacher(bags, genes)
        loss = sum(branch.logits.float().square().sum() for branch in out.branches.values())
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in teacher.parameters())


def test_a_patient_without_patches_at_one_magnification_is_defined() -> None:
    teacher = small_teacher()
    slides, genes = draw_case(6, teacher, 2)
    bags = collated(slides)
    grid = bags["10x"].grid
    empty = grid.mask.clone()
    empty[1] = False
    bags["10x"] = Bag(bags["10x"].patches, type(grid)(grid.cells, empty, grid.shapes))
    out = teacher(bags, genes)
    assert out.logits.isfinite().all()
    out.logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in teacher.parameters())


def test_weights_and_copies_come_back() -> None:
    teacher, other = small_teacher(), small_teacher()
    slides, genes = draw_case(7, teacher, 2)
    teacher.branches["5x"].patches.fit(torch.randn(20, FEATURES) + 3)
    other.load_state_dict(teacher.state_dict())
    bags = collated(slides)
    for found in (other, copy.deepcopy(teacher)):
        assert torch.equal(found(bags, genes).logits, teacher(bags, genes).logits)
    assert "max_confidence" in repr(teacher)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: small_teacher(0),
            ValueError,
            "magnifications must hold at least one name, each once, got ()",
        ),
        (lambda: small_teacher(subspaces=0), ValueError, "genes must hold at least one name, each once, got ()"),
        (lambda: small_teacher(gate="best"), ValueError, "gate must be one of "),
        (lambda: small_teacher(query="patch"), ValueError, "query must be one of "),
        (lambda: small_teacher(dropout=2), ValueError, "dropout must lie in "),
        (
            lambda: small_teacher()({"5x": draw_slide(0, 3)}, {}),
            ValueError,
            "bags must have exactly the names ['10x', '5x'], got ['5x']",
        ),
        (
            lambda: small_teacher(1)({"5x": draw_slide(0, 3)}, {"tumor": torch.zeros(1, 5)}),
            ValueError,
            "genes must have exactly the names ['tme', 'tumor'], got ['tumor']",
        ),
        (
            lambda: small_teacher(1, 1)({"5x": draw_slide(0, 3)}, {"tumor": torch.zeros(2, 5)}),
            ValueError,
            "genes['tumor'] must have shape [B, G] = [1, G], got [2, 5]",
        ),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()
