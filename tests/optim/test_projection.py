"""Projection of conflicting gradients: by hand, against outside oracles, and by its properties."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from disentangled_mil.optim._projection import coordinate


def planes(*vectors: list[float]) -> Tensor:
    """One row per subspace: [S, 1, P]."""
    return torch.tensor(vectors, dtype=torch.float64).unsqueeze(1)


@st.composite
def cases(draw: st.DrawFn, most: int = 5) -> tuple[Tensor, Tensor]:
    """Gradients [S, R, P] with zero, equal, opposite and nearly equal rows; confidences [S] with ties."""
    subspaces, rows, width = draw(st.integers(2, most)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    gradients = torch.randn(subspaces, rows, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(subspaces, rows, width, generator=generator, dtype=torch.float64)
    copies = st.tuples(st.integers(0, subspaces - 1), st.integers(0, subspaces - 1), st.sampled_from([-1.0, 0.0, 2.0]))
    for target, source, factor in draw(st.lists(copies, max_size=3)):
        nearly = draw(st.sampled_from([0.0, 1e-5]))
        gradients[target] = factor * gradients[source] + nearly * noise[target]
    confidence = draw(st.lists(st.sampled_from([0.1, 0.4, 0.7, 1.3]), min_size=subspaces, max_size=subspaces))
    return gradients, torch.tensor(confidence, dtype=torch.float64)


def lengths(gradients: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradients, dim=-1)  # [S, R]


def test_less_confident_gradient_becomes_its_projection_by_hand() -> None:
    gradients = planes([1.0, 1.0], [-2.0, 1.0])
    result = coordinate(gradients, torch.tensor([0.9, 0.6]))
    # g - <g, a> / <a, a> a = (-2, 1) + 1/2 (1, 1)
    torch.testing.assert_close(result.gradients, planes([1.0, 1.0], [-1.5, 1.5]))
    assert torch.equal(result.gradients[0], gradients[0])
    assert result.projected.tolist() == [[False], [True]]
    torch.testing.assert_close(result.cosine, torch.tensor([[-1 / 10**0.5]], dtype=torch.float64))


def test_the_other_one_gives_way_when_confidences_are_swapped() -> None:
    result = coordinate(planes([1.0, 1.0], [-2.0, 1.0]), torch.tensor([0.6, 0.9]))
    # (1, 1) + 1/5 (-2, 1)
    torch.testing.assert_close(result.gradients, planes([0.6, 1.2], [-2.0, 1.0]))


def test_rows_are_independent() -> None:
    gradients = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [-1.0, 1.0]]])
    result = coordinate(gradients, torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(result.gradients, torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]]]))
    assert result.projected.tolist() == [[False, False], [False, True]]


def test_opposite_gradient_vanishes_exactly() -> None:
    gradient = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(0))
    result = coordinate(torch.cat([gradient, -3 * gradient]), torch.tensor([1.0, 0.5]))
    assert torch.equal(result.gradients, torch.cat([gradient, torch.zeros_like(gradient)]))


def test_three_subspaces_get_the_nearest_gradient_where_one_after_the_other_changes_more() -> None:
    gradients = planes([0.6, 0.8], [1.0, 0.0], [-1.0, 0.5])
    first, second, third = gradients[:, 0]
    swept = third - (third @ first) * first
    swept = swept - (swept @ second) * second
    torch.testing.assert_close(swept, torch.tensor([0.0, 0.66], dtype=torch.float64))
    # The projection against the second alone already resolves the conflict with the first.
    result = coordinate(gradients, torch.tensor([3.0, 2.0, 1.0])).gradients
    torch.testing.assert_close(result, planes([0.6, 0.8], [1.0, 0.0], [0.0, 0.5]))


def test_two_subspaces_agree_with_pcgrad_in_fixed_order(generator: torch.Generator) -> None:
    gradients = torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)
    expected = gradients.numpy().copy()
    for row in range(50):
        more, less = expected[1, row], expected[0, row]
        inner = sum(more[i] * less[i] for i in range(4))
        if inner < 0:
            expected[0, row] = less - inner / sum(x * x for x in more) * more
    result = coordinate(gradients, torch.tensor([0.2, 0.3]))
    np.testing.assert_allclose(result.gradients.numpy(), expected, rtol=0, atol=1e-12)
    assert 10 < result.projected[0].sum() < 40
    assert not result.projected[1].any()


@given(cases())
@settings(max_examples=50)
def test_result_is_the_projection_onto_the_cone(case: tuple[Tensor, Tensor]) -> None:
    gradients, confidence = case
    result = coordinate(gradients, confidence).gradients.numpy()
    for s, row in np.ndindex(*gradients.shape[:2]):
        gradient = gradients[s, row].numpy()
        others = [result[t, row] for t in range(len(result)) if confidence[t] > confidence[s]]
        directions = [r / np.linalg.norm(r) for r in others if np.linalg.norm(r) > 1e-9]
        if directions:
            matrix = np.stack(directions, axis=1)
            gradient = gradient + matrix @ nnls(matrix, -gradient)[0]
        np.testing.assert_allclose(result[s, row], gradient, rtol=0, atol=1e-6)


@given(cases())
@settings(max_examples=50)
def test_results_never_conflict_with_a_more_confident_one(case: tuple[Tensor, Tensor]) -> None:
    gradients, confidence = case
    result = coordinate(gradients, confidence).gradients
    length = lengths(gradients)
    for s, t in combinations(range(len(gradients)), 2):
        less, more = (s, t) if confidence[s] < confidence[t] else (t, s)
        if confidence[less] < confidence[more]:
            inner = (result[s] * result[t]).sum(-1)
            assert (inner >= -1e-13 * length[less] * lengths(result)[more]).all()


@given(cases())
@settings(max_examples=50)
def test_rows_without_conflict_are_untouched_bit_for_bit(case: tuple[Tensor, Tensor]) -> None:
    gradients, confidence = case
    result = coordinate(gradients, confidence)
    kept = ~result.projected
    assert torch.equal(result.gradients[kept], gradients[kept])
    most = confidence == confidence.max()
    assert not result.projected[most].any()
    cosine = result.cosine.reshape(-1, gradients.shape[1])
    assert not result.projected[:, (cosine >= 0).all(0)].any()


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_order_of_the_subspaces_does_not_matter(case: tuple[Tensor, Tensor], random) -> None:
    gradients, confidence = case
    order = list(range(len(gradients)))
    random.shuffle(order)
    expected = coordinate(gradients, confidence)
    shuffled = coordinate(gradients[order], confidence[order])
    torch.testing.assert_close(shuffled.gradients, expected.gradients[order], rtol=0, atol=1e-6)


@given(cases())
@settings(max_examples=50)
def test_norms_never_grow(case: tuple[Tensor, Tensor]) -> None:
    gradients, confidence = case
    assert (lengths(coordinate(gradients, confidence).gradients) <= lengths(gradients) * (1 + 1e-12)).all()


@given(cases())
@settings(max_examples=50)
def test_a_second_coordination_changes_nothing(case: tuple[Tensor, Tensor]) -> None:
    gradients, confidence = case
    once = coordinate(gradients, confidence).gradients
    twice = coordinate(once, confidence).gradients
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-6)


@given(cases(), st.integers(-30, 30))
@settings(max_examples=50)
def test_power_of_two_scale_passes_through_exactly(case: tuple[Tensor, Tensor], exponent: int) -> None:
    gradients, confidence = case
    expected = coordinate(gradients, confidence)
    scaled = coordinate(gradients * 2.0**exponent, confidence)
    assert torch.equal(scaled.gradients, expected.gradients * 2.0**exponent)
    assert torch.equal(scaled.projected, expected.projected)


@given(cases(most=2))
@settings(max_examples=25)
def test_two_equal_confidences_change_nothing(case: tuple[Tensor, Tensor]) -> None:
    gradients, _ = case
    result = coordinate(gradients, torch.tensor([0.5, 0.5]))
    assert torch.equal(result.gradients, gradients)
    assert not result.projected.any()


def test_equal_confidences_still_give_way_to_a_higher_one() -> None:
    gradients = planes([-1.0, 1.0], [-1.0, -1.0], [1.0, 0.0])
    result = coordinate(gradients, torch.tensor([0.1, 0.1, 0.2]))
    torch.testing.assert_close(result.gradients, planes([0.0, 1.0], [0.0, -1.0], [1.0, 0.0]))


def test_nan_confidence_decides_nothing() -> None:
    gradients = planes([1.0, 1.0], [-2.0, 1.0])
    assert torch.equal(coordinate(gradients, torch.tensor([torch.nan, 0.6])).gradients, gradients)


@pytest.mark.parametrize("dead", [0.0, torch.inf, torch.nan])
def test_zero_and_non_finite_rows_pass_through_and_conflict_with_nothing(dead: float) -> None:
    gradients = torch.tensor([[[1.0, 1.0], [dead, 1.0]], [[dead, 1.0], [-2.0, 1.0]], [[-1.0, 0.0], [1.0, -2.0]]])
    if dead == 0:
        gradients[0, 1] = gradients[1, 0] = 0.0
    result = coordinate(gradients, torch.tensor([3.0, 2.0, 1.0]))
    expected = gradients.clone()
    expected[2, 0] = torch.tensor([-0.5, 0.5])  # against the first
    expected[2, 1] = torch.tensor([-0.6, -1.2])  # against the second
    torch.testing.assert_close(result.gradients, expected, equal_nan=True)
    assert result.projected.tolist() == [[False, False], [False, False], [True, True]]
    assert result.cosine[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", [1e-36, 1e30])
def test_tiny_and_huge_gradients_neither_vanish_nor_overflow(scale: float) -> None:
    gradients = torch.tensor([[[1.0, 1.0]], [[-2.0, 1.0]]]) * scale
    result = coordinate(gradients, torch.tensor([0.9, 0.6])).gradients
    torch.testing.assert_close(result[1] / scale, torch.tensor([[-1.5, 1.5]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype, generator: torch.Generator) -> None:
    gradients = torch.randn(3, 20, 64, generator=generator).to(dtype)
    confidence = torch.tensor([0.3, 0.2, 0.1])
    result = coordinate(gradients, confidence)
    assert result.gradients.dtype == dtype
    assert torch.equal(result.gradients, coordinate(gradients.float(), confidence).gradients.to(dtype))


def test_nearly_dependent_gradients_are_both_respected_in_float32() -> None:
    gradients = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 1e-4, 0.0], [0.1, -3.0, 2.0]]).unsqueeze(1)
    result = coordinate(gradients, torch.tensor([2.0, 2.0, 1.0])).gradients[:, 0]
    torch.testing.assert_close(result[2], torch.tensor([0.0, 0.0, 2.0]), rtol=0, atol=1e-5)


def test_no_decision_reads_a_value() -> None:
    gradients, confidence = torch.empty(4, 3, 5, device="meta"), torch.empty(4, device="meta")
    assert coordinate(gradients, confidence).gradients.shape == gradients.shape
