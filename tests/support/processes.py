"""Two processes that train together over gloo."""

import os
import socket
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
# Threads of PyTorch sometimes end a process with an error while the interpreter takes it down, after all work is done.
_END = """
dist.destroy_process_group()
sys.stderr.flush()
__import__("os")._exit(0)
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


def free_port() -> int:
    """A port that no program uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def run_as_torchrun_does(code: str, *arguments: str) -> list["subprocess.CompletedProcess[str]"]:
    """Run code in two processes with the variables that torchrun sets, and return how they ended."""
    command = [sys.executable, "-c", code, *arguments]
    variables = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
    }
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ended = [(process, *process.communicate(timeout=120)) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [subprocess.CompletedProcess(command, process.returncode, *texts) for process, *texts in ended]
