import pytest
import torch

from disentangled_mil import Classification, DiscreteSurvival
from disentangled_mil.train import fit_temperature
from tests.train.test_a_new_kind import Quantity


def test_logits_that_were_scaled_are_scaled_back(generator):
    truth = torch.randn(20_000, 3, generator=generator)
    target = torch.multinomial(truth.softmax(1), 1, generator=generator)[:, 0]
    task = Classification(["a", "b", "c"])
    assert fit_temperature(task, 3 * truth, target) == pytest.approx(3, rel=0.05)
    assert fit_temperature(task, truth / 2, target) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_temperature_minimizes_the_loss_of_any_kind_of_task(generator, scale):
    hazard = torch.randn(300, 1, generator=generator)  # the same logit in each of four intervals
    draws = torch.rand(300, 4, generator=generator) < hazard.sigmoid()
    interval = torch.where(draws.any(1), draws.int().argmax(1), 3)
    survival = DiscreteSurvival(torch.tensor([1.0, 2.0, 3.0]))
    numbers = torch.randn(300, generator=generator)
    cases = [
        (survival, hazard.expand(300, 4), survival.target(interval + 0.5, event=draws.any(1))),
        (Quantity(0.0, 1.0), numbers[:, None] + torch.randn(300, 1, generator=generator), numbers),
    ]
    for task, logits, target in cases:
        temperature = fit_temperature(task, scale * logits, target)
        best = task.loss(scale * logits / temperature, target)
        for factor in (0.9, 1.1):
            assert task.loss(scale * logits / (factor * temperature), target) > best


def test_logits_without_information_are_damped_to_the_limit(generator):
    target = torch.randint(2, (500,), generator=generator)
    logits = 10 * torch.randn(500, 2, generator=generator)
    assert fit_temperature(Classification(["a", "b"]), logits, target) == pytest.approx(20, rel=0.01)
