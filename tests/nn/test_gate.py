"""The gate: every rule against hand-computed values, for classes and for hazards."""

import copy
import re
from collections.abc import Callable
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.nn.gate import RULES, MagnificationGate

NAMES = ("5x", "10x", "20x")
few = settings(max_examples=25)
seeds = st.integers(0, 10**6)


def draw(seed: int, magnifications: int, batch: int = 3, outputs: int = 4) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {
        name: 2 * torch.randn(batch, outputs, dtype=torch.float64, generator=source) for name in NAMES[:magnifications]
    }


def logit(probability: Tensor) -> Tensor:
    return probability.log() - (1 - probability).log()


def outcomes(hazard: Tensor) -> Tensor:
    """Probability of dying in each interval, and of outliving all, by plain multiplication [.., K + 1]."""
    survival = torch.cat([torch.ones_like(hazard[..., :1]), (1 - hazard).cumprod(-1)], dim=-1)
    return torch.cat([hazard, torch.ones_like(hazard[..., :1])], dim=-1) * survival


def test_the_more_confident_magnification_is_taken_sample_by_sample() -> None:
    low, high = torch.tensor([[0.0, 1.0], [4.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 3.9]])
    out = MagnificationGate(("10x", "20x"))({"10x": low, "20x": high})
    assert out.weights.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert out.logits.tolist() == [[3.0, 0.0], [4.0, 0.0]]


@pytest.mark.parametrize(
    ("first", "second", "dtype"),
    [(6.5, 9.0, torch.bfloat16), (9.0, 12.0, torch.float16), (17.0, 30.0, torch.float32), (50.0, 60.0, torch.float64)],
)
def test_confidences_that_round_to_one_are_told_apart(first: float, second: float, dtype: torch.dtype) -> None:
    logits = {"10x": torch.tensor([[first, 0.0]], dtype=dtype), "20x": torch.tensor([[0.0, second]], dtype=dtype)}
    assert MagnificationGate(("10x", "20x"))(logits).weights.tolist() == [[0.0, 1.0]]
    for rule in RULES:
        for link in ("softmax", "hazards"):
            assert {part.dtype for part in MagnificationGate(("10x", "20x"), rule=rule, link=link)(logits)} == {dtype}


def test_the_first_magnification_wins_a_tie() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0]])
    out = MagnificationGate(NAMES)({n: logits.roll(i, 1) for i, n in enumerate(NAMES)})
    assert out.weights.tolist() == [[1.0, 0.0, 0.0]]


def test_the_order_of_the_mapping_does_not_matter() -> None:
    logits = draw(0, 3)
    gate = MagnificationGate(NAMES)
    assert torch.equal(gate(dict(reversed(logits.items()))).weights, gate(logits).weights)


def test_confidence_in_hazards_is_that_of_the_likeliest_outcome() -> None:
    # Hazards 0.5, 0.5: outcomes 0.5, 0.25, 0.25. Hazards 0.1, 0.4: outcomes 0.1, 0.36, 0.54.
    even, late = (logit(torch.tensor([h])) for h in ([0.5, 0.5], [0.1, 0.4]))
    out = MagnificationGate(("10x", "20x"), link="hazards")({"10x": even, "20x": late})
    assert out.weights.tolist() == [[0.0, 1.0]]
    assert torch.equal(out.logits, late)
    # A softmax over the same numbers would have preferred a likely late death to a certain survival.
    safe, risky = torch.full((1, 2), -6.0), torch.tensor([[-6.0, 1.0]])
    both = {"10x": safe, "20x": risky}
    assert MagnificationGate(("10x", "20x"), link="hazards")(both).weights.tolist() == [[1.0, 0.0]]
    assert MagnificationGate(("10x", "20x"))(both).weights.tolist() == [[0.0, 1.0]]


@given(magnifications=st.integers(1, 3), link=st.sampled_from(["softmax", "hazards"]), seed=seeds)
@few
def test_max_confidence_is_one_of_the_magnifications_to_the_bit(magnifications: int, link: str, seed: int) -> None:
    logits = draw(seed, magnifications)
    out = MagnificationGate(NAMES[:magnifications], link=link)(logits)
    stacked = torch.stack(list(logits.values()), dim=1)  # [B, M, K]
    probabilities = outcomes(stacked.sigmoid()) if link == "hazards" else stacked.softmax(-1)
    best = probabilities.amax(-1).argmax(1)
    assert torch.equal(out.weights.argmax(1), best)
    assert torch.equal(out.logits, stacked[torch.arange(3), best])


def test_a_magnification_that_is_not_taken_has_no_influence_and_no_gradient() -> None:
    taken = torch.tensor([[9.0, 0.0, -1.0]], requires_grad=True)
    other = torch.tensor([[0.0, 0.1, -torch.inf]], requires_grad=True)
    out = MagnificationGate(("10x", "20x"))({"10x": taken, "20x": other})
    assert torch.equal(out.logits, taken)
    out.logits.sum().backward()
    assert taken.grad.tolist() == [[1.0] * 3]
    assert other.grad.tolist() == [[0.0] * 3]


def test_autocast_does_not_round_the_logits() -> None:
    logits = {"10x": torch.tensor([[1.2345678, 0.0]]), "20x": torch.tensor([[0.1, 0.2]])}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MagnificationGate(("10x", "20x"))(logits).logits, logits["10x"])


@given(magnifications=st.integers(1, 3), link=st.sampled_from(["softmax", "hazards"]), seed=seeds)
@few
def test_average_is_the_mean_of_the_logits(magnifications: int, link: str, seed: int) -> None:
    logits = draw(seed, magnifications)
    out = MagnificationGate(NAMES[:magnifications], rule="average", link=link)(logits)
    torch.testing.assert_close(out.logits, torch.stack(list(logits.values())).mean(0))
    torch.testing.assert_close(out.weights, torch.full((3, magnifications), 1 / magnifications).double())


def test_softmax_average_by_hand() -> None:
    gate = MagnificationGate(("10x", "20x"), rule="softmax_average")
    out = gate({"10x": torch.tensor([[log(0.9), log(0.1)]]), "20x": torch.tensor([[log(0.2), log(0.8)]])})
    torch.testing.assert_close(out.logits.exp(), torch.tensor([[0.55, 0.45]]))
    assert out.weights.tolist() == [[0.5, 0.5]]


@given(magnifications=st.integers(1, 3), outputs=st.integers(1, 5), seed=seeds)
@few
def test_averaged_probabilities_are_those_of_the_returned_logits(magnifications: int, outputs: int, seed: int) -> None:
    logits = draw(seed, magnifications, outputs=outputs)
    names, stacked = NAMES[:magnifications], torch.stack(list(logits.values()))
    classes = MagnificationGate(names, rule="softmax_average")(logits).logits
    torch.testing.assert_close(classes.softmax(-1), stacked.softmax(-1).mean(0))
    hazards = MagnificationGate(names, rule="softmax_average", link="hazards")(logits).logits
    assert hazards.shape == (3, outputs)
    torch.testing.assert_close(outcomes(hazards.sigmoid()), outcomes(stacked.sigmoid()).mean(0))


@pytest.mark.parametrize("link", ["softmax", "hazards"])
def test_saturated_logits_average_to_finite_values_with_finite_gradients(link: str) -> None:
    logits = {"10x": torch.tensor([[200.0, -200.0]]), "20x": torch.tensor([[-200.0, 200.0]])}
    logits = {name: value.requires_grad_() for name, value in logits.items()}
    out = MagnificationGate(("10x", "20x"), rule="softmax_average", link=link)(logits).logits
    assert out.isfinite().all()
    out.sum().backward()
    assert all(value.grad.isfinite().all() for value in logits.values())


def test_learned_shares_start_even_follow_their_parameter_and_train() -> None:
    gate, logits = MagnificationGate(NAMES, rule="learned").double(), draw(1, 3)
    stacked = torch.stack(list(logits.values()), dim=1)
    torch.testing.assert_close(gate(logits).logits, stacked.mean(1))
    with torch.no_grad():
        gate.mixture.copy_(torch.tensor([log(1), log(2), log(5)]))
    out = gate(logits)
    share = torch.tensor([1, 2, 5]).double() / 8
    torch.testing.assert_close(out.weights, share.expand(3, -1))
    torch.testing.assert_close(out.logits, (share[:, None] * stacked).sum(1))
    out.logits.square().sum().backward()
    assert gate.mixture.grad.abs().min() > 0


@pytest.mark.parametrize("link", ["softmax", "hazards"])
def test_averaged_probabilities_are_exact_in_float64_whatever_the_default_device(link: str) -> None:
    logits, gate = draw(5, 3), MagnificationGate(NAMES, rule="softmax_average", link=link)
    with torch.device("meta"):
        out = gate(logits)
    each = [logits[name].softmax(-1) if link == "softmax" else outcomes(logits[name].sigmoid()) for name in NAMES]
    averaged = out.logits.exp() if link == "softmax" else outcomes(out.logits.sigmoid())
    torch.testing.assert_close(averaged, sum(each) / 3, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("link", ["softmax", "hazards"])
def test_one_magnification_is_itself_whatever_the_rule(rule: str, link: str) -> None:
    logits = draw(2, 1)["5x"]
    out = MagnificationGate(("5x",), rule=rule, link=link)({"5x": logits})
    assert (out.weights == 1).all()
    if rule == "softmax_average" and link == "softmax":
        torch.testing.assert_close(out.logits, logits.log_softmax(-1))
    else:
        torch.testing.assert_close(out.logits, logits)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("link", ["softmax", "hazards"])
def test_options_weights_and_copies_come_back(rule: str, link: str) -> None:
    gate, logits = MagnificationGate(NAMES, rule=rule, link=link), draw(3, 3)
    rebuilt: MagnificationGate = eval(f"MagnificationGate({gate.extra_repr()})")
    rebuilt.load_state_dict(gate.state_dict())
    for other in (rebuilt, copy.deepcopy(gate)):
        assert torch.equal(other(logits).logits, gate(logits).logits)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MagnificationGate(()), ValueError, "magnifications must hold at least one name, each once, got ()"),
        (
            lambda: MagnificationGate(NAMES, rule="best"),
            ValueError,
            "rule must be one of 'max_confidence', 'average', 'softmax_average', 'learned', got 'best'",
        ),
        (
            lambda: MagnificationGate(NAMES, link="classes"),
            ValueError,
            "link must be one of 'softmax', 'hazards', 'identity', got 'classes'",
        ),
        (
            lambda: MagnificationGate(("5x",))([torch.zeros(1, 2)]),
            TypeError,
            "logits must be a mapping from names, got list",
        ),
        (
            lambda: MagnificationGate(("5x",))({"10x": torch.zeros(1, 2)}),
            ValueError,
            "logits must have exactly the names ['5x'], got ['10x']",
        ),
        (
            lambda: MagnificationGate(("5x",))({"5x": torch.zeros(2)}),
            ValueError,
            "logits['5x'] must have shape [B, K], got [2]",
        ),
        (
            lambda: MagnificationGate(("5x", "10x"))({"5x": torch.zeros(1, 2), "10x": torch.zeros(1, 3)}),
            ValueError,
            "logits['10x'] must have shape [B, K] = [1, 2], got [1, 3]",
        ),
        (
            lambda: MagnificationGate(("5x",), rule="average")({"5x": torch.ones(1, 2, dtype=torch.int64)}),
            TypeError,
            "logits['5x'] must be a floating-point tensor, got torch.int64",
        ),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_numbers_are_averaged_and_have_no_confidence() -> None:
    logits = {"10x": torch.tensor([[1.0], [-2.0]]), "20x": torch.tensor([[3.0], [0.0]])}
    for rule in ("average", "softmax_average", "learned"):
        gate = MagnificationGate(("10x", "20x"), rule=rule, link="identity")
        torch.testing.assert_close(gate(logits).logits, torch.tensor([[2.0], [-1.0]]))
    with pytest.raises(ValueError, match="rule must be an average for numbers, which have no confidence"):
        MagnificationGate(("10x", "20x"), link="identity")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("link", ["softmax", "hazards", "identity"])
def test_a_sample_without_a_magnification_is_predicted_by_the_others(rule: str, link: str) -> None:
    if (rule, link) == ("max_confidence", "identity"):
        return
    gate, logits = MagnificationGate(NAMES, rule=rule, link=link), draw(0, 3)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    out = gate(logits, present)
    torch.testing.assert_close(out.weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert not out.weights[~present].any()
    whole, part = MagnificationGate(NAMES, rule=rule, link=link), MagnificationGate(("5x", "20x"), rule=rule, link=link)
    torch.testing.assert_close(out.logits[0], whole(logits).logits[0])
    torch.testing.assert_close(out.logits[1], part({n: logits[n] for n in ("5x", "20x")}).logits[1])
    alone = MagnificationGate(("10x",), rule=rule, link=link)({"10x": logits["10x"]})
    torch.testing.assert_close(out.logits[2], alone.logits[2])


@pytest.mark.parametrize("rule", RULES)
def test_what_a_missing_magnification_holds_does_not_matter_and_has_no_gradient(rule: str) -> None:
    logits = {name: values.requires_grad_() for name, values in draw(1, 2).items()}
    present = torch.tensor([[True, False]] * 3)
    MagnificationGate(NAMES[:2], rule=rule)(logits, present).logits.square().sum().backward()
    grads = [values.grad for values in logits.values()]
    assert grads[0].abs().sum() > 0
    assert grads[1] is None or not grads[1].any()


def test_a_sample_of_no_magnification_is_treated_as_if_it_had_all() -> None:
    gate, logits = MagnificationGate(NAMES, rule="average"), draw(2, 3)
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    assert torch.equal(gate(logits, nothing).logits, gate(logits).logits)
    with pytest.raises(ValueError, match=r"present must have shape \[B, M\] = \[3, 3\], got \[3, 2\]"):
        gate(logits, nothing[:, :2])
