"""Distillation of shares: what is arbitrary about them costs nothing, and the rest is compared."""

import pytest
import torch

from disentangled_mil import DistillationTargets, SubspaceDistillation, SubspaceHead
from disentangled_mil.losses import balance_shares, share_distillation
from tests.support.distillation import LINKS, normal, teacher

ALL_LINKS = [*LINKS, "identity"]


@pytest.mark.parametrize("link", ALL_LINKS)
def test_loss_is_the_mean_square_of_differences_of_shares_centered_for_classes(link, generator):
    student, wanted = normal(generator, 5, 2, 4), normal(generator, 5, 2, 4)
    difference = student - wanted
    if link == "softmax":
        difference = difference - difference.mean(2, keepdim=True)
    torch.testing.assert_close(share_distillation(student, wanted, link=link), difference.square().mean())


def test_a_constant_over_classes_costs_nothing_for_classes_alone(generator):
    shares, constants = normal(generator, 5, 2, 4), normal(generator, 5, 2, 1)
    assert share_distillation(shares + constants, shares) < 1e-12
    assert share_distillation(shares + constants, shares, link="hazards") > 0.1


def test_gradient_reaches_the_student_alone(generator):
    student, wanted = normal(generator, 3, 2, 4).requires_grad_(), normal(generator, 3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda shares: share_distillation(shares, wanted.detach()), student)
    share_distillation(student, wanted).backward()
    assert wanted.grad is None


def test_samples_without_a_teacher_take_no_part_in_the_share_loss(generator):
    student, wanted = normal(generator, 3, 2, 4), normal(generator, 3, 2, 4)
    present = torch.tensor([True, False, True])
    poisoned = wanted.masked_fill(~present[:, None, None], torch.nan)
    alone = share_distillation(student[present], wanted[present])
    torch.testing.assert_close(share_distillation(student, poisoned, weight=present), alone)
    assert share_distillation(student, poisoned, weight=torch.zeros(3)) == 0


def test_balanced_shares_keep_the_logits_and_forget_where_constants_were(generator):
    shares = normal(generator, 6, 3, 4)
    moved = normal(generator, 3, 4)
    moved = moved - moved.mean(0)  # constants that go from one subspace to another
    balanced = balance_shares(shares)
    torch.testing.assert_close(balanced.sum(1), shares.sum(1))
    torch.testing.assert_close(balanced, balance_shares(shares + moved))
    torch.testing.assert_close(balanced.mean(0), balanced.mean((0, 1)).expand(3, 4))


def test_shares_are_balanced_on_some_rows_by_one_constant_for_all(generator):
    shares = normal(generator, 6, 2, 4)
    rows = torch.tensor([0, 1, 4])
    balanced = balance_shares(shares, rows)
    torch.testing.assert_close(balanced[rows], balance_shares(shares[rows]))
    difference = balanced - shares
    torch.testing.assert_close(difference, difference[:1].expand_as(difference))


def test_module_adds_the_weighted_shares_of_a_head(generator):
    head = SubspaceHead(5, 4).double()
    vectors = {name: normal(generator, 3, 5) for name in ("tumor", "tme")}
    targets = teacher(generator)
    wanted = {name: normal(generator, 3, 4) for name in ("tumor", "tme")}
    targets = DistillationTargets.from_teacher(targets.logits, shares=wanted)
    out = head(vectors)
    shares = torch.stack(list(out.subspace_logits.values()), 1)
    loss = SubspaceDistillation(share_weight=0.5)(out.logits, torch.stack(list(vectors.values()), 1), targets, shares)
    torch.testing.assert_close(loss.share, share_distillation(shares, torch.stack(list(wanted.values()), 1)))
    torch.testing.assert_close(loss.total, 0.01 * loss.prediction + 0.5 * loss.share)
    assert loss.representation == 0
    assert loss.permutation is None


def test_shares_that_have_a_weight_must_be_given(generator):
    targets, shares = teacher(generator), normal(generator, 3, 2, 4)
    distill = SubspaceDistillation(share_weight=1.0)
    with pytest.raises(ValueError, match=r"^student_shares must be given for share_weight = 1\.0, got None$"):
        distill(targets.logits, targets.subspaces, targets)
    with pytest.raises(ValueError, match=r"^targets\.shares must be given for share_weight = 1\.0, got None$"):
        distill(targets.logits, targets.subspaces, targets, shares)


def test_shares_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"teacher_shares must have shape \[B, S, K\] = \[3, 2, 4\], got \[3, 2, 5\]"):
        share_distillation(torch.zeros(3, 2, 4), torch.zeros(3, 2, 5))
    with pytest.raises(ValueError, match=r"link must be one of .*, got 'cosine'"):
        share_distillation(torch.zeros(3, 2, 4), torch.zeros(3, 2, 4), link="cosine")
    with pytest.raises(ValueError, match=r"shares\['tme'\] must have shape \[B, K\] = \[2, 4\], got \[2, 3\]"):
        DistillationTargets.from_teacher(
            torch.zeros(2, 4), shares={"tumor": torch.zeros(2, 4), "tme": torch.zeros(2, 3)}
        )


def test_selection_and_storage_keep_shares(tmp_path, generator):
    shares = {name: normal(generator, 3, 4) for name in ("tumor", "tme")}
    targets = DistillationTargets.from_teacher(normal(generator, 3, 4), shares=shares)
    assert targets.subspaces is None
    chosen = targets.select(torch.tensor([2, 0])).to("cpu")
    assert torch.equal(chosen.shares[0], targets.shares[2])
    torch.save(targets, tmp_path / "targets.pt")
    loaded = torch.load(tmp_path / "targets.pt", weights_only=True)
    assert torch.equal(loaded.shares, targets.shares)
    assert loaded.subspaces is None
