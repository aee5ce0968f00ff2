"""The Python API: ``fastdump.open()`` and ``fastdump.attach()``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastdump import matches, memory_search, sources
from fastdump._native import Gap
from fastdump.labels import Label
from fastdump.patterns import Pattern
from fastdump.region import Range, Region
from fastdump.source import Chunk, Source, Zeros


def open(path: str | os.PathLike[str]) -> Opened:
    """Open a core of any producer, a ``.core.lz4``, or the folder of a raw dump.

    >>> with fastdump.open("app.core.lz4") as source:  # doctest: +SKIP
    ...     source.read(0x7f0000001000, 64)

    Raises:
        UsageError: There is no such file, or it is neither.
        NotPermitted: It may not be read.
        CorruptDump: It cannot be understood.
    """
    name = os.fspath(path)
    return Opened(sources.open_source(name if not sources.is_pid(name) else f"./{name}"))


def attach(pid: int) -> Opened:
    """The memory of the live process *pid*. It is not stopped, and does not grow.

    Raises:
        SourceGone: There is no such process.
        NotPermitted: The kernel does not let us read it.
        UsageError: It is a kernel thread.
    """
    return Opened(sources.attach(pid))


class Opened:
    """Memory that can be read by address: of a process or a dump. A context manager.

    For one thread. All methods may raise SourceGone: the target exited or called exec.

    Attributes:
        source: What lies under it.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what it holds open."""
        self.source.close()

    @property
    def name(self) -> str:
        """A pid or a path."""
        return self.source.name

    @property
    def format(self) -> str:
        """``process``, ``core``, ``lz4``, ``raw`` or ``raw-lz4``."""
        return self.source.format

    @property
    def regions(self) -> Sequence[Region]:
        """In address order."""
        return self.source.regions

    @property
    def labels(self) -> Sequence[Label]:
        """What each region is."""
        return self.source.labels

    def info(self) -> dict[str, Any]:
        """What ``fastdump info --json`` prints: identity, threads, notes, regions, gaps."""
        from fastdump.description import describe

        return describe(self.source)

    def read(self, address: int, length: int) -> bytes:
        """All *length* bytes at *address*; what was never touched is zero.

        Raises:
            FaultError: A byte of them cannot be had; says which and why.
        """
        return self.source.read(address, length)

    def read_into(self, address: int, buffer: Any) -> int:
        """Read 1 to ``len(buffer)`` bytes: fewer where a gap follows.

        Raises:
            FaultError: There is no byte at *address*; says why.
        """
        return self.source.read_into(address, buffer)

    def walk(self, ranges: Iterable[tuple[int, int]] = ()) -> Iterator[Chunk | Zeros | Gap]:
        """Every byte of ``[start, end)`` *ranges* once: chunks, known zeros, and gaps.

        The ``data`` of a chunk is valid until the next step.

        Args:
            ranges: By default all regions, each by itself.
        """
        found = [Range(*each) for each in ranges]
        return self.source.walk(found or [Range(r.start, r.end) for r in self.regions])

    def view(self, start: int, end: int) -> memoryview:
        """The bytes of a range, read-only; of a range of one segment of a core they are mapped, not
        copied. (A file that is made shorter meanwhile then costs us a SIGBUS: mmap(2).)

        Raises:
            FaultError: A byte of them cannot be had; says which and why.
        """
        mapped = self.source.mapped(start, end)
        return mapped if mapped is not None else memoryview(self.source.read(start, end - start))

    def to_numpy(self, start: int, end: int, dtype: Any = "u1") -> Any:
        """The same as a NumPy array, for example of ``"<u8"``; read-only. Needs NumPy."""
        import numpy

        return numpy.frombuffer(self.view(start, end), dtype)

    def strings(self, **options: Any) -> Iterator[matches.Match]:
        """The strings of what is selected; the options are those of ``fastdump.batches``."""
        return matches.strings(self.source, **options)

    def batches(self, **options: Any) -> Iterator[matches.Batch]:
        """The same as columns; see ``fastdump.batches``."""
        return matches.batches(self.source, **options)

    def search(
        self, patterns: Sequence[str | bytes | Pattern], **options: Any
    ) -> Iterator[memory_search.PatternMatch]:
        """Every place of every pattern; the options are those of ``fastdump.search``."""
        return memory_search.search(self.source, patterns, **options)
