"""The work of the cases, as this package does it: each function makes the inputs and returns one call."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from disentangled_mil import (
    Bag,
    CGCOptimizer,
    Classification,
    DeformableCrossAttention,
    Grid,
    Student,
    Teacher,
    inter_magnification_consistency,
)
from disentangled_mil.nn import ITAOutput
from disentangled_mil.ops import density_peaks

from .case import Outputs, Work
from .inputs import CLUSTERS, DIM, HEADS, NEIGHBORS, WIDTH, AttentionInputs, blobs, named_gradients, with_gradients


def layer(size: int, device: torch.device, *, backend: str, bias: str, training: bool) -> Work:
    """Forward and backward of one deformable layer."""
    torch.manual_seed(0)
    module = DeformableCrossAttention(DIM, heads=HEADS, dim_head=WIDTH, bias=bias, backend=backend).to(device)
    module.train(training)
    grid = Grid.square(size, device=device)
    query, context, arriving = (torch.randn(1, size, DIM, device=device) for _ in range(3))
    leaves = {"query": query.requires_grad_(), "context": context.requires_grad_(), **dict(module.named_parameters())}
    return lambda: with_gradients(module(query, context, grid).tokens, leaves, arriving)


def teacher(
    size: int,
    device: torch.device,
    *,
    backend: str,
    bias: str,
    training: bool,
    coordinated: bool,
    slides: int = 2,
) -> Work:
    """One training step of the teacher on two magnifications of a batch, with IGC and CGC or with neither."""
    torch.manual_seed(0)
    rate = 0.1 if training else 0.0
    genes = {"tumor": 59, "tme": 361}
    model = Teacher(1024, genes, 4, dropout=rate, gene_dropout=rate, bias=bias, backend=backend).to(device)
    task = Classification(["a", "b", "c", "d"])
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)  # as in the training
    cgc = CGCOptimizer(adamw, model.subspace_parameters())
    bags = {
        name: Bag(torch.randn(slides, size, 1024), Grid.square([size] * slides)).to(device)
        for name in model.magnifications
    }
    expression = {name: torch.randn(slides, count, device=device) for name, count in genes.items()}
    target = torch.tensor([0, 3][:slides], device=device)

    def work() -> Outputs:
        adamw.zero_grad()
        low, high = model(bags, expression).branches.values()
        loss = task.loss(low.logits, target) + task.loss(high.logits, target)
        if coordinated:
            loss = loss + inter_magnification_consistency(low.attention, high.attention)
        loss.backward()  # type: ignore[no-untyped-call]
        if coordinated:
            for branch in (low, high):
                cgc.accumulate(task.confidence(branch.subspace_logits, target))
            cgc.step()
        else:
            adamw.step()
        return {"result": loss.detach()} | named_gradients((name, p.grad) for name, p in model.named_parameters())

    return work


def student(size: int, device: torch.device, *, clustering: bool) -> Work:
    """Prediction of the student for one slide; without clustering, all tokens make one prototype."""
    torch.manual_seed(0)
    model = Student(1024, 4).to(device).eval()
    if not clustering:
        for name in model.magnifications:
            model.get_submodule(f"branches.{name}").aggregate = _OneCluster(len(model.subspaces))
    bags = {name: Bag(torch.randn(1, size, 1024), Grid.square(size)).to(device) for name in model.magnifications}

    def work() -> Outputs:
        with torch.no_grad():
            return {"result": model(bags).logits}

    return work


class _OneCluster(nn.Module):
    """Takes the place of ITA: every prototype is the mean of all tokens."""

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.prototypes = prototypes

    def forward(self, tokens: Tensor, mask: Tensor) -> ITAOutput:
        batch, count, _ = tokens.shape
        mean = tokens.mean(1, keepdim=True).expand(-1, self.prototypes, -1)
        alike = tokens.new_full((batch, count), 1 / count)
        return ITAOutput(mean, mask.long() - 1, alike, mask.new_zeros((batch, self.prototypes), dtype=torch.int64))


def attention(size: int, device: torch.device, *, backend: str, bias: str, backward: bool) -> Work:
    """Biased attention alone."""
    inputs = AttentionInputs.of(size, device)

    def work() -> Outputs:
        with torch.set_grad_enabled(backward):
            out = inputs.scores(bias).attend(inputs.value, backend=backend).out
            return with_gradients(out, inputs.leaves, inputs.arriving) if backward else {"result": out}

    return work


def peaks(size: int, device: torch.device, *, backend: str) -> Work:
    """Clustering of one bag."""
    tokens = blobs(size, device)

    def work() -> Outputs:
        return density_peaks(tokens, CLUSTERS, neighbors=NEIGHBORS, backend=backend)._asdict()

    return work


def two_products(size: int, device: torch.device) -> Work:
    """Two passes of the tiled matrix product that gives all inner products of the tokens."""
    tokens = blobs(size, device)[0]
    step = max(1, (1 << 23) // size)
    tile = torch.empty(min(step, size), size, device=device)

    def work() -> Outputs:
        for _ in range(2):
            for rows in torch.split(tokens, step):
                torch.mm(rows, tokens.T, out=tile[: len(rows)])
        return {}

    return work


def merge(size: int, device: torch.device, *, mean: Callable[..., Tensor]) -> Work:
    """Weighted means of the tokens of every segment, forward and backward."""
    torch.manual_seed(0)
    tokens, arriving = torch.randn(4, size, DIM, device=device), torch.randn(4, CLUSTERS, DIM, device=device)
    assignment = torch.randint(CLUSTERS, (4, size), device=device)
    weight = torch.rand(4, size, device=device)
    leaves = {"tokens": tokens.requires_grad_(), "weight": weight.requires_grad_()}
    return lambda: with_gradients(mean(tokens, assignment, CLUSTERS, weight=weight), leaves, arriving)


def dense_mean(tokens: Tensor, assignment: Tensor, segments: int, *, weight: Tensor) -> Tensor:
    """Weighted means from the matrix of who is in which segment."""
    share = one_hot(assignment, segments) * weight[..., None]  # [B, N, K]
    return torch.einsum("bnk,bnc->bkc", share, tokens) / share.sum(1)[..., None]
