"""Two processes train as one, and end together."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from disentangled_mil import Bag
from disentangled_mil.cli import main
from disentangled_mil.data.planted import write_cohort
from disentangled_mil.train import processes
from disentangled_mil.train.experiment import Split, run_split
from disentangled_mil.train.training import NETWORKS
from tests.support.cohorts import small_planted
from tests.support.processes import free_port, run_as_torchrun_does
from tests.support.training import OPTIONS, small_split

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

# The batch of one sample leaves nothing to the second process. Distillation begins in the second epoch.
SAME = replace(
    OPTIONS, epochs=2, batch_size=17, dropout=0.0, gene_dropout=0.0, task_warmup=0.5, share_weight=1.0, linear=0.0
)


def lacking_split() -> Split:
    """A split in which some samples have no tiles at one magnification."""
    split = small_split()
    samples = list(split.train.samples)
    for row in (1, 6, 20):
        bags = {**samples[row].bags, "10x": Bag.empty(8, placed=True)}
        samples[row] = (
            samples[row]._replace(bags=bags) if hasattr(samples[row], "_replace") else replace(samples[row], bags=bags)
        )
    return split._replace(train=replace(split.train, samples=tuple(samples), missing="allow"))


TRAIN = """
import sys
from pathlib import Path
from disentangled_mil.train import run_split
from disentangled_mil.train.processes import rank, together
from disentangled_mil.train.training import NETWORKS
from tests.train.test_processes import SAME, lacking_split

out = Path(sys.argv[1])
with together():
    result = run_split(lacking_split(), "grading", SAME, out, models=NETWORKS, quiet=True)
    result.predictions.to_csv(out / f"predictions{rank()}.csv", index=False)
"""


def test_two_processes_train_the_models_of_one(tmp_path):
    ended = run_as_torchrun_does(TRAIN, str(tmp_path / "two"))
    assert [process.returncode for process in ended] == [0, 0], ended
    (tmp_path / "one").mkdir()
    alone = run_split(lacking_split(), "grading", SAME, tmp_path / "one", models=NETWORKS, quiet=True).predictions
    first, second = (pd.read_csv(tmp_path / "two" / f"predictions{rank}.csv") for rank in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    pd.testing.assert_frame_equal(first, alone, check_dtype=False, rtol=0, atol=2e-5)
    logs = sorted(path.name for path in (tmp_path / "one").glob("*.csv"))
    assert logs == ["distilled.csv", "genes.csv", "student.csv", "teacher.csv"]
    for name in logs:
        one, two = (pd.read_csv(tmp_path / run / name) for run in ("one", "two"))
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5, err_msg=name)
    for run in ("one", "two"):
        anchors = load_file(tmp_path / run / "student.safetensors")["branches.20x.aggregate.anchors"]
        torch.testing.assert_close(
            anchors, load_file(tmp_path / "one" / "student.safetensors")["branches.20x.aggregate.anchors"]
        )


COMMANDS = """
import os, sys
from functools import partial
from disentangled_mil.cli import main
from disentangled_mil.train import linear, processes, run_folder
from disentangled_mil.train.stages import StudentStage

cohort, out, *ports = sys.argv[1:]
processes._GRACE = 0.1
run_folder.compare = partial(run_folder.compare, resamples=20)
linear.GRID = (1e-3,)
rank, plain = int(os.environ["RANK"]), StudentStage.loss


def run(*arguments):
    os.environ["MASTER_PORT"] = ports.pop()
    child = os.fork()
    if not child:
        sys.exit(main(["train", cohort, "--out", out, "--folds", "2", "--epochs", "2", *arguments]))
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.path.exists(out), file=sys.stderr, flush=True)


def fail_in_one(self, batch, epoch):
    if epoch == failing and rank == 1:
        raise ValueError("the second process fails")
    return plain(self, batch, epoch)


run("--task", "gradin")
StudentStage.loss = fail_in_one
for failing in range(2):
    run("--task", "grading")
StudentStage.loss = plain
run("--task", "grading", "--resume")
"""


@pytest.fixture(scope="module")
def slides_alone(tmp_path_factory) -> Path:
    """A small cohort in files, without expression."""
    path = write_cohort(small_planted(13), tmp_path_factory.mktemp("cohort"))
    path.write_text(path.read_text().split("[expression]")[0])
    return path


def test_the_command_fails_in_all_with_one_message_and_resumes(slides_alone, tmp_path):
    out, ports = tmp_path / "two", [str(free_port()) for _ in range(4)]
    both = run_as_torchrun_does(COMMANDS, str(slides_alone), str(out), *ports)
    first, second = both
    for process in both:
        ended = [line for line in process.stderr.splitlines() if line.startswith("ended")]
        # A run without a finished epoch leaves no trace.
        assert ended == ["ended 2 False", "ended 1 False", "ended 1 True", "ended 0 True"], process.stderr
    assert (first.stderr + second.stderr).count("error: ") == 3
    assert f"error: {slides_alone}: task must be one of" in first.stderr + second.stderr
    assert second.stderr.count("error: the second process fails") == 2
    assert "reading slides" in first.stderr
    assert "reading slides" not in second.stderr
    assert first.stdout.count("linear model (slides)") == 1
    assert second.stdout == ""
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    models = {f"fold{fold}/student.{end}" for fold in range(2) for end in ("csv", "json", "safetensors")}
    assert written == {"run.json", "metrics.json", "predictions.csv", "report.html", *models}
    starts = json.loads((out / "run.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2, 2]


def test_a_batch_is_shared_and_all_know_its_labels(dataset, monkeypatch):
    whole = dataset.batch(range(5))
    for own, rows in enumerate(([0, 3], [1, 4], [2])):
        part = dataset.batch([0, 3], [1, 4], [2], own=own)
        assert part.rows.tolist() == [0, 3, 1, 4, 2]
        assert part.counts == (2, 2, 1)
        assert torch.equal(part.target, whole.target[part.rows])
        assert torch.equal(part.bags["10x"].mask.sum(1), whole.bags["10x"].mask.sum(1)[rows])
        assert torch.equal(part.genes["tumor"], whole.genes["tumor"][rows])
    idle = dataset.batch([3], [], own=1)
    assert len(idle.bags["10x"]) == len(idle.genes["tumor"]) == 1
    monkeypatch.setattr("disentangled_mil.train.datasets.rank", lambda: 1)
    assert idle.own_tiles("10x").tolist() == [False]


def test_the_first_error_of_a_function_is_raised_in_all(monkeypatch):
    def gather(every, own):
        every[:] = [("first", None), own]

    def fail():
        raise ValueError("of the second")

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(processes, "_TOGETHER", type(processes._TOGETHER)("together", default=True))
    assert processes.of_each(lambda: processes.processes()) == ["first", 1]  # alone inside
    assert processes.by_first(fail) == "first"
    with pytest.raises(ValueError, match="of the second"):
        processes.of_each(fail)


def test_several_processes_have_a_gpu_each(monkeypatch):
    monkeypatch.setattr(processes, "processes", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    processes.check_device("cpu")
    with pytest.raises(
        ValueError, match="device must be cpu, or cuda, where every process takes a GPU of its own, got 'cuda:1'"
    ):
        processes.check_device("cuda:1")
    with pytest.raises(ValueError, match="device cuda needs a GPU for each of the 4 processes of a machine, got 2"):
        processes.check_device("cuda")


def test_commands_that_do_not_train_run_in_one_process(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "together", nullcontext)
    assert main(["report", "run"]) == 2
    assert capsys.readouterr().err == (
        "error: several processes can run the command train only, so start others without torchrun\n"
    )


def test_a_wrong_call_is_told_by_the_first_process_only(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, told in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="2"):
            main(["train"])
        assert bool(capsys.readouterr().err) == told


class _TwoParts(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def test_an_error_that_cannot_be_sent_keeps_its_text():
    assert str(processes._picklable(_TwoParts("disk", "full"))) == "_TwoParts: disk full"
    known = ValueError("folds must be at least 2")
    assert processes._picklable(known) is known
