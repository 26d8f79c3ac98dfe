"""The script that tests one combination of versions: its constraints, its row, and what it refuses."""

import pytest

from tests import matrix


def test_lowest_versions_are_the_bounds_of_the_project():
    assert matrix.lowest(["numpy", "torch"]) == ["numpy==1.26", "torch==2.6"]
    assert {"numpy==1.26", "h5py==3.12.1", "pyarrow==14"} < set(matrix.lowest(["all"]))
    with pytest.raises(ValueError, match=r"--lowest must name packages among torch, .*, got torchvision"):
        matrix.lowest(["numpy", "torchvision"])


def test_row_holds_versions_and_what_pytest_counted():
    for line in ("== 2 failed, 30 passed in 1.20s ==", "2 failed, 30 passed in 1.20s (0:00:01)"):
        found = matrix.row(["3.12.1", "2.13.0"], "smoke", f"..F\n{line}\n")
        assert found == "| 3.12.1 | 2.13.0 | smoke | 2 failed, 30 passed |"
    assert matrix.row(["3.12.1"], "all", "error") == "| 3.12.1 | all | no test ran |"


def test_an_interpreter_that_is_missing_is_refused(capsys):
    with pytest.raises(SystemExit):
        matrix.main(["--python", "python9.9"])
    assert "--python must be an interpreter, found no python9.9" in capsys.readouterr().err
