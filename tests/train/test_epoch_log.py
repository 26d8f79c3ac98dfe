import sys

import pandas as pd
import pytest

from disentangled_mil.train.epoch_log import EpochLog
from disentangled_mil.train.options import TrainingOptions

ROWS = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5, "share": 0.25}]


def events(folder):
    """The values of every scalar that TensorBoard shows, by epoch."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: {event.step: event.value for event in reader.Scalars(tag)} for tag in reader.Tags()["scalars"]}


def test_the_csv_has_a_row_for_each_epoch_and_every_column(tmp_path):
    with EpochLog(tmp_path / "teacher.csv", "csv") as log:
        log.write(ROWS[:1])
        log.write(ROWS)
    table = pd.read_csv(tmp_path / "teacher.csv")
    assert table["loss"].tolist() == [2.0, 1.5]
    assert table["share"].isna().tolist() == [True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.csv"]


def test_tensorboard_shows_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    with EpochLog(tmp_path / "teacher.csv", "tensorboard") as log:
        log.write(ROWS[:1])
        log.write(ROWS)
    assert events(tmp_path / "tensorboard" / "teacher") == {"loss": {1: 2.0, 2: 1.5}, "share": {2: 0.25}}
    assert len(pd.read_csv(tmp_path / "teacher.csv")) == 2


def test_an_epoch_that_is_trained_again_replaces_the_one_of_the_killed_run(tmp_path):
    pytest.importorskip("tensorboard")
    with EpochLog(tmp_path / "teacher.csv", "tensorboard") as log:
        log.write(ROWS[:1])
        log.write(ROWS)
    with EpochLog(tmp_path / "teacher.csv", "tensorboard", start=1) as log:
        log.write([ROWS[0], {"epoch": 2, "loss": 1.25}])
    assert events(tmp_path / "tensorboard" / "teacher")["loss"] == {1: 2.0, 2: 1.25}


def test_a_missing_tensorboard_is_named_before_anything_is_trained(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'disentangled_mil\[tensorboard\]'"):
        TrainingOptions(log="tensorboard")


def test_an_unknown_log_is_refused():
    with pytest.raises(ValueError, match=r"^log must be one of 'csv', 'tensorboard', got 'wandb'$"):
        TrainingOptions(log="wandb")
