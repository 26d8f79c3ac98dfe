import json

import pytest
import torch

from disentangled_mil.ops import hazards
from disentangled_mil.tasks import Classification, DiscreteSurvival, task_from_state


def test_predictions_are_probabilities_hazards_and_risk(generator):
    logits = torch.randn(3, 3, generator=generator).half()
    classification, survival = Classification(["a", "b", "c"]), DiscreteSurvival(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(classification.probabilities(logits), logits.float().softmax(1))
    torch.testing.assert_close(survival.probabilities(logits), logits.float().sigmoid())
    torch.testing.assert_close(survival.risk(logits), hazards.risk(logits.float()))
    assert (classification.kind, survival.kind) == ("softmax", "hazards")


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


def test_an_unknown_state_is_refused():
    with pytest.raises(ValueError, match=r"state must be of 'classification' or 'survival', got 'regression'"):
        task_from_state({"task": "regression"})
