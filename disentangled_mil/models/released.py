"""Reads the method's released checkpoints. Their conventions live here and nowhere else.

A released model lays the gene vector alone on every cell, fuses the subspaces' maps before it selects,
attends to a single gene token, leaves prototypes in the order of their peak scores, measures positions in a
way that is right for full squares only, and gates by the softmax of the logits whatever they mean. Its
outputs have the types of :class:`~disentangled_mil.Teacher` and :class:`~disentangled_mil.Student`.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._checks import check_floating, check_names, check_shape, check_subspaces
from ..bags import Bag
from ..nn.deformable import DeformableCrossAttention
from ..nn.dmsf import DeformableOptions
from ..nn.gene_encoder import SNNEncoder
from ..nn.head import SubspaceHead
from ..nn.ita import ITA
from ..nn.patch_encoder import PatchEncoder
from .student import StudentBranchOutput, StudentOutput
from .teacher import TeacherBranchOutput, TeacherOutput

if TYPE_CHECKING:
    from typing_extensions import Unpack

SUBSPACES = ("tumor", "tme")
# Not stored, and only felt in training.
_GENE_DROPOUT = 0.25
_RELEASED_POSITIONS: DeformableOptions = {"positions": "released", "offset_scale": 4.0}


def load_released(path: "str | PathLike[str]") -> "ReleasedTeacher | ReleasedStudent":
    """Read a released checkpoint, teacher or student, from a file of ``torch.save``.

    Only tensors are unpickled, onto the CPU; the ``module.`` that parallel wrappers put before every name is
    dropped.

    Args:
        path: a file that holds one mapping of parameter names to tensors.

    Returns:
        What :func:`released_teacher` or :func:`released_student` makes of it.

    Raises:
        TypeError: the file holds something else.
        ValueError: the parameters are neither a released teacher's nor a released student's.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True)
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


def released_teacher(state_dict: Mapping[str, Tensor]) -> "ReleasedTeacher":
    """The teacher whose parameters these are, in evaluation mode, on the CPU, in the default floating type.

    All sizes and the magnifications are read from the names and shapes. Accepted and left out, because no
    prediction needs them: ``classifier``, ``output_range`` and ``output_shift`` of the ``omic_net_*``.

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


def released_student(state_dict: Mapping[str, Tensor]) -> "ReleasedStudent":
    """The student whose parameters these are, in evaluation mode, on the CPU, in the default floating type.

    All sizes and the magnifications are read from the names and shapes. Accepted and left out, because no
    prediction needs them: ``student*_net.norm.*``, ``student*_net.pooler1.*``.

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


class ReleasedTeacher(nn.Module):
    """The released teacher; see :func:`released_teacher`.

    Args:
        features: width of the stored patch features.
        genes: number of genes of the two subspaces, "tumor" and "tme".
        outputs: number of logits K.
        dim: token width C.
        magnifications: names, from coarse to fine.
        hidden: widths of the gene encoders' hidden layers.
        **options: heads, dim_head, groups, downsample, kernel_size, dropout and backend of
            :class:`~disentangled_mil.DeformableCrossAttention`.

    Shape:
        ``bags`` {magnification: Bag of B}, ``genes`` {subspace: [B, G]}.

    Raises:
        ValueError: names or shapes disagree, or a bag does not fill a square row by row.

    Source: the released implementation, as facts in its golden numbers.
    Differs from the source: nothing that shows in a prediction.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.bags import Grid
        >>> from disentangled_mil.models.released import ReleasedTeacher
        >>> teacher = ReleasedTeacher(64, {"tumor": 5, "tme": 7}, 4, dim=32, heads=4, groups=4, dim_head=8)
        >>> bag = Bag(torch.randn(2, 64, 64), Grid.square([64, 64]))
        >>> out = teacher({"10x": bag, "20x": bag}, {"tumor": torch.randn(2, 5), "tme": torch.randn(2, 7)})
        >>> out.logits.shape, out.branches["10x"].features["tme"].shape
        (torch.Size([2, 4]), torch.Size([2, 32]))
    """

    def __init__(
        self,
        features: int,
        genes: Mapping[str, int],
        outputs: int,
        *,
        dim: int = 128,
        magnifications: Sequence[str] = ("10x", "20x"),
        hidden: Sequence[int] = (64, 48, 32),
        **options: "Unpack[DeformableOptions]",
    ) -> None:
        super().__init__()
        check_names("genes", genes, SUBSPACES)
        self.magnifications = check_subspaces(magnifications, "magnifications")
        self.genes = SNNEncoder(
            {name: genes[name] for name in SUBSPACES},
            dim,
            hidden=hidden,
            dropout=_GENE_DROPOUT,
            activation="elu",
        )
        self.branches = nn.ModuleDict(
            {name: ReleasedTeacherBranch(features, outputs, dim, **options) for name in self.magnifications}
        )

    def forward(self, bags: Mapping[str, Bag], genes: Mapping[str, Tensor]) -> TeacherOutput:
        """Predict from bags at every magnification and genes."""
        _check_squares(bags, self.magnifications)
        tokens = self.genes(genes)
        branches = {name: self.branches[name](bags[name], tokens) for name in self.magnifications}
        logits, gate = _gate([branch.logits for branch in branches.values()])
        return TeacherOutput(logits, branches, gate)

    def subspace_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The classifier blocks of each subspace over all magnifications, for CGC."""
        return {
            subspace: [self.get_parameter(f"branches.{m}.head.blocks.{subspace}") for m in self.magnifications]
            for subspace in SUBSPACES
        }


class ReleasedTeacherBranch(nn.Module):
    """One magnification of the released teacher.

    Args:
        features: width of the stored patch features.
        outputs: number of logits K.
        dim: token width C.
        **options: of :class:`~disentangled_mil.DeformableCrossAttention`.
    """

    def __init__(self, features: int, outputs: int, dim: int, **options: "Unpack[DeformableOptions]") -> None:
        super().__init__()
        options.update(_RELEASED_POSITIONS)
        self.patches = PatchEncoder(features, dim)
        self.norm_maps = nn.LayerNorm(dim)
        self.attend = nn.ModuleDict({name: DeformableCrossAttention(dim, **options) for name in SUBSPACES})
        self.fuse = nn.Linear(len(SUBSPACES) * dim, dim)
        self.select = nn.ModuleDict({name: ReleasedSelection(dim) for name in SUBSPACES})
        self.norm_features = nn.LayerNorm(dim)
        self.pool = nn.ModuleDict({name: nn.Linear(dim, dim) for name in SUBSPACES})
        self.head = SubspaceHead(dim, outputs, SUBSPACES)

    def forward(self, bag: Bag, genes: Mapping[str, Tensor]) -> TeacherBranchOutput:
        """Predict from a bag and one encoded gene token per subspace [B, 1, C]."""
        patches = self.patches(bag.patches)
        context = self.norm_maps(patches)
        maps, attention = [], {}
        for name in SUBSPACES:
            gene_map = genes[name].expand_as(patches)
            attended = self.attend[name](self.norm_maps(gene_map), context, bag.grid)
            maps.append(gene_map + attended.tokens)
            attention[name] = attended.attention
        fused = self.norm_maps(self.fuse(torch.cat(maps, dim=-1)))
        features = {}
        for name in SUBSPACES:
            selected = self.select[name](fused, self.norm_maps(genes[name]))
            features[name] = torch.tanh(self.pool[name](self.norm_features(selected)))
        head = self.head(features)
        return TeacherBranchOutput(head.logits, head.subspace_logits, features, attention)


class ReleasedSelection(nn.Module):
    """Attention from a map to gene tokens, then one vector: one LayerNorm for all three places.

    ::

        x = q + MHA(LN(q), LN(genes));  selected = tanh(Linear(mean over positions of LN(x)))

    Args:
        dim: token width C.
        heads: attention heads; not stored, and without effect where there is one gene token.

    Shape:
        ``query`` [B, N, C], ``genes`` [B, T, C] -> [B, C].
    """

    def __init__(self, dim: int, *, heads: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.pool = nn.Linear(dim, dim)

    def forward(self, query: Tensor, genes: Tensor) -> Tensor:
        """Select at every position, and pool."""
        key = self.norm(genes)
        selected, _ = self.attention(self.norm(query), key, key, need_weights=False)
        return torch.tanh(self.pool(self.norm(query + selected).mean(1)))


class ReleasedStudent(nn.Module):
    """The released student; see :func:`released_student`.

    Args:
        features: width of the stored patch features.
        outputs: number of logits K.
        dim: token width C.
        magnifications: names, from coarse to fine.
        **options: heads, dim_head, groups, downsample, kernel_size, dropout and backend of
            :class:`~disentangled_mil.DeformableCrossAttention`.

    Shape:
        ``bags`` {magnification: Bag of B}.

    Raises:
        ValueError: names or shapes disagree, or a bag does not fill a square row by row.

    Source: the released implementation, as facts in its golden numbers.
    Differs from the source: two prototypes for any number of patches (theirs: a share of the 2,500 patches);
    deterministic clusters where scores tie. As in the source the first prototype, called "tumor", is merely
    the one with the larger peak score.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.bags import Grid
        >>> from disentangled_mil.models.released import ReleasedStudent
        >>> student = ReleasedStudent(64, 4, dim=32, heads=4, groups=4, dim_head=8)
        >>> bag = Bag(torch.randn(2, 64, 64), Grid.square([64, 64]))
        >>> out = student({"10x": bag, "20x": bag})
        >>> out.logits.shape, out.branches["10x"].prototypes.shape
        (torch.Size([2, 4]), torch.Size([2, 2, 32]))
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        dim: int = 128,
        magnifications: Sequence[str] = ("10x", "20x"),
        **options: "Unpack[DeformableOptions]",
    ) -> None:
        super().__init__()
        self.magnifications = check_subspaces(magnifications, "magnifications")
        self.branches = nn.ModuleDict(
            {name: ReleasedStudentBranch(features, outputs, dim, **options) for name in self.magnifications}
        )

    def forward(self, bags: Mapping[str, Bag]) -> StudentOutput:
        """Predict from bags at every magnification."""
        _check_squares(bags, self.magnifications)
        branches = {name: self.branches[name](bags[name]) for name in self.magnifications}
        logits, gate = _gate([branch.logits for branch in branches.values()])
        return StudentOutput(logits, branches, gate)


class ReleasedStudentBranch(nn.Module):
    """One magnification of the released student.

    Args:
        features: width of the stored patch features.
        outputs: number of logits K.
        dim: token width C.
        **options: of :class:`~disentangled_mil.DeformableCrossAttention`.
    """

    def __init__(self, features: int, outputs: int, dim: int, **options: "Unpack[DeformableOptions]") -> None:
        super().__init__()
        options.update(_RELEASED_POSITIONS)
        self.patches = PatchEncoder(features, dim)
        self.norm = nn.LayerNorm(dim)
        self.attend = DeformableCrossAttention(dim, **options)
        self.aggregate = ITA(dim, len(SUBSPACES), neighbours=5, order="peak")
        self.head = SubspaceHead(dim, outputs, SUBSPACES)

    def forward(self, bag: Bag) -> StudentBranchOutput:
        """Predict from a bag."""
        patches = self.patches(bag.patches)
        normed = self.norm(patches)
        attended = self.attend(normed, normed, bag.grid)
        merged = self.aggregate(patches + attended.tokens)
        head = self.head(dict(zip(SUBSPACES, merged.prototypes.unbind(1), strict=True)))
        return StudentBranchOutput(
            head.logits,
            head.subspace_logits,
            merged.prototypes,
            merged.assignment,
            merged.weights,
            attended.attention,
        )


def _gate(logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Per sample the logits [B, K] of the magnification with the largest softmax, the last of them in a tie.

    Softmax and not its logarithm: two saturated predictions tie here. Also the shares [B, M].
    """
    stacked = torch.stack(list(logits), dim=1)  # [B, M, K]
    confidence = stacked.softmax(-1).amax(-1)  # [B, M]
    chosen = stacked.shape[1] - 1 - confidence.flip(1).argmax(1)
    gate = nn.functional.one_hot(chosen, stacked.shape[1]).to(stacked.dtype)
    return stacked.take_along_dim(chosen[:, None, None], dim=1).squeeze(1), gate


def _check_squares(bags: Mapping[str, Bag], magnifications: Sequence[str]) -> None:
    """Check that every bag fills a square: the released positions mean nothing elsewhere."""
    check_names("bags", bags, magnifications)
    for name in magnifications:
        grid = bags[name].grid
        if not grid.full or grid.width != grid.height:
            raise ValueError(
                f"bags[{name!r}] must fill squares of one size row by row, as the released models know no "
                f"other bags, got {grid.mask.shape[1]} tokens on {grid.width} x {grid.height} cells"
            )


# Released modules (and, for the head, parameters) under our names.
_DEFORMABLE = {
    "to_offsets.depthwise": "to_offsets.0",
    "to_offsets.pointwise": "to_offsets.2",
    "bias.mlp.0": "rel_pos_bias.mlp.0.0",
    "bias.mlp.2": "rel_pos_bias.mlp.1.0",
    "bias.mlp.4": "rel_pos_bias.mlp.2",
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
    """The branches of a stage, of which there must be one."""
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
