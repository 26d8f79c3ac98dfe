"""Models as DistributedDataParallel trains them in several processes."""

from pathlib import Path

import pytest
import torch.distributed as dist

from tests.support.processes import run_two

PROCESS = """
from torch.nn.parallel import DistributedDataParallel
from disentangled_mil import Bag, Student, Teacher

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
"""


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_models_on_sets_take_two_steps_without_an_option(tmp_path: Path) -> None:
    run_two(PROCESS, tmp_path)
