# mypy: ignore-errors
"""Kernels of biased attention.

The forward pass finds the output and the log-sum-exp of every query by an online softmax. All later kernels compute the
weights of a tile again from the log-sum-exp, or read them if they were kept.

Conventions of all kernels:

* The grid has one axis of programs. Each program serves one head of one bag, ``bag_head = bag * HEADS + head``.
* A tile has ``QUERIES`` x ``KEYS`` entries. ``WIDTH`` and ``HIDDEN`` are ``DIM`` and ``SIZE`` rounded up to a size that
  products of tiles accept; the padding is zero.
* A network is evaluated key by key, because its hidden layers [QUERIES, HIDDEN] are the largest tiles. Keys that are
  taken out cost nothing.
* Of masked queries only the positions are read, which are finite. A query that is masked or has no key has the
  log-sum-exp +inf, so that its weights are zero.
"""

from ._triton_backward import grad_keys, grad_queries
from ._triton_forward import attend, weigh_keys

__all__ = ["attend", "grad_keys", "grad_queries", "weigh_keys"]
