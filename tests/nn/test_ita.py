"""ITA: the released merge, the order of the prototypes, and what padding must not do."""

import copy
import pickle

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.nn.ita import ITA
from disentangled_mil.ops.density_peaks import density_peaks
from tests.support.golden import load_golden

seeds = st.integers(0, 2**31 - 1)


def make(dim: int = 8, prototypes: int = 2, *, seed: int = 0, **options: object) -> ITA:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ITA(dim, prototypes, **options).double().eval()


def random_bags(seed: int, bags: int, size: int, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(bags, size, width, generator=generator, dtype=torch.float64)


def two_tissues(seed: int, bags: int, size: int, width: int = 8) -> tuple[Tensor, Tensor]:
    """Bags of two tissues, where either may be the higher peak, and the tissue of every token."""
    generator = torch.Generator().manual_seed(seed)
    share = 0.2 + 0.6 * torch.rand(bags, 1, generator=generator, dtype=torch.float64)
    tissue = (torch.rand(bags, size, generator=generator, dtype=torch.float64) < share).long()
    center = 2 * torch.randn(2, width, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    noise = torch.randn(bags, size, width, generator=generator, dtype=torch.float64)
    return center[tissue] + 0.3 * noise, tissue


def test_prototypes_are_the_released_ones_with_their_eps() -> None:
    stored = load_golden("cluster_merge_block")
    count = stored["merged"].shape[1]
    ita = make(16, count, order="peak", eps=1e-6)
    ita.norm.load_state_dict({name: stored[f"param/norm.{name}"] for name in ("weight", "bias")})
    ita.significance.load_state_dict({name: stored[f"param/score.{name}"] for name in ("weight", "bias")})
    found = ita(stored["tokens"])
    assert torch.equal(found.assignment, stored["assignment"])
    torch.testing.assert_close(found.prototypes, stored["merged"], rtol=0, atol=1e-9)


@settings(max_examples=25)
@given(seed=seeds, size=st.integers(1, 30), prototypes=st.integers(1, 4))
def test_prototypes_are_the_weighted_means_of_their_members(seed: int, size: int, prototypes: int) -> None:
    ita, tokens = make(prototypes=prototypes, seed=seed), random_bags(seed, 2, size)
    normed = ita.norm(tokens)
    significance = ita.significance(normed).squeeze(2)
    found = ita(tokens)
    for bag in range(2):
        for slot in range(prototypes):
            member = found.assignment[bag] == slot
            if not member.any():
                assert found.centers[bag, slot] == -1
                member = torch.ones_like(member)  # a slot left over holds the mean of the whole bag
            else:
                assert member[found.centers[bag, slot]]
                torch.testing.assert_close(found.weights[bag, member], significance[bag, member].softmax(0))
            own = normed[bag, member]
            prototype = found.prototypes[bag, slot]
            torch.testing.assert_close(prototype, significance[bag, member].softmax(0) @ own)
            assert (prototype >= own.amin(0) - 1e-9).all()
            assert (prototype <= own.amax(0) + 1e-9).all()


def test_slots_go_to_the_best_anchors_of_all_permutations() -> None:
    ita, tokens = make(prototypes=3), random_bags(1, 4, 30)
    found, peaks = ita(tokens), density_peaks(ita.norm(tokens), 3)
    similarity = torch.cosine_similarity(found.prototypes[:, :, None], ita.anchors[None, None], dim=3)
    for bag in range(4):
        by_order = [
            sum(similarity[bag, slot, anchor] for slot, anchor in enumerate(order))
            for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])
        ]
        assert by_order[0] == max(by_order)
        cluster = peaks.assignment[bag, found.centers[bag]]
        assert torch.equal(peaks.centers[bag, cluster], found.centers[bag])
        slot = cluster.argsort()
        assert torch.equal(slot[peaks.assignment[bag]], found.assignment[bag])


def test_peak_order_is_that_of_the_clusters_and_has_no_anchors() -> None:
    ita, tokens = make(prototypes=3, order="peak"), random_bags(0, 2, 20)
    found, peaks = ita(tokens), density_peaks(ita.norm(tokens), 3)
    assert torch.equal(found.assignment, peaks.assignment)
    assert torch.equal(found.centers, peaks.centers)
    assert "anchors" not in ita.state_dict()


def test_slots_mean_the_same_tissue_in_every_bag_after_training() -> None:
    ita = make(momentum=0.9).train()
    for step in range(5):
        ita(two_tissues(step, 4, 40)[0]).prototypes.sum().backward()
    ita.eval()
    tokens, tissue = two_tissues(100, 12, 40)
    found = ita(tokens)
    by_bag = (found.assignment == tissue).double().mean(1)
    assert torch.equal(by_bag, by_bag[:1].round().expand(12))  # the same slot for the same tissue, in all bags
    peaks = density_peaks(ita.norm(tokens), 2).assignment
    assert 0 < (peaks == tissue).double().mean(1).round().mean() < 1  # which the peaks do not give

    again = ita(tokens)
    assert torch.equal(again.prototypes, found.prototypes)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for bag in range(12):
        shuffled = ita(tokens[bag : bag + 1, order])
        torch.testing.assert_close(shuffled.prototypes[0], found.prototypes[bag])
        assert torch.equal(shuffled.assignment[0], found.assignment[bag, order])


def test_anchors_follow_the_prototypes_of_a_backward_pass_in_training_mode_only() -> None:
    ita, tokens = make(momentum=0.75), random_bags(0, 3, 20)
    before = ita.anchors.clone()
    found = ita(tokens)
    found.prototypes.sum().backward()
    assert torch.equal(ita.anchors, before)
    ita.train()(tokens).prototypes.sum().backward()
    torch.testing.assert_close(ita.anchors, 0.75 * before + 0.25 * found.prototypes.mean(0))
    assert not ita.anchors.requires_grad


@pytest.mark.parametrize("compiled", [False, True])
def test_a_forward_pass_learns_nothing_by_itself(compiled: bool) -> None:
    ita = make(momentum=0.5).train()
    before = ita.anchors.clone()
    call = torch.compile(ita, fullgraph=True, backend="aot_eager") if compiled else ita
    with torch.no_grad():
        call(random_bags(0, 3, 20))
    validated = call(random_bags(1, 3, 20))  # some loops leave gradients on and the layer in training mode
    first, second = (call(random_bags(seed, 3, 20)).prototypes for seed in (2, 3))
    assert torch.equal(ita.anchors, before)
    (first.sum() + second.sum()).backward()
    orders = ((first, second), (second, first))
    moved = [before.lerp(one.mean(0), 0.5).lerp(other.mean(0), 0.5) for one, other in orders]
    assert any(torch.allclose(ita.anchors, expected) for expected in moved)
    validated.prototypes.sum().backward()
    assert not any(torch.allclose(ita.anchors, expected) for expected in moved)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_moves_the_anchors_once(reentrant: bool) -> None:
    ita, tokens = make(momentum=0.5).train(), random_bags(0, 3, 20).requires_grad_()
    before = ita.anchors.clone()
    found = torch.utils.checkpoint.checkpoint(lambda x: ita(x).prototypes, tokens, use_reentrant=reentrant)
    found.sum().backward()
    torch.testing.assert_close(ita.anchors, (before + found.detach().mean(0)) / 2)


def test_batched_gradients_move_the_anchors_once() -> None:
    ita = make(momentum=0.5).train()
    before, found = ita.anchors.clone(), ita(random_bags(0, 3, 20)).prototypes
    losses = torch.stack([found.sum(), found.square().sum(), found[0].sum()])
    torch.autograd.grad(losses, ita.norm.weight, torch.eye(3, dtype=torch.float64), is_grads_batched=True)
    torch.testing.assert_close(ita.anchors, (before + found.detach().mean(0)) / 2)


def test_a_copy_moves_anchors_of_its_own() -> None:
    ita, tokens = make(momentum=0.5).train(), random_bags(0, 3, 20)
    before = ita.anchors.clone()
    for other in (copy.deepcopy(ita), pickle.loads(pickle.dumps(ita))):
        other(tokens).prototypes.sum().backward()
        assert torch.equal(ita.anchors, before)
        assert not torch.equal(other.anchors, before)


def test_only_given_prototypes_move_the_anchors_without_self_following() -> None:
    ita = make(momentum=0.5, self_following=False).train()
    before = ita.anchors.clone()
    ita(random_bags(0, 2, 20)).prototypes.sum().backward()
    assert torch.equal(ita.anchors, before)
    given_prototypes = random_bags(1, 3, 2).requires_grad_()
    ita.follow(given_prototypes)
    torch.testing.assert_close(ita.anchors, (before + given_prototypes.detach().mean(0)) / 2)


def test_a_followed_order_is_taken_over() -> None:
    ita, tokens = make(momentum=0.5, self_following=False), two_tissues(0, 4, 40)[0]
    found = ita(tokens)
    for _ in range(10):
        ita.follow(found.prototypes.flip(1))
    swapped = ita(tokens)
    assert torch.equal(swapped.prototypes, found.prototypes.flip(1))
    assert torch.equal(swapped.assignment, 1 - found.assignment)
    assert torch.equal(swapped.centers, found.centers.flip(1))


def test_absent_and_overflowed_prototypes_are_not_followed() -> None:
    ita = make(prototypes=3, momentum=0.5)
    before = ita.anchors.clone()
    prototypes = random_bags(0, 2, 3)
    prototypes[0, 1] = torch.inf
    present = torch.tensor([[True, True, False], [True, True, False]])
    ita.follow(prototypes, present)
    torch.testing.assert_close(ita.anchors[0], (before[0] + prototypes[:, 0].mean(0)) / 2)
    torch.testing.assert_close(ita.anchors[1], (before[1] + prototypes[1, 1]) / 2)
    assert torch.equal(ita.anchors[2], before[2])


def test_a_step_that_overflowed_leaves_the_anchors_sound() -> None:
    ita, tokens = make().train(), random_bags(0, 2, 20)
    tokens[0, 3] = torch.nan
    ita(tokens).prototypes.sum().backward()
    assert ita.anchors.isfinite().all()


@settings(max_examples=25)
@given(
    seed=seeds,
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    prototypes=st.integers(1, 4),
    garbage=st.sampled_from([0.0, float("nan"), float("inf")]),
)
def test_a_bag_alone_equals_itself_in_a_padded_batch(
    seed: int, sizes: list[int], prototypes: int, garbage: float
) -> None:
    ita = make(prototypes=prototypes, seed=seed)
    padded = torch.full((len(sizes), 22, 8), garbage, dtype=torch.float64)
    mask = torch.zeros(len(sizes), 22, dtype=torch.bool)
    bags = [random_bags(seed + bag, 1, size)[0] for bag, size in enumerate(sizes)]
    for bag, tokens in enumerate(bags):
        padded[bag, : len(tokens)] = tokens
        mask[bag, : len(tokens)] = True
    found = ita(padded, mask)
    assert (found.assignment[~mask] == -1).all()
    assert (found.weights[~mask] == 0).all()
    for bag, tokens in enumerate(bags):
        alone = ita(tokens[None])
        torch.testing.assert_close(found.prototypes[bag], alone.prototypes[0])
        torch.testing.assert_close(found.weights[bag, mask[bag]], alone.weights[0])
        assert torch.equal(found.assignment[bag, mask[bag]], alone.assignment[0])
        assert torch.equal(found.centers[bag], alone.centers[0])


def test_padding_leaks_into_no_gradient_and_an_empty_bag_gives_zeros() -> None:
    ita, tokens = make(), random_bags(0, 3, 12)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, 7:] = False
    mask[1] = False
    gradients = []
    for garbage in (float("nan"), 5.0):
        x = tokens.where(mask[..., None], garbage).requires_grad_()
        found = ita(x, mask)
        ita.zero_grad()
        (found.prototypes.square().sum() + found.weights.square().sum()).backward()
        gradients.append([x.grad, *(p.grad.clone() for p in ita.parameters())])
    assert (found.prototypes[1] == 0).all()
    assert (found.centers[1] == -1).all()
    for leaked, clean in zip(*gradients, strict=True):
        assert clean.isfinite().all()
        assert torch.equal(leaked, clean)
    assert (gradients[0][0] != 0).any()
    assert (gradients[0][0][~mask] == 0).all()


@pytest.mark.parametrize("order", ["anchor", "peak"])
def test_gradients_are_those_of_finite_differences(order: str) -> None:
    ita = make(3, 3, order=order)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    parameters = dict(ita.named_parameters())
    tokens = random_bags(0, 2, 6, 3).requires_grad_()

    def forward(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        replaced = dict(zip(parameters, values, strict=True))
        found = torch.func.functional_call(ita, replaced, (x, mask))
        return found.prototypes, found.weights

    assert torch.autograd.gradcheck(forward, (tokens, *parameters.values()))


def test_repeated_tokens_are_clustered_and_differentiated() -> None:
    ita = make(prototypes=3)
    tokens = torch.ones(1, 6, 8, dtype=torch.float64).requires_grad_()
    found = ita(tokens)
    found.prototypes.square().sum().backward()
    assert found.prototypes.isfinite().all()
    assert found.centers.sort().values.tolist() == [[0, 1, 2]]
    assert tokens.grad.isfinite().all()


def test_autocast_works_and_comes_close_to_full_precision() -> None:
    ita, tokens = make().float(), two_tissues(0, 2, 40)[0].float().requires_grad_()
    plain = ita(tokens)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            found = ita(tokens)
        assert torch.equal(found.assignment, plain.assignment)
        torch.testing.assert_close(found.prototypes.float(), plain.prototypes, rtol=0.02, atol=0.02)
        (gradient,) = torch.autograd.grad(found.prototypes.float().square().sum(), tokens)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_layer_trains_and_follows(dtype: torch.dtype) -> None:
    ita, tokens = make().to(dtype).train(), random_bags(0, 2, 20).to(dtype)
    found = ita(tokens)
    found.prototypes.float().square().sum().backward()
    assert found.prototypes.dtype == ita.anchors.dtype == dtype
    assert all(p.grad.isfinite().all() for p in ita.parameters())
    assert ita.anchors.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_features_of_any_type_are_converted_to_that_of_the_weights(dtype: torch.dtype) -> None:
    ita, tokens = make(), random_bags(0, 2, 20).to(dtype)
    found, expected = ita(tokens), ita(tokens.double())
    assert torch.equal(found.prototypes, expected.prototypes)
    assert torch.equal(found.assignment, expected.assignment)


def test_it_compiles_without_a_graph_break() -> None:
    ita, tokens = make().train(), random_bags(0, 2, 20)
    eager = copy.deepcopy(ita)(tokens)
    compiled = torch.compile(ita, fullgraph=True, backend="eager")(tokens)
    torch.testing.assert_close(tuple(compiled), tuple(eager))


def test_state_and_representation_come_back() -> None:
    ita, tokens = make(prototypes=3, neighbors=4, momentum=0.5).train(), random_bags(0, 2, 20)
    ita(tokens).prototypes.sum().backward()
    ita.eval()
    other = eval(f"ITA({ita.extra_repr()})").double().eval()
    assert other.extra_repr() == ita.extra_repr()
    other.load_state_dict(ita.state_dict())
    for a, b in zip(other(tokens), ita(tokens), strict=True):
        assert torch.equal(a, b)


def test_the_same_seed_makes_the_same_orthogonal_anchors() -> None:
    ita = make(8, 3, seed=4)
    assert torch.equal(ita.anchors, make(8, 3, seed=4).anchors)
    torch.testing.assert_close(ita.anchors @ ita.anchors.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)


def test_an_empty_batch_has_a_result() -> None:
    ita = make().train()
    assert ita(torch.zeros(0, 5, 8, dtype=torch.float64)).prototypes.shape == (0, 2, 8)
    assert (ita(torch.zeros(2, 0, 8, dtype=torch.float64)).prototypes == 0).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"prototypes": 0}, ValueError, "prototypes must be at least 1, got 0"),
        ({"neighbors": 0}, ValueError, "neighbors must be at least 1, got 0"),
        ({"momentum": 1.5}, ValueError, r"momentum must lie in \[0, 1\], got 1.5"),
        ({"order": "size"}, ValueError, "order must be one of 'anchor', 'peak', got 'size'"),
    ],
)
def test_errors_of_options_name_the_requirement_and_the_value(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ITA(**({"dim": 8} | options))


def test_errors_of_inputs_name_the_requirement_and_the_value() -> None:
    ita = ITA(8)
    with pytest.raises(ValueError, match=r"tokens must have shape \[B, N, C\] = \[B, N, 8\], got \[2, 7, 4\]"):
        ita(torch.zeros(2, 7, 4))
    with pytest.raises(TypeError, match=r"tokens must be a floating-point tensor, got torch\.int64"):
        ita(torch.zeros(2, 7, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"mask must have shape \[B, N\] = \[2, 7\], got \[2, 5\]"):
        ita(torch.zeros(2, 7, 8), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask must be a bool tensor \(True = real token\), got torch.float32"):
        ita(torch.zeros(2, 7, 8), torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"prototypes must have shape \[B, K, C\] = \[B, 2, 8\], got \[1, 3, 8\]"):
        ita.follow(torch.zeros(1, 3, 8))
    with pytest.raises(ValueError, match=r"present must have shape \[B, K\] = \[1, 2\], got \[1, 3\]"):
        ita.follow(torch.zeros(1, 2, 8), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"present must be a bool tensor \(True = the bag has it\), got torch.float32"):
        ita.follow(torch.zeros(1, 2, 8), torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="follow needs anchors, which only order='anchor' has, got order='peak'"):
        ITA(8, order="peak").follow(torch.zeros(1, 2, 8))


def test_it_is_built_under_any_default_dtype() -> None:
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert ITA(8, 3).anchors.dtype == torch.bfloat16
    finally:
        torch.set_default_dtype(default)
