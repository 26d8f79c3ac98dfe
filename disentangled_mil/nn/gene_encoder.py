"""The gene encoder: one self-normalizing network per subspace turns expression into gene tokens."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .._checks import (
    check_choice,
    check_count,
    check_counts,
    check_floating,
    check_interval,
    check_mapping,
    check_names,
    check_shape,
    check_subspaces,
)
from .._precision import weight_dtype


class SNNEncoder(nn.Module):
    r"""Encode the genes of every subspace into tokens, each with a self-normalizing network of its own.

    .. math:: h_0 = x_s, \quad h_l = \mathrm{AlphaDropout}(\phi(W_l h_{l-1} + b_l)), \quad
        [t_1; \dots; t_T] = h_L

    Here :math:`\phi` is SELU, weights are drawn from N(0, 1 / fan-in) (LeCun normal), and biases start at zero. Genes
    with mean 0 and variance 1 then keep about this mean and variance through any depth, in training and in evaluation.
    Alpha dropout keeps these moments for SELU, but not for other activations.

    Args:
        genes: number of genes of each named subspace, e.g. ``{"tumor": 59, "tme": 361}``.
        dim: width C of a gene token.
        hidden: widths of the hidden layers.
        gene_tokens: number of tokens T per subspace. With one token, attention over the tokens selects nothing.
        dropout: probability of alpha dropout after every layer.
        activation: activation, ``"selu"``, or ``"elu"`` for the released variant with a ReLU on the result.

    Shape:
        {subspace: [B, G]} -> {subspace: [B, T, C]}, with G the number of genes of the subspace. Values of another
        floating-point type are converted to the type of the weights.

    Returns:
        The tokens per subspace, in the order of the constructor.

    Raises:
        ValueError: an option is out of range, or a subspace is missing, unknown or of another size.
        TypeError: an option has another type, or expression is no mapping of floating-point tensors.

    Source:
        The gene encoder of the paper; Klambauer et al., *Self-Normalizing Neural Networks*, NeurIPS 2017.

    Differs from the source:
        The released encoder uses ELU, for which neither the initialization nor alpha dropout normalizes. It clips its
        single token by a ReLU. ``activation="elu"`` reproduces it.

    Example:
        >>> import torch
        >>> from disentangled_mil import SNNEncoder
        >>> encode = SNNEncoder({"tumor": 59, "tme": 361}, 128, gene_tokens=4)
        >>> tokens = encode({"tumor": torch.randn(2, 59), "tme": torch.randn(2, 361)})
        >>> {subspace: tuple(t.shape) for subspace, t in tokens.items()}
        {'tumor': (2, 4, 128), 'tme': (2, 4, 128)}
    """

    def __init__(
        self,
        genes: Mapping[str, int],
        dim: int = 128,
        *,
        hidden: Sequence[int] = (64, 48, 32),
        gene_tokens: int = 1,
        dropout: float = 0.1,
        activation: str = "selu",
    ) -> None:
        super().__init__()
        check_mapping("genes", genes)
        for subspace in check_subspaces(genes, "genes"):
            check_count(f"genes[{subspace!r}]", genes[subspace])
        check_count("dim", dim)
        check_count("gene_tokens", gene_tokens)
        check_interval("dropout", dropout, 0.0, 1.0)
        check_choice("activation", activation, ("selu", "elu"))
        self.genes = dict(genes)
        self.dim = dim
        self.hidden = check_counts("hidden", hidden)
        self.gene_tokens = gene_tokens
        self.dropout = dropout
        self.activation = activation
        widths = (*self.hidden, gene_tokens * dim)
        self.networks = nn.ModuleDict(
            {subspace: _network((count, *widths), dropout, activation) for subspace, count in genes.items()}
        )

    def forward(self, genes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode the expression of every subspace."""
        check_names("genes", genes, self.genes)
        tokens: dict[str, Tensor] = {}
        sizes: dict[str, int] = {}
        for subspace, network in self.networks.items():
            name, values = f"genes[{subspace!r}]", genes[subspace]
            batch = check_shape(name, values, "B G", {**sizes, "G": self.genes[subspace]})["B"]
            check_floating(name, values)
            sizes = {"B": batch}
            values = values.to(weight_dtype(network))
            tokens[subspace] = torch.unflatten(network(values), 1, (self.gene_tokens, -1))  # [B, T, C]
        return tokens

    def extra_repr(self) -> str:
        """The options of the constructor."""
        return (
            f"genes={self.genes}, dim={self.dim}, hidden={self.hidden}, gene_tokens={self.gene_tokens}, "
            f"dropout={self.dropout}, activation={self.activation!r}"
        )


def _network(widths: Sequence[int], dropout: float, activation: str) -> nn.Sequential:
    """Linear -> activation -> alpha dropout for every pair of neighboring widths."""
    layers: list[nn.Module] = []
    for fan_in, width in pairwise(widths):
        linear = nn.Linear(fan_in, width)
        nn.init.normal_(linear.weight, std=fan_in**-0.5)
        nn.init.zeros_(linear.bias)
        unit = nn.SELU() if activation == "selu" else nn.ELU()
        layers.append(nn.Sequential(linear, unit, nn.AlphaDropout(dropout)))
    if activation == "elu":
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
