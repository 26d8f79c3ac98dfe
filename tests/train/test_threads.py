import pytest
import torch

from disentangled_mil.train.threads import PATCHES_PER_THREAD, using_threads


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "patches", "used"),
    [
        *(
            ("auto", int(share * PATCHES_PER_THREAD) // 4, used)
            for share, used in ((0.5, 1), (1.99, 1), (2, 2), (9, 3))
        ),
        (2, 10, 2),
        (None, 10, 3),
    ],
)
def test_threads_grow_with_the_batch_up_to_pytorchs_number(threads, patches, used):
    with using_threads(threads, [1, patches, 10**6], batch_size=4) as found:
        assert found == torch.get_num_threads() == used
    assert torch.get_num_threads() == 3


def test_the_number_is_restored_after_an_error():
    with pytest.raises(KeyError), using_threads(1, [10], 1):
        raise KeyError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("threads", "error", "message"),
    [
        (0, ValueError, "threads must be at least 1, got 0"),
        (1.0, TypeError, "threads must be an integer, got float"),
        ("all", ValueError, "threads must be one of 'auto', got 'all'"),
    ],
)
def test_other_numbers_are_refused(threads, error, message):
    with pytest.raises(error, match=message), using_threads(threads, [10], 1):
        pass
