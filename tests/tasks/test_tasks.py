import json

import pytest
import torch

from disentangled_mil.ops import hazards
from disentangled_mil.tasks import (
    Classification,
    DiscreteSurvival,
    SurvivalTarget,
    select_target,
    task_from_state,
)


def test_predictions_are_probabilities_hazards_and_risk(generator):
    logits = torch.randn(3, 3, generator=generator).half()
    classification, survival = Classification(["a", "b", "c"]), DiscreteSurvival(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(classification.probabilities(logits), logits.float().softmax(1))
    torch.testing.assert_close(survival.probabilities(logits), logits.float().sigmoid())
    torch.testing.assert_close(survival.risk(logits), hazards.risk(logits.float()))
    assert (classification.link, survival.link) == ("softmax", "hazards")


@pytest.mark.parametrize(
    "task",
    [
        Classification(["low", "high"]),
        Classification.fit(["low", "high", "high", "high", "high", "high", "high"]),
        DiscreteSurvival.fit([1.1, 2.2, 3.3, 4.7], event=[1, 1, 1, 1], bins=3, alpha=0.15),
        DiscreteSurvival(torch.zeros(0)),
    ],
)
def test_state_round_trips_through_json_and_device(task):
    again = task_from_state(json.loads(json.dumps(task.state())))
    assert again.state() == task.state() == task.to("cpu").state()
    assert repr(again) == repr(task)
    assert type(again) is type(task)


def test_targets_follow_the_task_to_its_device():
    classification = Classification(["a", "b"], class_weight=torch.ones(2)).to("meta")
    assert classification.target(["a"]).is_meta
    assert classification.class_weight.is_meta
    target = DiscreteSurvival(torch.tensor([1.0])).to("meta").target([2.0], event=[1])
    assert target.interval.is_meta
    assert target.event.is_meta


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ("x", TypeError, r"state must be a mapping, as task\.state\(\) returns it, got str"),
        ({}, ValueError, r"state\['kind'\] must be one of 'classification', 'survival', got None"),
        ({"kind": ["survival"]}, ValueError, r"state\['kind'\] must be one of .*, got \['survival'\]"),
        (
            {"kind": "classification", "classes": ["a"]},
            ValueError,
            "of kind 'classification': must have the key 'class_weight'",
        ),
        ({"kind": "classification", "classes": 3, "class_weight": None}, ValueError, "of kind 'classification': "),
        (
            {"kind": "classification", "classes": "ab", "class_weight": None},
            ValueError,
            "classes must be a list, got 'ab'",
        ),
        ({"kind": "classification", "classes": ["a"], "class_weight": "b"}, ValueError, "of kind 'classification': "),
        ({"kind": "survival", "edges": None, "alpha": 0.0}, ValueError, "of kind 'survival': "),
        ({"kind": "survival", "edges": [2, 1], "alpha": 0.0}, ValueError, r"edges must increase strictly, got \[2"),
        ({"kind": "survival", "edges": [1.0], "alpha": "0"}, ValueError, "alpha must be a finite number, got '0'"),
    ],
)
def test_a_state_that_describes_no_task_is_refused(state, error, message):
    with pytest.raises(error, match=message):
        task_from_state(state)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        (Classification, {}, r"columns of kind 'classification' must have exactly the names \['column'\], got \[\]"),
        (
            Classification,
            {"column": "x", "bins": 3},
            "options of kind 'classification' must be among column, classes, .*'bins'",
        ),
        (Classification, {"column": "x", "class": "a"}, r"got 'class' \(did you mean 'classes'\?\)"),
        (
            DiscreteSurvival,
            {"time": "t"},
            r"columns of kind 'survival' must have .* \['event', 'time'\], got \['time'\]",
        ),
        (DiscreteSurvival, {"time": "t", "event": "e", "bins": 0}, "bins must be at least 1, got 0"),
        (DiscreteSurvival, {"time": "t", "event": "censor"}, "'censor' may be one of censorship"),
        (DiscreteSurvival, {"time": "t", "event": "e", "censored": "1.0"}, "must be two values .*, got '1' for both"),
    ],
)
def test_a_definition_that_cannot_be_is_refused(kind, keys, message):
    with pytest.raises(ValueError, match=message):
        kind.define(**keys)


def test_strata_and_summary_are_those_of_the_kind():
    assert Classification.strata({"label": ["b", "a", "b"]}) == ["b", "a", "b"]
    assert Classification.summary({"label": ["b", "a", "b"]}) == "a 1, b 2"
    labels = {"time": [1.0, 2.0], "event": [True, False]}
    assert DiscreteSurvival.strata(labels) == ["observed", "censored"]
    assert DiscreteSurvival.summary(labels) == "events 1, censored 1"


def test_rows_of_a_target_are_selected_whatever_its_type():
    target = SurvivalTarget(torch.tensor([0, 1, 2]), torch.tensor([True, False, True]))
    selected = select_target(target, torch.tensor([2, 0]))
    assert isinstance(selected, SurvivalTarget)
    assert selected.interval.tolist() == [2, 0]
    assert select_target(torch.arange(3), slice(1, None), "meta").is_meta
