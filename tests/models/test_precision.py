"""Low precision: gradients under autocast, what it changes in a trained teacher, and float16 without autocast."""

import pytest
import torch
from torch import Tensor

from benchmarks.precision import error
from disentangled_mil import Bag, CGCOptimizer, Classification, Teacher, inter_magnification_consistency

SIZES = {"dim": 16, "heads": 2, "groups": 2, "dim_head": 8, "dropout": 0.0, "gene_dropout": 0.0}
GENES = {"tumor": 6, "tme": 9}
COORDS = torch.cartesian_prod(torch.arange(6), torch.arange(6))
TASK = Classification(["a", "b"])


def inputs(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Bag], dict[str, Tensor], Tensor]:
    """Bags and genes that tell the class of twelve patients."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(12) % 2
    patches = torch.randn(12, 36, 8, generator=generator) + 0.3 * target[:, None, None]
    bag = Bag(patches.to(dtype), Bag.from_slide(patches[0], COORDS).grid.expand(12))
    genes = {name: (torch.randn(12, n, generator=generator) + target[:, None]).to(dtype) for name, n in GENES.items()}
    return {"10x": bag, "20x": bag}, genes, target


def trained(seed: int, dtype: torch.dtype | None) -> Tensor:
    """Probabilities of a teacher after some steps under autocast of a type, or in float32."""
    torch.manual_seed(seed)
    teacher = Teacher(8, GENES, 2, **SIZES)
    optimizer = CGCOptimizer(torch.optim.AdamW(teacher.parameters(), lr=2e-3), teacher.subspace_parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16, init_scale=1024.0)
    bags, genes, target = inputs()
    for _ in range(12):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            output = teacher(bags, genes)
            first, second = output.branches.values()
            loss = TASK.loss(output.logits.float(), target)
            loss = loss + inter_magnification_consistency(first.attention, second.attention)
            optimizer.accumulate(TASK.confidence(first.subspace_logits, target))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    with torch.no_grad():
        return teacher(bags, genes).logits.softmax(1)


@pytest.mark.parametrize("loss", ["task", "consistency"])
def test_float16_keeps_several_times_more_of_a_gradient_than_bfloat16(loss: str) -> None:
    errors = {
        dtype: torch.tensor([error(loss, seed, dtype, full=True) for seed in range(2)]).median()
        for dtype in (torch.bfloat16, torch.float16)
    }
    assert 0 < errors[torch.float16] < 0.06
    assert 3 * errors[torch.float16] < errors[torch.bfloat16] < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_a_trained_teacher_less_than_its_seed_does(dtype: torch.dtype) -> None:
    exact = [trained(seed, None) for seed in range(2)]
    by_seed = (exact[0] - exact[1]).abs().mean()
    by_type = torch.stack([(trained(seed, dtype) - exact[seed]).abs().mean() for seed in range(2)]).mean()
    assert 0 < by_type < by_seed


def test_float16_weights_need_a_larger_eps_of_adam() -> None:
    bags, genes, target = inputs(torch.float16)
    finite = {}
    for eps in (1e-8, 1e-4):
        torch.manual_seed(0)
        teacher = Teacher(8, GENES, 2, **SIZES).half()
        optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-3, eps=eps)
        for _ in range(2):
            TASK.loss(teacher(bags, genes).logits, target).backward()
            optimizer.step()
        finite[eps] = all(bool(p.isfinite().all()) for p in teacher.parameters())
    assert finite == {1e-8: False, 1e-4: True}
