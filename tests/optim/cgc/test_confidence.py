"""Confidences: accumulated, rejected, and those of a closure."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from disentangled_mil.optim import CGCOptimizer
from tests.support.cgc import CONFIDENT_TUMOR, Head, backward, batch, conflict


def test_accumulated_confidences_are_summed_and_cleared_by_the_step() -> None:
    optimizer, _, tme = conflict(lr=0.0)
    optimizer.accumulate({"tumor": 0.2, "tme": torch.tensor(0.6, dtype=torch.float64)})
    optimizer.accumulate({"tumor": torch.tensor(0.9, requires_grad=True), "tme": 0.1})
    optimizer.step(confidence={"tumor": 0.25, "tme": 0.25})
    confidence = optimizer.report.confidence
    torch.testing.assert_close(confidence, {"tumor": torch.tensor(1.35), "tme": torch.tensor(0.95)})
    assert not confidence["tumor"].requires_grad
    torch.testing.assert_close(tme.grad[1], torch.tensor([-1.5, 1.5]))
    with pytest.raises(ValueError, match="confidence must be given"):
        optimizer.step()


def test_micro_batches_equal_one_batch() -> None:
    confidences = [{"tumor": 0.3, "tme": 0.2}, {"tumor": 0.1, "tme": 0.6}]
    heads = Head(), Head()
    together, apart = (CGCOptimizer(torch.optim.SGD(h.parameters(), lr=1.0), h.subspace_parameters()) for h in heads)
    for seed, confidence in enumerate(confidences):
        for head in heads:
            backward(head, seed, sign=-1.0)
        apart.accumulate(confidence)
    together.step(confidence={"tumor": 0.4, "tme": 0.8})
    apart.step()
    for ours, theirs in zip(*(head.parameters() for head in heads), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_zero_grad_keeps_accumulated_confidences() -> None:
    optimizer, _, _ = conflict()
    optimizer.accumulate(CONFIDENT_TUMOR)  # some loops reset gradients between forward and backward
    optimizer.zero_grad()
    optimizer.step()


def test_rejected_confidences_leave_no_trace() -> None:
    optimizer, _, _ = conflict()
    with pytest.raises(ValueError, match=r"confidence\['tme'\] must have shape \[\], got \[2\]"):
        optimizer.accumulate({"tumor": 5.0, "tme": torch.ones(2)})
    with pytest.raises(ValueError, match=r"confidence must have exactly the names \['tme', 'tumor'\], got"):
        optimizer.step(confidence={"tumor": 5.0, "immune": 1.0})
    optimizer.step(confidence=CONFIDENT_TUMOR)
    torch.testing.assert_close(optimizer.report.confidence["tumor"], torch.tensor(0.9))


@pytest.mark.parametrize(
    ("confidence", "message"),
    [
        ({"tumor": 0.9, "tme": None}, r"confidence\['tme'\] must be a number or a scalar tensor, got NoneType"),
        ({"tumor": "0.9", "tme": 0.6}, r"confidence\['tumor'\] must be a number or a scalar tensor, got str"),
        ([0.9, 0.6], r"confidence must be a mapping from names, got list"),
        (torch.ones(2), r"confidence must be a mapping from names, got Tensor"),
    ],
)
def test_confidences_that_are_no_numbers_are_named(confidence: object, message: str) -> None:
    optimizer, _, _ = conflict()
    with pytest.raises(TypeError, match=message):
        optimizer.accumulate(confidence)
    with pytest.raises(TypeError, match=message):
        optimizer.step(confidence=confidence)


@pytest.mark.parametrize("number", [float, int, np.float32, np.float64, np.int64, torch.tensor])
def test_confidences_are_numbers_of_any_type(number: Callable[[int], object]) -> None:
    optimizer, _, _ = conflict()
    optimizer.step(confidence={"tumor": number(2), "tme": number(1)})
    assert [value.item() for value in optimizer.report.confidence.values()] == [2, 1]


def test_a_confidence_in_the_place_of_the_closure_is_named() -> None:
    optimizer, tumor, _ = conflict()
    message = r"closure must be callable, got dict \(give confidences by name: step\(confidence=\.\.\.\)\)"
    with pytest.raises(TypeError, match=message):
        optimizer.step(CONFIDENT_TUMOR)
    assert not tumor.any()
    optimizer.step(confidence=CONFIDENT_TUMOR)


def test_failed_step_forgets_its_confidences() -> None:
    optimizer, _, tme = conflict()
    dense, tme.grad = tme.grad, tme.grad.to_sparse()
    with pytest.raises(TypeError, match=r"gradients of subspace_parameters must be dense, got torch.sparse_coo"):
        optimizer.step(confidence={"tumor": 0.0, "tme": 5.0})
    tme.grad = dense
    optimizer.step(confidence=CONFIDENT_TUMOR)
    torch.testing.assert_close(optimizer.report.confidence["tme"], torch.tensor(0.6))


def test_closure_gradients_are_coordinated_before_the_wrapped_optimizer_sees_them() -> None:
    optimizer, _, tme = conflict()
    gradient = tme.grad.clone()

    def closure() -> float:
        assert torch.is_grad_enabled()
        tme.grad = gradient.clone()
        optimizer.accumulate(CONFIDENT_TUMOR)
        return 7.0

    assert optimizer.step(closure) == 7.0
    torch.testing.assert_close(tme[1].detach(), torch.tensor([1.5, -1.5]))
    torch.testing.assert_close(optimizer.report.confidence["tumor"], torch.tensor(0.9))


def test_every_evaluation_of_a_closure_is_coordinated_with_its_own_confidences() -> None:
    head, features = Head(), batch(0, sign=-1.0)
    lbfgs = torch.optim.LBFGS(head.parameters(), lr=0.1, max_iter=3)
    optimizer = CGCOptimizer(lbfgs, head.subspace_parameters())
    evaluations = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        evaluations.append(optimizer.report.rows)
        loss = nn.functional.cross_entropy(head(features[0]), features[1])
        loss.backward()
        optimizer.accumulate({"tumor": 1.0, "tme": 0.0})
        return loss

    before = head.blocks["tme"].detach().clone()
    optimizer.step(closure, confidence={"tumor": 0.0, "tme": 0.5})
    assert evaluations == [0, 3, 3]
    torch.testing.assert_close(optimizer.report.confidence, {"tumor": torch.tensor(1.0), "tme": torch.tensor(0.5)})
    assert torch.equal(head.blocks["tme"], before)  # opposite gradients: only the tumor block moves


def test_only_confidences_of_backward_passes_count() -> None:
    head = Head()
    optimizer = CGCOptimizer(torch.optim.SGD(head.parameters(), lr=0.1), head.subspace_parameters())
    validated, skipped = {"tumor": 5.0, "tme": 7.0}, {"tumor": 0.5, "tme": 0.125}
    for first in (True, False):  # the confidence is given before the backward pass, or after it
        optimizer.accumulate(validated)
        optimizer.accumulate(validated)
        for confidence in (skipped, CONFIDENT_TUMOR):  # a scaler skips the first step, and the loop goes on
            optimizer.zero_grad() if first else head.zero_grad()
            if first:
                optimizer.accumulate(confidence)
            backward(head, 0)
            if not first:
                optimizer.accumulate(confidence)
        optimizer.step()
        for name, value in CONFIDENT_TUMOR.items():
            torch.testing.assert_close(optimizer.report.confidence[name], torch.tensor(value))


def test_a_copy_counts_the_backward_passes_of_its_own_parameters() -> None:
    head = Head()
    optimizer = CGCOptimizer(torch.optim.SGD(head.parameters(), lr=0.1), head.subspace_parameters())
    twin, of_twin = copy.deepcopy((optimizer, head))
    twin.accumulate({"tumor": 5.0, "tme": 7.0})
    twin.accumulate(CONFIDENT_TUMOR)
    backward(of_twin, 0)
    twin.step()
    torch.testing.assert_close(twin.report.confidence["tumor"], torch.tensor(CONFIDENT_TUMOR["tumor"]))


VALIDATED = {"tumor": 100.0, "tme": 100.0}


def clear_in_place(head: Head, optimizer: CGCOptimizer) -> None:
    for parameter in head.parameters():
        parameter.grad.zero_()


CLEAR = {
    "None": lambda head, optimizer: head.zero_grad(),
    "in place": clear_in_place,
    "model, in place": lambda head, optimizer: head.zero_grad(set_to_none=False),
    "optimizer": lambda head, optimizer: optimizer.zero_grad(),
    "optimizer, in place": lambda head, optimizer: optimizer.zero_grad(set_to_none=False),
    "wrapped, in place": lambda head, optimizer: optimizer.wrapped.zero_grad(set_to_none=False),
}
# Accumulated, backward passes and cleared gradients, in the order of a training loop: v is a validation, c a clearing.
ORDERS = {
    "before": "a b",
    "after": "b a",
    "before, skipped": "a b c a b",
    "after, skipped": "b a c b a",
    "before, validated and skipped": "v v a b c v a b",
    "after, validated and skipped": "v v b a c v b a",
    "two losses, before": "v a b b",
    "two losses, after": "v b b a",
    "two losses, after, all at the end": "v b b a c v b b a",
}


@pytest.mark.parametrize("clear", CLEAR)
@pytest.mark.parametrize("order", ORDERS)
def test_one_call_counts_for_a_micro_batch_whatever_came_before(order: str, clear: str) -> None:
    head = Head()
    optimizer = CGCOptimizer(torch.optim.SGD(head.parameters(), lr=0.1), head.subspace_parameters())
    for _ in range(2):
        follow(ORDERS[order], clear, head, optimizer)
        optimizer.step()
        for name, value in CONFIDENT_TUMOR.items():
            torch.testing.assert_close(optimizer.report.confidence[name], torch.tensor(value))
        CLEAR[clear](head, optimizer)


@pytest.mark.parametrize("clear", CLEAR)
@pytest.mark.parametrize(
    "order",
    ["a b a b", "b a b a", "b b a a", "a b b a b b", "v a b a b c v a b a b", "b a b a c v b a b a", "b a v b a"],
)
def test_calls_of_two_micro_batches_are_summed(order: str, clear: str) -> None:
    head = Head()
    optimizer = CGCOptimizer(torch.optim.SGD(head.parameters(), lr=0.1), head.subspace_parameters())
    follow(order, clear, head, optimizer)
    optimizer.step()
    for name, value in CONFIDENT_TUMOR.items():
        torch.testing.assert_close(optimizer.report.confidence[name], torch.tensor(2 * value))


@pytest.mark.parametrize("order", ["a b b", "b a b", "v v b a v b"])
def test_confidences_of_the_step_are_those_of_the_last_backward_pass(order: str) -> None:
    head = Head()
    optimizer = CGCOptimizer(torch.optim.SGD(head.parameters(), lr=0.1), head.subspace_parameters())
    follow(order, "None", head, optimizer)
    optimizer.step(confidence=CONFIDENT_TUMOR)
    for name, value in CONFIDENT_TUMOR.items():
        torch.testing.assert_close(optimizer.report.confidence[name], torch.tensor(2 * value))


def follow(order: str, clear: str, head: Head, optimizer: CGCOptimizer) -> None:
    for event in order.split():
        if event == "b":
            backward(head, 0)
        elif event == "c":
            CLEAR[clear](head, optimizer)
        else:
            optimizer.accumulate(CONFIDENT_TUMOR if event == "a" else VALIDATED)
