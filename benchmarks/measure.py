"""The measurement: memory, then time, and the rates that the machine itself reaches."""

import ctypes
import gc
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .agreement import Checked
from .case import Candidate, Outputs, Work
from .cases import CASES

_SHORTEST_ROUND = 0.05  # seconds; quicker work is repeated within a round
_FLUSH_BYTES = 1 << 28  # larger than the L2 cache of any GPU


class FirstCall(NamedTuple):
    """One call on fresh inputs, after a warm-up at another size."""

    seconds: float
    peak_bytes: int | None


def measure(
    name: str,
    size: int,
    checked: Checked,
    device: torch.device,
    *,
    repeats: int,
    seconds: float,
    memory: bool,
) -> dict[str, dict[str, Any]]:
    """Measure the candidates of a case: a first call of each, then rounds in which they take turns.

    Args:
        name: name of the case.
        size: number of tokens.
        checked: candidates that agree with their oracle.
        device: device of the inputs.
        repeats: largest number of rounds.
        seconds: time for all rounds together; work that takes longer by itself takes no part in them.
        memory: whether to measure memory on a CPU, in a process for each candidate.

    Returns:
        The measurements of each candidate, or the reason for which it is absent.
    """
    case = CASES[name]
    kept: dict[str, dict[str, Any]] = {}
    works: dict[str, Work] = {}
    for candidate, deviation in checked.deviations.items():
        chosen = case.candidates[candidate]
        apart = memory and device.type == "cpu"
        first = first_call_apart(name, size, candidate) if apart else first_call(chosen, size, case.small, device)
        if isinstance(first, str):
            kept[candidate] = {"absent": first}
            continue
        kept[candidate] = {
            "oracle": chosen.oracle,
            "deviation": deviation,
            "compared_at": checked.compared_at,
            "first_seconds": first.seconds,
            "seconds": [first.seconds],
            "peak_bytes": first.peak_bytes if apart or device.type == "cuda" else None,
        }
        if chosen.cost:
            kept[candidate]["operations"], kept[candidate]["bytes"] = chosen.cost(size)
        if first.seconds <= seconds:
            works[candidate] = chosen.prepare(size, device)
        elif apart:  # the process for memory is slower, because it returns freed blocks at once
            kept[candidate]["seconds"] = [Clock(device)(chosen.prepare(size, device))]
    first_seconds = {candidate: kept[candidate]["first_seconds"] for candidate in works}
    count = max(2, min(repeats, int(seconds / max(sum(first_seconds.values()), _SHORTEST_ROUND))))
    for candidate, times in _rounds(works, first_seconds, count, device).items():
        kept[candidate]["seconds"] = times
    kept |= {candidate: {"absent": reason} for candidate, reason in checked.absent.items()}
    return {candidate: kept[candidate] for candidate in case.candidates}


def first_call(candidate: Candidate, size: int, small: int, device: torch.device) -> FirstCall | str:
    """Measure seconds and peak memory above the inputs in one call, or say that the GPU has too little memory.

    On a CPU the memory is meaningful in a fresh process only.
    """
    # The warm-up keeps workspaces of libraries and, on a GPU, the choice of a kernel's variant out of the measurement.
    candidate.prepare(size if device.type == "cuda" else small, device)()
    work, clock = candidate.prepare(size, device), Clock(device)
    gc.collect()
    before = _reset_peak(device)
    try:
        seconds = clock(work)
    except torch.OutOfMemoryError:
        return "the GPU has too little memory"
    return FirstCall(seconds, None if before is None else _peak(device) - before)


def first_call_apart(case: str, size: int, candidate: str) -> FirstCall | str:
    """Run :func:`first_call` on the CPU in a process of its own, or say how that process ended."""
    command = [sys.executable, "-m", "benchmarks.measure", case, str(size), candidate, str(torch.get_num_threads())]
    # Freed blocks of at least 64 KiB return to the system, so that memory kept by malloc does not count.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode < 0:
        return f"killed by signal {-ended.returncode}, probably because memory ran out"
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ended.stderr}")
    return FirstCall(*json.loads(ended.stdout.splitlines()[-1]))


def _rounds(
    works: Mapping[str, Work], first: Mapping[str, float], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Time one call of each candidate in every round."""
    clock = Clock(device)
    calls = {name: max(1, math.ceil(_SHORTEST_ROUND / first[name])) for name in works}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(sum(clock(work) for _ in range(calls[name])) / calls[name])
    return seconds


class Clock:
    """Timer of one call: the clock on a CPU, events after a flush of the L2 cache on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._flush = torch.empty(_FLUSH_BYTES if device.type == "cuda" else 0, dtype=torch.uint8, device=device)

    def __call__(self, work: Work) -> float:
        if self._flush.device.type == "cpu":
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        self._flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1000


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure the operations and bytes per second of a float32 matrix product and of a copy."""
    side, numbers = (8192, 1 << 28) if device.type == "cuda" else (1024, 1 << 24)
    matrix = torch.randn(side, side, device=device)
    source = torch.ones(numbers, device=device)
    target, product = torch.empty_like(source), torch.empty_like(matrix)

    def multiply() -> Outputs:
        return {"product": torch.mm(matrix, matrix, out=product)}

    def copy() -> Outputs:
        return {"copy": target.copy_(source)}

    clock = Clock(device)
    multiplied, copied = (min(clock(work) for _ in range(5)) for work in (multiply, copy))
    return {"operations": 2 * side**3 / multiplied, "bytes": 8 * numbers / copied}


def _reset_peak(device: torch.device) -> int | None:
    """Reset the peak memory and give the memory in use now, or None where the system tracks no peak."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    switch = Path("/proc/self/clear_refs")
    if not switch.exists():
        return None
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # free memory that malloc keeps would hide what the call takes
    switch.write_text("5")
    return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0])


def _main(case: str, size: str, candidate: str, threads: str) -> None:
    """Do the work of the process that :func:`first_call_apart` starts."""
    torch.set_num_threads(int(threads))
    print(json.dumps(first_call(CASES[case].candidates[candidate], int(size), CASES[case].small, torch.device("cpu"))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
