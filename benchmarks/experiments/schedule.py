"""Runs what is missing of an experiment: one process per core with one thread each.

A process works through one trial: all its variants share the cohort, the cache of bags and the scratch folder. Seconds
of stored runs tell how long the missing ones will take.
"""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from disentangled_mil.train import TrainingOptions
from disentangled_mil.train.bag_cache import BagCache

from . import runs
from .cohorts import COHORTS
from .experiment import Case, Experiment, Trial, Variant

QUICK = {"epochs": 2, "teacher_folds": 2}


class Plan(NamedTuple):
    """Which trials of an experiment are run, and where runs are stored.

    Attributes:
        experiment: experiment.
        folder: folder of the runs.
        seeds: seeds.
        cases: cohorts and tasks.
        folds: largest number of folds of a case.
        overrides: options in place of those of the cohort, for a trial of the command.
    """

    experiment: Experiment
    folder: Path
    seeds: tuple[int, ...]
    cases: tuple[Case, ...]
    folds: int = 1_000
    overrides: Mapping[str, Any] = {}

    def options(self, case: Case, seed: int) -> TrainingOptions:
        """The options of a trial before a variant changes them."""
        return replace(COHORTS[case.cohort].options, seed=seed, **self.overrides)

    def jobs(self) -> Iterator["Job"]:
        """Every run, trial by trial; the first seed of all cases comes first."""
        for seed in self.seeds:
            for case in self.cases:
                for fold in range(min(self.folds, COHORTS[case.cohort].folds)):
                    for variant in self.experiment.variants_of(case):
                        yield Job(variant, case, seed, fold, self.options(case, seed), self.folder)


class Job(NamedTuple):
    """One run."""

    variant: Variant
    case: Case
    seed: int
    fold: int
    options: TrainingOptions
    folder: Path

    @property
    def trial(self) -> tuple[Case, int, int]:
        """What the jobs of one process have in common."""
        return self.case, self.seed, self.fold

    @property
    def path(self) -> Path:
        """The file of the run."""
        return runs.path_of(self.folder, self.variant, self.case, self.seed, self.fold)

    def stored(self) -> runs.Run | None:
        """The run, if it is stored with the settings of today."""
        run = runs.read(self.path)
        return run if run and run.settings == runs.settings_of(self.variant, self.options) else None


def run_missing(plan: Plan, *, processes: int) -> None:
    """Run what is not stored yet, and say how long it will take."""
    jobs = list(plan.jobs())
    missing = [job for job in jobs if job.stored() is None]
    _say(f"{plan.experiment.name}: {len(jobs) - len(missing)} of {len(jobs)} runs are stored")
    if not missing:
        return
    _say(expected(jobs, missing, processes))
    trials = [list(group) for _, group in groupby(missing, key=lambda job: job.trial)]
    if processes == 1:
        for trial in trials:
            run_trial(trial)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        waiting = [pool.submit(run_trial, trial) for trial in trials]
        try:
            for count, done in enumerate(as_completed(waiting), start=1):
                done.result()
                left = [job for job in missing if job.stored() is None]
                _say(f"{count} of {len(trials)} trials done; {expected(jobs, left, processes)}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_trial(jobs: Sequence[Job]) -> None:
    """Run the variants of one trial, and store each as soon as it is done."""
    torch.set_num_threads(1)
    case, seed, fold = jobs[0].trial
    scratch = jobs[0].folder / "scratch" / f"{case.cohort}-{case.task}-seed{seed}-fold{fold}"
    scratch.mkdir(parents=True, exist_ok=True)
    split = COHORTS[case.cohort].split(case.task, seed, fold)
    trial = Trial(case, seed, fold, split, jobs[0].options, scratch, BagCache())
    for job in jobs:
        start = time.perf_counter()
        outcome = job.variant.method(trial)
        seconds = time.perf_counter() - start
        runs.keep(job.path, runs.Run.of(job.variant, trial, outcome, seconds))
        _say(f"{case.cohort}, {case.task}, seed {seed}, fold {fold}: {job.variant.name}, {seconds:.0f} s")
    shutil.rmtree(scratch)


def expected(jobs: Sequence[Job], missing: Sequence[Job], processes: int) -> str:
    """The time that missing runs take, judged by the stored ones of the same variant and case."""
    seconds: dict[tuple[str, Case], list[float]] = {}
    for job in jobs:
        if run := job.stored():
            seconds.setdefault((job.variant.name, job.case), []).append(run.seconds)
    known = [seconds[key] for job in missing if (key := (job.variant.name, job.case)) in seconds]
    total = sum(statistics.median(each) for each in known) / processes
    unknown = len(missing) - len(known)
    return f"about {total / 60:.0f} min" + (f", and {unknown} runs of unknown time" if unknown else "")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
