"""What memory is read from: a live process, a core, a dump; by address.

Whatever fastdump can ask of one it can ask of each. A source knows its regions and their
labels; it gives bytes, what is known to be zero, and gaps with their reasons. Each kind says in
its own file how consistent it is and which pages it sees.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from fastdump._native import Gap, Memory, Slice
from fastdump.errors import FaultError
from fastdump.labels import Label
from fastdump.region import Range, Region
from fastdump.selection import Preset, Rule

if TYPE_CHECKING:
    from fastdump.place import Place

Self = TypeVar("Self", bound="Source")

# Bytes of a chunk at the most.
CHUNK_SIZE = 1 << 20
NOT_MAPPED = "not mapped"
NOT_IN_DUMP = "not in the dump"


class Chunk(NamedTuple):
    """The bytes at an address; valid until the walk's next step."""

    address: int
    data: memoryview

    @property
    def end(self) -> int:
        return self.address + len(self.data)


class Zeros(NamedTuple):
    """A range that is known to be zero: the target never touched it, or only read it."""

    start: int
    end: int


class Sink(Protocol):
    """What takes the bytes of a range; in order."""

    def enter(self, address: int, data: Any) -> None:
        """Whole words at an address."""

    def enter_slices(self, memory: Memory, slices: Sequence[Slice]) -> list[Gap]:
        """Whole pages, which it reads itself; returns the gaps."""
        ...


class Source(ABC):
    """Memory that can be read by address. A context manager; for one thread.

    Attributes:
        name: As the user called it.
        format: ``process``, ``core``, ``lz4``, ``raw`` or ``raw-lz4``.
    """

    name: str
    format: str

    @property
    @abstractmethod
    def regions(self) -> Sequence[Region]:
        """In address order, without overlap."""

    @property
    @abstractmethod
    def labels(self) -> Sequence[Label]:
        """One for each region."""

    @abstractmethod
    def walk(self, ranges: Iterable[Range]) -> Iterator[Chunk | Zeros | Gap]:
        """Every byte of *ranges* exactly once, in their order.

        Raises:
            SourceGone: The target exited or called exec.
        """

    def pour(self, where: Range, sink: Sink) -> Iterator[Gap]:
        """Give all bytes of a range that are not zero to a sink; the gaps are told.

        Raises:
            SourceGone: The target exited or called exec.
        """
        for part in self.walk([where]):
            if isinstance(part, Chunk):
                sink.enter(part.address, part.data)
            elif isinstance(part, Gap):
                yield part

    @abstractmethod
    def place(
        self,
        *,
        preset: Preset = Preset.DATA,
        rules: Sequence[Rule] = (),
        with_libraries: bool = False,
        swap: bool | None = None,
    ) -> Place:
        """What is selected of it, to be searched; close it before the source.

        Raises:
            SourceGone: The target exited or called exec.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds open."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def direct(self) -> tuple[Memory, Sequence[Slice]]:
        """What C reads without a walk, in address order; what is swapped comes back by that."""
        return Memory.of_files(), []

    def mapped(self, start: int, end: int) -> memoryview | None:
        """The bytes of a range where they lie, without a copy; None where that cannot be."""
        return None

    def read_into(self, address: int, buffer: Any) -> int:
        """Read 1 to ``len(buffer)`` bytes at *address*: fewer where a gap follows.

        Raises:
            FaultError: There is no byte at *address*; says why.
            SourceGone: The target exited or called exec.
        """
        view = memoryview(buffer).cast("B")
        done = 0
        for part in self.walk([Range(address, address + len(view))]):
            if isinstance(part, Gap):
                if not done:
                    raise FaultError(part.start, part.errno or errno.ENODATA, part.reason)
                break
            if isinstance(part, Zeros):
                length = part.end - part.start
                view[done : done + length] = bytes(length)
            else:
                length = len(part.data)
                view[done : done + length] = part.data
            done += length
        return done

    def read(self, address: int, length: int) -> bytes:
        """All *length* bytes at *address*.

        Raises:
            FaultError: A byte of them cannot be had; says which and why.
            SourceGone: The target exited or called exec.
        """
        parts = []
        for part in self.walk([Range(address, address + length)]):
            if isinstance(part, Gap):
                raise FaultError(part.start, part.errno or errno.ENODATA, part.reason)
            parts.append(
                bytes(part.end - part.start) if isinstance(part, Zeros) else bytes(part.data)
            )
        return b"".join(parts)
