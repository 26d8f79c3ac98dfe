"""Launches of the kernels of biased attention: tiles, programs, precision, and arguments by name."""

from types import ModuleType

import torch
from torch import Tensor

from .._triton_runtime import load
from ._carried import AttentionArguments
from ._flat_network import FlatNetwork

# Programs per multiprocessor. Where there are fewer tiles of keys, several programs share the queries.
_PROGRAMS = 4


class Launch:
    """The launches of all kernels on one problem: their common arguments, and the tiles of the problem.

    Args:
        given: arguments of the operator.
        **known: further arguments of kernels.
    """

    def __init__(self, given: AttentionArguments, **known: Tensor | None) -> None:
        scores, bias, dropout = given.scores, given.scores.bias, given.dropout
        query, keys = scores.query, scores.key.shape[2]
        self.device = query.device
        batch, heads, tokens, width = query.shape
        groups = scores.logit.shape[1]
        network, table = bias.network, bias.table
        size = len(network.b1) if network else table.values.shape[-1] if table else 1  # features, or side of the table
        tile, self.options = _tile(bias.kind, query.dtype, _padded(width), _padded(size))
        query_tiles, key_tiles = _ceil(tokens, tile["QUERIES"]), _ceil(keys, tile["KEYS"])
        share = max(1, _ceil(_programs(self.device), batch * heads * key_tiles or 1))
        chunk = max(1, _ceil(query_tiles, share))  # in tiles
        self.chunks = max(1, _ceil(query_tiles, chunk))
        self.query_programs = batch * heads * query_tiles
        self.key_programs_per_head = (batch * groups, heads // groups, key_tiles * self.chunks)
        self.key_programs = batch * heads * key_tiles * self.chunks
        self.keep_scale = 1 / (1 - dropout) if dropout < 1 else 0.0
        self.arguments = known | {
            "query": query.contiguous(),
            "key": scores.key.contiguous(),
            "value": given.value.contiguous(),
            "query_position": scores.query_position.contiguous(),
            "key_position": scores.key_position.contiguous(),
            "mask": scores.mask.contiguous(),
            "logit": scores.logit.contiguous(),
            "bias": FlatNetwork.pack(network) if network else table.values.contiguous() if table else None,
            "seed": given.seed,
            "queries": tokens,
            "keys": keys,
            "scale": scores.scale,
            "reach": bias.reach,
            "dropout": dropout,
            "keep_scale": self.keep_scale,
            "chunk": chunk * tile["QUERIES"],
            "chunks": self.chunks,
            "HEADS": heads,
            "GROUPS": groups,
            "DIM": width,
            "WIDTH": _padded(width),
            "KIND": bias.kind,
            "SIZE": size,
            "HIDDEN": _padded(size),
            "PRECISION": _precision(self.device),
            "BIAS_PRECISION": _precision(self.device) if query.dtype == torch.float32 else "tf32",
            **tile,
        }

    def over_queries(self, name: str, **own: Tensor | int | None) -> None:
        """Run a kernel with one program for each tile of queries."""
        self._run(name, self.query_programs, own)

    def over_keys(self, name: str, **own: Tensor | int | None) -> None:
        """Run a kernel with one program for each tile of keys and chunk of queries."""
        self._run(name, self.key_programs, own)

    def _run(self, name: str, programs: int, own: dict[str, Tensor | int | None]) -> None:
        kernel = getattr(_kernels(), name)
        arguments = self.arguments | own
        if programs:
            with torch.cuda.device(self.device if self.device.type == "cuda" else -1):
                kernel[(programs,)](**{name: arguments[name] for name in kernel.arg_names}, **self.options)


def _kernels() -> ModuleType:
    return load(f"{__package__}._triton_kernels")


def _tile(kind: str, dtype: torch.dtype, width: int, hidden: int) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of a tile that fits into registers, and options of a launch.

    A network holds its hidden features for all queries and one key. A table holds four nodes of every pair. Products of
    float32 have three parts.

    Args:
        kind: kind of the position bias.
        dtype: type of queries and keys.
        width: padded width of a head.
        hidden: padded number of features.

    Returns:
        Queries and keys of a tile, and options for Triton.
    """
    queries = (4096 if dtype == torch.float32 else 8192) // width
    if kind == "network":
        tile, large = {"QUERIES": min(64, queries, 2048 // hidden), "KEYS": 16}, width > 128 or hidden > 32
    else:
        most = 32 if kind == "table" or dtype == torch.float32 else 64
        tile, large = {"QUERIES": min(most, queries), "KEYS": 32}, width > 128
    tile["QUERIES"] = max(16, tile["QUERIES"])
    # Without a limit on registers the assembler spills nearly everything of large kernels to memory.
    return tile, {"num_warps": 8, "maxnreg": 255} if large else {"num_warps": 4}


def _programs(device: torch.device) -> int:
    """The number of programs that keep a device busy."""
    if device.type != "cuda":
        return _PROGRAMS
    return _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


def _precision(device: torch.device) -> str:
    """The precision of float32 products: TF32 if PyTorch allows it, else three TF32 products."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "ieee"
    matmul = torch.backends.cuda.matmul
    allowed = getattr(matmul, "fp32_precision", None) or ("tf32" if matmul.allow_tf32 else "ieee")
    return "tf32" if allowed == "tf32" else "tf32x3"


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def _padded(width: int) -> int:
    """The width of a tile: a power of two, and enough for tensor cores."""
    return max(16, 1 << (width - 1).bit_length())
