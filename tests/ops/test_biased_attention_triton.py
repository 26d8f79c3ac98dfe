"""The kernels of biased attention against the reference: in Triton's interpreter, or on a GPU where there is one."""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from disentangled_mil.ops import AttentionScores, BiasTable, biased_attention

pytest.importorskip("triton", reason="needs Triton, which is not installed")

Draw = Callable[..., dict[str, Any]]
Leaves = Callable[[dict[str, Any]], list[Tensor]]
Slopes = Callable[..., list[Tensor]]

PACKAGE = "disentangled_mil.ops.biased_attention"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every_kind = pytest.mark.parametrize("kind", ["none", "network", "table"])


def moved(entry: Any, dtype: torch.dtype) -> Any:
    """Arguments on the device that the kernels run on, in some precision."""
    if isinstance(entry, dict):
        return {name: moved(part, dtype) for name, part in entry.items()}
    if isinstance(entry, tuple):
        return type(entry)(*(moved(part, dtype) for part in entry))
    if isinstance(entry, Tensor) and entry.is_floating_point():
        return entry.detach().to(DEVICE, dtype).requires_grad_(entry.requires_grad)
    return entry.to(DEVICE) if isinstance(entry, Tensor) else entry


def run(given: dict[str, Any], backend: str, leaves: Leaves, slopes: Slopes, **options: Any) -> list[Tensor]:
    """Output, mass and the gradients of all inputs."""
    attended = biased_attention(**given, backend=backend, **options)
    return [attended.out, attended.mass, *slopes(attended[:2], leaves(given))]


def assert_as_near_as_eager(narrow: dict[str, Any], leaves: Leaves, slopes: Slopes, tiny: float) -> None:
    """No further from the exact result than twice what the reference is in the same precision."""
    exact = run(moved(narrow, torch.float64), "reference", leaves, slopes)
    eager, fast = (run(narrow, backend, leaves, slopes) for backend in ("reference", "triton"))
    for truth, slow, quick in zip(exact, eager, fast, strict=True):
        assert quick.dtype == slow.dtype
        allowed = 2 * (slow.double() - truth).abs().max() + tiny * (1 + truth.abs().max())
        assert (quick.double() - truth).abs().max() <= allowed


@pytest.mark.parametrize(
    ("queries", "keys", "width", "groups", "per_group"),
    [(1, 1, 1, 1, 1), (63, 33, 16, 2, 1), (65, 17, 20, 1, 2), (130, 5, 64, 1, 1), (7, 18, 8, 3, 2)],
)
@every_kind
def test_results_and_gradients_are_those_of_the_reference(
    draw: Draw,
    leaves: Leaves,
    slopes: Slopes,
    kind: str,
    queries: int,
    keys: int,
    width: int,
    groups: int,
    per_group: int,
) -> None:
    sizes = {"queries": queries, "keys": keys, "width": width, "groups": groups, "per_group": per_group}
    given = draw(queries, kind=kind, padded=0.2, dropped=0.3, dtype=torch.float32, **sizes)
    assert_as_near_as_eager(moved(given, torch.float32), leaves, slopes, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_kind
def test_half_precision_is_as_near_as_its_type_allows(
    draw: Draw, leaves: Leaves, slopes: Slopes, kind: str, dtype: torch.dtype
) -> None:
    given = draw(2, kind=kind, queries=33, keys=19, padded=0.2, dropped=0.2, dtype=dtype)
    assert_as_near_as_eager(moved(given, dtype), leaves, slopes, 16 * torch.finfo(dtype).eps)


@every_kind
def test_many_programs_share_the_queries(
    draw: Draw, leaves: Leaves, slopes: Slopes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module(f"{PACKAGE}._triton"), "_programs", lambda device: 64)
    given = draw(3, kind=kind, batch=1, queries=200, keys=9, width=16, dtype=torch.float32)
    assert_as_near_as_eager(moved(given, torch.float32), leaves, slopes, 1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (3, 0), (0, 0)])
@every_kind
def test_nothing_to_attend_to_gives_zeros(
    draw: Draw, leaves: Leaves, slopes: Slopes, kind: str, queries: int, keys: int
) -> None:
    given = moved(draw(4, kind=kind, queries=queries, keys=keys), torch.float32)
    for found, expected in zip(*(run(given, b, leaves, slopes) for b in ("triton", "reference")), strict=True):
        torch.testing.assert_close(found, expected)


@every_kind
def test_queries_without_a_key_get_zeros_and_finite_gradients(
    draw: Draw, leaves: Leaves, slopes: Slopes, kind: str
) -> None:
    given = moved(draw(5, kind=kind, dtype=torch.float32), torch.float32)
    with torch.no_grad():
        given["key_logit"][0, 1] = -torch.inf
    out, mass, *gradients = run(given, "triton", leaves, slopes)
    assert (out[0, 2:] == 0).all()
    assert (mass[0, 2:] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_kind
def test_what_padding_holds_changes_nothing(draw: Draw, leaves: Leaves, slopes: Slopes, kind: str) -> None:
    poisoned = moved(draw(6, kind=kind, queries=9, padded=0.5), torch.float32)
    clean = poisoned | {
        name: poisoned[name].detach().nan_to_num(0.5).requires_grad_() for name in ("query", "query_position")
    }
    for dirty, tidy in zip(*(run(given, "triton", leaves, slopes) for given in (poisoned, clean)), strict=True):
        assert torch.equal(dirty, tidy)


@every_kind
def test_the_same_input_gives_the_same_bits(draw: Draw, leaves: Leaves, slopes: Slopes, kind: str) -> None:
    given = moved(draw(7, kind=kind, batch=1, groups=1, queries=70, keys=20), torch.float32)
    for first, second in zip(*(run(given, "triton", leaves, slopes) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


@every_kind
def test_non_contiguous_and_expanded_inputs_are_read_alike(
    draw: Draw, leaves: Leaves, slopes: Slopes, kind: str
) -> None:
    given = moved(draw(8, kind=kind), torch.float32)
    given["query"] = given["query"].detach()[:, :, :1].nan_to_num().expand(-1, -1, 5, -1)
    given["key"] = given["key"].detach().movedim(0, -1).contiguous().movedim(-1, 0)
    assert not given["key"].is_contiguous()
    torch.testing.assert_close(
        biased_attention(**given, backend="triton")[:2], biased_attention(**given, backend="reference")[:2]
    )


@pytest.fixture
def identity(draw: Draw) -> dict[str, Any]:
    """Arguments of which the output is the weights."""
    given = draw(9, queries=60, keys=32, width=32)
    given["value"] = torch.eye(32).expand(2, 4, -1, -1)
    return moved(given, torch.float32)


def test_dropout_drops_a_share_and_the_others_grow(identity: dict[str, Any]) -> None:
    torch.manual_seed(0)
    out, mass, _ = biased_attention(**identity, dropout=0.25, backend="triton")
    plain = biased_attention(**identity, backend="reference", keep_weights=True)
    dropped = out == 0
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(out[~dropped], plain.weights[~dropped] / 0.75)
    torch.testing.assert_close(mass, plain.mass)


def test_dropout_depends_on_the_seed_of_torch_and_drops_all_at_one(identity: dict[str, Any]) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(biased_attention(**identity, dropout=0.5, backend="triton").out)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert (biased_attention(**identity, dropout=1.0, backend="triton").out == 0).all()


@every_kind
def test_the_backward_pass_drops_the_same_weights(draw: Draw, leaves: Leaves, slopes: Slopes, kind: str) -> None:
    given = moved(draw(10, kind=kind, queries=20, keys=8, width=8), torch.float32)
    eye = {"value": torch.eye(8, device=DEVICE).expand(2, 4, -1, -1)}
    torch.manual_seed(0)
    stays = (biased_attention(**given | eye, dropout=0.5, backend="triton").out != 0).float()
    weights = AttentionScores(**{name: part for name, part in given.items() if name != "value"}).weights()
    expected = slopes([(weights * stays * 2) @ given["value"]], leaves(given))
    torch.manual_seed(0)
    found = slopes([biased_attention(**given, dropout=0.5, backend="triton").out], leaves(given))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@every_kind
def test_the_operators_are_well_registered(
    draw: Draw, calls: Callable[..., list[Any]], kind: str, dropout: float
) -> None:
    given = moved(draw(11, kind=kind, batch=1, groups=1, dropped=0.3), torch.float32)

    def train() -> None:
        attended = biased_attention(**given, dropout=dropout, backend="triton")
        (attended.out.sum() + attended.mass.square().sum()).backward()

    found = calls(train)
    assert len(found) == 2
    for operator, arguments in found:
        torch.library.opcheck(operator, arguments)


def test_weights_that_are_to_be_kept_are_computed_for_themselves(draw: Draw) -> None:
    given = moved(draw(12, kind="table", padded=0.3), torch.float32)
    kept = biased_attention(**given, keep_weights=True, backend="triton").weights
    torch.testing.assert_close(kept, biased_attention(**given, keep_weights=True, backend="reference").weights)


def test_a_gradient_of_a_gradient_is_refused(draw: Draw) -> None:
    given = moved(draw(13), torch.float32)
    out = biased_attention(**given, backend="triton").out
    (slope,) = torch.autograd.grad(out.square().sum(), given["query"], create_graph=True)
    with pytest.raises(NotImplementedError, match='a gradient of a gradient needs backend="reference"'):
        slope.sum().backward()


def test_float64_is_refused(draw: Draw) -> None:
    message = 'query must be float16, bfloat16 or float32 for backend="triton", got torch.float64'
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        biased_attention(**moved(draw(14), torch.float64), backend="triton")


def test_tensors_elsewhere_than_on_a_gpu_are_refused(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disentangled_mil.ops._triton_runtime._INTERPRETED", False)
    with pytest.raises(ValueError, match=r'query must be on a CUDA device for backend="triton", got cpu'):
        biased_attention(**draw(15, dtype=torch.float32), backend="triton")


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Triton were not installed."""
    monkeypatch.setattr("disentangled_mil.ops._triton_runtime._AVAILABLE", False)
    monkeypatch.setitem(sys.modules, "triton", None)


@pytest.mark.usefixtures("no_triton")
def test_without_triton_its_kernels_are_refused_and_everything_else_runs(draw: Draw) -> None:
    given = moved(draw(16), torch.float32)
    with pytest.raises(RuntimeError, match='backend="triton" needs the package triton, which is not installed'):
        biased_attention(**given, backend="triton")
    assert biased_attention(**given).out.isfinite().any()


def test_a_bias_that_is_no_formula_is_refused(draw: Draw) -> None:
    given = moved(draw(17), torch.float32) | {"bias": lambda displacement: displacement}
    with pytest.raises(TypeError, match="bias must be an MLPBias, a BiasTable or None for backend='triton'"):
        biased_attention(**given, backend="triton")


@pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
def test_kernels_are_what_is_taken_by_itself_on_a_gpu(draw: Draw, calls: Callable[..., list[Any]]) -> None:
    given = moved(draw(18), torch.float32)
    assert "triton" in calls(lambda: biased_attention(**given))[0][0].name()


def test_a_table_larger_than_the_displacements_reads_nothing_outside(draw: Draw) -> None:
    given = moved(draw(19), torch.float32)
    values = torch.arange(18.0, device=DEVICE).view(2, 3, 3)
    for reach in (0.01, 1.0, 100.0):
        table = {"bias": BiasTable(values, reach)}
        torch.testing.assert_close(
            biased_attention(**given | table, backend="triton")[:2],
            biased_attention(**given | table, backend="reference")[:2],
        )
