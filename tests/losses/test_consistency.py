from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from disentangled_mil import DeformableCrossAttention, Grid
from disentangled_mil.losses import (
    AttentionMap,
    batch_similarity_consistency,
    inter_magnification_consistency,
)
from disentangled_mil.nn.attention import COMMON_RESOLUTION
from tests.support.golden import load_golden


@dataclass
class Lazy:
    """An attention map that notes the resolutions at which it was compared."""

    dense: Tensor
    default: int | None = None
    asked: list[int | None] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dense.shape)

    def resolution_with(self, other: "Lazy") -> int | None:
        return self.default

    def vectors(self, resolution: int | None) -> Tensor:
        self.asked.append(resolution)
        return self.dense.flatten(1)


def maps(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def test_released_loss_and_gradients_are_reproduced():
    case = load_golden("inter_magnification_consistency")
    a = {name: case[f"{name}_10x"].requires_grad_() for name in ("tumor", "tme")}
    b = {name: case[f"{name}_20x"].requires_grad_() for name in ("tme", "tumor")}
    loss = inter_magnification_consistency(a, b, weight=1e4, normalize="rows", unbiased=True)
    loss.backward()
    torch.testing.assert_close(loss, case["loss"], rtol=0, atol=1e-9)
    for name in a:
        torch.testing.assert_close(a[name].grad, case[f"grad_{name}_10x"], rtol=0, atol=1e-9)
        torch.testing.assert_close(b[name].grad, case[f"grad_{name}_20x"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("normalize", ["rows", "none"])
def test_loss_equals_a_numpy_formulation(normalize, unbiased, generator):
    a, b = maps(generator, 4, 2, 3, 5), maps(generator, 4, 2, 3, 5)
    overlap = np.einsum("ahnj,bhnj->ab", a.numpy(), b.numpy())
    if normalize == "rows":
        overlap = overlap / np.sqrt((overlap**2).sum(1, keepdims=True))
    expected = 3 * np.var(np.diag(overlap), ddof=int(unbiased))
    loss = inter_magnification_consistency(a, b, weight=3.0, normalize=normalize, unbiased=unbiased)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_alignment_equals_a_hand_computed_value():
    a, b = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    loss = inter_magnification_consistency(a, b, weight=0.0, alignment=2.0)
    torch.testing.assert_close(loss, torch.tensor(1 - 0.5**0.5))


def test_only_the_alignment_sees_uniform_attention():
    uniform, peaked = torch.full((3, 2, 4, 5), 0.2), torch.eye(5)[:4].expand(3, 2, 4, 5)
    torch.testing.assert_close(inter_magnification_consistency(uniform, peaked), torch.tensor(0.0))
    loss = inter_magnification_consistency(uniform, peaked, alignment=1.0)
    torch.testing.assert_close(loss, torch.tensor(1 - 0.2**0.5))


@settings(max_examples=30)
@given(batch=st.integers(1, 5), length=st.integers(1, 7), seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_loss_ignores_the_order_of_the_batch_and_the_scale_of_the_maps(batch, length, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    a, b = maps(generator, batch, length), maps(generator, batch, length)
    order = torch.randperm(batch, generator=generator)
    loss = inter_magnification_consistency(a, b, alignment=0.5)
    assert loss >= -1e-12  # one minus a cosine, rounded
    torch.testing.assert_close(inter_magnification_consistency(a[order], b[order], alignment=0.5), loss)
    per_sample = scale * torch.rand(batch, 1, generator=generator, dtype=torch.float64) + 1e-3
    torch.testing.assert_close(inter_magnification_consistency(per_sample * a, scale * b, alignment=0.5), loss)
    raw = inter_magnification_consistency(a, b, normalize="none", alignment=0.5)
    torch.testing.assert_close(inter_magnification_consistency(b, a, normalize="none", alignment=0.5), raw)


@pytest.mark.parametrize("normalize", ["rows", "none"])
def test_gradients_are_exact(normalize, generator):
    a, b = (maps(generator, 3, 2, 2).requires_grad_() for _ in "ab")
    assert gradcheck(lambda x, y: inter_magnification_consistency(x, y, normalize=normalize, alignment=0.3), (a, b))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("normalize", ["rows", "none"])
def test_a_batch_of_one_gives_zero_with_a_gradient_of_zero(normalize, unbiased, generator):
    a = maps(generator, 1, 2, 3).requires_grad_()
    loss = inter_magnification_consistency(a, a.detach() + 1, normalize=normalize, unbiased=unbiased)
    loss.backward()
    assert loss == 0
    assert (a.grad == 0).all()


@pytest.mark.parametrize("normalize", ["rows", "none"])
def test_maps_of_zeros_give_finite_loss_and_gradient(normalize, generator):
    a, b = maps(generator, 3, 4), maps(generator, 3, 4)
    a[1], b[2] = 0, 0
    a.requires_grad_(), b.requires_grad_()
    loss = inter_magnification_consistency(a, b, normalize=normalize, alignment=1.0)
    loss.backward()
    assert loss.isfinite()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32_inside_autocast_too(dtype, generator):
    a, b = maps(generator, 3, 50).to(dtype), maps(generator, 3, 50).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = inter_magnification_consistency(a, b, alignment=1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, inter_magnification_consistency(a.float(), b.float(), alignment=1.0))


@pytest.mark.parametrize("resolution", [None, 7])
@pytest.mark.parametrize("alignment", [0.0, 0.5])
def test_lazy_maps_are_compared_by_themselves(alignment, resolution, generator):
    a, b = Lazy(maps(generator, 3, 2, 4, 5)), Lazy(maps(generator, 3, 2, 4, 5))
    assert isinstance(a, AttentionMap)
    loss = inter_magnification_consistency({"tumor": a}, {"tumor": b}, alignment=alignment, resolution=resolution)
    torch.testing.assert_close(loss, inter_magnification_consistency(a.dense, b.dense, alignment=alignment))
    assert set(a.asked) == {resolution}


def test_both_maps_are_laid_out_once_at_the_resolution_that_the_first_chooses(generator):
    a, b = Lazy(maps(generator, 3, 2, 4, 5), default=9), Lazy(maps(generator, 3, 2, 4, 5), default=8)
    inter_magnification_consistency(a, b, alignment=0.5)
    assert a.asked == b.asked == [9]


def test_maps_of_layers_meet_the_protocol(generator):
    layer = DeformableCrossAttention(8, heads=2, dim_head=4, groups=2)
    tokens = torch.randn(1, 9, 8, generator=generator)
    assert isinstance(layer(tokens, tokens, Grid.square(9)).attention, AttentionMap)
    of_set = layer(tokens, tokens).attention
    assert isinstance(of_set, AttentionMap)
    assert of_set.resolution_with(of_set) is None


def test_lazy_maps_of_different_size_are_theirs_to_compare(generator):
    a, b = Lazy(maps(generator, 3, 2, 20)), Lazy(maps(generator, 3, 2, 4, 5))
    loss = inter_magnification_consistency(a, b)
    torch.testing.assert_close(loss, inter_magnification_consistency(a.dense.flatten(1), b.dense.flatten(1)))


@pytest.mark.parametrize("keep_weights", [True, False])
@pytest.mark.parametrize("normalize", ["rows", "none"])
def test_loss_of_a_layers_maps_is_that_of_their_dense_maps_with_gradients(normalize, keep_weights, generator):
    torch.manual_seed(0)
    layer = DeformableCrossAttention(8, heads=4, dim_head=4, groups=2, downsample=2, keep_weights=keep_weights).double()
    low, high = (torch.randn(3, 25, 8, generator=generator, dtype=torch.float64) for _ in "ab")
    results = []
    for dense in (False, True):
        a, b = (layer(x, x, Grid.square(x.shape[1])).attention for x in (low, high))
        if dense:
            a, b = a.weights(), b.weights()
        loss = inter_magnification_consistency(a, b, normalize=normalize, alignment=0.5)
        trained = [parameter for name, parameter in layer.named_parameters() if not name.startswith(("to_v", "to_out"))]
        results.append([loss, *torch.autograd.grad(loss, trained)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
    assert sum(bool((gradient.abs() > 1e-9).any()) for gradient in results[0][1:]) >= 8  # a constant bias has none


@pytest.mark.parametrize("tokens", [(25, 36), (25, 30)], ids=["two sizes", "one full, one not"])
def test_alignment_compares_maps_and_each_with_itself_in_one_space(tokens, generator):
    torch.manual_seed(0)
    layer = DeformableCrossAttention(8, heads=4, dim_head=4, groups=2, downsample=2).double()
    low, high = (torch.randn(3, count, 8, generator=generator, dtype=torch.float64) for count in tokens)
    a, b = (layer(x, x, Grid.square(x.shape[1])).attention for x in (low, high))
    found, expected = (
        inter_magnification_consistency(a, b, weight=0, alignment=1.0, resolution=resolution)
        for resolution in (None, COMMON_RESOLUTION)
    )
    torch.testing.assert_close(found, expected)
    masses = (maps.common_grid(COMMON_RESOLUTION).flatten(1) for maps in (a, b))
    torch.testing.assert_close(found, 1 - torch.cosine_similarity(*masses).mean())


def test_errors_name_the_argument():
    a = torch.ones(2, 3)
    lazy = Lazy(torch.ones(2, 1, 3, 4))
    with pytest.raises(ValueError, match=r"normalize must be one of 'rows', 'none', got 'columns'"):
        inter_magnification_consistency(a, a, normalize="columns")
    with pytest.raises(ValueError, match=r"weight must lie in \[0\.0, inf\], got -1"):
        inter_magnification_consistency(a, a, weight=-1)
    with pytest.raises(ValueError, match=r"alignment must lie in \[0\.0, inf\], got -1"):
        inter_magnification_consistency(a, a, alignment=-1)
    with pytest.raises(ValueError, match=r"resolution must be at least 1, got 0"):
        inter_magnification_consistency(lazy, lazy, resolution=0)
    with pytest.raises(ValueError, match=r"resolution must be None for tensors, which have no positions, got 4"):
        inter_magnification_consistency(a, a, resolution=4)
    with pytest.raises(ValueError, match=r"attention_b must have exactly the names \['tumor'\], got \['tme'\]"):
        inter_magnification_consistency({"tumor": a}, {"tme": a})
    with pytest.raises(ValueError, match=r"attention_a must have at least one subspace, got none"):
        inter_magnification_consistency({}, {})
    with pytest.raises(TypeError, match=r"must both be mappings or neither, got dict and Tensor"):
        inter_magnification_consistency({"tumor": a}, a)
    with pytest.raises(TypeError, match=r"must both be tensors or both attention maps, got Tensor and Lazy"):
        inter_magnification_consistency(a, lazy)
    with pytest.raises(
        ValueError, match=r"attention_b\['tme'\] must have the \[B, H\] of attention_a\['tme'\], \[2, 1\], got \[2, 2\]"
    ):
        inter_magnification_consistency({"tme": lazy}, {"tme": Lazy(torch.ones(2, 2, 3, 4))})
    with pytest.raises(ValueError, match=r"attention_b must have the \[B, H\] of attention_a, \[2, 1\], got \[3, 1\]"):
        inter_magnification_consistency(lazy, Lazy(torch.ones(3, 1, 3, 4)))
    with pytest.raises(ValueError, match=r"attention_a must hold at least one sample, got shape \[0, 1, 3, 4\]"):
        inter_magnification_consistency(Lazy(lazy.dense[:0]), Lazy(lazy.dense[:0]))
    with pytest.raises(TypeError, match=r"must both be tensors or both attention maps, got list and list"):
        inter_magnification_consistency([1.0], [1.0])
    with pytest.raises(TypeError, match=r"attention_b\['tumor'\] must be a floating-point tensor, got torch\.int64"):
        inter_magnification_consistency({"tumor": a}, {"tumor": a.long()})
    with pytest.raises(ValueError, match=r"attention_a must have shape \[B, \.\.\.\], got \[3\]"):
        inter_magnification_consistency(a[0], a[0])
    with pytest.raises(ValueError, match=r"attention_b must have the shape of attention_a, \[2, 3\], got \[2, 4\]"):
        inter_magnification_consistency(a, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"attention_a must hold at least one sample, got shape \[0, 3\]"):
        inter_magnification_consistency(a[:0], a[:0])


def test_released_batch_similarity_is_reproduced():
    case = load_golden("batch_similarity_consistency")
    matrix = batch_similarity_consistency(case["att_10x"], case["att_20x"], reduction="none")
    torch.testing.assert_close(matrix, case["loss_matrix"], rtol=0, atol=1e-9)
    torch.testing.assert_close(matrix, case["loss_matrix"])
    total = batch_similarity_consistency(case["att_10x"], case["att_20x"])
    torch.testing.assert_close(total, case["loss_matrix"].sum())
    mean = batch_similarity_consistency(case["att_10x"], case["att_20x"], reduction="mean")
    torch.testing.assert_close(mean, case["loss_matrix"].mean())


def test_batch_similarity_compares_maps_of_different_size_and_is_zero_for_equal_ones(generator):
    a, b = maps(generator, 3, 2, 4, 5), maps(generator, 3, 2, 7)
    assert batch_similarity_consistency(a, b) > 0
    assert batch_similarity_consistency(a, 2 * a) < 1e-30
    torch.testing.assert_close(batch_similarity_consistency(a, b), batch_similarity_consistency(b, a))


def test_batch_similarity_has_an_exact_gradient(generator):
    a, b = (maps(generator, 3, 2, 4).requires_grad_() for _ in "ab")
    assert gradcheck(batch_similarity_consistency, (a, b))


def test_batch_similarity_errors_name_the_argument():
    a = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match=r"reduction must be one of 'sum', 'mean', 'none', got 'max'"):
        batch_similarity_consistency(a, a, reduction="max")
    with pytest.raises(TypeError, match=r"a must be a floating-point tensor, got torch\.int64"):
        batch_similarity_consistency(a.long(), a)
    with pytest.raises(ValueError, match=r"b must have shape \[B, H, \.\.\.\] with B, H >= 1, got \[2, 3\]"):
        batch_similarity_consistency(a, a[..., 0])
    with pytest.raises(ValueError, match=r"b must have the B and H of a, \[2, 3\], got \[2, 2\]"):
        batch_similarity_consistency(a, a[:, :2])


def test_losses_compile_as_one_graph(generator):
    a, b = maps(generator, 3, 2, 4), maps(generator, 3, 2, 4)

    def both(x: Tensor, y: Tensor) -> Tensor:
        return inter_magnification_consistency(x, y, alignment=0.5) + batch_similarity_consistency(x, y)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), both(a, b))


def test_maps_of_sets_are_refused():
    layer, tokens = DeformableCrossAttention(8, heads=4, dim_head=4, groups=2), torch.randn(2, 9, 8)
    on_sets, on_squares = layer(tokens, tokens).attention, layer(tokens, tokens, Grid.square(9)).attention
    for maps in ([on_sets, on_sets], [on_sets, on_squares], [on_squares, on_sets]):
        with pytest.raises(ValueError, match="leave the consistency loss out, or lay bags out by"):
            inter_magnification_consistency(*maps)


@pytest.mark.parametrize("normalize", ["rows", "none"])
@pytest.mark.parametrize("present", [[True, False, True, True], [False, True, False, False], [False] * 4])
def test_samples_without_both_magnifications_are_left_out(normalize, present, generator):
    a, b = (torch.rand(4, 5, generator=generator) for _ in range(2))
    mask, options = torch.tensor(present), {"normalize": normalize, "alignment": 0.5}
    left_out = a.masked_fill(~mask[:, None], 7.0).requires_grad_()
    loss = inter_magnification_consistency(left_out, b, present=mask, **options)
    expected = inter_magnification_consistency(a[mask], b[mask], **options) if mask.any() else torch.zeros(())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not left_out.grad[~mask].any()
    with pytest.raises(ValueError, match=r"present must have shape \[B\] = \[4\], got \[3\]"):
        inter_magnification_consistency(a, b, present=mask[:3])
