from dataclasses import asdict

import pytest

from disentangled_mil.train.options import TrainingOptions
from disentangled_mil.train.settings import parse_setting, training_options, with_values

DEFAULTS = TrainingOptions(epochs=7, dim=16)


def described(folder, text):
    path = folder / "cohort.toml"
    path.write_text(text)
    return path


def test_defaults_yield_to_the_description_and_both_to_the_command_line(tmp_path):
    path = described(tmp_path, "[training]\nepochs = 8\nheads = 2\n")
    options = training_options(path, DEFAULTS, ["heads=1", "epochs=9", "epochs=10"])
    assert options == TrainingOptions(dim=16, epochs=10, heads=1)
    assert training_options(path, DEFAULTS) == TrainingOptions(dim=16, epochs=8, heads=2)
    assert training_options(None, DEFAULTS) == DEFAULTS
    assert training_options(described(tmp_path, ""), DEFAULTS) == DEFAULTS


@pytest.mark.parametrize(("name", "value"), asdict(TrainingOptions(prediction_weight=2.0)).items())
def test_every_option_is_read_from_its_text(name, value):
    text = str(value).lower() if isinstance(value, bool) else str(value)
    assert parse_setting(f"{name}={text}") == (name, value)
    assert with_values(TrainingOptions(), {name: value}, "--set") is not None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epoch=3", r"--set has the unknown key 'epoch' \(did you mean 'epochs'\?\); known are dim, heads,"),
        ("zzz=3", "--set has the unknown key 'zzz'; known are dim, heads,"),
        ("epochs=3.5", "--set epochs must be a whole number, got '3.5'"),
        ("dropout=a", "--set dropout must be a number, got 'a'"),
        ("dropout=2", r"--set dropout must lie in \[0, 1\], got 2.0"),
        ("cgc=yes", "--set cgc must be true or false, got 'yes'"),
        ("gate=averag", r"--set gate must be one of .*, got 'averag' \(did you mean 'average'\?\)"),
        ("gate=mean", "--set gate must be one of 'max_confidence', .*, got 'mean'"),
        ("prediction_weight=x", "--set prediction_weight must be a number, got 'x'"),
        ("epochs", "--set must be NAME=VALUE, got 'epochs'"),
        ("learning_rate=inf", "--set learning_rate must be a number, got 'inf'"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_allowed(setting, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        training_options(None, DEFAULTS, [setting])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("epochs = '3'", "epochs must be a whole number, got '3'"),
        ("epochs = true", "epochs must be a whole number, got True"),
        ("cgc = 1", "cgc must be true or false, got 1"),
        ("temprature = 3", r"has the unknown key 'temprature' \(did you mean 'temperature'\?\); known"),
    ],
)
def test_an_error_of_the_description_names_file_and_section(tmp_path, section, message):
    path = described(tmp_path, f"[training]\n{section}\n")
    with pytest.raises(ValueError, match=rf"^{path}: \[training\] {message}"):
        training_options(path, DEFAULTS)
    with pytest.raises(ValueError, match=r"\[training\] must be a table, got 3"):
        training_options(described(tmp_path, "training = 3"), DEFAULTS)
