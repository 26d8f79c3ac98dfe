"""The check that the candidates of a case compute the same; the command times nothing else."""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .case import Candidate, Case, Outputs, Unavailable
from .cases import CASES


class Disagreement(Exception):
    """A candidate deviates too far from its oracle."""


class Checked(NamedTuple):
    """The candidates that may be measured at a size.

    Attributes:
        compared_at: number of tokens at which they were compared.
        deviations: deviation of each candidate from its oracle; 0 for a candidate that has none.
        absent: reason for which each of the others is left out.
    """

    compared_at: int
    deviations: dict[str, float]
    absent: dict[str, str]


def check(name: str, size: int, limit: float, device: torch.device) -> Checked:
    """Compare the candidates at a size, or at the largest size at which all of them fit into ``limit`` bytes.

    Raises:
        Disagreement: a candidate deviates too far from its oracle.
    """
    case = CASES[name]
    at = case.compared_at(size, limit)
    found = _agreement(name, case, at, device)
    absent = {candidate: reason for candidate, reason in found.items() if isinstance(reason, str)}
    for key, candidate in case.candidates.items():
        if candidate.memory and not candidate.fits(size, limit):
            absent[key] = f"would take about {candidate.memory(size) / 1e9:.0f} GB, the limit is {limit / 1e9:.3g} GB"
        elif candidate.most_on_cpu and device.type == "cpu" and size > candidate.most_on_cpu:
            absent[key] = f"takes too long on a CPU beyond {candidate.most_on_cpu:,} tokens"
    deviations = {n: found for n, found in found.items() if not isinstance(found, str) and n not in absent}
    return Checked(at, deviations, absent)


@cache
def _agreement(of: str, case: Case, size: int, device: torch.device) -> dict[str, float | str]:
    """Give the deviation of each candidate from its oracle, or the reason for which it cannot run here."""
    outputs: dict[str, Outputs] = {}
    found: dict[str, float | str] = {}
    for name, candidate in case.candidates.items():
        try:
            outputs[name] = (candidate.proof or candidate.prepare)(size, device)()
        except Unavailable as reason:
            found[name] = str(reason)
            continue
        found[name] = 0.0
        if candidate.oracle is not None:
            where, deviation = _deviation(candidate, outputs[name], outputs[candidate.oracle])
            if not deviation <= candidate.tolerance:
                raise Disagreement(
                    f"{of}: {name!r} must agree with {candidate.oracle!r} to {candidate.tolerance:.0e} of the largest "
                    f"entry, deviates by {deviation:.1e} in {where!r} at {size:,} tokens"
                )
            found[name] = deviation
    return found


def _deviation(candidate: Candidate, got: Outputs, wanted: Outputs) -> tuple[str, float]:
    """Find the tensor that deviates most, and its deviation."""
    if candidate.approximate:
        got, wanted = ({"result": outputs["result"]} for outputs in (got, wanted))
    if got.keys() != wanted.keys():
        return ", ".join(sorted(got.keys() ^ wanted.keys())), math.inf
    deviations = {name: _share(got[name], wanted[name]) for name in wanted}
    return max(deviations.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


def _share(got: Tensor, wanted: Tensor) -> float:
    """Give the largest difference as a share of the largest entry; integers must be equal."""
    if got.shape != wanted.shape:
        return math.inf
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(got, wanted) else math.inf
    difference, largest = float((got - wanted).abs().max()), float(wanted.abs().max())
    if difference == 0:
        return 0.0
    return difference / largest if largest else math.inf
