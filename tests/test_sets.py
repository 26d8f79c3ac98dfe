"""Bags without coordinates are sets: no layer and no model depends on the order of their tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from disentangled_mil import (
    DMSF,
    ITA,
    Bag,
    DeformableCrossAttention,
    GeneSelection,
    Student,
    Teacher,
    TokenSet,
    collate_bags,
)

WIDTH, NAMES = 8, ("tumor", "tme")
LAYER: dict[str, Any] = {"heads": 4, "dim_head": 4, "groups": 2, "dropout": 0.0}
MOST = 6  # keys of the layers below: some of the sets that are drawn are smaller, some larger


class Found(NamedTuple):
    """Results of a module.

    Attributes:
        moving: results of each token [B, N, ...], which move with it.
        staying: results of each bag [B, ...].
    """

    moving: list[Tensor]
    staying: list[Tensor]


class Case(NamedTuple):
    """A module, and how to call it."""

    module: nn.Module
    call: Callable[[nn.Module, Tensor, Tensor], Found]


def genes(batch: int, width: int = WIDTH) -> dict[str, Tensor]:
    """Gene tokens [B, T, C] that are alike in all bags, so that bags can be taken out of a batch."""
    source = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(1, 3, width, dtype=torch.float64, generator=source).expand(batch, -1, -1) for name in NAMES
    }


def attend(module: nn.Module, tokens: Tensor, mask: Tensor) -> Found:
    out = module(tokens, tokens.flip(2), mask=mask)
    return Found([out.tokens, out.attention.mass()], [out.attention.key_mass().sort(2).values[..., -1]])


def fuse(module: nn.Module, tokens: Tensor, mask: Tensor) -> Found:
    out = module(tokens, genes(len(tokens)), mask=mask)
    masses = [attention.mass() for attention in out.attention.values()]
    return Found([*out.tokens.values(), *out.selection.values(), *masses], [*out.features.values()])


def select(module: nn.Module, tokens: Tensor, mask: Tensor) -> Found:
    out = module(tokens, genes(len(tokens))["tme"], mask)
    return Found([out.weights], [out.feature])


def gather(module: nn.Module, tokens: Tensor, mask: Tensor) -> Found:
    out = module(tokens, mask)
    return Found([out.assignment.double(), out.weights], [out.prototypes])


def predict(module: nn.Module, tokens: Tensor, mask: Tensor) -> Found:
    out = module({"20x": Bag(tokens, TokenSet(mask))})
    branch = out.branches["20x"]
    moving = [branch.assignment.double(), branch.significance, branch.attention.mass()]
    return Found(moving, [out.logits, branch.prototypes])


def teach(module: nn.Module, tokens: Tensor, mask: Tensor) -> Found:
    inputs = {name: tokens[0, 0].nan_to_num(0).new_ones(len(tokens), 2) for name in NAMES}
    out = module({"20x": Bag(tokens, TokenSet(mask))}, inputs)
    branch = out.branches["20x"]
    return Found([branch.attention["tme"].mass()], [out.logits, *branch.features.values()])


MAKERS: dict[str, Callable[[], Case]] = {
    "DeformableCrossAttention": lambda: Case(DeformableCrossAttention(WIDTH, max_keys=MOST, **LAYER), attend),
    "DMSF": lambda: Case(DMSF(WIDTH, NAMES, selection_heads=2, max_keys=MOST, **LAYER), fuse),
    "GeneSelection": lambda: Case(GeneSelection(WIDTH, heads=2), select),
    "ITA": lambda: Case(ITA(WIDTH, 2), gather),
    "Student": lambda: Case(Student(WIDTH, 3, dim=WIDTH, magnifications=("20x",), max_keys=MOST, **LAYER), predict),
    "Teacher": lambda: Case(
        Teacher(
            WIDTH,
            dict.fromkeys(NAMES, 2),
            3,
            dim=WIDTH,
            magnifications=("20x",),
            selection_heads=2,
            gene_dropout=0.0,
            max_keys=MOST,
            **LAYER,
        ),
        teach,
    ),
}
every_module = pytest.mark.parametrize("name", MAKERS)


def make(name: str) -> Case:
    torch.manual_seed(0)
    case = MAKERS[name]()
    return Case(case.module.double().eval(), case.call)


def draw(seed: int, counts: list[int], distinct: int | None = None) -> tuple[Tensor, Tensor]:
    """Sets of given sizes, padded with NaN; with repeats, if there are few distinct tokens."""
    source = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    tokens = torch.randn(len(counts), max(counts), WIDTH, dtype=torch.float64, generator=source)
    if distinct is not None:
        copies = torch.randint(distinct, (max(counts),), generator=source).clamp(max=max(counts) - 1)
        tokens = tokens[:, copies]
    return torch.where(mask[..., None], tokens, torch.nan), mask


def orders(seed: int, batch: int, count: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(count, generator=source) for _ in range(batch)])


def permuted(values: Tensor, order: Tensor) -> Tensor:
    """Every bag's tokens [B, N, ...] in an order of its own."""
    return torch.stack([bag[own] for bag, own in zip(values, order, strict=True)])


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def run(case: Case, tokens: Tensor, mask: Tensor) -> tuple[Found, list[Tensor], Tensor]:
    """Results, the gradients of all parameters, and that of the tokens."""
    case.module.zero_grad()
    tokens = tokens.clone().requires_grad_()
    found = case.call(case.module, tokens, mask)
    smooth = [part for part in (*found.moving, *found.staying) if part.requires_grad]
    torch.stack([part.sin().sum() for part in smooth]).sum().backward()
    return found, [p.grad for p in case.module.parameters() if p.grad is not None], tokens.grad


sizes = st.lists(st.integers(1, 14), min_size=1, max_size=3)


@every_module
@given(counts=sizes, seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_results_and_gradients_move_with_the_tokens(name: str, counts: list[int], seed: int) -> None:
    case, (tokens, mask) = make(name), draw(seed, counts)
    order = orders(seed, *mask.shape)
    found, weights, inputs = run(case, tokens, mask)
    other, other_weights, other_inputs = run(case, permuted(tokens, order), permuted(mask, order))
    assert_close(other.moving, [permuted(part, order) for part in found.moving])
    assert_close(other.staying, found.staying)
    assert_close(other_weights, weights)
    assert_close([other_inputs], [permuted(inputs, order)])


@pytest.mark.parametrize("name", ["DeformableCrossAttention", "Student"])
@given(count=st.integers(100 * MOST, 500 * MOST), seed=st.integers(0, 10**6))
@settings(max_examples=8)
def test_orders_of_far_more_tokens_than_keys_change_float32_by_rounding_only(name: str, count: int, seed: int) -> None:
    """The choice of keys sees the same numbers in every order; one other key would change far more."""
    case, (tokens, mask) = make(name), draw(seed, [count])
    case.module.float()
    order = orders(seed, *mask.shape)
    found = case.call(case.module, tokens.float(), mask)
    other = case.call(case.module, permuted(tokens, order).float(), mask)
    for one, same in zip(found.moving, other.moving, strict=True):
        torch.testing.assert_close(same, permuted(one, order), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.staying, found.staying, rtol=1e-5, atol=1e-5)


@every_module
@given(counts=sizes, seed=st.integers(0, 10**6), distinct=st.integers(1, 5))
@settings(max_examples=15)
def test_repeated_tokens_change_nothing_about_that(name: str, counts: list[int], seed: int, distinct: int) -> None:
    case, (tokens, mask) = make(name), draw(seed, counts, distinct)
    order = orders(seed, *mask.shape)
    found, weights, _ = run(case, tokens, mask)
    other, other_weights, _ = run(case, permuted(tokens, order), permuted(mask, order))
    # What is said about each of several equal tokens may change places among them.
    assert_close(other.staying, found.staying)
    assert_close(other_weights, weights)


@every_module
@pytest.mark.parametrize("copies", [5, 7])
def test_many_copies_of_several_tokens_are_clustered_alike_in_any_order(name: str, copies: int) -> None:
    """The copies are the nearest neighbors of each other, so that all tokens are equally dense."""
    case = make(name)
    tokens = draw(5, [4])[0].repeat(1, copies, 1)
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    found = case.call(case.module, tokens, mask)
    for seed in range(5):
        other = case.call(case.module, permuted(tokens, orders(seed, *mask.shape)), mask)
        assert_close(other.staying, found.staying)


@every_module
@given(counts=sizes, seed=st.integers(0, 10**6), filling=st.sampled_from([torch.nan, torch.inf, 7.0]))
@settings(max_examples=10)
def test_a_bag_alone_equals_itself_in_a_batch(name: str, counts: list[int], seed: int, filling: float) -> None:
    case, (tokens, mask) = make(name), draw(seed, counts)
    together = case.call(case.module, torch.where(mask[..., None], tokens, filling), mask)
    for bag, count in enumerate(counts):
        alone = case.call(case.module, tokens[bag : bag + 1, :count], mask[bag : bag + 1, :count])
        assert_close([part[0] for part in alone.moving], [part[bag, :count] for part in together.moving])
        assert_close([part[0] for part in alone.staying], [part[bag] for part in together.staying])


@every_module
def test_a_bag_of_one_token_and_an_empty_one_are_defined(name: str) -> None:
    case = make(name)
    tokens, mask = draw(0, [9, 1, 9])
    mask[2] = False
    found, weights, inputs = run(case, tokens, mask)
    assert all(part.isfinite().all() for part in (*found.moving, *found.staying, *weights))
    assert torch.equal(inputs[2], torch.zeros_like(inputs[2]))


def test_batches_of_collated_slides_do_not_depend_on_the_order_of_files() -> None:
    case = make("Student")
    tokens, _ = draw(3, [12, 12])
    slides = [Bag.from_slide(tokens[0]), Bag.from_slide(tokens[1, :5])]
    shuffled = [Bag(slide.patches.flip(1)) for slide in slides]
    logits = [case.module({"20x": collate_bags(bags)}).logits for bags in (slides, shuffled)]
    assert_close([logits[1]], [logits[0]])
