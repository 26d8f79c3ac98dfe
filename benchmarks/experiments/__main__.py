"""The command: run what is missing of an experiment, then write its summary, table and figure.

The experiments need the extra ``train``, and those with models of others the extra ``benchmarks``.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import figures, summary
from .catalog import EXPERIMENTS
from .cohorts import COHORTS
from .runs import RUNS
from .schedule import QUICK, Plan, run_missing
from .tables import section


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 2 where the input is wrong."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:16}{experiment.question}")
        return 0
    if options.name is None:
        print("error: name an experiment, or give --list", file=sys.stderr)
        return 2
    experiment = EXPERIMENTS[options.name]
    cases = tuple(case for case in experiment.cases if options.cohort is None or case.cohort in options.cohort)
    if options.task is not None:
        cases = tuple(case for case in cases if case.task in options.task)
    names = [variant.name for variant in experiment.variants]
    if unknown := set(options.variant or ()) - set(names):
        print(f"error: --variant must be some of {', '.join(map(repr, names))}, got {min(unknown)!r}", file=sys.stderr)
        return 2
    variants = tuple(v for v in experiment.variants if options.variant is None or v.name in options.variant)
    there = tuple(case for case in cases if COHORTS[case.cohort].present())
    for case in (case for case in cases if case not in there):
        print(f"{case.cohort}: its files are not there, so it is left out", file=sys.stderr)
    if not there:
        print(f"error: {options.name} has no case that can be run", file=sys.stderr)
        return 2
    full = Plan(experiment, RUNS, experiment.seeds, experiment.cases)
    chosen = replace(experiment, variants=variants)
    if options.quick:
        plan = Plan(chosen, options.runs / "quick", (0,), there, folds=1, overrides=QUICK)
    else:
        plan = Plan(chosen, options.runs, tuple(options.seeds or experiment.seeds), there)
    if not options.table:
        run_missing(plan, processes=options.jobs)
    # A table shows all that is stored, also of cohorts and seeds that this call did not run.
    seeds = plan.seeds if options.quick else experiment.seeds
    wide = plan._replace(experiment=experiment, cases=experiment.cases, seeds=seeds)
    found = summary.summarize(wide, plan if options.quick else full)
    places = (options.runs / "quick",) * 2 if options.quick else (options.summaries, options.figures)
    print(f"summary: {summary.keep(found, places[0])}", file=sys.stderr)
    if drawn := figures.draw(experiment, found, places[1]):
        print(f"figure: {drawn}", file=sys.stderr)
    print(section(experiment, found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description="Run an experiment, and write its table and its figure. Runs that are stored are not repeated.",
    )
    add = parser.add_argument
    add("name", nargs="?", choices=EXPERIMENTS, metavar="NAME", help="experiment; see --list")
    add("--list", action="store_true", help="name the experiments and run nothing")
    add("--table", action="store_true", help="write summary, table and figure of the stored runs, and run nothing")
    add("--seeds", nargs="+", type=_seed, metavar="SEED", help="seeds to run (default: 0 to 4)")
    add("--cohort", nargs="+", choices=COHORTS, metavar="COHORT", help="cohorts to run (default: all)")
    add("--task", nargs="+", metavar="TASK", help="tasks to run (default: all)")
    add("--variant", nargs="+", metavar="VARIANT", help="variants to run (default: all)")
    add("--quick", action="store_true", help="one seed, one fold and two epochs, stored apart")
    add("--jobs", type=_positive, default=2, help="processes, with one thread each (default: %(default)s)")
    add("--runs", type=Path, default=RUNS, help="folder of the runs (default: runs/experiments)")
    add("--summaries", type=Path, default=summary.SUMMARIES, help="folder of the summary")
    add("--figures", type=Path, default=figures.FIGURES, help="folder of the figure")
    return parser


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
