"""Damaged files end in errors of the package. The long run, also of HDF5, is ``python -m tests.fuzz``."""

import random
import runpy

import pytest

from tests import fuzz
from tests.fuzz import Findings, Target, changed, fault, targets

# Damaged HDF5 can keep its library busy without end, which nothing in this process could stop.
TEXTS = ("slide as tensor", "cohort.toml", "clinical.csv", "gene sets", "expression", "checkpoint")


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict[str, Target]:
    return {target.name: target for target in targets(tmp_path_factory.mktemp("whole"))}


@pytest.mark.parametrize("name", TEXTS)
def test_damaged_files_end_in_errors_that_name_them(known, name):
    target, source = known[name], random.Random(0)
    for content in target.contents:
        assert fault(target, content) is None
        for _ in range(15):
            damaged = changed(source, content, target.contents)
            assert fault(target, damaged) is None, damaged


def test_whole_files_of_all_writers_are_read(known):
    for target in known.values():
        assert [fault(target, content) for content in target.contents] == [None] * len(target.contents)


def test_a_foreign_error_and_one_without_a_file_are_found(tmp_path):
    def fail(error):
        raise error

    path = tmp_path / "a.txt"
    for error, found in ((KeyError("x"), "KeyError in "), (FileNotFoundError("b"), "no file is named")):
        assert fault(Target("a", path, lambda error=error: fail(error), [b"a"]), b"b").startswith(found)
        assert path.read_bytes() == b"a"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("library", ["h5py", "other"])
def test_only_a_hang_in_hdf5_itself_is_no_finding(tmp_path, monkeypatch, capsys, library):
    place = tmp_path / library / "reading.py"
    place.parent.mkdir()
    place.write_text("import time\n\n\ndef read():\n    time.sleep(60)\n")
    monkeypatch.setattr(fuzz, "_LONGEST", 0.5)
    path = tmp_path / "slide.h5"
    findings = Findings(tmp_path / "findings")
    fuzz.run(
        0.1, 1, findings, [Target("slide", path, runpy.run_path(str(place))["read"], [b"whole"])], tmp_path / "trace"
    )
    findings.close()
    said = capsys.readouterr().out
    assert (findings.endless, len(findings.kinds)) == ((1, 0) if library == "h5py" else (0, 1))
    assert ("HDF5 did not return" in said) == (library == "h5py")
    assert ("slide: does not end within 0.5 s" in said) == (library == "other")
