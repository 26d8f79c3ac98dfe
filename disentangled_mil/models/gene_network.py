"""The baseline that sees genes only."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from .._checks import check_subspaces, check_type
from ..nn.gene_encoder import SNNEncoder
from ..nn.head import SubspaceHead


class GeneNetworkOutput(NamedTuple):
    """What :class:`GeneNetwork` returns.

    Attributes:
        logits: [B, K].
        features: mean gene token of each subspace [B, C].
    """

    logits: Tensor
    features: dict[str, Tensor]


class GeneNetwork(nn.Module):
    """Genes -> prediction: :class:`~disentangled_mil.SNNEncoder` and a head over its mean tokens.

    Args:
        genes: number of genes of every subspace, in the order of the subspaces.
        outputs: number of logits K.
        dim: token width C.
        gene_tokens: gene tokens T per subspace.
        dropout: dropout probability of the gene layers.

    Shape:
        {subspace: [B, G]} -> logits [B, K].

    Raises:
        ValueError: names or shapes disagree, or an option is out of range.

    Attributes:
        arguments: constructor arguments, from which a checkpoint builds the model again.

    Source:
        The SNN row of the paper's tables.

    Example:
        >>> import torch
        >>> from disentangled_mil import GeneNetwork
        >>> network = GeneNetwork({"tumor": 59, "tme": 361}, 4)
        >>> network({"tumor": torch.randn(2, 59), "tme": torch.randn(2, 361)}).logits.shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        genes: Mapping[str, int],
        outputs: int,
        *,
        dim: int = 128,
        gene_tokens: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_type("genes", genes, Mapping, "a mapping from names of subspaces to numbers of genes")
        self.arguments: dict[str, Any] = {
            "genes": dict(genes),
            "outputs": outputs,
            "dim": dim,
            "gene_tokens": gene_tokens,
            "dropout": dropout,
        }
        subspaces = check_subspaces(genes, "genes")
        self.genes = SNNEncoder(genes, dim, gene_tokens=gene_tokens, dropout=dropout)
        self.head = SubspaceHead(dim, outputs, subspaces)

    def forward(self, genes: Mapping[str, Tensor]) -> GeneNetworkOutput:
        """Predict from genes.

        Args:
            genes: expression of every subspace.

        Returns:
            Logits and features.
        """
        features = {name: tokens.mean(1) for name, tokens in self.genes(genes).items()}
        return GeneNetworkOutput(self.head(features).logits, features)
