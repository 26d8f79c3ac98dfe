"""Argument checks: what passes, and the words of every refusal."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from disentangled_mil._checks import (
    check_choice,
    check_count,
    check_counts,
    check_floating,
    check_integers,
    check_interval,
    check_mapping,
    check_mask,
    check_names,
    check_shape,
    check_subspaces,
    check_values,
)


@given(shape=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_shape_returns_the_size_of_every_letter(shape: list[int]) -> None:
    letters = "BNCK"[: len(shape)]
    assert check_shape("x", torch.empty(shape), " ".join(letters)) == dict(zip(letters, shape, strict=True))


def test_shape_takes_numbers_and_sizes_at_their_word() -> None:
    assert check_shape("coords", torch.empty(2, 5, 2), "B N 2", {"B": 2, "K": 9}) == {"B": 2, "N": 5, "2": 2}


def test_mask_choice_count_interval_and_names_accept_what_they_should() -> None:
    check_mask("mask", torch.ones(2, 3, dtype=torch.bool), "B N")
    check_floating("x", torch.ones(1, dtype=torch.bfloat16))
    check_integers("k", torch.ones(1, dtype=torch.uint8))
    check_values("k", torch.ones(0), "be at most 2", lambda x: x <= 2)
    check_values("k", torch.ones(3), "be at most 2", lambda x: x <= 2)
    check_choice("rule", "a", ("a", "b"))
    check_count("n", 1)
    check_count("n", 0, 0)
    check_interval("p", 0, 0, 1)
    check_interval("p", 1.0, 0, 1, open_low=True)
    for number in (np.float16(0.5), np.float32(0.5), np.int64(1)):
        check_interval("p", number, 0, 1)  # type: ignore[arg-type]
    assert check_counts("hidden", iter([3, 4])) == (3, 4)
    assert check_counts("hidden", []) == ()
    for names in ({}, torch.nn.ModuleDict(), torch.nn.ParameterDict()):
        check_mapping("genes", names)
    check_names("genes", {"tme": 1, "tumor": 2}, ("tumor", "tme"))
    assert check_subspaces(["tumor", "tme"]) == ("tumor", "tme")
    assert check_subspaces({"one": 1}, "genes") == ("one",)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: check_shape("mask", [1, 2], "B N"),  # type: ignore[arg-type]
            TypeError,
            "mask must be a tensor of shape [B, N], got list",
        ),
        (
            lambda: check_shape("mask", torch.ones(2, 5), "B N", {"B": 2, "N": 7}),
            ValueError,
            "mask must have shape [B, N] = [2, 7], got [2, 5]",
        ),
        (
            lambda: check_shape("coords", torch.ones(2, 5, 3), "B N 2"),
            ValueError,
            "coords must have shape [B, N, 2], got [2, 5, 3]",
        ),
        (
            lambda: check_shape("x", torch.ones(3), "B N", {"N": 4}),
            ValueError,
            "x must have shape [B, N] = [B, 4], got [3]",
        ),
        (
            lambda: check_floating("x", [1.0]),
            TypeError,
            "x must be a floating-point tensor, got list",
        ),
        (
            lambda: check_floating("x", torch.ones(1, dtype=torch.int64)),
            TypeError,
            "x must be a floating-point tensor, got torch.int64",
        ),
        *(
            (
                lambda dtype=dtype: check_integers("k", torch.ones(1, dtype=dtype)),
                TypeError,
                f"k must be an integer tensor, got {dtype}",
            )
            for dtype in (torch.float32, torch.bool)
        ),
        (
            lambda: check_values("k", torch.tensor([1, 5, 3]), "be at most 2", lambda x: x <= 2),
            ValueError,
            "k must be at most 2, got 5 at position 1",
        ),
        (
            lambda: check_mask("mask", torch.ones(2, 3), "B N"),
            TypeError,
            "mask must be a bool tensor (True = real token), got torch.float32",
        ),
        (
            lambda: check_mask("mask", torch.ones(2, 3, dtype=torch.bool), "B N", {"B": 1}),
            ValueError,
            "mask must have shape [B, N] = [1, N], got [2, 3]",
        ),
        (lambda: check_choice("rule", "c", ("a", "b")), ValueError, "rule must be one of 'a', 'b', got 'c'"),
        (
            lambda: check_choice("rule", "avrage", ("sum", "average")),
            ValueError,
            "rule must be one of 'sum', 'average', got 'avrage' (did you mean 'average'?)",
        ),
        (lambda: check_count("n", 1.0), TypeError, "n must be an integer, got float"),  # type: ignore[arg-type]
        (lambda: check_count("n", True), TypeError, "n must be an integer, got bool"),
        (lambda: check_count("n", 1, 2), ValueError, "n must be at least 2, got 1"),
        (lambda: check_interval("p", 1.5, 0, 1), ValueError, "p must lie in [0, 1], got 1.5"),
        (lambda: check_interval("p", 0.0, 0, 1, open_low=True), ValueError, "p must lie in (0, 1], got 0.0"),
        (lambda: check_interval("p", float("nan"), 0, 1), ValueError, "p must lie in [0, 1], got nan"),
        (lambda: check_interval("p", "1", 0, 1), TypeError, "p must be a number, got str"),  # type: ignore[arg-type]
        (lambda: check_interval("p", True, 0, 1), TypeError, "p must be a number, got bool"),
        (lambda: check_interval("p", np.bool_(True), 0, 1), TypeError, f"p must be a number, got {np.bool_.__name__}"),  # type: ignore[arg-type]
        (lambda: check_interval("p", None, 0, 1), TypeError, "p must be a number, got NoneType"),  # type: ignore[arg-type]
        (
            lambda: check_interval("p", torch.tensor(0.5), 0, 1),  # type: ignore[arg-type]
            TypeError,
            "p must be a number, got Tensor",
        ),
        (
            lambda: check_counts("hidden", 64),  # type: ignore[arg-type]
            TypeError,
            "hidden must be a sequence of integers, got int",
        ),
        (lambda: check_counts("hidden", [4, 0]), ValueError, "hidden must be at least 1, got 0"),
        (
            lambda: check_counts("hidden", [4, 2.0]),  # type: ignore[list-item]
            TypeError,
            "hidden must be an integer, got float",
        ),
        (
            lambda: check_mapping("genes", [3, 4]),
            TypeError,
            "genes must be a mapping from names, got list",
        ),
        (
            lambda: check_names("genes", torch.ones(2), ("tumor", "tme")),  # type: ignore[arg-type]
            TypeError,
            "genes must be a mapping from names, got Tensor",
        ),
        (
            lambda: check_names("genes", {1: 1, "tumor": 2}, ("tumor", "tme")),  # type: ignore[dict-item]
            ValueError,
            "genes must have exactly the names ['tme', 'tumor'], got [1, 'tumor']",
        ),
        (
            lambda: check_names("genes", {"tumor": 1}, ("tumor", "tme")),
            ValueError,
            "genes must have exactly the names ['tme', 'tumor'], got ['tumor']",
        ),
        (
            lambda: check_subspaces("tumor"),
            TypeError,
            "subspaces must be a sequence of names, got the string 'tumor'",
        ),
        (lambda: check_subspaces([]), ValueError, "subspaces must hold at least one name, each once, got ()"),
        (
            lambda: check_subspaces(["a", "a"], "genes"),
            ValueError,
            "genes must hold at least one name, each once, got ('a', 'a')",
        ),
        (
            lambda: check_subspaces(["a.b"]),
            ValueError,
            "subspaces must be non-empty strings without a dot, got 'a.b'",
        ),
        (lambda: check_subspaces([""]), ValueError, "subspaces must be non-empty strings without a dot, got ''"),
        (
            lambda: check_subspaces([3]),  # type: ignore[list-item]
            TypeError,
            "subspaces must be a sequence of names, got 3 among them",
        ),
        (
            lambda: check_subspaces([["tumor"]]),  # type: ignore[list-item]
            TypeError,
            "subspaces must be a sequence of names, got ['tumor'] among them",
        ),
        (
            lambda: check_subspaces(3),  # type: ignore[arg-type]
            TypeError,
            "subspaces must be a sequence of names, got int",
        ),
        (
            lambda: check_subspaces(["keys"]),
            ValueError,
            "subspaces must not be attributes of a torch.nn.ModuleDict or ParameterDict, got 'keys'",
        ),
        (
            lambda: check_subspaces(["copy", "b"]),
            ValueError,
            "subspaces must not be attributes of a torch.nn.ModuleDict or ParameterDict, got 'copy'",
        ),
    ],
)
def test_refusals_name_the_argument_the_requirement_and_what_came(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_values_are_not_read_where_reading_waits_breaks_a_graph_or_is_not_possible() -> None:
    def check(values: torch.Tensor) -> torch.Tensor:
        check_values("k", values, "be at most 2", lambda x: x <= 2)
        return values + 1

    wrong = torch.tensor([5.0])
    assert check(wrong.to("meta")).is_meta
    assert torch.compile(check, backend="eager", fullgraph=True)(wrong) == 6
    assert torch.func.vmap(check)(wrong) == 6
    with FakeTensorMode():
        check(torch.ones(1))
