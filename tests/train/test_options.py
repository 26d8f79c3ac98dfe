import json
from dataclasses import FrozenInstanceError, asdict, replace

import pytest

from disentangled_mil.train.options import TrainingOptions


@pytest.mark.parametrize("name", ["dim", "heads", "dim_head", "gene_tokens", "epochs", "batch_size", "teacher_repeats"])
def test_counts_are_positive_integers(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0$"):
        TrainingOptions(**{name: 0})
    with pytest.raises(TypeError, match=f"^{name} must be an integer, got float$"):
        TrainingOptions(**{name: 2.0})


@pytest.mark.parametrize("name", ["dropout", "gene_dropout", "lr_warmup", "task_warmup"])
def test_shares_lie_between_0_and_1(name):
    with pytest.raises(ValueError, match=rf"^{name} must lie in \[0, 1\], got 1.5$"):
        TrainingOptions(**{name: 1.5})


@pytest.mark.parametrize("name", ["learning_rate", "temperature"])
def test_learning_rate_and_temperature_are_positive(name):
    with pytest.raises(ValueError, match=rf"^{name} must lie in \(0, inf\], got 0$"):
        TrainingOptions(**{name: 0})


@pytest.mark.parametrize(
    "name", ["weight_decay", "consistency_weight", "prediction_weight", "representation_weight", "share_weight"]
)
def test_weights_are_not_negative(name):
    with pytest.raises(ValueError, match=rf"^{name} must lie in \[0, inf\], got -1$"):
        TrainingOptions(**{name: -1})


@pytest.mark.parametrize(
    "name",
    ["learning_rate", "temperature", "weight_decay", "consistency_weight", "prediction_weight"],
)
def test_no_option_is_infinite(name):
    with pytest.raises(ValueError, match=rf"^{name} must be finite, got inf$"):
        TrainingOptions(**{name: float("inf")})


def test_validation_leaves_patients_to_learn_from():
    with pytest.raises(ValueError, match=r"^validation must lie in \[0, 0.9\], got 1$"):
        TrainingOptions(validation=1)


def test_seed_is_a_natural_number():
    with pytest.raises(ValueError, match=r"^seed must be at least 0, got -1$"):
        TrainingOptions(seed=-1)
    with pytest.raises(ValueError, match=r"^seed must lie in \[0, 4294967295\], got 5000000000$"):
        TrainingOptions(seed=5_000_000_000)


def test_unknown_rule_of_the_gate_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match=r"^gate must be one of 'max_confidence', .*, got 'best'$"):
        TrainingOptions(gate="best")


def test_unknown_ways_of_distilling_are_refused():
    with pytest.raises(ValueError, match=r"^distill must be one of 'auto', 'always', 'never', got 'yes'$"):
        TrainingOptions(distill="yes")
    with pytest.raises(ValueError, match=r"^distillation_targets must be one of 'out_of_fold', 'in_sample', got 'x'$"):
        TrainingOptions(distillation_targets="x")
    with pytest.raises(ValueError, match=r"^teacher_folds must be at least 2, got 1$"):
        TrainingOptions(teacher_folds=1)


@pytest.mark.parametrize("name", ["cgc", "calibrate"])
def test_flags_are_true_or_false(name):
    with pytest.raises(TypeError, match=f"^{name} must be True or False, got 'yes'$"):
        TrainingOptions(**{name: "yes"})


def test_options_cannot_change_and_survive_json():
    options = TrainingOptions(dim=7, cgc=False)
    with pytest.raises(FrozenInstanceError):
        options.dim = 8
    assert TrainingOptions(**json.loads(json.dumps(asdict(options)))) == options
    assert replace(options, dim=8) != options
