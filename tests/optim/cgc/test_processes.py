"""Several processes take one decision."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.support.cgc import conflict

PROCESS = """
import datetime, sys
import torch
import torch.distributed as dist
from disentangled_mil.optim import CGCOptimizer

dist.init_process_group(
    "gloo", init_method=sys.argv[1], rank=1, world_size=2, timeout=datetime.timedelta(seconds=60)
)
tumor, tme = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
tumor.grad = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
tme.grad = torch.tensor([[1.0, 1.0], [-2.0, 1.0]])
optimizer = CGCOptimizer(torch.optim.SGD([tumor, tme], lr=1.0), {"tumor": [tumor], "tme": [tme]})
optimizer.step(confidence={"tumor": 0.2, "tme": 0.4})
assert torch.equal(tumor.grad, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
torch.testing.assert_close(tme.grad, torch.tensor([[1.0, 1.0], [-1.5, 1.5]]))
torch.testing.assert_close(optimizer.report.confidence["tme"], torch.tensor(0.9))
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_processes_sum_their_confidences_and_decide_alike(tmp_path: Path) -> None:
    # Alone, this process would change tme and the other one tumor.
    address = (tmp_path / "store").as_uri()
    root = Path(__file__).resolve().parents[3]
    other = subprocess.Popen([sys.executable, "-c", PROCESS, address], cwd=root, stderr=subprocess.PIPE, text=True)
    try:
        dist.init_process_group("gloo", init_method=address, rank=0, world_size=2, timeout=timedelta(seconds=60))
        optimizer, _, tme = conflict()
        optimizer.step(confidence={"tumor": 0.9, "tme": 0.5})
        torch.testing.assert_close(tme.grad, torch.tensor([[1.0, 1.0], [-1.5, 1.5]]))
        torch.testing.assert_close(optimizer.report.confidence["tme"], torch.tensor(0.9))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        errors = other.communicate(timeout=60)[1]
    assert other.returncode == 0, errors
