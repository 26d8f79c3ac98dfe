"""Attention with a position bias, without the matrix of queries by keys, and overlaps of attention maps.

A query n at p_n and a key j at p_j have the score S = scale q_n . k_j + bias(p_n - p_j) + logit_j in each head. The
weights are W = softmax(S) over the keys, the output is W V, and the mass of a key is the sum of its weights over
queries. Bags are processed one after the other, and queries in tiles: one tile of H x t x J scores exists at a time.
The backward pass computes W of a tile again and then dS = W (dW - sum_j W dW). From dS follow dQ = scale dS K,
dK = scale dS^T Q, and the gradients of logits, positions and bias. An attention costs 2 H N J D multiplications forward
and 5 H N J D backward, plus those of its bias, and the memory of a tile. The overlap of two batches of dense maps is
the product C_ij = <W_i, W_j>.

``_reference`` is the dense formula and the oracle of the tests, ``_streaming`` runs on any device, and ``_triton`` on
CUDA by kernels that hold tiles in registers. :class:`~._carried.CarriedScores` names what the operators take.
"""

from ._overlap import attention_overlap
from ._plain import plain_attention
from ._scores import BACKENDS, AttentionOutput, AttentionScores, biased_attention

__all__ = [
    "BACKENDS",
    "AttentionOutput",
    "AttentionScores",
    "attention_overlap",
    "biased_attention",
    "plain_attention",
]
