"""Deformable cross-attention: plain attention as the oracle, gradients, precision, options, refusals."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from disentangled_mil.bags import Grid
from disentangled_mil.nn import CellCenters, DeformableCrossAttention, DeformableOutput
from tests.support.deformable import bag_shapes, draw_bag, exact, few, seeds, small_layer


def attend_by_hand(layer: DeformableCrossAttention, query: Tensor, context: Tensor, grid: Grid) -> Tensor:
    """Plain attention from every token to the mean context of every occupied cell, for one bag."""
    size = grid.sizes[0]
    cells = grid.cells[0]
    occupied = cells.unique(dim=0)
    keys = torch.stack([context[0, (cells == cell).all(1)].mean(0) for cell in occupied])
    place = [(2 * c.double() + 1) / size - 1 for c in (cells, occupied)]
    q, k, v = (to(x.T) for to, x in ((layer.to_q, query[0]), (layer.to_k, keys), (layer.to_v, keys)))
    bias = layer.position_bias(place[0][:, None] - place[1])  # [N, J, H / G]
    heads = []
    for head in range(layer.heads):
        rows = slice(head * layer.dim_head, (head + 1) * layer.dim_head)
        logits = q[rows].T @ k[rows] / layer.dim_head**0.5 + bias[..., head % (layer.heads // layer.groups)]
        heads.append(logits.softmax(1) @ v[rows].T)
    out: Tensor = layer.to_out(torch.cat(heads, dim=1))
    return out


@given(shape=bag_shapes, seed=seeds)
@few
def test_without_offsets_on_the_finest_grid_it_is_attention_to_every_cell(
    shape: tuple[int, int, int], seed: int
) -> None:
    layer = small_layer(seed, downsample=1, kernel_size=1, offset_scale=0, bias="exact")
    bag = draw_bag(seed, *shape)
    query = torch.randn(bag.patches.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    out = layer(query, bag.patches, bag.grid)
    torch.testing.assert_close(out.tokens[0], attend_by_hand(layer, query, bag.patches, bag.grid), **exact)
    if bag.patches.shape[1] == len(bag.grid.cells[0].unique(dim=0)):
        # One token per cell: the mass on a token is the mean weight of its cell's key.
        weights = out.attention.weights().mean((0, 1, 2))  # [J]
        cells = bag.grid.cells[0, :, 1] * bag.grid.width + bag.grid.cells[0, :, 0]
        torch.testing.assert_close(out.attention.mass()[0], weights[cells], **exact)


def test_one_grid_serves_the_whole_batch(generator: torch.Generator) -> None:
    layer = small_layer()
    tokens = torch.randn(3, 7, 8, dtype=torch.float64, generator=generator)
    expected = layer(tokens, tokens, Grid.square([7, 7, 7]))
    for out in (
        layer(tokens, tokens, Grid.square(7)),
        layer(tokens, tokens, Grid.square(7), Grid.square([7, 7, 7])),
    ):
        torch.testing.assert_close(out.tokens, expected.tokens, **exact)
        torch.testing.assert_close(out.attention.mass(), expected.attention.mass(), **exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_features_of_any_type_are_converted_to_that_of_the_weights(dtype: torch.dtype) -> None:
    layer, bag = small_layer(), draw_bag(1, 12, 5, 6)
    narrow = bag.patches.to(dtype)
    out = layer(narrow, narrow, bag.grid)
    assert out.tokens.dtype == torch.float64
    torch.testing.assert_close(out.tokens, layer(narrow.double(), narrow.double(), bag.grid).tokens, **exact)
    single = small_layer().float()
    torch.testing.assert_close(single(narrow, narrow, bag.grid).tokens.double(), out.tokens, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_of_low_precision_runs_and_keeps_positions_in_float32(dtype: torch.dtype) -> None:
    layer, bag = small_layer().to(dtype), draw_bag(1, 12, 5, 6)
    out = layer(bag.patches.to(dtype), bag.patches.to(dtype), bag.grid)
    assert out.tokens.dtype == dtype
    assert out.tokens.isfinite().all()
    assert out.attention.sampling_positions.dtype == torch.float32


def test_autocast_to_bfloat16_is_near_float32_and_trains() -> None:
    layer, bag = small_layer(offset_scale=0.5).float(), draw_bag(1, 12, 5, 6)
    patches = bag.patches.float().requires_grad_()
    expected = layer(patches, patches, bag.grid).tokens
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(patches, patches, bag.grid)
        loss = out.tokens.float().square().sum() + out.attention.mass().square().sum()
    loss.backward()
    assert out.attention.sampling_positions.dtype == torch.float32
    assert (out.attention.scores.key_logit <= 1e-6).all()
    error = (out.tokens.float() - expected).abs().max()
    assert error < 0.05 * expected.abs().max()
    torch.testing.assert_close(out.attention.mass().sum(1), torch.ones(1), rtol=0, atol=1e-5)
    assert patches.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_non_contiguous_and_expanded_tokens_are_read_alike() -> None:
    layer, bag = small_layer(), draw_bag(2, 12, 4, 5)
    strided = bag.patches.mT.contiguous().mT
    assert not strided.is_contiguous()
    genes = bag.patches[:, :1].expand(-1, 12, -1)
    torch.testing.assert_close(
        layer(genes, strided, bag.grid).tokens, layer(genes.clone(), bag.patches, bag.grid).tokens, **exact
    )


@pytest.mark.parametrize("backend", ["auto", "reference", "streaming"])
def test_gradients_of_inputs_and_parameters_are_those_of_finite_differences(backend: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = DeformableCrossAttention(
            4, heads=2, dim_head=2, groups=2, downsample=2, offset_scale=0.7, dropout=0, backend=backend
        ).double()
    bag = draw_bag(3, 6, 3, 2)
    query, context = bag.patches[..., :4].clone().requires_grad_(), bag.patches[..., 4:].clone().requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(query: Tensor, context: Tensor, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out: DeformableOutput = torch.func.functional_call(
            layer, dict(zip(names, values, strict=True)), (query, context, bag.grid)
        )
        return out.tokens, out.attention.mass(), out.attention.common_grid(2)

    if backend == "reference":
        assert torch.autograd.gradcheck(call, (query, context, *parameters), fast_mode=True)
    else:
        assert torch.autograd.gradcheck(lambda q, c: layer(q, c, bag.grid).tokens, (query, context), fast_mode=True)


def test_backends_agree() -> None:
    bag = draw_bag(4, 14, 5, 5)
    dense, streamed = (
        small_layer(backend=backend)(bag.patches, bag.patches, bag.grid) for backend in ("reference", "streaming")
    )
    torch.testing.assert_close(dense.tokens, streamed.tokens, **exact)


def test_dropout_acts_in_training_only() -> None:
    bag, layer = draw_bag(4, 14, 5, 5), small_layer(dropout=0.5)
    first, second = (layer(bag.patches, bag.patches, bag.grid).tokens for _ in range(2))
    assert torch.equal(first, second)
    layer.train()
    torch.manual_seed(0)
    assert not torch.equal(layer(bag.patches, bag.patches, bag.grid).tokens, first)


def test_options_weights_and_copies_come_back() -> None:
    layer = small_layer(3, dropout=0.25, offset_scale=1.5, bias="exact", max_keys=7, backend="reference")
    bag = draw_bag(4, 14, 5, 5)
    expected = layer(bag.patches, bag.patches, bag.grid).tokens
    names = {"DeformableCrossAttention": DeformableCrossAttention, "CellCenters": CellCenters}
    rebuilt: DeformableCrossAttention = eval(f"DeformableCrossAttention({layer.extra_repr()})", names)
    assert rebuilt.extra_repr() == layer.extra_repr()
    rebuilt.double().eval().load_state_dict(layer.state_dict())
    for other in (rebuilt, copy.deepcopy(layer)):
        assert torch.equal(other(bag.patches, bag.patches, bag.grid).tokens, expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": 0}, ValueError, "heads must be at least 1, got 0"),
        ({"dim_head": 2.0}, TypeError, "dim_head must be an integer, got float"),
        ({"groups": 3}, ValueError, "dim must be a multiple of groups = 3, got 8"),
        ({"heads": 2, "groups": 4}, ValueError, "heads must be a multiple of groups = 4, got 2"),
        ({"downsample": 0}, ValueError, "downsample must be at least 1, got 0"),
        ({"kernel_size": 1}, ValueError, "kernel_size must be at least 2, got 1"),
        (
            {"kernel_size": 5},
            ValueError,
            "kernel_size must differ from downsample = 2 by an even number, got 5",
        ),
        ({"offset_scale": -1}, ValueError, "offset_scale must lie in [0, inf], got -1"),
        ({"dropout": 2}, ValueError, "dropout must lie in [0, 1], got 2"),
        ({"positions": "square"}, TypeError, "positions must be a convention of positions (Positions), got str"),
        ({"bias": "none"}, ValueError, "bias must be one of 'exact', 'table', got 'none'"),
        ({"max_keys": 0}, ValueError, "max_keys must be at least 1, got 0"),
        ({"max_keys": 9.0}, TypeError, "max_keys must be an integer, got float"),
        (
            {"backend": "cuda"},
            ValueError,
            "backend must be one of 'auto', 'reference', 'streaming', 'triton', got 'cuda'",
        ),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        small_layer(**options)


def tokens_of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda layer: layer(tokens_of(1, 4, 7), tokens_of(1, 4, 8)),
            ValueError,
            "query must have shape [B, N, C] = [B, N, 8], got [1, 4, 7]",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(2, 4, 8)),
            ValueError,
            "context must have shape [B, M, C] = [1, M, 8], got [2, 4, 8]",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8, dtype=torch.int64), tokens_of(1, 4, 8)),
            TypeError,
            "query must be a floating-point tensor, got torch.int64",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(1, 4, 8, dtype=torch.int64)),
            TypeError,
            "context must be a floating-point tensor, got torch.int64",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(1, 5, 8)),
            ValueError,
            "context must have the number of tokens of query, 4, or a context_grid of its own, got 5",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(1, 4, 8), Grid.square(5)),
            ValueError,
            "query_grid.mask must have shape [B, N] = [1, 4], got [1, 5]",
        ),
        (
            lambda layer: layer(tokens_of(3, 4, 8), tokens_of(3, 4, 8), Grid.square([4, 4])),
            ValueError,
            "grid must have B = 3 bags (or one for all), got 2",
        ),
        (
            lambda layer: layer(
                tokens_of(1, 4, 8), tokens_of(1, 4, 8), Grid.square(4), mask=torch.ones(1, 4, dtype=torch.bool)
            ),
            ValueError,
            "query_grid already holds a mask: give either query_grid or mask, not both",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(1, 4, 8), mask=torch.ones(1, 4)),
            TypeError,
            "mask must be a bool tensor (True = real token), got torch.float32",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(1, 4, 8), Grid.square(4)).attention.common_grid(0),
            ValueError,
            "resolution must be at least 1, got 0",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    call: Callable[[DeformableCrossAttention], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call(small_layer())


def test_a_table_of_the_bias_is_within_1e_4_of_the_largest_entry_after_training(generator: torch.Generator) -> None:
    sizes: dict[str, Any] = {"heads": 4, "dim_head": 16, "groups": 4, "dropout": 0}
    by_network = DeformableCrossAttention(64, bias="exact", **sizes)
    by_table = DeformableCrossAttention(64, **sizes)
    assert "bias='table'" in by_table.extra_repr()
    tokens = torch.randn(1, 900, 64, generator=generator)
    optimizer = torch.optim.AdamW(by_network.parameters(), lr=1e-3)
    for _ in range(20):  # toward a task that needs positions
        optimizer.zero_grad()
        (by_network(tokens, tokens).tokens - tokens.roll(3, dims=1)).square().mean().backward()
        optimizer.step()
    by_table.load_state_dict(by_network.state_dict())
    with torch.no_grad():
        found, expected = by_table(tokens, tokens).tokens, by_network(tokens, tokens).tokens
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
