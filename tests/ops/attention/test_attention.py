"""Biased attention: by hand, against torch, streamed against dense, without keys, in low precision."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from torch.nn import functional as F

from disentangled_mil.ops import AttentionScores, BiasTable, MLPBias, biased_attention
from disentangled_mil.ops.attention import BACKENDS, AttentionOutput
from disentangled_mil.ops.attention._dropout import Dropout
from tests.support.allocations import allocations
from tests.support.attention import draw, leaves, slopes, tiles
from tests.support.operators import calls

few = settings(max_examples=20)
seeds = st.integers(0, 10**6)
kinds = st.sampled_from(["none", "network", "table"])
every_kind = pytest.mark.parametrize("kind", ["none", "network", "table"])
both_backends = pytest.mark.parametrize("backend", ["reference", "streaming"])
exact: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(params=[False, True], ids=["", "piecewise"])
def tiny_tile(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiles of a query or two, and networks with and without a piecewise table."""
    with tiles(20, piecewise=request.param):
        yield


def outputs(attended: AttentionOutput) -> list[Tensor]:
    """Output, mass, and the weights if they were kept."""
    return [part for part in attended if part is not None]


def plain(displacement: Tensor) -> Tensor:
    """A bias that is no network and no table, for two heads."""
    return displacement.sin() * displacement.flip(-1)


def test_two_keys_by_hand() -> None:
    # Logits: 2 * 1 + bias (0 - 1) + log 1 and 2 * 3 + bias (0 - 2) + log 1/2.
    found = biased_attention(
        torch.tensor([[[[2.0]]]]),
        torch.tensor([[[[1.0], [3.0]]]]),
        torch.tensor([[[[10.0], [20.0]]]]),
        torch.tensor([[[0.0, 0.0]]]),
        torch.tensor([[[[1.0, 0.0], [2.0, 5.0]]]]),
        bias=lambda displacement: displacement[..., :1],
        key_logit=torch.tensor([[[1.0, 0.5]]]).log(),
        scale=1.0,
        keep_weights=True,
    )
    first, second = torch.tensor(2.0 - 1).exp(), torch.tensor(6.0 - 2).exp() / 2
    torch.testing.assert_close(found.out.squeeze(), (10 * first + 20 * second) / (first + second))
    torch.testing.assert_close(found.mass.squeeze(), torch.stack([first, second]) / (first + second))
    torch.testing.assert_close(found.weights.squeeze(), found.mass.squeeze())


@given(seed=seeds, queries=st.integers(1, 7), keys=st.integers(1, 6), backend=st.sampled_from(BACKENDS[:3]))
@few
def test_without_bias_it_is_scaled_dot_product_attention(seed: int, queries: int, keys: int, backend: str) -> None:
    given_ = draw(seed, queries=queries, keys=keys) | {"key_logit": None}
    expected = F.scaled_dot_product_attention(given_["query"], given_["key"], given_["value"])
    torch.testing.assert_close(biased_attention(**given_, backend=backend).out, expected)


@given(
    seed=seeds,
    kind=kinds,
    groups=st.integers(1, 3),
    per_group=st.integers(1, 2),
    queries=st.integers(1, 4),
    keys=st.integers(1, 4),
    backend=st.sampled_from(["reference", "streaming"]),
)
@few
def test_bias_and_key_logit_are_those_of_the_head_of_each_group(
    seed: int, kind: str, groups: int, per_group: int, queries: int, keys: int, backend: str
) -> None:
    given_ = draw(seed, kind=kind, groups=groups, per_group=per_group, queries=queries, keys=keys)
    mask = torch.zeros(2, groups * per_group, queries, keys, dtype=torch.float64)
    for b in range(2):
        for h in range(groups * per_group):
            g, inner = divmod(h, per_group)
            for n in range(queries):
                for j in range(keys):
                    u = given_["query_position"][b, n] - given_["key_position"][b, g, j]
                    bias = given_["bias"](u)[inner] if "bias" in given_ else 0
                    mask[b, h, n, j] = bias + given_["key_logit"][b, g, j]
    expected = F.scaled_dot_product_attention(given_["query"], given_["key"], given_["value"], mask.detach())
    torch.testing.assert_close(biased_attention(**given_, backend=backend).out, expected)


@given(
    sizes=st.fixed_dictionaries(
        {
            "seed": seeds,
            "kind": kinds,
            "batch": st.integers(1, 3),
            "groups": st.integers(1, 3),
            "per_group": st.integers(1, 3),
            "queries": st.sampled_from([0, 1, 2, 7, 13]),
            "keys": st.sampled_from([0, 1, 5, 9]),
            "width": st.integers(1, 3),
            "padded": st.sampled_from([0.0, 0.5, 1.0]),
            "dropped": st.sampled_from([0.0, 0.6, 1.0]),
        }
    ),
    without=st.sets(st.sampled_from(["key_logit", "query_mask"])),
    entries=st.sampled_from([1, 20, 50, 10**6]),
    piecewise=st.booleans(),
    kept=st.booleans(),
)
@settings(max_examples=150)
def test_streaming_equals_the_reference_with_gradients(
    sizes: dict[str, Any], without: set[str], entries: int, piecewise: bool, kept: bool
) -> None:
    if "query_mask" in without:
        sizes["padded"] = 0.0
    given_ = draw(**sizes) | dict.fromkeys(without)
    dense = biased_attention(**given_, keep_weights=kept, backend="reference")
    with tiles(entries, piecewise=piecewise):
        streamed = biased_attention(**given_, keep_weights=kept, backend="streaming")
        assert (streamed.weights is not None) == (dense.weights is not None) == kept
        torch.testing.assert_close(outputs(streamed), outputs(dense), **exact)
        inputs = leaves(given_)
        expected = slopes(outputs(dense), inputs, sizes["seed"])
        torch.testing.assert_close(slopes(outputs(streamed), inputs, sizes["seed"]), expected, **exact)
    assert all(gradient.isfinite().all() for gradient in expected)


@given(seed=seeds, kind=kinds, kept=st.booleans(), wanted=st.sets(st.integers(0, 11), min_size=1))
@few
def test_a_gradient_does_not_depend_on_which_others_are_wanted(
    seed: int, kind: str, kept: bool, wanted: set[int]
) -> None:
    given_ = draw(seed, kind=kind, padded=0.3, dropped=0.3)
    inputs = leaves(given_)
    expected = slopes(biased_attention(**given_, backend="reference")[:2], inputs, seed)
    wanted = {index % len(inputs) for index in wanted}
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(index in wanted)
    streamed = biased_attention(**given_, keep_weights=kept, backend="streaming")
    found = slopes(streamed[:2], [inputs[index] for index in wanted], seed)
    torch.testing.assert_close(found, [expected[index] for index in wanted], **exact)


@pytest.mark.parametrize("which", [("out",), ("mass",), ("weights",), ("mass", "weights"), ("out", "weights")])
@every_kind
@pytest.mark.usefixtures("tiny_tile")
def test_gradients_flow_through_any_of_the_outputs(kind: str, which: tuple[str, ...]) -> None:
    given_ = draw(1, kind=kind, padded=0.3, dropped=0.3)
    found, expected = (
        slopes([getattr(attended, name) for name in which], leaves(given_))
        for attended in (
            biased_attention(**given_, keep_weights="weights" in which, backend=backend)
            for backend in ("streaming", "reference")
        )
    )
    torch.testing.assert_close(found, expected, **exact)


@pytest.mark.parametrize("kept", [True, False])
@every_kind
@both_backends
@pytest.mark.usefixtures("tiny_tile")
def test_gradients_are_those_of_finite_differences(backend: str, kind: str, kept: bool) -> None:
    given_ = draw(3, kind=kind, batch=1, queries=3, keys=3, width=2)

    def attend(*_: Tensor) -> list[Tensor]:
        return outputs(biased_attention(**given_, keep_weights=kept, backend=backend))

    assert torch.autograd.gradcheck(attend, leaves(given_), fast_mode=True)


@every_kind
@both_backends
def test_the_gradient_at_a_displacement_of_zero_is_the_slope_there(kind: str, backend: str) -> None:
    given_ = draw(4, kind=kind, keys=5, queries=5, groups=1)
    # Every query lies where one of the keys does.
    given_["key_position"] = given_["query_position"].detach()[:, None].clone()
    assert torch.autograd.gradcheck(
        lambda _: biased_attention(**given_, backend=backend).out, given_["query_position"], fast_mode=True
    )


@every_kind
@both_backends
@pytest.mark.usefixtures("tiny_tile")
def test_queries_without_a_key_get_zeros_and_finite_gradients(backend: str, kind: str) -> None:
    given_ = draw(0, kind=kind)
    with torch.no_grad():
        given_["key_logit"][0, 1] = -torch.inf  # one group, whose heads are 2 and 3
        given_["key_logit"][1, :, 0] = -torch.inf  # one key
    out, mass, weights = biased_attention(**given_, keep_weights=True, backend=backend)
    assert (out[0, 2:] == 0).all()
    assert (mass[0, 2:] == 0).all()
    assert (out[0, :2] != 0).all()
    assert (out[1] != 0).all()
    assert (weights[1, :, :, 0] == 0).all()
    query, key, _, _, _, logit, *_ = found = slopes([out, mass, weights], leaves(given_))
    assert (query[0, 2:] == 0).all()
    assert (key[0, 2:] == 0).all()
    assert (key[1, :, 0] == 0).all()
    assert (logit[0, 1] == 0).all()
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("missing", ["keys", "queries", "both"])
@every_kind
@both_backends
@pytest.mark.usefixtures("tiny_tile")
def test_a_bag_without_keys_or_queries_gets_zeros_and_no_gradient(backend: str, kind: str, missing: str) -> None:
    given_ = draw(4, kind=kind)
    with torch.no_grad():
        if missing != "queries":
            given_["key_logit"][0] = -torch.inf
        if missing != "keys":
            given_["query_mask"][0] = False
            given_["query"][0] = given_["query_position"][0] = torch.nan
    attended = biased_attention(**given_, keep_weights=True, backend=backend)
    assert all((part[0] == 0).all() for part in attended)
    alone = given_ | {
        name: entry.detach()[1:].requires_grad_(entry.requires_grad)
        for name, entry in given_.items()
        if isinstance(entry, Tensor)
    }
    expected = biased_attention(**alone, keep_weights=True, backend=backend)
    torch.testing.assert_close([part[1:] for part in attended], list(expected), **exact)
    found = slopes([part.sum() for part in attended], leaves(given_))
    single = slopes([part.sum() for part in expected], leaves(alone))
    per_bag = len([entry for entry in alone.values() if isinstance(entry, Tensor) and entry.requires_grad])
    for gradient in found[:per_bag]:
        assert (gradient[0] == 0).all()
    torch.testing.assert_close([gradient[1:] for gradient in found[:per_bag]] + found[per_bag:], single, **exact)


@every_kind
@both_backends
@pytest.mark.usefixtures("tiny_tile")
def test_what_padding_holds_changes_nothing(backend: str, kind: str) -> None:
    poisoned = draw(2, kind=kind, queries=9, padded=0.5, dropped=0.3)
    mask = poisoned["query_mask"]
    clean = poisoned | {
        name: poisoned[name].detach().nan_to_num(0.5).requires_grad_() for name in ("query", "query_position")
    }
    results = []
    for given_ in (poisoned, clean):
        attended = biased_attention(**given_, keep_weights=True, backend=backend)
        results.append([*attended, *slopes(attended, leaves(given_))])
    for dirty, tidy in zip(*results, strict=True):
        assert torch.equal(dirty, tidy)
    out, _, weights, into_query, _, _, into_position, *_ = results[0]
    for zeros in (out, weights, into_query):
        assert (zeros.transpose(1, 2)[~mask] == 0).all()
    assert (into_position[~mask] == 0).all()


@given(seed=seeds, kind=kinds, keys=st.integers(1, 20), dropped=st.sampled_from([0.0, 0.5, 1.0]))
@few
def test_rows_of_the_weights_sum_to_one_or_to_nothing_and_make_the_output(
    seed: int, kind: str, keys: int, dropped: float
) -> None:
    given_ = draw(seed, kind=kind, keys=keys, padded=0.3, dropped=dropped)
    attended = biased_attention(**given_, keep_weights=True)
    value = given_.pop("value")
    weights = AttentionScores(**given_).weights()
    left = (given_["key_logit"] > -torch.inf).repeat_interleave(2, dim=1)[:, :, None]
    real = given_["query_mask"][:, None, :, None]
    assert (weights[~(left & real)] == 0).all()
    torch.testing.assert_close(weights.sum(-1), (left & real).any(-1).double())
    torch.testing.assert_close(weights @ value, attended.out)
    torch.testing.assert_close(weights.sum(2), attended.mass)
    torch.testing.assert_close(attended.weights, weights)


@given(seed=seeds, kind=kinds, keys=st.integers(2, 6))
@few
def test_the_order_of_the_keys_does_not_matter_and_dropped_keys_are_not_there(seed: int, kind: str, keys: int) -> None:
    given_ = draw(seed, kind=kind, keys=keys)
    order = torch.randperm(keys, generator=torch.Generator().manual_seed(seed))
    of_keys = ("key", "value", "key_position", "key_logit")
    expected = biased_attention(**given_)
    shuffled = biased_attention(**given_ | {name: given_[name][:, :, order] for name in of_keys})
    torch.testing.assert_close(shuffled.out, expected.out)
    torch.testing.assert_close(shuffled.mass, expected.mass[:, :, order])
    fewer = biased_attention(**given_ | {name: given_[name][:, :, 1:] for name in of_keys})
    closed = given_["key_logit"].detach().clone()
    closed[:, :, 0] = -torch.inf
    without = biased_attention(**given_ | {"key_logit": closed})
    torch.testing.assert_close(without.out, fewer.out)
    torch.testing.assert_close(without.mass, F.pad(fewer.mass, (1, 0)))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@every_kind
@both_backends
def test_positions_that_are_not_finite_harm_nobody_else_and_are_seen(backend: str, kind: str, broken: float) -> None:
    given_ = draw(14, kind=kind, queries=9)
    with torch.no_grad():
        given_["query_position"][0, 3] = broken
    out = biased_attention(**given_, backend=backend).out
    assert out[1].isfinite().all()
    assert out[0, :, :3].isfinite().all()
    if broken != broken and kind != "none":
        assert out[0, :, 3].isnan().all()
    slopes([out], leaves(given_))  # and does not end the process
    with torch.no_grad():
        given_["key_position"][0, 0, 1] = broken
    out = biased_attention(**given_, backend=backend).out
    assert out[1].isfinite().all()
    slopes([out], leaves(given_))


@every_kind
@both_backends
def test_a_key_logit_that_is_no_number_is_seen(backend: str, kind: str) -> None:
    given_ = draw(15, kind=kind)
    with torch.no_grad():
        given_["key_logit"][0, 0, 1] = torch.nan
        given_["key_logit"][1, :, 1] = torch.nan
    out = biased_attention(**given_, backend=backend).out
    assert out[0, :2].isnan().all()
    assert out[0, 2:].isfinite().all()
    assert out[1].isnan().all()


@both_backends
def test_constant_key_logits_change_nothing(backend: str) -> None:
    given_ = draw(5)
    shifted = given_ | {"key_logit": given_["key_logit"] + 700}
    torch.testing.assert_close(
        biased_attention(**shifted, backend=backend).out, biased_attention(**given_, backend=backend).out
    )


@every_kind
@both_backends
def test_the_same_input_gives_the_same_bits(backend: str, kind: str) -> None:
    given_ = draw(7, kind=kind, queries=40, keys=30, dtype=torch.float32)
    results = []
    for _ in range(2):
        attended = biased_attention(**given_, backend=backend)
        results.append([*attended[:2], *slopes(attended[:2], leaves(given_))])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["query_position", "key_position"])
def test_an_infinite_coordinate_changes_no_other(name: str) -> None:
    given_ = draw(1, kind="network", queries=9)
    with torch.no_grad():
        given_["bias"].w1.abs_().mul_(1 if name == "query_position" else -1)  # the first layer ends in zeros there
        given_[name][..., 0, 1] = -torch.inf
    dense, streamed = (biased_attention(**given_, backend=backend) for backend in ("reference", "streaming"))
    assert dense.out.isfinite().all()
    torch.testing.assert_close(streamed, dense, **exact)


@pytest.mark.parametrize("innermost", [0, 1, 2])
@pytest.mark.parametrize("missing", [0.0, 0.3])
@every_kind
@pytest.mark.usefixtures("tiny_tile")
def test_non_contiguous_and_expanded_inputs_are_read_alike(kind: str, missing: float, innermost: int) -> None:
    given_ = draw(1, kind=kind, padded=missing, dropped=missing)
    given_ |= {"query": given_["query"].detach()[:, :, :1].nan_to_num().requires_grad_()}

    def strided(entry: Any) -> Any:
        if not isinstance(entry, Tensor):
            return type(entry)(*map(strided, entry)) if isinstance(entry, MLPBias) else entry
        dim = innermost % entry.ndim
        return entry.movedim(dim, -1).contiguous().movedim(-1, dim)

    given_ |= {"keep_weights": True}
    dense = biased_attention(**given_ | {"query": given_["query"].expand(-1, -1, 5, -1)}, backend="reference")
    others = {name: strided(entry) for name, entry in given_.items()}
    assert not others["key"].is_contiguous()
    others["query"] = others["query"].expand(-1, -1, 5, -1)
    streamed = biased_attention(**others, backend="streaming")
    torch.testing.assert_close(streamed, dense, **exact)
    torch.testing.assert_close(slopes(streamed, leaves(given_)), slopes(dense, leaves(given_)), **exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_kind
@pytest.mark.usefixtures("tiny_tile")
def test_low_precision_is_as_near_as_its_type_allows(kind: str, dtype: torch.dtype) -> None:
    narrow = draw(2, kind=kind, queries=33, keys=9, padded=0.2, dropped=0.2, dtype=dtype)
    wide = {name: _double(entry) for name, entry in narrow.items()}
    exact_, eager, fast = (
        (attended := biased_attention(**given_, keep_weights=True, backend=backend), slopes(attended, leaves(given_)))
        for given_, backend in ((wide, "reference"), (narrow, "reference"), (narrow, "streaming"))
    )
    assert fast[0].out.dtype == dtype
    assert fast[0].mass.dtype == fast[0].weights.dtype == torch.float32
    for truth, slow, quick in zip(*((*attended, *found) for attended, found in (exact_, eager, fast)), strict=True):
        # Some gradients are zero only because large parts cancel, which shows in float32.
        tiny = (64 if dtype == torch.float32 else 16) * torch.finfo(dtype).eps * (1 + truth.abs().max())
        allowed = 2 * (slow.double() - truth).abs().max() + tiny
        assert (quick.double() - truth).abs().max() <= allowed


def _double(entry: Any) -> Any:
    if isinstance(entry, tuple):
        return type(entry)(*map(_double, entry))
    if isinstance(entry, Tensor) and entry.is_floating_point():
        return entry.detach().double().requires_grad_()
    return entry


@both_backends
def test_products_of_large_float16_queries_and_keys_do_not_overflow(backend: str) -> None:
    large = torch.full((1, 1, 2, 64), 40.0, dtype=torch.float16)  # 64 * 40 * 40 is beyond float16
    position = torch.zeros(1, 2, 2)
    value = torch.tensor([1.0, 3.0], dtype=torch.float16).view(1, 1, 2, 1).expand(-1, -1, -1, 64)
    found = biased_attention(large, large, value, position, position[None], backend=backend)
    assert (found.out == 2).all()


@every_kind
@both_backends
def test_autocast_to_bfloat16_keeps_the_weights_in_float32(backend: str, kind: str) -> None:
    wide = draw(4, kind=kind, dtype=torch.float32) | {"keep_weights": True}
    expected = biased_attention(**wide, backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        found = biased_attention(**wide, backend=backend)
        gradients = slopes(found, leaves(wide))
    assert found.mass.dtype == found.weights.dtype == torch.float32
    torch.testing.assert_close(found.out.float(), expected.out, rtol=0, atol=0.1)
    torch.testing.assert_close(found.mass.sum(-1), torch.full((2, 4), 5.0))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.usefixtures("tiny_tile")
def test_streamed_dropout_drops_the_same_weights_in_its_backward_pass(kept: bool) -> None:
    given_ = draw(6, kind="network", queries=4, padded=0.3, dropped=0.3) | {"keep_weights": kept}

    def attend(*_: Tensor) -> Tensor:
        torch.manual_seed(0)
        return biased_attention(**given_, dropout=0.5, backend="streaming").out

    inputs = [leaf for leaf in leaves(given_) if leaf is not given_["key_logit"]]
    assert torch.autograd.gradcheck(lambda *_: attend(), inputs, fast_mode=True)


@pytest.mark.usefixtures("tiny_tile")
@both_backends
def test_dropout_leaves_mass_and_weights_and_depends_on_the_seed_of_torch(backend: str) -> None:
    given_ = draw(6, kind="table", queries=9, padded=0.3) | {"keep_weights": True}
    plain_ = biased_attention(**given_, backend=backend)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(biased_attention(**given_, dropout=0.5, backend=backend))
        assert torch.equal(found[-1].mass, plain_.mass)
        assert torch.equal(found[-1].weights, plain_.weights)
    assert torch.equal(found[0].out, found[1].out)
    assert not torch.equal(found[0].out, found[2].out)
    assert not torch.equal(found[0].out, plain_.out)
    assert torch.equal(biased_attention(**given_, dropout=0.0, backend=backend).out, plain_.out)


@both_backends
def test_bags_and_heads_drop_weights_of_their_own(backend: str) -> None:
    given_ = {name: entry[:1].expand(2, *entry.shape[1:]) for name, entry in draw(6, queries=9).items()}
    given_ = {
        name: entry if name in ("query_position", "query_mask") else entry[:, :1].expand_as(entry)
        for name, entry in given_.items()
    }
    out = biased_attention(**given_, dropout=0.5, backend=backend).out.flatten(0, 1)
    assert all(not torch.equal(a, b) for i, a in enumerate(out) for b in out[:i])


@both_backends
def test_dropout_keeps_the_mean_and_full_dropout_leaves_nothing(backend: str) -> None:
    given_ = {name: entry.detach()[:1] for name, entry in draw(7, queries=1, keys=8).items()}
    names = ("query_position", "query_mask")
    many = given_ | {name: given_[name].expand(-1, 4000, *given_[name].shape[2:]) for name in names}
    many["query"] = given_["query"].expand(-1, -1, 4000, -1)
    torch.manual_seed(0)
    mean = biased_attention(**many, dropout=0.3, backend=backend).out.mean(2)
    torch.testing.assert_close(mean, biased_attention(**given_).out.squeeze(2), rtol=0, atol=0.05)
    trained = draw(7)
    nothing = biased_attention(**trained, dropout=1.0, backend=backend).out
    assert (nothing == 0).all()
    assert all((slope == 0).all() for slope in slopes([nothing], leaves(trained)))


def test_a_share_of_the_weights_is_dropped_and_the_others_grow() -> None:
    given_ = draw(7, queries=60, keys=50, width=50)
    given_["value"] = torch.eye(50, dtype=torch.float64).expand(2, 4, -1, -1)  # the output is the weights
    torch.manual_seed(0)
    attended = biased_attention(**given_, dropout=0.25, backend="streaming")
    weights = biased_attention(**given_, keep_weights=True, backend="reference").weights
    dropped = attended.out == 0
    assert dropped.double().mean() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(attended.out[~dropped], weights[~dropped] / 0.75)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_neighbors_are_dropped_independently_of_each_other(probability: float) -> None:
    weights = torch.ones(3, 4001, 9)  # no multiple of four, which is the number of weights of a 64-bit draw
    drop = Dropout(probability, torch.tensor(0), 0, weights.device)
    stays = torch.cat([drop.draw(weights).flatten() for _ in range(2)]).long()
    for places in ([0, 1, 2, 3], [0, 4, 8, 12], [0, 1, 9, 10]):
        pattern = sum(stays[place : len(stays) - 12 + place] << bit for bit, place in enumerate(places))
        count = torch.bincount(pattern[:: places[-1] + 1], minlength=16)
        kept = torch.tensor([bin(number).count("1") for number in range(16)], dtype=torch.float64)
        share = (1 - probability) ** kept * probability ** (4 - kept)
        assert chisquare(count, share / share.sum() * count.sum()).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.1, 1 / 3, 1e-6, 1 - 1e-6])
def test_the_scale_fits_the_probability_to_which_16_bits_round(probability: float) -> None:
    drop = Dropout(probability, torch.tensor(0), 0, torch.device("cpu"))
    share = round(probability * 65536) / 65536
    assert drop.scale * (1 - share) == pytest.approx(float(share < 1))
    assert drop.draw(torch.ones(1 << 20)).mean() == pytest.approx(1 - share, abs=0.002)


def test_any_other_function_is_taken_by_the_reference_alone() -> None:
    given_ = draw(8) | {"bias": plain}
    automatic, dense = (biased_attention(**given_, backend=backend) for backend in ("auto", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(outputs(automatic), outputs(dense), strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in slopes(outputs(automatic), leaves(given_)))
    message = "bias must be an MLPBias, a BiasTable or None for backend='streaming', got function"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        biased_attention(**given_, backend="streaming")


@pytest.mark.parametrize(("backend", "operators"), [("reference", 0), ("streaming", 1)])
@every_kind
def test_an_explicit_backend_is_the_one_that_runs(kind: str, backend: str, operators: int) -> None:
    given_ = draw(9, kind=kind)
    assert len(calls(lambda: biased_attention(**given_, backend=backend))) == operators


@every_kind
def test_small_bags_without_a_bias_are_one_dense_product_and_all_others_are_streamed(kind: str) -> None:
    given_ = draw(9, kind=kind)
    assert len(calls(lambda: biased_attention(**given_))) == (0 if kind == "none" else 1)
    large = torch.zeros(2, 2, 300, 4), torch.zeros(2, 2, 300, 4), torch.zeros(2, 2, 300, 4)
    assert len(calls(lambda: biased_attention(*large, torch.zeros(2, 300, 2), torch.zeros(2, 1, 300, 2)))) == 1


@pytest.mark.parametrize("of", ["out", "mass", "weights"])
def test_the_gradient_that_arrives_has_no_gradient_either(of: str) -> None:
    given_ = draw(10, kind="network")
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    attended = biased_attention(**given_, backend="streaming", keep_weights=True)
    (slope,) = torch.autograd.grad(factor * getattr(attended, of).square().sum(), given_["query"], create_graph=True)
    with pytest.raises(NotImplementedError, match='a gradient of a gradient needs backend="reference"'):
        slope.sum().backward(inputs=[factor])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own
def test_forward_mode_is_refused_by_streaming_and_right_in_the_reference() -> None:
    given_ = {name: value.detach() for name, value in draw(10).items() if isinstance(value, Tensor)}
    value = given_.pop("value")

    def attend(value: Tensor, backend: str) -> Tensor:
        return biased_attention(**given_, value=value, backend=backend).out

    for derivative in (torch.func.jvp, lambda f, *arguments: torch.func.jacfwd(f)(*arguments[0])):
        with pytest.raises(NotImplementedError, match=r"^biased_attention has no derivative in forward mode: take it"):
            derivative(lambda value: attend(value, "streaming"), (value,), (value,))
    found = torch.func.jvp(lambda value: attend(value, "reference"), (value,), (value,))[1]
    torch.testing.assert_close(found, attend(value, "reference"))


@every_kind
def test_a_gradient_of_a_gradient_is_refused_by_streaming_and_right_in_the_reference(kind: str) -> None:
    given_ = draw(10, kind=kind, batch=1, queries=2, keys=3)
    (slope,) = torch.autograd.grad(
        biased_attention(**given_, backend="streaming").out.square().sum(), given_["query"], create_graph=True
    )
    with pytest.raises(NotImplementedError, match='a gradient of a gradient needs backend="reference"'):
        slope.sum().backward()
    smooth = [given_[name] for name in ("query", "key", "value", "key_logit")]
    assert torch.autograd.gradgradcheck(
        lambda *_: biased_attention(**given_, backend="reference").out, smooth, fast_mode=True
    )


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, False), (0.3, True)])
@pytest.mark.parametrize(
    ("kind", "piecewise"), [("none", False), ("table", False), ("network", False), ("network", True)]
)
def test_the_operators_are_well_registered(kind: str, piecewise: bool, dropout: float, kept: bool) -> None:
    given_ = draw(11, kind=kind, padded=0.3, dropped=0.3)
    given_["query"] = given_["query"].detach().nan_to_num().requires_grad_()  # opcheck compares with ==
    given_["query_position"] = given_["query_position"].detach().nan_to_num().requires_grad_()

    def train() -> None:
        attended = biased_attention(**given_, dropout=dropout, keep_weights=kept, backend="streaming")
        (attended.out.sum() + attended.mass.square().sum()).backward()

    with tiles(20, piecewise=piecewise):
        found = calls(train)
        assert len(found) == 2
        for operator, arguments in found:
            torch.library.opcheck(operator, arguments)


@every_kind
def test_memory_is_that_of_a_tile_and_of_the_weights_if_they_are_kept(kind: str) -> None:
    batch, heads, queries, keys = 2, 2, 200, 100
    one_head = 4 * queries * keys
    given_ = draw(12, kind=kind, dtype=torch.float32, batch=batch, groups=1, queries=queries, keys=keys, width=4)

    def train(backend: str, kept: bool = False) -> list[int]:
        def step() -> None:
            attended = biased_attention(**given_, keep_weights=kept, backend=backend)
            (attended.out.sum() + attended.mass.square().sum()).backward()

        return allocations(step)

    with tiles(1024):
        assert train("reference")[0] >= batch * heads * one_head
        assert train("streaming")[0] < one_head / 2
        assert [size for size in train("streaming", kept=True) if size > one_head / 2] == [batch * heads * one_head]


@every_kind
def test_weights_that_are_asked_for_later_are_those_that_are_kept(kind: str) -> None:
    given_ = draw(13, kind=kind, queries=9, padded=0.3, dropped=0.3)
    kept = biased_attention(**given_, keep_weights=True, backend="reference").weights
    del given_["value"]
    later = AttentionScores(**given_).weights()
    torch.testing.assert_close(later, kept, **exact)
    torch.testing.assert_close(slopes([later], leaves(given_)), slopes([kept], leaves(given_)), **exact)


NETWORK = MLPBias(*(torch.zeros(*shape) for shape in [(4, 2), (4,), (4, 4), (4,), (2, 4), (2,)]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 4, 5)}, "query must have shape [B, H, N, D], got [2, 4, 5]"),
        ({"key": torch.zeros(2, 3, 3, 3)}, "key must have shape [B, H, J, D] = [2, 4, J, 3], got [2, 3, 3, 3]"),
        (
            {"value": torch.zeros(2, 4, 2, 3)},
            "value must have shape [B, H, J, D] = [2, 4, 4, 3], got [2, 4, 2, 3]",
        ),
        (
            {"query_position": torch.zeros(2, 5, 3)},
            "query_position must have shape [B, N, 2] = [2, 5, 2], got [2, 5, 3]",
        ),
        (
            {"key_position": torch.zeros(2, 2, 5, 2)},
            "key_position must have shape [B, G, J, 2] = [2, G, 4, 2], got [2, 2, 5, 2]",
        ),
        (
            {"key_position": torch.zeros(2, 3, 4, 2)},
            "key_position must have a number of groups G that divides H = 4, got 3",
        ),
        (
            {"key_position": torch.zeros(2, 0, 4, 2)},
            "key_position must have a number of groups G that divides H = 4, got 0",
        ),
        (
            {"key_logit": torch.zeros(2, 1, 4)},
            "key_logit must have shape [B, G, J] = [2, 2, 4], got [2, 1, 4]",
        ),
        (
            {"query_mask": torch.ones(2, 4, dtype=torch.bool)},
            "query_mask must have shape [B, N] = [2, 5], got [2, 4]",
        ),
        ({"bias": NETWORK._replace(w1=torch.zeros(4, 3))}, "bias.w1 must have shape [F, 2], got [4, 3]"),
        ({"bias": NETWORK._replace(b1=torch.zeros(3))}, "bias.b1 must have shape [F] = [4], got [3]"),
        ({"bias": NETWORK._replace(w2=torch.zeros(4, 5))}, "bias.w2 must have shape [F, F] = [4, 4], got [4, 5]"),
        ({"bias": NETWORK._replace(b2=torch.zeros(5))}, "bias.b2 must have shape [F] = [4], got [5]"),
        ({"bias": NETWORK._replace(w3=torch.zeros(1, 4))}, "bias.w3 must have shape [I, F] = [2, 4], got [1, 4]"),
        ({"bias": NETWORK._replace(b3=torch.zeros(4))}, "bias.b3 must have shape [I] = [2], got [4]"),
        (
            {"bias": BiasTable(torch.zeros(1, 5, 5))},
            "bias.values must have shape [I, R, S] = [2, R, S], got [1, 5, 5]",
        ),
        (
            {"bias": BiasTable(torch.zeros(2, 5, 4))},
            "bias.values must have shape [I, R, R] with R >= 2, got [2, 5, 4]",
        ),
        (
            {"bias": BiasTable(torch.zeros(2, 1, 1))},
            "bias.values must have shape [I, R, R] with R >= 2, got [2, 1, 1]",
        ),
        ({"bias": BiasTable(torch.zeros(2, 5, 5), 0.0)}, "bias.reach must lie in (0, 1000000.0], got 0.0"),
        ({"backend": "cuda"}, f"backend must be one of {', '.join(map(repr, BACKENDS))}, got 'cuda'"),
        ({"dropout": 1.5}, "dropout must lie in [0, 1], got 1.5"),
        ({"dropout": -0.1}, "dropout must lie in [0, 1], got -0.1"),
    ],
)
def test_shapes_and_options_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        biased_attention(**draw(0, dtype=torch.float32) | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"query": torch.zeros(2, 4, 5, 3, dtype=torch.int64)},
            "query must be a floating-point tensor, got torch.int64",
        ),
        ({"query_mask": torch.ones(2, 5)}, "query_mask must be a bool tensor (True = real token), got torch.float32"),
        (
            {"bias": BiasTable(torch.zeros(2, 5, 5, dtype=torch.int64))},
            "bias.values must be a floating-point tensor, got torch.int64",
        ),
        ({"dropout": "0.1"}, "dropout must be a number, got str"),
    ],
)
def test_types_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        biased_attention(**draw(0, dtype=torch.float32) | change)
