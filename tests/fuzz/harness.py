"""What the fuzz targets share. Run one for long: see CONTRIBUTING.md, "Tests"."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import atheris

with atheris.instrument_imports(include=["fastdump"]):
    import fastdump.core_source
    import fastdump.description
    import fastdump.frames
    import fastdump.manifest
    import fastdump.raw_source
    from fastdump.dumped import Dumped
    from fastdump.errors import CorruptDump, UsageError
    from fastdump.region import Range
    from fastdump.source import Chunk
    from fastdump.storage import TRUNCATED, Lost, Storage


class Bytes(Storage):
    """A file in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def parts(self, offset: int, length: int) -> Iterator[bytes | memoryview | Lost]:
        found = self._data[offset : offset + length]
        if found:
            yield found
        if len(found) < length:
            yield Lost(length - len(found), TRUNCATED)

    def close(self) -> None:
        pass


def use(source: Dumped) -> None:
    """Read all of it, each byte once."""
    at = 0
    for region in source.regions:
        assert at <= region.start < region.end <= 1 << 64
        at = region.start
        for part in source.walk([Range(region.start, region.end)]):
            assert at == (part.address if isinstance(part, Chunk) else part.start)
            assert at < part.end
            at = part.end
        assert at == region.end
    fastdump.description.describe(source)
    source.place().close()


def run(target: Callable[[bytes], None]) -> None:
    """Fuzz *target*, which may refuse what it is given."""

    def one(data: bytes) -> None:
        with contextlib.suppress(CorruptDump, UsageError):
            target(data)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
