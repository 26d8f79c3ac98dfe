from dataclasses import replace
from itertools import combinations, product

import pytest
import torch

from disentangled_mil import (
    Bag,
    CGCOptimizer,
    GeneNetwork,
    Grid,
    Student,
    SubspaceDistillation,
    Teacher,
    collate_bags,
    inter_magnification_consistency,
    share_distillation,
)
from disentangled_mil.nn.attention import COMMON_RESOLUTION
from disentangled_mil.train.datasets import CohortDataset
from disentangled_mil.train.stages import GeneStage, StudentStage, TeacherStage

SIZES = {"dim": 8, "heads": 2, "groups": 2, "dim_head": 4}


@pytest.fixture
def task(split):
    return split.train.fit_task("grading")


@pytest.fixture
def make_teacher(dataset, task, options):
    def make(**changes):
        torch.manual_seed(1)
        genes = {name: values.shape[1] for name, values in dataset.genes.items()}
        changed = replace(options, dropout=0.0, gene_dropout=0.0, **changes)
        return TeacherStage(Teacher(8, genes, 3, dropout=0.0, gene_dropout=0.0, **SIZES), task, changed)

    return make


@pytest.fixture
def make_student(task, options):
    def make(targets=None, **changes):
        torch.manual_seed(2)
        return StudentStage(Student(8, 3, dropout=0.0, **SIZES), task, replace(options, **changes), targets)

    return make


def anchors(stage: StudentStage) -> torch.Tensor:
    return torch.stack([branch.aggregate.anchors.clone() for branch in stage.model.branches.values()])


def test_gene_stage_learns_its_task_from_genes_alone(dataset, task, options):
    genes = {name: values.shape[1] for name, values in dataset.genes.items()}
    stage = GeneStage(GeneNetwork(genes, 3, dim=8, dropout=0.0), task, options)
    batch = dataset.batch(range(6))
    loss = stage.loss(batch._replace(bags={}), 0)
    assert loss.total is loss.parts["task"]
    assert loss.confidence == {}
    torch.testing.assert_close(loss.total, task.loss(stage.model(batch.genes).logits, batch.target))
    loss.total.backward()
    stage.step(loss)
    assert stage.loss(batch, 0).total < loss.total


def test_only_vectors_are_spared_the_weight_decay(make_teacher):
    stage = make_teacher(weight_decay=0.3)
    decayed, others = stage.optimizer.param_groups
    assert decayed["weight_decay"] == 0.3
    assert others["weight_decay"] == 0.0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim <= 1 for parameter in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(stage.model.parameters()))


def test_teacher_loss_adds_the_tasks_of_the_branches_and_their_consistency(dataset, task, make_teacher):
    stage = make_teacher(consistency_weight=0.5)
    batch = dataset.batch(range(5))
    loss = stage.loss(batch, 0)
    branches = stage.model(batch.bags, batch.genes).branches
    wanted = sum(task.loss(branch.logits, batch.target) for branch in branches.values())
    first, second = branches.values()
    consistency = inter_magnification_consistency(first.attention, second.attention)
    torch.testing.assert_close(loss.parts["task"], wanted)
    torch.testing.assert_close(loss.parts["consistency"], consistency)
    torch.testing.assert_close(loss.total, wanted + 0.5 * consistency)
    for name in ("tumor", "tme"):
        confidence = sum(
            branch.subspace_logits[name].softmax(1).gather(1, batch.target[:, None]).sum()
            for branch in branches.values()
        )
        torch.testing.assert_close(loss.confidence[name], confidence)
        assert not loss.confidence[name].requires_grad


@pytest.mark.parametrize("uniform", [True, False])
def test_no_batch_weighs_more_because_its_bags_happen_to_be_full(dataset, make_teacher, monkeypatch, uniform):
    stage, asked = make_teacher(), []

    def record(a, b, *, resolution, present):
        asked.append(resolution)
        return inter_magnification_consistency(a, b, resolution=resolution, present=present)

    monkeypatch.setattr("disentangled_mil.train.stages.teacher.inter_magnification_consistency", record)
    monkeypatch.setattr(CohortDataset, "uniform", uniform)
    stage.begin_epoch(0, dataset)
    stage.loss(dataset.batch(range(3)), 0)
    assert asked == [None if uniform else COMMON_RESOLUTION]


def test_without_coordinates_the_teacher_leaves_consistency_out_and_says_so(dataset, make_teacher, monkeypatch, capsys):
    monkeypatch.setattr(CohortDataset, "sets", ("20x",))
    stage = make_teacher()
    for epoch in range(2):
        stage.begin_epoch(epoch, dataset)
    assert list(stage.loss(dataset.batch(range(3)), 0).parts) == ["task"]
    assert capsys.readouterr().err == "no consistency loss: bags have no coordinates at 20x\n"


def test_consistency_needs_two_magnifications_and_a_weight(dataset, task, make_teacher, options):
    batch = dataset.batch(range(3))
    assert list(make_teacher(consistency_weight=0).loss(batch, 0).parts) == ["task"]
    genes = {name: values.shape[1] for name, values in dataset.genes.items()}
    single = TeacherStage(Teacher(8, genes, 3, magnifications=["20x"], **SIZES), task, options)
    loss = single.loss(batch._replace(bags={"20x": batch.bags["20x"]}), 0)
    assert list(loss.parts) == ["task"]
    assert len(list(combinations(single.model.magnifications, 2))) == 0


def test_batches_of_one_have_no_consistency_and_it_is_said_once(make_teacher, dataset, capsys):
    stage = make_teacher(batch_size=1)
    for epoch in range(2):
        stage.begin_epoch(epoch, dataset)
    assert list(stage.loss(dataset.batch([0]), 0).parts) == ["task"]
    assert (
        capsys.readouterr().err.count("no consistency loss: it compares the samples of a batch, and batch_size is 1")
        == 1
    )


def test_teacher_coordinates_its_gradients_unless_told_not_to(dataset, make_teacher):
    plain, coordinated = make_teacher(cgc=False), make_teacher(cgc=True)
    assert plain.coordinated is None
    assert isinstance(coordinated.optimizer, CGCOptimizer)
    batch = dataset.batch(range(8))
    for stage in (plain, coordinated):
        before = [parameter.clone() for parameter in stage.model.parameters()]
        loss = stage.loss(batch, 0)
        loss.total.backward()
        stage.step(loss)
        assert any(not torch.equal(a, b) for a, b in zip(before, stage.model.parameters(), strict=True))


def test_coordination_is_given_the_confidences_of_the_batch(dataset, make_teacher, monkeypatch):
    given = []
    monkeypatch.setattr(CGCOptimizer, "step", lambda self, closure=None, **options: given.append(options))
    stage = make_teacher(cgc=True)
    loss = stage.loss(dataset.batch(range(4)), 0)
    stage.step(loss)
    assert given == [{"confidence": loss.confidence}]


def test_targets_are_those_of_the_teacher_at_rest_and_absent_without_expression(dataset, make_teacher):
    stage = make_teacher()
    stage.model.train()
    targets = stage.targets(dataset)
    assert not stage.model.training
    assert list(targets) == ["10x", "20x"]
    batch = dataset.batch(range(len(dataset)))
    with torch.no_grad():
        branches = stage.model(batch.bags, batch.genes).branches
    for name, target in targets.items():
        assert torch.equal(target.present, dataset.paired)
        assert not any(column.requires_grad for column in target.to_dict().values())
        paired = dataset.paired
        torch.testing.assert_close(target.logits[paired], branches[name].logits[paired], atol=1e-5, rtol=1e-4)
        vectors = torch.stack(list(branches[name].features.values()), 1)
        torch.testing.assert_close(target.subspaces[paired], vectors[paired], atol=1e-5, rtol=1e-4)
        assert not target.logits[~paired].any()
        assert not target.subspaces[~paired].any()
    assert 0 < int(dataset.paired.sum()) < len(dataset)


def test_distillation_sends_no_gradient_to_the_teacher(dataset, make_teacher, make_student):
    teacher = make_teacher()
    student = make_student(teacher.targets(dataset))
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    loss = student.loss(dataset.batch(range(6)), student.options.epochs - 1)
    loss.total.backward()
    student.step(loss)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())


def test_warm_up_of_a_distilled_student_is_on_the_task_alone(dataset, task, make_teacher, make_student):
    targets = make_teacher().targets(dataset)
    distilled, scratch = (make_student(of, epochs=4, task_warmup=0.5) for of in (targets, None))
    batch = dataset.batch(range(6))
    for stage in (distilled, scratch):
        stage.model.train()
    early, alone = distilled.loss(batch, 1), scratch.loss(batch, 1)
    assert list(early.parts) == ["task"]
    assert torch.equal(early.total, alone.total)
    assert torch.equal(anchors(distilled), anchors(scratch))
    assert list(distilled.loss(batch, 2).parts) == ["task", "prediction", "representation"]
    assert list(scratch.loss(batch, 3).parts) == ["task"]


def test_student_loss_adds_the_distillation_of_every_branch(dataset, task, make_teacher, make_student):
    targets = make_teacher().targets(dataset)
    stage = make_student(targets, temperature=3.0, prediction_weight=0.5, representation_weight=0.25)
    stage.model.eval()
    batch = dataset.batch([0, 3, len(dataset) - 1])
    loss = stage.loss(batch, stage.options.epochs - 1)
    distil = SubspaceDistillation("softmax", temperature=3.0, prediction_weight=0.5, representation_weight=0.25)
    wanted = {"task": 0.0, "prediction": 0.0, "representation": 0.0}
    with torch.no_grad():
        for name, branch in stage.model(batch.bags).branches.items():
            parts = distil(branch.logits, branch.prototypes, targets[name].select(batch.rows))
            wanted["task"] += task.loss(branch.logits, batch.target)
            wanted["prediction"] += parts.prediction
            wanted["representation"] += parts.representation
    for name, value in wanted.items():
        torch.testing.assert_close(loss.parts[name], value)
    total = wanted["task"] + 0.5 * wanted["prediction"] + 0.25 * wanted["representation"]
    torch.testing.assert_close(loss.total, total)


def without_vectors(targets):
    return {name: replace(target, subspaces=None) for name, target in targets.items()}


def test_shares_of_the_logits_are_distilled_where_they_have_a_weight(dataset, make_teacher, make_student):
    targets = without_vectors(make_teacher().targets(dataset))
    stage = make_student(targets, share_weight=0.5)
    stage.model.eval()
    batch = dataset.batch([0, 3, len(dataset) - 1])
    loss = stage.loss(batch, stage.options.epochs - 1)
    assert list(loss.parts) == ["task", "prediction", "share"]
    wanted = 0.0
    for name, branch in stage.model(batch.bags).branches.items():
        shares, chosen = torch.stack(list(branch.subspace_logits.values()), 1), targets[name].select(batch.rows)
        wanted += share_distillation(shares, chosen.shares, weight=chosen.present)
    torch.testing.assert_close(loss.parts["share"], wanted)
    total = loss.parts["task"] + stage.options.prediction_weight * loss.parts["prediction"] + 0.5 * wanted
    torch.testing.assert_close(loss.total, total)


def test_missing_shares_are_named_where_they_have_a_weight(dataset, make_teacher, make_student):
    targets = {name: replace(t, subspaces=None, shares=None) for name, t in make_teacher().targets(dataset).items()}
    stage = make_student(targets, share_weight=0.5)
    stage.begin_epoch(stage.first_distilled, dataset)
    with pytest.raises(ValueError, match=r"targets\.shares must be given for share_weight = 0\.5, got None"):
        stage.loss(dataset.batch([0, 3]), stage.options.epochs - 1)


def test_prototypes_are_matched_with_subspaces_by_shares_where_there_are_no_vectors(
    dataset, make_teacher, make_student
):
    targets = without_vectors(make_teacher().targets(dataset))
    stage = make_student(targets, share_weight=1.0)

    def shares():
        stage.model.eval()
        with torch.no_grad():
            branches = [stage.model(batch.bags).branches["20x"] for batch in dataset.batches(8)]
            return torch.cat([torch.stack(list(branch.subspace_logits.values()), 1) for branch in branches])

    before = shares()
    # The teacher has the other order, and constants elsewhere.
    swapped = before.flip(1) + torch.tensor([[5.0], [-5.0]]) + torch.arange(3.0)
    stage.targets = {**stage.targets, "20x": replace(targets["20x"], shares=swapped)}
    stage.begin_epoch(stage.first_distilled, dataset)
    torch.testing.assert_close(shares(), before.flip(1))


def test_prototypes_stay_where_nothing_of_them_is_distilled(dataset, make_teacher, make_student, monkeypatch):
    stage = make_student(without_vectors(make_teacher().targets(dataset)))
    monkeypatch.setattr(stage.model, "reorder", lambda *_: pytest.fail("reordered"))
    stage.begin_epoch(stage.first_distilled, dataset)
    assert list(stage.loss(dataset.batch([0, 1]), stage.options.epochs - 1).parts) == ["task", "prediction"]


def test_patients_without_a_teacher_are_not_distilled(dataset, make_teacher, make_student):
    stage = make_student(make_teacher().targets(dataset))
    stage.model.train()
    loss = stage.loss(dataset.batch(torch.nonzero(~dataset.paired)[:3, 0]), stage.options.epochs - 1)
    assert loss.parts["prediction"] == loss.parts["representation"] == 0
    torch.testing.assert_close(loss.total, loss.parts["task"])


def test_which_prototype_is_which_subspace_is_decided_once_when_distillation_begins(
    dataset, make_teacher, make_student
):
    stage = make_student(make_teacher().targets(dataset))
    first = next(e for e in range(stage.options.epochs) if stage.complete(e))
    assert 0 < first < stage.options.epochs - 1

    def prototypes():
        stage.model.eval()
        with torch.no_grad():
            return torch.cat([stage.model(b.bags).branches["20x"].prototypes for b in dataset.batches(8)])

    before = prototypes()
    targets = stage.targets["20x"]
    swapped = torch.where(targets.present[:, None, None], before.flip(1), 0)  # the teacher has the other order
    stage.targets = {**stage.targets, "20x": replace(targets, subspaces=swapped)}
    for epoch in range(stage.options.epochs):
        stage.begin_epoch(epoch, dataset)
        expected = before if epoch < first else before.flip(1)
        torch.testing.assert_close(prototypes(), expected)


def test_distillation_begins_in_one_epoch_whatever_the_rounding(dataset, make_teacher, make_student, monkeypatch):
    targets = make_teacher().targets(dataset)
    for epochs, warmup in product([1, 3, 7, 10, 19], [0.0, 0.1, 0.1 * 3, 1 / 3, 0.9, 0.999, 1.0]):
        stage = make_student(targets, epochs=epochs, task_warmup=warmup)
        reordered = []
        monkeypatch.setattr(stage.model, "reorder", lambda *_: reordered.append(epoch))  # noqa: B023  (of this round)
        for epoch in range(epochs):
            stage.begin_epoch(epoch, dataset)
        first = next(epoch for epoch in range(epochs) if stage.complete(epoch))
        assert reordered == [first] * len(targets)
        assert first == epochs - 1 or -1e-6 < first - warmup * epochs < 1
        assert stage.complete(epochs - 1)


def test_predictions_of_a_stage_are_those_of_the_gate(dataset, make_teacher, make_student):
    batch = dataset.batch(range(3))
    for stage, inputs in ((make_teacher(), (batch.bags, batch.genes)), (make_student(), (batch.bags,))):
        stage.model.eval()
        assert torch.equal(stage.logits(batch), stage.model(*inputs).logits)


def lacking(batch, row):
    """A batch in which one sample has no tiles at 10x."""
    bags = [select(batch.bags["10x"], i) for i in range(len(batch.rows))]
    bags[row] = Bag.empty(8, placed=True)
    tiles = {**batch.tiles, "10x": torch.arange(len(bags)) != row}
    return batch._replace(bags={**batch.bags, "10x": collate_bags(bags)}, tiles=tiles)


def select(bags, i):
    """One bag of a batch."""
    grid = bags.grid
    return Bag(bags.patches[i : i + 1], Grid(grid.cells[i : i + 1], grid.mask[i : i + 1], grid.shapes[i : i + 1]))


def gradients(stage, batch, name):
    """Gradients of one magnification's parameters."""
    stage.model.zero_grad()
    stage.loss(batch, 2).total.backward()
    return [p.grad.clone() for p in stage.model.branches[name].parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["teacher", "student", "distilled"])
def test_a_sample_teaches_nothing_at_a_magnification_that_it_lacks(dataset, make_teacher, make_student, kind):
    teacher = make_teacher(consistency_weight=0.0)
    targets = teacher.targets(dataset) if kind == "distilled" else None
    stage = teacher if kind == "teacher" else make_student(targets)
    stage.model.eval()
    batch = lacking(dataset.batch(range(4)), 1)
    other = batch._replace(target=torch.where(torch.arange(4) == 1, (batch.target + 1) % 3, batch.target))
    before, after = gradients(stage, batch, "10x"), gradients(stage, other, "10x")
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.isfinite(gradient).all() for gradient in before)
    before, after = gradients(stage, batch, "20x"), gradients(stage, other, "20x")
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_consistency_and_confidence_leave_out_samples_that_lack_a_magnification(dataset, make_teacher):
    stage = make_teacher()
    stage.begin_epoch(0, dataset)
    whole = dataset.batch(range(4))
    lost = stage.loss(lacking(whole, 3), 0)
    assert torch.isfinite(lost.total)
    three = stage.loss(dataset.batch(range(3)), 0)
    torch.testing.assert_close(lost.parts["consistency"], three.parts["consistency"])
    at_20x = stage.model(whole.bags, whole.genes).branches["20x"].subspace_logits
    fourth = stage.task.confidence({name: values[3:] for name, values in at_20x.items()}, whole.target[3:])
    for name, value in fourth.items():
        torch.testing.assert_close(lost.confidence[name], three.confidence[name] + value)
