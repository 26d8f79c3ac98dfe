import errno
import json
import os
import resource
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from disentangled_mil import Classification, DiscreteSurvival, FileError, GeneNetwork, Student
from disentangled_mil._files import json_digest
from disentangled_mil.data.expression import ExpressionOptions, ExpressionPipeline
from disentangled_mil.data.slide_reading import SlideReading, TileFacts
from disentangled_mil.train.checkpoint import load_model, load_progress, save_model, save_progress, write_json
from tests.support.checkpoints import change_description

ARGUMENTS = {"genes": {"tumor": 3, "tme": 2}, "outputs": 2, "dim": 4}


@pytest.fixture
def saved(tmp_path):
    """A checkpoint, without suffix."""
    save_model(tmp_path / "run" / "genes", GeneNetwork(**ARGUMENTS), notes={"label": "grading"})
    return tmp_path / "run" / "genes"


def test_a_saved_model_predicts_the_same_and_brings_its_description(tmp_path):
    model = GeneNetwork(**ARGUMENTS)
    save_model(tmp_path / "genes", model, notes={"label": "grading"})
    genes = {"tumor": torch.randn(5, 3), "tme": torch.randn(5, 2)}
    for path in ("genes", "genes.json", "genes.safetensors"):
        saved = load_model(str(tmp_path / path))
        loaded = saved.model
        assert isinstance(loaded, GeneNetwork)
        assert not loaded.training
        assert torch.equal(loaded(genes).logits, model.eval()(genes).logits)
        assert saved.notes == {"label": "grading"}
        assert loaded.arguments == model.arguments
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genes.json", "genes.safetensors"]


def test_names_with_dots_are_kept_apart(tmp_path):
    for name in ("v1.0", "v1.1"):
        save_model(tmp_path / name, GeneNetwork(**ARGUMENTS), notes={"label": name})
    assert load_model(tmp_path / "v1.0").notes["label"] == "v1.0"
    assert load_model(tmp_path / "v1.1.json").notes["label"] == "v1.1"


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_file_is_named(saved, suffix):
    saved.with_suffix(suffix).unlink()
    with pytest.raises(FileNotFoundError, match=rf"genes\{suffix}: no such file"):
        load_model(saved)


def test_a_folder_is_told_from_a_checkpoint(saved):
    with pytest.raises(FileNotFoundError, match=r": no such file; .* is a folder, name a checkpoint in it$"):
        load_model(saved.parent)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_a_description_that_is_no_json_is_refused(saved, content):
    saved.with_suffix(".json").write_bytes(content)
    with pytest.raises(ValueError, match=r"genes\.json: must be JSON"):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"format": 2}, "format", "format must be one of 1, got 2"),
        ({"format": "1"}, "format", "format must be a whole number, got '1'"),
        ({"model": "forest"}, "model", "model must be one of 'teacher', 'student', 'genes', got 'forest'"),
        ({"model": ["genes"]}, "model", r"model must be text, got \['genes'\]"),
        ({"arguments": None}, "arguments", "arguments must be an object, got None"),
        ({"notes": []}, "notes", r"notes must be an object, got \[\]"),
        ({"taks": {}}, "taks", r"has the unknown key 'taks' \(did you mean 'task'\?\); known are format, model"),
        ({"weights_sha256": 1}, "weights_sha256", "weights_sha256 must be text, got 1"),
        ({"task": []}, "task", r"task must be an object, got \[\]"),
        (
            {"task": {"kind": "x"}},
            "task.kind",
            r"task state\['kind'\] must be one of 'classification', 'survival', got",
        ),
        ({"task": {"kind": "classification"}}, "task.classes", "task state must .*: must have the key 'classes'"),
        (
            {"task": {"kind": "classification", "classes": ["a", "b"], "class_weight": "1, 2"}},
            "task.class_weight",
            "task state must .*: class_weight must be a list or null, got '1, 2'",
        ),
        (
            {"task": {"kind": "classification", "classes": ["a", "b"], "class_weight": [1, "2"]}},
            "task.class_weight[1]",
            r"task state must .*: class_weight\[1\] must be a finite number, got '2'",
        ),
        (
            {"task": {"kind": "survival", "edges": [2, 1], "alpha": 0}},
            "task",
            "task state must describe a task of kind 'survival': edges must increase strictly",
        ),
        ({"reading": {}}, "reading.unit", "reading must have the key 'unit', got none"),
        ({"expression": {}}, "expression.format", "expression must have the key 'format', got none"),
    ],
)
def test_a_value_of_the_description_that_is_wrong_is_named(saved, change, key, message):
    change_description(saved, lambda description: description.update(change))
    with pytest.raises(FileError, match=rf"genes\.json: {message}") as error:
        load_model(saved)
    assert (error.value.file, error.value.key) == (saved.with_suffix(".json"), key)


def test_a_description_that_is_no_object_or_lacks_arguments_is_refused(saved):
    saved.with_suffix(".json").write_text("[1]")
    with pytest.raises(ValueError, match=r"genes\.json: must be JSON that describes a model, got \[1\]"):
        load_model(saved)
    saved.with_suffix(".json").write_text('{"format": 1, "model": "genes", "notes": {}, "sha256": ""}')
    with pytest.raises(ValueError, match=r"genes\.json: must have the key 'arguments', got 'format', 'model'"):
        load_model(saved)


def test_a_description_without_its_digest_is_refused_with_a_way_out(saved):
    change_description(saved, lambda description: description.pop("sha256"))
    with pytest.raises(FileError, match=r"genes\.json: must have the key 'sha256' .*; save the model again"):
        load_model(saved)


def test_a_description_that_was_changed_is_refused(saved):
    path = saved.with_suffix(".json")
    path.write_text(path.read_text().replace("grading", "staging"))
    with pytest.raises(FileError, match=r"genes\.json: must match its SHA-256") as error:
        load_model(saved)
    assert error.value.key == "sha256"


def test_a_description_beside_the_weights_of_another_model_is_refused(saved):
    save_model(saved.parent / "other", GeneNetwork(**ARGUMENTS))
    shutil.copy(saved.parent / "other.safetensors", saved.with_suffix(".safetensors"))
    with pytest.raises(FileError, match=r"genes\.safetensors: does not hold .* belongs to another model") as error:
        load_model(saved)
    assert error.value.file == saved.with_suffix(".safetensors")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"layers": 3}, "arguments"),
        ({"dim": 0}, "arguments.dim"),
        ({"dim": "4"}, "arguments.dim"),
        ({"dim": 2**70}, "arguments.dim"),
        ({"genes": 5}, "arguments.genes"),
        ({"genes": []}, "arguments.genes"),
    ],
)
def test_arguments_that_the_model_does_not_take_are_refused(saved, change, key):
    change_description(saved, lambda description: description["arguments"].update(change))
    with pytest.raises(FileError, match=r"genes\.json: arguments must be those of a model 'genes'") as error:
        load_model(saved)
    assert error.value.key == key


@pytest.mark.parametrize("size", [10**30, 2**62])
@pytest.mark.parametrize("name", ["features", "outputs", "dim", "heads", "dim_head"])
def test_a_size_that_no_tensor_has_is_named_in_one_line(tmp_path, name, size):
    save_model(tmp_path / "a", Student(6, 2, dim=4, heads=2, groups=2, dim_head=2))
    change_description(tmp_path / "a", lambda description: description["arguments"].update({name: size}))
    with pytest.raises(FileError) as error:
        load_model(tmp_path / "a")
    assert error.value.key == f"arguments.{name}"
    assert len(str(error.value)) < 400 + len(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["student", "genes"])
@pytest.mark.parametrize(("name", "size"), [("dim", 1 << 20), ("outputs", 1 << 40), ("features", 1 << 40)])
def test_sizes_that_the_weights_do_not_have_are_never_allocated(tmp_path, kind, name, size):
    model = GeneNetwork(**ARGUMENTS) if kind == "genes" else Student(6, 2, dim=4, heads=2, groups=2, dim_head=2)
    save_model(tmp_path / "a", model)
    changed = {"genes": {"tumor": size, "tme": 2}} if kind == "genes" and name == "features" else {name: size}
    change_description(tmp_path / "a", lambda description: description["arguments"].update(changed))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileError, match=r"a\.(safetensors: does not hold|json: arguments must be)"):
        load_model(tmp_path / "a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_truncated_weights_are_refused(saved):
    path = saved.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"genes\.safetensors: does not hold the weights that genes\.json describes"):
        load_model(saved)


def test_weights_with_other_names_are_refused_in_one_line(saved):
    path = saved.with_suffix(".safetensors")
    weights = load_file(path)
    weights["other"] = weights.popitem()[1]
    save_file(weights, path)
    change_description(saved, lambda description: None)
    with pytest.raises(FileError, match=r"genes\.safetensors: does not hold .*[Mm]issing key") as error:
        load_model(saved)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_neither_written_nor_read(saved):
    broken = GeneNetwork(**ARGUMENTS)
    name, first = next(iter(broken.state_dict().items()))
    first.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=rf"weights must be finite, got NaN or infinity in {name}$"):
        save_model(saved, broken)
    save_file(broken.state_dict(), saved.with_suffix(".safetensors"))
    change_description(saved, lambda description: None)
    with pytest.raises(FileError, match=rf"genes\.safetensors: weights must be finite, got .* in {name}$"):
        load_model(saved)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"width": -1}, r"tiles\['5x'\]\.width must be at least 1, got -1"),
        ({"magnification": 0}, r"tiles\['5x'\]\.magnification must lie in \(0, inf\], got 0"),
        ({"mpp": -1}, r"tiles\['5x'\]\.mpp must lie in \(0, inf\], got -1"),
        ({"encoder": ""}, r"tiles\['5x'\]\.encoder must be the name of an encoder, got ''"),
    ],
)
def test_facts_that_no_tile_has_are_refused(whole, tmp_path, facts, message):
    for name in ("a.json", "a.safetensors"):
        shutil.copy(whole / name, tmp_path)
    change_description(tmp_path / "a", lambda description: description["reading"]["tiles"]["5x"].update(facts))
    with pytest.raises(FileError, match=rf"a\.json: reading\.?.* {message}") as error:
        load_model(tmp_path / "a")
    assert error.value.key.startswith("reading")


def test_weights_that_are_no_safetensors_are_refused(saved):
    saved.with_suffix(".safetensors").write_bytes(b"pickle")
    change_description(saved, lambda description: None)
    with pytest.raises(FileError, match=r"genes\.safetensors: does not hold the weights"):
        load_model(saved)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint with all parts, a state of training, and what both hold."""
    folder = tmp_path_factory.mktemp("whole")
    student = Student(3, 2, magnifications=["5x"], dim=4, heads=1, groups=1, dim_head=2)
    task = Classification(["low", "high"], class_weight=torch.tensor([0.5, 1.5]))
    table = pd.DataFrame({"EGFR": [0.0, 9.0, 99.0], "CD2": [3.0, 1.0, 2.0]})
    pipeline = ExpressionPipeline.fit(table, {"tumor": ["EGFR"], "tme": ["CD2"]}, ExpressionOptions(fraction=1.0))
    reading = SlideReading(max_tokens={"5x": 9}, tiles={"5x": TileFacts("uni", 3, mpp=2.0)})
    save_model(folder / "a", student, task=task, reading=reading, expression=pipeline, notes={"label": "grade"})
    save_progress(folder / "a.progress.pt", {"model": student.state_dict(), "history": [{"epoch": 1, "loss": 0.5}]})
    return folder


@given(
    name=st.sampled_from(["a.json", "a.safetensors", "a.progress.pt"]),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_is_refused_or_harmless(whole, name, place, bit):
    content = bytearray((whole / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    with TemporaryDirectory() as folder:
        for path in whole.iterdir():
            shutil.copy(path, folder)
        (Path(folder) / name).write_bytes(content)
        try:
            load_progress(Path(folder, name), "cpu") if name.endswith(".pt") else load_model(Path(folder, "a"))
        except FileError:
            return
    assert name == "a.json"
    assert json.loads(content) == json.loads((whole / name).read_text())  # other white space


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**20, 2**40, 2**63, -1, 0, 10**400])
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places_of(value, place=()):
    """All places in JSON values."""
    yield place
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places_of(inner, (*place, key))


@given(st.data())
def test_a_mutated_description_never_ends_in_a_foreign_error(whole, data):
    description = json.loads((whole / "a.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from([place for place in places_of(description) if place]))
        parent = description
        for key in path:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[last] = data.draw(VALUES)
        else:
            parent.pop(last)
    expression = description.get("expression")
    if isinstance(expression, dict) and data.draw(st.booleans()):
        expression["sha256"] = json_digest({key: value for key, value in expression.items() if key != "sha256"})
    with TemporaryDirectory() as folder:
        shutil.copy(whole / "a.safetensors", folder)
        Path(folder, "a.json").write_text(json.dumps(description))
        keep = description.get("weights_sha256")
        change_description(Path(folder, "a"), lambda found: found.update(weights_sha256=keep) if keep else None)
        with suppress(FileError):
            load_model(Path(folder, "a"))


def test_a_failed_write_leaves_what_was_there(saved):
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(saved.with_suffix(".json"), {"what": object()})
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before


@contextmanager
def full_disk(size):
    """A limit to the size of files in bytes, as if the disk were full; nothing else may be written meanwhile."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_full_disk_is_an_error_that_names_the_file_of_a_model(saved, suffix):
    path, size = saved.with_suffix(suffix), saved.with_suffix(".safetensors").stat().st_size
    before = path.read_bytes()
    limit = 100 if suffix == ".safetensors" else size
    with pytest.raises(OSError, match="File too large") as error, full_disk(limit):
        save_model(saved, GeneNetwork(**ARGUMENTS), notes={"extra": "long" * size})
    assert str(error.value).endswith(f": {str(path)!r}")
    assert path.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 2


class Killed(BaseException):
    """The end of a process, which nothing catches."""


@pytest.mark.parametrize("before", ["a model", "nothing"])
@pytest.mark.parametrize("end", ["a kill", "an error"])
@pytest.mark.parametrize("step", range(3))
def test_a_save_that_ends_between_its_files_leaves_the_old_model_or_the_new_one(
    tmp_path, monkeypatch, before, end, step
):
    old, new = GeneNetwork(**ARGUMENTS), GeneNetwork(**ARGUMENTS)
    if before == "a model":
        save_model(tmp_path / "genes", old, notes={"label": "old"})
    real, left = os.replace, [step]

    def replace(*paths):
        if left[0] == 0:
            if end == "an error":
                left[0] -= 1  # The disk has space again for what tidies up.
                raise OSError(errno.ENOSPC, "No space left on device")
            raise Killed
        left[0] -= 1
        real(*paths)

    with monkeypatch.context() as disk:
        disk.setattr("os.replace", replace)
        if end == "a kill":
            disk.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # What is dead tidies nothing up.
        with pytest.raises((Killed, OSError)):
            save_model(tmp_path / "genes", new, notes={"label": "new"})
    if before == "a model" or (tmp_path / "genes.json").exists():
        found = load_model(tmp_path / "genes")
        model = {"old": old, "new": new}[found.notes["label"]]
        assert all(torch.equal(found.model.state_dict()[name], value) for name, value in model.state_dict().items())
    save_model(tmp_path / "genes", old, notes={"label": "last"})
    assert load_model(tmp_path / "genes").notes["label"] == "last"
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".tmp"} == {"genes.json", "genes.safetensors"}


def test_a_full_disk_is_an_error_that_names_the_state(tmp_path):
    with pytest.raises(OSError, match=r"File too large: '.*/a\.progress\.pt'$"), full_disk(1000):
        save_progress(tmp_path / "a.progress.pt", {"weights": torch.zeros(9999)})
    assert list(tmp_path.iterdir()) == []


def test_all_files_may_be_read_by_those_who_may_read_any_file(saved):
    save_progress(saved.parent / "a.progress.pt", {})
    (saved.parent / "plain").touch()
    assert len({path.stat().st_mode for path in saved.parent.iterdir()}) == 1


def test_progress_comes_back_as_it_was(tmp_path):
    state = {"rng": torch.get_rng_state(), "history": [{"epoch": 1, "loss": 0.5}], "best": {"weights": {}}}
    save_progress(tmp_path / "new" / "a.progress.pt", state)
    loaded = load_progress(tmp_path / "new" / "a.progress.pt", "cpu")
    assert torch.equal(loaded.pop("rng"), state["rng"])
    assert loaded == {"history": [{"epoch": 1, "loss": 0.5}], "best": {"weights": {}}}


@pytest.mark.parametrize("keep", [0, 10, -10])
def test_truncated_progress_is_refused_with_a_way_out(tmp_path, keep):
    path = tmp_path / "a.progress.pt"
    save_progress(path, {"weights": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"a\.progress\.pt: cannot be resumed from; delete it to train this stage anew$"
    ):
        load_progress(path, "cpu")


def test_what_a_student_needs_for_prediction_comes_back(tmp_path):
    """Quick start: a student of one's own, with the facts that prediction compares."""
    student = Student(6, 2, magnifications=["5x"], subspaces=["a", "b"], gate="learned", heads=2, groups=2, dim_head=8)
    reading = SlideReading(
        unit="patient", sets=("5x",), max_tokens={"5x": 9}, tiles={"5x": TileFacts("uni", 6, mpp=2.0)}
    )
    save_model(tmp_path / "mine", student, task=Classification(["x", "y"]), reading=reading)
    saved = load_model(tmp_path / "mine")
    assert saved.reading == reading
    assert saved.task.classes == ("x", "y")
    assert saved.model.gate.rule == "learned"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": Classification(["a", "b", "c"])}, "task must have the outputs of the model, 2, got 3"),
        ({"task": DiscreteSurvival(torch.tensor([1.0]))}, "the link of the model, 'softmax', got 'hazards'"),
        ({"reading": SlideReading(sets=("40x",))}, "sets must be of the magnifications 10x, 20x, got '40x'"),
    ],
)
def test_a_task_or_reading_that_does_not_fit_the_model_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        save_model(tmp_path / "mine", Student(6, 2, heads=2, groups=2, dim_head=8), **options)
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_class_is_refused(tmp_path):
    with pytest.raises(TypeError, match="model must be a Student, Teacher or GeneNetwork, got Linear"):
        save_model(tmp_path / "mine", torch.nn.Linear(2, 2))
