"""ITA, DMSF and CGC inside models of torchmil and its trainer."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from disentangled_mil import DMSF, CGCOptimizer, SubspaceHead
from disentangled_mil.bags import mask_from
from tests.packages.bags import DIM, FEATURES, Bags
from tests.packages.page import page

pytest.importorskip("torchmil")
from torchmil.data import collate_fn
from torchmil.models import ABMIL
from torchmil.models.mil_model import MILModel
from torchmil.utils import Trainer

NAMES = ("tumor", "tme")


def loader(seed: int) -> DataLoader:
    return DataLoader(Bags(12, seed), batch_size=4, collate_fn=partial(collate_fn, sparse=False))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, *, epochs: int = 1, validation: int = 1) -> Trainer:
    trainer = Trainer(model, optimizer, device="cpu", disable_pbar=True, verbose=False)
    trainer.train(epochs, loader(0), loader(validation))
    return trainer


def pooled_by_ita() -> ABMIL:
    torch.manual_seed(0)
    model = ABMIL((FEATURES,), att_dim=DIM, feat_ext=nn.Linear(FEATURES, DIM))
    model.pool = page()["PrototypePool"](DIM, 2)
    model.classifier = nn.Linear(2 * DIM, 1)
    return model


def test_abmil_with_prototypes_learns_in_the_trainer():
    model = pooled_by_ita()
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), epochs=15)
    batch = next(iter(loader(2)))
    logits, weights = model.predict(batch["X"], batch["mask"])
    assert ((logits > 0) == (batch["Y"] > 0)).float().mean() >= 0.75
    assert (weights[batch["mask"] == 0] == 0).all()


def test_anchors_do_not_follow_validation_bags_though_the_trainer_validates_in_training_mode():
    model, other = pooled_by_ita(), pooled_by_ita()
    before = model.pool.gather.anchors.clone()
    for each, validation in ((model, 1), (other, 5)):
        train(each, torch.optim.AdamW(each.parameters()), validation=validation)
    assert torch.equal(model.pool.gather.anchors, other.pool.gather.anchors)
    assert not torch.equal(model.pool.gather.anchors, before)


class Fused(MILModel):
    """DMSF over patches and genes, and a head of subspaces; the batch holds genes beside X."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.genes = nn.Linear(FEATURES, DIM), nn.Linear(5, DIM)
        self.fuse = DMSF(DIM, NAMES, heads=2, groups=2, dim_head=4, selection_heads=2, dropout=0.0)
        self.head = SubspaceHead(DIM, 1, NAMES)
        self.optimizer: CGCOptimizer | None = None

    def forward(self, X: Tensor, genes: Tensor, mask: Tensor) -> dict[str, Tensor]:
        tokens = self.genes(genes)
        fused = self.fuse(self.patches(X), dict.fromkeys(NAMES, tokens), mask=mask_from(mask, "real"))
        return self.head.subspace_logits(fused.features)

    def compute_loss(self, Y: Tensor, X: Tensor, genes: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        shares = self(X, genes, mask)
        if self.optimizer is not None:
            sign = 2 * Y[:, None] - 1
            self.optimizer.accumulate({name: (sign * share).sigmoid().sum() for name, share in shares.items()})
        logits = torch.stack(list(shares.values())).sum(0).squeeze(1)
        return logits, {"loss": nn.functional.binary_cross_entropy_with_logits(logits, Y.float())}


def test_dmsf_and_cgc_train_in_the_trainer():
    torch.manual_seed(0)
    model = Fused()
    before = copy.deepcopy(model.state_dict())
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.optimizer = CGCOptimizer(adam, model.head.subspace_parameters())
    train(model, model.optimizer, epochs=2)
    assert set(model.optimizer.report.cosine) == {NAMES}
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("fuse.") for name in moved)
    assert {f"head.blocks.{name}" for name in NAMES} <= set(moved)


def test_confidences_of_validation_do_not_count():
    reports = []
    for validation in (1, 5):
        torch.manual_seed(0)
        model = Fused()
        adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model.optimizer = CGCOptimizer(adam, model.head.subspace_parameters())
        train(model, model.optimizer, epochs=2, validation=validation)
        reports.append(model.optimizer.report.confidence)
    for name in NAMES:
        torch.testing.assert_close(reports[0][name], reports[1][name], rtol=0, atol=0)
