"""The subspace head: one linear layer in blocks."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.nn.head import SubspaceHead

NAMES = ("tumor", "tme", "stroma")


@given(
    batch=st.integers(0, 3),
    dim=st.integers(1, 5),
    outputs=st.integers(1, 4),
    subspaces=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25)
def test_blocks_are_one_linear_layer_over_the_concatenation(
    batch: int, dim: int, outputs: int, subspaces: int, seed: int
) -> None:
    names = NAMES[:subspaces]
    head = SubspaceHead(dim, outputs, names).double()
    source = torch.Generator().manual_seed(seed)
    features = {n: torch.randn(batch, dim, dtype=torch.float64, generator=source) for n in reversed(names)}
    weight = torch.cat([head.blocks[name] for name in names], dim=1)
    whole = torch.nn.functional.linear(torch.cat([features[n] for n in names], dim=1), weight, head.bias)
    out = head(features)
    torch.testing.assert_close(out.logits, whole)
    assert list(out.subspace_logits) == list(names)
    torch.testing.assert_close(sum(out.subspace_logits.values()), whole)
    for name in names:
        alone = features[name] @ head.blocks[name].T + head.bias / subspaces
        torch.testing.assert_close(head.subspace_logits(features)[name], alone)


def test_it_starts_as_the_linear_layer_that_it_replaces() -> None:
    torch.manual_seed(0)
    head = SubspaceHead(4, 3, NAMES)
    torch.manual_seed(0)
    linear = torch.nn.Linear(12, 3)
    assert torch.equal(torch.cat([head.blocks[n] for n in NAMES], dim=1), linear.weight)
    assert torch.equal(head.bias, linear.bias)


def test_every_subspace_has_a_parameter_of_its_own() -> None:
    head = SubspaceHead(4, 3, NAMES)
    parameters = head.subspace_parameters()
    assert list(parameters) == list(NAMES)
    assert [p.shape for group in parameters.values() for p in group] == [torch.Size([3, 4])] * 3
    head({n: torch.full((2, 4), float(n == "tme")) for n in NAMES}).logits.sum().backward()
    assert {n: bool(parameters[n][0].grad.any()) for n in NAMES} == {"tumor": False, "tme": True, "stroma": False}
    assert all(p is dict(head.named_parameters())[f"blocks.{n}"] for n, (p,) in parameters.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_type_are_converted_to_that_of_the_weights(dtype: torch.dtype) -> None:
    head = SubspaceHead(4, 3, NAMES)
    features = {n: torch.randn(2, 4).to(dtype) for n in NAMES}
    assert torch.equal(head(features).logits, head({n: x.float() for n, x in features.items()}).logits)


def test_options_weights_and_copies_come_back() -> None:
    head = SubspaceHead(4, 3, NAMES)
    rebuilt: SubspaceHead = eval(f"SubspaceHead({head.extra_repr()})")
    rebuilt.load_state_dict(head.state_dict())
    features = {n: torch.randn(2, 4) for n in NAMES}
    for other in (rebuilt, copy.deepcopy(head)):
        assert torch.equal(other(features).logits, head(features).logits)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SubspaceHead(0, 2), ValueError, "dim must be at least 1, got 0"),
        (lambda: SubspaceHead(4, 0), ValueError, "outputs must be at least 1, got 0"),
        (
            lambda: SubspaceHead(4, 2, "tumor"),
            TypeError,
            "subspaces must be a sequence of names, got the string 'tumor'",
        ),
        (
            lambda: SubspaceHead(4, 2, ("values",)),
            ValueError,
            "subspaces must not be attributes of a torch.nn.ModuleDict or ParameterDict, got 'values'",
        ),
        *(
            (
                lambda name=name: SubspaceHead(8, 2, [name, "b"]),
                ValueError,
                f"subspaces must not be attributes of a torch.nn.ModuleDict or ParameterDict, got {name!r}",
            )
            for name in ("copy", "fromkeys", "get", "popitem", "setdefault", "_keys")
        ),
        (
            lambda: SubspaceHead(4, 2)(torch.zeros(1, 4)),
            TypeError,
            "features must be a mapping from names, got Tensor",
        ),
        (
            lambda: SubspaceHead(4, 2)({"tumor": torch.zeros(1, 4)}),
            ValueError,
            "features must have exactly the names ['tme', 'tumor'], got ['tumor']",
        ),
        (
            lambda: SubspaceHead(4, 2)({"tumor": torch.zeros(1, 4), "tme": torch.zeros(1, 3)}),
            ValueError,
            "features['tme'] must have shape [B, C] = [1, 4], got [1, 3]",
        ),
        (
            lambda: SubspaceHead(4, 2)({"tumor": torch.zeros(1, 4), "tme": torch.zeros(2, 4)}),
            ValueError,
            "features['tme'] must have shape [B, C] = [1, 4], got [2, 4]",
        ),
        (
            lambda: SubspaceHead(4, 2)(dict.fromkeys(("tumor", "tme"), torch.zeros(1, 4, dtype=torch.int64))),
            TypeError,
            "features['tumor'] must be a floating-point tensor, got torch.int64",
        ),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()
