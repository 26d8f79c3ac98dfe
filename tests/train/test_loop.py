import csv
import math
from dataclasses import replace

import pytest
import torch

from disentangled_mil import Classification, GeneNetwork
from disentangled_mil.train import loop
from disentangled_mil.train.datasets import CohortDataset
from disentangled_mil.train.loop import predict_logits, task_loss, train_stage
from disentangled_mil.train.stages import GeneStage


@pytest.fixture
def paired(split, options) -> CohortDataset:
    """The training patients with expression."""
    cohort = split.train.with_expression()
    return CohortDataset(cohort, "grading", Classification(["G2", "G3", "G4"]), cohort.fit_expression())


@pytest.fixture
def stage(paired, options) -> GeneStage:
    torch.manual_seed(0)
    sizes = {name: values.shape[1] for name, values in paired.genes.items()}
    return GeneStage(GeneNetwork(sizes, 3, dim=8), Classification(["G2", "G3", "G4"]), options)


def snapshot(stage: GeneStage) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in stage.model.state_dict().items()}


def weights_equal(stage: GeneStage, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in stage.model.state_dict().items())


def read_log(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def validations(monkeypatch, stage):
    """Let the validation losses be given ones; the weights after every epoch."""

    def give(*losses):
        seen, left = [], iter(losses)

        def task_loss(stage, dataset, options):
            seen.append(snapshot(stage))
            return next(left)

        monkeypatch.setattr(loop, "task_loss", task_loss)
        return seen

    return give


@pytest.mark.parametrize("lr_warmup", [0.0, 0.25, 1.0])
def test_learning_rate_rises_and_then_falls_to_zero_over_all_steps(stage, paired, options, tmp_path, lr_warmup):
    options = replace(options, epochs=4, batch_size=8, lr_warmup=lr_warmup)
    rates = []
    step = stage.step
    stage.step = lambda loss: rates.append([group["lr"] for group in stage.optimizer.param_groups]) or step(loss)
    train_stage("genes", stage, paired, None, options, tmp_path, quiet=True)
    total = 4 * math.ceil(len(paired) / 8)
    warmup = round(lr_warmup * total)
    rising = [(i + 1) / (warmup + 1) for i in range(warmup)]
    falling = [(1 + math.cos(math.pi * i / (total - warmup))) / 2 for i in range(total - warmup)]
    wanted = [options.learning_rate * factor for factor in rising + falling]
    assert rates == [pytest.approx([rate, rate]) for rate in wanted]
    end = 0.0 if falling else options.learning_rate
    assert stage.optimizer.param_groups[0]["lr"] == pytest.approx(end, abs=1e-12)


def test_epoch_with_the_smallest_validation_loss_is_kept(stage, paired, options, tmp_path, validations):
    seen = validations(3.0, 1.0, 1.0, 2.0)
    train_stage("genes", stage, paired, paired, replace(options, epochs=4), tmp_path, quiet=True)
    assert len(seen) == 4
    assert weights_equal(stage, seen[1])
    assert not weights_equal(stage, seen[2])
    assert not stage.model.training
    assert [float(row["validation"]) for row in read_log(tmp_path / "genes.csv")] == [3.0, 1.0, 1.0, 2.0]


def test_last_epoch_is_kept_without_validation(stage, paired, options, tmp_path, monkeypatch):
    ends = []
    save = loop.save_progress
    monkeypatch.setattr(loop, "save_progress", lambda path, state: ends.append(snapshot(stage)) or save(path, state))
    train_stage("genes", stage, paired, None, options, tmp_path, quiet=True)
    assert len(ends) == options.epochs
    assert weights_equal(stage, ends[-1])
    assert not weights_equal(stage, ends[0])
    assert "validation" not in read_log(tmp_path / "genes.csv")[0]


def test_log_holds_the_mean_loss_of_the_samples_of_every_epoch(stage, paired, options, tmp_path):
    values = []
    loss = stage.loss

    def spy(batch, epoch):
        result = loss(batch, epoch)
        values.append((epoch, len(batch.rows), result.total.item()))
        return result

    stage.loss = spy
    options = replace(options, batch_size=10, epochs=2)
    train_stage("genes", stage, paired, paired, options, tmp_path, quiet=True)
    rows = read_log(tmp_path / "genes.csv")
    assert list(rows[0]) == ["epoch", "learning_rate", "loss", "task", "validation"]
    for epoch, row in enumerate(rows):
        parts = [(count, value) for of, count, value in values if of == epoch]
        assert sum(count for count, _ in parts) == len(paired)
        mean = sum(count * value for count, value in parts) / len(paired)
        assert float(row["loss"]) == float(row["task"]) == pytest.approx(mean)
        assert row["epoch"] == str(epoch + 1)
    assert all(0 < float(row["learning_rate"]) <= options.learning_rate for row in rows)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_stops_where_the_loss_is_not_finite(stage, paired, options, tmp_path, value):
    loss, calls = stage.loss, []

    def explode(batch, epoch):
        calls.append(epoch)
        result = loss(batch, epoch)
        return result._replace(total=result.total * value) if epoch > 0 else result

    stage.loss = explode
    with pytest.raises(FloatingPointError, match=f"^the training loss is {value} in epoch 2; lower learning_rate$"):
        train_stage("genes", stage, paired, None, options, tmp_path, quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genes.csv", "genes.progress.pt"]
    assert len(read_log(tmp_path / "genes.csv")) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_stops_where_the_validation_loss_is_not_finite(stage, paired, options, tmp_path, validations, value):
    validations(1.0, value)
    with pytest.raises(FloatingPointError, match=f"^the validation loss is {value} in epoch 2; lower learning_rate$"):
        train_stage("genes", stage, paired, paired, options, tmp_path, quiet=True)


def test_unreadable_state_is_refused_and_left_alone_without_resume(stage, paired, options, tmp_path):
    (tmp_path / "genes.progress.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"genes\.progress\.pt: cannot be resumed from"):
        train_stage("genes", stage, paired, None, options, tmp_path, resume=True, quiet=True)
    train_stage("genes", stage, paired, None, options, tmp_path, quiet=True)
    assert len(read_log(tmp_path / "genes.csv")) == options.epochs


def test_resuming_a_finished_stage_gives_its_best_weights_and_trains_nothing(
    stage, paired, options, tmp_path, validations
):
    seen = validations(2.0, 1.0, 3.0)
    train_stage("genes", stage, paired, paired, options, tmp_path, quiet=True)
    sizes = {name: values.shape[1] for name, values in paired.genes.items()}
    anew = GeneStage(GeneNetwork(sizes, 3, dim=8), stage.task, options)
    anew.loss = None  # must not be called
    train_stage("genes", anew, paired, paired, options, tmp_path, resume=True, quiet=True)
    assert weights_equal(anew, seen[1])


def test_progress_bar_goes_to_stderr_and_can_be_silenced(stage, paired, options, tmp_path, capsys):
    train_stage("genes", stage, paired, None, replace(options, epochs=1), tmp_path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "genes" in printed.err
    train_stage("genes", stage, paired, None, replace(options, epochs=1), tmp_path, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_task_loss_is_that_of_all_predictions_in_order(stage, paired, options):
    stage.model.train()
    logits = predict_logits(stage, paired, replace(options, batch_size=5))
    assert not stage.model.training
    assert not logits.requires_grad
    with torch.no_grad():
        whole = stage.model(paired.genes).logits
    torch.testing.assert_close(logits, whole)
    loss = torch.nn.functional.cross_entropy(whole, paired.target)
    assert task_loss(stage, paired, options) == pytest.approx(loss.item(), rel=1e-5)
