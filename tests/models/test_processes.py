"""Models as DistributedDataParallel trains them in several processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

PROCESS = """
import datetime, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from disentangled_mil import Bag, Student, Teacher

address, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group(
    "gloo", init_method=address, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
torch.manual_seed(0)
sizes = {"dim": 8, "heads": 2, "dim_head": 4, "groups": 2, "magnifications": ("20x",), "max_keys": 5}
bags = [{"20x": Bag(torch.randn(2, count, 6))} for count in (9, 4)]
genes = {"tumor": torch.randn(2, 3), "tme": torch.randn(2, 3)}
models = [
    (Student(6, 3, **sizes), ()),
    (Teacher(6, dict.fromkeys(genes, 3), 3, selection_heads=2, **sizes), (genes,)),
]
for model, further in models:
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        parallel(bags[(rank + step) % 2], *further).logits.square().sum().backward()
        optimizer.step()
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(both, weights)
    assert torch.equal(*both)
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_models_on_sets_take_two_steps_without_an_option(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, (tmp_path / "store").as_uri()]
    root = Path(__file__).resolve().parents[2]
    processes = [
        subprocess.Popen([*command, str(rank)], cwd=root, stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
