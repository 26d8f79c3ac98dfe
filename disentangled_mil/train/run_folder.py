"""The folder of one run: one run takes it, the same run may resume it, and its results end there.

``run.json`` describes the run; it appears first, and a run with other data or options is refused. It also says when,
how and with which versions the run was started and resumed, which is no reason to refuse it. ``*.progress.pt`` holds
the state after an epoch. ``metrics.json`` appears when all splits are finished: a folder that has it holds a finished
run. The folder ``final`` may follow, with students of all patients. A run that stops before its first finished epoch
leaves no trace, so that the folder is free again.

Several jobs may train different folds of one run in one folder. Each writes to the folders of its folds only. The first
job also makes ``run.json``, and none removes it.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from .. import __version__
from .._exit_status import work_begins
from .._files import check_outputs, read_json, remove_leftovers
from .._tables import write_table
from ..report.page import PAGE, write_report
from ..report.run_report import run_report
from ..tasks import TaskDefinition
from .checkpoint import write_json
from .cohort_digest import same_values
from .comparison import Evaluation, compare, counted
from .experiment import Result
from .fold_results import RESULT, STARTS
from .folder_lock import check_unlocked, locked
from .options import WITHOUT_EFFECT, TrainingOptions
from .out_of_fold import part_files
from .progress import announce
from .run_note import add_start, differences, read_note, this_start
from .training import NETWORKS

FINAL = "final"
_FILES = ("run.json", "metrics.json", "predictions.csv", "prototypes.png", PAGE)
_ENDINGS = (".progress.pt", ".csv", ".safetensors", ".json")


class RunFolder:
    """The folder of a run.

    Args:
        path: folder, which need not exist.
        name: name of the task.
        task: definition of the task.
        options: options of the training.
        resume: flag that continues a run.
        decides: all else that decides the numbers of the run, as JSON values.
        only: names of the folds that this job trains, while others may train other folds; None for a whole run.

    Raises:
        ValueError: the folder holds another run, a run or fold that is not to be resumed or that another process
            trains, or none to resume.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        task: TaskDefinition,
        options: TrainingOptions,
        *,
        resume: bool,
        decides: Mapping[str, Any],
        only: Sequence[str] | None = None,
    ) -> None:
        self.path, self.name, self.task, self.options, self.resume = Path(path), name, task, options, resume
        self.only = only
        self.start: dict[str, Any] = {}
        self._own: list[Path] = []  # files that were not there before a new run
        defined = {"name": name, "kind": task.kind.kind, "columns": task.columns, "options": task.options}
        run = {**decides, "task": defined, "training": _saved(options)}
        self.run: dict[str, Any] = json.loads(json.dumps(run))
        self._check()

    @property
    def finished(self) -> bool:
        """Whether the folder holds this run to its end."""
        return self.resume and (self.path / "metrics.json").is_file()

    def _check(self, *, taken: bool = False) -> None:
        """Refuse a folder that may not be used for this run; if it is taken, this process holds its lock."""
        note = self._note
        if self.resume and not note.is_file():
            raise ValueError(f"{self.path}: holds no run to resume")
        if not self.resume:
            begun = note.is_file() or _trained(self.path)
            if (self.path / "metrics.json").is_file() or (begun and self.only is None):
                if not taken:
                    check_unlocked(self.path)
                raise ValueError(self._occupied)
            for fold in self.only or ():
                if _trained(self.path / fold) or (self.path / fold / RESULT).is_file():
                    if not taken:
                        check_unlocked(self.path / fold)
                    raise ValueError(f"{self.path / fold}: already holds a fold; give --resume to continue it")
        if note.is_file():
            self.check_same(read_note(note), self.path)

    def check_same(self, run: Mapping[str, Any], place: str | Path) -> None:
        """Check that a run, or a fold of one, is of this run.

        Args:
            run: facts that decide the numbers of the run.
            place: place of the run, for the error.

        Raises:
            ValueError: cohort, task, folds or options differ.
        """
        if changed := [key for key in self.run if not same_values(run.get(key), self.run[key])]:
            listed = ", ".join(changed)
            options = "".join(f"; {each}" for key in changed for each in differences(key, run.get(key), self.run[key]))
            remedy = "" if self.resume else "; give another --out"
            raise ValueError(f"{place}: belongs to another run, which differs in {listed}{options}{remedy}")

    @property
    def _note(self) -> Path:
        return self.path / "run.json"

    @property
    def _occupied(self) -> str:
        return f"{self.path}: already holds a run; give another --out, or --resume to continue it"

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the folder for this run, new or resumed. A new run that ends before its first epoch leaves it free.

        No other process may take it meanwhile. Jobs of single folds take the folders of their folds instead. They share
        the run folder with each other, so they remove nothing. While they work, no whole run may take it.
        """
        path = self.path
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path}: must be a folder, to hold the run, got a file")
        path.mkdir(parents=True, exist_ok=True)
        try:
            with self._locks():
                yield from self._owned()
        except BaseException:
            _remove_empty(made)
            raise

    @contextmanager
    def _locks(self) -> Iterator[None]:
        """Lock the run folder for a whole run, or the folders of some folds for a job.

        A run and a job lock their own folders before they look at each other's. So they cannot miss each other.
        """
        own = [self.path] if self.only is None else [self.path / fold for fold in self.only]
        others = self.path.glob("fold[0-9]*") if self.only is None else [self.path]
        with ExitStack() as stack:
            for folder in own:
                folder.mkdir(exist_ok=True)
                stack.enter_context(locked(folder))
            for folder in others:
                check_unlocked(folder)
            yield

    def _owned(self) -> Iterator[None]:
        """Write what identifies the run, or check it; tidy up if the block fails."""
        path, new = self.path, not self.resume
        if new:
            new = self._write_note()
        else:
            self._check(taken=True)  # Another process may have gone on since.
        try:
            yield
        except BaseException as error:
            if new and self.only is None and not _trained(path):
                for file in (self._note, *self._own):
                    if file.is_file():  # a fold may be a file of others
                        file.unlink()
                _remove_empty(path.glob("fold[0-9]*"))
            elif isinstance(error, KeyboardInterrupt) and _trained(path):
                raise KeyboardInterrupt(
                    "everything up to the last finished epoch is kept: continue with --resume"
                ) from error
            raise

    def _write_note(self) -> bool:
        """Write run.json, whole, unless another process was quicker; whether this one wrote it."""
        if self.only is None:  # Only then does no other process write it.
            remove_leftovers(self._note)
        try:
            write_json(self._note, self.run, exclusive=True)
        except FileExistsError:  # Another run took the folder after `_check`.
            self._check(taken=True)
            return False
        return True

    def record(self, *, threads: int, description: Mapping[str, Any] | None = None) -> None:
        """Add to run.json what is not compared: this start of the run, and the description of the cohort.

        A job of some folds adds it to the folders of its folds, and the end of the run collects it.

        Args:
            threads: number of threads.
            description: description of the cohort as it was read; None for none.
        """
        values = {} if description is None else {"description": json.loads(json.dumps(description, default=str))}
        self.start = {**values, "starts": [this_start(threads)]}
        if self.only is None:
            self.add_start(self.start)
        for fold in self.only or ():
            add_start(self.path / fold / STARTS, self.start)

    def add_start(self, start: Mapping[str, Any]) -> None:
        """Add a start of the run, or of some folds, to run.json, if it is not there.

        Args:
            start: ``"starts"``, and the ``"description"`` of the cohort if there is one.
        """
        add_start(self._note, start)

    def starts_of(self, fold: str | Path) -> Mapping[str, Any]:
        """The starts of all jobs that trained a fold, or this start of a whole run, as :meth:`add_start` takes them.

        Args:
            fold: folder of the fold.

        Returns:
            The starts.
        """
        return self.start if self.only is None else read_note(Path(fold) / STARTS)

    def check_files(self, inputs: Iterable[str | Path], folders: Sequence[str | Path]) -> None:
        """Refuse to write over a file that is read, and, unless the run is resumed, over any that is there.

        Args:
            inputs: files that are read.
            folders: folder of every split.

        Raises:
            FileExistsError: a new run would replace a file.
            ValueError: a file of the run is one that is read.
        """
        splits = [*map(Path, folders)]
        trainings = (path for folder in (*splits, self.final) for path in self._trainings(folder))
        files = [path.with_name(f"{path.name}{ending}") for path in trainings for ending in _ENDINGS]
        files += [folder / name for folder in splits for name in (RESULT, STARTS)]
        check_outputs([*(self.path / name for name in _FILES), *files], inputs, overwrite=True)
        if self.resume:
            return
        others = [path for path in files if self.only is None or path.relative_to(self.path).parts[0] in self.only]
        if self.only is None or not self._note.is_file():  # Else it is a run of several jobs, which begins the files.
            others += [self.path / name for name in _FILES]
        check_outputs([path for path in others if path.name != STARTS], [], overwrite=False, what="folder", remedy=None)
        self._own = others if self.only is None else []

    def _trainings(self, folder: Path) -> list[Path]:
        """The files of all trainings of a split, without ending."""
        return [*(folder / model for model in NETWORKS), *part_files(folder, self.options)]

    @property
    def final(self) -> Path:
        """Folder of the students of all patients."""
        return self.path / FINAL

    @property
    def has_final(self) -> bool:
        """Whether the students of all patients are finished."""
        return (self.final / "student.json").is_file() and not any(self.final.glob("*.progress.pt"))

    def finish(self, folders: Sequence[str | Path], results: Sequence[Result], *, quiet: bool = False) -> str:
        """Write metrics, predictions and the report; remove states for resuming and halves of killed writes.

        Args:
            folders: folder of every split.
            results: results of every split.
            quiet: flag that hides the progress.

        Returns:
            The table of results and the place of the files, as text.
        """
        work_begins()
        announce("metrics with their intervals over patients, and the report", quiet=quiet)
        write_table(
            self.path / "predictions.csv", pd.concat([result.predictions for result in results], ignore_index=True)
        )
        write_json(
            self.path / "metrics.json",
            {
                "version": __version__,
                "task": self.name,
                "training": _saved(self.options),
                "splits": [result.metrics for result in results],
                "tests": _tests([result.evaluations for result in results]),
                "headroom": [_headroom(result) for result in results],
                "gains": compare([result.evaluations for result in results]),
            },
        )
        self.tidy(folders)
        try:
            write_report(self.path, kinds={self.task.kind.kind: self.task.kind})
        except (ValueError, OSError) as error:  # The run is finished, and its files are whole.
            print(f"warning: no report was written: {error}", file=sys.stderr)
        for name in _FILES:
            remove_leftovers(self.path / name)
        return self.report()

    def tidy(self, folders: Sequence[str | Path]) -> None:
        """Remove states for resuming and halves of killed writes.

        Args:
            folders: folders whose trainings are finished.
        """
        for folder in map(Path, folders):
            for path in self._trainings(folder):
                for suffix in _ENDINGS:
                    remove_leftovers(path.with_name(f"{path.name}{suffix}"))
                path.with_name(f"{path.name}.progress.pt").unlink(missing_ok=True)
            for name in (RESULT, STARTS):
                remove_leftovers(folder / name)
                (folder / name).unlink(missing_ok=True)

    def report(self) -> str:
        """The table of a finished run and the place of its files, as text."""
        path = self.path / "metrics.json"
        content = read_json(path, "hold the metrics of the finished run")
        try:
            text = run_report(content, self.task.kind)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}: must hold the metrics of the finished run ({type(error).__name__}: {error})"
            ) from error
        final = f"\nstudents of all patients, for new slides: {self.final}" if self.has_final else ""
        return f"\n{text}\n\nreport: {self.path / PAGE}\nmetrics, predictions, logs and checkpoints: {self.path}{final}"


def _tests(splits: Sequence[Mapping[str, Evaluation]]) -> dict[str, dict[str, Any]]:
    """The patients of every test set: ``all`` together and of every split."""
    of_test = {test: [split[test] for split in splits] for test in splits[0]}
    return {test: {"all": counted(each), "splits": [counted([one]) for one in each]} for test, each in of_test.items()}


def _headroom(result: Result) -> dict[str, Any] | None:
    """What there was to gain in a split, and whether it was tried."""
    if result.headroom is None:
        return None
    return {**result.headroom._asdict(), "distilled": "distilled" in result.metrics}


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders that hold nothing."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _trained(path: Path) -> bool:
    """Whether a folder holds a finished run, or a finished epoch of one."""
    return (path / "metrics.json").is_file() or any(
        state for place in ("", "fold[0-9]*/", f"{FINAL}/") for state in path.glob(f"{place}*.progress.pt")
    )


def _saved(options: TrainingOptions) -> dict[str, Any]:
    """The options that decide the numbers of a run."""
    return {name: value for name, value in asdict(options).items() if name not in WITHOUT_EFFECT}
