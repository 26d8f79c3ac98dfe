"""DMSF: its steps, any number of subspaces, padding, precision."""

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
from disentangled_mil.nn.dmsf import DMSF

few = settings(max_examples=8)
seeds = st.integers(0, 10**6)
exact: dict[str, Any] = {"rtol": 0, "atol": 1e-10}
NAMES = ("tumor", "tme", "stroma")
QUERIES = ["gene", "gene+patch"]
SELECTIONS = ["separate", "fused"]


def small_layer(subspaces: int = 2, **options: Any) -> DMSF:
    """A float64 layer in evaluation mode: C = 8."""
    sizes = {"heads": 2, "dim_head": 4, "groups": 2, "downsample": 2, "selection_heads": 2, "offset_scale": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DMSF(8, NAMES[:subspaces], **(sizes | options)).double().eval()


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draw_bag(seed: int, tokens: int) -> Bag:
    coords = torch.randint(0, 4, (tokens, 2), generator=torch.Generator().manual_seed(seed))
    return Bag.from_slide(draw(seed, tokens, 8), coords, step=1)


def draw_genes(seed: int, layer: DMSF, batch: int, tokens: int = 3) -> dict[str, Tensor]:
    return {name: draw(seed + i, batch, tokens, 8) for i, name in enumerate(layer.subspaces)}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("subspaces", [1, 2, 3])
def test_it_is_deformation_residual_and_selection_in_every_subspace(query: str, selection: str, subspaces: int) -> None:
    layer = small_layer(subspaces, query=query, selection_query=selection)
    patches, grid, genes = draw(1, 2, 9, 8), Grid.square(9), draw_genes(2, layer, 2)
    out = layer(patches, genes, grid)
    maps = {}
    for name in layer.subspaces:
        query_map = genes[name].mean(1, keepdim=True).expand(-1, 9, -1) + (patches if "+" in query else 0)
        attended = layer.deform[name](layer.norm_query[name](query_map), layer.norm_patches(patches), grid)
        maps[name] = query_map + attended.tokens
        torch.testing.assert_close(out.tokens[name], maps[name], **exact)
        torch.testing.assert_close(out.attention[name].weights(), attended.attention.weights(), **exact)
    if selection == "fused":
        fused = layer.fuse(torch.cat(list(maps.values()), dim=2))
        maps = dict.fromkeys(maps, fused)
    everywhere = torch.ones(2, 9, dtype=torch.bool)
    for name in layer.subspaces:
        selected = layer.select[name](maps[name], genes[name], everywhere)
        torch.testing.assert_close(out.features[name], selected.feature, **exact)
        torch.testing.assert_close(out.selection[name], selected.weights, **exact)
    assert list(out.features) == list(out.tokens) == list(out.attention) == list(out.selection) == list(layer.subspaces)


@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=2),
    query=st.sampled_from(QUERIES),
    selection=st.sampled_from(SELECTIONS),
    filling=st.sampled_from([float("nan"), float("inf")]),
    seed=seeds,
)
@few
def test_a_bag_alone_equals_itself_in_a_batch_whatever_padding_holds(
    counts: list[int], query: str, selection: str, filling: float, seed: int
) -> None:
    layer = small_layer(query=query, selection_query=selection)
    bags = [draw_bag(seed + i, count) for i, count in enumerate(counts)]
    batch, genes = collate_bags(bags), draw_genes(seed, layer, len(bags))
    patches = batch.patches.masked_fill(~batch.mask[..., None], filling).requires_grad_()
    together = layer(patches, genes, batch.grid)
    torch.stack(list(together.features.values())).square().sum().backward()
    assert (patches.grad[~batch.mask] == 0).all()
    assert patches.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    for i, (bag, count) in enumerate(zip(bags, counts, strict=True)):
        alone = layer(bag.patches, {name: g[i : i + 1] for name, g in genes.items()}, bag.grid)
        for name in layer.subspaces:
            torch.testing.assert_close(together.features[name][i], alone.features[name][0], **exact)
            torch.testing.assert_close(together.tokens[name][i, :count], alone.tokens[name][0], **exact)
            torch.testing.assert_close(together.selection[name][i, :count], alone.selection[name][0], **exact)
            for padding in (together.tokens, together.selection):
                assert (padding[name][i, count:] == 0).all()


@given(tokens=st.integers(1, 9), query=st.sampled_from(QUERIES), seed=seeds)
@few
def test_the_order_of_patches_and_of_gene_tokens_does_not_matter(tokens: int, query: str, seed: int) -> None:
    layer, bag = small_layer(query=query), draw_bag(seed, tokens)
    genes = draw_genes(seed, layer, 1)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    shuffled = Grid(bag.grid.cells[:, order], bag.mask, bag.grid.shapes)
    out = layer(bag.patches, genes, bag.grid)
    other = layer(bag.patches[:, order], {name: g.flip(1) for name, g in genes.items()}, shuffled)
    for name in layer.subspaces:
        torch.testing.assert_close(other.features[name], out.features[name], **exact)
        torch.testing.assert_close(other.tokens[name], out.tokens[name][:, order], **exact)


def test_subspaces_are_told_apart_by_name_not_by_order() -> None:
    layer = small_layer()
    patches, genes = draw(1, 2, 9, 8), draw_genes(2, layer, 2)
    out, other = layer(patches, genes), layer(patches, dict(reversed(genes.items())))
    assert torch.equal(out.features["tumor"], other.features["tumor"])
    changed = layer(patches, genes | {"tme": genes["tme"] + 1})
    assert torch.equal(out.features["tumor"], changed.features["tumor"])
    assert not torch.equal(out.features["tme"], changed.features["tme"])


def test_a_gene_map_alone_has_no_patch_in_its_queries() -> None:
    layer = small_layer(query="gene")
    patches, genes = draw(1, 1, 36, 8), draw_genes(2, layer, 1)
    grid = Grid.square(36)
    grids = layer(patches, genes, grid).attention, layer(patches + draw(3, 1, 36, 8), genes, grid).attention
    for name in layer.subspaces:
        first, second = (g[name] for g in grids)
        assert torch.equal(first.coarse_positions, second.coarse_positions)
        assert torch.equal(first.scores.query, first.scores.query[:, :, :1].expand_as(first.scores.query))


@pytest.mark.parametrize("query", QUERIES)
def test_an_empty_bag_gives_finite_features_and_gradients(query: str) -> None:
    layer = small_layer(query=query, selection_query="fused")
    patches = draw(1, 2, 5, 8).requires_grad_()
    mask = torch.tensor([[True] * 5, [False] * 5])
    out = layer(patches, draw_genes(2, layer, 2), Grid.from_mask(mask))
    torch.stack(list(out.features.values())).sum().backward()
    assert all(f.isfinite().all() for f in out.features.values())
    assert patches.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_patches_and_genes_of_any_type_are_converted_to_that_of_the_weights(query: str, dtype: torch.dtype) -> None:
    layer = small_layer(query=query).float()
    patches, genes = draw(1, 2, 9, 8).to(dtype), {n: g.to(dtype) for n, g in draw_genes(2, layer, 2).items()}
    out = layer(patches, genes)
    expected = layer(patches.float(), {name: g.float() for name, g in genes.items()})
    for name in layer.subspaces:
        assert torch.equal(out.features[name], expected.features[name])


@pytest.mark.parametrize("query", QUERIES)
def test_autocast_to_bfloat16_is_near_float32_and_trains(query: str) -> None:
    layer = small_layer(query=query, selection_query="fused").float()
    patches, genes = draw(1, 2, 9, 8).float(), {n: g.float() for n, g in draw_genes(2, layer, 2).items()}
    expected = layer(patches, genes, Grid.square(9))
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(patches, {name: g.bfloat16() for name, g in genes.items()}, Grid.square(9))
    for name in layer.subspaces:
        torch.testing.assert_close(out.features[name].float(), expected.features[name], rtol=0, atol=0.05)
    torch.stack([f.float() for f in out.features.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_gradients_are_those_of_finite_differences() -> None:
    layer = small_layer()
    grid = draw_bag(0, 5).grid

    def call(patches: Tensor, *genes: Tensor) -> tuple[Tensor, ...]:
        out = layer(patches, dict(zip(layer.subspaces, genes, strict=True)), grid)
        return (*out.features.values(), *out.tokens.values())

    inputs = [draw(1, 1, 5, 8), draw(2, 1, 2, 8), draw(3, 1, 2, 8)]
    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in inputs], fast_mode=True)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_weights_and_copies_come_back(selection: str) -> None:
    layer, other = small_layer(3, selection_query=selection), small_layer(3, selection_query=selection)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(layer.state_dict())
    patches, genes = draw(1, 2, 9, 8), draw_genes(2, layer, 2)
    expected = layer(patches, genes).features
    for found in (other, copy.deepcopy(layer)):
        torch.testing.assert_close(found(patches, genes).features, expected, rtol=0, atol=0)
    assert layer.extra_repr() == f"8, {NAMES}, query='gene+patch', selection_query='{selection}'"
    assert "heads=2, dim_head=4, groups=2" in repr(layer)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DMSF("8"), TypeError, "dim must be an integer, got str"),  # type: ignore[arg-type]
        (lambda: DMSF(0), ValueError, "dim must be at least 1, got 0"),
        (
            lambda: small_layer(query="patch"),
            ValueError,
            "query must be one of 'gene', 'gene+patch', got 'patch' (did you mean 'gene+patch'?)",
        ),
        (
            lambda: small_layer(selection_query="both"),
            ValueError,
            "selection_query must be one of 'separate', 'fused', got 'both'",
        ),
        (lambda: small_layer(selection_heads=3), ValueError, "dim must be a multiple of selection_heads = 3, got 8"),
        (lambda: small_layer(0), ValueError, "subspaces must hold at least one name, each once, got ()"),
        (lambda: small_layer(heads=3), ValueError, "heads must be a multiple of groups = 2, got 3"),
        (
            lambda: small_layer()(draw(0, 1, 4, 7), {}),
            ValueError,
            "patches must have shape [B, N, C] = [B, N, 8], got [1, 4, 7]",
        ),
        (
            lambda: small_layer()(draw(0, 1, 4, 8).long(), {}),
            TypeError,
            "patches must be a floating-point tensor, got torch.int64",
        ),
        (
            lambda: small_layer()(draw(0, 1, 4, 8), {"tumor": draw(0, 1, 2, 8)}),
            ValueError,
            "genes must have exactly the names ['tme', 'tumor'], got ['tumor']",
        ),
        (
            lambda: small_layer()(draw(0, 1, 4, 8), {"tumor": draw(0, 1, 2, 8), "tme": draw(0, 1, 8)}),
            ValueError,
            "genes['tme'] must have shape [B, T, C] = [1, T, 8], got [1, 8]",
        ),
        (
            lambda: small_layer(1)(draw(0, 1, 4, 8), {"tumor": draw(0, 1, 2, 8).long()}),
            TypeError,
            "genes['tumor'] must be a floating-point tensor, got torch.int64",
        ),
        (
            lambda: small_layer(1)(draw(0, 1, 4, 8), {"tumor": draw(0, 1, 2, 8)}, Grid.square(5)),
            ValueError,
            "grid.mask must have shape [B, N] = [1, 4], got [1, 5]",
        ),
        (
            lambda: small_layer(1)(
                draw(0, 1, 4, 8),
                {"tumor": draw(0, 1, 2, 8)},
                Grid.square(4),
                mask=torch.ones(1, 4, dtype=torch.bool),
            ),
            ValueError,
            "grid already holds a mask: give either grid or mask, not both",
        ),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()
