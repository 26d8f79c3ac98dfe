"""Several processes take one decision."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from disentangled_mil.optim import CGCOptimizer
from tests.support.cgc import CONFIDENT_TUMOR, Head, batch, conflict
from tests.support.processes import start

PROCESS = """
from disentangled_mil.optim import CGCOptimizer
from tests.optim.cgc.test_processes import check_shards

tumor, tme = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
tumor.grad = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
tme.grad = torch.tensor([[1.0, 1.0], [-2.0, 1.0]])
optimizer = CGCOptimizer(torch.optim.SGD([tumor, tme], lr=1.0), {"tumor": [tumor], "tme": [tme]})
optimizer.step(confidence={"tumor": 0.2, "tme": 0.4})
assert torch.equal(tumor.grad, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
torch.testing.assert_close(tme.grad, torch.tensor([[1.0, 1.0], [-1.5, 1.5]]))
torch.testing.assert_close(optimizer.report.confidence["tme"], torch.tensor(0.9))
check_shards(1)
"""


class Model(torch.nn.Module):
    """A backbone before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = torch.nn.Linear(4, 4), Head()

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = self.head({name: self.backbone(x) for name, x in features.items()})
        return result


def check_shards(rank: int) -> None:
    """Sharded heads learn what a whole one learns, and every order in which they would not is refused."""
    from torch.distributed.fsdp import fully_shard

    features = [batch(0, sign=-0.5)[0], batch(1, sign=-0.5)[0]]
    single, head = Head(), Head()
    ((single(features[0]) + single(features[1])).sum() / 2).backward()
    alone = [dist.new_group([0]), dist.new_group([1])][rank]
    expected = CGCOptimizer(
        torch.optim.SGD(single.parameters(), lr=0.1), single.subspace_parameters(), process_group=alone
    )
    expected.step(confidence=CONFIDENT_TUMOR)
    early = CGCOptimizer(torch.optim.SGD(head.parameters(), lr=0.1), head.subspace_parameters())
    fully_shard(head, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
    head(features[rank]).sum().backward()
    refused = r"\['t\w+'\] must have gradients, got none in any process: build the optimizers after fully_shard"
    with pytest.raises(RuntimeError, match=refused):
        early.step(confidence=CONFIDENT_TUMOR)
    optimizer = CGCOptimizer(torch.optim.SGD(head.parameters(), lr=0.1), head.subspace_parameters())
    optimizer.step(confidence=CONFIDENT_TUMOR)
    for sharded, complete in zip(head.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(sharded.full_tensor(), complete)
    assert optimizer.report.projected["tme"] == expected.report.projected["tme"] == 3

    # The backbone has gradients, but the optimizer knows the old parameters of the head.
    for ignored in (False, True):
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        model = Model()
        early = CGCOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.head.subspace_parameters())
        if ignored:
            fully_shard(model, mesh=mesh, ignored_params=set(model.backbone.parameters()))
        else:
            fully_shard(model.head, mesh=mesh)
        model(features[rank]).sum().backward()
        with pytest.raises(RuntimeError, match=refused):
            early.step(confidence=CONFIDENT_TUMOR)

    unreduced = Head()
    optimizer = CGCOptimizer(torch.optim.SGD(unreduced.parameters(), lr=0.1), unreduced.subspace_parameters())
    unreduced(features[0]).sum().backward()
    optimizer.step(confidence=CONFIDENT_TUMOR)  # equal by chance in the first step
    optimizer.zero_grad()
    unreduced(features[rank]).sum().backward()
    with pytest.raises(RuntimeError, match="must be equal in all processes, got different ones: train with"):
        optimizer.step(confidence=CONFIDENT_TUMOR)


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_processes_sum_their_confidences_and_decide_alike(tmp_path: Path) -> None:
    # Alone, this process would change tme and the other one tumor.
    address = (tmp_path / "store").as_uri()
    other = start(PROCESS, address, 1)
    try:
        dist.init_process_group("gloo", init_method=address, rank=0, world_size=2, timeout=timedelta(seconds=60))
        optimizer, _, tme = conflict()
        optimizer.step(confidence={"tumor": 0.9, "tme": 0.5})
        torch.testing.assert_close(tme.grad, torch.tensor([[1.0, 1.0], [-1.5, 1.5]]))
        torch.testing.assert_close(optimizer.report.confidence["tme"], torch.tensor(0.9))
        check_shards(0)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        errors = other.communicate(timeout=60)[1]
    assert other.returncode == 0, errors
