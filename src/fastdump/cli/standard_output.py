"""Standard output: an error of writing to it has its name, so that it is not taken for another."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

NAME = "standard output"


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = NAME
        raise


class _Named(io.FileIO):
    def write(self, data: Any) -> Any:
        with _named():
            return super().write(data)


def name_its_errors() -> None:
    """Let ``sys.stdout`` do so, unless it is somebody else's; opens it if the shell closed it."""
    old = sys.stdout
    if old is not sys.__stdout__:
        return
    # A path may hold what the locale cannot write: it is shown as an escape then.
    given: dict[str, Any] = {"errors": "backslashreplace"}
    if isinstance(old, io.TextIOWrapper):
        given["encoding"] = old.encoding
        given["line_buffering"] = old.line_buffering or old.write_through
    raw = _Named(1, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), **given)


def write_all(data: bytes | memoryview) -> None:
    """Write past what ``sys.stdout`` holds."""
    view = memoryview(data)
    while view:
        with _named():
            view = view[os.write(1, view) :]


def discard() -> None:
    """Let go of what is in the buffer: the flush at exit would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
