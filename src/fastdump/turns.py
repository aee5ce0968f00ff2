"""Turns: threads that work at the same time, and speak in order."""

from __future__ import annotations

import threading


class Turns:
    """Numbers 0, 1, 2 ... each have their turn when all before them have ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._now = 0
        self._ended: set[int] = set()
        self._stopped = False

    def wait(self, number: int) -> None:
        """Return when it is the turn of *number*.

        Raises:
            InterruptedError: Another thread has failed: the turn will not come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._now == number)
            if self._stopped:
                raise InterruptedError

    def end(self, number: int) -> None:
        """*number* has nothing more to say, whether it has had its turn or not."""
        with self._changed:
            self._ended.add(number)
            while self._now in self._ended:
                self._ended.remove(self._now)
                self._now += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody has a turn any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
