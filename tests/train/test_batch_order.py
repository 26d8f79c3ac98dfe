import torch

from disentangled_mil.train.batch_order import SMALL, WINDOW, batch_order


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def padded(sizes: list[int], batches) -> int:
    """Tokens of all batches with their padding."""
    return sum(len(batch) * max(sizes[i] for i in batch.tolist()) for batch in batches)


SIZES = [int(100 * 2 ** (8 * i / 200)) for i in range(200)]  # from 100 to 25,600 tokens


def test_batches_hold_every_sample_once_and_one_is_smaller():
    batches = batch_order(SIZES, 7, seeded(0))
    assert torch.cat(batches).sort().values.tolist() == list(range(200))
    assert sorted(map(len, batches)) == [4] + 28 * [7]


def test_the_generator_alone_decides_the_order():
    first, again, other = (torch.cat(batch_order(SIZES, 7, seeded(seed))).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_batches_of_like_size_have_little_padding():
    shuffled = torch.split(torch.randperm(200, generator=seeded(0)), 8)
    assert padded(SIZES, batch_order(SIZES, 8, seeded(0))) < 1.7 * sum(SIZES) < 0.6 * padded(SIZES, shuffled)


def test_samples_of_like_size_do_not_always_meet():
    batches = [batch_order(SIZES, 4, seeded(seed)) for seed in range(2)]
    first, second = ({frozenset(batch.tolist()) for batch in each} for each in batches)
    assert len(first & second) < 3


def test_large_and_small_batches_come_in_random_order():
    sizes = sorted(SIZES, reverse=True)
    means = [sum(sizes[i] for i in batch.tolist()) / len(batch) for batch in batch_order(sizes, 4, seeded(0))]
    window = means[:WINDOW]
    assert window not in (sorted(window), sorted(window, reverse=True))


def test_small_samples_stay_in_random_order():
    sizes = [SMALL - i for i in range(20)]
    assert torch.equal(torch.cat(batch_order(sizes, 3, seeded(0))), torch.randperm(20, generator=seeded(0)))
