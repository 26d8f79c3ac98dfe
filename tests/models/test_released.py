"""Released checkpoints: their numbers, their sizes, their gate, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disentangled_mil.bags import Bag, Grid
from disentangled_mil.models.released import (
    ReleasedStudent,
    ReleasedTeacher,
    load_released,
    released_student,
    released_teacher,
)
from disentangled_mil.models.student import StudentOutput
from disentangled_mil.models.teacher import TeacherOutput
from disentangled_mil.nn import CellCenters
from disentangled_mil.nn.deformable import DeformableCrossAttention
from disentangled_mil.ops.hazards import log_survival, risk
from tests.support.golden import load_golden

Case = dict[str, Tensor]
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def teacher_case() -> Case:
    return load_golden("teacher_two_magnifications")


@pytest.fixture
def student_case() -> Case:
    return load_golden("student_two_magnifications")


def parameters(case: Case) -> Case:
    return {name.removeprefix("param/"): value for name, value in case.items() if name.startswith("param/")}


def bags(case: Case) -> dict[str, Bag]:
    return {name: Bag(case[f"patches_{name}"], Grid.square([144] * 3)) for name in ("10x", "20x")}


def genes(case: Case) -> dict[str, Tensor]:
    return {"tumor": case["genes_tumor"], "tme": case["genes_immune"]}


def student_state(dim: int, heads: int, dim_head: int, groups: int, downsample: int, magnification: int) -> Case:
    """Random parameters of a one-magnification student of the given sizes under released names."""
    inner, kernel, hidden = heads * dim_head, downsample + 2, dim // 4
    shapes = {
        "_fc1.0": (dim, 6),
        "encoder.norm": (dim,),
        "encoder.attn2d.to_offsets.0": (inner // groups, 1, kernel, kernel),
        "encoder.attn2d.to_offsets.2": (2, inner // groups, 1, 1),
        "encoder.attn2d.rel_pos_bias.mlp.0.0": (hidden, 2),
        "encoder.attn2d.rel_pos_bias.mlp.1.0": (hidden, hidden),
        "encoder.attn2d.rel_pos_bias.mlp.2": (heads // groups, hidden),
        "encoder.attn2d.to_q": (inner, dim // groups, 1, 1),
        "encoder.attn2d.to_k": (inner, dim // groups, 1, 1),
        "encoder.attn2d.to_v": (inner, dim // groups, 1, 1),
        "encoder.attn2d.to_out": (dim, inner, 1, 1),
        "encoder.cluster_merge.norm": (dim,),
        "encoder.cluster_merge.score": (1, dim),
        "classifier": (3, 2 * dim),
    }
    without_bias = {"to_q", "to_k", "to_v", "to_offsets.2"}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        state[f"student{magnification}_net.{name}.weight"] = torch.randn(shape, generator=generator)
        if name.removeprefix("encoder.attn2d.") not in without_bias:
            state[f"student{magnification}_net.{name}.bias"] = torch.randn(shape[0], generator=generator)
    return state


def assert_prediction(out: TeacherOutput | StudentOutput, case: Case, suffix: str) -> None:
    logits = {f"{suffix}10": out.branches["10x"].logits, f"{suffix}20": out.branches["20x"].logits}
    for name, ours in (logits | {f"{suffix}s": out.logits}).items():
        torch.testing.assert_close(ours, case[f"logits/logits_{name}"], **CLOSE)
        torch.testing.assert_close(ours.sigmoid(), case[f"hazards/hazards_{name}"], **CLOSE)
        torch.testing.assert_close(log_survival(ours).exp(), case[f"survival/S_{name}"], **CLOSE)
        torch.testing.assert_close(risk(ours), case[f"risk/risk_{name}"], **CLOSE)


def assert_gradients(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_released_teacher_is_met(teacher_case: Case) -> None:
    model = released_teacher(parameters(teacher_case))
    assert not model.training
    out = model(bags(teacher_case), genes(teacher_case))
    for i in (10, 20):
        features = out.branches[f"{i}x"].features
        torch.testing.assert_close(features["tumor"], teacher_case[f"feature/feature1_tea{i}"], **CLOSE)
        torch.testing.assert_close(features["tme"], teacher_case[f"feature/feature2_tea{i}"], **CLOSE)
        branch = out.branches[f"{i}x"]
        torch.testing.assert_close(sum(branch.subspace_logits.values()), branch.logits)
    assert_prediction(out, teacher_case, "tea")


@torch.no_grad()
def test_released_student_is_met(student_case: Case) -> None:
    out = released_student(parameters(student_case))(bags(student_case))
    for i in (10, 20):
        prototypes = out.branches[f"{i}x"].prototypes.flatten(1)
        torch.testing.assert_close(prototypes, student_case[f"feature/feature_stu{i}"], **CLOSE)
    assert_prediction(out, student_case, "stu")


def test_every_parameter_of_a_teacher_in_training_has_a_gradient() -> None:
    model = ReleasedTeacher(6, {"tumor": 3, "tme": 4}, 2, dim=16, heads=2, groups=2, dim_head=4).train()
    bag = Bag(torch.randn(3, 64, 6), Grid.square([64] * 3))
    out = model({"10x": bag, "20x": bag}, {"tumor": torch.randn(3, 3), "tme": torch.randn(3, 4)})
    sum(branch.logits.square().sum() for branch in out.branches.values()).backward()
    assert_gradients(model)
    assert model.branches["20x"].attend["tme"].to_offsets.pointwise.weight.grad.abs().sum() > 0
    assert model.genes.networks["tme"][0][0].weight.grad.abs().sum() > 0


def test_every_parameter_of_a_student_in_training_has_a_gradient() -> None:
    model = ReleasedStudent(6, 2, dim=16, heads=2, groups=2, dim_head=4).train()
    bag = Bag(torch.randn(3, 64, 6), Grid.square([64] * 3))
    out = model({"10x": bag, "20x": bag})
    sum(branch.logits.square().sum() for branch in out.branches.values()).backward()
    assert_gradients(model)
    assert model.branches["10x"].attend.to_offsets.pointwise.weight.grad.abs().sum() > 0


def test_subspace_parameters_are_the_halves_of_the_classifiers(teacher_case: Case) -> None:
    state = parameters(teacher_case)
    blocks = released_teacher(state).subspace_parameters()
    for i, name in enumerate(("teacher10_net", "teacher20_net")):
        halves = state[f"{name}.classifier.weight"].split(128, dim=1)
        assert blocks["tumor"][i].equal(halves[0])
        assert blocks["tme"][i].equal(halves[1])


@pytest.mark.parametrize(
    ("coarse", "fine", "chosen"),
    [
        ([3.0, 0.0], [0.0, 2.0], 0),
        ([0.0, 2.0], [3.0, 0.0], 1),
        ([0.0, 0.0], [0.0, 0.0], 1),
        ([900.0, 0.0], [0.0, 50.0], 1),
    ],
    ids=["coarse is more confident", "fine is more confident", "tie", "both saturated"],
)
@torch.no_grad()
def test_the_gate_takes_the_more_confident_magnification_and_the_fine_one_in_a_tie(
    coarse: list[float], fine: list[float], chosen: int
) -> None:
    model = ReleasedStudent(6, 2, dim=16, heads=2, groups=2, dim_head=4)
    for branch, logits in zip(model.branches.values(), (coarse, fine), strict=True):
        for block in branch.head.blocks.values():
            block.zero_()
        branch.head.bias.copy_(torch.tensor(logits))
    bag = Bag(torch.randn(2, 64, 6), Grid.square([64, 64]))
    out = model({"10x": bag, "20x": bag})
    assert out.gate.argmax(1).tolist() == [chosen, chosen]
    assert out.gate.sum(1).tolist() == [1, 1]
    assert out.logits.tolist() == [(coarse, fine)[chosen]] * 2


def test_sizes_and_magnifications_are_read_from_the_parameters() -> None:
    state = student_state(dim=24, heads=6, dim_head=5, groups=3, downsample=2, magnification=5)
    model = released_student(state)
    layer = model.branches["5x"].attend
    assert model.magnifications == ("5x",)
    assert (layer.dim, layer.heads, layer.dim_head, layer.groups) == (24, 6, 5, 3)
    assert (layer.downsample, layer.kernel_size) == (2, 4)
    bag = Bag(torch.randn(1, 36, 6), Grid.square(36))
    assert model({"5x": bag}).logits.shape == (1, 3)


@torch.no_grad()
def test_one_magnification_alone_predicts_as_it_does_beside_another(teacher_case: Case) -> None:
    state = {k: v for k, v in parameters(teacher_case).items() if not k.startswith("teacher10_net")}
    model = released_teacher(state)
    out = model({"20x": bags(teacher_case)["20x"]}, genes(teacher_case))
    torch.testing.assert_close(out.logits, teacher_case["logits/logits_tea20"], **CLOSE)
    assert out.gate.tolist() == [[1.0]] * 3


def test_unused_parameters_may_be_absent(teacher_case: Case, student_case: Case) -> None:
    unused = ("output_range", "output_shift", "omic_net_tumor.classifier", "student10_net.norm", "pooler1")
    student = parameters(student_case)
    released_student({k: v for k, v in student.items() if not any(part in k for part in unused)})
    teacher = parameters(teacher_case)
    released_teacher({k: v for k, v in teacher.items() if not any(part in k for part in unused[:3])})


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_tells_teacher_from_student(teacher_case: Case, student_case: Case, tmp_path: Path, prefix: str) -> None:
    for case, expected in ((teacher_case, ReleasedTeacher), (student_case, ReleasedStudent)):
        state = parameters(case)
        torch.save({f"{prefix}{name}": value for name, value in state.items()}, tmp_path / "model.pt")
        model = load_released(tmp_path / "model.pt")
        assert isinstance(model, expected)
        stage = "teacher" if expected is ReleasedTeacher else "student"
        stored = state[f"{stage}20_net._fc1.0.weight"]
        assert model.branches["20x"].patches.project[0].weight.equal(stored)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save([torch.zeros(1)], path)
    with pytest.raises(TypeError, match="path must lead to a mapping of parameter names to tensors, got list"):
        load_released(path)
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"path must lead to a released teacher .*, got 'epoch', 'state_dict'"):
        load_released(path)
    torch.save({"teacher10_net.x": torch.zeros(1), "student10_net.x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"path must lead to .*, got teacher and student"):
        load_released(path)


def test_other_stages_are_refused(teacher_case: Case, student_case: Case) -> None:
    with pytest.raises(ValueError, match=r"must hold parameters teacher<magnification>_net\.\*, got 'student10_"):
        released_teacher(parameters(student_case))
    with pytest.raises(ValueError, match=r"must hold parameters student<magnification>_net\.\*, got 'omic_net_"):
        released_student(parameters(teacher_case))
    with pytest.raises(ValueError, match=r"must hold parameters student<magnification>_net\.\*, got none"):
        released_student({})


def test_missing_unknown_and_misshapen_parameters_are_named() -> None:
    state = student_state(dim=16, heads=2, dim_head=4, groups=2, downsample=4, magnification=10)
    name = "student10_net.encoder.attn2d.to_out.weight"
    with pytest.raises(ValueError, match=rf"every parameter of the released model, missing '{name}'$"):
        released_student({k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match=r"must hold 'student10_net._fc1.0.weight', which is missing"):
        released_student({k: v for k, v in state.items() if "_fc1" not in k})
    with pytest.raises(ValueError, match=r"no other parameters than the released model's, got 'extra'$"):
        released_student(state | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"got 'extra0', .*, 'extra4' and 2 more$"):
        released_student(state | {f"extra{i}": torch.zeros(1) for i in range(7)})
    for shape in ((16, 9, 1, 1), (16, 8, 3, 1), (16, 8, 1, 1, 1, 2)):
        with pytest.raises(ValueError, match=rf"state_dict\['{name}'\] must have shape \[16, 8, 1, 1"):
            released_student(state | {name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=rf"state_dict\['{name}'\] must have shape \[16, 8\], got \[16\]"):
        released_student(state | {name: torch.zeros(16)})
    with pytest.raises(TypeError, match=rf"state_dict\['{name}'\] must be a floating-point tensor, got torch.int64"):
        released_student(state | {name: torch.zeros(16, 8, 1, 1, dtype=torch.int64)})
    query = "student10_net.encoder.attn2d.to_q.weight"
    for shape in ((8, 0, 1, 1), (8, 17, 1, 1), (8, 5, 1, 1), (7, 8, 1, 1)):
        with pytest.raises(ValueError, match=rf"state_dict\['{query}'\] must have .* C = 16 and H/G = 1, got"):
            released_student(state | {query: torch.zeros(shape)})
    head = "student10_net.classifier.weight"
    with pytest.raises(ValueError, match=rf"state_dict\['{head}'\] must have shape \[3, 32\], got \[3, 48\]"):
        released_student(state | {head: torch.zeros(3, 48)})


@pytest.mark.parametrize(
    "grid",
    [
        Grid.square(35),
        Grid.square([36, 25]),
        Grid.square([36, 35]),
        Grid.from_coords(torch.cartesian_prod(torch.arange(4), torch.arange(9)).flip(1)),
        Grid.from_coords(torch.cartesian_prod(torch.arange(6), torch.arange(6))),
    ],
    ids=["hole", "unequal bags", "padding", "rectangle", "column by column"],
)
def test_bags_that_fill_no_square_are_refused(grid: Grid) -> None:
    model = released_student(student_state(16, 2, 4, 2, downsample=4, magnification=10))
    with pytest.raises(ValueError, match=r"bags\['10x'\] must fill squares of one size .*, got 3[56] tokens on"):
        model({"10x": Bag(torch.zeros(*grid.mask.shape, 6), grid)})


def test_wrong_names_are_refused() -> None:
    bag = Bag(torch.zeros(1, 36, 6), Grid.square(36))
    teacher = ReleasedTeacher(6, {"tumor": 3, "tme": 4}, 2, dim=16, heads=2, groups=2, dim_head=4)
    with pytest.raises(ValueError, match=r"bags must have exactly the names \['10x', '20x'\], got \['10x'\]"):
        teacher({"10x": bag}, {"tumor": torch.zeros(1, 3), "tme": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match=r"genes must have exactly the names \['tme', 'tumor'\]"):
        ReleasedTeacher(6, {"tumor": 3, "immune": 4}, 2)


@pytest.mark.parametrize("downsample", [2, 3, 4])
def test_offsets_reach_as_far_as_the_cells_of_the_coarse_grid_are_wide(downsample: int) -> None:
    sizes = {"dim": 8, "heads": 2, "groups": 2, "dim_head": 4, "downsample": downsample}
    for model in (ReleasedStudent(6, 3, **sizes), ReleasedTeacher(6, {"tumor": 2, "tme": 2}, 3, **sizes)):
        layers = [layer for layer in model.modules() if isinstance(layer, DeformableCrossAttention)]
        assert {layer.offset_scale for layer in layers} == {downsample}
    given = ReleasedStudent(6, 3, **sizes, offset_scale=1.5)
    assert given.get_submodule("branches.10x").attend.offset_scale == 1.5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"positions": CellCenters()}, r"positions must be ReleasedPositions\(\) in a released model, got CellCenters"),
        ({"bias": "table"}, "bias must be 'exact' in a released model, got 'table'"),
    ],
)
def test_other_conventions_than_the_released_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ReleasedStudent(6, 3, dim=8, heads=2, groups=2, dim_head=4, **option)


def test_bags_without_coordinates_are_refused() -> None:
    model = released_student(student_state(16, 2, 4, 2, downsample=4, magnification=10))
    with pytest.raises(ValueError, match=r"bags\['10x'\] must fill squares of one size row by row \(Grid.square\)"):
        model({"10x": Bag(torch.zeros(1, 36, 6))})
    with pytest.raises(ValueError, match=r"ReleasedPositions\(\) needs grids .* \(Grid.square\), got a set"):
        model.branches["10x"].attend(torch.zeros(1, 36, 16), torch.zeros(1, 36, 16))
