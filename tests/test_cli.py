"""The command line: what is printed where, exit statuses, one line for every error of the input."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

import disentangled_mil
from disentangled_mil import __version__
from disentangled_mil._exit_status import work_begins
from disentangled_mil.cli import main
from disentangled_mil.data.planted import write_cohort
from disentangled_mil.train import cross_validation, demo, predict
from disentangled_mil.train.cross_validation import TRAIN_OPTIONS
from disentangled_mil.train.demo import DEMO_OPTIONS
from disentangled_mil.train.options import TrainingOptions
from disentangled_mil.train.stages import StudentStage
from tests.support.cohorts import small_planted
from tests.support.training import few_choices

# Where the package can be imported from, installed or not.
HOME = Path(disentangled_mil.__file__).parents[1]
ROWS = (
    "linear model (slides)",
    "SNN (genes)",
    "teacher (slides + genes)",
    "student from scratch (slides)",
    "distilled student (slides)",
)
SMALL = TrainingOptions(
    dim=8,
    heads=2,
    dim_head=4,
    gene_tokens=2,
    epochs=2,
    batch_size=16,
    validation=0.25,
    distill="always",
    teacher_folds=2,
)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Small models and slides as defaults, and an empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cross_validation, "TRAIN_OPTIONS", SMALL)
    monkeypatch.setattr(demo, "DEMO_OPTIONS", SMALL)
    monkeypatch.setattr(demo, "DEMO_GRID", (5, 4))
    with few_choices():
        yield


@pytest.fixture(scope="session")
def description(tmp_path_factory):
    return write_cohort(small_planted(28, seed=4), tmp_path_factory.mktemp("cohort"))


def refusal(arguments, capsys) -> str:
    """The one line of an error of the input."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [
        line
        for line in printed.err.splitlines()
        if line and not re.match(r"reading slides|\w+: \d+ (patients|of \d+ genes)", line)
    ]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_demo_prints_one_table_and_shows_progress_on_stderr(tmp_path, capsys):
    out = tmp_path / "demo"
    assert (
        main(
            [
                "demo",
                "--out",
                str(out),
                "--patients",
                "20",
                "--epochs",
                "1",
                "--task",
                "survival",
                "--distill",
                "always",
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    for row in ROWS:
        assert len(re.findall(rf"^{re.escape(row)} +\d\.\d{{3}}$", printed.out, re.MULTILINE)) == 2
    assert len(re.findall(r"^chance +0\.500$", printed.out, re.MULTILINE)) == 2
    for number, stage in ((1, "network on genes"), (2, "teacher"), (5, "student"), (6, "distilled student")):
        assert re.search(rf"demo, stage {number}/6: {stage}, epoch 1/1, loss \d+\.\d{{3}}", printed.err)
    names = {path.name for path in out.iterdir()}
    for model in ("genes", "teacher", "student", "distilled"):
        assert {f"{model}.safetensors", f"{model}.json", f"{model}.csv"} <= names
    assert {"metrics.json", "predictions.csv", "prototypes.png"} <= names
    picture = imread(out / "prototypes.png")
    assert picture.shape[0] > 100
    assert picture.std() > 0.01
    assert json.loads((out / "metrics.json").read_text())["training"]["epochs"] == 1


@pytest.fixture(scope="session")
def trained(description, tmp_path_factory):
    """A run of the command in a process of its own."""
    out = tmp_path_factory.mktemp("train") / "run"
    command = [sys.executable, "-W", "error", "-m", "disentangled_mil", "train", str(description)]
    options = ["--task=survival", "--distill=always", "--out", str(out), "--folds=2", "--epochs=1", "--batch-size=32"]
    return out, subprocess.run([*command, *options], cwd=HOME, capture_output=True, text=True, check=False)


def test_train_prints_mean_and_spread_of_every_model(trained):
    out, done = trained
    assert done.returncode == 0, done.stderr
    for row in ROWS:
        assert re.search(rf"^{re.escape(row)} +\d\.\d{{3}} ± \d\.\d{{3}}$", done.stdout, re.MULTILINE)
    assert re.search(r"fold1 \(2 of 2\): trains on 14 patients .*, tests 14 patients", done.stderr)
    assert re.search(
        r"fold1 \(2/2\), stage 7/9: teacher out of fold, repeat0-fold4, epoch 1/1, .*, run: [0-9]+ seconds? left",
        done.stderr,
    )
    interval = r"[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\]"
    for pair in (
        "distilled student minus student",
        "teacher minus student",
        "student minus linear model",
        "teacher minus SNN",
    ):
        assert re.search(rf"^{pair} +{interval}$", done.stdout, re.MULTILINE)
    assert len(re.findall(rf"^fold\d +\d+ .*{interval}", done.stdout, re.MULTILINE)) == 2
    assert {path.name for path in out.iterdir()} == {
        "run.json",
        "metrics.json",
        "predictions.csv",
        "report.html",
        "fold0",
        "fold1",
    }
    assert not list(out.rglob("*.tmp"))


def test_predict_writes_predictions_of_a_saved_student(trained, description, tmp_path, capsys):
    out, _ = trained
    slides = description.parent / "slides"
    arguments = ["predict", out / "fold0" / "distilled.json", "--out", tmp_path / "predictions.csv"]
    arguments += [f"--slides={name}={slides / name}" for name in ("10x", "20x")]
    assert main([str(argument) for argument in arguments]) == 0
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert table["patient"].tolist() == sorted(path.stem for path in (slides / "10x").iterdir())
    assert capsys.readouterr().out == f"{len(table)} predictions -> {tmp_path / 'predictions.csv'}\n"


def test_predict_needs_every_magnification_once(trained, tmp_path, capsys):
    start = ["predict", trained[0] / "fold0" / "student.json", "--out", tmp_path / "p.csv"]
    for slides in (["20x"], ["20x=a", "20x=b"]):
        line = refusal([*start, *(f"--slides={entry}" for entry in slides)], capsys)
        assert "--slides must be MAGNIFICATION=FOLDER, each magnification once, got '20x" in line
    assert "slides must have exactly the names ['10x', '20x'], got ['20x']" in refusal(
        [*start, "--slides=20x=a"], capsys
    )


def test_sides_of_cells_reach_the_prediction(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(predict, "predict_slides", lambda *args, **kwargs: seen.append(kwargs) or [])
    start = ["predict", "student.json", "--slides=20x=a", "--out=p.csv"]
    assert main([*start, "--step=10x=512", "--step=20x=224.5"]) == 0
    options = {"students": "auto", "patients": None, "device": "cpu", "threads": "auto", "allow_other_encoder": False}
    options["allow_other_tiles"] = False
    options["overwrite"] = False
    assert seen == [{"steps": {"10x": 512.0, "20x": 224.5}, **options}]
    capsys.readouterr()
    for sides in (["512"], ["20x=a"], ["20x=1", "20x=1"]):
        line = refusal([*start, *(f"--step={entry}" for entry in sides)], capsys)
        assert f"--step must be MAGNIFICATION=SIDE, each magnification once, got '{sides[-1]}'" in line


def test_a_run_is_interrupted_and_continued(description, tmp_path, capsys, monkeypatch):
    arguments = ["train", str(description), "--task", "grading", "--folds", "2"]
    plain = StudentStage.loss

    def interrupt(self, batch, progress):
        if progress > 0:
            raise KeyboardInterrupt
        return plain(self, batch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(StudentStage, "loss", interrupt)
        assert main([*arguments, "--out", str(tmp_path / "a")]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    kept = "interrupted; everything up to the last finished epoch is kept: continue with --resume\n"
    assert printed.err.endswith(f"\n{kept}")
    assert "Traceback" not in printed.err
    assert "already holds a run" in refusal([*arguments, "--out", tmp_path / "a"], capsys)
    assert "differs in training" in refusal([*arguments, "--out", tmp_path / "a", "--resume", "--seed", 1], capsys)
    assert main([*arguments, "--out", str(tmp_path / "a"), "--resume"]) == 0
    first = capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "a"), "--resume"]) == 0
    assert capsys.readouterr() == (first, "")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["train", "{cohort}", "--task=grading", "--out=o"], "run_split"),
        (["train", "{cohort}", "--task=grading", "--out=o"], "read_cohort"),
        (["demo", "--out=o", "--patients=20"], "run_split"),
        (["demo", "--out=o", "--patients=20"], "planted_cohort"),
        (["predict", "student.json", "--slides=20x=a", "--out=p.csv"], "predict_slides"),
    ],
)
def test_an_interruption_before_anything_is_kept_promises_nothing(description, monkeypatch, capsys, arguments, where):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    module = {"train": cross_validation, "demo": demo, "predict": predict}[arguments[0]]
    monkeypatch.setattr(module, where, interrupt)
    assert main([argument.format(cohort=description) for argument in arguments]) == 130
    assert capsys.readouterr().err.endswith("\ninterrupted\n")
    assert not Path("o").exists()


def test_options_reach_the_training(description, tmp_path, monkeypatch, capsys):
    seen = []
    for module, name in ((cross_validation, "run_cross_validation"), (demo, "run_demo")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: seen.append((args, kwargs)) or "table")
    changes = {"distill": "never", "epochs": 7, "batch_size": 3, "learning_rate": 0.5, "seed": 11}
    changes["log"] = "tensorboard"
    given = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    Path("c.toml").write_text("[training]\nepochs = 5\ndropout = 0.5\nheads = 1\n")
    given += ["--set=heads=4", "--set=epochs=6"]
    assert (
        main(["train", "c.toml", "--task=grading", "--out=o", "--folds=4", "--folds-only=0,2", "--resume", *given]) == 0
    )
    assert main(["demo", "--threads=2"]) == 0
    assert capsys.readouterr().out == "table\ntable\n"
    (train, options), (planted, few) = seen
    assert [str(train[0]), train[1], str(train[2])] == ["c.toml", "grading", "o"]
    assert train[3] == replace(SMALL, **changes, dropout=0.5, heads=4)
    assert options == {"folds": 4, "folds_only": [0, 2], "resume": True, "threads": "auto", "refit": False}
    assert [str(planted[0]), planted[1], planted[2]] == ["runs/demo", "diagnosis", SMALL]
    assert few == {"resume": False, "threads": 2}


@pytest.mark.parametrize(("command", "defaults"), [("demo", DEMO_OPTIONS), ("train", TRAIN_OPTIONS)])
def test_help_names_the_defaults(command, defaults, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    listed = " ".join(capsys.readouterr().out.split("options:")[1].split())
    for name in ("epochs", "batch_size", "learning_rate", "seed"):
        part = listed.split(f"--{name.replace('_', '-')} ")[1].split(" --")[0]
        assert f"(default: {getattr(defaults, name)})" in part
    if command == "demo":
        patients = signature(demo.run_demo).parameters["patients"].default
        assert f"training patients (default: {patients})" in listed


def test_a_missing_description_is_one_line(tmp_path, capsys):
    line = refusal(["train", tmp_path / "no.toml", "--task", "grading", "--out", tmp_path / "o"], capsys)
    assert "no.toml" in line
    assert not (tmp_path / "o").exists()


def test_a_task_that_is_not_there_is_one_line(description, tmp_path, capsys):
    line = refusal(["train", description, "--task=staging", "--out", tmp_path / "o"], capsys)
    assert line == f"error: {description}: task must be one of 'diagnosis', 'grading', 'survival', got 'staging'"
    assert "task must be one of 'diagnosis', 'grading', 'survival', got 'staging'" in refusal(
        ["demo", "--task=staging"], capsys
    )


def test_an_unknown_key_of_the_description_is_one_line(description, tmp_path, capsys):
    path = tmp_path / "cohort.toml"
    path.write_text(description.read_text().replace("[slides.10x]", "[extra]\n[slides.10x]"))
    line = refusal(["train", path, "--task", "grading", "--out", tmp_path / "o"], capsys)
    assert "has the unknown key 'extra'" in line


def test_an_option_out_of_range_is_one_line(description, tmp_path, capsys):
    line = refusal(["train", description, "--task=grading", "--epochs=0", "--out", tmp_path / "o"], capsys)
    assert line == "error: epochs must be at least 1, got 0"


def test_a_value_that_is_not_finite_is_refused_before_training(tmp_path, capsys):
    description = write_cohort(small_planted(28, seed=4), tmp_path / "cohort")
    path = sorted((tmp_path / "cohort" / "slides" / "20x").iterdir())[-1]
    with h5py.File(path, "r+") as file:
        file["features"][2, 1] = np.nan
    line = refusal(["train", description, "--task", "survival", "--out", tmp_path / "o"], capsys)
    assert f"{path}: features must be finite" in line
    assert "row 2" in line
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "o").exists()


def test_the_work_of_one_command_is_not_that_of_the_next(capsys):
    work_begins()
    assert refusal(["check", "no such file.toml"], capsys)


def test_a_failure_of_the_training_has_the_status_1_and_one_of_the_input_2(description, tmp_path, capsys):
    arguments = ["train", str(description), "--task=grading", "--folds=2", "--out", str(tmp_path / "o")]
    assert "epochs must be at least 1" in refusal([*arguments, "--epochs=0"], capsys)
    assert main([*arguments, "--learning-rate=1e38", "--set=lr_warmup=0"]) == 1
    assert re.search(
        "^error: the (training|validation) loss is .*; lower learning_rate$", capsys.readouterr().err, re.MULTILINE
    )


def test_a_damaged_checkpoint_is_one_line(trained, description, tmp_path, capsys):
    (tmp_path / "student.json").write_text((trained[0] / "fold0" / "student.json").read_text())
    (tmp_path / "student.safetensors").write_bytes(b"half")
    line = refusal(["predict", tmp_path / "student.json", "--slides=20x=a", "--out", tmp_path / "p.csv"], capsys)
    assert "student.safetensors: does not hold the weights" in line


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "xpu:7", "meta"])
def test_a_device_that_is_not_there_is_refused_at_once(device, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--device", device])
    assert not Path("runs").exists()
    assert f"argument --device: must be a device of this machine, got '{device}'" in capsys.readouterr().err


def test_a_device_without_float64_is_refused_at_once(capsys, monkeypatch):
    def refuse(*_, **options):
        if options.get("dtype") == torch.float64:
            raise TypeError("this device has no float64")
        return torch.ones(1)

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(SystemExit):
        main(["demo", "--device", "cpu"])
    assert "must be a device of this machine, got 'cpu' (this device has no float64)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["train"], ["train", "c.toml", "--task", "grading"], ["demo", "--epochs", "x"], ["demo", "--threads", "0"]],
)
def test_a_wrong_call_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: python -m disentangled_mil" in capsys.readouterr().err


@pytest.mark.parametrize("numbers", ["", "a", "0-2", "-1", "0,", "1.5"])
def test_numbers_of_folds_are_refused_at_once(numbers, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "c.toml", "--task=grading", "--out=o", f"--folds-only={numbers}"])
    assert f"--folds-only: must be numbers of folds such as 0,2, got {numbers!r}" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "1025", "3000000000", "9" * 5000])
def test_a_number_of_threads_out_of_range_is_refused_at_once(number, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", f"--threads={number}"])
    assert f"--threads: must be auto or a whole number from 1 to 1024, got '{number}'" in capsys.readouterr().err


def test_version_is_told(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP shows its settings")
@pytest.mark.parametrize(
    ("start", "given", "spins"),
    [
        (["-W", "error", "-m", "disentangled_mil", "--version"], {}, "0"),
        (["-m", "disentangled_mil", "--version"], {"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000"),
        (["-c", "import disentangled_mil"], {}, "300000"),
    ],
)
def test_waiting_threads_of_a_command_sleep_and_those_of_other_programs_are_left_alone(start, given, spins):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    shown = subprocess.run(
        [sys.executable, *start],
        cwd=HOME,
        env={**environment, **given, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown


def test_a_missing_extra_is_named_without_a_traceback(tmp_path):
    program = (
        "import sys; sys.modules['h5py'] = None\n"
        "from disentangled_mil.cli import main\n"
        f"sys.exit(main(['demo', '--out', {str(tmp_path / 'demo')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: .*h5py.*; install the extra: pip install 'disentangled_mil\[train\]'\n", done.stderr)
    assert not (tmp_path / "demo").exists()


def test_a_module_that_is_not_installed_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "disentangled_mil.train.predict", None)
    line = refusal(["predict", "student.json", "--slides=20x=a", "--out", "p.csv"], capsys)
    assert line.endswith("install the extra: pip install 'disentangled_mil[train]'")


@pytest.mark.parametrize("error", [TypeError, RuntimeError, KeyError])
def test_defects_of_the_program_keep_their_traceback(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error("a bug")

    monkeypatch.setattr(demo, "run_demo", fail)
    with pytest.raises(error):
        main(["demo"])
