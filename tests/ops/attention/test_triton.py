"""The kernels of biased attention against the reference, in Triton's interpreter or on a GPU."""

import re
import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from disentangled_mil.ops import AttentionScores, BiasTable, MLPBias, biased_attention
from disentangled_mil.ops.attention._scores import choose_backend
from tests.support.attention import draw, leaves, slopes
from tests.support.operators import calls

pytest.importorskip("triton", reason="needs Triton, which is not installed")


PACKAGE = "disentangled_mil.ops.attention"
every_kind = pytest.mark.parametrize("kind", ["none", "network", "table"])
kept_or_not = pytest.mark.parametrize("kept", [False, True], ids=["", "kept"])


def moved(entry: Any, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """Arguments on a device, in some precision."""
    if isinstance(entry, dict):
        return {name: moved(part, device, dtype) for name, part in entry.items()}
    if isinstance(entry, tuple):
        return type(entry)(*(moved(part, device, dtype) for part in entry))
    if isinstance(entry, Tensor) and entry.is_floating_point():
        return entry.detach().to(device, dtype).requires_grad_(entry.requires_grad)
    return entry.to(device) if isinstance(entry, Tensor) else entry


def run(given: dict[str, Any], backend: str, **options: Any) -> list[Tensor]:
    """Output, mass, weights if they are kept, and the gradients of all inputs."""
    outputs = [entry for entry in biased_attention(**given, backend=backend, **options) if entry is not None]
    return [*outputs, *slopes(outputs, leaves(given))]


def assert_as_near_as_eager(narrow: dict[str, Any], tiny: float, kept: bool = False) -> None:
    """No further from the exact result than twice what the reference is in the same precision."""
    exact = run(moved(narrow, narrow["query"].device, torch.float64), "reference", keep_weights=kept)
    eager, fast = (run(narrow, backend, keep_weights=kept) for backend in ("reference", "triton"))
    for truth, slow, quick in zip(exact, eager, fast, strict=True):
        assert quick.dtype == slow.dtype
        allowed = 2 * (slow.double() - truth).abs().max() + tiny * (1 + truth.abs().max())
        assert (quick.double() - truth).abs().max() <= allowed


@pytest.mark.parametrize("kept", [False, True], ids=["", "kept"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"queries": 1, "keys": 1, "width": 1, "groups": 1, "per_group": 1},
        {"queries": 63, "keys": 33, "width": 16, "groups": 2, "per_group": 1},
        {"queries": 65, "keys": 17, "width": 20, "groups": 1, "per_group": 2},
        {"queries": 7, "keys": 17, "width": 8, "groups": 2, "per_group": 2},
    ],
    ids=lambda sizes: "x".join(map(str, sizes.values())),
)
@every_kind
def test_results_and_gradients_are_those_of_the_reference(
    kind: str, sizes: dict[str, int], kept: bool, device: str
) -> None:
    given = draw(1, kind=kind, padded=0.2, dropped=0.3, dtype=torch.float32, **sizes)
    assert_as_near_as_eager(moved(given, device), 1e-5, kept)


def network(features: int) -> MLPBias:
    """For groups of one head."""
    source = torch.Generator().manual_seed(features)
    shapes = [(features, 2), (features,), (features, features), (features,), (1, features), (1,)]
    return MLPBias(*((torch.randn(*shape, generator=source) / shape[-1] ** 0.5).requires_grad_() for shape in shapes))


@pytest.mark.parametrize(("features", "width"), [(64, 4), (None, 256)])
def test_tiles_are_smaller_for_large_networks_and_wide_heads_and_results_as_good(
    features: int | None, width: int, device: str
) -> None:
    given = draw(31, batch=1, groups=1, per_group=1, queries=35, keys=3, width=width, dtype=torch.float32)
    if features is not None:
        given["bias"] = network(features)
    assert_as_near_as_eager(moved(given, device), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_kind
def test_half_precision_is_as_near_as_its_type_allows(kind: str, dtype: torch.dtype, device: str) -> None:
    given = draw(2, kind=kind, groups=1, queries=33, keys=19, padded=0.2, dropped=0.2, dtype=dtype)
    assert_as_near_as_eager(moved(given, device, dtype), 16 * torch.finfo(dtype).eps, kept=True)


@every_kind
def test_many_programs_share_the_queries(kind: str, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(import_module(f"{PACKAGE}._triton_launch"), "_programs", lambda device: 64)
    given = draw(3, kind=kind, batch=1, groups=1, queries=150, keys=18, width=16, dtype=torch.float32)
    assert_as_near_as_eager(moved(given, device), 1e-5, kept=True)


@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (3, 0), (0, 0)])
@kept_or_not
@every_kind
def test_nothing_to_attend_to_gives_zeros(kind: str, kept: bool, queries: int, keys: int, device: str) -> None:
    given = moved(draw(4, kind=kind, queries=queries, keys=keys), device)
    results = (run(given, backend, keep_weights=kept) for backend in ("triton", "reference"))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@kept_or_not
@every_kind
def test_queries_without_a_key_get_zeros_and_finite_gradients(kind: str, kept: bool, device: str) -> None:
    given = moved(draw(5, kind=kind, dtype=torch.float32), device)
    with torch.no_grad():
        given["key_logit"][0, 1] = -torch.inf
    results = run(given, "triton", keep_weights=kept)
    assert all((output[0, 2:] == 0).all() for output in results[: 2 + kept])  # output, mass and weights
    assert all(gradient.isfinite().all() for gradient in results[2 + kept :])


@every_kind
def test_what_padding_holds_changes_nothing(kind: str, device: str) -> None:
    poisoned = moved(draw(6, kind=kind, queries=9, padded=0.5), device)
    clean = poisoned | {
        name: poisoned[name].detach().nan_to_num(0.5).requires_grad_() for name in ("query", "query_position")
    }
    results = (run(given, "triton", keep_weights=True) for given in (poisoned, clean))
    for dirty, tidy in zip(*results, strict=True):
        assert torch.equal(dirty, tidy)


@every_kind
def test_the_same_input_gives_the_same_bits(kind: str, device: str) -> None:
    given = moved(draw(7, kind=kind, batch=1, groups=1, queries=65, keys=17), device)
    for first, second in zip(*(run(given, "triton") for _ in range(2)), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("kept", "outputs"),
    [(False, slice(0, 1)), (False, slice(1, 2)), (True, slice(0, 1)), (True, slice(1, 2)), (True, slice(2, 3))],
    ids=["out", "mass", "out of kept", "mass of kept", "weights"],
)
@every_kind
def test_gradients_flow_through_each_output(kind: str, kept: bool, outputs: slice, device: str) -> None:
    given = moved(draw(20, kind=kind, batch=1, padded=0.3, dropped=0.3), device)
    found, expected = (
        slopes(biased_attention(**given, keep_weights=kept, backend=backend)[outputs], leaves(given))
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kept", [True])
@every_kind
def test_a_gradient_does_not_depend_on_which_others_are_wanted(kind: str, kept: bool, first: int, device: str) -> None:
    given = moved(draw(21, kind=kind, batch=1, groups=1, padded=0.3, dropped=0.3), device)
    inputs, outputs = leaves(given), 2 + kept
    expected = run(given, "triton", keep_weights=kept)[outputs:][first::2]
    wanted = inputs[first::2]
    for tensor in inputs:
        tensor.requires_grad_(any(tensor is other for other in wanted))
    found = run(given, "triton", keep_weights=kept)[outputs:]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def strided(entry: Any) -> Any:
    """The same numbers, not contiguous where that can be; of a table only its values."""
    if isinstance(entry, BiasTable):
        return entry._replace(values=strided(entry.values))
    if isinstance(entry, Tensor):
        return entry.movedim(0, -1).contiguous().movedim(-1, 0)
    return type(entry)(*map(strided, entry))


@every_kind
def test_non_contiguous_and_expanded_inputs_are_read_alike(kind: str, device: str) -> None:
    given = moved(draw(8, kind=kind, dropped=0.3), device)
    given["query"] = given["query"].detach()[:, :, :1].nan_to_num().requires_grad_()
    expand = {"query": given["query"].expand(-1, -1, 5, -1)}
    others = {name: strided(entry) for name, entry in given.items()} | expand
    assert not others["key"].is_contiguous()
    dense = biased_attention(**given | expand, keep_weights=True, backend="reference")
    fast = biased_attention(**others, keep_weights=True, backend="triton")
    torch.testing.assert_close(fast, dense)
    torch.testing.assert_close(slopes(fast, leaves(given)), slopes(dense, leaves(given)), rtol=1e-4, atol=1e-5)


def test_products_of_large_float16_queries_and_keys_do_not_overflow(device: str) -> None:
    large = torch.full((1, 1, 2, 64), 40.0, dtype=torch.float16, device=device)  # 64 * 40 * 40 is beyond float16
    position = torch.zeros(1, 2, 2, device=device)
    value = torch.tensor([1.0, 3.0], dtype=torch.float16, device=device).view(1, 1, 2, 1).expand(-1, -1, -1, 64)
    assert (biased_attention(large, large, value, position, position[None], backend="triton").out == 2).all()


def test_constant_key_logits_change_nothing(device: str) -> None:
    given = moved(draw(22, padded=0.3), device)
    given["key_logit"] = given["key_logit"].detach().round()  # so that the sum is not rounded
    shifted = given | {"key_logit": given["key_logit"] + 512}
    found, expected = (biased_attention(**one, backend="triton").out for one in (shifted, given))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@every_kind
def test_autocast_changes_nothing(kind: str, device: str) -> None:
    given = moved(draw(23, kind=kind, batch=1), device)
    expected = run(given, "triton")
    with torch.autocast(device, torch.bfloat16):
        found = run(given, "triton")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# The interpreter is numpy, which has an opinion on NaN.
not_finite = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@not_finite
@pytest.mark.parametrize("arriving", [torch.inf, torch.nan])
@pytest.mark.parametrize("kind", ["network", "table"])
@pytest.mark.parametrize("output", ["out", "weights"])
def test_a_gradient_that_overflowed_can_be_seen_in_that_of_the_bias(
    kind: str, arriving: float, output: str, device: str
) -> None:
    # A table adds in whole numbers, which have no infinity; scalers of gradients look for one.
    given = moved(draw(24, kind=kind), device)
    out = getattr(biased_attention(**given, keep_weights=True, backend="triton"), output)
    (gradient,) = torch.autograd.grad(out, given["bias"][0], torch.full_like(out, arriving))
    assert not gradient.isfinite().all()


@not_finite
@pytest.mark.parametrize("name", ["query", "key", "value", "query_position", "key_position", "key_logit"])
@pytest.mark.parametrize("kind", ["network", "table"])
def test_an_input_that_is_no_number_is_seen_in_its_bag_and_in_the_gradient_of_the_bias(
    kind: str, name: str, device: str
) -> None:
    given = moved(draw(29, kind=kind), device)
    with torch.no_grad():
        given[name][0].fill_(torch.nan)
    out = biased_attention(**given, backend="triton").out
    assert out[0].isnan().all()
    assert out[1].isfinite().all()
    (gradient,) = torch.autograd.grad(out.sum(), given["bias"][0])
    assert not gradient.isfinite().all()


@not_finite
@pytest.mark.parametrize("far", [torch.inf, -torch.inf, 1e30])
@every_kind
def test_positions_beyond_all_bounds_harm_nobody_else(kind: str, far: float, device: str) -> None:
    given = moved(draw(30, kind=kind), device)
    with torch.no_grad():
        given["query_position"][0, 3] = far
        given["key_position"][0, 0, 1] = far
    out, mass, *_ = run(given, "triton")
    assert out[1].isfinite().all()
    assert mass[1].isfinite().all()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("output", ["out", "weights"])
def test_gradients_of_a_table_are_as_fine_for_small_and_large_losses(scale: float, output: str, device: str) -> None:
    given = moved(draw(25, kind="table", queries=40, keys=9), device)
    values = given["bias"].values
    found, expected = (
        slopes([getattr(biased_attention(**given, keep_weights=True, backend=backend), output) * scale], [values])[0]
        / scale
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float32, True), (torch.bfloat16, False)])
@every_kind
def test_it_compiles_without_a_graph_break(kind: str, dtype: torch.dtype, kept: bool, device: str) -> None:
    given = moved(draw(26, kind=kind, batch=1, groups=1, padded=0.3), device, dtype)
    query = given.pop("query")

    def attend(query: Tensor, **others: Any) -> tuple[Tensor, ...]:
        return biased_attention(query, **others, keep_weights=kept, backend="triton")[: 2 + kept]

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    inputs = [query, *leaves(given)]
    results = [(*out, *slopes(out, inputs)) for out in (f(query, **given) for f in (compiled, attend))]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.fixture
def identity(device: str) -> dict[str, Any]:
    """Arguments whose output is the weights."""
    given = draw(9, queries=60, keys=32, width=32)
    given["value"] = torch.eye(32).expand(2, 4, -1, -1)
    return moved(given, device)


def test_dropout_drops_a_share_and_the_others_grow(identity: dict[str, Any]) -> None:
    torch.manual_seed(0)
    out, mass, weights = biased_attention(**identity, dropout=0.25, keep_weights=True, backend="triton")
    plain = biased_attention(**identity, backend="reference", keep_weights=True)
    dropped = out == 0
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(out[~dropped], plain.weights[~dropped] / 0.75)
    torch.testing.assert_close((mass, weights), (plain.mass, plain.weights))


def test_dropout_keeps_the_mean(device: str) -> None:
    given = {name: entry.detach()[:1] for name, entry in draw(27, groups=1, queries=1, keys=8).items()}
    many = dict(given, query=given["query"].expand(-1, -1, 1500, -1))
    many |= {name: given[name].expand(-1, 1500, *given[name].shape[2:]) for name in ("query_position", "query_mask")}
    torch.manual_seed(0)
    found = biased_attention(**moved(many, device), dropout=0.3, backend="triton").out
    expected = biased_attention(**moved(given, device), backend="reference").out.squeeze(2)
    torch.testing.assert_close(found.mean(2), expected, rtol=0, atol=0.05)
    heads = found.transpose(1, 2)[0]  # each drops weights of its own
    assert not torch.equal(heads[:, 0] == heads[:1, 0], heads[:, 1] == heads[:1, 1])


def test_full_dropout_leaves_no_gradient(device: str) -> None:
    given = moved(draw(28, kind="table"), device)
    out = biased_attention(**given, dropout=1.0, backend="triton").out
    assert all((slope == 0).all() for slope in slopes([out], leaves(given)))


def test_dropout_depends_on_the_seed_of_torch_and_drops_all_at_one(identity: dict[str, Any]) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(biased_attention(**identity, dropout=0.5, backend="triton").out)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert (biased_attention(**identity, dropout=1.0, backend="triton").out == 0).all()


@kept_or_not
@every_kind
def test_the_backward_pass_drops_the_same_weights(kind: str, kept: bool, device: str) -> None:
    given = moved(draw(10, kind=kind, groups=1, queries=20, keys=8, width=8), device)
    eye = {"value": torch.eye(8, device=device).expand(2, 2, -1, -1)}
    torch.manual_seed(0)
    stays = (biased_attention(**given | eye, dropout=0.5, backend="triton").out != 0).float()
    weights = AttentionScores(**{name: part for name, part in given.items() if name != "value"}).weights()
    outputs = [(weights * stays * 2) @ given["value"], weights.sum(2), weights]
    expected = slopes(outputs[: 2 + kept], leaves(given))
    torch.manual_seed(0)
    found = run(given, "triton", dropout=0.5, keep_weights=kept)[2 + kept :]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "dropout", "kept"),
    [("none", 0.0, False), ("none", 0.3, True), ("network", 0.3, True), ("table", 0.3, False)],
)
def test_the_operators_are_well_registered(kind: str, dropout: float, kept: bool, device: str) -> None:
    given = moved(draw(11, kind=kind, batch=2, groups=1, dropped=0.3), device)
    given = {name: strided(entry) for name, entry in given.items()}

    def train() -> None:
        attended = biased_attention(**given, dropout=dropout, keep_weights=kept, backend="triton")
        sum(entry.square().sum() for entry in attended if entry is not None).backward()

    found = calls(train)
    assert len(found) == 2
    for operator, arguments in found:
        torch.library.opcheck(operator, arguments)


@every_kind
def test_kernels_give_the_weights_that_are_to_be_kept(kind: str, device: str) -> None:
    given = moved(draw(12, kind=kind, padded=0.3), device)
    called = calls(lambda: biased_attention(**given, keep_weights=True, backend="triton"))
    assert [operator.name() for operator, _ in called] == ["disentangled_mil::biased_attention_triton"]


def test_kernels_give_weights_that_are_asked_for_later_on_a_gpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(import_module(f"{PACKAGE}._scores"), "choose_backend", lambda backend, scores: "triton")
    given = moved(draw(33, kind="network", padded=0.3, dropped=0.3), device)
    kept = biased_attention(**given, keep_weights=True).weights
    del given["value"]
    scores = AttentionScores(**given)
    assert torch.equal(scores.weights(), kept)
    torch.testing.assert_close(slopes([scores.weights()], leaves(given)), slopes([kept], leaves(given)))
    assert [operator.name() for operator, _ in calls(scores.weights)] == ["disentangled_mil::biased_attention_triton"]


def test_a_gradient_of_a_gradient_is_refused(device: str) -> None:
    given = moved(draw(13), device)
    out = biased_attention(**given, backend="triton").out
    (slope,) = torch.autograd.grad(out.square().sum(), given["query"], create_graph=True)
    with pytest.raises(NotImplementedError, match='a gradient of a gradient needs backend="reference"'):
        slope.sum().backward()


def test_float64_is_refused(device: str) -> None:
    message = 'query must be float16, bfloat16 or float32 for backend="triton", got torch.float64'
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        biased_attention(**moved(draw(14), device, torch.float64), backend="triton")


def test_tensors_elsewhere_than_on_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disentangled_mil.ops._triton_runtime._INTERPRETED", False)
    with pytest.raises(ValueError, match=r'query must be on a CUDA device for backend="triton", got cpu'):
        biased_attention(**draw(15, dtype=torch.float32), backend="triton")


@pytest.mark.parametrize(
    ("features", "width", "message"),
    [(16, 257, "query must have D <= 256"), (129, 16, "bias must have F <= 128")],
)
def test_larger_sizes_than_kernels_take_are_refused(features: int, width: int, message: str, device: str) -> None:
    given = moved(draw(32, per_group=1, width=width, dtype=torch.float32) | {"bias": network(features)}, device)
    message += f' for backend="triton", got {max(features, width)}; backend="reference" and backend="streaming"'
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        biased_attention(**given, backend="triton")


@pytest.mark.parametrize(
    ("features", "width", "dtype", "chosen"),
    [
        (None, 256, torch.float32, "triton"),
        (None, 257, torch.float32, "reference"),  # one small set
        (64, 64, torch.bfloat16, "triton"),
        (65, 64, torch.bfloat16, "streaming"),
        (64, 64, torch.float64, "streaming"),
    ],
)
def test_kernels_are_chosen_on_a_gpu_where_they_have_room(
    features: int | None, width: int, dtype: torch.dtype, chosen: str
) -> None:
    shapes = [part.shape for part in network(features or 1)]
    with FakeTensorMode(), torch.device("cuda"):
        query = torch.empty(1, 1, 5, width, dtype=dtype)
        bias = None if features is None else MLPBias(*map(torch.empty, shapes))
        scores = AttentionScores(query, query, torch.empty(1, 5, 2), torch.empty(1, 1, 5, 2), bias)
        assert choose_backend("auto", scores) == chosen


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Triton were not installed."""
    monkeypatch.setattr("disentangled_mil.ops._triton_runtime._AVAILABLE", False)
    monkeypatch.setitem(sys.modules, "triton", None)


@pytest.mark.usefixtures("no_triton")
def test_without_triton_its_kernels_are_refused_and_everything_else_runs(device: str) -> None:
    given = moved(draw(16), device)
    with pytest.raises(RuntimeError, match='backend="triton" needs the package triton, which is not installed'):
        biased_attention(**given, backend="triton")
    assert biased_attention(**given).out.isfinite().any()


def test_a_bias_that_is_no_formula_is_refused(device: str) -> None:
    given = moved(draw(17), device) | {"bias": lambda displacement: displacement}
    with pytest.raises(TypeError, match="bias must be an MLPBias, a BiasTable or None for backend='triton'"):
        biased_attention(**given, backend="triton")


def test_kernels_are_what_is_taken_by_itself_on_a_gpu(device: str) -> None:
    if device == "cpu":
        pytest.skip("needs --device cuda")
    given = moved(draw(18), device)
    assert "triton" in calls(lambda: biased_attention(**given))[0][0].name()


def test_a_table_larger_than_the_displacements_reads_nothing_outside(device: str) -> None:
    given = moved(draw(19), device)
    values = torch.arange(18.0, device=device).view(2, 3, 3)
    for reach in (0.01, 1.0, 100.0):
        table = {"bias": BiasTable(values, reach)}
        torch.testing.assert_close(
            biased_attention(**given | table, backend="triton")[:2],
            biased_attention(**given | table, backend="reference")[:2],
        )
