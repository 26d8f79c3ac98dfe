"""Highly variable genes: ranked as elsewhere, chosen by rank."""

import numpy as np
import pytest

from disentangled_mil.data._variable_genes import dispersion, highest


def test_dispersion_equals_scanpy():
    # scanpy 1.11.5: pp.highly_variable_genes(log1p(table), flavor="seurat"), column dispersions_norm
    table = np.array(
        [
            [1.8, 5.3, 4.3, 2.0, 14.6, 31.5, 0.1, 1.0, 4.2, 18.1, 24.1, 30.3],
            [3.1, 1.8, 4.6, 2.0, 23.5, 62.7, 1.0, 5.8, 2.0, 32.6, 32.5, 139.1],
            [5.2, 4.3, 6.6, 2.0, 36.6, 17.8, 1.2, 10.1, 8.5, 37.3, 42.0, 55.5],
            [3.3, 1.9, 6.9, 2.0, 19.6, 16.0, 2.5, 1.7, 5.3, 9.3, 32.2, 60.3],
            [0.5, 4.8, 5.9, 2.0, 14.5, 3.9, 1.0, 3.1, 10.9, 34.1, 48.2, 92.9],
            [1.8, 3.0, 1.7, 2.0, 10.4, 69.6, 1.6, 8.4, 8.6, 17.5, 33.8, 7.0],
        ]
    )
    half = 0.5**0.5
    scanpy = [
        1.0,
        1.0,
        -half,
        -np.inf,
        1.0,
        half,
        1.0,
        half,
        1.0,
        1.0,
        -half,
        1.0,
    ]  # NaN there for the constant gene
    assert dispersion(table, list("ABCDEFGHIJKL")) == pytest.approx(np.array(scanpy), abs=1e-6)


def test_equal_dispersions_rank_equally():
    table = np.array([[1.0, 1.0, 0.0], [3.0, 3.0, 0.0]])
    assert dispersion(table, ["A", "B", "C"]).tolist() == [0.0, 0.0, -np.inf]


def test_negative_values_have_no_dispersion():
    with pytest.raises(ValueError, match=r"needs values >= 0, got -2\.0 for gene 'B'"):
        dispersion(np.array([[1.0, -2.0], [1.0, -1.0]]), ["A", "B"])


@pytest.mark.parametrize(("fraction", "kept"), [(0.01, "D"), (0.5, "BD"), (0.75, "ABD"), (1.0, "ABCD")])
def test_the_highest_share_is_kept_in_order_and_never_none(fraction, kept):
    ranks = {"A": 1.0, "B": 2.0, "C": float("-inf"), "D": 3.0}
    assert "".join(highest(list("ABCD"), ranks, fraction)) == kept
