"""Files appear whole or not at all, and errors name the file that was to be written."""

import errno
import os
import socket

import pytest

from disentangled_mil._files import check_outputs, remove_leftovers, replacing


def test_an_error_names_the_file_instead_of_its_temporary(tmp_path):
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


def test_content_and_name_are_on_the_disk_when_a_file_is_replaced(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def synchronized(descriptor):
        steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synchronized)
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("replace"), replace(*paths)))
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert steps == [temporary.name, "replace", tmp_path.name]


def test_computers_differ_in_the_temporary_name_and_a_long_name_leaves_room_for_it(tmp_path, monkeypatch):
    path, names = tmp_path / f"{'slide' * 44}.png", set()
    for host in ("a" * 63, "a" * 62 + "b"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        with replacing(path) as temporary:
            temporary.write_text("whole")
            names.add(temporary.name)
    assert len(names) == 2


@pytest.mark.parametrize("links", [True, False])
def test_an_exclusive_file_replaces_none_and_its_killed_writer_leaves_what_is_cleared(tmp_path, monkeypatch, links):
    def refuse(*paths):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "run.json"
    with replacing(path, exclusive=True) as temporary:
        temporary.write_text("first")
        assert temporary.parent == tmp_path  # and no folder, which nothing would clear
    with pytest.raises(FileExistsError, match=r"run\.json"), replacing(path, exclusive=True) as temporary:
        temporary.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
    temporary.touch()
    remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_that_synchronizes_no_folders_is_allowed(tmp_path, monkeypatch):
    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_disk_that_fails_when_it_is_synchronized_leaves_the_old_file(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"Input/output error: '.*/a\.txt'$"), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_an_output_inside_of_an_input_or_of_its_links_is_refused(tmp_path):
    slide = tmp_path / "slide.zarr"
    slide.mkdir()
    (tmp_path / "link").symlink_to(slide)
    for output in (slide / "new.csv", tmp_path / "link" / "new.csv", tmp_path / "x" / ".." / "slide.zarr" / "new.csv"):
        with pytest.raises(ValueError, match=r"new\.csv: must be another file than .*slide\.zarr, which is read"):
            check_outputs([output], [slide, tmp_path / "absent"], overwrite=True)
    check_outputs([tmp_path / "new.csv"], [slide], overwrite=False)
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    with pytest.raises(FileExistsError, match="dangling: is there already"):
        check_outputs([tmp_path / "dangling"], [], overwrite=False)


def test_a_missing_folder_is_named_before_anything_is_written(tmp_path):
    message = r"note.txt: must be a file in a folder that is there; make .*absent first$"
    with pytest.raises(FileNotFoundError, match=message), replacing(tmp_path / "absent" / "note.txt"):
        raise AssertionError("the block must not begin")
