"""Damaged slides, tables, gene sets and descriptions: only errors of the package may come out, and they name the file.

    python -m tests.fuzz --seconds 600

Every kind of finding is printed once, and its input is kept in the folder --out. The status is 1 if there is a finding.
Files are read in a process of their own, because no signal ends a library in C that never returns. Inputs in which HDF5
itself never returns are counted apart, and are no finding: docs/guarantees.md does not promise an end there.
``tests/fuzz_guided.py`` chooses the damages by the code that they reach.
"""

import argparse
import faulthandler
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch

from disentangled_mil import FileError, Student
from disentangled_mil.data import (
    ExpressionOptions,
    ExpressionPipeline,
    SlideReading,
    TileFacts,
    read_bag,
    read_cohort,
    read_expression,
    read_gmt,
)
from disentangled_mil.data.planted import planted_cohort, write_cohort
from disentangled_mil.tasks import Classification
from disentangled_mil.train.checkpoint import load_model, save_model
from tests.support import slides as writers
from tests.support.checkpoints import change_description

_LONGEST = 60  # seconds for one input
_ENDED = "ends the process"
PIECES = [
    b"0", b"-1", b"1e999", b"nan", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b",", b";", b"\t", b"\n", b"\r", b"[",
    b"{", b"=1+1", b"../", b"9" * 40, b"true", b"null", "é".encode(),
]  # fmt: skip


Work: TypeAlias = Callable[[Sequence["Target"], int, Connection, Path], None]


class Target(NamedTuple):
    """A reader and what it reads.

    Attributes:
        name: name of the target.
        path: file that is damaged.
        read: function that reads it, with other files that are whole.
        contents: contents that are read without an error.
    """

    name: str
    path: Path
    read: Callable[[], object]
    contents: Sequence[bytes]


def targets(folder: Path) -> list[Target]:
    """The readers, each with whole files that it reads."""
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    coords = 448 * np.array([[x, y] for x in range(3) for y in range(2)])
    found = []
    for writer in (writers.clam, writers.trident, writers.stamp, writers.first_stamp, writers.h5ad, writers.released):
        place = folder / writer.__name__
        place.mkdir()
        path = writer(place, "slide", features, coords)
        found.append(Target(f"slide of {place.name}", path, partial(read_bag, path), [path.read_bytes()]))
    tensor = folder / "slide.pt"
    torch.save(torch.from_numpy(features), tensor)
    found.append(Target("slide as tensor", tensor, partial(read_bag, tensor), [tensor.read_bytes()]))

    planted = planted_cohort(12, seed=0, grid=(2, 2), width=4, tumor_genes=3, tme_genes=3, other_genes=1)
    cohort = folder / "cohort"
    description = write_cohort(planted, cohort)
    for name in ("cohort.toml", "clinical.csv"):
        path = cohort / name
        found.append(Target(name, path, partial(read_cohort, description), [path.read_bytes()]))
    sets = folder / "sets.gmt"
    shutil.copy(cohort / "gene_sets.gmt", sets)
    found.append(Target("gene sets", sets, partial(read_gmt, sets), [sets.read_bytes()]))
    table = folder / "expression.csv"
    rows = ["patient,EGFR,CD2,1-Mar", *(f"TCGA-02-000{row},{row}.5,0,{row + 2}" for row in range(5))]
    other = ["Hugo_Symbol\tA\tB", *(f"EGFR{row}|{row}\t{row}\t0.5" for row in range(6))]
    commas = [row.replace(",", ";").replace(".", ",") for row in rows]
    contents = [end.join(lines).encode() for end, lines in (("\n", rows), ("\r\n", other), ("\n", commas))]
    found.append(Target("expression", table, partial(read_expression, table), contents))

    model = folder / "model" / "student"
    model.parent.mkdir()
    student = Student(3, 2, magnifications=("20x",), dim=4, heads=1, groups=1, dim_head=2)
    genes = pd.DataFrame({"EGFR": [0.0, 9.0, 99.0], "CD2": [3.0, 1.0, 2.0]})
    pipeline = ExpressionPipeline.fit(genes, {"tumor": ["EGFR"], "tme": ["CD2"]}, ExpressionOptions(fraction=1.0))
    reading = SlideReading(tiles={"20x": TileFacts("uni", 3, 20)})
    save_model(model, student, task=Classification(["low", "high"]), reading=reading, expression=pipeline)
    text = model.with_suffix(".json")

    def load_sealed() -> object:
        """A description whose digest fits again, so that what it says is read."""
        try:
            parsed = json.loads(text.read_bytes())
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            change_description(text, lambda content: None)
        return load_model(model)

    found.append(Target("checkpoint", text, load_sealed, [text.read_bytes()]))
    return found


def fault(target: Target, content: bytes) -> str | None:
    """What is wrong with how a reader takes a content; None where it reads it, or refuses it and names the file."""
    target.path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read()
    except FileError as error:
        return None if error.file is not None else f"no file is named: {error}"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        # Another file, which the content names.
        return None if str(target.path.parent) in str(error) else f"no file is named: {error!r}"
    except Exception as error:
        trace, place = error.__traceback__, ""
        while trace is not None:
            frame, trace = trace.tb_frame, trace.tb_next
            if "disentangled_mil" in frame.f_code.co_filename:
                place = f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"
        return f"{type(error).__name__} in {place}: {str(error)[:200]}"
    finally:
        target.path.write_bytes(target.contents[0])
    return None


def changed(source: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """The content with one to eight changes."""
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 1, 2, 3, 8))):
        place = source.randrange(len(data) + 1)
        end = min(len(data), place + source.choice((1, 2, 4, 8, 64, 1024)))
        kind = source.randrange(7)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << source.randrange(8)
        elif kind == 1:
            data[place:end] = source.randbytes(end - place)
        elif kind == 2:
            del data[place:end]
        elif kind == 3:
            data[place:place] = data[place:end]
        elif kind == 4:
            data[place : place if source.random() < 0.5 else end] = source.choice(PIECES)
        elif kind == 5:
            other = source.choice(others)
            start = source.randrange(len(other) + 1)
            data[place:end] = other[start : start + end - place]
        elif source.random() < 0.2:
            del data[place:]
    return bytes(data)


class Findings:
    """The faults of a run, each kind once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: Counter[str] = Counter()
        self.inputs: Counter[str] = Counter()
        self.endless = 0  # inputs in which HDF5 itself never returned

    def add(self, target: Target, content: bytes, found: str | None) -> None:
        """Count an input, and keep it if it shows a fault of a new kind."""
        self.inputs[target.name] += 1
        if found is None:
            return
        kind = f"{target.name}: {':'.join(found.split(':')[:2])}"
        self.kinds[kind] += 1
        if self.kinds[kind] == 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            kept = self.folder / f"{len(self.kinds)}_{target.path.name}"
            kept.write_bytes(content)
            print(f"{target.name}: {found} ({kept})", flush=True)

    def close(self) -> None:
        """Print the numbers."""
        for name, count in sorted(self.inputs.items()):
            print(f"{name:24} {count:8,}")
        print(f"{'all':24} {self.inputs.total():8,} inputs, {len(self.kinds)} kinds of findings", flush=True)
        if self.endless:
            print(f"{'HDF5 did not return':24} {self.endless:8,} inputs, which is not promised", flush=True)


def work(known: Sequence[Target], seed: int, pipe: Connection, trace: Path) -> None:
    """Tell what is read before it is read, and what came out."""
    answer_where(trace)
    source = random.Random(seed)
    while True:
        number = source.randrange(len(known))
        target = known[number]
        content = changed(source, source.choice(target.contents), target.contents)
        pipe.send((number, content))
        pipe.send(fault(target, content))


def answer_where(trace: Path) -> None:
    """Write to a file where the process is, on SIGUSR1."""
    faulthandler.register(signal.SIGUSR1, trace.open("w"), all_threads=False)


def is_in_hdf5(process: int, trace: Path) -> bool:
    """Whether the innermost Python function of a process that does not answer is of h5py."""
    os.kill(process, signal.SIGUSR1)
    for _ in range(50):
        if found := re.search('File "(.*)", line', trace.read_text()):
            return "h5py" in Path(found[1]).parts
        time.sleep(0.1)
    return False


def run(
    seconds: float,
    seed: int,
    findings: Findings,
    known: Sequence[Target],
    trace: Path,
    *,
    work: Work = work,
    most: float = math.inf,
) -> None:
    """Read changed contents until the time is over or ``most`` are read.

    A process of its own runs ``work``, and another one takes its place where it ends or does not answer. Such a process
    writes to ``trace`` where it is.
    """
    end = time.monotonic() + seconds
    most += findings.inputs.total()

    def over() -> bool:
        return time.monotonic() >= end or findings.inputs.total() >= most

    context = multiprocessing.get_context("fork")
    while not over():
        pipe, end_of_worker = context.Pipe()
        worker = context.Process(target=work, args=(known, seed, end_of_worker, trace), daemon=True)
        worker.start()
        end_of_worker.close()
        alive = True
        while alive:
            number, content = pipe.recv()
            alive = pipe.poll(_LONGEST)
            try:
                found = pipe.recv() if alive else f"does not end within {_LONGEST} s"
            except EOFError:
                alive, found = False, _ENDED
            if not alive and found != _ENDED and worker.pid and is_in_hdf5(worker.pid, trace):
                findings.inputs[known[number].name] += 1
                findings.endless += 1
            else:
                findings.add(known[number], content, found)
            if over():
                break
        worker.kill()
        worker.join()
        seed += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("findings"))
    options = parser.parse_args(arguments)
    findings = Findings(options.out)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(options.seconds, options.seed, findings, targets(Path(folder)), Path(folder) / "trace")
        finally:
            findings.close()
    return 1 if findings.kinds else 0


if __name__ == "__main__":
    sys.exit(main())
