import threading

import pytest

from disentangled_mil._read_ahead import read_ahead


def test_results_come_in_order_and_only_one_is_ahead():
    made = []

    def make(item: int) -> int:
        made.append(item)
        return 10 * item

    results = read_ahead(make, range(5))
    assert next(results) == 0
    assert made in ([0], [0, 1])
    assert list(results) == [10, 20, 30, 40]
    assert made == [0, 1, 2, 3, 4]
    assert list(read_ahead(make, [])) == []


def test_the_next_one_is_made_while_the_present_one_is_in_use():
    second = threading.Event()
    results = read_ahead(lambda item: item == 1 and second.set(), range(3))
    next(results)
    assert second.wait(timeout=10)
    results.close()


def test_an_error_comes_where_the_result_would():
    def make(item: int) -> int:
        if item == 2:
            raise ValueError("the file of 2 is broken")
        return item

    results = read_ahead(make, range(4))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the file of 2 is broken"):
        next(results)


def test_nobody_reads_on_after_the_end_of_a_loop_that_was_left():
    threads = threading.active_count()
    for _ in read_ahead(abs, range(5)):
        break
    assert threading.active_count() == threads


def test_several_threads_keep_the_order_and_the_number_ahead():
    started, all_busy = [], threading.Barrier(3, timeout=10)

    def make(item: int) -> int:
        started.append(item)
        if item < 3:
            all_busy.wait()  # passes only if three threads are here at once
        return item

    results = read_ahead(make, range(20), threads=3, ahead=4)
    assert next(results) == 0
    assert max(started) <= 4
    assert list(results) == list(range(1, 20))
