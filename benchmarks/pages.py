"""The tables of the README and the documentation that are made of stored results.

A page holds each table between two comments: ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
``python -m benchmarks --pages`` writes the tables anew, and a test finds pages that are out of date.
"""

import re
from pathlib import Path
from statistics import median
from typing import NamedTuple

from . import quality, results
from .results import Record

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = tuple(
    REPOSITORY / page for page in ("README.md", "docs/performance.md", "docs/results.md", "docs/experiments.md")
)


class Shown(NamedTuple):
    """A row of the short table.

    Attributes:
        case: the name of the case.
        candidate: the candidate of the case.
        work: what the row says.
        bias: the kind of position bias, where there is one.
        sizes: numbers of tokens to show; all that are stored by default.
    """

    case: str
    candidate: str
    work: str
    bias: str = ""
    sizes: tuple[int, ...] = ()


_BIASED = (
    ("layer", "one deformable layer", ()),
    ("scaling", "one deformable layer", (10_000, 40_000)),
    ("teacher", "one training step of the teacher", ()),
)
SHOWN = (
    *(Shown(case, "streaming, table", work, "table", sizes) for case, work, sizes in _BIASED),
    *(Shown(case, "triton, table", f"{work}, Triton", "table", sizes) for case, work, sizes in _BIASED),
    *(Shown(case, "streaming", work, "exact", sizes) for case, work, sizes in _BIASED),
    *(Shown(case, "triton", f"{work}, Triton", "exact", sizes) for case, work, sizes in _BIASED),
    Shown("growth", "teacher step", "training step of the teacher, one slide", "table", (16_000, 64_000)),
    Shown("growth", "student prediction", "prediction of the student, one slide", "table", (16_000, 64_000)),
    Shown("growth", "student prediction, no clustering", "the same without clustering", "table", (16_000, 64_000)),
    Shown("density-peaks", "streaming", "clustering of one bag", sizes=(10_000, 100_000)),
    Shown("density-peaks", "triton", "clustering of one bag, Triton", sizes=(10_000, 100_000)),
)
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
    """Make one table: ``speed``, ``experiment NAME``, or the results of a cohort; the name may end in ``brief``.

    Raises:
        ValueError: nothing is stored for the name.
    """
    subject, _, rest = name.partition(" ")
    if subject == "experiment":
        return _experiment(rest)
    made = speed(brief=bool(rest)) if subject == "speed" else _quality(subject, brief=bool(rest))
    if not made:
        raise ValueError(f"a table must be speed, an experiment or a cohort of {quality.RESULTS}, got {name!r}")
    return made


def _experiment(name: str) -> str:
    from .experiments import summary  # they need the extra `train`
    from .experiments.catalog import EXPERIMENTS
    from .experiments.tables import section

    if name not in EXPERIMENTS:
        raise ValueError(f"a table must be of an experiment among {', '.join(EXPERIMENTS)}, got {name!r}")
    return section(EXPERIMENTS[name], summary.read(name))


def _quality(cohort: str, *, brief: bool) -> str:
    runs = [run for run in quality.read() if run.cohort == cohort]
    return quality.table(cohort, runs, brief=brief) if runs else ""


def speed(folder: Path = results.RESULTS, *, brief: bool = False) -> str:
    """Make the short table of time and memory, one for each device.

    Args:
        folder: the folder of the results, one file for each device.
        brief: whether to show the default position bias only, and of the conditions the device only.

    Returns:
        The tables in Markdown, each with its conditions above.
    """
    parts = []
    head = ["work", "tokens", "position bias", "time", "of dense time", "peak memory", "of dense memory"]
    for path in sorted(folder.glob("*.json")):
        records = results.read(path)
        rows = [
            (record, shown)
            for shown in SHOWN
            for record in records
            if record["case"] == shown.case
            and (not shown.sizes or record["size"] in shown.sizes)
            and "seconds" in record["candidates"].get(shown.candidate, {})
            and not (brief and shown.bias == "exact")
        ]
        if rows:
            conditions = _conditions([record for record, _ in rows], brief)
            lines = [head, ["---"] * len(head), *(_cells(record, shown) for record, shown in rows)]
            parts.append("\n".join([conditions, "", *(f"| {' | '.join(cells)} |" for cells in lines)]))
    return "\n\n".join(parts)


def _cells(record: Record, shown: Shown) -> list[str]:
    """Give the cells of one row."""
    measured = record["candidates"][shown.candidate]
    compared = measured["oracle"] is not None
    time, memory = results.ratios(measured, record["candidates"].get("reference", {})) if compared else ("", "")
    lacking = "does not fit" if compared else ""
    seconds, peak = median(measured["seconds"]), measured["peak_bytes"]
    return [
        shown.work,
        f"{record['size']:,}",
        shown.bias,
        f"{seconds:.2g}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s",
        time or lacking,
        "" if peak is None else f"{peak / 1e6:,.0f}\u00a0MB",
        memory or lacking,
    ]


def _conditions(records: list[Record], brief: bool) -> str:
    """Say where and with what the records were measured."""
    devices = ", ".join(sorted({record["device"] for record in records}))
    if brief:
        return f"{devices}:"
    commits = ", ".join(dict.fromkeys(str(record["commit"])[:7] for record in records))
    versions = ", ".join(sorted({f"PyTorch {record['versions']['torch']}" for record in records}))
    return f"{devices}; {versions}; commits {commits}; command `python -m benchmarks`:"
