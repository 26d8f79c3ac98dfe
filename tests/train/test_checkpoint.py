import json
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from disentangled_mil import Classification, DiscreteSurvival, GeneNetwork, Student
from disentangled_mil.data.slide_reading import SlideReading, TileFacts
from disentangled_mil.train.checkpoint import load_model, load_progress, save_model, save_progress, write_json

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
    ("change", "got"),
    [({"format": 2}, "arguments"), ({"model": "forest"}, "arguments"), ({"model": ["genes"]}, "arguments")],
)
def test_a_description_of_something_else_is_refused(saved, change, got):
    path = saved.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"genes\.json: must describe a model .* in format 1 .* got .*{got}"):
        load_model(saved)


def test_a_description_that_is_no_object_or_lacks_arguments_is_refused(saved):
    saved.with_suffix(".json").write_text("[1]")
    with pytest.raises(ValueError, match="got list"):
        load_model(saved)
    saved.with_suffix(".json").write_text('{"format": 1, "model": "genes", "notes": {}}')
    with pytest.raises(ValueError, match="must describe a model"):
        load_model(saved)


@pytest.mark.parametrize("change", [{"layers": 3}, {"dim": 0}, {"genes": 5}])
def test_arguments_that_the_model_does_not_take_are_refused(saved, change):
    path = saved.with_suffix(".json")
    description = json.loads(path.read_text())
    description["arguments"] |= change
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"genes\.json: arguments must be those of a model 'genes'"):
        load_model(saved)


def test_truncated_weights_are_refused(saved):
    path = saved.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"genes\.safetensors: does not hold the weights that genes\.json describes"):
        load_model(saved)


def test_weights_of_another_model_are_refused_in_one_line(saved):
    path = saved.with_suffix(".safetensors")
    weights = load_file(path)
    weights["other"] = weights.popitem()[1]
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"genes\.safetensors: does not hold .*[Mm]issing key") as error:
        load_model(saved)
    assert "\n" not in str(error.value)


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
