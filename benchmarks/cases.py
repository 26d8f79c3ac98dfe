"""The cases: what is measured, at which sizes, and in how many ways."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from disentangled_mil.ops import segment_mean

from . import peers, work
from .case import Candidate, Case, Prepare, Unavailable, Work
from .inputs import CLUSTERS, DIM, HEADS, WIDTH, sampled_keys

_WAYS = (  # name, implementation, bias, and what it must agree with
    ("reference", "reference", "exact", None),
    ("reference, table", "reference", "table", "reference"),
    ("streaming", "streaming", "exact", "reference"),
    ("streaming, table", "streaming", "table", "reference, table"),
    ("triton", "triton", "exact", "reference"),
    ("triton, table", "triton", "table", "reference, table"),
)


def _using(call: Callable[..., Work], **options: object) -> Prepare:
    """Work with its options."""

    def prepare(size: int, device: torch.device) -> Work:
        if options.get("backend") == "triton" and device.type != "cuda":
            raise Unavailable("needs an NVIDIA GPU")
        return call(size, device, **options)

    return prepare


def _attending(
    call: Callable[..., Work],
    *,
    maps: int,
    cost: Callable[..., tuple[float, float]] | None = None,
    proof: dict[str, object] | None = None,
    **options: object,
) -> dict[str, Candidate]:
    """A candidate for every implementation of biased attention with each of its biases.

    Args:
        call: the work, with the options ``backend`` and ``bias``.
        maps: attention maps of single bags that the work goes through.
        cost: operations and bytes by size and bias.
        proof: other options under which candidates are compared.
        **options: of ``call``.
    """
    candidates = {}
    for name, backend, bias, oracle in _WAYS:
        chosen = options | {"backend": backend, "bias": bias}
        candidates[name] = Candidate(
            _using(call, **chosen),
            oracle,
            approximate=name == "reference, table",
            proof=_using(call, **chosen | proof) if proof else None,
            memory=partial(_dense_bytes, maps=maps, bias=bias) if backend == "reference" else None,
            cost=partial(cost, bias=bias) if cost else None,
        )
    return candidates


def _dense_bytes(size: int, *, maps: int, bias: str) -> float:
    """About what the dense reference keeps for its backward pass; most of it are activations of the bias network."""
    per_entry = 600 if bias == "exact" else 70
    return float(maps * HEADS * size * sampled_keys(size) * per_entry)


def _attention_cost(size: int, bias: str, *, backward: bool) -> tuple[float, float]:
    """Two products with V and K, and the bias, then twice as much on the way back; every tensor moved once."""
    keys, hidden = sampled_keys(size), DIM // 4
    per_bias = 2 * (2 * hidden + hidden**2 + hidden) if bias == "exact" else 12
    operations = HEADS * size * keys * (4 * WIDTH + per_bias)
    numbers = HEADS * WIDTH * (7 * size + 8 * keys if backward else 2 * size + 2 * keys)
    return float(operations * (3 if backward else 1)), 4.0 * numbers


def _peaks_cost(size: int) -> tuple[float, float]:
    return 4.0 * size**2 * DIM, 4.0 * size * DIM


def _merge_cost(size: int) -> tuple[float, float]:
    return 4 * 6.0 * size * CLUSTERS * DIM, 4 * 4 * 3.0 * size * DIM


def _sdpa(*, backward: bool) -> dict[str, Candidate]:
    return {
        f"SDPA{suffix}": Candidate(
            partial(peers.sdpa, bias=bias, backward=backward),
            oracle=f"reference{suffix}",
            memory=partial(_dense_bytes, maps=1, bias=bias),
            cost=partial(_attention_cost, bias=bias, backward=backward),
        )
        for bias, suffix in (("exact", ""), ("table", ", table"))
    }


def _flex(*, backward: bool) -> dict[str, Candidate]:
    cost = partial(_attention_cost, bias="table", backward=backward)
    return {"flex, table": Candidate(partial(peers.flex, backward=backward), oracle="reference, table", cost=cost)}


def _attention(*, backward: bool) -> dict[str, Candidate]:
    ours = _attending(work.attention, maps=1, cost=partial(_attention_cost, backward=backward), backward=backward)
    return ours | _sdpa(backward=backward) | _flex(backward=backward)


def _teacher() -> dict[str, Candidate]:
    ways = _attending(work.teacher, maps=8, proof={"training": False}, training=True, coordinated=True)
    plain = {
        f"{name}, plain": Candidate(_using(work.teacher, backend=backend, bias=bias, training=True, coordinated=False))
        for name, backend, bias, _ in _WAYS
        if backend != "reference"
    }
    return ways | plain


def _growth() -> dict[str, Candidate]:
    step = {"bias": "table", "training": True, "coordinated": True, "slides": 1}
    still = step | {"training": False}
    return {
        "reference": Candidate(
            _using(work.teacher, backend="reference", **step),
            proof=_using(work.teacher, backend="reference", **still),
            memory=partial(_dense_bytes, maps=4, bias="table"),
        ),
        "teacher step": Candidate(
            _using(work.teacher, backend="auto", **step),
            "reference",
            proof=_using(work.teacher, backend="auto", **still),
        ),
        "student prediction": Candidate(_using(work.student, clustering=True)),
        "student prediction, no clustering": Candidate(_using(work.student, clustering=False)),
    }


def _share(name: str) -> Callable[[Mapping[str, float]], float]:
    return lambda seconds: 1 - seconds[f"{name}, plain"] / seconds[name]


def _over(name: str, yardstick: str) -> Callable[[Mapping[str, float]], float]:
    return lambda seconds: seconds[name] / seconds[yardstick]


CASES: Mapping[str, Case] = {
    "layer": Case(
        "forward and backward of one deformable layer, eval mode",
        (2500,),
        _attending(work.layer, maps=1, training=False),
    ),
    "layer-dropout": Case(
        "the same with dropout, train mode (compared without: draws differ)",
        (2500,),
        _attending(work.layer, maps=1, proof={"training": False}, training=True),
    ),
    "scaling": Case(
        "the layer in eval mode over the number of tokens, for the figure",
        (1000, 2500, 5000, 10000, 20000, 40000),
        _attending(work.layer, maps=1, training=False),
    ),
    "growth": Case(
        "whole slides: a training step of the teacher and a prediction of the student on one slide, for the figure",
        (16_000, 32_000, 64_000),
        _growth(),
        small=2500,
    ),
    "teacher": Case(
        "one training step: 2 magnifications x 2 subspaces, batch of 2, IGC and CGC (compared without dropout)",
        (2500,),
        _teacher(),
        {f"share of IGC and CGC, {name}": _share(name) for name, backend, *_ in _WAYS if backend != "reference"},
    ),
    "attention": Case(
        "biased attention alone, forward and backward, beside its peers",
        (2500,),
        _attention(backward=True),
    ),
    "attention-forward": Case(
        "biased attention alone, forward, beside its peers",
        (2500,),
        _attention(backward=False),
    ),
    "density-peaks": Case(
        "density-peak clustering, beside KeOps and two passes of the plain matrix product",
        (1000, 2500, 10000, 100000),
        {
            "reference": Candidate(
                _using(work.peaks, backend="reference"), memory=lambda n: 21.0 * n**2, cost=_peaks_cost
            ),
            "streaming": Candidate(_using(work.peaks, backend="streaming"), "reference", cost=_peaks_cost),
            "triton": Candidate(_using(work.peaks, backend="triton"), "reference", cost=_peaks_cost),
            "KeOps": Candidate(peers.keops, "reference", most_on_cpu=20_000),
            "two products": Candidate(work.two_products, cost=_peaks_cost),
        },
        {f"{name} / two products": _over(name, "two products") for name in ("streaming", "triton", "KeOps")},
    ),
    "segment-mean": Case(
        "weighted means per segment of 4 bags, forward and backward",
        (10000,),
        {
            "reference": Candidate(_using(work.merge, mean=work.dense_mean), cost=_merge_cost),
            "segment_mean": Candidate(_using(work.merge, mean=segment_mean), "reference", cost=_merge_cost),
        },
    ),
}
