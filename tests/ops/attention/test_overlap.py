"""Overlaps of attention maps, by hand."""

import re

import pytest
import torch
from torch.autograd import gradcheck

from disentangled_mil.ops import AttentionScores, attention_overlap
from tests.support.attention import draw, without_value


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


@pytest.mark.parametrize("place", ["a", "b"])
def test_scores_are_refused_with_the_way_to_their_maps(place: str) -> None:
    scores = AttentionScores(**without_value(draw(0)))
    maps = scores.weights().flatten(1)
    message = f"{place} must be a tensor [B, F], got AttentionScores; scores.weights().flatten(1) gives their maps"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        attention_overlap(**{"a": maps, "b": maps, place: scores})
    torch.testing.assert_close(attention_overlap(maps, maps), maps @ maps.T)
