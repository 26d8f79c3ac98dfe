"""Every layer in one compiled graph, and the student as an exported program."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten, treespec_dumps, treespec_loads

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
    collate_bags,
    inter_magnification_consistency,
)
from tests.support.trees import results

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


def assert_compiles(module: nn.Module, call: Callable[..., object], *inputs: Any, backend: str = "aot_eager") -> None:
    """One graph with the results and gradients of eager mode."""

    def run(*given: Any) -> list[Tensor]:
        return results(call(*given))

    torch._dynamo.reset()
    compared = []
    for either in (torch.compile(run, fullgraph=True, backend=backend), run):
        module.zero_grad()
        found = either(*inputs)
        torch.stack([part.sin().sum() for part in found if part.requires_grad]).sum().backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        compared.append([*(part.detach() for part in found), *gradients])
    assert len(compared[0]) > 1
    torch.testing.assert_close(*compared, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "backend", "bias"),
    [
        ("full", "auto", "exact"),
        ("unequal", "auto", "exact"),
        ("holes", "auto", "exact"),
        ("holes", "streaming", "table"),
        ("unequal", "reference", "exact"),
    ],
)
def test_deformable_attention_is_one_graph(grid: str, backend: str, bias: str) -> None:
    layer = DeformableCrossAttention(16, bias=bias, backend=backend, keep_weights=bias == "table", **SMALL).eval()
    assert_compiles(layer, lambda x, y: layer(x, y, GRIDS[grid]), tokens(), tokens(1))


@pytest.mark.parametrize("most", [10, 36], ids=["some tokens are keys", "all tokens are keys"])
def test_deformable_attention_in_sets_is_one_graph(most: int) -> None:
    layer = DeformableCrossAttention(16, max_keys=most, **SMALL).eval()
    assert_compiles(layer, layer, tokens(), tokens(1))


@pytest.mark.parametrize("grid", GRIDS)
def test_deformable_attention_with_a_cap_on_keys_is_one_graph(grid: str) -> None:
    layer = DeformableCrossAttention(16, max_keys=3, **SMALL).eval()
    assert_compiles(layer, lambda x, y: layer(x, y, GRIDS[grid]), tokens(), tokens(1))


def test_deformable_attention_compiles_in_training_mode() -> None:
    layer = DeformableCrossAttention(16, dropout=0.5, **SMALL)
    out = torch.compile(lambda x: layer(x, x, GRIDS["holes"]).tokens, fullgraph=True, backend="aot_eager")(tokens())
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_a_grid_is_built_before_and_a_set_anywhere() -> None:
    layer, mask = DeformableCrossAttention(16, **SMALL).eval(), GRIDS["unequal"].mask
    compiled = torch.compile(lambda x, m: layer(x, x, Grid.from_mask(m)).tokens, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="build the grid outside of a compiled region"):
        compiled(tokens(), mask)
    cells, shapes = GRIDS["unequal"].cells, GRIDS["unequal"].shapes
    assert_compiles(layer, lambda x, c, m: layer(x, x, Grid(c, m, shapes)), tokens(), cells, mask)
    assert_compiles(layer, lambda x, m: layer(x, x, mask=m), tokens(), mask)


@pytest.mark.parametrize(("selection_query", "grid"), [("separate", GRIDS["holes"]), ("fused", None)])
def test_dmsf_is_one_graph(selection_query: str, grid: Grid | None) -> None:
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


def test_teacher_with_its_consistency_loss_is_one_graph() -> None:
    torch.manual_seed(0)
    teacher = Teacher(10, {"tumor": 5}, 3, dim=16, selection_heads=2, **SMALL).eval()
    bags = {"10x": Bag(tokens(width=10), GRIDS["holes"]), "20x": Bag(tokens(1, width=10), GRIDS["unequal"])}

    def call(expression: dict[str, Tensor]) -> object:
        out = teacher(bags, expression)
        low, high = (branch.attention for branch in out.branches.values())
        return out, inter_magnification_consistency(low, high)

    assert_compiles(teacher, call, {"tumor": tokens(width=5)[:, 0]})


class Logits(nn.Module):
    """What is exported: a module whose output is tensors."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, bags: dict[str, Bag]) -> Tensor:
        logits: Tensor = self.student(bags).logits
        return logits


def slides(seed: int, count: int) -> dict[str, Bag]:
    """Two bags on rectangles of 6 x 7 and 5 x 7 cells, with holes and other tissue for every seed."""
    source = torch.Generator().manual_seed(seed)
    bags = []
    for tissue, width in ((count, 6), (count - 5, 5)):
        cells = torch.cat([torch.tensor([0, 7 * width - 1]), torch.randperm(7 * width - 2, generator=source)[2:] + 1])
        coords = torch.stack([cells[:tissue] % width, cells[:tissue] // width], dim=-1)
        bags.append(Bag.from_slide(torch.randn(tissue, 10, generator=source), coords, step=1))
    return {"20x": collate_bags(bags)}


@pytest.mark.parametrize("most", [8, 100], ids=["some tokens are keys", "all tokens are keys"])
def test_exported_student_predicts_other_sets_of_other_length_as_the_module_does(most: int) -> None:
    torch.manual_seed(0)
    student = Student(10, 3, dim=16, magnifications=("20x",), max_keys=most, **SMALL).eval()
    made_for, other = ({"20x": Bag(tokens(seed, count=count, width=10))} for seed, count in ((0, 20), (1, 27)))
    patches = torch.export.Dim("patches", min=9, max=99)
    dynamic = torch.export.ShapesCollection()
    for tensor in (made_for["20x"].patches, made_for["20x"].mask):
        dynamic[tensor] = {1: patches}
    with torch.no_grad():
        program = torch.export.export(Logits(student), (made_for,), dynamic_shapes=dynamic)
        for bags in (made_for, other):
            torch.testing.assert_close(program.module()(bags), student(bags).logits)


LOAD = """
import sys, torch, disentangled_mil
program = torch.export.load(sys.argv[1]).module()
bags, expected = torch.load(sys.argv[2])
torch.testing.assert_close(program(bags), expected)
"""


@pytest.mark.parametrize("cap", [1000, 3])
def test_exported_student_predicts_other_slides_of_other_length_and_elsewhere_as_the_module_does(cap, tmp_path) -> None:
    torch.manual_seed(0)
    student = Student(10, 3, dim=16, magnifications=("20x",), max_keys=cap, **SMALL).eval()
    made_for, other = slides(0, 20), slides(1, 27)
    patches = torch.export.Dim("patches", min=2, max=10_000)
    dynamic = torch.export.ShapesCollection()
    for bag in made_for.values():
        for tensor in (bag.patches, bag.grid.cells, bag.mask):
            dynamic[tensor] = {1: patches}
    with torch.no_grad():
        program = torch.export.export(Logits(student), (made_for,), dynamic_shapes=dynamic)
        expected = student(other).logits
        assert not torch.allclose(expected, student(made_for).logits)
        for bags in (made_for, other):
            torch.testing.assert_close(program.module()(bags), student(bags).logits)
    with pytest.raises(ValueError, match="Grid"):
        program.module()({"20x": Bag(tokens(width=10), GRIDS["full"])})
    torch.export.save(program, tmp_path / "student.pt2")
    torch.save((other, expected), tmp_path / "case.pt")
    order = [sys.executable, "-W", "error", "-c", LOAD, str(tmp_path / "student.pt2"), str(tmp_path / "case.pt")]
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.parametrize(("cap", "count"), [(1000, 2), (16, 3)], ids=["below the cap", "on both sides of it"])
def test_many_slides_of_any_shape_need_two_graphs_and_one_more_above_the_cap(cap: int, count: int) -> None:
    layer = DeformableCrossAttention(16, max_keys=cap, **SMALL).eval()
    graphs = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    rectangles = [(6, 7), (7, 8), (9, 9), (10, 7), (6, 6), (8, 12), (4, 9), (15, 5), (3, 2)]
    for size, (width, height) in enumerate(rectangles, 20):
        coords = torch.stack([torch.arange(size) * 5 % width, torch.arange(size) % height], dim=-1)
        grid = Grid.from_coords(coords.expand(2, -1, -1), step=1)
        patches = tokens(size, count=size)
        torch.testing.assert_close(compiled(patches, patches, grid).tokens, layer(patches, patches, grid).tokens)
    assert graphs.frame_count == count


@pytest.mark.parametrize("training", [False, True])
def test_a_step_of_the_student_is_one_graph(training: bool) -> None:
    bags, compared = slides(0, 20), []
    for compiling in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        student = Student(10, 3, dim=16, magnifications=("20x",), dropout=0, **SMALL).train(training)
        run = torch.compile(student, fullgraph=True, backend="aot_eager") if compiling else student
        logits = run(bags).logits
        logits.square().sum().backward()
        gradients = [p.grad for p in student.parameters() if p.grad is not None]
        compared.append([logits.detach(), *gradients, *student.buffers()])  # training moves the anchors
    torch.testing.assert_close(*compared, rtol=1e-4, atol=1e-5)


def test_a_step_of_the_teacher_in_training_mode_is_one_graph() -> None:
    teacher = Teacher(10, {"tumor": 5}, 3, dim=16, magnifications=("20x",), selection_heads=2, **SMALL)
    out = torch.compile(teacher, fullgraph=True, backend="aot_eager")(slides(0, 20), {"tumor": tokens(width=5)[:, 0]})
    out.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in teacher.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_generated_code_computes_what_eager_mode_computes() -> None:
    layer = DeformableCrossAttention(16, **SMALL).eval()
    call = lambda x: layer(x, x, GRIDS["holes"])  # noqa: E731
    assert_compiles(layer, call, tokens(), backend="inductor")


@pytest.mark.parametrize(
    "build",
    [
        lambda cells, mask: Grid(cells, mask, ((6, 6), (6, 6))),
        lambda cells, mask: Grid.from_mask(mask),
        lambda cells, mask: Grid.from_coords(cells, mask=mask),
    ],
)
def test_a_grid_that_depends_on_values_is_refused_in_a_compiled_region(build: Callable[..., Grid]) -> None:
    compiled = torch.compile(lambda *tensors: build(*tensors).count, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="build the grid outside of a compiled region"):
        compiled(GRIDS["full"].cells, GRIDS["full"].mask)


def test_a_grid_that_is_told_whether_it_is_full_can_be_built_in_a_compiled_region() -> None:
    full = GRIDS["full"]
    compiled = torch.compile(lambda c, m: Grid(c, m, full.shapes, full=True), fullgraph=True, backend="aot_eager")
    grid = compiled(full.cells, full.mask)
    assert grid.full
    assert torch.equal(grid.count, full.count)
    assert torch.equal(grid.nearest, full.nearest)


@every_grid
def test_bags_are_trees_of_tensors(grid: Grid) -> None:
    bag = Bag(tokens(), grid)
    parts, tree = tree_flatten(bag)
    assert all(isinstance(part, Tensor) for part in parts)
    moved = tree_unflatten([part.to("meta") for part in parts], tree)
    assert {part.device.type for part in tree_leaves(moved)} == {"meta"}
    assert (moved.grid.shapes, moved.grid.full) == (grid.shapes, grid.full)
    assert treespec_loads(treespec_dumps(tree)) == tree
