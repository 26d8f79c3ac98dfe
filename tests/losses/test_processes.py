"""Losses that couple samples see the samples of all processes."""

from pathlib import Path

import pytest
import torch.distributed as dist

from tests.support.processes import run_two

PROCESS = """
from disentangled_mil import DeformableCrossAttention, Grid
from disentangled_mil.losses import batch_similarity_consistency, inter_magnification_consistency

alone = [dist.new_group([0]), dist.new_group([1])][rank]


def agrees(loss_of, bags, first, tolerance, share=None):
    # Losses and averaged gradients of two processes equal those of the joined batch in one.
    torch.manual_seed(1)
    scale = torch.ones(2, dtype=bags.dtype, requires_grad=True)
    joined = loss_of(bags * scale[0] + scale[1] ** 2, slice(None), alone)
    joined.backward()
    expected, scale.grad = scale.grad, None
    rows = slice(0, first) if rank == 0 else slice(first, None)
    loss = loss_of(bags[rows] * scale[0] + scale[1] ** 2, rows, None)
    ((1 if share is None else share) * loss).backward()
    dist.all_reduce(scale.grad)
    torch.testing.assert_close(loss, joined, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(scale.grad / 2, expected, rtol=10 * tolerance, atol=tolerance)
    assert expected.abs().max() > 1e-7


for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
    maps = torch.rand(3, 2, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    other = maps.flip(0).square()
    present = torch.tensor([True, False, True])
    for options in ({}, {"normalize": "none", "alignment": 0.5}):
        for first in (1, 2):
            agrees(
                lambda x, rows, group: inter_magnification_consistency(x, other[rows], process_group=group, **options),
                maps, first, tolerance,
            )
    agrees(
        lambda x, rows, group: inter_magnification_consistency(
            x, other[rows], present=present[rows], process_group=group
        ),
        maps, 2, tolerance,
    )
    agrees(
        lambda x, rows, group: inter_magnification_consistency(x, other[:2][rows], process_group=group),
        maps[:2], 1, tolerance,
    )
    # Weights by the number of samples, of the mean 1.
    agrees(
        lambda x, rows, group: inter_magnification_consistency(x, other[rows], process_group=group),
        maps, 2, tolerance, share=(4 / 3, 2 / 3)[rank],
    )
    agrees(
        lambda x, rows, group: batch_similarity_consistency(x, other[rows], process_group=group), maps, 1, tolerance
    )
    # Layers' maps of unequal bags, one or two a process: a full square beside another shape.
    layers = [DeformableCrossAttention(8, heads=2, dim_head=4, groups=2, bias="exact").to(dtype) for _ in range(2)]
    for layer in layers:
        for parameter in layer.parameters():
            dist.broadcast(parameter.data, 0)
    mask = torch.arange(30) < torch.tensor([[25], [30], [20]])
    tokens = torch.randn(3, 30, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def of_layers(x, rows, group):
        grid = Grid.from_mask(mask[rows])
        low, high = (layer(x, x, grid).attention for layer in layers)
        return inter_magnification_consistency({"tumor": low}, {"tumor": high}, process_group=group)

    for first in (1, 2):
        agrees(of_layers, tokens, first, tolerance)

    def of_full_bags(x, rows, group):
        # Alone, the first process would compare its full bag entry by entry.
        grid = Grid.square([25] if len(x) == 1 else [25, 24])
        x = x[:, :25]
        low, high = (layer(x, x, grid).attention for layer in layers)
        return inter_magnification_consistency(low, high, process_group=group)

    if rank == 0:
        loss = of_full_bags(tokens[:1], None, None)
    else:
        loss = of_full_bags(tokens[1:], None, None)
    both = [torch.empty_like(loss) for _ in range(2)]
    dist.all_gather(both, loss.detach())
    assert torch.equal(*both) and both[0] > 0

try:
    inter_magnification_consistency(maps[:, :, :, : 4 + rank], maps[:, :, :, : 4 + rank])
    raise AssertionError("maps of two sizes were accepted")
except ValueError as error:
    assert "must have maps of one size in all processes" in str(error)
"""


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_equal_the_joined_batch(tmp_path: Path) -> None:
    run_two(PROCESS, tmp_path)
