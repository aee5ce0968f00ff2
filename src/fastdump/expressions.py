"""Regular expressions of bytes, over memory that comes a window at a time.

A match at a place is what ``re`` finds there in the LONGEST bytes that follow; it is not empty,
and not zeros only. The leftmost is taken, then the next behind its end. What is found must not
depend on where windows begin and end, so what could tell is refused: see :class:`Expression`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from fastdump.errors import UsageError

try:
    from re import _parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_parse as _parser

# Bytes of a match, and of what it looks at before it.
LONGEST = 4096

_NOT_ZERO = re.compile(rb"[^\0]")
# Whether these hold, or which match they leave, may change where memory seems to end.
_SEES_THE_END = {"AT_END", "AT_END_STRING", "AT_BOUNDARY", "AT_NON_BOUNDARY"}
_KEEPS = {"ATOMIC_GROUP", "POSSESSIVE_REPEAT"}


class Expression:
    """A regular expression; see :mod:`re`.

    Args:
        text: As the user wrote it.

    Raises:
        UsageError: It is none; or it looks back by more than LONGEST bytes; or it looks at the end
            (``$``, ``\\b``, ``(?!...)``, atomic groups) and has no greatest length below LONGEST.
    """

    def __init__(self, text: str, source: bytes, ignore_case: bool = False) -> None:
        self.text = text
        flags = re.IGNORECASE if ignore_case else 0
        try:
            self._regex = re.compile(source, flags)
            tree = _parser.parse(source, flags)
        except (re.error, OverflowError, RecursionError) as error:
            raise UsageError(f"the pattern {text!r}: {error}") from None
        before = ahead = 0
        sees_the_end = False
        for code, argument in _parts(tree):
            if code in ("ASSERT", "ASSERT_NOT"):
                direction, inner = argument
                width = int(inner.getwidth()[1])
                if direction < 0:
                    before = max(before, width)
                else:
                    ahead = max(ahead, width)
                    sees_the_end |= code == "ASSERT_NOT"
            sees_the_end |= code in _KEEPS or (code == "AT" and str(argument) in _SEES_THE_END)
        if before > LONGEST:
            raise UsageError(f"the pattern {text!r} looks back by more than {LONGEST} bytes")
        if sees_the_end and tree.getwidth()[1] + ahead + 2 > LONGEST:
            raise UsageError(
                f"the pattern {text!r} looks at what follows, and its length has no limit",
                f"write {{0,100}} for *, {{1,100}} for +: at most {LONGEST} bytes in all",
            )
        self.prefix = b""
        if not self._regex.flags & re.IGNORECASE:
            self.prefix = _prefix(tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and other._regex == self._regex

    def __hash__(self) -> int:
        return hash(self._regex)

    def find(self, window: bytearray, start: int, stop: int) -> tuple[int, int] | None:
        """The first match that begins in ``[start, stop)``: its start and end.

        The window goes on for LONGEST bytes behind *stop*, or to the end of the memory, and
        begins as many before *start*, or where the memory does.
        """
        while (at := self._candidate(window, start)) < stop:
            found = self._regex.match(window, at, at + LONGEST)
            start = at + 1
            if found and found.end() > at:
                filled = _NOT_ZERO.search(window, at)
                if filled and filled.start() < found.end():
                    return at, found.end()
                # No match before this one can reach what is not zero.
                start = max(start, (filled.start() if filled else len(window)) - LONGEST + 1)
        return None

    def _candidate(self, window: bytearray, start: int) -> int:
        """Where a match may begin: no earlier than *start*; behind the window if nowhere."""
        if self.prefix:
            at = window.find(self.prefix, start)
            return at if at >= 0 else len(window)
        found = self._regex.search(window, start)
        return found.start() if found else len(window)


def _parts(tree: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Each part of a parsed expression, with those inside it."""
    for code, argument in tree:
        yield str(code), argument
        yield from _inner(argument)


def _inner(argument: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(argument, _parser.SubPattern):
        yield from _parts(argument)
    elif isinstance(argument, (tuple, list)):
        for each in argument:
            yield from _inner(each)


def _prefix(tree: Iterable[Any]) -> bytes:
    """The literal bytes that every match begins with."""
    found = bytearray()
    for code, argument in tree:
        if str(code) != "LITERAL":
            break
        found.append(argument)
    return bytes(found)


class Windows:
    """Expressions over one stream of memory: bytes come in order, a match once it is certain."""

    def __init__(self, expressions: Iterable[tuple[int, Expression]]) -> None:
        self._expressions = list(expressions)
        self.begin(0)

    def begin(self, address: int) -> None:
        """A new stream: what was there before is far away."""
        self._window = bytearray()
        self._address = address  # of the window
        self._at = {number: 0 for number, _ in self._expressions}  # where to go on in the window

    def feed(self, data: bytes | memoryview, last: bool = False) -> Iterator[tuple[int, int, int]]:
        """More bytes: matches as address, number, length; in order for each expression.

        Args:
            last: The memory ends here.
        """
        self._window += data
        stop = len(self._window) - (0 if last else LONGEST)
        for number, expression in self._expressions:
            while found := expression.find(self._window, self._at[number], stop):
                start, end = found
                yield self._address + start, number, end - start
                self._at[number] = end
            self._at[number] = max(self._at[number], stop)
        drop = max(stop - LONGEST, 0)
        del self._window[:drop]
        self._address += drop
        self._at = {number: at - drop for number, at in self._at.items()}
