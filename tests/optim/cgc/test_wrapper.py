"""CGCOptimizer is an optimizer for every caller: schedulers, states, hooks, copies."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from disentangled_mil.optim import CGCOptimizer
from tests.support.cgc import CONFIDENT_TUMOR, Head, backward, conflict, parameter


@pytest.mark.parametrize(
    "build",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
        ),
    ],
    ids=["lambda", "one-cycle", "cosine", "plateau", "sequential"],
)
def test_schedulers_drive_the_wrapped_optimizer_alike(
    build: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler],
) -> None:
    head = Head()
    wrapped = CGCOptimizer(torch.optim.AdamW(head.parameters(), lr=0.1), head.subspace_parameters())
    plain = torch.optim.AdamW(Head().parameters(), lr=0.1)
    schedules = []
    for optimizer, options in ((wrapped, {"confidence": CONFIDENT_TUMOR}), (plain, {})):
        scheduler = build(optimizer)
        rates = []
        for _ in range(5):
            optimizer.step(**options)
            metrics = [1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []
            scheduler.step(*metrics)
            rates.append(optimizer.param_groups[0]["lr"])
        schedules.append(rates)
    assert schedules[0] == schedules[1]
    assert wrapped.wrapped.param_groups[0]["lr"] == schedules[0][-1]


def test_state_goes_into_the_plain_optimizer_and_back() -> None:
    head = Head()
    cgc = CGCOptimizer(torch.optim.AdamW(head.parameters(), lr=0.1), head.subspace_parameters())
    backward(head, 0)
    cgc.step(confidence=CONFIDENT_TUMOR)
    saved = copy.deepcopy(cgc.state_dict())

    twin = copy.deepcopy(head)
    plain = torch.optim.AdamW(twin.parameters(), lr=0.5)
    plain.load_state_dict(saved)
    assert plain.param_groups[0]["lr"] == 0.1
    again = CGCOptimizer(torch.optim.AdamW(twin.parameters(), lr=0.5), twin.subspace_parameters())
    again.load_state_dict(plain.state_dict())
    assert again.state_dict()["param_groups"] == saved["param_groups"]
    torch.testing.assert_close(again.state_dict()["state"], saved["state"])

    for each, optimizer in ((head, cgc), (twin, again)):
        each.zero_grad()
        backward(each, 1, sign=-1.0)
        optimizer.step(confidence=CONFIDENT_TUMOR)
    for ours, theirs in zip(head.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_groups_state_and_defaults_are_the_wrapped_ones() -> None:
    optimizer, tumor, _ = conflict()
    wrapped = optimizer.wrapped
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is wrapped.param_groups
    assert optimizer.state is wrapped.state
    assert optimizer.defaults is wrapped.defaults
    optimizer.add_param_group({"params": [parameter(1.0)], "lr": 0.5})
    assert len(wrapped.param_groups) == 2
    optimizer.zero_grad(set_to_none=False)
    assert not tumor.grad.any()
    optimizer.zero_grad()
    assert tumor.grad is None
    for name in ("param_groups", "state", "defaults"):
        replacement = copy.copy(getattr(optimizer, name))
        setattr(optimizer, name, replacement)
        assert getattr(wrapped, name) is replacement


def test_hooks_are_registered_with_the_wrapped_optimizer_and_called_once() -> None:
    optimizer, _, tme = conflict()
    calls: list[str] = []

    def before(hooked: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        assert hooked is optimizer.wrapped
        torch.testing.assert_close(tme.grad[1], torch.tensor([-1.5, 1.5]))
        calls.append("step pre")

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: calls.append("step post"))
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("state pre"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("state post"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("load post"))
    optimizer.step(confidence=CONFIDENT_TUMOR)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["step pre", "step post", "state pre", "state post", "load pre", "load post"]


def test_deepcopy_and_pickle_go_on_independently_of_the_original() -> None:
    head = Head()
    optimizer = CGCOptimizer(torch.optim.AdamW(head.parameters(), lr=0.1), head.subspace_parameters())
    lr_scheduler.ExponentialLR(optimizer, 0.9)  # hangs a patched step on the instance
    backward(head, 0)
    optimizer.step(confidence=CONFIDENT_TUMOR)
    file = io.BytesIO(pickle.dumps((head, optimizer)))
    before = [p.detach().clone() for p in head.parameters()]
    for twin, copied in (copy.deepcopy((head, optimizer)), pickle.load(file)):
        backward(twin, 1, sign=-1.0)
        copied.step(confidence=CONFIDENT_TUMOR)
        assert copied.report.projected["tme"] == 3
        assert all(not torch.equal(p, b) for p, b in zip(twin.parameters(), before, strict=True))
    assert all(torch.equal(p, b) for p, b in zip(head.parameters(), before, strict=True))


def test_repr_shows_options_and_the_wrapped_optimizer() -> None:
    optimizer, _, _ = conflict(lr=0.25)
    text = repr(optimizer)
    assert text.startswith("CGCOptimizer(SGD (")
    assert "lr: 0.25" in text
    assert text.endswith("subspaces=('tumor', 'tme'), granularity='row')")


class _ScheduleFree(torch.optim.SGD):
    """An optimizer with modes, as those without a schedule have them."""

    evaluating = False

    def train(self) -> None:
        self.evaluating = False

    def eval(self) -> None:
        self.evaluating = True


def test_what_only_the_wrapped_optimizer_has_is_forwarded() -> None:
    head = Head()
    inner = _ScheduleFree(head.parameters(), lr=0.1)
    optimizer = CGCOptimizer(inner, head.subspace_parameters())
    optimizer.eval()
    assert inner.evaluating
    assert copy.deepcopy(optimizer).defaults == inner.defaults  # a copy is built before it has anything to forward
    optimizer.train()
    assert not inner.evaluating
    assert not hasattr(CGCOptimizer(torch.optim.SGD(head.parameters()), head.subspace_parameters()), "eval")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # PyTorch's own
@pytest.mark.parametrize("how", ["step", "loop"])
def test_report_survives_compilation_around_the_step(how: str) -> None:
    optimizer, _, tme = conflict()

    def train() -> None:
        optimizer.accumulate(CONFIDENT_TUMOR)
        optimizer.step()

    if how == "loop":
        torch.compile(train, backend="eager")()
    else:
        torch.compile(optimizer.step, backend="eager")(confidence=CONFIDENT_TUMOR)
    torch.testing.assert_close(tme[1].detach(), torch.tensor([1.5, -1.5]))
    assert (optimizer.report.rows, optimizer.report.projected["tme"]) == (2, 1)
    torch.testing.assert_close(optimizer.report.confidence["tumor"], torch.tensor(0.9))
