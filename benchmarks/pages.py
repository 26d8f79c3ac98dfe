"""The tables of the README and the documentation that are made of stored results.

A page holds each table between two comments: ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
``python -m benchmarks --pages`` writes the tables anew, and a test finds pages that are out of date.
"""

import re
from pathlib import Path
from statistics import median

from . import quality, results
from .results import Record

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = tuple(REPOSITORY / page for page in ("README.md", "docs/performance.md", "docs/results.md"))
# Cases that users have, their sizes, and the candidates that the page shows.
WORK = {
    "layer": "one deformable layer",
    "teacher": "one training step of the teacher",
    "density-peaks": "clustering of one bag",
    "scaling": "one deformable layer",
}
SIZES = {"scaling": (10_000, 40_000), "density-peaks": (10_000, 100_000)}
CANDIDATES = {
    "streaming, table": "table",
    "streaming": "exact",
    "triton, table": "table, Triton",
    "triton": "exact, Triton",
}
_MARKED = re.compile(r"(<!-- table: ([\w -]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def write(pages: tuple[Path, ...] = PAGES) -> None:
    """Write the tables of all pages anew."""
    for page in pages:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


def rendered(text: str) -> str:
    """Give the text of a page with its tables as the stored results have them.

    Raises:
        ValueError: the page asks for a table for which nothing is stored.
    """
    return _MARKED.sub(lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", text)


def table(name: str) -> str:
    """Make one table: ``speed``, or the results of a cohort; the name may end in ``brief``.

    Raises:
        ValueError: nothing is stored for the name.
    """
    subject, _, length = name.partition(" ")
    made = speed(brief=bool(length)) if subject == "speed" else _quality(subject, brief=bool(length))
    if not made:
        raise ValueError(f"a table must be speed or a cohort of {quality.RESULTS}, got {name!r}")
    return made


def _quality(cohort: str, *, brief: bool) -> str:
    runs = [run for run in quality.read() if run.cohort == cohort]
    return quality.table(cohort, runs, brief=brief) if runs else ""


def speed(folder: Path = results.RESULTS, *, brief: bool = False) -> str:
    """Make the short table of time and memory, one for each device.

    Args:
        folder: the folder of the results, one file for each device.
        brief: whether to show the default position bias only, and no conditions.

    Returns:
        The tables in Markdown, each with its conditions above.
    """
    parts = []
    for path in sorted(folder.glob("*.json")):
        records = [r for r in results.read(path) if r["case"] in WORK and _is_shown(r)]
        head = ["work", "tokens", "position bias", "time", "of dense time", "peak memory", "of dense memory"]
        rows = [row for record in records for row in _rows(record, brief)]
        if rows:
            parts.append(
                "\n".join([*([] if brief else [_conditions(records), ""]), *map(_line, [head, ["---"] * 7, *rows])])
            )
    return "\n\n".join(parts)


def _is_shown(record: Record) -> bool:
    return record["case"] not in SIZES or record["size"] in SIZES[record["case"]]


def _rows(record: Record, brief: bool) -> list[list[str]]:
    """Give the rows of one case at one size."""
    rows = []
    reference = record["candidates"].get("reference", {})
    for name, bias in CANDIDATES.items():
        measured = record["candidates"].get(name, {})
        has_bias = "streaming, table" in record["candidates"]
        if "seconds" not in measured or (brief and has_bias and "table" not in bias):
            continue
        time, memory = results.ratios(measured, reference)
        seconds, peak = median(measured["seconds"]), measured["peak_bytes"]
        rows.append(
            [
                WORK[record["case"]],
                f"{record['size']:,}",
                bias if has_bias else "",
                f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s",
                time or "does not fit",
                "" if peak is None else f"{peak / 1e6:,.0f} MB",
                memory or "does not fit",
            ]
        )
    return rows


def _conditions(records: list[Record]) -> str:
    """Say where and with what the records were measured."""
    devices = ", ".join(sorted({record["device"] for record in records}))
    commits = ", ".join(dict.fromkeys(str(record["commit"])[:7] for record in records))
    versions = ", ".join(sorted({f"PyTorch {record['versions']['torch']}" for record in records}))
    return f"{devices}; {versions}; commits {commits}; command `python -m benchmarks`:"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
