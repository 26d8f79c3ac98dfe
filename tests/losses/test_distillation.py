import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from torch.autograd import gradcheck

from disentangled_mil.losses import (
    DistillationTargets,
    SubspaceDistillation,
    match_prototypes,
    prediction_distillation,
    representation_distillation,
)

KINDS = ["softmax", "hazards"]


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def teacher(generator: torch.Generator, batch: int = 3, present: torch.Tensor | None = None) -> DistillationTargets:
    features = {name: normal(generator, batch, 5) for name in ("tumor", "tme")}
    return DistillationTargets.from_teacher(normal(generator, batch, 4), features, present=present)


@pytest.mark.parametrize("temperature", ["1.0", "2.0", "4.0"])
def test_released_prediction_loss_and_gradient_are_reproduced(golden, temperature):
    case = golden(f"prediction_distillation_T{temperature}")
    student = case["student_logits"].requires_grad_()
    loss = prediction_distillation(student, case["teacher_logits"], temperature=case["temperature"].item())
    loss.backward()
    torch.testing.assert_close(loss, case["loss"], rtol=0, atol=1e-9)
    torch.testing.assert_close(student.grad, case["grad_student_logits"], rtol=0, atol=1e-9)


def test_classes_that_the_teacher_excludes_count_nothing():
    teacher = torch.tensor([[1.0, -torch.inf, 0.5], [0.0, 1.0, -torch.inf]])
    student = torch.tensor([[0.3, -torch.inf, 0.1], [0.2, 0.4, 2.0]], requires_grad=True)
    loss = prediction_distillation(student, teacher, temperature=2.0)
    p, q = (softened.double().div(2).softmax(1) for softened in (teacher, student))
    expected = 4 * torch.from_numpy(rel_entr(p.numpy(), q.detach().numpy())).sum(1).mean()
    torch.testing.assert_close(loss.double(), expected)
    (slope,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(slope.double(), (q - p).detach())


def test_softmax_divergence_equals_torch_batchmean(generator):
    student, logits = normal(generator, 3, 4), normal(generator, 3, 4)
    oracle = 9 * F.kl_div((student / 3).log_softmax(1), (logits / 3).softmax(1), reduction="batchmean")
    torch.testing.assert_close(prediction_distillation(student, logits, temperature=3.0), oracle)


def test_hazard_divergence_equals_that_of_bernoulli_distributions(generator):
    student, logits = normal(generator, 3, 4), normal(generator, 3, 4)
    p, q = (torch.distributions.Bernoulli(logits=x / 2) for x in (logits, student))
    oracle = 4 * torch.distributions.kl_divergence(p, q).sum(1).mean()
    torch.testing.assert_close(prediction_distillation(student, logits, kind="hazards"), oracle)


@settings(max_examples=30)
@given(
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 5),
    outputs=st.integers(2, 5),
    temperature=st.floats(0.5, 5),
    seed=st.integers(0, 10**6),
)
def test_divergence_is_zero_iff_predictions_are_equal(kind, batch, outputs, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, logits = normal(generator, batch, outputs), normal(generator, batch, outputs)
    options = {"kind": kind, "temperature": temperature}
    assert prediction_distillation(student, logits, **options) > 1e-9
    assert prediction_distillation(logits, logits, **options).abs() < 1e-14
    shifted = prediction_distillation(logits + 1, logits, **options)
    assert shifted.abs() < 1e-12 if kind == "softmax" else shifted > 1e-9
    order = torch.randperm(batch, generator=generator)
    loss = prediction_distillation(student, logits, **options)
    torch.testing.assert_close(prediction_distillation(student[order], logits[order], **options), loss)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4, 1e-6])
def test_float32_divergence_of_close_predictions_is_exact_and_never_negative(kind, distance, generator):
    logits = 4 * torch.randn(2000, 4, generator=generator)
    student = logits + distance * torch.randn(2000, 4, generator=generator)
    each = torch.func.vmap(lambda x, y: prediction_distillation(x[None], y[None], kind=kind))(student, logits)
    assert (each >= 0).all()
    exact = prediction_distillation(student.double(), logits.double(), kind=kind)
    torch.testing.assert_close(each.mean().double(), exact, rtol=2e-3 if distance > 1e-5 else 1, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", [0.0, 1e-3, 1.0, 30.0])
def test_float32_divergence_and_gradient_are_those_of_the_textbook_in_float64(kind, distance, generator):
    logits = torch.randn(50, 4, generator=generator)
    student = (logits + distance * torch.randn(50, 4, generator=generator)).requires_grad_()
    exact = student.detach().double().requires_grad_()

    def outcomes(x):
        return x.log_softmax(1) if kind == "softmax" else torch.stack([F.logsigmoid(x), F.logsigmoid(-x)])

    p, q = outcomes(logits.double() / 2), outcomes(exact / 2)
    expected = 4 * (p.exp() * (p - q)).sum() / len(logits)
    loss = prediction_distillation(student, logits, kind=kind)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3 if distance < 1e-2 else 1e-5, atol=1e-14)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_gradient_is_exact_and_only_the_students(kind, generator):
    student, logits = normal(generator, 3, 4).requires_grad_(), normal(generator, 3, 4).requires_grad_()
    weight = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    assert gradcheck(lambda x: prediction_distillation(x, logits.detach(), kind=kind, weight=weight), student)
    prediction_distillation(student, logits, kind=kind).backward()
    assert student.grad.abs().sum() > 0
    assert logits.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_loss_of_huge_logits_is_finite(kind):
    student = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = prediction_distillation(student, -student, kind=kind)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind, dtype, generator):
    student, logits = normal(generator, 3, 4).to(dtype), normal(generator, 3, 4).to(dtype)
    loss = prediction_distillation(student, logits, kind=kind)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, prediction_distillation(student.float(), logits.float(), kind=kind))
    slots = representation_distillation(student[None], logits[None])
    assert slots.dtype == torch.float32
    torch.testing.assert_close(slots, F.mse_loss(student.float(), logits.float()))


def test_slot_matching_is_the_mean_squared_error(generator):
    student, vectors = normal(generator, 3, 2, 5), normal(generator, 3, 2, 5)
    torch.testing.assert_close(representation_distillation(student, vectors), F.mse_loss(student, vectors))


@settings(max_examples=25)
@given(
    batch=st.integers(1, 4),
    subspaces=st.integers(1, 4),
    surplus=st.integers(0, 2),
    width=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_matching_finds_shuffled_prototypes_again(batch, subspaces, surplus, width, seed):
    generator = torch.Generator().manual_seed(seed)
    prototypes = normal(generator, batch, subspaces + surplus, width)
    order = torch.stack([torch.randperm(subspaces + surplus, generator=generator)[:subspaces] for _ in range(batch)])
    vectors = prototypes.gather(1, order[..., None].expand(-1, -1, width))
    permutation = match_prototypes(prototypes, vectors)
    assert permutation.dtype == torch.int64
    assert torch.equal(permutation, order)
    assert representation_distillation(prototypes, vectors, matching="hungarian") == 0


def test_matching_takes_the_smallest_total_error_not_the_nearest_first():
    prototypes = torch.tensor([[[0.0], [1.0]]])
    vectors = torch.tensor([[[0.9], [2.0]]])
    assert match_prototypes(prototypes, vectors).tolist() == [[0, 1]]
    loss = representation_distillation(prototypes, vectors, matching="hungarian")
    torch.testing.assert_close(loss, torch.tensor((0.81 + 1.0) / 2))


def test_overflowed_prototypes_keep_their_order_and_make_the_loss_infinite(generator):
    subspaces = torch.randn(2, 2, 3, generator=generator)
    prototypes = subspaces.flip(1).clone()
    prototypes[0, 1, 0] = math.inf
    assert match_prototypes(prototypes, subspaces).tolist() == [[0, 1], [1, 0]]
    assert representation_distillation(prototypes, subspaces, matching="hungarian").item() == math.inf


def test_a_permutation_belongs_to_its_bag():
    prototypes = torch.tensor([[[0.0], [1.0]], [[1.0], [0.0]]])
    assert match_prototypes(prototypes, torch.tensor([[[0.0], [1.0]]]).expand(2, -1, -1)).tolist() == [
        [0, 1],
        [1, 0],
    ]


@pytest.mark.parametrize("matching", ["slot", "hungarian"])
def test_representation_gradient_is_exact_and_only_the_students(matching, generator):
    student, vectors = (
        normal(generator, 3, 2, 4).requires_grad_(),
        normal(generator, 3, 2, 4).requires_grad_(),
    )
    weight = torch.tensor([1.0, 0.0, 3.0])
    assert gradcheck(
        lambda x: representation_distillation(x, vectors.detach(), matching=matching, weight=weight), student
    )
    representation_distillation(student, vectors, matching=matching).backward()
    assert vectors.grad is None


@pytest.mark.parametrize("absent", [math.nan, math.inf])
def test_rows_of_weight_zero_reach_neither_loss_nor_gradient(absent, generator):
    student, logits = normal(generator, 3, 2, 4).requires_grad_(), normal(generator, 3, 2, 4)
    logits[1] = absent
    weight = torch.tensor([1, 0, 1])
    kept = [0, 2]
    loss = prediction_distillation(student[:, 0], logits[:, 0], weight=weight)
    torch.testing.assert_close(loss, prediction_distillation(student[kept, 0], logits[kept, 0]))
    mse = representation_distillation(student, logits, matching="hungarian", weight=weight)
    torch.testing.assert_close(mse, representation_distillation(student[kept], logits[kept], matching="hungarian"))
    (loss + mse).backward()
    assert student.grad.isfinite().all()
    assert (student.grad[1] == 0).all()
    assert (student.grad[kept] != 0).any()


def test_weights_weigh_samples(generator):
    student, logits = normal(generator, 2, 4), normal(generator, 2, 4)
    alone = [prediction_distillation(student[i : i + 1], logits[i : i + 1]) for i in range(2)]
    loss = prediction_distillation(student, logits, weight=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(loss, (alone[0] + 3 * alone[1]) / 4)


@pytest.mark.parametrize("matching", ["slot", "hungarian"])
@pytest.mark.parametrize("kind", KINDS)
def test_module_adds_its_two_weighted_parts(kind, matching, generator):
    distil = SubspaceDistillation(
        kind, temperature=3.0, prediction_weight=0.5, representation_weight=2.0, matching=matching
    )
    targets = teacher(generator)
    logits, prototypes = normal(generator, 3, 4), normal(generator, 3, 2, 5)
    loss = distil(logits, prototypes, targets)
    torch.testing.assert_close(
        loss.prediction, prediction_distillation(logits, targets.logits, temperature=3.0, kind=kind)
    )
    torch.testing.assert_close(
        loss.representation, representation_distillation(prototypes, targets.subspaces, matching=matching)
    )
    torch.testing.assert_close(loss.total, 0.5 * loss.prediction + 2 * loss.representation)
    expected = (
        match_prototypes(prototypes, targets.subspaces) if matching == "hungarian" else torch.tensor([[0, 1]] * 3)
    )
    assert torch.equal(loss.permutation, expected)


def test_more_prototypes_than_subspaces_are_matched(generator):
    targets = teacher(generator)
    prototypes = torch.cat([normal(generator, 3, 1, 5), targets.subspaces.flip(1)], dim=1)
    loss = SubspaceDistillation(matching="hungarian")(targets.logits, prototypes, targets)
    assert loss.permutation.tolist() == [[2, 1]] * 3
    assert loss.total < 1e-12


def test_samples_without_a_teacher_take_no_part(generator):
    present = torch.tensor([True, False, True])
    targets = teacher(generator, present=present)
    logits, prototypes = normal(generator, 3, 4).requires_grad_(), normal(generator, 3, 2, 5).requires_grad_()
    loss = SubspaceDistillation()(logits, prototypes, targets)
    alone = SubspaceDistillation()(logits[present], prototypes[present], targets.select(present))
    torch.testing.assert_close(loss.total, alone.total)
    loss.total.backward()
    assert (logits.grad[1] == 0).all()
    assert (prototypes.grad[1] == 0).all()


def test_a_batch_without_any_teacher_gives_zero_with_a_gradient_path(generator):
    targets = teacher(generator, present=torch.zeros(3, dtype=torch.bool))
    logits, prototypes = normal(generator, 3, 4).requires_grad_(), normal(generator, 3, 2, 5).requires_grad_()
    loss = SubspaceDistillation()(logits, prototypes, targets)
    loss.total.backward()
    assert loss.total == 0
    assert (logits.grad == 0).all()
    assert (prototypes.grad == 0).all()


def test_targets_are_detached_float32_stacked_in_order_and_zero_where_absent():
    tumor = torch.full((2, 3), 1.0, dtype=torch.float64, requires_grad=True)
    tme = torch.full((2, 3), math.nan, dtype=torch.float64)
    present = torch.tensor([True, False])
    targets = DistillationTargets.from_teacher(tumor[:, :2] * 5, {"tme": tme, "tumor": tumor}, present=present)
    assert targets.logits.tolist() == [[5, 5], [0, 0]]
    assert targets.subspaces.dtype == torch.float32
    assert not targets.subspaces.requires_grad
    assert targets.subspaces[0, 1].tolist() == [1, 1, 1]
    assert (targets.subspaces[1] == 0).all()
    ordered = DistillationTargets.from_teacher(tumor, {"tme": tme, "tumor": tumor}, subspaces=("tumor", "tme"))
    assert ordered.subspaces[:, 0].tolist() == tumor.tolist()
    chosen = targets.select(torch.tensor([1, 1, 0])).to("cpu")
    assert chosen.present.tolist() == [False, False, True]
    assert chosen.logits.tolist() == [[0, 0], [0, 0], [5, 5]]


def test_repr_shows_the_options():
    assert repr(SubspaceDistillation("hazards", temperature=1.5)) == (
        "SubspaceDistillation(kind='hazards', temperature=1.5, prediction_weight=0.01, "
        "representation_weight=0.01, matching='slot')"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sigmoid"}, r"kind must be one of 'softmax', 'hazards', 'identity', got 'sigmoid'"),
        ({"temperature": 0.0}, r"temperature must be positive and finite, got 0\.0"),
        ({"temperature": math.inf}, r"temperature must be positive and finite, got inf"),
        ({"prediction_weight": -1.0}, r"prediction_weight must lie in \[0\.0, inf\], got -1\.0"),
        ({"representation_weight": -1.0}, r"representation_weight must lie in \[0\.0, inf\], got -1\.0"),
        ({"matching": "greedy"}, r"matching must be one of 'slot', 'hungarian', got 'greedy'"),
    ],
)
def test_module_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SubspaceDistillation(**options)


def test_module_refuses_inputs_that_do_not_fit(generator):
    targets = teacher(generator)
    logits, prototypes = torch.zeros(3, 4), torch.zeros(3, 3, 5)
    with pytest.raises(ValueError, match=r"targets\.present must have shape \[B\] = \[2\], got \[3\]"):
        SubspaceDistillation()(logits[:2], prototypes, targets)
    with pytest.raises(
        ValueError, match=r"student_prototypes must have shape \[B, P, C\] = \[3, P, C\], got \[2, 3, 5\]"
    ):
        SubspaceDistillation()(logits, prototypes[:2], targets)
    with pytest.raises(
        ValueError, match=r"targets\.subspaces must have shape \[B, S, C\] = \[3, 3, 5\], got \[3, 2, 5\]"
    ):
        SubspaceDistillation(matching="slot")(logits, prototypes, targets)


def test_errors_name_the_argument():
    logits, vectors = torch.zeros(2, 4), torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match=r"features must have exactly the names \['tumor'\], got \['tme'\]"):
        DistillationTargets.from_teacher(logits, {"tme": vectors[:, 0]}, subspaces=["tumor"])
    with pytest.raises(ValueError, match=r"teacher_logits must have shape \[B, K\] = \[2, 4\], got \[2, 3\]"):
        prediction_distillation(logits, logits[:, :3])
    with pytest.raises(ValueError, match=r"student_logits must hold at least one sample, got shape \[0, 4\]"):
        prediction_distillation(logits[:0], logits[:0])
    with pytest.raises(TypeError, match=r"student_logits must be a floating-point tensor, got torch\.int64"):
        prediction_distillation(logits.long(), logits)
    with pytest.raises(TypeError, match=r"teacher_logits must be a floating-point tensor, got torch\.int64"):
        prediction_distillation(logits, logits.long())
    with pytest.raises(ValueError, match=r"kind must be one of 'softmax', 'hazards', 'identity', got 'both'"):
        prediction_distillation(logits, logits, kind="both")
    with pytest.raises(ValueError, match=r"temperature must be positive and finite, got -1"):
        prediction_distillation(logits, logits, temperature=-1)
    with pytest.raises(ValueError, match=r"weight must have shape \[B\] = \[2\], got \[1\]"):
        prediction_distillation(logits, logits, weight=torch.ones(1))
    with pytest.raises(ValueError, match=r"teacher must have shape \[B, S, C\] = \[2, 3, 5\], got \[2, 2, 5\]"):
        representation_distillation(vectors, vectors[:, :2])
    with pytest.raises(ValueError, match=r"matching must be one of 'slot', 'hungarian', got 'greedy'"):
        representation_distillation(vectors, vectors, matching="greedy")
    with pytest.raises(TypeError, match=r"teacher must be a floating-point tensor, got torch\.int64"):
        representation_distillation(vectors, vectors.long())
    with pytest.raises(ValueError, match=r"prototypes must be at least as many as the 3 subspaces, got 2"):
        match_prototypes(vectors[:, :2], vectors)
    with pytest.raises(ValueError, match=r"prototypes must hold at least one sample, got shape \[0, 3, 5\]"):
        match_prototypes(vectors[:0], vectors[:0])
    with pytest.raises(ValueError, match=r"subspaces must have shape \[B, S, C\] = \[2, S, 5\], got \[2, 3, 4\]"):
        match_prototypes(vectors, vectors[..., :4])
    with pytest.raises(ValueError, match=r"features must have at least one subspace, got none"):
        DistillationTargets.from_teacher(logits, {})
    with pytest.raises(ValueError, match=r"features\['tme'\] must have shape \[B, C\] = \[2, 5\], got \[2, 4\]"):
        DistillationTargets.from_teacher(logits, {"tumor": torch.zeros(2, 5), "tme": torch.zeros(2, 4)})
    with pytest.raises(TypeError, match=r"present must be a bool tensor .*, got torch\.int64"):
        DistillationTargets.from_teacher(logits, {"tumor": torch.zeros(2, 5)}, present=torch.ones(2, dtype=torch.int64))


def test_slot_distillation_compiles_as_one_graph(generator):
    distil = SubspaceDistillation("hazards", matching="slot")
    targets = teacher(generator, present=torch.tensor([True, False, True]))
    logits, prototypes = normal(generator, 3, 4), normal(generator, 3, 2, 5)
    compiled = torch.compile(distil, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, prototypes, targets).total, distil(logits, prototypes, targets).total)


def test_targets_are_loaded_from_a_file_of_weights_only(tmp_path, generator):
    targets = teacher(generator)
    torch.save(targets, tmp_path / "targets.pt")
    loaded = torch.load(tmp_path / "targets.pt", weights_only=True)
    assert type(loaded) is DistillationTargets
    for got, wanted in zip(loaded, targets, strict=True):
        assert torch.equal(got, wanted)


def test_divergence_of_numbers_is_that_of_normal_distributions():
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(teacher, 1.0), normal(student, 1.0)).sum(1).mean()
    for temperature in (1.0, 4.0):
        loss = prediction_distillation(student, teacher, temperature=temperature, kind="identity")
        torch.testing.assert_close(loss, expected)
