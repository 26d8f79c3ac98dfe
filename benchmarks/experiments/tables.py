"""A section of the page: what was run, and tables made of a summary."""

from collections.abc import Iterable, Sequence

from ..quality import markdown_row, shown
from .experiment import Case, Experiment
from .summary import HEADLINES, Gain, Row, Summary

_MOST_TESTS = 2  # whose metrics and differences fit into one table


def section(experiment: Experiment, summary: Summary | None) -> str:
    """The purpose of an experiment, what was run of it, its tables and its figure, in Markdown."""
    command = f"`python -m benchmarks.experiments {experiment.name}`"
    if summary is None or not summary.stored:
        return f"{experiment.purpose}\n\nNot run yet. {command} runs it."
    parts = [experiment.purpose, _conditions(experiment, summary, command)]
    parts += [table for case in experiment.cases if (table := case_table(experiment, summary, case))]
    parts += [measures] if (measures := measures_table(experiment, summary)) else []
    parts += [f"![{experiment.question}](figures/experiments/{experiment.name}.svg)"]
    return "\n\n".join(parts)


def _conditions(experiment: Experiment, summary: Summary, command: str) -> str:
    """Command, share of the runs, seeds, time and commits."""
    seeds = sorted({seed for each in summary.seeds.values() for seed in each})
    done = summary.stored == summary.planned
    open_part = "" if done else f" {summary.planned - summary.stored} runs are open, so the numbers are preliminary."
    time = f"{_hours(summary.expected_seconds)} on one core" + (
        "" if done else " for all runs of the variants that ran"
    )
    return (
        f"Command: {command}. Stored: {summary.stored} of {summary.planned} runs, seeds {', '.join(map(str, seeds))}."
        f"{open_part} Time: {time}. Commits: {', '.join(summary.commits)}. Device: {', '.join(summary.devices)}."
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(1, round(seconds / 60))} min"


def case_table(experiment: Experiment, summary: Summary, case: Case) -> str:
    """Metrics of every variant and test set of a case, and differences from the reference."""
    rows = summary.of(case)
    if not rows:
        return ""
    tests = list(dict.fromkeys(row.test for row in rows))
    metrics = [name for name in HEADLINES if any(name in row.metrics for row in rows)]
    gains = {(g.variant, g.over, g.test): g for g in summary.gains if (g.cohort, g.task) == case}
    variants = [v.name for v in experiment.variants if any(row.variant == v.name for row in rows)]
    by_place = {(row.variant, row.test): row for row in rows}
    wide = len(tests) > _MOST_TESTS
    named = metrics[:1] if wide else metrics
    title = " / ".join(HEADLINES[name] for name in named)
    heads = [title if len(tests) == 1 else f"{test}, {title}" for test in tests]
    lines = [f"**{case.cohort}, {case.task}**", ""]
    if wide:
        lines += _lines(["variant", *heads], ([v, *(_metrics(by_place, v, t, named) for t in tests)] for v in variants))
        heads = [f"{test}, difference from {experiment.reference}" for test in tests]
        differing = [v for v in variants if v != experiment.reference]
        found = ([v, *(_gain(gains, v, experiment.reference, t) for t in tests)] for v in differing)
        lines += ["", *_lines(["variant", *heads], found)]
    else:
        columns = [
            column for head, test in zip(heads, tests, strict=True) for column in (head, _over(experiment, test, tests))
        ]
        cells = (
            [
                variant,
                *(
                    cell
                    for test in tests
                    for cell in (
                        _metrics(by_place, variant, test, named),
                        _gain(gains, variant, experiment.reference, test),
                    )
                ),
            ]
            for variant in variants
        )
        lines += _lines(["variant", *columns], cells)
    pairs = [g for g in gains.values() if (g.variant, g.over) in experiment.pairs]
    if pairs:
        lines += ["", *(f"* {g.variant} over {g.over}{_of_test(g, tests)}: {interval(g)}." for g in pairs)]
    return "\n".join(lines)


def measures_table(experiment: Experiment, summary: Summary) -> str:
    """The other numbers of every variant."""
    found = {(m.variant, m.cohort, m.task, m.name): m.values for m in summary.measures}
    columns = [name for name in experiment.columns if any(key[3] == name for key in found)]
    if not columns:
        return ""
    rows = (
        [
            f"{case.cohort}, {case.task}",
            variant.name,
            *(_number(found.get((variant.name, *case, name))) for name in columns),
        ]
        for case in experiment.cases
        for variant in experiment.variants
        if any((variant.name, *case, name) in found for name in columns)
    )
    return "\n".join(_lines(["cohort, task", "variant", *columns], rows))


def interval(gain: Gain) -> str:
    """A difference with its interval."""
    return f"{gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _over(experiment: Experiment, test: str, tests: Sequence[str]) -> str:
    where = "" if len(tests) == 1 else f"{test}, "
    return f"{where}difference from {experiment.reference}"


def _of_test(gain: Gain, tests: Sequence[str]) -> str:
    return "" if len(tests) == 1 else f", {gain.test}"


def _metrics(rows: dict[tuple[str, str], Row], variant: str, test: str, names: Iterable[str]) -> str:
    row = rows.get((variant, test))
    return "" if row is None else " / ".join(shown(row.metrics.get(name), brief=False) for name in names)


def _gain(gains: dict[tuple[str, str, str], Gain], variant: str, over: str, test: str) -> str:
    gain = gains.get((variant, over, test))
    return "" if gain is None else interval(gain)


def _number(values: Sequence[float | None] | None) -> str:
    known = [value for value in values or () if value is not None]
    return f"{sum(known) / len(known):.3g}" if known else ""


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [markdown_row(head), markdown_row(["---"] * len(head)), *map(markdown_row, rows)]
