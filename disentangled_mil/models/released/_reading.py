"""From a released state dict to the model that it belongs to."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from ..._checks import as_path, check_floating, check_mapping, check_shape
from ..._errors import reads_file
from ...nn.dmsf import DeformableOptions
from ._modules import ReleasedStudent, ReleasedTeacher


@reads_file
def load_released(path: str | PathLike[str]) -> ReleasedTeacher | ReleasedStudent:
    """Read a released checkpoint, teacher or student, from a file of ``torch.save``.

    Only tensors are unpickled, onto the CPU. The prefix ``module.`` of parallel wrappers is dropped.

    Args:
        path: file that holds one mapping of parameter names to tensors.

    Returns:
        The model, as from :func:`released_teacher` or :func:`released_student`.

    Raises:
        TypeError: the file holds something else.
        ValueError: the parameters are neither a released teacher's nor a released student's.
    """
    path = as_path("path", path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # unpicklers raise anything
        reason = str(error).partition("\n")[0]
        raise ValueError(f"path must lead to a file that torch.load(weights_only=True) reads: {reason}") from error
    if not isinstance(stored, Mapping) or not all(isinstance(name, str) for name in stored):
        raise TypeError(f"path must lead to a mapping of parameter names to tensors, got {type(stored).__name__}")
    state_dict = {name.removeprefix("module."): value for name, value in stored.items()}
    stages = [stage for stage in ("teacher", "student") if _magnifications(state_dict, stage)]
    if len(stages) != 1:
        raise ValueError(
            "path must lead to a released teacher (teacher<magnification>_net.*) or student "
            f"(student<magnification>_net.*), got {' and '.join(stages) or _some(state_dict)}"
        )
    return released_teacher(state_dict) if stages == ["teacher"] else released_student(state_dict)


def released_teacher(state_dict: Mapping[str, Tensor]) -> ReleasedTeacher:
    """Make a teacher of released parameters, in evaluation mode, on the CPU, in the default floating type.

    All sizes and the magnifications are read from the names and shapes. The parameters ``classifier``,
    ``output_range`` and ``output_shift`` of the ``omic_net_*`` are left out, because no prediction needs them.

    Args:
        state_dict: parameters under their released names.

    Returns:
        The module, with the released "immune" under the name "tme".

    Raises:
        TypeError: a value is no floating-point tensor.
        ValueError: a parameter is missing, unknown, or of another shape.

    Example:
        >>> import torch
        >>> from disentangled_mil.models.released import released_teacher
        >>> released_teacher({"teacher10_net.classifier.weight": torch.zeros(4, 256)})
        Traceback (most recent call last):
        ValueError: state_dict must hold 'teacher10_net._fc1.0.weight', which is missing
    """
    check_mapping("state_dict", state_dict)
    branches = _branches(state_dict, "teacher")
    first = next(iter(branches.values()))
    dim, features = _sizes(state_dict, f"{first}._fc1.0.weight", "C features")
    layers = len([name for name in state_dict if re.fullmatch(r"omic_net_tumor\.encoder\.\d+\.0\.weight", name)])
    widths = [_sizes(state_dict, f"omic_net_tumor.encoder.{i}.0.weight", "out in")[0] for i in range(layers)]
    model = ReleasedTeacher(
        features,
        {
            name: _sizes(state_dict, f"{network}.encoder.0.0.weight", "out G")[1]
            for name, network in _GENE_NETWORKS.items()
        },
        _sizes(state_dict, f"{first}.classifier.weight", "K 2C")[0],
        dim=dim,
        magnifications=tuple(branches),
        hidden=widths[:-1],
        **_deformable_options(state_dict, f"{first}.encoder.attn2d_omic1", dim),
    )
    names = {
        f"genes.networks.{name}.{i}.0": f"{network}.encoder.{i}.0"
        for name, network in _GENE_NETWORKS.items()
        for i in range(layers)
    }
    for magnification, branch in branches.items():
        names |= _under(f"branches.{magnification}", branch, _TEACHER_BRANCH)
    ignored = [f"{network}.{part}" for network in _GENE_NETWORKS.values() for part in _UNUSED_IN_GENE_NETWORK]
    _fill(model, state_dict, names, ignored)
    return model.eval()


def released_student(state_dict: Mapping[str, Tensor]) -> ReleasedStudent:
    """Make a student of released parameters, in evaluation mode, on the CPU, in the default floating type.

    All sizes and the magnifications are read from the names and shapes. The parameters ``student*_net.norm.*`` and
    ``student*_net.pooler1.*`` are left out, because no prediction needs them.

    Args:
        state_dict: parameters under their released names.

    Returns:
        The module.

    Raises:
        TypeError: a value is no floating-point tensor.
        ValueError: a parameter is missing, unknown, or of another shape.

    Example:
        >>> import torch
        >>> from disentangled_mil.models.released import released_student
        >>> released_student({"fc.weight": torch.zeros(4, 256)})
        Traceback (most recent call last):
        ValueError: state_dict must hold parameters student<magnification>_net.*, got 'fc.weight'
    """
    check_mapping("state_dict", state_dict)
    branches = _branches(state_dict, "student")
    first = next(iter(branches.values()))
    dim, features = _sizes(state_dict, f"{first}._fc1.0.weight", "C features")
    model = ReleasedStudent(
        features,
        _sizes(state_dict, f"{first}.classifier.weight", "K 2C")[0],
        dim=dim,
        magnifications=tuple(branches),
        **_deformable_options(state_dict, f"{first}.encoder.attn2d", dim),
    )
    names: dict[str, str] = {}
    for magnification, branch in branches.items():
        names |= _under(f"branches.{magnification}", branch, _STUDENT_BRANCH)
    ignored = [f"{branch}.{part}" for branch in branches.values() for part in _UNUSED_IN_STUDENT]
    _fill(model, state_dict, names, ignored)
    return model.eval()


# These tables lead from our names of modules to the released ones; for the head, they name parameters.
_DEFORMABLE = {
    "to_offsets.depthwise": "to_offsets.0",
    "to_offsets.pointwise": "to_offsets.2",
    "position_bias.mlp.0": "rel_pos_bias.mlp.0.0",
    "position_bias.mlp.2": "rel_pos_bias.mlp.1.0",
    "position_bias.mlp.4": "rel_pos_bias.mlp.2",
    "to_q": "to_q",
    "to_k": "to_k",
    "to_v": "to_v",
    "to_out": "to_out",
}
_SELECTION = {
    "norm": "norm",
    "attention": "multihead_attn",
    "attention.out_proj": "multihead_attn.out_proj",
    "pool": "pooler.dense",
}
_HEAD = {"blocks.tumor": "weight", "blocks.tme": "weight", "bias": "bias"}


def _under(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    """The names one level down."""
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in names.items()}


_TEACHER_BRANCH = {
    "patches.project.0": "_fc1.0",
    "norm_maps": "encoder.norm",
    **_under("attend.tumor", "encoder.attn2d_omic1", _DEFORMABLE),
    **_under("attend.tme", "encoder.attn2d_omic2", _DEFORMABLE),
    "fuse": "encoder.fusion_layer.fusion_layer",
    **_under("select.tumor", "encoder.transfusion_layer1", _SELECTION),
    **_under("select.tme", "encoder.transfusion_layer2", _SELECTION),
    "norm_features": "norm",
    "pool.tumor": "pooler1.dense",
    "pool.tme": "pooler2.dense",
    **_under("head", "classifier", _HEAD),
}
_STUDENT_BRANCH = {
    "patches.project.0": "_fc1.0",
    "norm": "encoder.norm",
    **_under("attend", "encoder.attn2d", _DEFORMABLE),
    "aggregate.norm": "encoder.cluster_merge.norm",
    "aggregate.significance": "encoder.cluster_merge.score",
    **_under("head", "classifier", _HEAD),
}
_GENE_NETWORKS = {"tumor": "omic_net_tumor", "tme": "omic_net_immune"}
_UNUSED_IN_GENE_NETWORK = ("classifier.0.weight", "classifier.0.bias", "output_range", "output_shift")
_UNUSED_IN_STUDENT = ("norm.weight", "norm.bias", "pooler1.dense.weight", "pooler1.dense.bias")


def _magnifications(names: Iterable[str], stage: str) -> dict[str, str]:
    """{"10x": "teacher10_net", ...} for the branches of a stage, from coarse to fine."""
    found = {int(m[1]) for name in names if (m := re.match(rf"{stage}(\d+)_net\.", name))}
    return {f"{number}x": f"{stage}{number}_net" for number in sorted(found)}


def _branches(state: Mapping[str, Tensor], stage: str) -> dict[str, str]:
    """The branches of a stage; at least one must be there."""
    branches = _magnifications(state, stage)
    if not branches:
        raise ValueError(f"state_dict must hold parameters {stage}<magnification>_net.*, got {_some(state)}")
    return branches


def _sizes(state: Mapping[str, Tensor], name: str, spec: str) -> list[int]:
    """The shape of a parameter that must be there, checked against ``spec``."""
    if name not in state:
        raise ValueError(f"state_dict must hold {name!r}, which is missing")
    check_shape(f"state_dict[{name!r}]", state[name], spec)
    return list(state[name].shape)


def _deformable_options(state: Mapping[str, Tensor], layer: str, dim: int) -> DeformableOptions:
    """The sizes of a deformable layer."""
    inner, per_group = _sizes(state, f"{layer}.to_q.weight", "HD C/G 1 1")[:2]
    kernel = _sizes(state, f"{layer}.to_offsets.0.weight", "HD/G 1 R R")[2]
    heads_per_group = _sizes(state, f"{layer}.rel_pos_bias.mlp.2.weight", "H/G hidden")[0]
    groups = dim // max(1, per_group)
    heads = groups * heads_per_group
    if groups * per_group != dim or not heads or inner % heads:
        raise ValueError(
            f"state_dict['{layer}.to_q.weight'] must have shape [HD, C/G, 1, 1] with C = {dim} and "
            f"H/G = {heads_per_group}, got {[inner, per_group, 1, 1]}"
        )
    # The windows of the offset network overlap by one cell on each side.
    return {
        "heads": heads,
        "dim_head": inner // heads,
        "groups": groups,
        "downsample": kernel - 2,
        "kernel_size": kernel,
    }


def _fill(model: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], ignored: Collection[str]) -> None:
    """Copy released parameters into a module; ``names`` leads from our modules and parameters to theirs."""
    own = dict(model.named_parameters())
    targets: dict[str, list[nn.Parameter]] = {}
    for ours, theirs in names.items():
        if ours in own:
            targets.setdefault(theirs, []).append(own[ours])
        else:
            leaves = model.get_submodule(ours).named_parameters(recurse=False)
            targets |= {f"{theirs}.{leaf}": [parameter] for leaf, parameter in leaves}
    if missing := targets.keys() - state.keys():
        raise ValueError(f"state_dict must hold every parameter of the released model, missing {_some(missing)}")
    if unknown := state.keys() - targets.keys() - set(ignored):
        raise ValueError(f"state_dict must hold no other parameters than the released model's, got {_some(unknown)}")
    for theirs, parameters in targets.items():
        _copy(f"state_dict[{theirs!r}]", state[theirs], parameters)


@torch.no_grad()
def _copy(name: str, stored: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Cut a stored parameter along its last axis into ours; a 1x1 convolution may stand for a linear map."""
    whole = torch.cat(list(parameters), dim=-1)
    ones = [1] * (stored.ndim - whole.ndim)
    check_shape(name, stored, " ".join(str(size) for size in [*whole.shape, *ones]))
    check_floating(name, stored)
    for parameter, part in zip(parameters, stored.reshape(whole.shape).chunk(len(parameters), dim=-1), strict=True):
        parameter.copy_(part)


def _some(names: Iterable[str], limit: int = 5) -> str:
    """A few names, for a message."""
    ordered = sorted(names)
    listed = ", ".join(map(repr, ordered[:limit])) or "none"
    return listed if len(ordered) <= limit else f"{listed} and {len(ordered) - limit} more"
