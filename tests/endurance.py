"""Long runs: predictions whose memory must not grow, and trainings that are killed and resumed to the same bits.

    python -m tests.endurance predictions --count 2000
    python -m tests.endurance kills --count 20

The status is 1 if memory grew, or a file differs. ``tests/test_endurance.py`` is the short version.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from disentangled_mil import Student
from disentangled_mil.data import read_bag
from disentangled_mil.train.experiment import run_split
from tests.support.slides import clam
from tests.support.training import OPTIONS, few_choices, small_split

WARM_UP = 100  # predictions until allocators hold what they keep
MOST_GROWTH = 4 * 2**20  # bytes; the features of a slide have 76,000 on average
NAME = "grading"


def growth(count: int, folder: Path) -> int:
    """Bytes by which resident memory grows while slides are read and predicted, in all ``count`` times."""
    source = np.random.default_rng(0)
    paths = []
    for size in (3, 40, 250, 900):
        coords = 448 * np.stack(np.divmod(np.arange(size), 30), axis=-1)
        paths.append(clam(folder, str(size), source.normal(size=(size, 64)).astype(np.float32), coords))
    torch.manual_seed(0)
    student = Student(64, 2, magnifications=["20x"], dim=16, heads=2, groups=2, dim_head=8).eval()
    start = 0
    for number in range(WARM_UP + count):
        if number == WARM_UP:
            start = resident()
        with torch.no_grad():
            student({"20x": read_bag(paths[number % len(paths)]).bag})
    return resident() - start


def resident() -> int:
    """Bytes of memory that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train(folder: Path) -> None:
    """Train all models of a small split, or continue it."""
    with few_choices():
        run_split(small_split(), NAME, OPTIONS, folder, resume=True, quiet=True)


def kills(count: int, seed: int, folder: Path) -> list[str]:
    """Kill trainings at random moments, resume them, and name what differs from a training without interruption."""
    context = multiprocessing.get_context("fork")
    start = time.monotonic()
    train(folder / "whole")
    seconds = time.monotonic() - start
    source, different, killed = random.Random(seed), [], 0
    while killed < count:
        place = folder / f"killed{killed}"
        worker = context.Process(target=train, args=(place,))
        worker.start()
        worker.join(source.uniform(0, seconds))
        if not worker.is_alive():
            continue  # It was faster than the first one.
        worker.kill()
        worker.join()
        left = len(list(place.glob("*"))) if place.is_dir() else 0
        train(place)
        found = [path.name for path in sorted((folder / "whole").iterdir()) if not same(path, place / path.name)]
        different += [f"run {killed}: {name}" for name in found]
        killed += 1
        print(f"killed run {killed}: {left} files were there, {len(found)} differ in the end", flush=True)
    return different


def same(first: Path, second: Path) -> bool:
    """Whether two files are equal, byte for byte; archives of the state of training hold paths and are left out."""
    return first.suffix == ".pt" or first.read_bytes() == second.read_bytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance")
    parser.add_argument("what", choices=("predictions", "kills"))
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # Processes that are forked must not wait for threads of this one.
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "predictions":
            grown = growth(options.count, Path(folder))
            print(f"{options.count:,} predictions: {grown:,} bytes more than after the first {WARM_UP}")
            return int(grown > MOST_GROWTH)
        different = kills(options.count, options.seed, Path(folder))
    print(f"{options.count} killed runs, {len(different)} files differ: {different}")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
