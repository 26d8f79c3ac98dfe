"""Several processes that train together, as ``torchrun`` starts them.

All processes run the same program. Each computes its share of a batch, and the outputs are joined before the loss. So
every process has the loss of the whole batch, and the gradients that ``DistributedDataParallel`` averages are those of
this loss. The first process alone prints, writes files, and fits linear models and statistics.
"""

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._exit_status import failure_status
from .._processes import gather_rows, silent

if TYPE_CHECKING:
    from .datasets import Batch
    from .stages import Stage, StageLoss

Made = TypeVar("Made")

# The first process may fit linear models or draw resamples while the others wait.
_PATIENCE = timedelta(hours=6)
# Seconds that a process waits to be ended by the launcher, after another process has failed.
_GRACE = 5.0
_TOGETHER: ContextVar[bool] = ContextVar("together", default=False)


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that ``torchrun`` started. An error in one of them ends all.

    The process that fails first raises its error, and may print again. The launcher ends the others, which print
    nothing.
    """
    store, rank, world = next(iter(dist.rendezvous("env://")))  # type: ignore[attr-defined]
    started = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"disentangled_mil/{started}", store)  # type: ignore[attr-defined]
    local = int(os.environ.get("LOCAL_RANK", rank))
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    dist.init_process_group(store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    token = _TOGETHER.set(True)
    # The launcher ends the others when one has failed. They must be able to tidy up.
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with silent(bool(rank)):
            yield
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        if _fails_first(store):
            raise
        # The launcher ends all processes when one has ended. So the others wait until the error was printed.
        time.sleep(_GRACE)
        sys.exit(failure_status())
    finally:
        _TOGETHER.reset(token)
        signal.signal(signal.SIGTERM, handler)


def _fails_first(store: Any) -> bool:
    """Whether no other process has failed before."""
    with suppress(Exception):  # The store may have ended with the process that held it.
        return bool(store.add("failed", 1) == 1)
    return False


def processes() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if _TOGETHER.get() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _TOGETHER.get() else 0


def check_device(device: str) -> None:
    """Check that no two processes train on one GPU.

    Args:
        device: device of the training.

    Raises:
        ValueError: several processes would train on one GPU.
    """
    if processes() == 1 or not device.startswith("cuda"):
        return
    if device != "cuda":
        raise ValueError(f"device must be cpu, or cuda, where every process takes a GPU of its own, got {device!r}")
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", processes())), torch.cuda.device_count()
    if local > gpus:
        raise ValueError(f"device cuda needs a GPU for each of the {local} processes of a machine, got {gpus}")


def of_each(function: Callable[[], Made]) -> list[Made]:
    """The results of a function in all processes; if some fail, all raise the error of the first of these.

    Inside the function a process is alone, so that nothing in it waits for the others. Results and errors are pickled.

    Args:
        function: function to run.

    Returns:
        The results, in the order of the processes.
    """
    if processes() == 1:
        return [function()]
    own: tuple[Any, Exception | None]
    token = _TOGETHER.set(False)
    try:
        own = function(), None
    except Exception as error:
        own = None, _picklable(error)
    finally:
        _TOGETHER.reset(token)
    every: list[Any] = [None] * processes()
    dist.all_gather_object(every, own)
    for _, first_error in every:
        if first_error is not None:
            raise first_error
    return [result for result, _ in every]


def _picklable(error: Exception) -> Exception:
    """The error, or one of the same text where it could not be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def by_first(function: Callable[[], Made]) -> Made:
    """The result of a function that only the first process runs; its error is raised in all.

    Args:
        function: function to run, see :func:`of_each`.

    Returns:
        The result, in all processes.
    """
    if processes() == 1:
        return function()
    first = rank() == 0  # Inside of `of_each` it would be 0 in all processes.
    results: list[Any] = of_each(lambda: function() if first else None)
    return results[0]  # type: ignore[no-any-return]


def join_rows(parts: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """The rows of all processes, in their order and with gradients: every part [b, ...] -> [sum of counts, ...].

    Args:
        parts: rows of this process, with at least two dimensions. Several processes leave out rows beyond their count.
        counts: number of rows of every process.

    Returns:
        The parts of all processes.
    """
    if len(counts) == 1:
        return list(parts)
    own = [part[: counts[rank()]].flatten(1) for part in parts]
    whole = torch.split(gather_rows(torch.cat(own, 1), counts, None), [part.shape[1] for part in own], 1)
    return [rows.reshape(-1, *part.shape[1:]).to(part.dtype) for rows, part in zip(whole, parts, strict=True)]


def loss_of(stage: "Stage") -> Callable[["Batch", int], "StageLoss"]:
    """The function that computes the loss of a stage; its gradients are averaged over all processes.

    All processes begin with the weights of the first one.

    Args:
        stage: stage to train.

    Returns:
        The function from a batch and the number of the epoch to the loss.
    """
    if processes() == 1:
        return stage.loss
    return nn.parallel.DistributedDataParallel(_Loss(stage))


class _Loss(nn.Module):
    """The loss of a stage as a module that holds the parameters, as ``DistributedDataParallel`` needs it."""

    def __init__(self, stage: "Stage") -> None:
        super().__init__()
        self.model = stage.model
        self._compute = stage.loss

    def forward(self, batch: "Batch", epoch: int) -> "StageLoss":
        """Compute the loss of a batch."""
        return self._compute(batch, epoch)
