"""Every layer in one compiled graph, and the student as an exported program."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disentangled_mil import (
    DMSF,
    ITA,
    Bag,
    ContinuousPositionBias,
    DeformableCrossAttention,
    GeneSelection,
    Grid,
    MagnificationGate,
    PatchEncoder,
    SNNEncoder,
    Student,
    SubspaceHead,
    Teacher,
    inter_magnification_consistency,
)

NAMES = ("tumor", "tme")
SMALL: dict[str, Any] = {"heads": 4, "dim_head": 4, "groups": 2, "downsample": 2}
COORDS = torch.stack([torch.arange(36) * 5 % 9, torch.arange(36) // 4], dim=-1).expand(2, -1, -1)
GRIDS = {
    "full": Grid.square([36, 36]),
    "unequal": Grid.square([36, 20]),
    "holes": Grid.from_coords(COORDS, mask=torch.arange(36) < torch.tensor([[36], [25]]), step=1),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def tokens(seed: int = 0, *, count: int = 36, width: int = 16) -> Tensor:
    return torch.randn(2, count, width, generator=torch.Generator().manual_seed(seed))


def leaves(value: object) -> list[Tensor]:
    """All floating-point results; lazy attention by its mass."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [value.mass()] if hasattr(value, "mass") else []


def assert_compiles(module: nn.Module, call: Callable[..., object], *inputs: Any) -> None:
    """One graph with the results and gradients of eager mode."""

    def run(*given: Any) -> list[Tensor]:
        return leaves(call(*given))

    torch._dynamo.reset()
    results = []
    for either in (torch.compile(run, fullgraph=True, backend="aot_eager"), run):
        module.zero_grad()
        found = either(*inputs)
        torch.stack([part.sin().sum() for part in found if part.requires_grad]).sum().backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        results.append([*(part.detach() for part in found), *gradients])
    assert len(results[0]) > 1
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@every_grid
@pytest.mark.parametrize(("backend", "bias"), [("auto", "exact"), ("streaming", "table"), ("reference", "exact")])
def test_deformable_attention_is_one_graph(grid: Grid, bias: str, backend: str) -> None:
    layer = DeformableCrossAttention(16, bias=bias, backend=backend, keep_weights=bias == "table", **SMALL).eval()
    assert_compiles(layer, lambda x, y: layer(x, y, grid), tokens(), tokens(1))


def test_deformable_attention_without_a_grid_is_one_graph() -> None:
    layer = DeformableCrossAttention(16, **SMALL).eval()
    assert_compiles(layer, layer, tokens(), tokens(1))


def test_deformable_attention_compiles_in_training_mode() -> None:
    layer = DeformableCrossAttention(16, dropout=0.5, **SMALL)
    out = torch.compile(lambda x: layer(x, x, GRIDS["holes"]).tokens, fullgraph=True, backend="aot_eager")(tokens())
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_a_mask_alone_needs_a_grid_that_is_built_before() -> None:
    layer, mask = DeformableCrossAttention(16, **SMALL), GRIDS["unequal"].mask
    compiled = torch.compile(lambda x, m: layer(x, x, mask=m).tokens, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="build the grid outside of a compiled region"):
        compiled(tokens(), mask)
    cells, shapes = GRIDS["unequal"].cells, GRIDS["unequal"].shapes
    assert_compiles(layer.eval(), lambda x, c, m: layer(x, x, Grid(c, m, shapes)), tokens(), cells, mask)


@every_grid
@pytest.mark.parametrize("selection_query", ["separate", "fused"])
def test_dmsf_is_one_graph(grid: Grid, selection_query: str) -> None:
    layer = DMSF(16, NAMES, selection_query=selection_query, selection_heads=2, **SMALL).eval()
    genes = {name: tokens(seed, count=3) for seed, name in enumerate(NAMES)}
    assert_compiles(layer, lambda x, g: layer(x, g, grid), tokens(), genes)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (
            SNNEncoder({"tumor": 5, "tme": 7}, 16, gene_tokens=2),
            [{"tumor": tokens(width=5)[:, 0], "tme": tokens(width=7)[:, 0]}],
        ),
        (PatchEncoder(10, 16), [tokens(width=10).half()]),
        (GeneSelection(16, heads=2), [tokens(), tokens(1, count=3), GRIDS["holes"].mask]),
        (SubspaceHead(16, 3, NAMES), [{name: tokens()[:, 0] for name in NAMES}]),
        (ContinuousPositionBias(8, 2), [tokens(width=2)]),
        (MagnificationGate(("10x", "20x"), rule="learned"), [{"10x": tokens()[:, 0], "20x": tokens(1)[:, 0]}]),
        (ITA(16, 2), [tokens(), GRIDS["holes"].mask]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_other_layer_is_one_graph(layer: nn.Module, inputs: list[Any]) -> None:
    assert_compiles(layer.eval(), layer, *inputs)


def models() -> tuple[Student, Teacher, dict[str, Bag], dict[str, Tensor]]:
    torch.manual_seed(0)
    student = Student(10, 3, dim=16, **SMALL).eval()
    teacher = Teacher(10, {"tumor": 5, "tme": 7}, 3, dim=16, selection_heads=2, **SMALL).eval()
    bags = {"10x": Bag(tokens(width=10), GRIDS["holes"]), "20x": Bag(tokens(1, width=10), GRIDS["unequal"])}
    return student, teacher, bags, {"tumor": tokens(width=5)[:, 0], "tme": tokens(width=7)[:, 0]}


def test_student_is_one_graph() -> None:
    student, _, bags, _ = models()
    grids, patches = {name: bag.grid for name, bag in bags.items()}, {name: bag.patches for name, bag in bags.items()}
    assert_compiles(student, lambda x: student({name: Bag(x[name], grids[name]) for name in x}), patches)


def test_teacher_with_its_consistency_loss_is_one_graph() -> None:
    _, teacher, bags, genes = models()

    def call(expression: dict[str, Tensor]) -> object:
        out = teacher(bags, expression)
        low, high = (branch.attention for branch in out.branches.values())
        return out, inter_magnification_consistency(low, high)

    assert_compiles(teacher, call, genes)


class Slides(nn.Module):
    """The student as a function of tensors: what an exported program takes."""

    def __init__(self, student: Student, shapes: dict[str, tuple[tuple[int, int], ...]]) -> None:
        super().__init__()
        self.student, self.shapes = student, shapes

    def forward(self, patches: dict[str, Tensor], cells: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:
        grids = {name: Grid(cells[name], mask[name], shape) for name, shape in self.shapes.items()}
        logits: Tensor = self.student({name: Bag(patches[name], grid) for name, grid in grids.items()}).logits
        return logits


def arguments(bags: dict[str, Bag]) -> tuple[dict[str, Tensor], ...]:
    return (
        {name: bag.patches for name, bag in bags.items()},
        {name: bag.grid.cells for name, bag in bags.items()},
        {name: bag.mask for name, bag in bags.items()},
    )


LOAD = """
import sys, torch, disentangled_mil
program = torch.export.load(sys.argv[1]).module()
arguments, expected = torch.load(sys.argv[2])
torch.testing.assert_close(program(*arguments), expected)
"""


def test_exported_student_predicts_what_the_module_predicts_also_for_other_slides_and_elsewhere(tmp_path) -> None:
    student, _, bags, _ = models()
    slides = Slides(student, {name: bag.grid.shapes for name, bag in bags.items()})
    with torch.no_grad():
        program = torch.export.export(slides, arguments(bags))
        torch.testing.assert_close(program.module()(*arguments(bags)), student(bags).logits)
        # Other tissue on rectangles of the same size.
        other = {}
        for seed, (name, bag) in enumerate(bags.items()):
            cells = bag.grid.cells.flip(1) * bag.grid.mask.flip(1)[..., None]
            grid = Grid(cells, bag.grid.mask.flip(1), bag.grid.shapes)
            other[name] = Bag(tokens(seed + 7, width=10), grid)
        expected = student(other).logits
        assert not torch.allclose(expected, student(bags).logits)
        torch.testing.assert_close(program.module()(*arguments(other)), expected)
    torch.export.save(program, tmp_path / "student.pt2")
    torch.save((arguments(other), expected), tmp_path / "case.pt")
    order = [sys.executable, "-c", LOAD, str(tmp_path / "student.pt2"), str(tmp_path / "case.pt")]
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
