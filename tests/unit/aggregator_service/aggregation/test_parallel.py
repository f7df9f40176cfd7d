"""Modules side by side: order, threads, and what happens when one fails."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
import torch

from aggregator_service.aggregation.parallel import in_order, own_thread


def test_results_come_in_the_order_of_the_items_whichever_is_ready_first():
    second_is_done = threading.Event()

    def work(item):
        if item == 0:
            assert second_is_done.wait(30)
        if item == 1:
            second_is_done.set()
        return item

    assert list(in_order(work, range(20), device="cpu", threads=2)) == list(range(20))


def test_every_thread_computes_alone_and_the_callers_threads_stay():
    before = torch.get_num_threads()
    found = set(in_order(lambda _: torch.get_num_threads(), range(8), device="cpu", threads=4))
    assert found == {1}
    assert torch.get_num_threads() == before


def test_a_thread_that_begins_after_others_computed_alone_has_all_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with own_thread("first") as first, own_thread("second") as second:
            for thread in (first, second):
                alone = thread.submit(
                    lambda: [*in_order(lambda _: torch.get_num_threads(), range(2), device="cpu")]
                )
                assert alone.result() == [1, 1]
                assert thread.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_no_more_items_are_begun_than_results_may_wait():
    begun = []
    with closing(in_order(begun.append, range(100), device="cpu", threads=2)) as results:
        next(results)
        assert len(begun) <= 5


def test_an_error_reaches_the_caller_and_stops_the_rest():
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise KeyError("module")
        return item

    with pytest.raises(KeyError, match="module"):
        list(in_order(work, range(1000), device="cpu", threads=2))
    assert len(begun) < 20


def test_closing_waits_for_what_is_being_made():
    running, released = threading.Event(), threading.Event()
    finished = []

    def work(item):
        if item == 1:
            running.set()
            assert released.wait(30)
        finished.append(item)
        return item

    results = in_order(work, range(2), device="cpu", threads=2)
    assert next(results) == 0
    assert running.wait(30)
    released.set()
    results.close()
    assert sorted(finished) == [0, 1]


def test_a_device_that_is_parallel_itself_gets_one_after_the_other():
    here = threading.get_ident()
    found = list(in_order(lambda _: threading.get_ident(), range(3), device="cuda:0", threads=4))
    assert found == [here] * 3


def test_small_items_are_worked_on_one_at_a_time_in_one_thread_beside_the_caller():
    seen = set()

    def work(item):
        seen.add(threading.get_ident())
        return item

    assert list(in_order(work, range(20), device="cpu", threads=4, size=1000)) == list(range(20))
    assert len(seen) == 1
    assert threading.get_ident() not in seen
