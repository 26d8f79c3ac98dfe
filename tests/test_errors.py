"""Errors of readers know the file and the key, whoever raised them."""

import pickle
from pathlib import Path

import pytest

from disentangled_mil import FileError
from disentangled_mil._errors import reading, reads_file
from disentangled_mil.data.slides import SlideError


def test_blocks_add_what_inner_ones_do_not_know():
    with pytest.raises(FileError) as error, reading("a.json"), reading(key="task"), reading():
        raise FileError("classes[1] must be text, got 3", key="classes[1]")
    assert str(error.value) == "a.json: task classes[1] must be text, got 3"
    assert (error.value.file, error.value.key) == (Path("a.json"), "task.classes[1]")


def test_an_error_that_knows_its_file_stays_as_it_is():
    known = SlideError("slide.h5: must be a file", "slide.h5")
    with pytest.raises(SlideError) as error, reading("cohort.toml"), reading(key="slides"):
        raise known
    assert error.value is known


def test_a_file_that_the_message_names_is_not_named_twice():
    with pytest.raises(SlideError, match=r"^slide\.h5: row 3$") as error, reading("slide.h5", kind=SlideError):
        raise ValueError("slide.h5: row 3")
    assert error.value.file == Path("slide.h5")


@pytest.mark.parametrize("error", [TypeError("x"), OSError("x"), KeyError("x")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, reading("a.json"):
        raise error
    assert caught.value is error


def test_a_reader_knows_its_path_by_place_and_by_name():
    @reads_file
    def read(table, row=0):
        raise ValueError(f"row {row} must not be there")

    for call in (lambda: read("a.csv", row=1), lambda: read(row=1, table="a.csv")):
        with pytest.raises(FileError, match=r"^a\.csv: row 1 must not be there$") as error:
            call()
        assert error.value.file == Path("a.csv")


def test_an_error_crosses_processes():
    error = pickle.loads(pickle.dumps(SlideError("slide.h5: no", "slide.h5", "coords")))
    assert (type(error), str(error), error.file, error.key) == (
        SlideError,
        "slide.h5: no",
        Path("slide.h5"),
        "coords",
    )
