"""A crew: a few threads that share out pieces of work, in bounded memory.

The work is C code that releases the GIL. Results are taken in the order of the pieces by
whichever thread has the next one, so no thread is spent on waiting for the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

# What a thread at leisure gets of a CPU beside one of the usual priority: a quarter (sched(7)).
_LEISURE = 5

Item = TypeVar("Item")
Result = TypeVar("Result")
State = TypeVar("State")


def usual_threads() -> int:
    """The CPUs that we may use, at most 16: memory bandwidth ends there at the latest."""
    return min(len(os.sched_getaffinity(0)), 16)


class Crew(Generic[Item, Result, State]):
    """Run ``work(state, item)`` for each item, with one state a thread.

    Args:
        emit: Called with the results in the order of the items, never at the same time by two
            threads; None where the order does not matter.
        done: Called with each item that is finished, likewise.
        at_leisure: Others go first where CPUs are short: those whom a copy was made for.
    """

    def __init__(
        self,
        items: Iterator[Item],
        states: list[State],
        work: Callable[[State, Item], Result],
        emit: Callable[[Result], None] | None = None,
        done: Callable[[Item], None] = lambda item: None,
        *,
        at_leisure: bool = False,
    ) -> None:
        self._items = items
        self._states = states
        self._work = work
        self._emit = emit
        self._done = done
        self._at_leisure = at_leisure
        self._window = 4 * len(states)  # items under way or waiting for their turn
        self._turn = threading.Condition()
        self._taken = 0
        self._emitted = 0
        self._emitting = False
        self._results: dict[int, Result] = {}
        self._under_way: dict[int, Item] = {}
        self._error: BaseException | None = None
        self._entered = self._left = 0  # threads
        self.stopped = False

    def run(self, patience: float | None = None) -> None:
        """Do all of the work.

        Args:
            patience: Seconds to wait for the threads after an interrupt; None to the end. A write
                to a pipe that nobody reads has none.

        Raises:
            BaseException: The first that work or emit raised in any thread, or
                KeyboardInterrupt; what was begun has ended by then. (After a second
                KeyboardInterrupt it may not have.)
        """
        # Not Thread.join(): when that is interrupted, the thread counts as ended (gh-90882).
        try:
            for state in self._states:
                threading.Thread(target=self._loop, args=(state,), daemon=True).start()
            with self._turn:
                self._turn.wait_for(lambda: self._left == len(self._states))
        except BaseException:
            self._stop()
            with self._turn:
                self._turn.wait_for(lambda: self._left == self._entered, patience)
            raise
        if self._error is not None:
            raise self._error

    def undone(self) -> Iterator[Item]:
        """The items that were not finished, in their order, after :meth:`run` raised."""
        yield from self._under_way.values()
        yield from self._items

    def _stop(self, error: BaseException | None = None) -> None:
        with self._turn:
            self._error = self._error or error
            self.stopped = True
            self._turn.notify_all()

    def _loop(self, state: State) -> None:
        with self._turn:
            self._entered += 1
        if self._at_leisure:
            os.nice(_LEISURE)  # of this thread alone: setpriority(2), BUGS
        try:
            while (taken := self._take()) is not None:
                index, item = taken
                result = self._work(state, item)
                if self._emit is None:
                    with self._turn:
                        self._finish(index)
                else:
                    self._hand_in(index, result)
        except BaseException as error:  # it is raised again by run()
            self._stop(error)
        finally:
            with self._turn:
                self._left += 1
                self._turn.notify_all()

    def _take(self) -> tuple[int, Item] | None:
        with self._turn:
            while self._emit and self._taken - self._emitted >= self._window and not self.stopped:
                self._turn.wait()
            if self.stopped:
                return None
            try:
                item = next(self._items)
            except StopIteration:
                return None
            index = self._taken
            self._taken += 1
            self._under_way[index] = item
            return index, item

    def _finish(self, index: int) -> None:
        self._done(self._under_way.pop(index))

    def _hand_in(self, index: int, result: Result) -> None:
        with self._turn:
            self._results[index] = result
            if self._emitting:  # that thread takes ours too
                return
            self._emitting = True
        while True:
            with self._turn:
                if self._emitted not in self._results:
                    self._emitting = False
                    return
                result = self._results.pop(self._emitted)
            assert self._emit is not None
            self._emit(result)
            with self._turn:
                self._finish(self._emitted)
                self._emitted += 1
                self._turn.notify_all()
