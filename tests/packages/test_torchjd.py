"""TorchJD for the shared parameters of two losses, beside CGC for the blocks of the head."""

import pytest
import torch
from torch import nn

from disentangled_mil import ITA, CGCOptimizer, SubspaceHead
from tests.packages.bags import DIM, FEATURES, Bags

pytest.importorskip("torchjd")
from torchjd.aggregation import UPGrad
from torchjd.autojac import jac_to_grad, mtl_backward

NAMES = ("tumor", "tme")


def losses_of(shared: nn.Module, gather: ITA, heads: nn.ModuleList) -> tuple[list, torch.Tensor, list]:
    data = Bags(4, 0)
    tokens = nn.utils.rnn.pad_sequence(data.bags, batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(bag) for bag in data.bags])[:, None]
    prototypes = gather(shared(tokens), mask).prototypes
    parts = dict(zip(NAMES, prototypes.unbind(1), strict=True))
    outs = [head(parts) for head in heads]
    losses = [nn.functional.cross_entropy(out.logits, labels) for out, labels in zip(outs, targets(data), strict=True)]
    return losses, prototypes, outs


def targets(data: Bags) -> tuple[torch.Tensor, torch.Tensor]:
    return data.labels, 1 - data.labels  # Two tasks that conflict.


def test_torchjd_settles_tasks_in_shared_layers_and_cgc_subspaces_in_the_head():
    torch.manual_seed(0)
    shared, gather = nn.Linear(FEATURES, DIM), ITA(DIM, 2)
    heads = nn.ModuleList(SubspaceHead(DIM, 2, NAMES) for _ in range(2))
    common = [*shared.parameters(), *gather.parameters()]
    blocks = {name: [head.blocks[name] for head in heads] for name in NAMES}
    optimizer = CGCOptimizer(torch.optim.AdamW([*common, *heads.parameters()]), blocks)
    losses, prototypes, outs = losses_of(shared, gather, heads)

    mtl_backward(losses, features=prototypes)
    jac_to_grad(common, UPGrad())
    optimizer.step(confidence={name: sum(out.subspace_logits[name].sum() for out in outs) for name in NAMES})

    assert all(parameter.grad is not None for parameter in [*common, *heads.parameters()])
    found = torch.cat([parameter.grad.flatten() for parameter in common])
    for loss in losses_of_again(shared, gather, heads, common):
        assert loss @ found >= -1e-6  # The common step does not raise either loss.
    assert set(optimizer.report.cosine) == {NAMES}


def losses_of_again(shared, gather, heads, common):
    """The gradient of every loss at the weights before the step, by plain PyTorch."""
    torch.manual_seed(0)
    shared, gather = nn.Linear(FEATURES, DIM), ITA(DIM, 2)
    heads = nn.ModuleList(SubspaceHead(DIM, 2, NAMES) for _ in range(2))
    own = [*shared.parameters(), *gather.parameters()]
    for loss in losses_of(shared, gather, heads)[0]:
        yield torch.cat([part.flatten() for part in torch.autograd.grad(loss, own, retain_graph=True)])
