"""Scaled gradients and gradients that overflowed."""

import pytest
import torch
from torch import nn

from disentangled_mil.optim import CGCOptimizer
from tests.support.cgc import CONFIDENT_TUMOR, Head, batch, conflict


def test_grad_scaler_forwards_confidences_and_scale_changes_nothing() -> None:
    heads = Head(), Head()
    plain, scaled = (CGCOptimizer(torch.optim.SGD(h.parameters(), lr=0.1), h.subspace_parameters()) for h in heads)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    features, label = batch(0, sign=-0.5)
    for head, optimizer in zip(heads, (plain, scaled), strict=True):
        loss = nn.functional.cross_entropy(head(features), label)
        if optimizer is scaled:
            scaler.scale(loss).backward()
            scaler.step(optimizer, confidence=CONFIDENT_TUMOR)
            scaler.update()
        else:
            loss.backward()
            optimizer.step(confidence=CONFIDENT_TUMOR)
    for ours, theirs in zip(*(head.parameters() for head in heads), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert scaled.report.projected["tme"] == 3


def test_coordinating_scaled_gradients_is_scaling_coordinated_ones() -> None:
    scale, gradients = 2.0**16, []
    for factor in (1.0, scale):
        optimizer, tumor, tme = conflict()
        for each in (tumor, tme):
            each.grad.mul_(factor)
        optimizer.step(confidence=CONFIDENT_TUMOR)
        gradients.append(torch.stack([tumor.grad, tme.grad]))
    assert torch.equal(gradients[0] * scale, gradients[1])


def test_grad_scaler_skips_a_step_that_overflowed() -> None:
    optimizer, tumor, tme = conflict()
    scaler = torch.amp.GradScaler(device="cpu")
    scaler.scale(torch.tensor(1.0))
    tme.grad[0, 0] = torch.inf
    scaler.step(optimizer, confidence=CONFIDENT_TUMOR)
    assert not tumor.any()
    with pytest.raises(ValueError, match="confidence must be given"):  # the skipped one left nothing behind
        optimizer.step()


def test_overflow_without_a_scaler_passes_through() -> None:
    optimizer, _, tme = conflict()
    tme.grad[1, 0] = torch.inf
    expected = tme.grad.clone()
    optimizer.step(confidence=CONFIDENT_TUMOR)
    assert torch.equal(tme.grad, expected)


def test_gradients_that_were_unscaled_by_the_wrapped_optimizer_are_not_unscaled_again() -> None:
    optimizer, tumor, _ = conflict()
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    scaler.scale(torch.tensor(1.0))
    scaler.unscale_(optimizer.wrapped)
    before = tumor.detach().clone()
    with pytest.raises(RuntimeError, match="must get the same optimizer, got the wrapped SGD and this CGCOptimizer"):
        scaler.step(optimizer, confidence=CONFIDENT_TUMOR)
    assert torch.equal(tumor, before)


def test_unscaling_by_name_and_clipping_leave_the_step_as_it_was() -> None:
    optimizer, tumor, tme = conflict()
    want = [tumor.grad.clone(), tme.grad.clone()]
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    scaler.scale(torch.tensor(1.0))
    for each in (tumor, tme):
        each.grad.mul_(2.0**10)
    scaler.unscale_(optimizer)
    assert torch.equal(tumor.grad, want[0])
    scaler.step(optimizer, confidence=CONFIDENT_TUMOR)
    scaler.update()
