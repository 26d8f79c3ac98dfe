"""Whether training waits for files, and whether memory grows: python -m benchmarks.reading

Simulated slides have 125 to 28,000 tiles, as HDF5 files with float16 features. No bag stays in memory, so every epoch
reads every file again. Rows are epochs of a student on one thread: the share of the time in which the training waited
for its next batch, and the largest memory of the process so far.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from disentangled_mil import Classification, Student
from disentangled_mil.data.cohort import Cohort, Sample, StoredBag
from disentangled_mil.data.slides import write_bag
from disentangled_mil.train import TrainingOptions
from disentangled_mil.train.bag_cache import BagCache
from disentangled_mil.train.datasets import Batch, CohortDataset
from disentangled_mil.train.loop import train_stage
from disentangled_mil.train.stages import StudentStage

from .large_slides import sizes, tissue

CLASSES = ("A", "B")


class TimedDataset(CohortDataset):
    """A dataset that notes how long its batches are waited for."""

    waited = 0.0

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """The batches of the dataset."""
        batches = super().batches(size, generator)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            TimedDataset.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def write_slides(folder: Path, slides: int, width: int) -> Cohort:
    """Slides in files, with labels by chance."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(slides):
        count = round(125 * 224 ** float(torch.rand((), generator=generator)))
        path = folder / f"{number}.h5"
        write_bag(path, torch.randn(count, width, generator=generator).half(), 224 * tissue(count), step=224)
        samples.append(Sample(str(number), str(number), {"20x": StoredBag((path,))}))
    labels = [CLASSES[number % 2] for number in range(slides)]
    clinical = pd.DataFrame({"label": labels}, index=[sample.patient for sample in samples])
    return Cohort(tuple(samples), clinical, tasks={"label": Classification.define(column="label")})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--slides", type=int, default=700)
    parser.add_argument("--width", type=int, default=1024, help="features of a tile")
    parser.add_argument("--epochs", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    options = TrainingOptions()
    with tempfile.TemporaryDirectory() as folder:
        cohort = write_slides(Path(folder), chosen.slides, chosen.width)
        task = Classification(CLASSES)
        dataset = TimedDataset(cohort, "label", task, cache=BagCache(limit=0))
        dataset._cache.check(dataset.samples)
        stage = StudentStage(Student(chosen.width, 2, **sizes()), task, options)
        print("| epoch | time | waiting for batches | largest memory |\n| --- | --- | --- | --- |")
        for epoch in range(1, chosen.epochs + 1):
            TimedDataset.waited, start = 0.0, time.perf_counter()
            once = replace(options, epochs=1, seed=epoch)
            train_stage("student", stage, dataset, None, once, folder, quiet=True)
            whole = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"| {epoch} | {whole:.0f} s | {TimedDataset.waited / whole:.1%} | {peak:.2f} GB |", flush=True)


if __name__ == "__main__":
    main()
