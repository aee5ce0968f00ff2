"""Bytes as ``hexdump -C`` shows them, with addresses; ``csrc/hexdump.c`` makes the lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastdump._native import _check, ffi, lib

WIDTH = 16
GROUP = 8
MOST_WIDTH: int = lib.FASTDUMP_HEXDUMP_WIDTH
_BUFFER_SIZE = 256 << 10


def digits_of(end: int) -> int:
    """Hexadecimal digits of addresses up to *end*: 8 or, where they need them, more."""
    return max(8, len(f"{end:x}"))


class Hexdump:
    """One output: lines of *width* bytes, with a wider gap behind each *group* of them.

    Addresses have *digits* digits throughout. Equal lines are shown as ``*``, or all of them
    (*squeeze* is false). *color* tells classes of bytes apart by escape codes, as hexyl does.
    """

    def __init__(
        self,
        digits: int,
        *,
        width: int = WIDTH,
        group: int = GROUP,
        squeeze: bool = True,
        color: bool = False,
        capacity: int = _BUFFER_SIZE,
    ) -> None:
        options = {"digits": digits, "width": width, "group": group}
        options |= {"all": not squeeze, "color": color}
        self._dump = ffi.new("struct fastdump_hexdump *", options)
        self._written = ffi.new("uint64_t *")
        self._out = ffi.new("unsigned char[]", capacity)
        self.begin(0)

    def begin(self, address: int, *, aligned: bool = False) -> None:
        """Begin anew at an address: no line is equal to one before it.

        Lines begin at it, or at multiples of the width (*aligned*).
        """
        blank = address % self._dump.width if aligned else 0
        _check(lib.fastdump_hexdump_begin(self._dump, address, blank))

    @property
    def address(self) -> int:
        """Of the next byte."""
        return int(self._dump.address)

    def feed(self, data: Any) -> Iterator[memoryview]:
        """Lines of *data*, which follows what came before; each view is valid until the next step.

        What is not a whole line waits.
        """
        view = ffi.from_buffer(data)
        done = 0
        while done < len(view):
            done += self._step(lib.fastdump_hexdump, view + done, len(view) - done)
            yield self._lines(self._written[0])

    def zeros(self, length: int) -> Iterator[memoryview]:
        """The same of so many zeros, at once if equal lines are not shown."""
        done = 0
        while done < length:
            done += self._step(lib.fastdump_hexdump_zeros, length - done)
            yield self._lines(self._written[0])

    def end(self) -> memoryview:
        """The line that is not whole, if there is one."""
        return self._lines(_check(lib.fastdump_hexdump_end(self._dump, len(self._out), self._out)))

    def _step(self, show: Callable[..., int], *what: Any) -> int:
        return _check(show(self._dump, *what, len(self._out), self._out, self._written))

    def _lines(self, length: int) -> memoryview:
        return memoryview(ffi.buffer(self._out, length))
