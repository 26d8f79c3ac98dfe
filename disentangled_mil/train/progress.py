"""What a run prints while it trains: fold, stage, epoch and loss, and the time that is left of the whole run.

The work of a stage is its samples times its epochs. The time left is the work left times the time per work so far. So
what lies between the stages counts as well: reading, linear models, evaluation. The network on genes takes seconds and
counts as no work. Teachers and students count alike, and so do teachers that see a part of large bags. So the time left
tells minutes from hours and no more.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from tqdm import tqdm

_BAR = "{desc} |{bar:20}|"


class PlannedStage(NamedTuple):
    """A training that a run will do, unless it is declined or was done before.

    Attributes:
        name: name of the stage.
        title: name for people.
        work: samples times epochs; 0 where it hardly takes time.
    """

    name: str
    title: str
    work: int


class RunPlan:
    """All stages of a run in order.

    Args:
        parts: stages of every part of the run, such as a fold, by the name of the part.

    Example:
        >>> stages = [PlannedStage(name, name, 10) for name in ("teacher", "student")]
        >>> RunPlan({"fold0 (1/2)": stages}).enter("student")
        'fold0 (1/2), stage 2/2: student'
    """

    def __init__(self, parts: Mapping[str, Sequence[PlannedStage]]) -> None:
        self._stages = [
            (stage, f"{part}, stage {number}/{len(stages)}: {stage.title}")
            for part, stages in parts.items()
            for number, stage in enumerate(stages, start=1)
        ]
        self._next = self._done = 0
        self._counts = True  # whether the present stage takes time
        self._start: float | None = None

    def enter(self, name: str) -> str:
        """Go on to the next stage of a name; stages before it are left out.

        Args:
            name: name of the stage.

        Returns:
            The place in the run, for people; the name alone where the plan has no such stage.
        """
        self._start = time.monotonic() if self._start is None else self._start
        for place in range(self._next, len(self._stages)):
            stage, title = self._stages[place]
            if stage.name == name:
                self._next, self._counts = place + 1, bool(stage.work)
                return title
        self._counts = True
        return name

    def advance(self, samples: int, rest: int) -> str:
        """Count samples as done, and say how much time is left of the run.

        Args:
            samples: samples that were just trained on.
            rest: samples times epochs that are left of the stage.

        Returns:
            The end of a line, such as ``", run: 3 hours left"``; empty where there is no estimate yet.
        """
        if not self._counts:
            samples = rest = 0
        self._done += samples
        if not self._done or self._start is None:
            return ""
        work = rest + sum(stage.work for stage, _ in self._stages[self._next :])
        return f", run: {duration((time.monotonic() - self._start) / self._done * work)} left"


class StageProgress:
    """The bar of one stage.

    Args:
        name: name of the stage.
        samples: samples of an epoch.
        epochs: number of epochs.
        done: epochs that were finished before.
        quiet: flag that hides the progress.
    """

    def __init__(self, name: str, samples: int, epochs: int, *, done: int = 0, quiet: bool = False) -> None:
        self._plan = _PLAN.get() or RunPlan({})
        self._title = self._plan.enter(name)
        self._epochs, self._rest = epochs, samples * (epochs - done)
        self._bar: tqdm[Any] = tqdm(
            total=samples * epochs, initial=samples * done, desc=self._title, disable=quiet, bar_format=_BAR
        )

    def __enter__(self) -> "StageProgress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def step(self, samples: int, epoch: int, loss: float) -> None:
        """Show that a step is done.

        Args:
            samples: samples of the step.
            epoch: number of the epoch, from 0.
            loss: loss of the step.
        """
        self._rest -= samples
        left = self._plan.advance(samples, self._rest)
        text = f"{self._title}, epoch {epoch + 1}/{self._epochs}, loss {loss:.3f}{left}"
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(samples)


def announce(work: str, *, quiet: bool) -> None:
    """Print that a computation without a progress bar starts.

    Args:
        work: name of what is computed.
        quiet: flag that hides the progress.
    """
    if not quiet:
        print(f"computing {work} ...", file=sys.stderr, flush=True)


@contextmanager
def planned(parts: Mapping[str, Sequence[PlannedStage]]) -> Iterator[None]:
    """Tell all stages inside the block where they stand in the run.

    Args:
        parts: stages of every part of the run, by the name of the part.

    Yields:
        Nothing.
    """
    token = _PLAN.set(RunPlan(parts))
    try:
        yield
    finally:
        _PLAN.reset(token)


def duration(seconds: float) -> str:
    """A time in words, in the largest unit that fits into it at least twice.

    Args:
        seconds: time in seconds.

    Returns:
        The time as text.

    Example:
        >>> duration(3), duration(600), duration(10_000)
        ('3 seconds', '10 minutes', '3 hours')
    """
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "1 second"


_PLAN: ContextVar[RunPlan | None] = ContextVar("plan", default=None)
