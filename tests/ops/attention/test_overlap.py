"""Overlaps of attention maps: dense ones by hand, and those of scores against the dense ones, never holding them."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from disentangled_mil.ops import AttentionScores, attention_overlap, biased_attention
from tests.support import attention
from tests.support.allocations import allocations
from tests.support.attention import Arguments, leaves, slopes, tiles, without_value
from tests.support.operators import calls

few = settings(max_examples=20)
seeds = st.integers(0, 10**6)
kinds = st.sampled_from(["none", "network", "table"])
every_kind = pytest.mark.parametrize("kind", ["none", "network", "table"])
exact: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def draw(*args: Any, **sizes: Any) -> Arguments:
    """Draw arguments of ``AttentionScores``."""
    return without_value(attention.draw(*args, **sizes))


@pytest.fixture(params=[False, True], ids=["", "piecewise"])
def tiny_tile(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiles of a query or two, and networks with and without a piecewise table."""
    with tiles(60, piecewise=request.param):
        yield


def overlap_of(a: Arguments, b: Arguments) -> Tensor:
    return attention_overlap(AttentionScores(**a), AttentionScores(**b))


def dense(arguments: Arguments) -> Tensor:
    """Flattened maps as the reference of biased attention makes them, by single operations of torch."""
    attended = biased_attention(value=arguments["key"], **arguments, keep_weights=True, backend="reference")
    assert attended.weights is not None
    return attended.weights.flatten(1)


def dense_overlap(a: Arguments, b: Arguments) -> Tensor:
    return dense(a) @ dense(b).T


def test_overlap_equals_hand_computed_inner_products():
    a, b = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[4.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(attention_overlap(a, b), torch.tensor([[4.0, 3.0], [0.0, 3.0]]))


def test_swapping_the_maps_transposes_the_overlap(generator):
    a, b = torch.rand(3, 63, generator=generator), torch.rand(3, 63, generator=generator)
    torch.testing.assert_close(attention_overlap(a, b), attention_overlap(b, a).T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32_inside_autocast_too(dtype, generator):
    a = torch.rand(3, 1000, generator=generator).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention_overlap(a, a)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, a.float() @ a.float().T)


def test_the_wider_precision_wins(generator):
    a = torch.rand(2, 5, generator=generator)
    assert attention_overlap(a, a.double()).dtype == torch.float64


def test_gradients_are_exact(generator):
    a, b = (torch.rand(2, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in "ab")
    assert gradcheck(attention_overlap, (a, b))


def test_non_contiguous_maps_are_fine(generator):
    a = torch.rand(7, 4, generator=generator)
    torch.testing.assert_close(attention_overlap(a.T, a.T), attention_overlap(a.T.contiguous(), a.T.contiguous()))


def test_errors_name_the_argument():
    a = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"a must have shape \[B, F\], got \[2\]"):
        attention_overlap(a[:, 0], a)
    with pytest.raises(ValueError, match=r"b must have shape \[B, F\] = \[2, 3\], got \[2, 4\]"):
        attention_overlap(a, torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"a must be a floating-point tensor, got torch\.int64"):
        attention_overlap(a.long(), a)
    with pytest.raises(TypeError, match=r"b must be a floating-point tensor, got torch\.int64"):
        attention_overlap(a, a.long())


@st.composite
def sides(draw_: st.DrawFn, sizes: dict[str, Any], heads: int = 4) -> Arguments:
    """The scores of one batch of maps, of a kind, groups, width, scale and reach of their own."""
    kind, groups = draw_(kinds), draw_(st.sampled_from([1, 2, heads]))
    width = draw_(st.integers(1, 3))
    side = draw(draw_(seeds), kind=kind, groups=groups, per_group=heads // groups, width=width, **sizes)
    side["scale"] = draw_(st.sampled_from([None, 0.3]))
    if kind == "table":
        side["bias"] = side["bias"]._replace(reach=draw_(st.sampled_from([0.5, 2.0])))
    return side


@given(
    sizes=st.fixed_dictionaries(
        {
            "batch": st.integers(0, 3),
            "queries": st.sampled_from([0, 1, 2, 7, 13]),
            "keys": st.sampled_from([0, 1, 5, 9]),
            "padded": st.sampled_from([0.0, 0.5, 1.0]),
            "dropped": st.sampled_from([0.0, 0.6, 1.0]),
        }
    ),
    without=st.sets(st.sampled_from(["key_logit", "query_mask"])),
    entries=st.sampled_from([1, 60, 200, 10**6]),
    piecewise=st.booleans(),
    data=st.data(),
)
@settings(max_examples=100)
def test_overlap_of_scores_is_that_of_their_dense_maps_with_all_gradients(
    sizes: dict[str, Any], without: set[str], entries: int, piecewise: bool, data: st.DataObject
) -> None:
    b = data.draw(sides(sizes))
    if "query_mask" in without:
        sizes["padded"] = 0.0
    a = data.draw(sides(sizes)) | dict.fromkeys(without)
    with tiles(entries, piecewise=piecewise):
        streamed, expected = overlap_of(a, b), dense_overlap(a, b)
        torch.testing.assert_close(streamed, expected, **exact)
        inputs = leaves(a) + leaves(b)
        wanted = slopes([expected], inputs)
        torch.testing.assert_close(slopes([streamed], inputs), wanted, **exact)
    assert all(gradient.isfinite().all() for gradient in wanted)


@every_kind
@pytest.mark.usefixtures("tiny_tile")
def test_gradients_through_scores_are_those_of_finite_differences(kind: str) -> None:
    a, b = (draw(seed, kind=kind, queries=3, keys=3, width=2) for seed in (3, 4))
    inputs = leaves(a) + leaves(b)
    assert gradcheck(lambda *_: overlap_of(a, b), inputs, fast_mode=True)


@given(seed=seeds, kind=kinds, wanted=st.sets(st.integers(0, 23), min_size=1))
@few
def test_a_gradient_does_not_depend_on_which_others_are_wanted(seed: int, kind: str, wanted: set[int]) -> None:
    a, b = (draw(seed + side, kind=kind, padded=0.3, dropped=0.3) for side in (0, 1))
    inputs = leaves(a) + leaves(b)
    expected = slopes([dense_overlap(a, b)], inputs, seed)
    wanted = {index % len(inputs) for index in wanted}
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(index in wanted)
    found = slopes([overlap_of(a, b)], [inputs[index] for index in wanted], seed)
    torch.testing.assert_close(found, [expected[index] for index in wanted], **exact)


@given(seed=seeds, kind=kinds, queries=st.integers(1, 9), keys=st.integers(1, 6))
@few
def test_overlap_of_maps_with_themselves_is_a_gram_matrix(seed: int, kind: str, queries: int, keys: int) -> None:
    given_ = draw(seed, kind=kind, batch=3, queries=queries, keys=keys)
    overlap = overlap_of(given_, given_)
    torch.testing.assert_close(overlap, overlap.T)
    assert torch.linalg.eigvalsh(overlap.detach()).min() > -1e-9
    # Rows of a softmax: between 1 / J and 1 for each of H N rows.
    assert ((overlap.diagonal() >= 4 * queries / keys - 1e-9) & (overlap.diagonal() <= 4 * queries + 1e-9)).all()
    inputs = leaves(given_)
    torch.testing.assert_close(slopes([overlap], inputs), slopes([dense_overlap(given_, given_)], inputs), **exact)


@every_kind
def test_what_padding_and_dropped_groups_hold_has_no_overlap_and_no_gradient(kind: str) -> None:
    a, b = draw(2, kind=kind, queries=9, padded=0.5), draw(3, kind=kind, queries=9)
    with torch.no_grad():
        a["key_logit"][0, 1] = -torch.inf  # one group, whose heads are 2 and 3
    clean = a | {name: a[name].detach().nan_to_num(0.5).requires_grad_() for name in ("query", "query_position")}
    results = []
    for first in (a, clean):
        overlap = overlap_of(first, b)
        results.append([overlap, *slopes([overlap], leaves(first))])
    assert all(torch.equal(dirty, tidy) for dirty, tidy in zip(*results, strict=True))
    _, into_query, into_key, into_position, _, into_logit, *_ = results[0]
    mask = a["query_mask"]
    assert (into_query.transpose(1, 2)[~mask] == 0).all()
    assert (into_position[~mask] == 0).all()
    assert (into_query[0, 2:] == 0).all()
    assert (into_key[0, 2:] == 0).all()
    assert (into_logit[0, 1] == 0).all()
    assert (into_key[0, :2] != 0).any()
    a["query_mask"] = torch.zeros_like(mask)
    assert (overlap_of(a, b) == 0).all()


@pytest.mark.parametrize("other", ["function", "table"])
def test_any_other_function_of_displacements_goes_through_dense_maps(other: str) -> None:
    a, b = draw(8) | {"bias": torch.sin}, draw(9, kind="table")
    if other == "function":
        b["bias"] = torch.sin
    found, expected = overlap_of(a, b), dense_overlap(a, b)
    torch.testing.assert_close(found, expected, **exact)
    inputs = leaves(a) + leaves(b)
    torch.testing.assert_close(slopes([found], inputs), slopes([expected], inputs), **exact)
    names = {operator._opname for operator, _ in calls(lambda: overlap_of(a, b))}
    assert "attention_overlap_streaming" not in names


@pytest.mark.parametrize("innermost", [0, 1, 2])
@pytest.mark.parametrize("missing", [0.0, 0.3])
@every_kind
@pytest.mark.usefixtures("tiny_tile")
def test_non_contiguous_and_expanded_scores_are_read_alike(kind: str, missing: float, innermost: int) -> None:
    a = draw(1, kind=kind, padded=missing, dropped=missing)
    a["query"] = a["query"].detach()[:, :, :1].nan_to_num().requires_grad_()
    spread = a | {"query": a["query"].expand(-1, -1, 5, -1)}
    strided = {
        name: entry.movedim(innermost % entry.ndim, -1).contiguous().movedim(-1, innermost % entry.ndim)
        if isinstance(entry, Tensor)
        else entry
        for name, entry in spread.items()
    } | {"query": spread["query"]}
    assert not strided["key"].is_contiguous()
    found, expected = overlap_of(strided, spread), dense(spread) @ dense(spread).T
    torch.testing.assert_close(found, expected, **exact)
    torch.testing.assert_close(slopes([found], leaves(a)), slopes([expected], leaves(a)), **exact)


@every_kind
def test_the_same_scores_give_the_same_bits(kind: str) -> None:
    a, b = (draw(seed, kind=kind, queries=40, keys=30, dtype=torch.float32) for seed in (5, 6))
    results = []
    for _ in range(2):
        overlap = overlap_of(a, b)
        results.append([overlap, *slopes([overlap], leaves(a) + leaves(b))])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_kind
@pytest.mark.usefixtures("tiny_tile")
def test_scores_of_low_precision_are_as_near_as_their_type_allows(kind: str, dtype: torch.dtype) -> None:
    narrow = [draw(seed, kind=kind, queries=33, keys=9, padded=0.2, dropped=0.2, dtype=dtype) for seed in (2, 3)]
    wide = [{name: double(entry) for name, entry in side.items()} for side in narrow]
    truth, slow = dense_overlap(*wide), dense_overlap(*narrow)
    with torch.autocast("cpu", torch.bfloat16):  # which changes nothing
        quick = overlap_of(*narrow)
    assert quick.dtype == torch.float32
    results = [
        [overlap, *slopes([overlap], leaves(sides[0]) + leaves(sides[1]))]
        for overlap, sides in ((truth, wide), (slow, narrow), (quick, narrow))
    ]
    for exact_, eager, fast in zip(*results, strict=True):
        tiny = 16 * torch.finfo(dtype).eps * (1 + exact_.abs().max())
        assert (fast.double() - exact_).abs().max() <= 2 * (eager.double() - exact_).abs().max() + tiny


def double(entry: Any) -> Any:
    if isinstance(entry, tuple):
        return type(entry)(*map(double, entry))
    if isinstance(entry, Tensor) and entry.is_floating_point():
        return entry.detach().double().requires_grad_()
    return entry


@pytest.mark.parametrize("wide_first", [True, False])
def test_the_wider_precision_of_two_scores_wins(wide_first: bool) -> None:
    narrow, wide = draw(4, kind="table", dtype=torch.float32), draw(5, kind="network")
    sides = (wide, narrow) if wide_first else (narrow, wide)
    found = overlap_of(*sides)
    expected = dense(sides[0]).double() @ dense(sides[1]).double().T
    assert found.dtype == torch.float64
    inputs = leaves(narrow) + leaves(wide)
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close([found, *slopes([found], inputs)], [expected, *slopes([expected], inputs)], **close)


@every_kind
def test_a_gradient_of_a_gradient_is_refused_and_right_for_the_maps_that_the_error_names(kind: str) -> None:
    a, b = (draw(seed, kind=kind, batch=1, queries=2, keys=3) for seed in (10, 11))
    (slope,) = torch.autograd.grad(overlap_of(a, b).sum(), a["query"], create_graph=True)
    message = 'a gradient of a gradient needs dense maps: the weights of biased_attention(..., backend="reference")'
    with pytest.raises(NotImplementedError, match=f"^{re.escape(message)}"):
        slope.sum().backward()
    smooth = [a["query"], a["key"], b["query"], b["key"]]
    assert torch.autograd.gradgradcheck(lambda *_: attention_overlap(dense(a), dense(b)), smooth, fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own
def test_forward_mode_is_refused() -> None:
    a, b = (draw(seed, kind="network") for seed in (10, 11))
    with pytest.raises(NotImplementedError, match=r"^attention_overlap has no derivative in forward mode"):
        torch.func.jvp(lambda query: overlap_of(a | {"query": query}, b), (a["query"],), (a["query"],))


@every_kind
@pytest.mark.usefixtures("tiny_tile")
def test_the_operators_are_well_registered(kind: str) -> None:
    a, b = (draw(seed, kind=kind, padded=0.3, dropped=0.3) for seed in (11, 12))
    for side in (a, b):  # opcheck compares with ==
        for name in ("query", "query_position"):
            side[name] = side[name].detach().nan_to_num().requires_grad_()
    found = calls(lambda: overlap_of(a, b).square().sum().backward())
    assert len(found) == 2
    for operator, arguments in found:
        torch.library.opcheck(operator, arguments)


@every_kind
def test_overlap_of_scores_compiles_as_one_graph(kind: str) -> None:
    a, b = (draw(seed, kind=kind) for seed in (13, 14))

    def overlap(query: Tensor) -> Tensor:
        return overlap_of(a | {"query": query}, b)

    results = []
    for either in (torch.compile(overlap, fullgraph=True, backend="aot_eager"), overlap):
        found = either(a["query"])
        results.append([found, *torch.autograd.grad(found.sum(), a["query"])])
    torch.testing.assert_close(*results)


@every_kind
def test_memory_is_that_of_a_tile_of_every_bag(kind: str) -> None:
    queries, keys = 200, 200
    one_head = 4 * queries * keys
    sizes = {"kind": kind, "dtype": torch.float32, "groups": 1, "queries": queries, "keys": keys, "width": 4}
    a, b = draw(12, **sizes), draw(13, **sizes)
    with tiles(1 << 14):
        assert allocations(lambda: dense_overlap(a, b).sum().backward())[0] >= 2 * 2 * one_head
        assert allocations(lambda: overlap_of(a, b).sum().backward())[0] < one_head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 3}, "b.key must have shape [B, H, J, E] = [2, 4, 4, E], got [3, 4, 4, 3]"),
        ({"groups": 3}, "b.key must have shape [B, H, J, E] = [2, 4, 4, E], got [2, 6, 4, 3]"),
        ({"keys": 5}, "b.key must have shape [B, H, J, E] = [2, 4, 4, E], got [2, 4, 5, 3]"),
        ({"queries": 6}, "b.query must have shape [B, H, N, E] = [B, H, 5, E], got [2, 4, 6, 3]"),
    ],
)
def test_scores_of_other_shapes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        overlap_of(draw(0), draw(1, **change))


@pytest.mark.parametrize("scores_first", [True, False])
def test_scores_and_tensors_do_not_mix(scores_first: bool) -> None:
    pair = (AttentionScores(**draw(0)), torch.zeros(2, 3))
    a, b = pair if scores_first else pair[::-1]
    message = f"a and b must both be tensors or both scores, got {type(a).__name__} and {type(b).__name__}"
    with pytest.raises(TypeError, match=f"^{message}$"):
        attention_overlap(a, b)
