"""Layers: modules with parameters of their own."""

from torch.serialization import add_safe_globals

from ..ops import AttentionOutput, BiasTable, MLPBias
from .attention import DeformableAttention
from .deformable import DeformableCrossAttention, DeformableOutput
from .dmsf import DMSF, DeformableOptions, DMSFOutput
from .gate import GateOutput, MagnificationGate
from .gene_encoder import SNNEncoder
from .head import HeadOutput, SubspaceHead
from .ita import ITA, ITAOutput
from .patch_encoder import PatchEncoder
from .position_bias import ContinuousPositionBias
from .positions import CellCenters, Place, Positions
from .reference_points import ReferencePoints
from .selection import GeneSelection, SelectionOutput
from .set_attention import SetAttention

__all__ = [
    "DMSF",
    "ITA",
    "CellCenters",
    "ContinuousPositionBias",
    "DMSFOutput",
    "DeformableAttention",
    "DeformableCrossAttention",
    "DeformableOptions",
    "DeformableOutput",
    "GateOutput",
    "GeneSelection",
    "HeadOutput",
    "ITAOutput",
    "MagnificationGate",
    "PatchEncoder",
    "Place",
    "Positions",
    "ReferencePoints",
    "SNNEncoder",
    "SelectionOutput",
    "SetAttention",
    "SubspaceHead",
]

# Outputs can be loaded by ``torch.load(weights_only=True)``, its default, which runs no code of the file.
add_safe_globals([DMSFOutput, DeformableOutput, GateOutput, HeadOutput, ITAOutput, SelectionOutput, ReferencePoints])
add_safe_globals([AttentionOutput, BiasTable, CellCenters, MLPBias])
