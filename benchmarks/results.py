"""Stored measurements, one JSON file for each device, and the full table that is made of them."""

import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import torch

from disentangled_mil import __version__
from disentangled_mil._files import replacing

from .cases import CASES

Record: TypeAlias = dict[str, Any]  # measurements of one case at one size

_LIBRARIES = ("torch", "triton", "pykeops", "scikit-learn", "lifelines", "torchmil")
# Columns: the rate that a candidate reaches, as a share of a matrix product's or a copy's rate in the same run.
_SHARES = {"of a product": "operations", "of a copy": "bytes"}
RESULTS = Path(__file__).parent / "results"
_CPU = torch.device("cpu")
_REPOSITORY = Path(__file__).resolve().parents[1]
# Folders in which an uncommitted change could change a number.
_MEASURED = ("disentangled_mil", "benchmarks", ":!benchmarks/results")


def device_name(device: torch.device) -> str:
    """Name the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", cpus.read_text(), re.MULTILINE) if cpus.exists() else None
    model = found[1] if found else platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"


def file_of(folder: Path, device: str) -> Path:
    """Give the file that keeps the results of a device."""
    return folder / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def record(case: str, size: int, device: torch.device, ceilings: Record, candidates: Record) -> Record:
    """Put the measurements of one case at one size together with everything that they depend on."""
    return {
        "case": case,
        "size": size,
        **environment(device),
        "ceilings": ceilings,
        "candidates": candidates,
    }


def environment(device: torch.device = _CPU) -> Record:
    """Give device, versions and commit, on which numbers depend."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {"disentangled_mil": __version__, "python": platform.python_version()} | dict(_versions()),
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--", *_MEASURED)),
    }


def code_state() -> str:
    """Say which commit this checkout is at, and whether something is changed that is not committed."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    return f"commit {commit}{' with changes' if _git('status', '--porcelain', '--', *_MEASURED) else ''}"


def _versions() -> Iterator[tuple[str, str]]:
    for library in _LIBRARIES:
        try:
            yield library, importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue


def _git(*arguments: str) -> str | None:
    """Ask git about this checkout; None where there is no git."""
    try:
        said = subprocess.run(["git", *arguments], cwd=_REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()


def read(path: Path) -> list[Record]:
    """Read the records of a file; there are none without the file."""
    return list(json.loads(path.read_text(encoding="utf-8"))["records"]) if path.exists() else []


def keep(path: Path, record: Record) -> None:
    """Store a record; it replaces an older one of the same case and size."""
    kept = {(r["case"], r["size"]): r for r in (*read(path), record)}
    order = list(CASES)
    records = sorted(kept.values(), key=lambda r: (order.index(r["case"]) if r["case"] in order else -1, r["size"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"records": records}, indent=1) + "\n", encoding="utf-8")


def table(records: Iterable[Record]) -> str:
    """Make the table of ratios to the dense reference in Markdown, with the summaries of the cases below."""
    head = ("case", "tokens", "candidate", "time (range)", "fastest", "memory", "peak", *_SHARES, "deviation")
    lines, notes = [_row(head), _row(["---"] * len(head))], []
    for record in records:
        for name, candidate in record["candidates"].items():
            cells = [candidate["absent"], *[""] * 6] if "absent" in candidate else _cells(record, candidate)
            lines.append(_row([record["case"], f"{record['size']:,}", name, *cells]))
        seconds = {n: median(c["seconds"]) for n, c in record["candidates"].items() if "seconds" in c}
        for name, summary in CASES[record["case"]].summaries.items():
            with suppress(KeyError):  # a candidate may be unable to run on this device
                notes.append(f"* {record['case']}, {record['size']:,} tokens: {name} = {summary(seconds):.3g}")
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def ratios(candidate: Record, reference: Record) -> tuple[str, str]:
    """Compare the median time and the peak memory of a candidate with the reference's; empty where one is unknown."""
    time = memory = ""
    if "seconds" in reference:
        time = _ratio(median(_by_round(candidate["seconds"], reference["seconds"])))
        if candidate["peak_bytes"] is not None and reference["peak_bytes"]:
            memory = _ratio(candidate["peak_bytes"] / reference["peak_bytes"])
    return time, memory


def _cells(record: Record, candidate: Record) -> list[str]:
    """Give the cells of one candidate."""
    reference = record["candidates"].get("reference", {})
    time, memory = ratios(candidate, reference)
    fastest = ""
    if time:
        rounds = _by_round(candidate["seconds"], reference["seconds"])
        time = f"{time} ({_ratio(min(rounds))} to {_ratio(max(rounds))})"
        fastest = _ratio(min(candidate["seconds"]) / min(reference["seconds"]))
    peak = "not measured" if candidate["peak_bytes"] is None else f"{candidate['peak_bytes'] / 1e6:,.1f} MB"
    per_cost = {what: min(candidate["seconds"]) * ceiling for what, ceiling in record["ceilings"].items()}
    shares = [f"{candidate[what] / per_cost[what]:.0%}" if what in candidate else "" for what in _SHARES.values()]
    deviation = "" if candidate["oracle"] is None else f"{candidate['deviation']:.0e}"
    if deviation and candidate["compared_at"] != record["size"]:
        deviation += f" at {candidate['compared_at']:,}"
    return [time, fastest, memory, peak, *shares, deviation]


def _by_round(seconds: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Compare round by round; compare medians where one of the two ran only once."""
    if len(seconds) == len(reference):
        return [ours / theirs for ours, theirs in zip(seconds, reference, strict=True)]
    return [median(seconds) / median(reference)]


def _ratio(ratio: float) -> str:
    return f"1/{1 / ratio:.1f}" if 0 < ratio < 1 else f"{ratio:.2f}"
