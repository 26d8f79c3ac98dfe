"""Gene selection: one token selects nothing, padding does not matter, order of genes neither."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.nn.selection import GeneSelection

few = settings(max_examples=25)
seeds = st.integers(0, 10**6)


def small_layer() -> GeneSelection:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = GeneSelection(8, heads=2).double().eval()
        torch.nn.init.normal_(layer.attention.in_proj_weight)
    return layer


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def everywhere(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool)


@given(tokens=st.integers(1, 5), genes=st.integers(1, 4), seed=seeds)
@few
def test_it_is_attention_to_the_gene_tokens_residual_mean_and_tanh(tokens: int, genes: int, seed: int) -> None:
    layer, x, g = small_layer(), draw(seed, 2, tokens, 8), draw(seed + 1, 2, genes, 8)
    attention = layer.attention
    weight, bias = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    sources = (layer.norm_tokens(x), layer.norm_genes(g), layer.norm_genes(g))
    q, k, v = (
        (s @ w.T + b).unflatten(2, (2, 4)).transpose(1, 2) for s, w, b in zip(sources, weight, bias, strict=True)
    )
    weights = (q @ k.mT / 2).softmax(-1)
    selected = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    expected = torch.tanh((x + selected).mean(1) @ layer.pool.weight.T + layer.pool.bias)
    out = layer(x, g, everywhere(x))
    torch.testing.assert_close(out.feature, expected)
    torch.testing.assert_close(out.weights, weights.mean(1))


def test_a_single_gene_token_leaves_nothing_to_select() -> None:
    x = draw(0, 2, 5, 8)
    assert (small_layer()(x, draw(1, 2, 1, 8), everywhere(x)).weights == 1).all()


@given(
    tokens=st.integers(1, 6),
    seed=seeds,
    filling=st.sampled_from([float("nan"), float("inf"), 1e300]),
)
@few
def test_padding_is_never_looked_at(tokens: int, seed: int, filling: float) -> None:
    x, g = draw(seed, 2, tokens, 8), draw(seed + 1, 2, 3, 8)
    mask = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0] = True
    layer = small_layer()
    poisoned = x.masked_fill(~mask[..., None], filling).requires_grad_()
    out = layer(poisoned, g, mask)
    real = x[:1, mask[0]]
    alone = layer(real, g[:1], everywhere(real))
    torch.testing.assert_close(out.feature[:1], alone.feature)
    torch.testing.assert_close(out.weights[:1, mask[0]], alone.weights)
    assert (out.weights[~mask] == 0).all()
    (out.feature.sum() + out.weights.square().sum()).backward()
    assert poisoned.grad is not None
    assert (poisoned.grad[~mask] == 0).all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_an_empty_bag_gives_the_pooled_nothing() -> None:
    layer, x = small_layer(), draw(0, 1, 3, 8)
    out = layer(x, draw(1, 1, 2, 8), ~everywhere(x))
    torch.testing.assert_close(out.feature[0], layer.pool.bias.tanh())
    assert (out.weights == 0).all()


@given(seed=seeds)
@few
def test_the_order_of_tokens_and_of_genes_does_not_matter(seed: int) -> None:
    layer, x, g = small_layer(), draw(seed, 1, 5, 8), draw(seed + 1, 1, 4, 8)
    source = torch.Generator().manual_seed(seed)
    tokens, genes = torch.randperm(5, generator=source), torch.randperm(4, generator=source)
    out, other = layer(x, g, everywhere(x)), layer(x[:, tokens], g[:, genes], everywhere(x))
    torch.testing.assert_close(other.feature, out.feature)
    torch.testing.assert_close(other.weights, out.weights[:, tokens][:, :, genes])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tokens_and_genes_of_any_type_are_converted_to_that_of_the_weights(dtype: torch.dtype) -> None:
    layer, x, g = small_layer(), draw(0, 1, 5, 8).to(dtype), draw(1, 1, 4, 8).to(dtype)
    assert torch.equal(layer(x, g).feature, layer(x.double(), g.double()).feature)


def test_without_a_mask_every_token_is_real() -> None:
    layer, x, g = small_layer(), draw(0, 2, 5, 8), draw(1, 2, 4, 8)
    assert torch.equal(layer(x, g).feature, layer(x, g, everywhere(x)).feature)


def test_options_weights_and_copies_come_back() -> None:
    layer, x, g = small_layer(), draw(0, 1, 5, 8), draw(1, 1, 4, 8)
    rebuilt: GeneSelection = eval(f"GeneSelection({layer.extra_repr()})").double().eval()
    rebuilt.load_state_dict(layer.state_dict())
    for other in (rebuilt, copy.deepcopy(layer)):
        assert torch.equal(other(x, g, everywhere(x)).feature, layer(x, g, everywhere(x)).feature)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GeneSelection(8, heads=3), ValueError, "dim must be a multiple of heads = 3, got 8"),
        (lambda: GeneSelection(8, heads=0), ValueError, "heads must be at least 1, got 0"),
        (lambda: GeneSelection(0), ValueError, "dim must be at least 1, got 0"),
        (
            lambda: small_layer()(draw(0, 1, 2, 7), draw(0, 1, 2, 8), torch.ones(1, 2, dtype=torch.bool)),
            ValueError,
            "tokens must have shape [B, N, C] = [B, N, 8], got [1, 2, 7]",
        ),
        (
            lambda: small_layer()(draw(0, 1, 2, 8), draw(0, 2, 2, 8), torch.ones(1, 2, dtype=torch.bool)),
            ValueError,
            "genes must have shape [B, T, C] = [1, T, 8], got [2, 2, 8]",
        ),
        (
            lambda: small_layer()(draw(0, 1, 2, 8), draw(0, 1, 2, 8), torch.ones(1, 1, dtype=torch.bool)),
            ValueError,
            "mask must have shape [B, N] = [1, 2], got [1, 1]",
        ),
        (
            lambda: small_layer()(draw(0, 1, 2, 8), draw(0, 1, 2, 8), torch.ones(1, 2)),
            TypeError,
            "mask must be a bool tensor (True = real token), got torch.float32",
        ),
        (
            lambda: small_layer()(torch.ones(1, 2, 8, dtype=torch.int64), draw(0, 1, 2, 8)),
            TypeError,
            "tokens must be a floating-point tensor, got torch.int64",
        ),
        (
            lambda: small_layer()(draw(0, 1, 2, 8), torch.ones(1, 2, 8, dtype=torch.int64)),
            TypeError,
            "genes must be a floating-point tensor, got torch.int64",
        ),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()
