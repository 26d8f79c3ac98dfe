"""Two processes that train together over gloo."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BEGIN = """
import datetime, sys
import torch
import torch.distributed as dist

rank = int(sys.argv[2])
dist.init_process_group(
    "gloo", init_method=sys.argv[1], rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
"""
_END = """
dist.destroy_process_group()
"""


def start(code: str, address: str, rank: int) -> "subprocess.Popen[str]":
    """Start a process that joins the group and runs code with ``torch``, ``dist`` and ``rank``."""
    command = [sys.executable, "-c", _BEGIN + code + _END, address, str(rank)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def run_two(code: str, folder: Path) -> None:
    """Run code in two processes, and fail with their errors."""
    processes = [start(code, (folder / "store").as_uri(), rank) for rank in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
