"""Files appear whole or not at all, and errors name the file that was to be written."""

import errno

import pytest

from disentangled_mil._files import remove_leftovers, replacing


def test_an_error_names_the_file_instead_of_its_temporary(tmp_path):
    with pytest.raises(FileNotFoundError) as error, replacing(tmp_path / "absent" / "a.txt") as temporary:
        temporary.write_text("half")
    assert str(error.value) == f"[Errno 2] No such file or directory: '{tmp_path}/absent/a.txt'"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as error, replacing(tmp_path / "folder") as temporary:
        temporary.write_text("whole")
    assert str(error.value) == f"[Errno 21] Is a directory: '{tmp_path}/folder'"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_that_names_no_file_gets_its_name(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.txt'"), replacing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [OSError("disk full"), FileNotFoundError(2, "No such file", "other.txt")])
def test_other_errors_stay_as_they_are(tmp_path, error):
    message = str(error)
    with pytest.raises(OSError) as caught, replacing(tmp_path / "a.txt"):
        raise error
    assert str(caught.value) == message


def test_leftovers_of_a_file_are_removed_and_nothing_else(tmp_path):
    own = [".a[1].txt.12.tmp", ".a[1].txt.8570.tmp"]
    others = ["a[1].txt", ".a[1].txt.tmp", ".a1.txt.12.tmp", ".a[1].txt.old.12.csv", ".b.txt.12.tmp"]
    for name in (*own, *others):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a[1].txt")
    assert {path.name for path in tmp_path.iterdir()} == set(others)
