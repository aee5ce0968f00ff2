"""The crew: order, bounds, errors; no live process needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from fastdump.crew import Crew


def test_every_item_is_worked_on_once() -> None:
    seen: list[int] = []
    lock = threading.Lock()

    def work(state: None, item: int) -> None:
        with lock:
            seen.append(item)

    done: list[int] = []
    Crew(iter(range(500)), [None] * 4, work, done=done.append).run()
    assert sorted(seen) == sorted(done) == list(range(500))


def test_threads_at_leisure_leave_the_others_as_they_are() -> None:
    seen: list[int] = []

    def work(state: None, item: int) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    for at_leisure in (False, True):
        Crew(iter([0]), [None], work, at_leisure=at_leisure).run()
    assert seen == [before, min(before + 5, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    got: list[int] = []
    Crew(iter(range(300)), [None] * threads, lambda state, item: item * 2, got.append).run()
    assert got == [2 * i for i in range(300)]


def test_memory_is_bounded_while_one_item_is_slow() -> None:
    release, taken = threading.Event(), []

    def items() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            if i == 8:  # as many as may be under way: 4 a thread, and this one is too many
                release.set()
            yield i

    def work(state: None, item: int) -> int:
        if item == 0:
            # All others wait for item 0; were there no bound, number 8 would be taken now.
            while len(taken) < 8 and not release.is_set():
                pass
            assert not release.is_set()
        return item

    def emit(item: int) -> None:
        assert max(taken) < item + 8
        got.append(item)

    got: list[int] = []
    Crew(items(), [None, None], work, emit).run()
    assert got == list(range(1000))


def test_the_first_error_ends_it_and_tells_what_is_undone() -> None:
    emitted: list[int] = []

    def work(state: None, item: int) -> int:
        if item == 50:
            raise ValueError("fifty")
        return item

    crew = Crew(iter(range(200)), [None] * 3, work, emitted.append)
    with pytest.raises(ValueError, match="fifty"):
        crew.run()
    assert emitted == list(range(len(emitted)))
    assert len(emitted) <= 50
    assert sorted([*emitted, *crew.undone()]) == list(range(200))


def test_an_error_of_emit_is_raised_too() -> None:
    def emit(result: int) -> None:
        raise OSError(28, "full")

    crew = Crew(iter(range(50)), [None] * 2, lambda state, item: item, emit)
    with pytest.raises(OSError, match="full"):
        crew.run()
    assert sorted(crew.undone()) == list(range(50))
