"""Biased attention: by hand, against torch, streamed against dense, without keys, in low precision."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from disentangled_mil.ops.biased_attention import biased_attention, biased_attention_weights

few = settings(max_examples=25)
seeds = st.integers(0, 10**6)


@pytest.fixture
def tiny_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of a row or two."""
    use_tile(monkeypatch, 12)


def use_tile(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    for module in ("", "._streaming"):
        monkeypatch.setattr(import_module(f"disentangled_mil.ops.biased_attention{module}"), "TILE", entries)


def inputs(
    seed: int,
    *,
    batch: int = 2,
    heads: int = 4,
    groups: int = 2,
    queries: int = 5,
    keys: int = 3,
    dropped: float = 0.3,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Arguments of the op; a share of the keys is taken out, in some bags all of them."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=source).to(dtype).requires_grad_()

    logit = torch.rand(batch, groups, keys, dtype=torch.float64, generator=source)
    out = torch.rand(batch, groups, keys, generator=source) < dropped
    return {
        "query": draw(batch, heads, queries, 3),
        "key": draw(batch, heads, keys, 3),
        "value": draw(batch, heads, keys, 3),
        "query_position": draw(batch, queries, 2),
        "key_position": draw(batch, groups, keys, 2),
        "key_logit": logit.log().masked_fill(out, -torch.inf).to(dtype).requires_grad_(),
    }


def small_bias(heads_per_group: int, seed: int = 0) -> torch.nn.Module:
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    bias = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, heads_per_group)).double()
    torch.random.set_rng_state(generator)
    return bias


def gradients(out: Tensor, arguments: dict[str, Any], bias: torch.nn.Module | None) -> list[Tensor]:
    leaves = [a for a in arguments.values() if a is not None]
    leaves += [] if bias is None else list(bias.parameters())
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    found = torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


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
    )
    first, second = torch.tensor(2.0 - 1).exp(), torch.tensor(6.0 - 2).exp() / 2
    torch.testing.assert_close(found.squeeze(), (10 * first + 20 * second) / (first + second))


@given(
    seed=seeds, queries=st.integers(1, 7), keys=st.integers(1, 6), backend=st.sampled_from(["reference", "streaming"])
)
@few
def test_without_bias_it_is_scaled_dot_product_attention(seed: int, queries: int, keys: int, backend: str) -> None:
    given_ = inputs(seed, queries=queries, keys=keys) | {"key_logit": None}
    expected = F.scaled_dot_product_attention(given_["query"], given_["key"], given_["value"])
    torch.testing.assert_close(biased_attention(**given_, backend=backend), expected)


@given(seed=seeds, groups=st.sampled_from([1, 2, 4]), queries=st.integers(1, 6), keys=st.integers(1, 5))
@few
def test_bias_and_key_logit_are_those_of_the_head_of_each_group(
    seed: int, groups: int, queries: int, keys: int
) -> None:
    given_ = inputs(seed, groups=groups, queries=queries, keys=keys, dropped=0.0)
    bias = small_bias(4 // groups)
    mask = torch.empty(2, 4, queries, keys, dtype=torch.float64)
    for b in range(2):
        for h in range(4):
            g, inner = divmod(h, 4 // groups)
            for n in range(queries):
                for j in range(keys):
                    u = given_["query_position"][b, n] - given_["key_position"][b, g, j]
                    mask[b, h, n, j] = bias(u)[inner] + given_["key_logit"][b, g, j]
    expected = F.scaled_dot_product_attention(given_["query"], given_["key"], given_["value"], mask.detach())
    torch.testing.assert_close(biased_attention(**given_, bias=bias), expected)


@given(
    seed=seeds,
    batch=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    queries=st.sampled_from([0, 1, 2, 7, 13]),
    keys=st.sampled_from([0, 1, 5]),
    tile=st.sampled_from([1, 12, 50, 10**6]),
    biased=st.booleans(),
    logit=st.booleans(),
)
@settings(max_examples=50)
def test_streaming_equals_the_reference_with_gradients(
    seed: int, batch: int, groups: int, queries: int, keys: int, tile: int, biased: bool, logit: bool
) -> None:
    given_ = inputs(seed, batch=batch, groups=groups, queries=queries, keys=keys, dropped=0.5)
    given_ |= {} if logit else {"key_logit": None}
    bias = small_bias(4 // groups) if biased else None
    dense = biased_attention(**given_, bias=bias, backend="reference")
    with pytest.MonkeyPatch.context() as patch:
        use_tile(patch, tile)
        streamed = biased_attention(**given_, bias=bias, backend="streaming")
        automatic = biased_attention(**given_, bias=bias)
        exact = {"rtol": 0, "atol": 1e-12}
        torch.testing.assert_close(streamed, dense, **exact)
        torch.testing.assert_close(automatic, dense, **exact)
        torch.testing.assert_close(gradients(streamed, given_, bias), gradients(dense, given_, bias), **exact)


@pytest.mark.usefixtures("tiny_tile")
@pytest.mark.parametrize("backend", ["reference", "streaming"])
def test_gradcheck(backend: str) -> None:
    given_ = inputs(3, batch=1, heads=2, groups=2, queries=3, keys=3)
    bias = small_bias(1)
    names = list(given_)

    def attend(*tensors: Tensor) -> Tensor:
        return biased_attention(**dict(zip(names, tensors, strict=True)), bias=bias, backend=backend)

    tensors = [t for name, t in given_.items() if name != "key_logit"]
    logit = torch.tensor([[[0.1, 0.2, 0.3], [0.0, -0.5, -1.0]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attend, (*tensors, logit))


@pytest.mark.usefixtures("tiny_tile")
@pytest.mark.parametrize("backend", ["reference", "streaming"])
def test_queries_without_a_key_get_zeros_and_finite_gradients(backend: str) -> None:
    given_ = inputs(0, dropped=0.0)
    logit = torch.zeros(2, 2, 3, dtype=torch.float64)
    logit[0, 1] = -torch.inf
    given_["key_logit"] = logit.requires_grad_()
    bias = small_bias(2)
    out = biased_attention(**given_, bias=bias, backend=backend)
    assert (out[0, 2:] == 0).all()
    assert (out[0, :2] != 0).all()
    assert (out[1] != 0).all()
    found = gradients(out, given_, bias)
    assert all(g.isfinite().all() for g in found)
    assert (found[1][0, 2:] == 0).all()
    assert (found[5][0, 1] == 0).all()


@given(seed=seeds, keys=st.integers(1, 6), dropped=st.sampled_from([0.0, 0.5, 1.0]))
@few
def test_rows_of_the_weights_sum_to_one_or_to_nothing_and_make_the_output(seed: int, keys: int, dropped: float) -> None:
    given_ = inputs(seed, keys=keys, dropped=dropped)
    bias = small_bias(2)
    value = given_.pop("value")
    weights = biased_attention_weights(**given_, bias=bias)
    left = (given_["key_logit"] > -torch.inf).repeat_interleave(2, dim=1)[:, :, None]
    assert (weights[(~left).expand_as(weights)] == 0).all()
    torch.testing.assert_close(weights.sum(-1), left.any(-1).double().expand(weights.shape[:3]))
    out = biased_attention(given_.pop("query"), given_.pop("key"), value, **given_, bias=bias)
    torch.testing.assert_close(weights @ value, out)


@given(seed=seeds, keys=st.integers(2, 6))
@few
def test_the_order_of_the_keys_does_not_matter_and_dropped_keys_are_not_there(seed: int, keys: int) -> None:
    given_ = inputs(seed, keys=keys, groups=1, dropped=0.0)
    order = torch.randperm(keys, generator=torch.Generator().manual_seed(seed))
    bias = small_bias(4)
    shuffled = given_ | {name: given_[name][:, :, order] for name in ("key", "value", "key_position", "key_logit")}
    torch.testing.assert_close(biased_attention(**shuffled, bias=bias), biased_attention(**given_, bias=bias))
    fewer = given_ | {name: given_[name][:, :, 1:] for name in ("key", "value", "key_position", "key_logit")}
    closed = given_["key_logit"].detach().clone()
    closed[:, :, 0] = -torch.inf
    torch.testing.assert_close(
        biased_attention(**(given_ | {"key_logit": closed}), bias=bias), biased_attention(**fewer, bias=bias)
    )


def test_constant_key_logits_change_nothing() -> None:
    given_ = inputs(5, dropped=0.0)
    shifted = given_ | {"key_logit": given_["key_logit"] + 700}
    torch.testing.assert_close(biased_attention(**shifted), biased_attention(**given_))


def test_non_contiguous_inputs_are_read_alike() -> None:
    given_ = inputs(1)
    strided = {name: t.detach().transpose(-1, -2).contiguous().transpose(-1, -2) for name, t in given_.items()}
    assert not strided["query"].is_contiguous()
    torch.testing.assert_close(
        biased_attention(**strided, backend="streaming"), biased_attention(**given_, backend="reference")
    )


@pytest.mark.usefixtures("tiny_tile")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backend", ["reference", "streaming"])
def test_low_precision_is_as_near_as_its_type_allows(backend: str, dtype: torch.dtype) -> None:
    narrow = inputs(2, queries=63, keys=9, dtype=dtype)
    exact = {name: t.detach().double() for name, t in narrow.items()}
    found = biased_attention(**narrow, backend=backend)
    assert found.dtype == dtype
    error = (found.double() - biased_attention(**exact)).abs().max()
    assert error <= 8 * torch.finfo(dtype).eps
    without_value = {name: t for name, t in narrow.items() if name != "value"}
    assert biased_attention_weights(**without_value).dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", "streaming"])
def test_products_of_large_float16_queries_and_keys_do_not_overflow(backend: str) -> None:
    large = torch.full((1, 1, 2, 64), 40.0, dtype=torch.float16)  # 64 * 40 * 40 is beyond float16
    position = torch.zeros(1, 2, 2)
    value = torch.tensor([1.0, 3.0], dtype=torch.float16).view(1, 1, 2, 1).expand(-1, -1, -1, 64)
    found = biased_attention(large, large, value, position, position[None], backend=backend)
    assert (found == 2).all()


@pytest.mark.parametrize("backend", ["reference", "streaming"])
def test_autocast_to_bfloat16_keeps_the_weights_in_float32(backend: str) -> None:
    wide = inputs(4, dtype=torch.float32)
    bias = small_bias(2).float()
    exact = biased_attention(**wide, bias=bias, backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        found = biased_attention(**wide, bias=bias, backend=backend)
        found.float().sum().backward()
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.05)
    assert wide["query"].grad is not None
    assert wide["query"].grad.isfinite().all()


@pytest.mark.usefixtures("tiny_tile")
def test_streamed_dropout_drops_the_same_weights_in_its_backward_pass() -> None:
    given_ = inputs(6, queries=9, dropped=0.0)
    value = given_["value"]
    torch.manual_seed(0)
    out = biased_attention(**given_, dropout=0.5, backend="streaming")
    (slope,) = torch.autograd.grad(out.sum(), value)
    # The output is linear in the values, so the gradient tells the sum back.
    torch.testing.assert_close((slope * value).sum(), out.sum())


@pytest.mark.usefixtures("tiny_tile")
@pytest.mark.parametrize("backend", ["reference", "streaming"])
def test_dropout_keeps_the_mean_and_full_dropout_leaves_nothing(backend: str) -> None:
    given_ = {name: t.detach()[:1] for name, t in inputs(7, queries=1, keys=8, dropped=0.0).items()}
    wide = given_ | {
        "query": given_["query"].expand(-1, -1, 4000, -1),
        "query_position": given_["query_position"].expand(-1, 4000, -1),
    }
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        use_tile(patch, 50_000)
        mean = biased_attention(**wide, dropout=0.3, backend=backend).mean(2)
    torch.testing.assert_close(mean, biased_attention(**given_).squeeze(2), rtol=0, atol=0.05)
    assert (biased_attention(**given_, dropout=1.0, backend=backend) == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 4, 5)}, "query must have shape [B, H, N, D], got [2, 4, 5]"),
        ({"key": torch.zeros(2, 3, 3, 3)}, "key must have shape [B, H, J, D] = [2, 4, J, 3], got [2, 3, 3, 3]"),
        (
            {"value": torch.zeros(2, 4, 2, 3)},
            "value must have shape [B, H, J, D] = [2, 4, 3, 3], got [2, 4, 2, 3]",
        ),
        (
            {"query_position": torch.zeros(2, 5, 3)},
            "query_position must have shape [B, N, 2] = [2, 5, 2], got [2, 5, 3]",
        ),
        (
            {"key_position": torch.zeros(2, 2, 4, 2)},
            "key_position must have shape [B, G, J, 2] = [2, G, 3, 2], got [2, 2, 4, 2]",
        ),
        (
            {"key_position": torch.zeros(2, 3, 3, 2)},
            "key_position must have a number of groups G that divides H = 4, got 3",
        ),
        (
            {"key_logit": torch.zeros(2, 1, 3)},
            "key_logit must have shape [B, G, J] = [2, 2, 3], got [2, 1, 3]",
        ),
        ({"backend": "cuda"}, "backend must be one of 'auto', 'reference', 'streaming', got 'cuda'"),
        ({"dropout": 1.5}, "dropout must lie in [0, 1], got 1.5"),
    ],
)
def test_refusals_name_the_argument_the_requirement_and_what_came(change: dict[str, Any], message: str) -> None:
    calls: list[Callable[..., Tensor]] = [biased_attention]
    arguments = inputs(0) | change
    if not change.keys() & {"value", "backend", "dropout"}:
        calls.append(lambda value, **rest: biased_attention_weights(**rest))
    for call in calls:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call(**arguments)
