"""Student and CGC in Lightning and Accelerate: the numbers of a loop by hand."""

import pytest
import torch
from torch import Tensor

from disentangled_mil import Bag, CGCOptimizer, Classification, Student, collate_bags
from tests.packages.bags import DIM, FEATURES, Bags

NAMES = ("tumor", "tme")
EPOCHS = 2


def batches() -> list[tuple[Bag, Tensor]]:
    data = Bags(12, 0)
    bags = [Bag.from_slide(bag) for bag in data.bags]
    return [(collate_bags(bags[start : start + 4]), data.labels[start : start + 4]) for start in range(0, 12, 4)]


def student() -> Student:
    torch.manual_seed(0)
    return Student(
        FEATURES, 2, dim=DIM, magnifications=["20x"], subspaces=NAMES, heads=2, groups=2, dim_head=4, dropout=0.0
    )


def optimizer_of(model: Student) -> CGCOptimizer:
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return CGCOptimizer(adam, model.branches["20x"].head.subspace_parameters())


def loss_of(model: Student, optimizer: CGCOptimizer, bag: Bag, labels: Tensor) -> Tensor:
    task = Classification(["low", "high"])
    out = model({"20x": bag})
    optimizer.accumulate(task.confidence(out.branches["20x"].subspace_logits, labels))
    return task.loss(out.logits, labels)


def by_hand() -> Student:
    model = student()
    optimizer = optimizer_of(model)
    for _ in range(EPOCHS):
        for bag, labels in batches():
            optimizer.zero_grad()
            loss_of(model, optimizer, bag, labels).backward()
            optimizer.step()
    return model


def assert_equal(model: Student, expected: Student) -> None:
    start = student().state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_lightning_trains_as_a_loop_by_hand(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = student()

        def configure_optimizers(self) -> CGCOptimizer:
            return optimizer_of(self.model)

        def training_step(self, batch: tuple[Bag, Tensor], number: int) -> Tensor:
            return loss_of(self.model, self.optimizers().optimizer, *batch)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches(), batch_size=None))
    assert_equal(module.model, by_hand())


def test_accelerate_trains_as_a_loop_by_hand():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = student()
    inner = optimizer_of(model)
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    model, optimizer, loader = accelerator.prepare(model, inner, loader)
    for _ in range(EPOCHS):
        for bag, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(loss_of(model, inner, bag, labels))
            optimizer.step()
    assert_equal(accelerator.unwrap_model(model), by_hand())
