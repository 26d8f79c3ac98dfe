"""Two processes in one folder: the second is told who the first is, and a dead one holds nothing."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from disentangled_mil.data.planted import TASKS
from disentangled_mil.train.folder_lock import check_unlocked, locked
from disentangled_mil.train.options import TrainingOptions
from disentangled_mil.train.run_folder import RunFolder

HOLD = """
import sys, time
from pathlib import Path
from disentangled_mil.train.folder_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def run(path, *, resume=False):
    return RunFolder(path, "grading", TASKS["grading"], TrainingOptions(), resume=resume, decides={})


def test_a_second_process_is_refused_by_the_first_one_and_a_dead_one_holds_nothing(holder, tmp_path):
    named = rf"{tmp_path}: is in use by process {holder.pid} on {socket.gethostname()}; wait for its end, or end it$"
    with pytest.raises(ValueError, match=named), run(tmp_path).taken():
        pass
    (tmp_path / "run.json").write_text(json.dumps(run(tmp_path / "other").run))
    with pytest.raises(ValueError, match=named):
        run(tmp_path)
    with pytest.raises(ValueError, match=named), run(tmp_path, resume=True).taken():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with pytest.raises(ValueError, match="already holds a run"):
        run(tmp_path)
    with run(tmp_path, resume=True).taken():
        assert json.loads((tmp_path / ".lock.json").read_text())["process"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_holder_that_has_not_said_its_name_yet_is_another_process(tmp_path):
    with locked(tmp_path):
        (tmp_path / ".lock.json").unlink()
        with pytest.raises(ValueError, match="is in use by another process"):
            check_unlocked(tmp_path)
    check_unlocked(tmp_path)
    check_unlocked(tmp_path / "absent")


def test_a_run_that_fails_at_once_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), run(tmp_path / "new" / "run").taken():
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_the_half_of_a_note_that_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "..lock.json.cluster-7.12.tmp").write_text("{")
    with locked(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".lock.json"]
    assert not list(tmp_path.iterdir())


def test_a_lock_of_a_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """A process opens the file, its holder removes it and ends, and a third process may lock a new one."""
    fcntl = pytest.importorskip("fcntl")
    flock, removed = fcntl.flock, []

    def late(*arguments):
        if not removed:
            (tmp_path / ".lock").unlink()
            removed.append(True)
        return flock(*arguments)

    with monkeypatch.context() as other:
        other.setattr(fcntl, "flock", late)
        with pytest.raises(ValueError, match="is in use by another process"), locked(tmp_path):
            raise AssertionError("it must not be held")
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()
