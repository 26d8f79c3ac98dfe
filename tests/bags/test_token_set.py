"""Sets: bags without coordinates."""

import re
from collections.abc import Callable

import pytest
import torch
from torch.utils._pytree import tree_map

from disentangled_mil import Grid, TokenSet


def test_a_set_of_given_sizes_has_its_real_tokens_first() -> None:
    assert TokenSet.of([1, 3]).mask.tolist() == [[True, False, False], [True, True, True]]
    assert TokenSet.of(2).mask.tolist() == [[True, True]]


def test_one_bag_stands_for_all_of_a_batch() -> None:
    assert TokenSet.of(2).expand(3).mask.tolist() == [[True, True]] * 3
    several = TokenSet.of([2, 1])
    assert several.expand(2) is several


def test_a_set_moves_between_devices_and_is_a_tree_of_its_mask() -> None:
    assert TokenSet.of(2).to("meta").mask.device.type == "meta"
    assert tree_map(torch.logical_not, TokenSet.of(2)).mask.tolist() == [[False, False]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TokenSet(torch.ones(2, 3)), TypeError, "mask must be a bool tensor (True = real token)"),
        (lambda: TokenSet(torch.ones(3, dtype=torch.bool)), ValueError, "mask must have shape [B, N], got [3]"),
        (lambda: TokenSet(torch.ones(1, 0, dtype=torch.bool)), ValueError, "at least one bag and one token per bag"),
        (lambda: TokenSet.of([]), ValueError, "tokens must hold the number of tokens of at least one bag, got none"),
        (lambda: TokenSet.of([2, 0]), ValueError, "tokens must be at least 1, got 0"),
        (lambda: TokenSet.of([2, 1]).expand(3), ValueError, "set must have B = 3 bags (or one for all), got 2"),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_the_square_of_the_paper_is_there_by_name() -> None:
    assert Grid.square(4).cells[0].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
