"""The end of a run whose folds were trained, in one job or in several."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .._errors import FileError
from .._files import read_json
from ..tasks import KINDS, Task, TaskDefinition
from .experiment import Result
from .fold_results import RESULT, load_result
from .options import TrainingOptions
from .run_folder import RunFolder


def join_folds(out: str | Path, *, kinds: Mapping[str, type[Task]] = KINDS, quiet: bool = False) -> str:
    """End a run whose folds are finished: tables, comparison and report are those of a run in one go.

    Neither slides nor expression are read. A run that has ended stays as it is.

    Args:
        out: run folder of all jobs.
        kinds: class of every kind of task.
        quiet: flag that hides the progress.

    Returns:
        The table of results and the place of the files, as text.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: a fold is missing, belongs to another cohort or other options, or was trained with other versions
            than another one.
    """
    out = Path(out)
    path = out / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{out}: must be the folder of a run of train, but it has no run.json")
    note = read_json(path, "describe the run")
    try:
        if note["run"] != "train":
            raise ValueError(f"run must be 'train', got {note['run']!r}")
        defined, folds = note["task"], int(note["folds"])
        task = TaskDefinition(kinds[defined["kind"]], defined["columns"], defined["options"])
        options = TrainingOptions(**note["training"])
        decides = {key: note[key] for key in ("run", "folds", "cohort")}
    except (LookupError, TypeError, ValueError) as error:
        raise FileError(f"{path}: must describe a run of train ({type(error).__name__}: {error})", path) from error
    folder = RunFolder(out, defined["name"], task, options, resume=True, decides=decides)
    if not folder.finished:
        folders = [out / f"fold{number}" for number in range(folds)]
        with folder.taken():
            if missing := [number for number, place in enumerate(folders) if not (place / RESULT).is_file()]:
                raise ValueError(
                    f"{out}: needs all {folds} folds, but {', '.join(f'fold{number}' for number in missing)} "
                    f"{'is' if len(missing) == 1 else 'are'} not finished; "
                    f"train with --folds-only {','.join(map(str, missing))}"
                )
            finish_folds(folder, folders, kinds, same_versions=True, quiet=quiet)
    return folder.report()


def finish_folds(
    folder: RunFolder,
    folders: Sequence[Path],
    kinds: Mapping[str, type[Task]],
    *,
    same_versions: bool = False,
    quiet: bool = False,
) -> None:
    """Write metrics, predictions and report from the results of all folds.

    Args:
        folder: folder of the run.
        folders: folder of every fold.
        kinds: class of every kind of task.
        same_versions: flag that refuses folds of different versions.
        quiet: flag that hides the progress.

    Raises:
        FileNotFoundError: a fold is not finished.
        ValueError: a fold is of another run, or of other versions.
    """
    results: list[Result] = []
    starts = []
    for place in folders:
        result, notes = load_result(place, kinds)
        folder.check_same(notes["run"], place / RESULT)
        starts.append({key: value for key, value in notes.items() if key != "run"})
        results.append(result)
    if same_versions:
        jobs = [(place, job) for place, start in zip(folders, starts, strict=True) for job in start["starts"]]
        _check_versions([(place, job["versions"]) for place, job in jobs])
    for start in starts:
        folder.add_start(start)
    folder.finish(folders, results, quiet=quiet)


def _check_versions(starts: Sequence[tuple[Path, Mapping[str, str]]]) -> None:
    """Check that all jobs of all folds had the versions of the first."""
    origin, first = starts[0]
    for place, own in starts:
        if differing := [f"{name} {own[name]} and {first[name]}" for name in first if own[name] != first[name]]:
            raise ValueError(
                f"{place}: must be trained with the versions of {origin.name}, got {', '.join(differing)}; train "
                "it again, or end the run with train --resume, which does not compare versions"
            )
