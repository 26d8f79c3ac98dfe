"""The training loop: epochs, schedule, choice of the epoch to keep, progress, interruption."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import load_progress, save_progress
from .cross_fitting import seed_of
from .datasets import Batch, CohortDataset
from .epoch_log import EpochLog
from .options import TrainingOptions
from .processes import by_first, loss_of, processes, rank
from .progress import StageProgress
from .stages import Stage, StageLoss


def train_stage(
    name: str,
    stage: Stage,
    train: CohortDataset,
    validation: CohortDataset | None,
    options: TrainingOptions,
    folder: str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> None:
    """Train one stage; its model ends with the weights of the best epoch, in evaluation mode.

    The best epoch has the smallest task loss on the validation samples, among the epochs with the stage's complete
    loss. Without validation samples it is the last epoch. After every epoch the whole state is written to
    ``folder/NAME.progress.pt`` and the log to ``folder/NAME.csv``. So an interrupted run continues with the numbers
    that it would have had. Several processes share every batch; dropout is theirs alone, and new in every epoch.

    Args:
        name: name of the stage, for files and the progress bar.
        stage: model, loss and optimizer.
        train: training samples.
        validation: samples that choose the epoch.
        options: options of the training.
        folder: folder of the files.
        resume: flag that continues the training from the state in ``folder``, if there is one.
        quiet: flag that hides the progress bar.

    Raises:
        FloatingPointError: the training or the validation loss is no longer finite.
        ValueError: the state in ``folder`` cannot be read.
    """
    folder = Path(folder)
    state_path = folder / f"{name}.progress.pt"
    steps = math.ceil(len(train) / options.batch_size)
    total = steps * options.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        stage.optimizer, lambda step: _cosine_with_warmup(step, total, round(options.lr_warmup * total))
    )
    best: dict[str, Any] = {"loss": math.inf, "epoch": -1, "weights": {}}
    history: list[dict[str, float]] = []
    saved = by_first(lambda: load_progress(state_path, "cpu") if resume and state_path.is_file() else None)
    if saved is not None:
        stage.model.load_state_dict(saved["model"])
        stage.optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["rng"].cpu())
        if saved["cuda_rng"]:
            torch.cuda.set_rng_state_all([state.cpu() for state in saved["cuda_rng"]])
        best, history = saved["best"], saved["history"]

    loss = loss_of(stage)
    with (
        StageProgress(name, len(train), options.epochs, done=len(history), quiet=quiet) as progress,
        EpochLog(folder / f"{name}.csv", options.log if rank() == 0 else "csv", start=len(history)) as log,
    ):
        for epoch in range(len(history), options.epochs):
            if processes() > 1:
                torch.manual_seed(seed_of(options.seed, epoch, rank()))
            row = _train_epoch(stage, loss, train, options, epoch, schedule, progress)
            if validation is not None:
                row["validation"] = _finite("validation", task_loss(stage, validation, options), epoch)
            history.append(row)
            score = row.get("validation", -epoch)
            if score < best["loss"] and stage.complete(epoch):
                weights = {key: value.clone() for key, value in stage.model.state_dict().items()}
                best = {"loss": score, "epoch": epoch, "weights": weights}
            if rank():
                continue
            log.write(history)
            save_progress(
                state_path,
                {
                    "model": stage.model.state_dict(),
                    "optimizer": stage.optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "rng": torch.get_rng_state(),
                    "cuda_rng": torch.cuda.get_rng_state_all() if options.device.startswith("cuda") else [],
                    "best": best,
                    "history": history,
                },
            )
    stage.model.load_state_dict(best["weights"])
    stage.model.eval()


@torch.no_grad()
def predict_logits(stage: Stage, dataset: CohortDataset, options: TrainingOptions) -> Tensor:
    """Predictions of a stage's model for all samples, in their order [n, K]."""
    stage.model.eval()
    return dataset.outputs(options.batch_size, options.device, lambda batch: [stage.logits(batch)])[0]


def task_loss(stage: Any, dataset: CohortDataset, options: TrainingOptions) -> float:
    """Mean task loss of a stage's predictions over all samples."""
    loss = stage.task.to("cpu").loss(predict_logits(stage, dataset, options), dataset.target)
    return float(loss)


def _train_epoch(
    stage: Stage,
    loss_of_batch: Callable[[Batch, int], StageLoss],
    train: CohortDataset,
    options: TrainingOptions,
    epoch: int,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    progress: StageProgress,
) -> dict[str, float]:
    """One pass over the training samples: the mean of every part of the loss and of every note."""
    draw = options.seed * 100_003 + epoch
    drawn = train.drawn(options.training_tokens, draw=draw)
    stage.begin_epoch(epoch, drawn)
    stage.model.train()
    rate = float(schedule.get_last_lr()[0])
    order = torch.Generator().manual_seed(draw)
    sums: dict[str, float] = {}
    for batch in drawn.batches(options.batch_size, order):
        batch = batch.to(options.device)
        loss = loss_of_batch(batch, epoch)
        value = _finite("training", loss.total.item(), epoch)
        stage.optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        stage.step(loss)
        schedule.step()
        share = len(batch.rows) / len(train)
        for part, amount in {"loss": loss.total, **loss.parts, **loss.notes}.items():
            sums[part] = sums.get(part, 0.0) + share * amount.item()
        progress.step(len(batch.rows), epoch, value)
    return {"epoch": epoch + 1, "learning_rate": rate, **sums}


def _finite(name: str, loss: float, epoch: int) -> float:
    """A loss, which must be finite for the training to go on."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the {name} loss is {loss} in epoch {epoch + 1}; lower learning_rate")
    return loss


def _cosine_with_warmup(step: int, total: int, warmup: int) -> float:
    """Factor of the learning rate: linear up to 1, then half a cosine down to 0, over all steps."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
